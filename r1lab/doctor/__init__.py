"""What this machine has and can do, and the fix for what is missing: `r1lab doctor`."""
