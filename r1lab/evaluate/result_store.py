"""Store an evaluation: samples as whole lines during sampling, then the result.

    NAME-KEY.samples.jsonl   while it runs: the plan, then a line for each problem with all samples
    NAME-KEY.json            the result, with every sample in it; the lines are removed then

KEY is a hash of the plan (model, problems, sampling, template), so that an interrupted evaluation
resumes where it stopped, and one of another plan starts anew. Analyses of the samples (a second
grader, budgets, contamination) are not part of the plan: added later, they use the same samples.
`read_result` reads any result back.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r1lab.evaluate.result import ProblemResult, Sample
from r1lab.types import R1labError

Plan = Mapping[str, Any]


class Store:
    """The files of one evaluation in `folder`; raises R1labError if it is not writable."""

    def __init__(self, folder: Path, name: str, plan: Plan, extras: Plan | None = None) -> None:
        self._plan = json.loads(json.dumps(plan))
        self._extras = json.loads(json.dumps(dict(extras or {})))
        text = json.dumps(self._plan, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.result_path = folder / f"{name}-{key}.json"
        self._lines_path = folder / f"{name}-{key}.samples.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise R1labError(f"--out: {folder} cannot be created: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise R1labError(f"--out: {folder} is not writable")

    def done(self) -> list[ProblemResult]:
        """Return the problems that an earlier call has finished; an incomplete line is skipped."""
        if not self._lines_path.exists():
            found = read_result(self.result_path) if self.result_path.is_file() else {}
            return [problem_from(problem) for problem in found.get("problems", ())]
        whole = self._lines_path.read_bytes().split(b"\n")[:-1]
        if not whole or json.loads(whole[0]).get("plan") != self._plan:
            self._lines_path.unlink()
            return []
        # An incomplete line would otherwise merge with the next one.
        self._lines_path.write_bytes(b"".join(line + b"\n" for line in whole))
        return [problem_from(json.loads(line)) for line in whole[1:]]

    def add(self, problems: Sequence[ProblemResult]) -> None:
        """Write problems with all their samples."""
        fresh = not self._lines_path.exists()
        with self._lines_path.open("a", encoding="utf-8") as file:
            if fresh:
                file.write(json.dumps({"plan": self._plan}) + "\n")
            file.writelines(json.dumps(asdict(problem)) + "\n" for problem in problems)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the result, remove the sample lines, and return the result as read back."""
        write_json(self.result_path, {**result, "plan": self._plan, "extras": self._extras})
        self._lines_path.unlink(missing_ok=True)
        return read_result(self.result_path)

    def finished(self) -> dict[str, Any] | None:
        """Return the result if this evaluation was completed before with the same extras."""
        found = read_result(self.result_path) if self.result_path.is_file() else None
        return found if found is not None and found.get("extras") == self._extras else None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON atomically; a reader never sees a partial file."""
    temporary = path.with_name(path.name + ".tmp")
    # ASCII: a lone surrogate in a model's text is no UTF-8.
    temporary.write_text(json.dumps(values, allow_nan=False) + "\n", encoding="ascii")
    os.replace(temporary, path)


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result of `r1lab eval` or a run; raises R1labError for anything else."""
    path = Path(path).expanduser()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise R1labError(f"no result {path}") from None
    except (OSError, ValueError) as error:
        raise R1labError(f"{path} is not an evaluation result: {error}") from error
    if not isinstance(found, dict) or not {"problems", "overall", "k"} <= found.keys():
        raise R1labError(f"{path} is not an evaluation result: problems or figures are missing")
    return found


def problem_from(row: Mapping[str, Any]) -> ProblemResult:
    """Build a problem's record from its plain values."""
    greedy = row.get("greedy")
    return ProblemResult(
        **{
            **row,
            "samples": tuple(_sample(sample) for sample in row["samples"]),
            "greedy": None if greedy is None else _sample(greedy),
        }
    )


def _sample(row: Mapping[str, Any]) -> Sample:
    tokens = row.get("token_ids")
    if row["fault"]:  # results of earlier versions have None here
        row = {**row, "correct": False}
    return Sample(**{**row, "token_ids": None if tokens is None else tuple(tokens)})
