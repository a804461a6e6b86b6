"""vLLM in the trainer's process: the engine, what must be patched in it, and exact weights."""
