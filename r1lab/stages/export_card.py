"""The card of an exported model: how to prompt it, its scores, and its lineage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from r1lab.hashing import file_sha256
from r1lab.lineage import LineageRecord, lineage_tree, read_lineage, results_beside, tree_lines
from r1lab.prompts import THINK_CLOSE, Template
from r1lab.stages.model_card import score_lines

if TYPE_CHECKING:
    from r1lab.evaluate.target import Target

_COLUMNS = ("pass_at_1", "cons_at_k", "format", "length")
_EXAMPLE = "what is 1 + 1 ?"


def render_export(out: Path, target: Target, source: Path, template: Template | None) -> str:
    """README.md of the folder `out`, whose lineage record is written already.

    `source` is the model that was exported, beside which its evaluations lie. `template` None: the
    tokenizer's own chat template.
    """
    record = read_lineage(out)
    assert record is not None
    lines = [
        *_front_matter(record), f"# {target.label}", "",
        _what_it_is(record), "",
        *_use(target.label, template), *_scores(source), *_lineage(out, record),
    ]  # fmt: skip
    return "\n".join(lines)


def _front_matter(record: LineageRecord) -> list[str]:
    """What the hub reads. A base is named only where the hub has it."""
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reasoning", "reinforcement-learning", "r1lab"],
    }
    hub = [parent.path for parent in record.parents if parent.sha256 is None and "/" in parent.path]
    if hub:
        values["base_model"] = hub[0]
    return ["---", yaml.safe_dump(values, sort_keys=False).rstrip(), "---"]


def _what_it_is(record: LineageRecord) -> str:
    parent = record.parents[0]
    stage = parent.lineage.stage if parent.lineage else "base"
    return (
        f"Exported by r1lab {record.versions.get('r1lab', '')} from {parent.name} ({stage}), "
        f"{record.created}. Adapters, where there were any, are merged; nothing of r1lab is needed "
        "to use it."
    )


def _use(label: str, template: Template | None) -> Iterator[str]:
    yield from (
        "## Use", "", "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        'folder = "."  # this one',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        f'messages = [{{"role": "user", "content": "{_EXAMPLE}"}}]',
        "inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True,",
        '                                       return_dict=True, return_tensors="pt")',
        "output = model.generate(**inputs, max_new_tokens=256)",
        "print(tokenizer.decode(output[0, inputs['input_ids'].shape[1]:]))", "```", "",
        "vLLM loads it too; `r1lab serve` and `r1lab chat` take thinking and answer apart.", "",
    )  # fmt: skip
    if template is None:
        return
    yield from (
        "## Prompt", "",
        f"The chat template writes the prompt of training (`{template.name}`), with the last "
        "question of a conversation; system messages and earlier turns are left out, as the model "
        "was trained on single questions:", "",
        "```", template.prompt("{question}"), "```", "",
    )  # fmt: skip
    if template.prefix:
        yield from (
            f"The prompt opens the thinking part, so a response begins inside it and goes on to "
            f"`{THINK_CLOSE}`"
            + (", then `<answer> ... </answer>`." if template.answer_in == "tags" else "."), "",
        )  # fmt: skip


def _scores(source: Path) -> Iterator[str]:
    results = [result for result in results_beside(source) if result.get("overall")]
    if results:
        yield from (
            "## Evaluations", "",
            "Means with 95% intervals over problems. `cons@k`: a vote over the k samples of a "
            "problem.", "",
            "| suite | problems x k | temperature | pass@1 | cons@k | format | length |",
            "|---|---|---|---|---|---|---|",
            *map(_row, results), "",
        )  # fmt: skip
    elif (source / "card.json").is_file():
        import json

        card = json.loads((source / "card.json").read_text(encoding="utf-8"))
        yield from score_lines(card.get("scores"))


def _row(result: Mapping[str, Any]) -> str:
    overall = result["overall"]
    cells = [
        str(result.get("suite") or "held-out"),
        f"{overall['num_problems']} x {result['k']}",
        f"{result['temperature']:g}",
        *(_figure(overall.get(column)) for column in _COLUMNS),
    ]
    return f"| {' | '.join(cells)} |"


def _figure(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    form = ".1f" if estimate["high"] > 2 else ".3f"
    value, low, high = (f"{estimate[key]:{form}}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _lineage(out: Path, record: LineageRecord) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    yield from (
        "## Lineage", "", "From `lineage.json`, with the first digits of each SHA-256.", "",
        "```", *tree_lines(lineage_tree(out)), "```", "",
        *(f"- sha256 of {file.name}: `{file_sha256(file)}`"
          for file in sorted(out.glob("*.safetensors"))),
        f"- versions: {versions}",
        f"- commit of r1lab: {record.commit or 'unknown'}", "",
    )  # fmt: skip
    if record.recipe is not None:
        recipe = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True, width=100)
        yield from ("## Recipe", "", "```yaml", recipe.rstrip(), "```", "")
