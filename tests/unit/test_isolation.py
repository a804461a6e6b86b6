"""Rewards behind the wall: whatever a response does, it is faulted in its place, and only it.

Real processes throughout. What happens is asserted, never how long it took.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import dedent

import pytest
from records import COMPACT, completion, problem, rollout

from r1lab.config.recipe import RewardSettings
from r1lab.types import Completion, Outcome, Problem, ScoringFailure, Verdict
from r1lab.verify import (
    IsolatedRunner,
    Reward,
    RewardCall,
    RewardError,
    RewardLimits,
    TrainerState,
    Verifiers,
    load_reward,
)
from r1lab.verify.hostile import hostile_items

# Each response says what the reward is to do with it; any other scores its place.
DEEDS = """
    import ctypes, os, signal, subprocess, sys, threading, time
    from r1lab.types import Verdict

    def act(deed, seen=[]):
        if deed == "loop":
            while True:
                pass
        elif deed == "sleep":
            time.sleep(1000)
        elif deed == "inside C":
            return len(str(9**9**9**9))
        elif deed == "allocate":
            return len([bytearray(2**22) for _ in range(10**6)])
        elif deed == "one allocation":
            return len(b"x" * 2**40)
        elif deed == "leave":
            os._exit(0)
        elif deed == "leave politely":
            sys.exit(0)
        elif deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "segfault":
            ctypes.string_at(0)
        elif deed == "recurse":
            def deeper(n):
                return deeper(n + 1)
            return deeper(0)
        elif deed == "recurse in C":
            sys.setrecursionlimit(10**9)
            def deeper(n):
                return [deeper(n + 1)]
            return deeper(0)
        elif deed == "raise":
            raise ValueError("no")
        elif deed == "interrupt":
            raise KeyboardInterrupt
        elif deed == "unpickled exception":
            class Local(Exception):
                def __str__(self):
                    raise RuntimeError
            raise Local
        elif deed == "print":
            print("noise" * 1000)
            os.write(1, b"more noise")
        elif deed == "fork":
            if os.fork() == 0:
                return 99.0
        elif deed == "fork and raise":
            if os.fork() == 0:
                raise ValueError
        elif deed == "thread":
            threading.Thread(target=time.sleep, args=(1000,)).start()
        elif deed == "close files":
            os.closerange(3, 100)
        elif deed == "kill the parent":
            os.kill(os.getppid(), signal.SIGKILL)
        elif deed == "long reason":
            return Verdict(1.0, "x" * 10**7)
        elif deed == "many parts":
            return Verdict(1.0, "", {str(n): 1.0 for n in range(10**5)})

    def reward(problem, completion):
        value = act(completion.text)
        return float(problem.answer) if value is None else value

    def batched(completions, answer, **columns):
        values = [act(text) for text in completions]
        return [float(a) if v is None else v for v, a in zip(values, answer)]
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a reward file and return its path."""

    def write(source: str, name: str = "deeds.py") -> str:
        path = tmp_path / name
        path.write_text(dedent(source).lstrip())
        return str(path)

    return write


@pytest.fixture(scope="module")
def runner() -> Iterator[IsolatedRunner]:
    with IsolatedRunner(2) as runner:
        yield runner


def items(texts: Sequence[str]) -> list[RewardCall]:
    """One problem a response: the answer of each is its place."""
    return [
        RewardCall(problem(place, answer=str(place)), completion(text), "")
        for place, text in enumerate(texts)
    ]


def judge(
    runner: IsolatedRunner, path: str, texts: Sequence[str], *, seconds=30.0, memory_mib=64
) -> list[Outcome]:
    reward = load_reward(path, limits=RewardLimits(seconds, memory_mib))
    return runner.run(reward, items(texts))


def check_places(outcomes: Sequence[Outcome], texts: Sequence[str]) -> None:
    """Each harmless response has the score of its place."""
    assert len(outcomes) == len(texts)
    for place, (outcome, text) in enumerate(zip(outcomes, texts, strict=True)):
        if text == "fine":
            assert outcome == Verdict(float(place)), (place, outcome)


def kinds(outcomes: Sequence[Outcome], texts: Sequence[str]) -> list[str]:
    return [
        outcome.kind if isinstance(outcome, ScoringFailure) else "verdict"
        for outcome, text in zip(outcomes, texts, strict=True)
        if text != "fine"
    ]


def between_harmless(*deeds: str, apart: int = 3) -> list[str]:
    texts = ["fine"] * apart
    for deed in deeds:
        texts += [deed, *["fine"] * apart]
    return texts


# ------------------------------------------------------------------------ what goes wrong

FAULTS = [
    ("loop", "timeout"),
    ("sleep", "timeout"),
    ("inside C", "timeout"),
    ("allocate", "memory"),
    ("one allocation", "memory"),
    ("leave", "crash"),
    ("leave politely", "exception"),
    ("kill", "crash"),
    ("segfault", "crash"),
    ("recurse", "exception"),
    ("raise", "exception"),
    ("interrupt", "exception"),
    ("many parts", "output"),
]


@pytest.mark.parametrize("function", ["reward", "batched"])
@pytest.mark.parametrize(("deed", "kind"), FAULTS)
def test_a_fault_in_its_place(runner, write, deed, kind, function):
    if function == "batched" and deed == "many parts":
        pytest.skip("a batched reward returns numbers")
    texts = between_harmless(deed)
    seconds = 1.0 if kind == "timeout" else 30.0
    outcomes = judge(runner, f"{write(DEEDS)}:{function}", texts, seconds=seconds)
    check_places(outcomes, texts)
    assert kinds(outcomes, texts) == [kind]


def test_all_of_them_in_one_batch(runner, write):
    texts = between_harmless(*(deed for deed, _ in FAULTS), *(deed for deed, _ in FAULTS))
    outcomes = judge(runner, write(DEEDS), texts, seconds=2.0)
    check_places(outcomes, texts)
    assert kinds(outcomes, texts) == [kind for _, kind in FAULTS] * 2


def test_faults_say_what_happened(runner, write):
    path = write(DEEDS)
    deeds = ["loop", "leave", "segfault", "raise"]
    details = [
        o.detail for o in judge(runner, path, deeds, seconds=1.0) if isinstance(o, ScoringFailure)
    ]
    assert details[0] == "longer than 1 seconds"
    assert details[1] == "the worker died of exit code 0"
    assert details[2] == "the worker died of signal SIGSEGV"
    assert details[3].startswith("ValueError: no (") and "deeds.py, line" in details[3]


def test_recursion_in_c_never_becomes_a_score(runner, write):
    texts = between_harmless("recurse in C", "unpickled exception")
    outcomes = judge(runner, write(DEEDS), texts, memory_mib=256)
    check_places(outcomes, texts)
    assert "verdict" not in kinds(outcomes, texts)


@pytest.mark.parametrize("deed", ["print", "fork", "fork and raise", "thread"])
def test_what_does_no_harm(runner, write, capfd, deed):
    texts = [deed if place % 3 == 0 else "fine" for place in range(30)]
    outcomes = judge(runner, write(DEEDS), texts)
    assert outcomes == [Verdict(float(place)) for place in range(30)]
    assert capfd.readouterr().out == ""


def test_a_worker_that_closes_its_connection(runner, write):
    texts = between_harmless("close files")
    outcomes = judge(runner, write(DEEDS), texts)
    check_places(outcomes, texts)
    assert kinds(outcomes, texts) == ["crash"]


def test_the_mother_of_the_workers_is_killed(write):
    with IsolatedRunner(2) as runner:
        texts = between_harmless("kill the parent", "kill the parent")
        outcomes = judge(runner, write(DEEDS), texts)
        assert len(outcomes) == len(texts)
        for place, outcome in enumerate(outcomes):  # all workers die of it, whatever they were at
            crashed = isinstance(outcome, ScoringFailure) and outcome.kind == "crash"
            assert crashed or outcome == Verdict(float(place))
        assert judge(runner, write(DEEDS), ["fine"]) == [Verdict(0.0)]


def test_hung_workers_are_replaced_again_and_again(write):
    texts = ["loop", "fine"] * 6
    with IsolatedRunner(1) as runner:
        outcomes = judge(runner, write(DEEDS), texts, seconds=0.3)
    check_places(outcomes, texts)
    assert kinds(outcomes, texts) == ["timeout"] * 6


def test_the_limit_is_that_of_one_response(runner, write):
    path = write(
        """
        import time

        def reward(problem, completion):
            time.sleep(0.1)
            return float(problem.answer)
        """
    )
    outcomes = judge(runner, path, ["fine"] * 30, seconds=1.0)
    check_places(outcomes, ["fine"] * 30)


def test_memory_is_that_of_one_response_and_leaks_are_shaken_off(runner, write):
    path = write(
        """
        kept = []

        def reward(problem, completion):
            kept.append(bytearray(40 * 2**20))
            return float(problem.answer)
        """
    )
    outcomes = judge(runner, path, ["fine"] * 40, memory_mib=100)
    check_places(outcomes, ["fine"] * 40)


def test_long_reasons_are_cut(runner, write):
    (verdict,) = judge(runner, write(DEEDS), ["long reason"])
    assert isinstance(verdict, Verdict)
    assert len(verdict.reason) < 3_000 and "10000000 characters" in verdict.reason


# ------------------------------------------------------------------- what rewards are handed


def test_the_records_arrive_whole(runner, write):
    path = write(
        """
        from r1lab.types import Verdict

        def reward(problem, completion, *, option):
            return Verdict(1.0, repr((problem, completion, option)))
        """
    )
    asked = Problem("id", "q", "a", "v", "s", {"level": [1, {"x": None}]})
    said = Completion((5, 6), "t\ud800", "length", 3, "<think>", "th", None, (-0.5, -0.25))
    reward = load_reward(path, {"option": ("a", 1)})
    (verdict,) = runner.run(reward, [RewardCall(asked, said, "p")])
    assert verdict == Verdict(1.0, repr((asked, said, ("a", 1))))


def test_trls_arguments_and_logs(runner, write):
    path = write(
        """
        async def reward(prompts, completions, completion_ids, level, trainer_state, log_extra,
                         log_metric, **columns):
            log_extra("letters", [len(text) for text in completions])
            log_extra("word", [text.upper() for text in completions])
            log_metric("mean level", sum(level) / len(level))
            share = trainer_state.global_step / trainer_state.max_steps
            return [share, None]
        """
    )
    state = TrainerState(3, 4)
    pair = [
        RewardCall(problem(0, metadata={"level": level}), completion(text), "p", state)
        for level, text in ((1, "one"), (2, "three"))
    ]
    outcomes = runner.run(load_reward(path), pair)
    assert outcomes == [
        Verdict(0.75, "word: ONE", {"mean level": 1.5, "letters": 3.0}),
        Verdict(None, "word: THREE", {"mean level": 1.5, "letters": 5.0}),
    ]


def test_a_batched_reward_sees_the_whole_batch(runner, write):
    path = write(
        "def reward(completions, **_):\n    return [len(completions)] * len(completions)\n"
    )
    assert judge(runner, path, ["x"] * 200) == [Verdict(200.0)] * 200


def test_what_a_reward_logs_reaches_the_metrics(runner, write):
    path = write(
        """
        def reward(completions, log_metric, **_):
            log_metric("size", len(completions))
            return [1.0] * len(completions)
        """
    )
    verifiers = Verifiers([RewardSettings(reward=path)], template=COMPACT, runner=runner)
    scored = verifiers.score([rollout(0, "a", "b"), rollout(1, "c")])
    assert verifiers.reported(scored) == {"deeds.size": 3.0}


def test_a_reward_that_is_not_to_be_isolated_runs_here(runner, write):
    path = write("import os\ndef reward(problem, completion):\n    return os.getpid()\n")
    here, there = (
        Verifiers([RewardSettings(reward=path, isolate=isolate)], template=COMPACT, runner=runner)
        for isolate in (False, True)
    )
    scores = [
        verifiers.score([rollout(0, "a")])[0].outcomes[0].score  # type: ignore[union-attr]
        for verifiers in (here, there)
    ]
    assert scores[0] == os.getpid() != scores[1]


def test_the_settings_of_a_recipe_are_the_limits(write):
    class Asking:
        def run(self, reward: Reward, items: Sequence[RewardCall]) -> list[Outcome]:
            return [Verdict(reward.limits.seconds), Verdict(float(reward.limits.memory_mib))]

    settings = [RewardSettings(reward=write(DEEDS), seconds=0.5, memory_mib=77)]
    scored = Verifiers(settings, template=COMPACT, runner=Asking()).score([rollout(0, "a", "b")])
    assert [o.score for o in scored[0].outcomes] == [0.5, 77.0]  # type: ignore[union-attr]


def test_no_torch_in_the_workers(runner, write):
    path = write(
        """
        import sys

        def reward(problem, completion):
            return float("torch" in sys.modules)
        """
    )
    assert judge(runner, path, ["x"]) == [Verdict(0.0)]


# ----------------------------------------------------------------------- mistakes in a reward


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def reward(completions, **_):\n    return [0.0]\n", r"line 1\) returned 1 scores"),
        ("def reward(problem, completion):\n    return lambda: 1\n", r"function.*is a number"),
        ("def reward(problem, completion):\n    return 1e999\n", r"returned inf for problem p0"),
        ("def reward(problem, completion):\n    return object()\n", r"\(object\) for problem"),
        (
            "from r1lab.types import Verdict\ndef reward(problem, completion):\n"
            "    return Verdict(1.0, '', {'x': 'y'})\n",
            r"'y' \(str\).*parts of a Verdict are numbers",
        ),
        (
            "import os\nif os.path.exists('/proc/self') and os.getsid(0) == os.getpid():\n"
            "    raise OSError('not here')\ndef reward(problem, completion):\n    return 1.0\n",
            r"cannot be imported.*line 3: OSError: not here",
        ),
        (
            "import os\nif os.getsid(0) == os.getpid():\n    os._exit(1)\n"
            "def reward(problem, completion):\n    return 1.0\n",
            r"died of exit code 1 while it imported the reward",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_and_the_workers_go_on(runner, write, source, message):
    if os.getsid(0) == os.getpid() and "getsid" in source:
        pytest.skip("these tests lead a session themselves")
    with pytest.raises(RewardError, match=message):
        judge(runner, write(source), ["a", "b"])
    assert judge(runner, write(DEEDS, "others.py"), ["fine"]) == [Verdict(0.0)]


def test_metadata_that_cannot_travel(runner, write):
    item = RewardCall(problem(0, metadata={"f": lambda: 1}), completion("x"), "")
    with pytest.raises(RewardError, match=r"metadata or the options.*isolate: false"):
        runner.run(load_reward(write(DEEDS)), [item])


# ------------------------------------------------------------------------- nothing left behind

LEAVES = """
    import os, subprocess, time

    def reward(problem, completion):
        marker = completion.text
        hold = open(marker)  # the test finds processes by this
        os.set_inheritable(hold.fileno(), True)
        if os.fork() == 0:
            time.sleep(1000)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        subprocess.Popen(["sleep", "1000"], close_fds=False, start_new_session=True)
        if "hang" in marker:
            time.sleep(1000)
        return 1.0
