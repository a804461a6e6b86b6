"""vLLM as a server that samples for training runs: both ends of its protocol."""
