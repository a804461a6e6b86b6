"""What servers and trainers are made of, without either: the shared folder, facts, recipe keys."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from r1lab.config.recipe import ProblemSettings, SourceSettings, TrainRecipe
from r1lab.rollout.server import weights_folder
from r1lab.rollout.server.app import ReadWriteLock
from r1lab.rollout.server.info import PROTOCOL, ServerInfo, difference, facts_from, is_loopback
from r1lab.rollout.server.weights_folder import WeightsFolder, find_version, new_run, read_note
from r1lab.types import R1labError

# --- the shared folder ---------------------------------------------------------------------------


def weights() -> dict[str, torch.Tensor]:
    """Two of them are rows of one tensor, as fused experts are."""
    generator = torch.Generator().manual_seed(0)
    experts = torch.randn(2, 3, 4, generator=generator)
    return {
        "a": torch.randn(5, generator=generator), "e.0": experts[0], "e.1": experts[1],
        "half": torch.randn(7, generator=generator).bfloat16(),
    }  # fmt: skip


def test_what_is_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_folder, "SHARD_BYTES", 60)  # several files
    folder = WeightsFolder(tmp_path, new_run())
    folder.write(weights().items(), 3)
    found = find_version(tmp_path, folder.run, 3)
    assert len(list(found.glob("*.safetensors"))) > 1
    read = dict(weights_folder.read_weights(found))
    assert read.keys() == weights().keys()
    for name, tensor in weights().items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_versions_come_and_go(tmp_path):
    folder = WeightsFolder(tmp_path, new_run())
    for version in (1, 2, 3):
        folder.write(weights().items(), version)
    folder.drop_before(3)
    assert [path.name for path in (tmp_path / folder.run).iterdir()] == ["version-3"]
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_a_version_is_not_there_before_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_folder, "_SECONDS_TO_APPEAR", 0.0)
    folder = WeightsFolder(tmp_path, new_run())

    def torn():
        yield "a", torch.ones(3)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        folder.write(torn(), 1)
    with pytest.raises(R1labError, match="weights of version 1 are not seen, or not whole"):
        find_version(tmp_path, folder.run, 1)
    path = folder.write(weights().items(), 1)  # what was left of it is no hindrance
    assert find_version(tmp_path, folder.run, 1) == path
    # A network's folder may show a file before it has all of it.
    (shard,) = path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(R1labError, match="not whole"):
        find_version(tmp_path, folder.run, 1)


def test_a_note_is_read_where_the_folder_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_folder, "_SECONDS_TO_APPEAR", 0.0)
    folder = WeightsFolder(tmp_path, new_run())
    word = folder.write_note()
    assert read_note(tmp_path, folder.run) == word
    assert read_note(tmp_path / "elsewhere", folder.run) is None
    with pytest.raises(R1labError, match="not the token of a run"):
        read_note(tmp_path, "../..")


# --- facts ---------------------------------------------------------------------------------------

FACTS = ServerInfo(PROTOCOL, "0.1.0", "0.32.0", {"layers": 3}, "v", "float32", 512, 1, ("folder",))
OURS: dict[str, Any] = {
    "shape": {"layers": 3}, "vocabulary": "v", "dtype": "float32", "transfer": "folder",
}  # fmt: skip


def test_facts_travel():
    assert facts_from(FACTS.as_dict()) == FACTS
    with pytest.raises(R1labError, match=r"protocol None \(r1lab unknown\)"):
        facts_from({})


@pytest.mark.parametrize(
    ("ours", "found"),
    [
        ({}, None),
        ({"shape": {"layers": 4}}, "another model (layers: 3 there, 4 in model.path)"),
        ({"shape": {"layers": 3, "more": 1}}, "another model (more: null there, 1"),
        ({"vocabulary": "w"}, "another vocabulary"),
        ({"dtype": "bfloat16"}, "start it with --dtype bfloat16"),
        ({"transfer": "nccl"}, "start it with --transfer nccl"),
    ],
)
def test_what_differs_is_named(ours, found):
    said = difference(FACTS, **{**OURS, **ours})
    assert said is None if found is None else found in said


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True),
     ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),
     ("127.0.0.1.example.com", False), ("", False), (None, False)],
)  # fmt: skip
def test_what_is_this_machine_alone(host, own):
    assert is_loopback(host) is own


# --- the gate of a server ------------------------------------------------------------------------


def test_weights_change_while_nobody_samples():
    said: list[str] = []

    async def sample(gate: ReadWriteLock, name: str, rounds: int) -> None:
        async with gate.sampling():
            said.append(f"{name} begins")
            for _ in range(rounds):
                await asyncio.sleep(0)
            said.append(f"{name} ends")

    async def change(gate: ReadWriteLock) -> None:
        async with gate.alone():
            said.append("change begins")
            await asyncio.sleep(0)
            said.append("change ends")

    async def all_of_it() -> None:
        gate = ReadWriteLock()
        first = [asyncio.create_task(sample(gate, name, 20)) for name in "ab"]
        await asyncio.sleep(0)
        changes = [asyncio.create_task(change(gate)) for _ in range(2)]
        await asyncio.sleep(0)
        late = asyncio.create_task(sample(gate, "c", 3))
        gone = asyncio.create_task(sample(gate, "d", 3))
        await asyncio.sleep(0)
        gone.cancel()  # who leaves while waiting holds nobody up
        await asyncio.gather(*first, *changes, late)

    asyncio.run(asyncio.wait_for(all_of_it(), 60))
    assert said[:4] == ["a begins", "b begins", "a ends", "b ends"]
    assert said[4:].count("change begins") == 2 and "d begins" not in said
    for place, word in enumerate(said):
        if word == "change begins":
            assert said[place + 1] == "change ends"
    assert said.index("c begins") > said.index("change ends")


# --- recipe keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"engine": "server"}, "servers: empty; engine 'server' needs"),
        ({"servers": ["http://a:1"]}, "servers: not used by engine 'vllm'"),
        ({"engine": "server", "servers": ["a:1"], "weights_folder": "w"}, "write http://HOST:PORT"),
        ({"engine": "server", "servers": ["http://a:1/v1"], "weights_folder": "w"}, "http://HOST"),
        ({"engine": "server", "servers": ["http://a:1"]}, "weights_folder: missing"),
        (
            {"engine": "server", "servers": ["http://a:1", "http://a:1/"], "weights_folder": "w"},
            "servers: contains a duplicate address",
        ),
    ],
)
def test_a_recipe_names_its_servers(sampling, said):
    problems = ProblemSettings(sources=(SourceSettings(source="boxes"),))
    values = {"name": "x", "sampling": sampling, "problems": problems}
    with pytest.raises(ValueError, match="(?s)" + said.replace("(", r"\(")):
        TrainRecipe.model_validate(values)
