"""Accuracy as a function of thinking tokens.

Every sample is cut after n tokens of thinking and asked for its answer at once; one that had ended
its thinking by then is unchanged. So all budgets see the same chains, and the curve of accuracy
over tokens spent is one of thinking alone ("budget forcing", Muennighoff et al. 2025,
arXiv 2501.19393, in its simplest form).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from r1lab.evaluate.completion_clients import LocalAsker
from r1lab.evaluate.intervals import Estimate
from r1lab.evaluate.result import ProblemResult, Sample
from r1lab.evaluate.run import Asked, problem_results, summarise
from r1lab.prompts import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, AnswerPlace
from r1lab.types import Completion, Problem, R1labError, Rollout, SamplingSettings
from r1lab.verify import Verifiers

# Text appended to a cut chain of thought to ask for the answer, and the text that closes it.
CLOSING: dict[AnswerPlace, tuple[str, str]] = {
    "tags": (f" {THINK_CLOSE} {ANSWER_OPEN}", f" {ANSWER_CLOSE}"),
    "box": ("\n\nThe final answer is \\boxed{", "}"),
    "whole": ("\n\nThe final answer is \\boxed{", "}"),
}
ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True)
class BudgetPoint:
    """A point of the curve: the budget in thinking tokens, the tokens spent, and the scores.

    `tokens` is the mean length with the answer, `cut` the share of samples that were cut.
    """

    budget: int
    tokens: Estimate
    pass_at_1: Estimate
    cut: float


def ask_within(
    budgets: Sequence[int],
    problems: Sequence[Problem],
    results: Sequence[ProblemResult],
    asker: LocalAsker,
    sampling: SamplingSettings,
    verifiers: Verifiers,
) -> list[BudgetPoint]:
    """Compute the curve over `budgets`, in rising order, from samples that kept their tokens."""
    return [
        _point(budget, problems, results, asker, sampling, verifiers)
        for budget in sorted(set(budgets))
    ]


def _point(
    budget: int,
    problems: Sequence[Problem],
    results: Sequence[ProblemResult],
    asker: LocalAsker,
    sampling: SamplingSettings,
    verifiers: Verifiers,
) -> BudgetPoint:
    prompts = asker.prompts(problems)
    whole = [[_whole(sample, asker) for sample in result.samples] for result in results]
    cut = [
        (row, place)
        for row, samples in enumerate(whole)
        for place, sample in enumerate(samples)
        if _thinking_tokens(sample, asker) > budget
    ]
    if cut:
        opening = asker.tokenizer(_closing(asker)[0], add_special_tokens=False)["input_ids"]
        asked = [
            (*prompts[row], *whole[row][place].token_ids[:budget], *opening) for row, place in cut
        ]
        once = replace(
            sampling, num_samples=1, seed=(sampling.seed or 0) + budget,
            max_tokens=min(ANSWER_TOKENS, asker.sampler.max_model_len - max(map(len, asked))),
        )  # fmt: skip
        if once.max_tokens < 1:
            raise R1labError(
                f"--budgets: {budget} tokens leave no room for an answer in the model's "
                f"{asker.sampler.max_model_len}; lower --max-tokens or the budget"
            )
        groups = asker.sampler.generate(asked, once, template=asker.template)
        for (row, place), (answer,) in zip(cut, groups, strict=True):
            whole[row][place] = _joined(whole[row][place], budget, len(opening), answer, asker)
    rollouts = [
        Rollout(problem, prompt, tuple(samples))
        for problem, prompt, samples in zip(problems, prompts, whole, strict=True)
    ]
    judged = problem_results(Asked(tuple(verifiers.score(rollouts))), verifiers)
    scores = summarise(judged, sampling.num_samples, sampling.seed or 0)
    if scores.pass_at_1 is None or scores.length is None:
        raise R1labError(f"--budgets: no sample at {budget} tokens could be judged")
    share = len(cut) / sum(map(len, whole))
    return BudgetPoint(budget, scores.length, scores.pass_at_1, share)


def _whole(sample: Sample, asker: LocalAsker) -> Completion:
    assert sample.token_ids is not None
    read = asker.template.read(sample.text)
    return Completion(
        token_ids=sample.token_ids,
        text=sample.text,
        finish_reason=sample.finish_reason,  # type: ignore[arg-type]
        weight_version=0,
        prefix=asker.template.prefix,
        thinking=read.thinking,
        answer=sample.answer,
    )


def _thinking_tokens(sample: Completion, asker: LocalAsker) -> int:
    """Count the tokens before the thinking ends; all of them if no end is marked."""
    before, closed, _ = sample.text.partition(THINK_CLOSE)
    if not closed:
        return len(sample.token_ids)
    return len(asker.tokenizer(before, add_special_tokens=False)["input_ids"])


def _closing(asker: LocalAsker) -> tuple[str, str]:
    return CLOSING[asker.template.answer_in]


def _joined(
    sample: Completion, budget: int, opening: int, answer: Completion, asker: LocalAsker
) -> Completion:
    """Join the cut chain, the words that ask for the answer, and the continuation."""
    opens, closes = _closing(asker)
    kept = asker.tokenizer.decode(
        sample.token_ids[:budget], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    message = answer.text if closes.strip() in answer.text else answer.text + closes
    text = f"{kept}{opens}{message}"
    read = asker.template.read(text)
    return replace(
        sample,
        token_ids=(*sample.token_ids[:budget], *([-1] * opening), *answer.token_ids),
        text=text,
        finish_reason=answer.finish_reason,
        thinking=read.thinking,
        answer=read.answer,
    )
