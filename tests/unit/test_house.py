"""The house stays in order: no old words, few loose rooms, a step that fits one screen."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).resolve().parents[2]

# Upper bounds. They only ever fall, to: modules 150, lines 27_000, loose 10, rl_step_lines 30,
# single_importer_small 15, duplicate_class_names 0, old_words 0.
MOST = {
    "modules": 198,
    "lines": 32_600,
    "loose": 12,
    "rl_step_lines": 30,
    "single_importer_small": 26,
    "duplicate_class_names": 0,
    "old_words": 1_700,
}

LIST = """
exempt_paths: [r1lab/aliases.py]
exempt:
  - {path: r1lab/prompts.py, word: stands, context: The work stands between}
words:
  - {kind: identifier, word: sync_kl}
  - {kind: identifier, word: "mend_*"}
  - {kind: identifier, in: code, word: floor, under: [r1lab/grpo/]}
  - {kind: identifier, in: code, word: mark, of: [Keeper], receivers: [keeper]}
  - {kind: module, word: keeper}
  - {kind: local, word: found}
  - {kind: recipe_key, word: max_lag}
  - {kind: recipe_key, word: correction}
  - {kind: metric, word: lag}
  - {kind: phrase, word: goes on}
  - {kind: phrase, word: stands, not_before: [for]}
  - {kind: phrase, word: likewise, only: descriptions}
