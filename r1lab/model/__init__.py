"""Models: V3-style configurations, loading a base, adapters, weights under checkpoint names."""
