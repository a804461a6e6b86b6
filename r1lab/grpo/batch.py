"""From scored groups to what a forward pass takes.

`pack` lays the sequences of a step end to end and counts the denominator of their loss once, over
all of them and over all processes. Sequences with advantage zero carry no gradient where there is
no KL term, so they drop out before the forward pass; the denominator keeps them. `split` parts a
batch into the updates of a step, `microbatches` an update into forward passes of bounded size,
padded as little as may be: sequences sorted by length, longest first, so that memory runs out at
once or not at all.

Legend beside that of r1lab.types: b sequences and t padded tokens of a micro-batch, M completion
tokens in it.
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
    """What one forward and backward pass takes: sequences padded on the right to one length.

    token_ids        [b, t] int64, prompt then completion, padded
    attention_mask   [b, t] int64, 0 at padding. With causal attention nothing before the padding
                     sees it, so the mask may be left out, which is faster
    completion_mask  [b, t] bool, True at completion tokens
    completion_lens  [b] int64, completion tokens of each sequence; they sum to M
    advantages       [b] float32
    where            [b, t] int64, where each token stands in the packed batch; 0 at padding
    logp_sampler     [M] float32 or None: flat, in the order of `token_ids[completion_mask]`
    logp_old         [M] float32 or None: likewise
    logp_ref         [M] float32 or None: likewise
    stale            [b] bool, sampled under earlier weights
    experts          [b, t, layers, top_k] int64 or None, -1 at padding and where nothing is given
    denominator      that of the batch it was cut from

    The rest is None but where a row holds several completions, of one prompt (`grpo.shared`) or
    each with its own; then `completion_lens`, `advantages` and `stale` are of completions, which
    are more than rows.

    position_ids     [b, t] int64
    mask             [b, 1, t, t] what attention adds: 0, or the lowest number where nothing is seen
    predictors       [M] int64, which of the b * t hidden states predicts each completion token

    Of one row of sequences end to end (`grpo.packed`) there are `position_ids`, `predictors` and

    cu_seqlens       int32, where the sequences begin, and the end of the last
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
        """[M] int64: where each completion token stands in the packed batch."""
        return self.where[self.completion_mask]

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same on another device."""
        moved: dict[str, Any] = {
            item.name: value.to(device, non_blocking=True)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **moved)


def is_in_loss(completion: Completion, *, overlong_filter: bool) -> bool:
    """Whether the tokens of a completion that has an advantage enter the loss."""
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

    advantages as `group_advantages` returns them: None marks a faulted completion, which counts
    nowhere. `loss` is what grpo.loss.find_loss takes, `max_tokens` the length limit of a completion
    (Dr. GRPO's constant). `version` is that of the trainer's weights: what was sampled under others
    is stale; None: nothing is. `all_reduce_sum` sums an int64 tensor over processes in place or
    not and returns it (`accelerator.reduce`); None: one process. Each process must call it, also
    with nothing scored. A loss with a KL term sets `drop_zero_advantage=False`.

    `overlong_filter` (DAPO, arXiv 2503.14476, section 3.4) takes completions that were cut off at
    their limit out of the loss: their tokens count nowhere, the sequences do, as in TRL.

    The batch may come out empty (all groups without variance); its denominator is then at least 1.
    Raises ValueError where only some completions carry log-probs, or a prompt has no token.
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
        raise ValueError("a prompt without tokens: the first completion token follows on nothing")
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
    """[N] float32, 0 at prompt tokens; None where no completion has log-probs."""
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
    """[N, layers, top_k] int16, -1 for the last token of each sequence, which no forward saw."""
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
    """Part a batch into one smaller batch for each optimiser update.

    Sequences stay in order, so that groups stay whole where they can, or are shuffled first where a
    generator is given (DeepSeek-R1 splits its outputs at random). The parts are equal to within one
    sequence and may be empty: every process gets as many. Each part's denominator is the batch's
    divided by num_minibatches, so an update is as large as one of a batch of that size would be
    (TRL's `dapo` normalises likewise). `own_denominators` (the loss `bnpo`) divides each part by
    its own completion tokens instead, over all processes.
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
    """The sequences that carry gradient where there is no KL term; the denominator unchanged."""
    return select(batch, batch.advantages.nonzero().flatten())


def select(batch: Batch, rows: Tensor) -> Batch:
    """The sequences with these indices, [k] int64, in this order; the denominator unchanged."""
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

    `rows` [k] int64 leaves all other sequences out.

    A sequence longer than the budget gets a micro-batch of its own. The order depends on the batch
    alone. Nothing comes out of an empty batch: a trainer with several processes must still take
    part in their collectives.
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
    """[B]: where each sequence begins in the packed tokens."""
    return lengths.cumsum(0) - lengths


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """starts [k], lengths [k] -> the indices start, start + 1, ... of each, end to end."""
    if lengths.numel() == 0:
        return lengths.new_zeros(0)
    steps = torch.arange(int(lengths.sum()), device=lengths.device)
    return steps + (starts - _starts(lengths)).repeat_interleave(lengths)
