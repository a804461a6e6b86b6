"""Rollouts: samplers behind one protocol, the stream of groups, and the check of weight sync.

Only this package imports vLLM, and only when a vLLM sampler is built.
"""
