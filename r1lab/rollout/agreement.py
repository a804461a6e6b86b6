"""Check weight sync: do sampler and trainer compute the same probabilities?

Both compute a log-prob for each sampled token. With r = p_trainer / p_sampler and tokens drawn from
the sampler, k3 = r - 1 - log r is an unbiased estimate of KL(sampler || trainer) that is never
negative (Schulman 2020, "Approximating KL divergence"). With equal weights only rounding remains,
the baseline; with different weights the estimate is larger by orders of magnitude.

Deviations from the plain mean of k3:
1. A token's share is capped at `TOKEN_CAP` nats. Rounding occasionally sends a token to another
   expert, which changes its log-prob by up to 3: k3 is then 21, and that one token of 20,000 would
   look like a fault. On the shipped base the plain mean over 6,000 tokens varies from 6e-5 to 3e-4
   with equal weights, the capped one from 6e-5 to 9e-5. Real faults affect many tokens: a stale
   head after 15 updates gives 1.8e-3. Below about 1e-3 the two estimates agree; above it the capped
   mean reads low, at most `TOKEN_CAP`. `k3_kl(..., cap=math.inf)` is the plain one.
2. The bound allows for chance if tokens are few (`SyncGuard.bound`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from r1lab.types import Completion, Prompts, RunStopped

TOKEN_CAP = 0.1  # nats; reached when the probabilities differ by a factor of 1.5
BOUND_OVER_FLOOR = 5.0
# Probability that a single check of a healthy run exceeds the bound by chance.
CHANCE = 1e-5
# Healthy models stay below 1e-3 in bfloat16; a wrong kernel or another base is far above 1e-2.
HIGHEST_FLOOR = 1e-2
# In float32 they stay below 1e-9 on a CPU. GPU kernels may multiply float32 with 10 bits (TF32).
_HIGHEST_FLOOR_FLOAT32 = {"cpu": 1e-6, "cuda": 1e-3}


def k3_sum(logp_sampler: Tensor, logp_trainer: Tensor, cap: float = TOKEN_CAP) -> Tensor:
    """Return [sum of k3 over the tokens, each capped; number of tokens], float64, additive.

    Both arguments [M]: natural log-probs of the same sampled tokens, at the same temperature.
    """
    gap = (logp_trainer.double() - logp_sampler.double()).detach()
    k3 = torch.expm1(gap) - gap
    # A NaN log-prob is a fault too, and must not pass the bound.
    k3 = torch.nan_to_num(k3, nan=torch.inf, posinf=torch.inf).clamp(max=cap)
    return torch.stack([k3.sum(), k3.new_tensor(float(k3.numel()))])


def k3_kl(logp_sampler: Tensor, logp_trainer: Tensor, cap: float = TOKEN_CAP) -> float:
    """Return the mean of `k3_sum`: KL(sampler || trainer) in nats per token."""
    total, num_tokens = k3_sum(logp_sampler, logp_trainer, cap).tolist()
    return total / max(num_tokens, 1.0)


def highest_floor(dtype: str, device: str) -> float:
    """Return the largest k3 estimate that rounding explains, by precision and device type."""
    return _HIGHEST_FLOOR_FLOAT32.get(device, 1e-3) if dtype == "float32" else HIGHEST_FLOOR


def advice(engine: str, dtype: str) -> str:
    """Return what a user can do if sampler and trainer disagree, except what is already set."""
    ways = []
    if engine != "transformers":
        ways += ["run scripts/measure_sync.py on this base", "try sampling.engine: transformers"]
    if dtype != "float32":
        ways.append("try model.dtype: float32")
    return ", or ".join(ways) or "use another base in model.path"


@torch.no_grad()
def both_logprobs(
    model: Any,
    prompts: Prompts,
    groups: Sequence[Sequence[Completion]],
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the sampler's and the model's log-probs [M] of all sampled tokens of `groups`.

    For measurements and tests: `model` is any causal LM of transformers, and the forward passes are
    plain ones, padded on the right, independent of the trainer's.
    """
    rows = [
        (prompt, completion)
        for prompt, group in zip(prompts, groups, strict=True)
        for completion in group
    ]
    rows.sort(key=lambda row: len(row[0]) + len(row[1].token_ids))
    sampler, trainer = [], []
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(prompt + completion.token_ids) for prompt, completion in batch],
            batch_first=True,
        ).to(model.device)  # [B, T]
        logits = model(input_ids=ids).logits[:, :-1].float() / temperature
        logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].cpu()
        for row, (prompt, completion) in zip(logprobs, batch, strict=True):
            first = len(prompt) - 1
            trainer.append(row[first : first + len(completion.token_ids)])
            sampler.append(torch.tensor(completion.logprobs))
    return torch.cat(sampler), torch.cat(trainer)