"""


def holders(marker: Path) -> set[int]:
    """Processes that hold the file open."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            links = {os.readlink(link) for link in folder.iterdir()}
        except OSError:
            continue
        if str(marker) in links:
            found.add(int(folder.parent.name))
    return found - {os.getpid()}


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true; dying takes a moment."""
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_children_of_a_killed_worker_are_killed(write, tmp_path):
    marker = tmp_path / "hang"
    marker.touch()
    with IsolatedRunner(1) as runner:
        (fault,) = judge(runner, write(LEAVES), [str(marker)], seconds=2.0)
        assert isinstance(fault, ScoringFailure) and fault.kind == "timeout"
        assert eventually(lambda: not holders(marker))


def test_closing_leaves_nothing(write, tmp_path):
    marker = tmp_path / "marker"
    marker.touch()
    with IsolatedRunner(2) as runner:
        assert judge(runner, write(LEAVES), [str(marker)] * 4) == [Verdict(1.0)] * 4
        assert holders(marker)
    assert not holders(marker)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["marker", "hang"])
def test_the_death_of_the_parent_leaves_nothing(write, tmp_path, how, name):
    marker = tmp_path / name
    marker.touch()
    # A shell that starts its jobs in the background has them ignore SIGINT; so would this child.
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_isolation import IsolatedRunner, judge
runner = IsolatedRunner(2)
judge(runner, {write(LEAVES)!r}, [{str(marker)!r}] * 3, seconds=1000)
print("judged", flush=True)
import time
time.sleep(1000)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    if name == "marker":
        assert parent.stdout.readline() == b"judged\n"
    assert eventually(lambda: len(holders(marker)) >= 3)
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not holders(marker))


def test_interrupted_and_used_again(write, tmp_path):
    """Ctrl-C in the middle of a batch: the next batch gets its own outcomes."""
    marker = tmp_path / "hang"
    marker.touch()
    code = f"""
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_isolation import IsolatedRunner, eventually, holders, judge, Path
def interrupt():
    assert eventually(lambda: holders(Path({str(marker)!r})))
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
with IsolatedRunner(2) as runner:
    try:
        judge(runner, {write(LEAVES)!r}, [{str(marker)!r}] * 3, seconds=1000)
    except KeyboardInterrupt:
        print(judge(runner, {write(DEEDS, "deeds_2.py")!r}, ["fine"] * 3))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str([Verdict(float(place)) for place in range(3)]), done.stderr
    assert not holders(marker)


# ----------------------------------------------------------------------------- hostile answers


def test_hostile_answers_through_a_careless_reward(runner, write, tmp_path):
    """A reward that computes what it is told, and measures it: the wall holds."""
    canary = tmp_path / "canary"
    path = write(
        """
        import re

        def reward(problem, completion):
            found = re.fullmatch(r"(\\d+)\\^\\{?(\\d+)\\^\\{?(\\d+)\\}*", completion.answer or "")
            if found:
                a, b, c = map(int, found.groups())
                return float(a ** b ** c == 1)
            return 0.0
        """
    )
    hostile = [item for item in hostile_items(canary) if len(item.answer) < 10_000]
    asked = [
        RewardCall(
            problem(n, answer=h.gold), completion(f"</think><answer>{h.answer}</answer>"), ""
        )
        for n, h in enumerate(hostile)
    ]
    outcomes = runner.run(load_reward(path, limits=RewardLimits(0.5, 256)), asked)
    assert len(outcomes) == len(hostile)
    for item, outcome in zip(hostile, outcomes, strict=True):
        if item.answer == "9^{9^{9}}":
            assert isinstance(outcome, ScoringFailure), item.name
        else:
            assert outcome == Verdict(0.0), (item.name, outcome)
    assert not canary.exists()
