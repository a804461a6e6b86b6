"""Problem streams, mixtures, the curriculum, tables, the hub, and what a recipe names by path."""
