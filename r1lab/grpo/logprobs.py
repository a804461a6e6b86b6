"""Log-probs of completion tokens from hidden states, without ever materialising [b, t, V].

Positions and labels are shifted, and the temperature is applied, only here.

Legend in addition to that of r1lab.types: b sequences and t padded tokens of a micro-batch,
M completion tokens in it, H width of the model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits in memory at once: 2**24 float32 are 64 MiB. Above that the head runs in chunks of tokens.
MAX_LOGITS = 2**24


def token_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    token_ids: Tensor,
    completion_mask: Tensor,
    *,
    temperature: float = 1.0,
    max_logits: int = MAX_LOGITS,
    predictors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the log-prob of each completion token; positions and labels are shifted only here.

    hidden [b, t, H] last hidden states; head maps [m, H] to logits [m, V]; token_ids [b, t];
    completion_mask [b, t] bool, True at completion tokens (never in the first column). The
    temperature is the sampler's: logits are divided by it, so that the log-probs are those of the
    sampled distribution. `predictors` [M] gives the one of the b * t states that predicts each
    completion token; None: the one before it.

    Returns (logp [M], entropy [M]) in float32 (float64 for float64 input), natural log, flat in the
    order of `token_ids[completion_mask]`. The entropy, of the whole next-token distribution in
    nats, carries no gradient.

    Only hidden states that predict a completion token pass through the head, and at most
    `max_logits` logits are in memory at once: above that, chunks of tokens are recomputed in the
    backward pass.
    """
    labels = token_ids[completion_mask]
    if predictors is None:
        states = hidden[:, :-1][completion_mask[:, 1:]]
    else:
        states = hidden.flatten(0, 1)[predictors]

    def score(states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return _logprob_and_entropy(head(states), labels, temperature)

    rows = _rows_per_chunk(head, states, max_logits)
    if len(labels) <= rows:
        return score(states, labels)
    chunks = [
        checkpoint(score, s, y, use_reentrant=False)
        for s, y in zip(torch.split(states, rows), torch.split(labels, rows), strict=True)
    ]
    return torch.cat([logp for logp, _ in chunks]), torch.cat([entropy for _, entropy in chunks])


def _rows_per_chunk(head: Callable[[Tensor], Tensor], states: Tensor, max_logits: int) -> int:
    weight = getattr(head, "weight", None)
    if weight is None:  # any callable: run it on one state to get the width of its output
        with torch.no_grad():
            vocabulary = head(states[:1]).shape[-1]
    else:
        vocabulary = weight.shape[0]
    return max(1, max_logits // vocabulary)


def _logprob_and_entropy(
    logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """logits [m, V], labels [m] -> log-prob of the label [m] and entropy [m] (no gradient)."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    log_probs = F.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1), entropy
