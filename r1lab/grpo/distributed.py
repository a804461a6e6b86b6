"""Equal numbers of passes in all processes, for sharded weights.

A pass gathers its weights from all processes. A process that has fewer micro-batches than another,
or none after dynamic sampling, must still take part, or the others wait for its shards forever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from r1lab.grpo.batch import AllReduceSum, MicroBatch

Pass = TypeVar("Pass")


def equalize_microbatches(
    items: Iterable[Pass], all_reduce_sum: AllReduceSum | None
) -> Iterator[Pass | None]:
    """Yield the items, then None for as long as another process still has one.

    `all_reduce_sum` as in `grpo.batch.pack`; None yields only the items, since no process waits.
    """
    if all_reduce_sum is None:
        yield from items
        return
    own = iter(items)
    while True:
        item = next(own, None)
        if not int(all_reduce_sum(torch.tensor([item is not None], dtype=torch.int64))):
            return
        yield item


def dummy_microbatch(token_id: int) -> MicroBatch:
    """Return one completion of one token, computed only to take part in a pass."""
    row, none = torch.tensor([[0, 1]]), torch.zeros(1)
    return MicroBatch(
        token_ids=torch.full_like(row, token_id),
        attention_mask=torch.zeros_like(row),  # its tokens count nowhere
        completion_mask=row.bool(),
        completion_lens=torch.ones(1, dtype=torch.int64),
        advantages=none,
        where=torch.zeros_like(row),
        logp_sampler=None,
        logp_old=None,
        logp_ref=None,
        stale=none.bool(),
        experts=None,
        denominator=1.0,
    )
