"""Diagnose this machine and suggest fixes: `r1lab doctor`."""
