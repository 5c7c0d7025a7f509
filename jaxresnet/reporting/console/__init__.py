"""What commands print, as JSON lines for programs and as tables and bars for people."""
