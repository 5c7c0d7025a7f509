"""What a run leaves behind: its folder, its typed records and its checkpoints; and groups of runs."""
