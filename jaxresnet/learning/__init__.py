"""How a network learns: pure functions of arrays. They read no clock, file, device or environment variable."""
