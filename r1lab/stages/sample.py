"""Rejection sampling: a model's own answers, filtered by the rewards, as rows to train on.

DeepSeek-R1 gathers its cold-start chains from R1-Zero and its SFT data from a checkpoint of
reasoning RL in this way (arXiv 2501.12948, sections 2.3.1 and 2.3.3): many samples a question,
right ones kept, mixed languages and repetitions dropped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from r1lab.config.stages import KeepSettings, SampleRecipe
from r1lab.hints import raised
from r1lab.model.load import prepare_base
from r1lab.problems.registry import load_mixture, resolve
from r1lab.prompts import TEMPLATES, Template
from r1lab.rollout.build import build_sampler
from r1lab.rollout.limits import check_fit, keeps_what_fits
from r1lab.rollout.source import encode_prompt
from r1lab.types import (
    Completion,
    Outcome,
    Problem,
    RecipeError,
    Rollout,
    SamplingSettings,
    ScoredGroup,
    ScoringFailure,
)
from r1lab.verify import IsolatedRunner, Verifiers

SampledRow = dict[str, Any]
Clean = Callable[[Problem, Completion], "str | None"]

_CHUNK = 64  # questions sampled and judged between looks at the progress
_PIECE = 3  # tokens of the pieces by which two responses are compared


def sample(recipe: SampleRecipe) -> Path:
    """Ask, judge, filter and write rows.jsonl; return its path. Raises R1labError.

    A stage that was interrupted resumes after the last chunk of questions that was written.
    """
    from tqdm import tqdm

    from r1lab.stages.supervised import open_stage

    template = TEMPLATES[recipe.template]
    problems = load_mixture(recipe.problems, "train").distinct(recipe.num_problems)
    clean = _clean_of(recipe.keep)
    folder = open_stage(recipe)
    done = _read_chunks(folder)
    with IsolatedRunner(recipe.reward_workers) as runner:
        verifiers = Verifiers(recipe.rewards, template=template, runner=runner)
        check_names(recipe.keep, verifiers.names)
        ask = _asker(recipe, template, problems)
        problems = ask.problems
        bar = tqdm(total=len(problems), unit="question", desc=recipe.name)
        try:
            for start in range(0, len(problems), _CHUNK):
                some = problems[start : start + _CHUNK]
                if start // _CHUNK >= len(done):
                    scored = verifiers.score(ask(some, start))
                    done.append(_chunk(scored, recipe.keep, template, clean))
                    _append(folder, done[-1])
                bar.update(len(some))
        finally:
            bar.close()
            ask.close()
    return _finish(folder, recipe, done)


class _asker:
    """The model, loaded when it is first asked."""

    def __init__(self, recipe: SampleRecipe, template: Template, problems: list[Problem]):
        self.recipe, self.template = recipe, template
        self.config, self.tokenizer, self.folder = prepare_base(recipe.model)
        self.encode = partial(encode_prompt, self.tokenizer)
        sampling = recipe.sampling
        limit = sampling.max_model_len or self.config.max_position_embeddings
        keep = keeps_what_fits(
            recipe.problems, template, self.encode, max_tokens=sampling.max_tokens, limit=limit
        )
        if keep is not None:
            mixture = load_mixture(recipe.problems, "train", keep=keep)
            problems = mixture.distinct(recipe.num_problems)
        self.problems = problems
        prompts = [self.encode(template.prompt(problem.question)) for problem in problems]
        check_fit(problems, prompts, max_tokens=sampling.max_tokens, limit=limit)
        self.sampler: Any = None

    def __call__(self, problems: Sequence[Problem], start: int) -> list[Rollout]:
        sampling = self.recipe.sampling
        if self.sampler is None:
            self.sampler = build_sampler(
                sampling.engine, self.folder, self.tokenizer, dtype=self.recipe.model.dtype,
                max_model_len=sampling.max_model_len, kv_cache_gib=sampling.kv_cache_gib,
                gpu_memory_utilization=sampling.gpu_memory_utilization, seed=self.recipe.seed,
            )  # fmt: skip
        prompts = [self.encode(self.template.prompt(problem.question)) for problem in problems]
        settings = SamplingSettings(
            num_samples=sampling.group_size, temperature=sampling.temperature,
            top_p=sampling.top_p, max_tokens=sampling.max_tokens,
            # Of the chunk: what goes on after an interruption samples what it would have.
            seed=(self.recipe.seed << 20) + start,
        )  # fmt: skip
        groups = self.sampler.generate(prompts, settings, template=self.template)
        return [
            Rollout(problem, prompt, tuple(group))
            for problem, prompt, group in zip(problems, prompts, groups, strict=True)
        ]

    def close(self) -> None:
        if self.sampler is not None:
            self.sampler.close()


def check_names(keep: KeepSettings, names: Sequence[str]) -> None:
    """Reject a threshold on an unknown reward; raises RecipeError."""
    for name in keep.least:
        if name not in names:
            raise RecipeError(f"keep.least.{name}: unknown reward; there are "
                              f"{', '.join(names)}")  # fmt: skip


def kept_rows(
    scored: ScoredGroup,
    keep: KeepSettings,
    template: Template,
    clean: Clean | None,
    why: Counter[str],
) -> Iterator[SampledRow]:
    """The rows of one question, best first as `keep` has it; `why` counts what is left out."""
    problem = scored.rollout.problem
    pairs = list(zip(scored.rollout.completions, scored.outcomes, strict=True))
    if keep.prefer != "first":
        pairs.sort(key=lambda pair: len(pair[0].token_ids), reverse=keep.prefer == "longest")
    texts: list[str] = []
    for completion, outcome in pairs:
        reason = refusal(completion, outcome, keep)
        text = completion.text
        if reason is None and clean is not None:
            cleaned = _cleaned(clean, problem, completion)
            reason, text = ("cleaned away", "") if cleaned is None else (None, cleaned)
        if reason is None and any(alike(text, other) > keep.most_alike for other in texts):
            reason = "near-duplicate"
        if reason is None and keep.per_problem is not None and len(texts) >= keep.per_problem:
            reason = "enough of its problem"
        if reason is not None:
            why[reason] += 1
            continue
        texts.append(text)
        why["kept"] += 1
        yield {
            "id": f"{problem.id}/{len(texts) - 1}",
            "source": problem.source,
            "question": problem.question,
            "answer": problem.answer,
            "prompt": template.prompt(problem.question),
            "completion": text,
        }


def refusal(completion: Completion, outcome: Outcome, keep: KeepSettings) -> str | None:
    """Return why the rewards reject a response; None if they accept it."""
    if isinstance(outcome, ScoringFailure):
        return f"fault: {outcome.kind}"
    if completion.finish_reason == "length":
        return "cut off"
    if not completion.text.strip():
        return "empty"
    for name, least in keep.least.items():
        value = outcome.parts.get(name)
        if value is None:
            return f"{name} does not apply"
        if value < least:
            return f"{name} below {least:g}"
    return None


def alike(one: str, other: str) -> float:
    """The share of three-token pieces that two texts have in common (Jaccard)."""
    first, second = (_pieces(text) for text in (one, other))
    return len(first & second) / len(first | second)


def _pieces(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + _PIECE]) for i in range(max(len(words) - _PIECE + 1, 1))}


def _clean_of(keep: KeepSettings) -> Clean | None:
    return None if keep.clean is None else resolve(keep.clean, "source", key="keep.clean")


def _cleaned(clean: Clean, problem: Problem, completion: Completion) -> str | None:
    try:
        text = clean(problem, completion)
    except Exception as error:  # the function may be the user's
        raise RecipeError(f"keep.clean: {raised(error)} ({problem.id})") from error
    if text is not None and not isinstance(text, str):
        raise RecipeError(
            f"keep.clean: returned {type(text).__name__}; it must return text or None"
        )
    return text


def _chunk(
    scored: Sequence[ScoredGroup], keep: KeepSettings, template: Template, clean: Clean | None
) -> dict[str, Any]:
    why: Counter[str] = Counter()
    rows = [row for group in scored for row in kept_rows(group, keep, template, clean, why)]
    return {"rows": rows, "why": dict(why), "questions": len(scored)}


def _append(folder: Path, chunk: dict[str, Any]) -> None:
    with (folder / "chunks.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(chunk, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_chunks(folder: Path) -> list[dict[str, Any]]:
    """Return the complete chunks; an incomplete last line is removed."""
    path = folder / "chunks.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[-1]:
        path.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
    return [json.loads(line) for line in lines[:-1]]


def _finish(folder: Path, recipe: SampleRecipe, chunks: Sequence[dict[str, Any]]) -> Path:
    rows = [row for chunk in chunks for row in chunk["rows"]]
    why: Counter[str] = sum((Counter(chunk["why"]) for chunk in chunks), Counter())
    if not rows:
        message = ", ".join(f"{reason}: {count}" for reason, count in why.most_common())
        raise RecipeError(
            f"keep: no response is left ({message}); lower keep.least, or sample more"
        )
    path = folder / "rows.jsonl"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    os.replace(temporary, path)
    summary = {
        "questions": sum(chunk["questions"] for chunk in chunks),
        "responses": sum(chunk["questions"] for chunk in chunks) * recipe.sampling.group_size,
        "rows": len(rows),
        "by_source": dict(Counter(row["source"] for row in rows)),
        "left_out": {reason: n for reason, n in why.most_common() if reason != "kept"},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return path
