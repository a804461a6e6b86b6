"""What a run leaves behind: its folder, its curves, and its samples in the terminal."""
