"""r1lab: reasoning reinforcement learning that anyone can run, read and trust."""

__version__ = "0.1.0"
