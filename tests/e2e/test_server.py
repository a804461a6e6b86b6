"""Sampling by a server: a real one on this machine, killed in the middle, and wrong worlds."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from r1lab.cli.app import main
from r1lab.config.recipe import ModelSettings
from r1lab.data.corpus import Corpus, Dials
from r1lab.model.load import load_base
from r1lab.model.weights import checkpoint_weights
from r1lab.prompts import TEMPLATES
from r1lab.rollout.agreement import both_logprobs, k3_kl
from r1lab.rollout.server.client import SamplerServer, ServerLost
from r1lab.rollout.server.info import KEY_VARIABLE
from r1lab.rollout.server.sampler import Servers, ServerSampler
from r1lab.rollout.server.weights_folder import find_version, new_run
from r1lab.rollout.source import encode_prompt
from r1lab.run_folder import RunFolder
from r1lab.types import InfrastructureError, R1labError, RecipeError, SamplingSettings

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-test"
PLAIN = TEMPLATES["plain"]
SETTINGS = SamplingSettings(num_samples=4, max_tokens=32, logprobs=True, seed=1)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`r1lab serve-sampler nano` on a port of its own, started as a user would."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.port, self._log = folder, free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        self.begin()

    def begin(self) -> None:
        """Start the process; it is not there yet."""
        environment = {**os.environ, KEY_VARIABLE: KEY, "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable, "-m", "r1lab", "serve-sampler", "nano", f"--port={self.port}",
            f"--weights-folder={self.folder}", "--dtype=float32", "--kv-cache-gib=0.25",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Until it answers."""
        with closing(SamplerServer(self.url, KEY)) as client:
            while True:
                assert self.process.poll() is None, self._log.read_text()[-4000:]
                try:
                    client.about()
                    return
                except ServerLost:
                    time.sleep(0.5)

    def kill(self) -> None:
        """As the machine would: no goodbye."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()


class World:
    """The server, and a trainer's model and sampler beside it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.model, self.tokenizer, self.base = load_base(
            ModelSettings(path="nano", dtype="float32")
        )
        encoded = (encode_prompt(self.tokenizer, d.prompt) for d in Corpus(Dials(), seed=7))
        self.prompts = list(itertools.islice((p for p in encoded if len(p) >= 24), 24))
        self.sampler = self.connect()
        self.said: list[str] = []

    def connect(self, **changes: Any) -> ServerSampler:
        """A sampler over the server, some of its arguments changed."""
        values: dict[str, Any] = {
            "urls": (self.server.url,), "key": KEY, "weights_folder": str(self.server.folder),
        }  # fmt: skip
        values |= {k: changes.pop(k) for k in [*changes] if k in (*values, "patience")}
        options = {"dtype": "float32", "tokenizer": self.tokenizer, "folder": self.base} | changes
        return ServerSampler(
            Servers(**values), options["folder"], options["tokenizer"], dtype=options["dtype"],
            run=options.get("run", ""), on_event=lambda text: self.said.append(text),
        )  # fmt: skip

    def kl(self, seed: int = 1) -> float:
        """The k3 estimate of KL(server, model) over fresh samples."""
        settings = SamplingSettings(num_samples=4, max_tokens=32, logprobs=True, seed=seed)
        groups = self.sampler.generate(self.prompts, settings, template=PLAIN)
        return self.agreement(groups)

    def agreement(self, groups: Any) -> float:
        return k3_kl(*both_logprobs(self.model, self.prompts, groups))

    def sync(self, version: int) -> None:
        self.sampler.sync(checkpoint_weights(self.model), version)

    def move(self, size: float = 0.05) -> None:
        """Change every weight of the trainer's model."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += size * parameter.std() * noise


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    folder = place / "weights"
    folder.mkdir()
    server = Server(folder, place / "server.log")
    try:
        server.wait()
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def world(server: Server) -> Iterator[World]:
    world = World(server)
    yield world
    world.sampler.close()
    assert not list(server.folder.iterdir())  # a run leaves nothing behind


def test_it_samples_what_the_model_would(world: World):
    world.sync(0)
    groups = world.sampler.generate(world.prompts, SETTINGS, template=PLAIN)
    assert [len(group) for group in groups] == [4] * len(world.prompts)
    assert world.agreement(groups) < 1e-6  # float32 on both sides: rounding alone
    # A response is a function of (weights, prompt, seed), but for rounding.
    again = world.sampler.generate(world.prompts, SETTINGS, template=PLAIN)
    same = [a.token_ids == b.token_ids for x, y in zip(groups, again, strict=True)
            for a, b in zip(x, y, strict=True)]  # fmt: skip
    assert sum(same) > 0.95 * len(same)
    # Members of a group, and groups of one prompt, are draws of their own.
    assert len({c.token_ids for c in groups[0]}) > 1
    twice = world.sampler.generate([world.prompts[0]] * 2, SETTINGS, template=PLAIN)
    assert twice[0] != twice[1]


def test_what_it_samples_has_the_distribution_of_the_sampler_in_process(world: World):
    """Means of responses sampled by each, over the same prompts: within chance."""
    from r1lab.rollout.hf_sampler import TransformersSampler

    def figures(groups: Any) -> torch.Tensor:  # [responses, 2]
        rows = [(len(c.token_ids), sum(c.logprobs)) for group in groups for c in group]
        return torch.tensor(rows, dtype=torch.float64)

    beside = TransformersSampler(world.base, world.tokenizer, dtype="float32")
    ours = figures(world.sampler.generate(world.prompts, SETTINGS, template=PLAIN))
    theirs = figures(beside.generate(world.prompts, SETTINGS, template=PLAIN))
    scatter = ((ours.var(0) + theirs.var(0)) / len(ours)).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * scatter).all()


def test_weights_travel_and_stale_ones_are_seen(world: World):
    world.sync(0)
    floor = world.kl()
    world.move()
    assert world.kl() > max(1e-3, 10 * floor)
    world.sync(1)
    assert world.kl() < max(1e-6, 2 * floor)
    (group,) = world.sampler.generate(world.prompts[:1], SETTINGS, template=PLAIN)
    assert {completion.weight_version for completion in group} == {1}
    # One version at a time, and whole.
    (run,) = world.server.folder.iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["note", "version-1"]


def test_greedy_and_an_end_of_sequence(world: World):
    settings = SamplingSettings(num_samples=3, temperature=0, max_tokens=64)
    for group in world.sampler.generate(world.prompts[:4], settings, template=PLAIN):
        assert len({completion.token_ids for completion in group}) == 1 and len(group) == 3
        if group[0].finish_reason == "stop":
            assert group[0].token_ids[-1] == world.tokenizer.eos_token_id


def test_half_a_version_is_not_taken(world: World):
    """Weights that are missing are named, and nothing is sampled under what is left."""
    world.sync(2)
    some = [item for item in checkpoint_weights(world.model) if "input_layernorm" not in item[0]]
    with pytest.raises(R1labError, match=r"version 3: \d+ of .*input_layernorm"):
        world.sampler.sync(some, 3)
    world.sampler._folder.write(checkpoint_weights(world.model), 3)  # as the next sync would
    assert world.kl() < 1e-5


def test_another_runs_weights_are_an_error(world: World):
    other = world.connect()
    world.sync(4)
    other.sync(checkpoint_weights(world.model), 0)
    with pytest.raises(R1labError, match="another run has sent it weights"):
        world.kl()
    other.close()
    world.sync(5)


def test_questions_of_a_lost_server_go_to_the_others(world: World):
    """Two addresses of the one server stand for two."""
    two = world.connect(urls=(world.server.url, world.server.url.replace("127.0.0.1", "localhost")))
    two.sync(checkpoint_weights(world.model), 0)
    both = two.generate(world.prompts, SETTINGS, template=PLAIN)
    gone = SamplerServer(f"http://127.0.0.1:{free_port()}", KEY)
    two._servers[1] = gone
    two.sync(checkpoint_weights(world.model), 1)  # to those that are there
    one = two.generate(world.prompts, SETTINGS, template=PLAIN)
    assert {c.weight_version for group in one for c in group} == {1}
    assert any(gone.url in text and "asking again" in text for text in world.said)
    # Who answers makes no difference.
    pairs = [(a, b) for x, y in zip(both, one, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(a.token_ids == b.token_ids for a, b in pairs) > 0.95 * len(pairs)
    two.close()
    world.sync(6)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_run_over_the_server(world: World, tmp_path, monkeypatch, lag: int):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    code = main(
        [
            "train", "quickstart", f"--output={tmp_path / 'run'}", "--sampling.engine=server",
            "--sampling.servers", f"[{world.server.url}]",
            f"--sampling.weights_folder={world.server.folder}", "--model.dtype=float32",
            "--steps=3", "--sampling.questions_per_step=4", "--sampling.group_size=8",
            "--evaluation.num_problems=4", "--evaluation.num_samples=2", "--evaluation.every=2",
            "--evaluation.greedy=false", "--sampling.max_tokens=48", "--problems.check_gold=0",
            "--algorithm.correction=token_truncate", f"--sampling.max_lag={lag}",
            "--tracking.trackers=[]",
        ]
    )  # fmt: skip
    assert code == 0
    run = RunFolder(tmp_path / "run")
    steps = run.metrics()
    assert [line["lag_max"] for line in steps] == [0, lag, lag]
    assert any(line["grad_norm"] > 0 for line in steps)
    measured = [line["sync_kl"] for line in steps if line["sync_kl"] is not None]
    assert measured and max(measured) < 1e-5
    if lag:  # the policy has moved since, and the correction knows
        assert len(measured) == 3 and abs(steps[2]["correction"] - 1) > 1e-6
    assert [line["weight_version"] for line in run.evals()] == [0, 2, 3]
    world.sync(6)


def r1lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, KEY_VARIABLE: KEY, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "r1lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_the_transfer_by_nccl_fits_vllms_interface():
    """All that can be tried of it without two GPUs."""
    from vllm.distributed.weight_transfer.base import ParamMeta, VLLMWeightSyncClient
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    from r1lab.rollout.server import weight_transfer

    source = weight_transfer._source()
    source.describe([("w", torch.ones(2, 3))])
    assert source.metadata() == [ParamMeta("w", torch.float32, (2, 3))]
    assert source.groups() == [["w"]]
    server: Any = None
    assert isinstance(weight_transfer._Client(server, "", 0), VLLMWeightSyncClient)
    info = NCCLTrainerInitInfo(master_address="", master_port=1, world_size=2, rank=0)
    assert info.backend == "nccl"
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="goes from GPU to GPU, and this machine has none"):
            weight_transfer.Transfer(server, "")


# --- wrong worlds ------------------------------------------------------------------------------


def test_without_the_key_nobody_is_answered(world: World):
    import httpx

    for path in ("/r1lab/about", "/v1/models", "/tokenize"):
        assert httpx.get(world.server.url + path).status_code == 401, path
    with pytest.raises(R1labError, match=f"key is wrong or missing .* set {KEY_VARIABLE}"):
        world.connect(key="another")


def test_a_server_with_another_model(world: World, tmp_path):
    import tiny

    folder = tiny.save(tiny.LlamaForCausalLM(tiny.llama_config()), tmp_path)
    with pytest.raises(RecipeError, match=r"serves another model .* there, .* in model.path"):
        world.connect(folder=folder, tokenizer=tiny.tokenizer())
    config = json.loads((world.base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="another vocabulary"):
        world.connect(tokenizer=tiny.tokenizer())
    with pytest.raises(RecipeError, match=r"computes in float32, .* start it with --dtype bfloat"):
        world.connect(dtype="bfloat16")


def test_a_folder_that_the_server_does_not_see(world: World, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="does not see what is written to"):
        world.connect(weights_folder=str(tmp_path))
    with pytest.raises(RecipeError, match="nothing can be written to '/nowhere'"):
        world.connect(weights_folder="/nowhere")
    monkeypatch.setattr("r1lab.rollout.server.weights_folder._SECONDS_TO_APPEAR", 0.1)
    with pytest.raises(R1labError, match="not seen, or not whole"):
        find_version(tmp_path, new_run(), 3)
    with pytest.raises(R1labError, match="not the token of a run"):
        find_version(tmp_path, "../../etc", 3)


def test_a_port_that_is_taken(world: World):
    done = r1lab(
        "serve-sampler", "nano", f"--port={world.server.port}",
        f"--weights-folder={world.server.folder}",
    )  # fmt: skip
    assert done.returncode == 2
    assert f"--port: {world.server.port} is taken" in done.stderr.splitlines()[-1]


def test_a_server_open_to_others_needs_a_key(tmp_path, monkeypatch):
    from r1lab.rollout.server.launch import ServerOptions, check

    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(R1labError, match=f"lets other machines in; set {KEY_VARIABLE}"):
        check(ServerOptions("nano", host="0.0.0.0", weights_folder=str(tmp_path)))
    with pytest.raises(R1labError, match="--weights-folder: 'nowhere'"):
        check(ServerOptions("nano", weights_folder="nowhere"))


@contextmanager
def answering(body: dict[str, Any] | None) -> Iterator[str]:
    """A server of another kind: `body` for /r1lab/about, 404 where it is None."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(body or {}).encode())

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_servers_of_another_kind(world: World):
    with answering(None) as url, pytest.raises(R1labError, match="without r1lab's endpoints"):
        world.connect(urls=(url,))
    old = {"protocol": 0, "r1lab": "0.0.1"}
    with answering(old) as url, pytest.raises(R1labError, match=r"protocol 0 \(r1lab 0.0.1\)"):
        world.connect(urls=(url,))
    with closing(SamplerServer(world.server.url, KEY)) as client:
        facts, _ = client.about()
    with (
        answering(facts.as_dict() | {"vllm": "0.22.1"}) as url,
        pytest.raises(RecipeError, match=r"runs vLLM 0.22.1.* 0.32"),
    ):
        world.connect(urls=(url,))


