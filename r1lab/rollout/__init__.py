"""Rollouts: samplers behind one protocol, the stream of groups, and the proof of weight sync.

vLLM is imported nowhere else, and only when a vLLM sampler is built.
"""
