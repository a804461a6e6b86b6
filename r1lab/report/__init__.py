"""Report on a run: its curves, its HTML page, and its samples in the terminal."""
