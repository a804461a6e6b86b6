"""Talking to a model in the terminal: who answers (`backends`), the conversation (`terminal`)."""
