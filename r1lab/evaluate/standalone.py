"""Evaluate a base or trained model outside a run: `r1lab eval`.

The evaluation is planned and checked before a model is loaded (`plan`). Samples are asked in
chunks of problems, each with a seed of its own that depends on the evaluation's seed and on the
chunk's place, and written as they come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from r1lab.config.recipe import SamplingRecipe, TrainRecipe
from r1lab.evaluate.budgets import BudgetPoint, ask_within
from r1lab.evaluate.completion_clients import Asker, LocalAsker
from r1lab.evaluate.contamination import overlap, training_questions
from r1lab.evaluate.plan import EvalOptions, Preparation, Prepared, shown_prompt
from r1lab.evaluate.result import EvalResult, ProblemResult
from r1lab.evaluate.result_store import Store
from r1lab.evaluate.run import Asked, evaluate, problem_results, result_of
from r1lab.evaluate.second_graders import second_grader
from r1lab.evaluate.target import Target
from r1lab.model.load import prepare_base
from r1lab.problems.registry import load_mixture
from r1lab.prompts import TEMPLATES
from r1lab.rollout.build import build_recipe_sampler, build_sampler
from r1lab.rollout.limits import check_fit, encode_all, keeps_what_fits
from r1lab.rollout.sampler import Sampler
from r1lab.rollout.source import encode_prompt
from r1lab.types import Problem, R1labError
from r1lab.verify import IsolatedRunner, Verifiers

SAMPLES_AT_ONCE = 128  # of a chunk: enough to keep a sampler busy, few enough to lose

OnProgress = Callable[[str, int, int], None]  # suite, samples there are, samples in all


def evaluate_target(
    target: Target, options: EvalOptions, say: OnProgress = lambda suite, done, total: None
) -> list[tuple[Path, dict[str, Any]]]:
    """Score the target on every suite; (file, result) of each. Raises R1labError.

    `say` receives progress messages.
    """
    session = _Session(target, options)
    prepared = session.at_hand.prepare()
    folder = Path(options.out) if options.out else _default_folder(target)
    extras = {
        "budgets": options.budgets, "grader": options.grader, "trained_on": options.trained_on,
    }  # fmt: skip
    stores = [Store(folder, suite.name, suite.plan, extras) for suite in prepared]
    runner = IsolatedRunner(target.recipe.reward_workers if target.recipe else None)
    done: list[tuple[Path, dict[str, Any]]] = []
    try:
        for suite, store in zip(prepared, stores, strict=True):
            result = store.finished()
            if result is None:
                result = session.score(suite, store, runner, say)
            done.append((store.result_path, result))
    finally:
        runner.close()
        session.close()
    return done


def prepare_target(target: Target, options: EvalOptions) -> list[str]:
    """Check everything except the weights; return a short description of each suite."""
    return [
        f"would ask {target.label} {len(suite.problems)} problems of {suite.name} x "
        f"{suite.sampling.num_samples} samples, at most {suite.sampling.max_tokens} tokens each, "
        f"template {suite.template.name}; the first prompt:\n" + shown_prompt(suite)
        for suite in Preparation(target, options).prepare()
    ]


class _Session:
    """One model and its planned suites."""

    def __init__(self, target: Target, options: EvalOptions) -> None:
        self.target, self.options = target, options
        self.at_hand = Preparation(target, options)
        self._sampler: Sampler | None = None

    def score(
        self, suite: Prepared, store: Store, runner: IsolatedRunner, say: OnProgress
    ) -> dict[str, Any]:
        """Sample and judge the remaining problems, then write the result to the store."""
        verifiers = Verifiers(suite.rewards, template=suite.template, runner=runner)
        known = {problem.id: problem for problem in store.done() if self._serves(problem)}
        total = len(suite.problems) * suite.sampling.num_samples
        size = max(1, SAMPLES_AT_ONCE // suite.sampling.num_samples)
        for start in range(0, len(suite.problems), size):
            chunk = suite.problems[start : start + size]
            if not all(problem.id in known for problem in chunk):
                found = self._ask_chunk(self._asker(suite), suite, chunk, start, verifiers)
                store.add(found)
                known |= {problem.id: problem for problem in found}
            say(suite.name, min(start + size, len(suite.problems)) * suite.sampling.num_samples,
                total)  # fmt: skip
        problems = [known[problem.id] for problem in suite.problems]
        result = replace(
            result_of(
                problems, accuracy=verifiers.accuracy, template=suite.template.name,
                sampling=suite.sampling,
            ),
            model=self.target.label, suite=suite.name, shots=self.options.shots,
        )  # fmt: skip
        extras = self._extras(suite, problems, verifiers, runner)
        return store.finish({**result.as_dict(), **extras})

    def _serves(self, problem: ProblemResult) -> bool:
        """Whether its samples have all that is asked for: budgets cut their tokens."""
        return not self.options.budgets or all(s.token_ids is not None for s in problem.samples)

    def _ask_chunk(
        self,
        asker: Asker,
        suite: Prepared,
        chunk: Sequence[Problem],
        start: int,
        verifiers: Verifiers,
    ) -> tuple[ProblemResult, ...]:
        sampling = replace(suite.sampling, seed=_chunk_seed(suite.sampling.seed or 0, start))
        sampled = tuple(verifiers.score(asker.ask(chunk, sampling)))
        greedy = None
        if suite.greedy:
            once = replace(sampling, num_samples=1, temperature=0.0)
            greedy = tuple(verifiers.score(asker.ask(chunk, once)))
        keep = bool(self.options.budgets)
        return problem_results(Asked(sampled, greedy), verifiers, keep_tokens=keep)

    def _extras(
        self,
        suite: Prepared,
        problems: Sequence[ProblemResult],
        verifiers: Verifiers,
        runner: IsolatedRunner,
    ) -> dict[str, Any]:
        options, extras = self.options, dict[str, Any]()
        extras["prompt"] = shown_prompt(suite)
        questions = training_questions(self.target, options.trained_on)
        if questions is not None:
            extras["contamination"] = overlap(questions, problems, seed=options.seed)
        if options.grader:
            extras["second_grader"] = second_grader(
                options.grader, suite.problems, problems, suite.template, runner
            )
        if options.budgets:
            points = self._within_budgets(suite, problems, verifiers)
            extras["budgets"] = [asdict(point) for point in points]
        return extras

    def _within_budgets(
        self,
        suite: Prepared,
        problems: Sequence[ProblemResult],
        verifiers: Verifiers,
    ) -> list[BudgetPoint]:
        asker = self._asker(suite)
        if not isinstance(asker, LocalAsker):
            raise R1labError(
                "--budgets: a server returns no tokens to cut; give the model's folder"
            )
        return ask_within(
            self.options.budgets, suite.problems, problems, asker, suite.sampling, verifiers
        )

    def _asker(self, suite: Prepared) -> Asker:
        if self.at_hand.server is not None:
            return replace(self.at_hand.server, template=suite.template)
        if self._sampler is None:
            self._sampler = self._build()
        assert self.at_hand.tokenizer is not None and suite.encode is not None
        return LocalAsker(self._sampler, self.at_hand.tokenizer, suite.template, suite.encode)

    def _build(self) -> Sampler:
        assert self.at_hand.tokenizer is not None and self.at_hand.allowed is not None
        recipe = self.target.recipe
        sampling = recipe.sampling if recipe else SamplingRecipe()
        return build_sampler(
            self.at_hand.engine,
            self.at_hand.folder,
            self.at_hand.tokenizer,
            dtype=self.at_hand.settings.dtype,
            # Some room for the words that ask for an answer when a budget is spent.
            max_model_len=min(self.at_hand.allowed, self.at_hand.needed + 64),
            kv_cache_gib=self.options.kv_cache_gib or sampling.kv_cache_gib,
            gpu_memory_utilization=0.9 if recipe is None else sampling.gpu_memory_utilization,
            seed=self.options.seed,
        )

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()


def evaluate_recipe(recipe: TrainRecipe) -> EvalResult:
    """Score the model that the recipe names, on the held-out problems of a run with that recipe.

    The same problems, seeds and limits as the run's own evaluations; nothing is written. Raises
    R1labError.
    """
    settings, template = recipe.evaluation, TEMPLATES[recipe.template]
    config, tokenizer, folder = prepare_base(recipe.model)
    encode = partial(encode_prompt, tokenizer)
    limit = recipe.sampling.max_model_len or config.max_position_embeddings
    keep = keeps_what_fits(
        recipe.problems, template, encode, max_tokens=recipe.sampling.most_tokens, limit=limit
    )
    problems = load_mixture(recipe.problems, "test", settings.seed, keep=keep).distinct(
        settings.num_problems
    )
    prompts = encode_all(problems, template, encode)
    check_fit(problems, prompts, max_tokens=recipe.sampling.max_tokens, limit=limit)
    runner = IsolatedRunner(recipe.reward_workers)
    verifiers = Verifiers(recipe.rewards, template=template, runner=runner, max_steps=recipe.steps)
    sampler = build_recipe_sampler(recipe, folder, tokenizer, seed=settings.seed)
    try:
        return evaluate(
            sampler,
            problems,
            verifiers,
            encode=partial(encode_prompt, tokenizer),
            template=template,
            settings=settings,
            max_tokens=recipe.sampling.max_tokens,
            greedy=settings.greedy,
        )
    finally:
        runner.close()
        sampler.close()


def _default_folder(target: Target) -> Path:
    """Return the folder of the run's evaluations, where its report finds them, or evals/LABEL."""
    return (
        target.run / "eval" / "suites" if target.run is not None else Path("evals") / target.label
    )


def _chunk_seed(seed: int, start: int) -> int:
    digest = hashlib.sha256(f"eval/{seed}/{start}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
