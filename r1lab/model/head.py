"""Compute a model's logits from its last hidden states, exactly as its own forward does.

Between hidden states and logits many architectures do more than one matrix product: Gemma 2 caps
the logits, Cohere and HyperCLOVA X multiply them, Granite divides them by a setting of the same
name, MiniCPM3 divides the hidden states, others drop the entries that pad a vocabulary. A table of
these would be wrong for the next architecture. So the model's own `forward` runs here, with its
decoder replaced by a function that returns the given hidden states.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class OutputHead:
    """The part of the transformers model `base` after its decoder: [m, H] states to [m, V] logits.

    `output` is the decoder's result; its other fields (such as router logits) are passed through.
    """

    base: Any
    output: Any

    @property
    def weight(self) -> Tensor:
        """Matrix of the output embedding [V, H]."""
        weight: Tensor = self.base.get_output_embeddings().weight
        return weight

    def __call__(self, states: Tensor) -> Tensor:
        """Return logits, with gradient; may run again in a recomputed backward pass."""
        given = copy.copy(self.output)
        given.last_hidden_state = states[None]  # a batch of one sequence
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        decoder = self.base.get_decoder()
        own = vars(decoder).get("forward")  # None unless a library has replaced it
        decoder.forward = lambda *inputs, **options: given
        try:
            logits: Tensor = self.base.forward(input_ids=ids, use_cache=False).logits[0]
        finally:
            del decoder.forward
            if own is not None:
                decoder.forward = own
        return logits
