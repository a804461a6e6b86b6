"""What a run says while it goes: the progress lines and `r1lab watch`, from real files."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from r1lab.report.figures import duration, said, sparkline
from r1lab.report.progress import Progress
from r1lab.report.watch import watch
from r1lab.run_folder import RunFolder
from r1lab.types import R1labError

LINE = {"reward": 0.8125, "accuracy": 0.75, "length": 28.44, "sync_kl": 3.2e-5, "faults": 0.0}
TIMINGS = {"total": 4.0, "tokens_per_second": 3912.4}


# ----------------------------------------------------------------------------------- figures


def test_a_step_in_one_line() -> None:
    assert said(LINE, TIMINGS) == (
        "reward 0.812  accuracy 0.750  length 28.4  3,912 tokens/s  sync_kl 3.2e-05"
    )


def test_accuracy_is_the_part_that_tells_right_from_wrong() -> None:
    assert "accuracy 0.500" in said({"my_reward": 0.5}, accuracy="my_reward")
    assert "accuracy" not in said({"my_reward": 0.5})


def test_trouble_is_said_and_what_is_missing_left_out() -> None:
    words = said({"reward": None, "length": float("nan"), "faults": 3.0, "skipped": 1})
    assert words == "3 faulted  1 skipped updates"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "0:00"), (7, "0:07"), (312, "5:12"), (3723, "1:02:03"), (183845, "2 d 03:04")],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_sparkline() -> None:
    assert sparkline([], 5) == ""
    assert sparkline([1.0, 1.0], 5) == "▄▄"
    assert sparkline([0.0, 7.0], 5) == "▁█"
    assert sparkline([0.0, 0.0, 4.0, 4.0, 7.0, 7.0], 3) == "▁▅█"
    assert len(sparkline([float(i) for i in range(1000)], 40)) == 40


# ---------------------------------------------------------------------------------- progress


def test_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    progress = Progress(3, "tiny", lines=out, terminal=out)
    progress.say("going on from step 1")
    progress.start(1, accuracy="mine")
    progress.say("held out: pass_at_1 0.2\x1b[2J")
    progress.step({**LINE, "mine": 0.25}, TIMINGS)
    progress.step({"reward": 0.5})
    progress.close()
    before, first, second, third = out.getvalue().splitlines()
    assert before == "tiny: going on from step 1"
    assert first == "tiny: held out: pass_at_1 0.2␛[2J"
    assert second.startswith("tiny: step 2/3  reward 0.812  accuracy 0.250")
    assert second.endswith(" left")
    assert third == "tiny: step 3/3  reward 0.500  0:00 left"
    assert not any(ord(character) < 32 for character in out.getvalue().replace("\n", ""))


def test_a_disabled_one_says_nothing() -> None:
    out = io.StringIO()
    progress = Progress(3, disable=True, lines=out, terminal=out)
    progress.start()
    progress.say("a")
    progress.step(LINE)
    progress.close()
    assert out.getvalue() == ""


def in_a_terminal(code: str) -> str:
    """What a program writes where its standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the kernel's word for: the other end was closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(pieces).decode()


def test_a_bar_in_a_terminal() -> None:
    text = in_a_terminal(
        "from r1lab.report.progress import Progress\n"
        "p = Progress(2, 'tiny')\n"
        "p.start()\n"
        f"p.step({LINE}, {TIMINGS})\n"
        "p.say('held out: 0.5')\n"
        f"p.step({LINE}, {TIMINGS})\n"
        "p.close()\n"
    )
    assert "tiny 2/2" in text and "\r" in text
    assert "accuracy 0.750" in text and "3,912 tokens/s" in text and "left" in text
    assert "held out: 0.5" in text


# ------------------------------------------------------------------------------------- watch


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run")
    folder.recipe_path.write_text("name: tiny\nsteps: 4\n")
    return folder


def add_steps(run: RunFolder, *steps: int) -> None:
    for step in steps:
        run.log_metrics(step, {**LINE, "reward": step / 10})
        run.log_timings(step, TIMINGS)


def add_eval(run: RunFolder, step: int, accuracy: str = "accuracy") -> None:
    scores = {"pass_at_1": {"value": 0.25, "low": 0.2, "high": 0.3}, "cons_at_k": None}
    run.write_eval(step, {"step": step, "k": 16, "accuracy": accuracy, "overall": scores})


def watched(run: RunFolder, **options: object) -> str:
    out = io.StringIO()
    watch(str(run.path), console=Console(file=out, width=120), **options)  # type: ignore[arg-type]
    return out.getvalue()


def test_watch_once(run: RunFolder) -> None:
    assert "no step yet" in watched(run, once=True)
    add_eval(run, 0)
    add_steps(run, 1, 2, 3)
    run.log_metrics(4, {"reward": 0.9, "faults": 2.0})
    with (run.path / "events.jsonl").open("w") as file:
        event = {"time": "2026-01-01T00:00:00+00:00", "event": "resume\x1b[2J", "step": 2}
        file.write(json.dumps(event) + '\n{"time": "ha')
    text = watched(run, once=True)
    for part in ("tiny", "step 4 of 4", "3,912 tokens/s", "reward", "0.900", "▁", "pass@1",
                 "0.25 [0.20, 0.30]", "responses faulted", "resume␛[2J  step 2"):  # fmt: skip
        assert part in text, part
    assert "\x1b" not in text


def test_watch_writes_new_steps_as_plain_lines_until_the_run_ends(run: RunFolder) -> None:
    add_steps(run, 1, 2)

    def go_on() -> None:
        time.sleep(0.1)
        add_steps(run, 3, 4)
        run.write_summary({"steps": 4})

    going = threading.Thread(target=go_on)
    going.start()
    text = watched(run, every=0.02)
    going.join()
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"tiny step {n}/4" for n in (1, 2, 3, 4)]
    assert "reward 0.400" in lines[-1]
    assert "\x1b" not in text and "\r" not in text


def test_watch_leaves_a_run_that_stopped_and_stays_with_one_that_goes_on(run: RunFolder) -> None:
    add_steps(run, 1)
    run.log_event("stopped", step=1, why="stopped by SIGTERM")
    assert watched(run, every=0.02).splitlines()[-1] == "tiny stopped by SIGTERM"
    assert "stopped by SIGTERM" in watched(run, once=True)
    run.log_event("resumed", step=1)
    os.utime(run.metrics_path, (0, time.time() - 400))
    text = watched(run, once=True)
    assert "no step for 6:40" in text and "0:12 left" in text


def test_watch_redraws_in_a_terminal(run: RunFolder) -> None:
    add_eval(run, 0, accuracy="mine")
    run.log_metrics(1, {"mine": 0.625})
    run.write_summary({"steps": 1})
    text = in_a_terminal(f"from r1lab.cli.app import main; main(['watch', {str(run.path)!r}])")
    assert "0.625" in text and "ended" in text and "\x1b[" in text


def test_watch_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(R1labError, match="no run folder"):
        watch(str(tmp_path / "nowhere"))