class SyncGuard:
    """Tracks the baseline (`floor`) and stops a run whose sampler no longer matches its trainer.

    The first check measures the baseline (weights have just been synced then); later ones are
    compared with the bound. `max_kl`, if given, is the only bound. `highest_floor` is the largest
    value that the first check accepts, `advice` the fix in its message. `allow_chance` widens the
    bound if tokens are few: see `bound`. Without it, for models whose rounding is far below
    `highest_floor` in every token, `highest_floor` is also the lowest bound.
    """

    def __init__(
        self,
        max_kl: float | None = None,
        *,
        highest_floor: float = HIGHEST_FLOOR,
        allow_chance: bool = True,
        advice: str = advice("vllm", "bfloat16"),
    ) -> None:
        self.max_kl, self.highest_floor, self.advice = max_kl, highest_floor, advice
        self.allow_chance = allow_chance
        self.floor: float | None = None
        self.floor_tokens = 0

    def bound(self, num_tokens: int) -> float:
        """Return the limit of the k3 estimate over `num_tokens`: five baselines, or more if few.

        The mean of n independent shares in [0, TOKEN_CAP] whose expectation is the baseline f
        exceeds f + sqrt(2 f c l / n) + c l / (3 n), l = log(1 / CHANCE), with probability at most
        CHANCE (Bernstein's inequality; a variance of at most f c). This is the resolution of a
        check: with 20,000 tokens and a baseline of 4e-5 the bound is 2e-4 (five baselines), with
        1,000 tokens 7e-4.
        """
        if self.max_kl is not None:
            return self.max_kl
        if not self.allow_chance:
            return max(BOUND_OVER_FLOOR * (self.floor or 0.0), self.highest_floor)
        if self.floor is None:
            return self.highest_floor + _chance(self.highest_floor, num_tokens)
        # The baseline is itself an estimate over a limited number of tokens.
        reliable = min(num_tokens, self.floor_tokens)
        return max(BOUND_OVER_FLOOR * self.floor, self.floor + _chance(self.floor, reliable))

    def holds(self, kl: float | None, num_tokens: int) -> bool:
        """Return whether an estimate is within the bound; True without tokens.

        The first estimate measures the baseline.
        """
        if kl is None or num_tokens == 0:
            return True
        if not kl <= self.bound(num_tokens):  # written so that a NaN fails too
            return False
        if self.floor is None:
            self.floor, self.floor_tokens = kl, num_tokens
        return True

    def check(self, kl: float | None, num_tokens: int, version: int) -> None:
        """Compare one step's estimate with the bound; None (no tokens) passes.

        Raises RunStopped, which names the estimate, the bound and what to check.
        """
        if not self.holds(kl, num_tokens):
            assert kl is not None
            raise RunStopped(self._message(kl, self.bound(num_tokens), num_tokens, version))

    def _message(self, kl: float, bound: float, num_tokens: int, version: int) -> str:
        if self.max_kl is not None:
            source = "algorithm.max_sync_kl"
        elif self.floor is None:
            source = "the highest plausible floor"
        else:
            source = f"from a baseline of {self.floor:.2g} over {self.floor_tokens} tokens"
        return (
            f"sampler and trainer disagree at weight version {version}: KL {kl:.3g} over "
            f"{num_tokens} sampled tokens, the bound is {bound:.2g} ({source}); the sampler "
            f"computes another model than the trainer; {self.advice}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the measured baseline."""
        return {"floor": self.floor, "floor_tokens": self.floor_tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.floor, self.floor_tokens = state["floor"], state["floor_tokens"]


def _chance(expected: float, num_tokens: int) -> float:
    """Return how far chance can raise a mean of `num_tokens` capped shares above its mean."""
    odds = TOKEN_CAP * math.log(1 / CHANCE) / max(num_tokens, 1)
    return math.sqrt(2 * expected * odds) + odds / 3
