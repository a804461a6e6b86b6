"""Problem sources, one a file, and the data that ships: small bases and the papers' figures."""
