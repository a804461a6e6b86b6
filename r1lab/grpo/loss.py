"""The policy loss: free functions from tensors to (loss, stats), and one table of names.

Sources: GRPO (DeepSeekMath, arXiv 2402.03300, eq. 3; DeepSeek-R1, arXiv 2501.12948, eq. 1, without
the KL term), Dr. GRPO (arXiv 2503.20783, eq. 2), token mean over the batch (DAPO, arXiv 2503.14476,
eq. 8). Equal to TRL 1.16's GRPOTrainer with loss_type `grpo`, `dr_grpo` and `dapo`
(tests/parity/test_trl_loss.py).

Completion tokens travel flat, [M], one sequence behind the other, in the order of the rows;
`lengths` [b] says how many belong to each. Padding never reaches a loss, so nothing depends on it.
Every loss is a sum over tokens divided by one denominator that was counted over the whole step
(`denominator`, called by `grpo.batch.pack`): micro-batches and processes simply add up.

Legend beside that of r1lab.types: b sequences and t padded tokens of a micro-batch, M completion
tokens in it, H width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Aggregation = Literal["sequence_mean", "token_mean", "constant"]
Surrogate = Callable[[Tensor, Tensor, float, float], Tensor]

# Logits held at once: 2**24 float32 are 64 MiB. Beyond it the head runs in chunks of tokens.
MAX_LOGITS = 2**24


# ---------------------------------------------------------------------------- log-probabilities


def token_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    token_ids: Tensor,
    completion_mask: Tensor,
    *,
    temperature: float = 1.0,
    max_logits: int = MAX_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each completion token: the one place where positions and labels are shifted.

    hidden [b, t, H] last hidden states; head maps [m, H] to logits [m, V]; token_ids [b, t];
    completion_mask [b, t] bool, True at completion tokens (never in the first column). The
    temperature is the sampler's: logits are divided by it, so that the log-probs are those of the
    distribution sampled from.

    Returns (logp [M], entropy [M]) in float32 (float64 for float64 input), natural log, flat in the
    order of `token_ids[completion_mask]`. The entropy, of the whole next-token distribution in
    nats, carries no gradient.

    Only hidden states that predict a completion token pass through the head, and no more than
    `max_logits` logits are held at once: beyond that, chunks of tokens are computed again in the
    backward pass.
    """
    predicts = completion_mask[:, 1:]
    states = hidden[:, :-1][predicts]
    labels = token_ids[:, 1:][predicts]

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
    if weight is None:  # any callable: ask it for the width of its output
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


# ---------------------------------------------------------------------------------- surrogates


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) per token, w = exp(log_ratio).

    PPO's clipped objective as GRPO uses it (2402.03300, eq. 3; clip_high apart: DAPO's
    clip-higher). log_ratio, advantages and the result: [M].
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


@dataclass(frozen=True, slots=True)
class Loss:
    """A named loss: the term of one token, and how terms are averaged over a batch."""

    surrogate: Surrogate
    aggregation: Aggregation


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "grpo": Loss(clipped_surrogate, "sequence_mean"),
        "dr_grpo": Loss(clipped_surrogate, "constant"),
        "token_mean": Loss(clipped_surrogate, "token_mean"),
    }
)


def find_loss(name: str) -> Loss:
    """The loss of that name; ValueError names those there are."""
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is not one of {', '.join(sorted(LOSSES))}")
    return LOSSES[name]


def denominator(loss: str, num_sequences: int, num_tokens: int, max_tokens: int) -> float:
    """What the sum of token terms is divided by.

    num_sequences and num_tokens count the completions and their tokens, those with zero advantage
    included; max_tokens is the length limit of a completion, Dr. GRPO's constant.

    sequence_mean: B (each token then counts 1/|o_i|);  token_mean: N_completion;
    constant: B * max_tokens.
    """
    match find_loss(loss).aggregation:
        case "sequence_mean":
            return float(num_sequences)
        case "token_mean":
            return float(num_tokens)
        case "constant":
            return float(num_sequences) * max_tokens


# ---------------------------------------------------------------------------------------- loss


@dataclass(frozen=True, slots=True)
class LossStats:
    """Sums over completion tokens, which add up over micro-batches and processes.

    `sums` [len(FIELDS)] float64 stays on the device: nothing waits for it. Add two with `+`, sum
    `sums` over processes, then read `means()`.
    """

    FIELDS = ("tokens", "sequences", "loss", "clipped_low", "clipped_high", "kl_old", "entropy")

    sums: Tensor

    @classmethod
    def zeros(cls, device: torch.device | str = "cpu") -> LossStats:
        """Nothing counted yet: the start of a sum, or a process without a sequence."""
        return cls(torch.zeros(len(cls.FIELDS), dtype=torch.float64, device=device))

    def __add__(self, other: LossStats) -> LossStats:
        return LossStats(self.sums + other.sums)

    def means(self) -> dict[str, float]:
        """`tokens` and `sequences` counted, `loss` summed, and means per token of the others.

        clipped_low / clipped_high: share of tokens where the clip took the gradient away;
        kl_old: k3 estimate of KL(old, current) in nats; entropy: nats.
        """
        values = dict(zip(self.FIELDS, self.sums.tolist(), strict=True))
        totals = {name: values.pop(name) for name in ("tokens", "sequences", "loss")}
        tokens = max(totals["tokens"], 1.0)
        return {**totals, **{name: value / tokens for name, value in values.items()}}


def policy_loss(
    logp: Tensor,
    logp_old: Tensor | None,
    advantages: Tensor,
    lengths: Tensor,
    *,
    loss: str,
    denominator: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    entropy: Tensor | None = None,
) -> tuple[Tensor, LossStats]:
    """The loss of one micro-batch, its share of the loss of the whole step.

    logp        [M] log-probs of the completion tokens under the current policy, with gradient
    logp_old    [M] the same before the first update; None: this is the first update (ratio 1)
    advantages  [b] one for each sequence, shared by its tokens
    lengths     [b] completion tokens of each sequence; they sum to M
    loss        a name of LOSSES
    denominator of the whole step over all processes (`denominator` above)
    entropy     [M] for the stats only

    Returns (scalar loss, stats). The gradients of all micro-batches of all processes add up to the
    gradient of the whole: do not average them over either.
    """
    chosen = find_loss(loss)
    per_token = advantages.to(logp.dtype).repeat_interleave(lengths, output_size=logp.numel())
    log_ratio = logp - (logp.detach() if logp_old is None else logp_old)
    terms = chosen.surrogate(log_ratio, per_token, clip_low, clip_high)
    if chosen.aggregation == "sequence_mean":
        terms = terms / lengths.repeat_interleave(lengths, output_size=logp.numel())
    total = terms.sum() / denominator
    return total, _stats(
        total, log_ratio.detach(), per_token, lengths, clip_low, clip_high, entropy
    )


@torch.no_grad()
def _stats(
    loss: Tensor,
    log_ratio: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    clip_low: float,
    clip_high: float,
    entropy: Tensor | None,
) -> LossStats:
    ratio = log_ratio.exp()
    sums = (
        loss.new_tensor(log_ratio.numel()),
        loss.new_tensor(lengths.numel()),
        loss.detach(),
        ((ratio < 1 - clip_low) & (advantages < 0)).sum(),
        ((ratio > 1 + clip_high) & (advantages > 0)).sum(),
        (ratio - 1 - log_ratio).sum(),
        loss.new_zeros(()) if entropy is None else entropy.sum(),
    )
    return LossStats(torch.stack([value.double() for value in sums]))
