"""Check before a run that verifiers accept the gold answers of their own problems.

A run whose verifier rejects what the data calls right learns nothing, or the wrong thing, for days.
"""

from __future__ import annotations

from collections.abc import Sequence

from r1lab.config.recipe import RewardSettings
from r1lab.problems.registry import PROBLEM_VERIFIER
from r1lab.prompts import Template
from r1lab.types import Outcome, Problem, RecipeError, Rollout, ScoringFailure
from r1lab.verify.call import Runner
from r1lab.verify.check import respond
from r1lab.verify.verifiers import ACCURACY, Verifiers


def check_gold(
    problems: Sequence[Problem],
    rewards: Sequence[RewardSettings],
    template: Template,
    runner: Runner,
) -> str | None:
    """Raise RecipeError if a problem's own verifier does not score its gold answer 1.

    RecipeError names the first one, what the verifier said, and how many there are. Where the
    recipe takes no verifier from the problems, nothing is refused, because a reward may pay for
    anything: returned is what to say when its first reward scores no gold answer at all above 0.
    """
    settings = next((s for s in rewards if s.reward == PROBLEM_VERIFIER), rewards[0])
    if not settings.isolate or not problems:
        return None  # one that needs a model or the network is not called twice
    verifier = Verifiers((settings,), template=template, runner=runner)
    gold = [Rollout(problem, (), (respond(template, problem.answer),)) for problem in problems]
    outcomes = [scored.outcomes[0] for scored in verifier.score(gold)]
    if settings.reward != PROBLEM_VERIFIER:
        scores = [getattr(outcome, "score", None) or 0.0 for outcome in outcomes]
        if max(scores) > 0:
            return None
        return (
            f"rewards.0.reward: {settings.reward!r}, whose score counts as accuracy, gives none of "
            f"{len(scores)} gold answers more than 0 ({_said(outcomes[0])}); look with "
            "`r1lab verify`"
        )
    rejected = [place for place, outcome in enumerate(outcomes) if not _accepts(outcome)]
    if not rejected:
        return None
    problem = problems[rejected[0]]
    raise RecipeError(
        f"problems: {problem.verifier!r} rejects the gold answer {problem.answer[:60]!r} of "
        f"problem {problem.id} ({_said(outcomes[rejected[0]])}), and so {len(rejected)} of "
        f"{len(problems)} that were tried; fix the answers, name another verifier, or set "
        "problems.check_gold to 0"
    )


def _accepts(outcome: Outcome) -> bool:
    if isinstance(outcome, ScoringFailure):
        return False
    score = outcome.parts.get(ACCURACY)
    return score is None or score >= 1.0 - 1e-9  # None: the reward does not apply


def _said(outcome: Outcome) -> str:
    if isinstance(outcome, ScoringFailure):
        return f"{outcome.kind}: {outcome.detail}"
    return outcome.reason or f"score {outcome.score}"
