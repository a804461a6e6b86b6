"""Scoring a base or a trained model outside a run: `r1lab eval`.

The order is cheap before dear: suites, problems, prompts and files are checked before a model is
loaded. Samples are asked in chunks of problems, each with a seed of its own that depends on the
evaluation's seed and the chunk's place, and written as they come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.evaluate.askers import Asker, LocalAsker, ServerAsker
from r1lab.evaluate.budgets import BudgetPoint, ask_within
from r1lab.evaluate.graders import second_grader
from r1lab.evaluate.overlap import overlap, training_questions
from r1lab.evaluate.prompting import (
    Encode,
    check_prompts,
    choose_template,
    form_of,
    prompt_encoder,
)
from r1lab.evaluate.result import EvalResult, ProblemResult
from r1lab.evaluate.run import Asked, distinct, evaluate, problem_results, result_of
from r1lab.evaluate.store import Store
from r1lab.evaluate.suites import Suite, find_suites, suite_problems
from r1lab.evaluate.target import Target, model_folder
from r1lab.model.load import prepare_base
from r1lab.prompts import TEMPLATES, Template
from r1lab.recipe import ModelSettings, RewardSettings, SamplingRecipe, TrainRecipe
from r1lab.registry import load_mixture
from r1lab.rollout.build import build_sampler
from r1lab.rollout.limits import check_fit, encode_all
from r1lab.rollout.sampler import Sampler
from r1lab.rollout.source import encode_prompt
from r1lab.types import Problem, R1labError, SamplingSettings
from r1lab.verify import IsolatedRunner, Verifiers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES_AT_ONCE = 128  # of a chunk: enough to keep a sampler busy, few enough to lose
HELD_OUT = "held-out"
PAPER = {"temperature": 0.6, "top_p": 0.95}  # arXiv 2501.12948, sect. 3

Say = Callable[[str, int, int], None]  # suite, samples there are, samples in all


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What `r1lab eval` was asked for; None: the default of the suite, the recipe or the model.

    `paper` takes the sampling of DeepSeek-R1's evaluations where nothing else is said. `budgets`
    are thinking budgets in tokens, `grader` a second reward, `trained_on` a run folder or a recipe
    whose problems are looked for in the suite.
    """

    suites: tuple[str, ...] = ()
    path: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    paper: bool = False
    k: int | None = None
    num: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int = 1234
    template: str = "auto"
    shots: int = 0
    greedy: bool = False
    engine: str | None = None
    dtype: str | None = None
    gguf_file: str | None = None
    kv_cache_gib: float | None = None
    served_model: str | None = None
    budgets: tuple[int, ...] = ()
    grader: str | None = None
    trained_on: str | None = None
    out: str | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A suite ready to be asked."""

    name: str
    problems: list[Problem]
    template: Template
    encode: Encode | None
    rewards: tuple[RewardSettings, ...]
    sampling: SamplingSettings
    greedy: bool
    longest: int  # tokens of the longest prompt
    plan: dict[str, Any]


def evaluate_target(
    target: Target, options: EvalOptions, say: Say = lambda suite, done, total: None
) -> list[tuple[Path, dict[str, Any]]]:
    """Score the target on every suite; (file, result) of each. Raises R1labError.

    `say` hears of progress.
    """
    session = _Session(target, options)
    prepared = session.prepare()
    folder = Path(options.out) if options.out else _default_folder(target)
    stores = [Store(folder, suite.name, suite.plan) for suite in prepared]
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
    """Check all that `evaluate_target` would, but for the weights; a few words for each suite."""
    return [
        f"would ask {target.label} {len(suite.problems)} problems of {suite.name} x "
        f"{suite.sampling.num_samples} samples, at most {suite.sampling.max_tokens} tokens each, "
        f"template {suite.template.name}; the first prompt:\n" + _shown_prompt(suite)
        for suite in _Session(target, options).prepare()
    ]


class _Session:
    """One model, and what is asked of it."""

    def __init__(self, target: Target, options: EvalOptions) -> None:
        self.target, self.options = target, options
        self._sampler: Sampler | None = None
        self._server: ServerAsker | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._allowed: int | None = None
        self._needed = 0
        if target.is_server:
            plain = TEMPLATES["plain"]
            self._server = ServerAsker.connect(target.path, options.served_model, plain)
            self.identity: list[Any] = [self._server.url, self._server.model]
            return
        self.settings = self._model_settings()
        config, self._tokenizer, self.folder = prepare_base(self.settings)
        self._allowed = config.max_position_embeddings
        weights = sorted(self.folder.glob("*.safetensors")) or [self.folder / "config.json"]
        self.identity = [
            [path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights
        ]

    def _model_settings(self) -> ModelSettings:
        options, recipe = self.options, self.target.recipe
        given = recipe.model if recipe else ModelSettings()
        settings = given.model_copy(
            update={
                "path": self.target.path,
                "lora": None,
                "dtype": options.dtype or given.dtype,
                "gguf_file": options.gguf_file
                or (given.gguf_file if self.target.path == given.path else None),
            }
        )
        return settings.model_copy(update={"path": model_folder(self.target, settings)})

    # --- before the model is loaded ---

    def prepare(self) -> list[_Prepared]:
        options = self.options
        if options.suites:
            suites = [
                suite
                for name in options.suites
                for suite in find_suites(name, path=options.path, columns=dict(options.columns))
            ]
            prepared = [self._suite(suite) for suite in suites]
        elif self.target.recipe is not None:
            prepared = [self._held_out(self.target.recipe)]
        else:
            raise R1labError("--suite: name one (r1lab eval --list); only a run or a recipe has "
                             "held-out problems of its own")  # fmt: skip
        self._needed = max(suite.longest + suite.sampling.max_tokens for suite in prepared)
        return prepared

    def _suite(self, suite: Suite) -> _Prepared:
        options, recipe = self.options, self.target.recipe
        name = options.template
        if name == "auto" and recipe is not None and not options.shots:
            name = recipe.template
        template = choose_template(name, self._tokenizer, suite, options.shots, options.seed)
        problems = suite_problems(suite, num=options.num, seed=options.seed, form=form_of(template))
        paper: dict[str, Any] = {"k": suite.paper_k, **PAPER} if options.paper else {}
        sampling = SamplingSettings(
            num_samples=options.k or paper.get("k", 4),
            temperature=_first(options.temperature, paper.get("temperature"), 1.0),
            top_p=_first(options.top_p, paper.get("top_p"), 1.0),
            max_tokens=options.max_tokens or (32768 if options.paper else suite.max_tokens),
            seed=options.seed,
        )
        rewards = (RewardSettings(reward="problem"),)
        described = {"source": suite.source, "options": dict(suite.options)}
        return self._prepared(
            suite.name, problems, template, rewards, sampling, options.greedy, described
        )

    def _held_out(self, recipe: TrainRecipe) -> _Prepared:
        """The problems on which a run of the recipe is evaluated, with its own settings."""
        options, settings = self.options, recipe.evaluation
        if options.shots or options.template not in ("auto", recipe.template):
            raise R1labError("--template, --shots: held-out problems are asked as in training; "
                             "name a --suite")  # fmt: skip
        problems = load_mixture(recipe.problems, "test", settings.seed).distinct(
            options.num or settings.num_problems
        )
        paper: dict[str, Any] = PAPER if options.paper else {}
        sampling = SamplingSettings(
            num_samples=options.k or settings.num_samples,
            temperature=_first(options.temperature, paper.get("temperature"), settings.temperature),
            top_p=_first(options.top_p, paper.get("top_p"), settings.top_p),
            max_tokens=options.max_tokens or recipe.sampling.max_tokens,
            seed=settings.seed,
        )
        described = {"sources": [source.model_dump() for source in recipe.problems.sources]}
        return self._prepared(
            HELD_OUT, problems, TEMPLATES[recipe.template], recipe.rewards, sampling,
            options.greedy or settings.greedy, described,
        )  # fmt: skip

    def _prepared(
        self,
        name: str,
        problems: list[Problem],
        template: Template,
        rewards: tuple[RewardSettings, ...],
        sampling: SamplingSettings,
        greedy: bool,
        described: dict[str, Any],
    ) -> _Prepared:
        problems = distinct(problems)
        if sampling.temperature == 0:
            sampling, greedy = replace(sampling, num_samples=1), False
        encode, longest = None, 0
        if self._tokenizer is not None:
            encode = prompt_encoder(self._tokenizer, template)
            prompts = [encode(template.prompt(problem.question)) for problem in problems]
            check_prompts(problems, prompts, self._tokenizer)
            longest = max(map(len, prompts))
            sampling = self._fitted(name, sampling, longest)
        options = self.options
        plan = {
            "model": self.target.path, "weights": self.identity, "suite": name, **described,
            "questions": _digest([f"{p.id}\n{p.question}\n{p.answer}" for p in problems]),
            "template": _digest([template.text, template.prefix, template.answer_in]),
            "rewards": [reward.model_dump() for reward in rewards], "sampling": asdict(sampling),
            "greedy": greedy, "shots": options.shots, "engine": self.engine, "dtype": options.dtype,
            "budgets": options.budgets, "grader": options.grader, "trained_on": options.trained_on,
        }  # fmt: skip
        return _Prepared(name, problems, template, encode, rewards, sampling, greedy, longest, plan)

    def _fitted(self, name: str, sampling: SamplingSettings, longest: int) -> SamplingSettings:
        """As many tokens as fit behind the longest prompt, where the user named no number."""
        assert self._allowed is not None
        room = self._allowed - longest
        if room < 1 or (self.options.max_tokens and sampling.max_tokens > room):
            raise R1labError(
                f"--suite {name}: the longest prompt has {longest} tokens and --max-tokens is "
                f"{sampling.max_tokens}, which is more than the model's {self._allowed}; "
                + (f"lower --max-tokens to {room}" if room > 0 else "take another model")
            )
        return replace(sampling, max_tokens=min(sampling.max_tokens, room))

    @property
    def engine(self) -> str:
        if self.target.is_server:
            return "server"
        recipe = self.target.recipe
        return self.options.engine or (recipe.sampling.engine if recipe else "vllm")

    # --- asking ---

    def score(
        self, suite: _Prepared, store: Store, runner: IsolatedRunner, say: Say
    ) -> dict[str, Any]:
        """Ask and judge what an earlier call has not; the result is in the store then."""
        verifiers = Verifiers(suite.rewards, template=suite.template, runner=runner)
        asker = self._asker(suite)
        known = {problem.id: problem for problem in store.done()}
        total = len(suite.problems) * suite.sampling.num_samples
        size = max(1, SAMPLES_AT_ONCE // suite.sampling.num_samples)
        for start in range(0, len(suite.problems), size):
            chunk = suite.problems[start : start + size]
            if not all(problem.id in known for problem in chunk):
                found = self._ask_chunk(asker, suite, chunk, start, verifiers)
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
        extras = self._extras(suite, problems, asker, verifiers, runner)
        return store.finish({**result.as_dict(), **extras})

    def _ask_chunk(
        self,
        asker: Asker,
        suite: _Prepared,
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
        suite: _Prepared,
        problems: Sequence[ProblemResult],
        asker: Asker,
        verifiers: Verifiers,
        runner: IsolatedRunner,
    ) -> dict[str, Any]:
        options, extras = self.options, dict[str, Any]()
        extras["prompt"] = _shown_prompt(suite)
        questions = training_questions(self.target, options.trained_on)
        if questions is not None:
            extras["contamination"] = overlap(questions, problems, seed=options.seed)
        if options.grader:
            extras["second_grader"] = second_grader(
                options.grader, suite.problems, problems, suite.template, runner
            )
        if options.budgets:
            points = self._within_budgets(suite, problems, asker, verifiers)
            extras["budgets"] = [asdict(point) for point in points]
        return extras

    def _within_budgets(
        self,
        suite: _Prepared,
        problems: Sequence[ProblemResult],
        asker: Asker,
        verifiers: Verifiers,
    ) -> list[BudgetPoint]:
        if not isinstance(asker, LocalAsker):
            raise R1labError("--budgets: a server gives no tokens to cut; give the model's folder")
        return ask_within(
            self.options.budgets, suite.problems, problems, asker, suite.sampling, verifiers
        )

    def _asker(self, suite: _Prepared) -> Asker:
        if self._server is not None:
            return replace(self._server, template=suite.template)
        if self._sampler is None:
            self._sampler = self._build()
        assert self._tokenizer is not None and suite.encode is not None
        return LocalAsker(self._sampler, self._tokenizer, suite.template, suite.encode)

    def _build(self) -> Sampler:
        assert self._tokenizer is not None and self._allowed is not None
        recipe = self.target.recipe
        sampling = recipe.sampling if recipe else SamplingRecipe()
        return build_sampler(
            self.engine,
            self.folder,
            self._tokenizer,
            dtype=self.settings.dtype,
            # Some room for the words that ask for an answer when a budget is spent.
            max_model_len=min(self._allowed, self._needed + 64),
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
    problems = load_mixture(recipe.problems, "test", settings.seed).distinct(settings.num_problems)
    config, tokenizer, folder = prepare_base(recipe.model)
    prompts = encode_all(problems, template, partial(encode_prompt, tokenizer))
    limit = recipe.sampling.max_model_len or config.max_position_embeddings
    check_fit(problems, prompts, max_tokens=recipe.sampling.max_tokens, limit=limit)
    runner = IsolatedRunner(recipe.reward_workers)
    verifiers = Verifiers(recipe.rewards, template=template, runner=runner, max_steps=recipe.steps)
    sampler = build_sampler(
        recipe.sampling.engine,
        folder,
        tokenizer,
        dtype=recipe.model.dtype,
        max_model_len=recipe.sampling.max_model_len,
        kv_cache_gib=recipe.sampling.kv_cache_gib,
        gpu_memory_utilization=recipe.sampling.gpu_memory_utilization,
        seed=settings.seed,
    )
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


def _shown_prompt(suite: _Prepared) -> str:
    """The first prompt as the model sees it; to a server, the user's message."""
    question = suite.problems[0].question
    if suite.encode is None and suite.template.message is not None:
        return suite.template.message.replace("{question}", question)
    return suite.template.prompt(question)


def _default_folder(target: Target) -> Path:
    """Beside a run's own evaluations, so that its report finds them; else evals/LABEL."""
    return (
        target.run / "eval" / "suites" if target.run is not None else Path("evals") / target.label
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()[:16]


def _chunk_seed(seed: int, start: int) -> int:
    digest = hashlib.sha256(f"eval/{seed}/{start}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
