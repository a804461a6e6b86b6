"""The `r1lab` command: one module per group of commands, assembled in `app`."""
