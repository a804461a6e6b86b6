"""Stream of requests for an in-process engine, and the engine's random stream.

The engine advances only when stepped, by one token of every running request, and accepts requests
in the order in which they were added. The order in which requests finish therefore depends only on
the sampled tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from r1lab.rollout.vllm import patches as mends
from r1lab.types import Completion

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

_RandomState = tuple[torch.Tensor, torch.Tensor | None]


class RandomStream:
    """A random stream that vLLM draws from while it is `lent`.

    vLLM draws from torch's default generators, which are the trainer's. (A per-request seed would
    cost 15%, and crashes on the CPU if a prompt is prefilled in more than one chunk.)
    """

    def __init__(self, seed: int) -> None:
        """Start in the state after `torch.manual_seed(seed)`, without changing torch's state."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._state = _random_state()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Set torch's default generators to this stream for the context, and advance it."""
        with torch.random.fork_rng():
            torch.set_rng_state(self._state[0])
            if self._state[1] is not None:
                torch.cuda.set_rng_state(self._state[1])
            yield
            self._state = _random_state()


class VllmStream:
    """A `GroupStream` on an engine that nothing else uses meanwhile."""

    def __init__(
        self,
        engine: Callable[[], LLM],
        params: SamplingParams,
        random: RandomStream,
        as_group: Callable[[RequestOutput], tuple[Completion, ...]],
    ) -> None:
        """`as_group` builds the completions of one prompt from the engine's output for it.

        `engine` is called each time, so that a stream does not keep a closed engine alive.
        """
        self._engine, self._params, self._random, self._as_group = engine, params, random, as_group
        self._num_added = 0
        self._numbers: dict[str, int] = {}  # prompts in flight, by the engine's request id

    def add(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """See `GroupStream.add`."""
        from vllm import TokensPrompt

        names = self._engine().enqueue(
            [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
            self._params,
            use_tqdm=False,
        )
        for name in names:
            # vLLM appends random letters to request ids, but returns the original ids.
            self._numbers[name.partition("-")[0]] = self._num_added
            self._num_added += 1

    def wait(self) -> list[tuple[int, tuple[Completion, ...]]]:
        """See `GroupStream.wait`."""
        from vllm import RequestOutput

        done: list[RequestOutput] = []
        with mends.run_uncompiled(), self._random.lent():
            while self._numbers and not done:
                done = [
                    output
                    for output in self._engine().llm_engine.step()
                    if isinstance(output, RequestOutput) and output.finished
                ]
        numbered = {self._numbers.pop(output.request_id): output for output in done}
        return [(number, self._as_group(numbered[number])) for number in sorted(numbered)]

    def drop(self) -> None:
        """Abort the requests in flight."""
        if self._numbers:
            self._engine().llm_engine.abort_request([*self._numbers])
        self._numbers = {}


def _random_state() -> _RandomState:
    """Return torch's default generators: the CPU's and, if present, the current GPU's."""
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.get_rng_state(), gpu
