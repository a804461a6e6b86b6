"""Micro-batches without padding, for attention of variable length.

Sequences are concatenated in one row. The kernel gets the end of each, and none attends to another:

    row          p0 p1 a0 a1 | p0 p1 b0 | q0 c0 c1      prompt and completion of each
    position      0  1  2  3 |  0  1  2 |  0  1  2
    cu_seqlens   0 4 7 10

Hidden states, and therefore the loss and its gradient, equal those of padded rows up to rounding,
and no token of a forward is wasted on padding. Each completion follows its own copy of the prompt:
a kernel that only knows where sequences end cannot let several share one, as `grpo.prefix_sharing`
does with a mask.

Legend: b sequences of a row, t its tokens, M completion tokens among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from r1lab.grpo.batch import MicroBatch
from r1lab.types import Batch


def packed_microbatches(batch: Batch, token_budget: int) -> Iterator[MicroBatch]:
    """Cut a batch into rows of at most `token_budget` tokens, each sequence whole, longest first.

    A sequence longer than the budget gets its own row. An empty batch yields nothing. The order
    depends only on the batch. A micro-batch has `position_ids`, `predictors` and `cu_seqlens`; its
    `completion_lens`, `advantages` and `stale` have one entry per sequence.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, not {token_budget}")
    for rows in fill_rows(batch.lengths.tolist(), token_budget):
        yield pack_row(batch, torch.tensor(rows))


def fill_rows(lengths: list[int], token_budget: int) -> list[list[int]]:
    """Return the indices of the sequences of each row: first fit, longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    rows: list[list[int]] = []
    room: list[int] = []
    for index in order:
        length = lengths[index]
        place = next((row for row, left in enumerate(room) if length <= left), None)
        if place is None:
            rows.append([index])
            room.append(token_budget - length)
        else:
            rows[place].append(index)
            room[place] -= length
    return rows


def pack_row(batch: Batch, rows: Tensor) -> MicroBatch:
    """Concatenate the sequences `rows` [b] of a batch into a micro-batch of one row [1, t]."""
    lengths, prompt_lens = batch.lengths[rows], batch.prompt_lens[rows]
    ends = lengths.cumsum(0)
    positions = torch.arange(int(ends[-1])) - (ends - lengths).repeat_interleave(lengths)  # [t]
    starts = (batch.lengths.cumsum(0) - batch.lengths)[rows]
    where = starts.repeat_interleave(lengths) + positions  # [t], into the batch
    is_completion = positions >= prompt_lens.repeat_interleave(lengths)
    completions = where[is_completion]  # [M]

    def at(values: Tensor | None, places: Tensor) -> Tensor | None:
        return None if values is None else values[places]

    return MicroBatch(
        token_ids=batch.token_ids[where][None],
        attention_mask=torch.ones_like(where)[None],
        completion_mask=is_completion[None],
        completion_lens=lengths - prompt_lens,
        advantages=batch.advantages[rows],
        where=where[None],
        logp_sampler=at(batch.logp_sampler, completions),
        logp_old=at(batch.logp_old, completions),
        logp_ref=at(batch.logp_ref, completions),
        stale=batch.stale[rows],
        experts=None if batch.experts is None else batch.experts[where][None].long(),
        denominator=batch.denominator,
        position_ids=positions[None],
        # The token before it; a completion token is never the first of its sequence.
        predictors=is_completion.nonzero().flatten() - 1,
        cu_seqlens=torch.cat([ends.new_zeros(1), ends]).to(torch.int32),
    )


def varlen_arguments(cu_seqlens: Tensor | None) -> dict[str, Any]:
    """Return the arguments of a transformers decoder for packed sequences (FlashAttentionKwargs).

    Empty for rows that are not packed.
    """
    if cu_seqlens is None:
        return {}
    most = longest(cu_seqlens)
    return {
        "cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens,
        "max_length_q": most, "max_length_k": most,
    }  # fmt: skip


def longest(cu_seqlens: Tensor) -> int:
    """cu_seqlens [b + 1] -> tokens of the longest sequence."""
    return int(cu_seqlens.diff().max())


def causal_blocks(cu_seqlens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the kernel's attention pattern as an additive mask [1, 1, t, t], 0 where seen.

    Other entries are the lowest number of `dtype`. cu_seqlens [b + 1], from 0 to t.
    """
    lengths = cu_seqlens.diff().long()
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)  # [t]
    seen = (sequence[:, None] == sequence[None, :]).tril()
    blocks = torch.zeros(seen.shape, dtype=dtype)
    return blocks.masked_fill_(~seen, torch.finfo(dtype).min)[None, None]
