"""reasoning-gym's own scoring of an answer, for problems of `data/reasoning_gym.py`.

1.0 for a right answer; some generators give a part of it for answers that come near. Needs the
package reasoning-gym (r1lab's extra `gym`).
"""

from __future__ import annotations

from r1lab.types import Completion, Problem, Verdict


def reward(problem: Problem, completion: Completion) -> Verdict:
    """The generator's score of the answer part."""
    if completion.answer is None:
        return Verdict(0.0, "no answer")
    from reasoning_gym import get_score_answer_fn

    score_answer = get_score_answer_fn(problem.metadata["dataset"])
    entry = {
        "question": problem.question,
        # As the generator made it; an answer put in its place counts where there is one.
        "answer": problem.answer or problem.metadata["answer"],
        "metadata": problem.metadata["metadata"],
    }
    score = float(score_answer(answer=completion.answer, entry=entry))
    return Verdict(score, "right" if score >= 1.0 else "not right")