def test_nobody_there(world: World, monkeypatch):
    monkeypatch.setattr("r1lab.rollout.server.sampler._SECONDS_AT_START", 0.1)
    with pytest.raises(RecipeError, match=r"is not reached .* start it with `r1lab serve-sampler`"):
        world.connect(urls=(f"http://127.0.0.1:{free_port()}",))


# --- the last one: the server dies, and comes back -----------------------------------------------


def test_killed_in_the_middle_it_comes_back_with_the_current_weights(world: World):
    world.sync(7)  # moved weights: not the base's
    before = world.sampler.generate(world.prompts, SETTINGS, template=PLAIN)
    impatient = world.connect(patience=0.1)
    server = world.server.process.pid
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    groups = {}
    stream = world.sampler.as_they_come(world.prompts, SETTINGS, template=PLAIN)
    place, group = next(stream)
    groups[place] = group
    world.server.kill()
    with pytest.raises(InfrastructureError, match=r"for 0.1 seconds \(sampling.server_patience\)"):
        impatient.generate(world.prompts[:1], SETTINGS, template=PLAIN)
    impatient.close()
    assert children
    world.server.begin()  # with the base's weights
    groups.update(stream)
    after = [groups[place] for place in range(len(world.prompts))]
    assert any("asking again" in text for text in world.said)
    assert {c.weight_version for group in after for c in group} == {7}
    assert world.agreement(after) < 1e-5
    pairs = [(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(a.token_ids == b.token_ids for a, b in pairs) > 0.95 * len(pairs)
    # The engine of the dead server went with it.
    assert not any(Path(f"/proc/{child}").exists() for child in children)
