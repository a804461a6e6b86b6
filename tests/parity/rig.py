"""A trainer's model and a real vLLM engine side by side, on peaked weights and long prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from r1lab.config.recipe import ModelSettings
from r1lab.data.corpus import Corpus, Dials
from r1lab.model.load import load_base
from r1lab.model.optim import MasterAdamW
from r1lab.model.weights import checkpoint_weights
from r1lab.prompts import TEMPLATES
from r1lab.rollout.agreement import SyncGuard, both_logprobs, k3_kl
from r1lab.rollout.build import build_sampler
from r1lab.rollout.sampler import Sampler
from r1lab.rollout.source import encode_prompt
from r1lab.rollout.vllm.patches import model_of
from r1lab.types import SamplingSettings

PLAIN = TEMPLATES["plain"]
# Complete solutions only: they draw the base away from its guesses, as reinforcement does.
SOLUTIONS = Dials(drills=0.0, guess=0.0, partial=0.0, selfcheck=0.0, slip_rate=0.0, broken=0.0)


class Rig:
    """A model, a sampler built from the same folder, and a guard."""

    def __init__(
        self, folder: str | Path, prompts: list[tuple[int, ...]] | None = None, **options: Any
    ) -> None:
        settings = ModelSettings(path=str(folder))
        self.model, self.tokenizer, self.folder = load_base(settings)
        self.sampler: Sampler = build_sampler("vllm", self.folder, self.tokenizer, **options)
        self.prompts = prompts or long_prompts(self.tokenizer)
        assert min(len(prompt) for prompt in self.prompts) >= 24
        self._first = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.reset()

    def reset(self) -> None:
        """The weights of the folder again, on both sides, and no floor measured."""
        self.guard = SyncGuard()
        self.model.load_state_dict(self._first)
        self.sync(version=0)

    def sync(self, version: int = 1, stale: dict[str, torch.Tensor] | None = None) -> None:
        """Send the model's weights; `stale` stands in for what does not arrive."""
        weights = dict(checkpoint_weights(self.model)) | (stale or {})
        self.sampler.sync(weights.items(), version)

    def kl(self, model: Any = None, *, seed: int = 1) -> tuple[float, int]:
        """The k3 estimate over fresh samples, and the number of tokens."""
        settings = SamplingSettings(num_samples=8, max_tokens=32, logprobs=True, seed=seed)
        groups = self.sampler.generate(self.prompts, settings, template=PLAIN)
        sampled, trained = both_logprobs(model or self.model, self.prompts, groups)
        return k3_kl(sampled, trained), len(sampled)

    def check(self, model: Any = None, *, seed: int = 1) -> float:
        """Hold fresh samples against the guard, as a step does; may raise RunStopped."""
        kl, num_tokens = self.kl(model, seed=seed)
        self.guard.check(kl, num_tokens, self.sampler.version)
        return kl

    def close(self) -> None:
        self.sampler.close()


class Bench:
    """One rig at a time, as a process holds one engine; kept until another is asked for."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._rig: Rig | None = None

    def rig(self, name: str, build: Callable[[], Rig]) -> Rig:
        """The rig of this name with the folder's weights and a new guard, built if it must be."""
        if self._rig is None or name != self._name:
            self.clear()
            self._name, self._rig = name, build()
        else:
            self._rig.reset()
        return self._rig

    def clear(self) -> None:
        """Close the rig, for a test that builds an engine of its own."""
        if self._rig is not None:
            self._rig.close()
        self._rig = None


@torch.inference_mode()
def head_is_a_copy(sampler: Any) -> bool:
    """Whether vLLM computes the head from a packed copy, as on some CPUs in some precisions.

    Asked by doing: a head whose weights have changed sign computes what it did before.
    """
    head = model_of(sampler.llm).lm_head
    probe = torch.ones(1, head.weight.shape[1], dtype=head.weight.dtype)
    before = head.cpu_linear(probe, head.weight, None).clone()
    head.weight.neg_()
    after = head.cpu_linear(probe, head.weight, None).clone()
    head.weight.neg_()
    return torch.equal(before, after)


def long_prompts(tokenizer: Any, count: int = 40) -> list[tuple[int, ...]]:
    """Prompts of the problem streams, of 24 tokens and more."""
    encoded = (encode_prompt(tokenizer, document.prompt) for document in Corpus(SOLUTIONS, seed=7))
    return list(itertools.islice((prompt for prompt in encoded if len(prompt) >= 24), count))


def take_updates(model: Any, tokenizer: Any, steps: int, rate: float) -> None:
    """Real AdamW updates on solutions, in place."""
    optimizer = MasterAdamW(list(model.parameters()), learning_rate=rate, betas=(0.9, 0.95))
    documents = iter(Corpus(SOLUTIONS, seed=1))
    for _ in range(steps):
        rows = [
            torch.tensor(tokenizer(f"{d.prompt} {d.response} <eos>")["input_ids"])
            for d in itertools.islice(documents, 24)
        ]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss.backward()
        optimizer.step(rate, 1.0)
