"""What a run needs before it is paid for: memory, time and cost, from config.json alone.

`shape` counts parameters, operations and bytes of a model; `hardware` holds the machines;
`constants` every number that is neither counted nor read from a data sheet; `memory`, `timing` and
`plan` put them together. Nothing here imports torch, and no weight is read.
"""
