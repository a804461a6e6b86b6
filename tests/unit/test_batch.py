"""Packing, splitting and micro-batches: what stands where, and what nothing may depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from records import scored_group

from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.batch import microbatches, pack, select, split
from r1lab.types import Batch, ScoredGroup, ScoringFailure


def packed(groups: list[ScoredGroup], loss: str = "token_mean", **options: object) -> Batch:
    advantages = group_advantages(groups, "mean_only")
    return pack(groups, advantages, loss=loss, max_tokens=10, **options)  # type: ignore[arg-type]


GROUPS = [
    scored_group([1.0, 0.0, 0.0], lengths=[4, 2, 7], prompt_len=3, seed=1, logprobs=True),
    scored_group([1.0, 1.0], lengths=[5, 5], prompt_len=2, seed=2, logprobs=True),
    scored_group([0.0, ScoringFailure("exception"), 1.0], lengths=[1, 9, 6], prompt_len=5, seed=3,
                 logprobs=True),
]  # fmt: skip


def test_tokens_stand_end_to_end_and_zero_advantage_drops_out() -> None:
    batch = packed(GROUPS)
    kept = [(GROUPS[0], 0), (GROUPS[0], 1), (GROUPS[0], 2), (GROUPS[2], 0), (GROUPS[2], 2)]
    assert batch.prompt_lens.tolist() == [3, 3, 3, 5, 5]
    assert batch.lengths.tolist() == [7, 5, 10, 6, 11]
    assert batch.advantages.tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, -0.5, 0.5])
    expected, logprobs = [], []
    for group, index in kept:
        prompt = group.rollout.prompt_token_ids
        completion = group.rollout.completions[index]
        expected += [*prompt, *completion.token_ids]
        logprobs += [*(0.0 for _ in prompt), *(completion.logprobs or ())]
    assert batch.token_ids.tolist() == expected
    assert batch.logp_sampler is not None
    assert batch.logp_sampler.tolist() == pytest.approx(logprobs)
    assert batch.logp_old is None


@pytest.mark.parametrize(
    ("loss", "expected"),
    # 7 completions without the faulted one, with 4 + 2 + 7 + 5 + 5 + 1 + 6 tokens
    [("grpo", 7), ("token_mean", 30), ("dr_grpo", 7 * 10)],
)
def test_denominator_counts_what_was_dropped(loss: str, expected: float) -> None:
    assert packed(GROUPS, loss).denominator == expected
    assert packed(GROUPS, loss, drop_zero_advantage=False).denominator == expected
    assert len(packed(GROUPS, loss, drop_zero_advantage=False)) == 7


def test_denominator_is_summed_over_processes() -> None:
    seen = []

    def other_process_has_as_much(counts: torch.Tensor) -> torch.Tensor:
        seen.append(counts.tolist())
        return counts * 2

    assert packed(GROUPS, all_reduce_sum=other_process_has_as_much).denominator == 60
    assert seen == [[7, 30]]


def test_empty_batches() -> None:
    fault = ScoringFailure("killed")
    for groups in ([], [scored_group([1.0, 1.0])], [scored_group([fault, fault])]):
        batch = packed(groups)
        assert len(batch) == 0
        assert batch.denominator >= 1
        assert list(microbatches(batch, 100)) == []
        assert [len(part) for part in split(batch, 3)] == [0, 0, 0]
    # a process without a sequence still knows the denominator of all
    assert packed([], all_reduce_sum=lambda counts: counts + 5).denominator == 5


def cut_off(group: ScoredGroup, indices: tuple[int, ...]) -> ScoredGroup:
    """The group with these completions ended by their limit."""
    completions = tuple(
        replace(c, finish_reason="length") if i in indices else c
        for i, c in enumerate(group.rollout.completions)
    )
    return ScoredGroup(replace(group.rollout, completions=completions), group.outcomes)


def test_the_overlong_filter_leaves_the_tokens_out_and_the_sequences_counted() -> None:
    groups = [cut_off(GROUPS[0], (2,)), *GROUPS[1:]]
    for loss, expected in (("token_mean", 30 - 7), ("grpo", 7), ("dr_grpo", 70)):
        batch = packed(groups, loss, overlong_filter=True)
        assert batch.denominator == expected
        assert len(batch) == 4
        # The advantages are those of the whole group: the cut one was judged as well.
        assert batch.advantages.tolist() == pytest.approx([2 / 3, -1 / 3, -0.5, 0.5])
    everything = [cut_off(group, (0, 1, 2)) for group in GROUPS]
    empty = packed(everything, overlong_filter=True)
    assert len(empty) == 0 and empty.denominator == 1
    assert len(packed(everything)) == 5


def test_empty_completion_counts_as_a_sequence() -> None:
    batch = packed([scored_group([1.0, 0.0], lengths=[0, 3])], "grpo")
    assert len(batch) == 1
    assert batch.denominator == 2


def test_log_probs_for_some_only_are_refused() -> None:
    mixed = [GROUPS[0], scored_group([1.0, 0.0])]
    with pytest.raises(ValueError, match="2 of 5 completions carry no log-probs"):
        packed(mixed)
    assert packed([scored_group([1.0, 0.0])]).logp_sampler is None


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt without tokens"):
        packed([scored_group([1.0, 0.0], prompt_len=0)])


def rows_of(batch: Batch) -> list[tuple[list[int], list[int], float]]:
    """(prompt, completion, advantage) of each sequence, read one by one."""
    rows, start = [], 0
    for length, prompt_len, advantage in zip(
        batch.lengths.tolist(), batch.prompt_lens.tolist(), batch.advantages.tolist(), strict=True
    ):
        tokens = batch.token_ids[start : start + length].tolist()
        rows.append((tokens[:prompt_len], tokens[prompt_len:], advantage))
        start += length
    return rows


@pytest.mark.parametrize("budget", [1, 8, 12, 23, 40, 10_000])
def test_microbatches_hold_every_sequence_once(budget: int) -> None:
    batch = packed(GROUPS)
    assert batch.logp_sampler is not None
    seen, positions = [], []
    widths = []
    for micro in microbatches(batch, budget, pad_token_id=99):
        b, t = micro.token_ids.shape
        widths.append(t)
        assert b * t <= budget or b == 1
        assert micro.denominator == batch.denominator
        assert micro.completion_lens.tolist() == micro.completion_mask.sum(1).tolist()
        tokens = micro.token_ids[micro.completion_mask]
        assert tokens.tolist() == batch.token_ids[micro.positions].tolist()
        assert micro.logp_sampler is not None
        assert micro.logp_sampler.tolist() == batch.logp_sampler[micro.positions].tolist()
        assert (micro.token_ids[micro.attention_mask == 0] == 99).all()
        positions += micro.positions.tolist()
        for row in range(b):
            real = micro.token_ids[row][micro.attention_mask[row] == 1].tolist()
            mask = micro.completion_mask[row][: len(real)].tolist()
            prompt_len = mask.index(True)
            assert all(mask[prompt_len:])
            seen.append((real[:prompt_len], real[prompt_len:], float(micro.advantages[row])))
    assert sorted(seen) == sorted(rows_of(batch))
    assert len(set(positions)) == len(positions)
    assert widths == sorted(widths, reverse=True)


def test_equal_lengths_have_no_padding() -> None:
    batch = packed([scored_group([1.0, 0.0, 1.0, 0.0], lengths=[4] * 4)])
    (micro,) = microbatches(batch, 24)
    assert micro.attention_mask.all()
    assert [len(micro) for micro in microbatches(batch, 23)] == [3, 1]
    with pytest.raises(ValueError, match="at least 1"):
        next(microbatches(batch, 0))


def test_logp_old_travels_with_its_tokens() -> None:
    batch = packed(GROUPS)
    batch = replace(batch, logp_old=torch.arange(batch.token_ids.numel(), dtype=torch.float32))
    for part in split(batch, 2, torch.Generator().manual_seed(0)):
        for micro in microbatches(part, 20):
            assert micro.logp_old is not None
            origin = micro.logp_old.long()
            tokens = micro.token_ids[micro.completion_mask]
            assert batch.token_ids[origin].tolist() == tokens.tolist()


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_split_parts_hold_every_sequence_once(parts: int, shuffled: bool) -> None:
    batch = packed(GROUPS)
    generator = torch.Generator().manual_seed(3) if shuffled else None
    minibatches = split(batch, parts, generator)
    assert len(minibatches) == parts
    assert sum(part.denominator for part in minibatches) == pytest.approx(batch.denominator)
    sizes = [len(part) for part in minibatches]
    assert max(sizes) - min(sizes) <= 1
    rows = [row for part in minibatches for row in rows_of(part)]
    assert sorted(rows) == sorted(rows_of(batch))
    if not shuffled:
        assert rows == rows_of(batch)


def test_select_keeps_the_order_asked_for() -> None:
    batch = packed(GROUPS)
    rows = rows_of(batch)
    assert rows_of(select(batch, torch.tensor([3, 0]))) == [rows[3], rows[0]]
