"""Talking to a model in the terminal: who answers (`speakers`), the conversation (`terminal`)."""
