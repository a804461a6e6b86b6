"""The `r1lab` command: one file for each group of commands, put together in `app`."""
