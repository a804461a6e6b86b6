"""Plan an evaluation before the weights are loaded, so that errors appear early.

Suites, problems, prompts and limits are resolved and checked here; `standalone` samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from r1lab.config.recipe import RewardSettings, TrainRecipe
from r1lab.evaluate.completion_clients import ServerAsker
from r1lab.evaluate.prompting import (
    check_prompts,
    choose_template,
    form_of,
    prompt_encoder,
    template_name,
)
from r1lab.evaluate.run import distinct
from r1lab.evaluate.suites import Suite, find_suites, suite_problems
from r1lab.evaluate.target import Target, model_settings
from r1lab.model.load import prepare_base
from r1lab.problems.registry import load_mixture
from r1lab.prompts import TEMPLATES, Encode, Template
from r1lab.rollout.limits import keeps_what_fits
from r1lab.types import Problem, R1labError, SamplingSettings
from r1lab.verify import load_reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT = "held-out"
PAPER = {"temperature": 0.6, "top_p": 0.95}  # arXiv 2501.12948, sect. 3


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What `r1lab eval` was asked for; None: the default of the suite, the recipe or the model.

    `paper` uses the sampling of DeepSeek-R1's evaluations where no option overrides it. `budgets`
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
class Prepared:
    """A suite ready for sampling."""

    name: str
    problems: list[Problem]
    template: Template
    encode: Encode | None
    rewards: tuple[RewardSettings, ...]
    sampling: SamplingSettings
    greedy: bool
    longest: int  # tokens of the longest prompt
    plan: dict[str, Any]


class Preparation:
    """A model as far as it is known without its weights, and the suites that it is to be asked.

    server      where the target is one;  else `tokenizer`, `folder`, `settings` of the model
    allowed     tokens of its context;  needed  those that the suites take, after `prepare`
    identity    what tells these weights from others, for the plan of an evaluation
    """

    def __init__(self, target: Target, options: EvalOptions) -> None:
        self.target, self.options = target, options
        self.server: ServerAsker | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.allowed: int | None = None
        self.needed = 0
        if target.is_server:
            plain = TEMPLATES["plain"]
            self.server = ServerAsker.connect(target.path, options.served_model, plain)
            self.identity: list[Any] = [self.server.url, self.server.model]
            return
        self.settings = model_settings(target, dtype=options.dtype, gguf_file=options.gguf_file)
        config, self.tokenizer, self.folder = prepare_base(self.settings)
        self.allowed = config.max_position_embeddings
        weights = sorted(self.folder.glob("*.safetensors")) or [self.folder / "config.json"]
        self.identity = [
            [path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights
        ]

    def prepare(self) -> list[Prepared]:
        options = self.options
        if options.grader:
            load_reward(options.grader, {}, key="--grader")
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
        self.needed = max(suite.longest + suite.sampling.max_tokens for suite in prepared)
        return prepared

    def _suite(self, suite: Suite) -> Prepared:
        options = self.options
        name = options.template
        if name == "auto" and self.tokenizer is not None and not options.shots:
            name = template_name(name, self.target, self.folder, self.tokenizer)
        template = choose_template(name, self.tokenizer, suite, options.shots, options.seed)
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

    def _held_out(self, recipe: TrainRecipe) -> Prepared:
        """The problems on which a run of the recipe is evaluated, with its own settings."""
        options, settings = self.options, recipe.evaluation
        if options.shots or options.template not in ("auto", recipe.template):
            raise R1labError("--template, --shots: held-out problems are asked as in training; "
                             "name a --suite")  # fmt: skip
        keep = None
        if self.tokenizer is not None and self.allowed is not None:
            keep = keeps_what_fits(
                recipe.problems,
                TEMPLATES[recipe.template],
                prompt_encoder(self.tokenizer, TEMPLATES[recipe.template]),
                max_tokens=recipe.sampling.most_tokens,
                limit=min(self.allowed, recipe.sampling.max_model_len or self.allowed),
            )
        problems = load_mixture(recipe.problems, "test", settings.seed, keep=keep).distinct(
            options.num or settings.num_problems
        )
        paper: dict[str, Any] = PAPER if options.paper else {}
        sampling = SamplingSettings(
            num_samples=options.k or settings.num_samples,
            temperature=_first(options.temperature, paper.get("temperature"), settings.temperature),
            top_p=_first(options.top_p, paper.get("top_p"), settings.top_p),
            max_tokens=options.max_tokens or recipe.sampling.most_tokens,
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
    ) -> Prepared:
        problems = distinct(problems)
        if sampling.temperature == 0:
            sampling, greedy = replace(sampling, num_samples=1), False
        encode, longest = None, 0
        if self.tokenizer is not None:
            encode = prompt_encoder(self.tokenizer, template)
            prompts = [encode(template.prompt(problem.question)) for problem in problems]
            check_prompts(problems, prompts, self.tokenizer)
            longest = max(map(len, prompts))
            sampling = self._fitted(name, sampling, longest)
        options = self.options
        plan = {
            "model": self.target.path, "weights": self.identity, "suite": name, **described,
            "questions": _digest([f"{p.id}\n{p.question}\n{p.answer}" for p in problems]),
            "template": _digest([template.text, template.prefix, template.answer_in]),
            "rewards": [reward.model_dump() for reward in rewards], "sampling": asdict(sampling),
            "greedy": greedy, "shots": options.shots, "engine": self.engine, "dtype": options.dtype,
        }  # fmt: skip
        return Prepared(name, problems, template, encode, rewards, sampling, greedy, longest, plan)

    def _fitted(self, name: str, sampling: SamplingSettings, longest: int) -> SamplingSettings:
        """Return the tokens that fit after the longest prompt if the user gave no number."""
        assert self.allowed is not None
        room = self.allowed - longest
        if room < 1 or (self.options.max_tokens and sampling.max_tokens > room):
            raise R1labError(
                f"--suite {name}: the longest prompt has {longest} tokens and --max-tokens is "
                f"{sampling.max_tokens}, which is more than the model's {self.allowed}; "
                + (f"lower --max-tokens to {room}" if room > 0 else "take another model")
            )
        return replace(sampling, max_tokens=min(sampling.max_tokens, room))

    @property
    def engine(self) -> str:
        if self.target.is_server:
            return "server"
        recipe = self.target.recipe
        trained_with = recipe.sampling.engine if recipe else "vllm"
        # Servers sample for runs; a model's folder is asked in process.
        return self.options.engine or ("vllm" if trained_with == "server" else trained_with)


def shown_prompt(suite: Prepared) -> str:
    """Return the first prompt as the model sees it; for a server, the user's message."""
    question = suite.problems[0].question
    if suite.encode is None and suite.template.message is not None:
        return suite.template.message.replace("{question}", question)
    return suite.template.prompt(question)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()[:16]
