"""The logits of a model from its last hidden states, as the model's own forward computes them.

Between hidden states and logits many architectures do more than one matrix product: Gemma 2 caps
the logits, Cohere and HyperCLOVA X multiply them, Granite divides them by a setting of the same
name, MiniCPM3 divides the hidden states, others cut off the entries that pad a vocabulary. A table
of these would be wrong for the next architecture. So the model's own `forward` runs here, and only
its decoder is replaced: by a function that returns the hidden states it was given.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class OutputHead:
    """What the transformers model `base` does after its decoder: [m, H] states to [m, V] logits.

    `output` is what the decoder returned; its other fields (a router's logits, say) are passed on.
    """

    base: Any
    output: Any

    @property
    def weight(self) -> Tensor:
        """The output embedding's matrix [V, H]."""
        weight: Tensor = self.base.get_output_embeddings().weight
        return weight

    def __call__(self, states: Tensor) -> Tensor:
        """Logits of some hidden states; with gradient, and again in a recomputed backward pass."""
        given = copy.copy(self.output)
        given.last_hidden_state = states[None]  # a batch of one sequence
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        decoder = self.base.get_decoder()
        own = vars(decoder).get("forward")  # None unless a library has put its own there
        decoder.forward = lambda *inputs, **options: given
        try:
            logits: Tensor = self.base.forward(input_ids=ids, use_cache=False).logits[0]
        finally:
            del decoder.forward
            if own is not None:
                decoder.forward = own
        return logits
