"""vLLM in the trainer's process: the engine, its patches, and exact weights."""