"""


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def uses(tmp_path):
    """uses(path, text): the old words of a tree with this one file, in order, by LIST."""
    write(tmp_path, {"words.yaml": LIST})

    def count(path, text):
        write(tmp_path, {path: text})
        found = house.old_words(tmp_path, house.Words.read(tmp_path / "words.yaml"))
        (tmp_path / path).unlink()
        assert {use.path for use in found} <= {path}
        return sorted(use.word for use in found)

    return count


@pytest.fixture(scope="module")
def measured():
    return house.measure(ROOT)


@pytest.mark.parametrize("name", MOST)
def test_the_house_does_not_grow(measured, name):
    offenders = "\n".join(measured.offenders.get(name, [])[:30])
    assert measured.numbers[name] <= MOST[name], f"{name}\n{offenders}"


def test_the_script_prints_one_line_of_json_last():
    done = subprocess.run(
        [sys.executable, "scripts/house.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(json.loads(done.stdout.splitlines()[-1])) == {
        "modules", "lines", "loose", "median_function", "longest_function", "longest_file",
        "rl_step_lines", "single_importer_small", "old_words", "duplicate_class_names",
    }  # fmt: skip


def test_rooms_are_counted(tmp_path):
    write(tmp_path, {
        "tests/data/old_words.yaml": "words: []",
        "r1lab/__init__.py": '"""A docstring is no module."""\n',
        "r1lab/__main__.py": "from r1lab.a import f\n",
        "r1lab/a.py": "def f():\n    return 1\n",
        "r1lab/grpo/__init__.py": "X = 1\n",
        "r1lab/grpo/step.py": "@cache\ndef rl_step(\n    x,\n):\n    '''.'''\n\n    return x\n",
        "rewards/z.py": "def reward():\n" + "    x = 1\n" * 200,
    })  # fmt: skip
    numbers = house.measure(tmp_path).numbers
    assert numbers == {
        "modules": 4, "lines": 1 + 1 + 2 + 1 + 7, "loose": 1, "median_function": 4,
        "longest_function": 6, "longest_file": 7, "rl_step_lines": 6, "single_importer_small": 1,
        "old_words": 0, "duplicate_class_names": 0,
    }  # fmt: skip


def test_links_are_not_counted_twice(tmp_path):
    write(tmp_path, {"r1lab/a.py": "", "data/b.py": ""})
    (tmp_path / "r1lab/data").symlink_to("../data")
    assert [m.name for m in house.modules(tmp_path)] == ["r1lab.a", "r1lab.data.b"]


def test_a_small_file_with_one_importer_in_its_own_package(tmp_path):
    long = "x = 1\n" * house.SMALL
    write(tmp_path, {
        "r1lab/p/__init__.py": "",
        "r1lab/p/one.py": "",  # one importer, in the same package
        "r1lab/p/lazy.py": "",  # the same, imported inside a function
        "r1lab/p/relative.py": "",
        "r1lab/p/two.py": "",  # two importers
        "r1lab/p/long.py": long,
        "r1lab/p/outside.py": "",  # one importer, in another package
        "r1lab/p/nobody.py": "",
        "r1lab/p/user.py": "from r1lab.p.one import x\nfrom r1lab.p import two, long\n"
        "from . import relative\ndef f():\n    import r1lab.p.lazy\n",
        "r1lab/q/user.py": "from r1lab.p import two, outside\n",
    })  # fmt: skip
    small = house.single_importer_small(house.modules(tmp_path))
    assert [line.split()[0] for line in small] == [
        "r1lab/p/lazy.py", "r1lab/p/one.py", "r1lab/p/relative.py",
    ]  # fmt: skip


@pytest.mark.parametrize("second", [
    "class Row: ...", "Row = dict[str, int]", "Row = Literal['a']", "Row: TypeAlias = int",
    "Row = Callable[[], int]", "Row = int | None", "Row = Union[int, str]",
    "if TYPE_CHECKING:\n    Row = Mapping[str, int]",
    *(["type Row = int"] if sys.version_info >= (3, 12) else []),  # 3.11 does not parse it
])  # fmt: skip
def test_a_name_with_two_meanings(tmp_path, second):
    write(tmp_path, {"r1lab/a.py": "class Row: ...\n", "rewards/b.py": second})
    found = house.duplicate_class_names(house.modules(tmp_path))
    assert found == {"Row": ["r1lab/a.py", "rewards/b.py"]}


@pytest.mark.parametrize("second", [
    "from r1lab.a import Row", "def f():\n    class Row: ...", "Row = ROWS['a']", "Row = 1 | 2",
    "class Other:\n    class Row: ...",
])  # fmt: skip
def test_a_name_with_one_meaning(tmp_path, second):
    write(tmp_path, {"r1lab/a.py": "class Row: ...\n", "data/b.py": second})
    assert house.duplicate_class_names(house.modules(tmp_path)) == {}


@pytest.mark.parametrize(("text", "words"), [
    ("sync_kl = 1", ["sync_kl"]),
    ("x.sync_kl(sync_kl=1)", ["sync_kl", "sync_kl"]),
    ("def sync_kl(sync_kl): ...", ["sync_kl", "sync_kl"]),
    ("from a.sync_kl import b as sync_kl", ["sync_kl", "sync_kl"]),
    ("metrics['sync_kl'] = f'{x} of sync_kl'", ["sync_kl", "sync_kl"]),
    ("max_sync_kl = sync_kl_bound = 'max_sync_kl sync_kls'", []),
    ("# sync_kl goes on in a comment", []),
    ("def mend_it(): ...", ["mend_*"]),
    ("def f():\n    found = 1\n    return found", ["found", "found"]),
    ("x.found = f(found=1)  # neither is a variable\n'found'", []),
    ("keeper.mark()", ["mark"]),
    ("class Keeper:\n    def mark(self): ...", ["mark"]),
    ("class Other:\n    def mark(self): ...\nx.mark()", []),
    ("class S:\n    max_lag: int = 1\ns.max_lag", ["max_lag", "max_lag"]),
    ("class S:\n    correction: str\ns.correction", ["correction", "correction"]),
    ("def f(correction):\n    return correction", []),
    ("'lag'", ["lag"]),
    ("'rollout/lag'", ["lag"]),
    ("'lag behind'", []),
    ("'''It goes\n    on.'''", ["goes on"]),
    ("raise E(f'the run {x} Goes on ' 'and goes on')", ["goes on", "goes on"]),
    ("f'goes {x} on'", []),
    ("'it stands; P stands for problems'", ["stands"]),
    ("Field(1, description='likewise')", ["likewise"]),
    ("'likewise'", []),
])  # fmt: skip
def test_old_words_in_code(uses, text, words):
    assert uses("r1lab/x.py", text) == words


@pytest.mark.parametrize(("path", "text", "words"), [
    ("r1lab/grpo/keeper.py", "", ["keeper"]),
    ("r1lab/keeper/__init__.py", "", ["keeper"]),
    ("r1lab/grpo/x.py", "floor\n'the `floor` of a floor'", ["floor", "floor"]),
    ("r1lab/model/x.py", "floor\n'`floor`'", []),
    ("rewards/x.py", "'goes on'", ["goes on"]),
    ("data/x.py", "'''goes on'''\nTEXT = 'goes on'\nraise E('goes on')", ["goes on", "goes on"]),
    ("r1lab/aliases.py", "sync_kl", []),
    ("r1lab/prompts.py", "x = 'The work stands between tags'", []),
    ("r1lab/prompts.py", "x = 'it stands'", ["stands"]),
    ("examples/x.py", "sync_kl", ["sync_kl"]),
    ("tests/x.py", "sync_kl", []),
    ("README.md", "It **goes\n> on**. GOES ON.", ["goes on", "goes on"]),
    ("CONTRIBUTING.md", "`sync_kl`, sync_kl; not max_sync_kl", ["sync_kl", "sync_kl"]),
    ("docs/howto/own-loss.md", "`correction` is a correction; `algorithm.correction`",
     ["correction", "correction"]),
    ("docs/index.md", "| goes on |", ["goes on"]),
    ("docs/experiments.md", "goes on\n| goes on |\n", ["goes on"]),
    ("docs/reproduction.json", '"sync_kl"', []),
    ("recipes/a/x.yaml", "# goes on\nalgorithm:\n  correction: none\n  max_lag: 1\n",
     ["correction", "goes on", "max_lag"]),
])  # fmt: skip
def test_old_words_by_place(uses, path, text, words):
    assert uses(path, text) == words


def test_every_entry_of_the_list_can_count(tmp_path):
    """Each word of the shipped list is found when it is put where its entry says it counts."""
    words = house.Words.read(ROOT / house.WORDS)
    assert len(words.entries) > 150
    for entry in words.entries:
        word = entry.word.replace("*", "some")
        folder = next((place for place in entry.under if place.endswith("/")), "r1lab/x/")
        path, text = f"{folder}some.py", word
        match entry.kind:
            case "module":
                path, text = f"{folder}{word}.py", ""
            case "phrase" | "metric":
                text = f"Field(description={word!r})"
            case "identifier" | "recipe_key":
                text = f"{entry.receivers[0]}.{word}" if entry.of else f"x.{word}"
        ast.parse(text)
        write(tmp_path, {path: text})
        found = house.old_words(tmp_path, words)
        assert entry.word in {use.word for use in found}, entry
        (tmp_path / path).unlink()
