"""The recipe: its schema by section, reading and overriding it, what changed, errors. No torch."""
