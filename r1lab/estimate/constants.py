"""Every number of the estimate that is neither counted nor read from a data sheet, in one place.

One set for all machines and models. None was fitted to a row of the table in docs/scaling.md:
each comes from a published measurement of something else, or from a measurement here, as noted.
"""

from __future__ import annotations

MIB, GIB = 2**20, 2**30

# --- GPUs: training ---

# Share of a GPU's dense bfloat16 rate that forward and backward reach, operations counted as in
# `shape`: Llama 3 405B reached .38 to .43 on 8,192 to 16,384 H100 (arXiv 2407.21783, table 4).
TRAIN_UTILISATION = 0.40

# --- GPUs: sampling ---

# Share of the memory's rate that decoding reaches. Streaming kernels reach about .9 of it on
# Hopper; reading many expert and cache blocks reaches less. Assumed, between .6 and .8.
MEMORY_UTILISATION = 0.7
# Seconds of one layer's fixed part in a decoding step, by how far a replica spreads. Alone: about
# ten captured kernels of 2.5 microseconds. In a node: two all-reduces of 25 microseconds more.
# Across nodes: DeepSeek's own figure for the dispatch and combination of a layer's tokens over
# 400 Gb/s ports, 2 x 120.96 microseconds (arXiv 2505.09343, section 2.3.2).
LAYER_SECONDS = {"alone": 25e-6, "node": 75e-6, "nodes": 242e-6}
# Spread of response lengths: the logarithm's standard deviation. The 99.9th percentile is over ten
# times the median in RLHF workloads (RLHFuse, arXiv 2409.13221, section 2.3): ln 10 / 3.09.
LENGTH_SPREAD = 0.75
# Where a recipe says nothing of the mean: a quarter of the cap. R1-Zero's mean was .15 of its cap
# over the run, the quickstart's .12 to .24.
MEAN_OF_CAP = 0.25
# Sequences that one replica decodes at once, at most: the limit that the sampler is built with.
MAX_SEQUENCES = 512

# --- GPUs: between them ---

# Share of a link's rate that large transfers reach (NCCL's bus bandwidth over its nominal).
LINK_UTILISATION = 0.8
# A transfer of weights is cut into tensors; the rest is waiting and copying into place.
SYNC_UTILISATION = 0.4
# Of a run's steps, evaluations and checkpoints not counted: fixed work of a step (rewards, packing,
# files). Measured on the quickstart: under a tenth of a second for 512 responses.
FIXED_SECONDS = 0.3
# Open frameworks took between this many times the estimate and that many (docs/scaling.md, which
# measures it on public figures): shown as a range beside it, and no part of the estimate itself.
OPEN_FRAMEWORKS = (1.5, 5.0)

# --- CPUs, by measurement on one core with AVX2, float32 (docs/experiments.md) ---

# Shares of the rate of a large product in numpy that a training pass and a decoding step reach, and
# the fixed part of a decoding step for each layer, in seconds.
CPU_TRAIN_UTILISATION = 0.8
CPU_SAMPLE_UTILISATION = 0.5
CPU_LAYER_SECONDS = 2e-3

# --- memory ---

# What a process takes beside what is counted. On the CPU by measurement with the shipped base: 606
# MiB after the imports (Python, torch, transformers, vLLM), 310 for vLLM's engine with its buffers
# for whole batches, the rest in the run. A run of next to no size and few sequences takes 710 in
# all (scripts/check_estimate.py). On a GPU CUDA's context, NCCL and the libraries' work spaces,
# assumed.
CPU_RUNTIME = 980 * MIB
GPU_RUNTIME = 1.5 * GIB
# Float32 copies of a chunk of logits that are alive at once in its backward pass: the logits in
# working precision and in float32, log-probs, their gradient and the logits' own.
LOGIT_COPIES = 4
# NF4 with doubly quantised scales: bits of a weight (arXiv 2305.14314, section 3).
NF4_BITS = 4.127
