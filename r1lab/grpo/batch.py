"""Convert scored groups to the input of a forward pass.

`pack` concatenates the sequences of a step and computes the denominator of their loss once, over
all sequences and all processes. Without a KL term, sequences with advantage zero carry no gradient:
they are dropped before the forward pass, but still count in the denominator. `split` divides a
batch into the updates of a step, and `microbatches` divides an update into forward passes of
bounded size. Sequences are sorted by length to minimise padding, longest first, so that a run that
exceeds memory fails in its first pass.

Legend in addition to that of r1lab.types: b sequences and t padded tokens of a micro-batch,
M completion tokens in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from r1lab.grpo.loss import denominator
from r1lab.types import Batch, Completion, ScoredGroup

AllReduceSum = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Input of one forward and backward pass: sequences padded on the right to one length.

    token_ids        [b, t] int64, prompt then completion, padded
    attention_mask   [b, t] int64, 0 at padding. With causal attention no token before the padding
                     attends to it, so the mask may be omitted, which is faster
    completion_mask  [b, t] bool, True at completion tokens
    completion_lens  [b] int64, completion tokens of each sequence; they sum to M
    advantages       [b] float32
    where            [b, t] int64, index of each token in the packed batch; 0 at padding
    logp_sampler     [M] float32 or None: flat, in the order of `token_ids[completion_mask]`
    logp_old         [M] float32 or None, in the same order
    logp_ref         [M] float32 or None, in the same order
    stale            [b] bool, sampled under earlier weights
    experts          [b, t, layers, top_k] int64 or None, -1 at padding and unrecorded tokens
    denominator      that of the batch it was cut from

    The other fields are set only if a row holds several completions, either of one prompt
    (`grpo.prefix_sharing`) or each with its own prompt. Then `completion_lens`, `advantages` and
    `stale` have one entry per completion, so they are longer than the number of rows.

    position_ids     [b, t] int64
    mask             [b, 1, t, t] added to attention scores: 0, or the lowest number where masked
    predictors       [M] int64, which of the b * t hidden states predicts each completion token

    One row of concatenated sequences (`grpo.sequence_packing`) has `position_ids`, `predictors` and

    cu_seqlens       int32, the start of each sequence, then the end of the last
    """

    token_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    completion_lens: Tensor
    advantages: Tensor
    where: Tensor
    logp_sampler: Tensor | None
    logp_old: Tensor | None
    logp_ref: Tensor | None
    stale: Tensor
    experts: Tensor | None
    denominator: float
    position_ids: Tensor | None = None
    mask: Tensor | None = None
    predictors: Tensor | None = None
    cu_seqlens: Tensor | None = None

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    @property
    def positions(self) -> Tensor:
        """[M] int64: index of each completion token in the packed batch."""
        return self.where[self.completion_mask]

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return a copy on another device."""
        moved: dict[str, Any] = {
            item.name: value.to(device, non_blocking=True)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **moved)


def is_in_loss(completion: Completion, *, overlong_filter: bool) -> bool:
    """Return whether the tokens of a completion that has an advantage enter the loss."""
    cut_off = overlong_filter and completion.finish_reason == "length"
    return bool(completion.token_ids) and not cut_off


def pack(
    scored: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    *,
    loss: str,
    max_tokens: int,
    version: int | None = None,
    drop_zero_advantage: bool = True,
    overlong_filter: bool = False,
    all_reduce_sum: AllReduceSum | None = None,
) -> Batch:
    """Pack the completions of P groups that carry gradient, with the denominator of all of them.

    `advantages` is what `group_advantages` returns: None marks a completion whose scoring failed,
    which counts nowhere. `loss` is a name that grpo.loss.find_loss accepts, `max_tokens` the length
    limit of a completion (Dr. GRPO's constant). `version` is that of the trainer's weights:
    completions sampled under another version are marked stale; with None, none are.
    `all_reduce_sum` sums an int64 tensor over processes, in place or not, and returns it
    (`accelerator.reduce`); None means one process. Every process must call it, even with nothing
    scored. A loss with a KL term sets `drop_zero_advantage=False`.

    `overlong_filter` (DAPO, arXiv 2503.14476, section 3.4) excludes completions that were cut off
    at their limit from the loss: their tokens count nowhere, but the sequences do, as in TRL.

    The batch can be empty (no group has variance); its denominator is then at least 1.
    Raises ValueError if only some completions carry log-probs, or a prompt has no tokens.
    """
    judged = [
        (group.rollout.prompt_token_ids, completion, advantage)
        for group, of_group in zip(scored, advantages, strict=True)
        for completion, advantage in zip(group.rollout.completions, of_group, strict=True)
        if advantage is not None
    ]
    num_judged = len(judged)
    judged = [row for row in judged if is_in_loss(row[1], overlong_filter=overlong_filter)]
    counts = torch.tensor([num_judged, sum(len(c.token_ids) for _, c, _ in judged)])
    if all_reduce_sum is not None:
        counts = all_reduce_sum(counts)
    num_sequences, num_tokens = counts.tolist()

    kept = [
        (prompt, completion, advantage)
        for prompt, completion, advantage in judged
        if advantage != 0.0 or not drop_zero_advantage
    ]
    if not all(prompt for prompt, _, _ in kept):
        raise ValueError("prompt without tokens: nothing predicts the first completion token")
    prompt_lens = torch.tensor([len(prompt) for prompt, _, _ in kept], dtype=torch.int64)
    completion_lens = torch.tensor([len(c.token_ids) for _, c, _ in kept], dtype=torch.int64)
    tokens = chain.from_iterable(chain(prompt, c.token_ids) for prompt, c, _ in kept)
    return Batch(
        token_ids=torch.tensor(list(tokens), dtype=torch.int64),
        lengths=prompt_lens + completion_lens,
        prompt_lens=prompt_lens,
        advantages=torch.tensor([advantage for _, _, advantage in kept], dtype=torch.float32),
        logp_sampler=_sampler_logprobs([(len(prompt), c) for prompt, c, _ in kept]),
        logp_old=None,
        logp_ref=None,
        stale=torch.tensor(
            [version not in (None, c.weight_version) for _, c, _ in kept], dtype=torch.bool
        ),
        experts=_sampled_experts([(len(prompt), c) for prompt, c, _ in kept]),
        denominator=max(1.0, denominator(loss, num_sequences, num_tokens, max_tokens)),
    )


def _sampler_logprobs(kept: Sequence[tuple[int, Completion]]) -> Tensor | None:
    """[N] float32, 0 at prompt tokens; None if no completion has log-probs."""
    missing = sum(completion.logprobs is None for _, completion in kept)
    if missing == len(kept):
        return None
    if missing:
        raise ValueError(f"{missing} of {len(kept)} completions carry no log-probs")
    values = chain.from_iterable(
        chain((0.0,) * prompt_len, completion.logprobs or ()) for prompt_len, completion in kept
    )
    return torch.tensor(list(values), dtype=torch.float32)


def _sampled_experts(kept: Sequence[tuple[int, Completion]]) -> Tensor | None:
    """[N, layers, top_k] int16; -1 at the last token of each sequence, which is never an input."""
    missing = sum(completion.routed_experts is None for _, completion in kept)
    if missing == len(kept):
        return None
    if missing:
        raise ValueError(f"{missing} of {len(kept)} completions carry no routed experts")
    rows = []
    for prompt_len, completion in kept:
        given = torch.as_tensor(completion.routed_experts).to(torch.int16)
        whole = given.new_full((prompt_len + len(completion.token_ids), *given.shape[1:]), -1)
        whole[: len(given)] = given
        rows.append(whole)
    return torch.cat(rows)


def split(
    batch: Batch,
    num_minibatches: int,
    generator: torch.Generator | None = None,
    *,
    own_denominators: bool = False,
    all_reduce_sum: AllReduceSum | None = None,
) -> list[Batch]:
    """Split a batch into one smaller batch for each optimizer update.

    Sequences stay in order, so that groups stay whole if possible, or are shuffled first if a
    generator is given (DeepSeek-R1 splits its outputs at random). The parts differ in size by at
    most one sequence and may be empty; every process gets the same number. Each part's denominator
    is the batch's divided by num_minibatches, so an update is as large as that of a batch of its
    size (TRL's `dapo` does the same). `own_denominators` (the loss `bnpo`) divides each part by its
    own completion tokens instead, over all processes.
    """
    if num_minibatches == 1 and generator is None:
        return [batch]
    order = (
        torch.arange(len(batch))
        if generator is None
        else torch.randperm(len(batch), generator=generator)
    )
    parts = [select(batch, part) for part in order.tensor_split(num_minibatches)]
    if not own_denominators:
        return [replace(p, denominator=batch.denominator / num_minibatches) for p in parts]
    counts = torch.stack([(part.lengths - part.prompt_lens).sum() for part in parts])
    if all_reduce_sum is not None:
        counts = all_reduce_sum(counts)
    return [
        replace(part, denominator=max(1.0, float(count)))
        for part, count in zip(parts, counts, strict=True)
    ]


def without_zero_advantage(batch: Batch) -> Batch:
    """Return the sequences that carry gradient without a KL term; the denominator is unchanged."""
    return select(batch, batch.advantages.nonzero().flatten())


def select(batch: Batch, rows: Tensor) -> Batch:
    """Return the sequences with these indices, [k] int64, in this order; same denominator."""
    lengths = batch.lengths[rows]
    tokens = _ranges(_starts(batch.lengths)[rows], lengths)
    return replace(
        batch,
        token_ids=batch.token_ids[tokens],
        lengths=lengths,
        prompt_lens=batch.prompt_lens[rows],
        advantages=batch.advantages[rows],
        logp_sampler=_at(batch.logp_sampler, tokens),
        logp_old=_at(batch.logp_old, tokens),
        logp_ref=_at(batch.logp_ref, tokens),
        stale=batch.stale[rows],
        experts=_at(batch.experts, tokens),
    )


def _at(values: Tensor | None, positions: Tensor) -> Tensor | None:
    return None if values is None else values[positions]


def microbatches(
    batch: Batch, token_budget: int, *, pad_token_id: int = 0, rows: Tensor | None = None
) -> Iterator[MicroBatch]:
    """Cut a batch into padded micro-batches of b * t <= token_budget, longest sequences first.

    `rows` [k] int64 restricts this to the given sequences.

    A sequence longer than the budget gets its own micro-batch. The order depends only on the batch.
    An empty batch yields nothing; the trainer must still take part in the collectives of the other
    processes.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, not {token_budget}")
    order = torch.argsort(batch.lengths, descending=True, stable=True)
    if rows is not None:
        order = order[torch.isin(order, rows)]
    longest = batch.lengths[order].tolist()
    starts = _starts(batch.lengths)
    begin = 0
    while begin < len(order):
        part = order[begin : begin + max(1, token_budget // longest[begin])]
        yield _pad(batch, part, starts[part], pad_token_id)
        begin += len(part)


def _pad(batch: Batch, rows: Tensor, starts: Tensor, pad_token_id: int) -> MicroBatch:
    lengths, prompt_lens = batch.lengths[rows], batch.prompt_lens[rows]
    column = torch.arange(int(lengths.max()), device=lengths.device)  # [t]
    inside = column < lengths[:, None]  # [b, t]
    completion_mask = inside & (column >= prompt_lens[:, None])
    where = torch.where(inside, starts[:, None] + column, 0)  # [b, t], into the packed batch
    positions = where[completion_mask]
    return MicroBatch(
        token_ids=torch.where(inside, batch.token_ids[where], pad_token_id),
        attention_mask=inside.long(),
        completion_mask=completion_mask,
        completion_lens=lengths - prompt_lens,
        advantages=batch.advantages[rows],
        where=where,
        logp_sampler=_at(batch.logp_sampler, positions),
        logp_old=_at(batch.logp_old, positions),
        logp_ref=_at(batch.logp_ref, positions),
        stale=batch.stale[rows],
        experts=None if batch.experts is None else _experts(batch.experts[where], inside),
        denominator=batch.denominator,
    )


def _experts(experts: Tensor, inside: Tensor) -> Tensor:
    """[b, t, layers, top_k] with -1 at padding."""
    return torch.where(inside[:, :, None, None], experts, -1).long()


def _starts(lengths: Tensor) -> Tensor:
    """[B]: start of each sequence in the packed tokens."""
    return lengths.cumsum(0) - lengths


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """starts [k], lengths [k] -> the indices start, start + 1, ... of each, end to end."""
    if lengths.numel() == 0:
        return lengths.new_zeros(0)
    steps = torch.arange(int(lengths.sum()), device=lengths.device)
    return steps + (starts - _starts(lengths)).repeat_interleave(lengths)
