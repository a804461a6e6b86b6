"""Micro-batches in which the completions of a prompt share it.

G completions of one problem repeat its prompt G times. Here a row holds the prompt once, followed
by several completions, each of which attends to the prompt and itself: positions continue from
the prompt's end in each, and the attention mask hides its siblings. Hidden states, and therefore
the loss and its gradient, equal those of separate rows up to rounding; the forward and backward of
the prompt run once.

    row        p0 p1 p2 | a0 a1 | b0 b1 b2      prompt, completion a, completion b
    segment     0  0  0 |  1  1 |  2  2  2
    position    0  1  2 |  3  4 |  3  4  5

Attention over such a row costs more than over separate rows (its length squared, with a mask).
Completions therefore share a row only while their total length is at most that of their prompt, or
`SHORT` tokens, below which attention is a small part of the work. Other sequences use the ordinary
micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r1lab.grpo.batch import MicroBatch, microbatches
from r1lab.types import Batch

SHORT = 256
# Architectures with plain causal attention by token position, which the mask can express.
FAMILIES = ("deepseek_v3", "llama", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True, slots=True)
class _Tree:
    """A prompt at `start` with `prompt_len` tokens, and its completions by row in the batch."""

    start: int
    prompt_len: int
    rows: tuple[int, ...]
    length: int


def can_share(config: Any) -> bool:
    """Return whether a model's attention accepts the mask of rows with several completions."""
    return (
        config.model_type in FAMILIES
        and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
        and not getattr(config, "use_sliding_window", False)
    )


def shared_microbatches(
    batch: Batch, token_budget: int, *, pad_token_id: int = 0, dtype: torch.dtype = torch.float32
) -> Iterator[MicroBatch]:
    """Like `microbatches`, but completions of one prompt share a row where that is cheaper.

    A micro-batch of such rows has `position_ids`, `mask` (of `dtype`) and `predictors`; its
    `completion_lens`, `advantages` and `stale` have one entry per completion, row by row.
    """
    if batch.experts is not None:  # replayed routing differs by sequence, also within the prompt
        yield from microbatches(batch, token_budget, pad_token_id=pad_token_id)
        return
    trees, alone = _trees(batch, token_budget)
    begin = 0
    while begin < len(trees):
        count = max(1, token_budget // trees[begin].length)
        yield _pad(batch, trees[begin : begin + count], pad_token_id, dtype)
        begin += count
    if len(alone):
        yield from microbatches(batch, token_budget, pad_token_id=pad_token_id, rows=alone)


def _trees(batch: Batch, token_budget: int) -> tuple[list[_Tree], Tensor]:
    """Return the rows of two or more completions, longest first, and the remaining sequences."""
    starts = (batch.lengths.cumsum(0) - batch.lengths).tolist()
    lengths, prompt_lens = batch.lengths.tolist(), batch.prompt_lens.tolist()
    tokens = batch.token_ids.numpy()
    of_prompt: dict[bytes, list[int]] = {}
    for row, (start, prompt_len) in enumerate(zip(starts, prompt_lens, strict=True)):
        of_prompt.setdefault(tokens[start : start + prompt_len].tobytes(), []).append(row)

    trees: list[_Tree] = []
    alone: list[int] = []

    def close(rows: list[int], length: int) -> None:
        if len(rows) == 1:
            alone.extend(rows)
        elif rows:
            trees.append(_Tree(starts[rows[0]], prompt_lens[rows[0]], tuple(rows), length))

    for members in of_prompt.values():
        prompt_len = prompt_lens[members[0]]
        limit = min(max(SHORT, prompt_len), token_budget - prompt_len)
        rows: list[int] = []
        total = 0
        for row in members:
            size = lengths[row] - prompt_len
            if rows and total + size > limit:
                close(rows, prompt_len + total)
                rows, total = [], 0
            rows.append(row)
            total += size
        close(rows, prompt_len + total)
    trees.sort(key=lambda tree: -tree.length)
    return trees, torch.tensor(sorted(alone), dtype=torch.int64)


def _pad(batch: Batch, trees: list[_Tree], pad_token_id: int, dtype: torch.dtype) -> MicroBatch:
    b, t = len(trees), trees[0].length
    starts = (batch.lengths.cumsum(0) - batch.lengths).tolist()
    lengths = batch.lengths.tolist()
    where = torch.zeros(b, t, dtype=torch.int64)
    position = torch.zeros(b, t, dtype=torch.int64)
    segment = torch.full((b, t), -1)
    predictors = []
    for index, tree in enumerate(trees):
        at = tree.prompt_len
        where[index, :at] = torch.arange(tree.start, tree.start + at)
        position[index, :at] = torch.arange(at)
        segment[index, :at] = 0
        for number, row in enumerate(tree.rows, start=1):
            size = lengths[row] - tree.prompt_len
            first = starts[row] + tree.prompt_len
            where[index, at : at + size] = torch.arange(first, first + size)
            position[index, at : at + size] = torch.arange(tree.prompt_len, lengths[row])
            segment[index, at : at + size] = number
            # The prompt's last token predicts the first of each completion.
            predictors.append(torch.tensor([index * t + tree.prompt_len - 1]))
            predictors.append(torch.arange(index * t + at, index * t + at + size - 1))
            at += size
    inside = segment >= 0
    completion_mask = segment > 0
    rows = torch.tensor([row for tree in trees for row in tree.rows])
    positions = where[completion_mask]

    def at_completions(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[positions]

    return MicroBatch(
        token_ids=torch.where(inside, batch.token_ids[where], pad_token_id),
        attention_mask=inside.long(),
        completion_mask=completion_mask,
        completion_lens=(batch.lengths - batch.prompt_lens)[rows],
        advantages=batch.advantages[rows],
        where=where,
        logp_sampler=at_completions(batch.logp_sampler),
        logp_old=at_completions(batch.logp_old),
        logp_ref=at_completions(batch.logp_ref),
        stale=batch.stale[rows],
        experts=None,
        denominator=batch.denominator,
        position_ids=position,
        mask=_attention_mask(segment, dtype),
        predictors=torch.cat(predictors),
    )


def _attention_mask(segment: Tensor, dtype: torch.dtype) -> Tensor:
    """segment [b, t] -> [b, 1, t, t], 0 where a token is seen, else the lowest number."""
    t = segment.shape[1]
    seen = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    seen &= torch.ones(t, t, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
