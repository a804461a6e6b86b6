"""What a forward pass keeps for its backward, by token: the tensors that autograd saves.

Counted from transformers' modules as the trainer runs them (no recomputation but for the head's
chunks), and held against torch's saved-tensor hooks by a test. Attention is taken as a fused kernel
that keeps no scores; torch's plain form, which a CPU falls back to where a head's values and keys
differ in size, keeps more.

Deviations: the experts' indices and rotary tables are left out (well under a percent).
"""

from __future__ import annotations

from r1lab.config.recipe import LoraSettings
from r1lab.estimate.shape import ModelShape

_FLOAT32 = 4
# Bytes of a routed token's indices and weight, and of a norm's scale or an attention's sum a head.
_ROUTING, _SCALAR = 40, 4


def saved_bytes_per_token(shape: ModelShape, bytes_each: int, lora: LoraSettings | None) -> float:
    """Bytes that a token of a micro-batch keeps until its backward, in all layers.

    `bytes_each` is the working precision's; `lora` says which weights are adapted (full weights
    are trained where it is None). What adapters copy a layer at a time is `merged_expert_bytes`.
    """
    parts = _Saved(shape, bytes_each, lora)
    mixed = shape.num_layers - shape.num_dense
    total = shape.num_layers * (2 * parts.norm(shape.hidden) + parts.attention())
    total += shape.num_dense * parts.feed_forward(shape.dense_width)
    if mixed:
        total += mixed * parts.mixture()
    return total + parts.norm(shape.hidden)


def merged_expert_bytes(shape: ModelShape, bytes_each: int, lora: LoraSettings | None) -> float:
    """Adapted fused experts are added to a copy of all of them, kept until the backward."""
    if lora is None or not lora.experts:
        return 0.0
    return float(shape.routed_parameters * bytes_each)


class _Saved:
    """Bytes a token, of one part of a layer."""

    def __init__(self, shape: ModelShape, bytes_each: int, lora: LoraSettings | None) -> None:
        self.shape, self.b, self.lora = shape, bytes_each, lora

    def norm(self, width: int) -> float:
        """Its float32 input, and where its weight is trained what that is multiplied with."""
        return _FLOAT32 * width + (self.b * width if self.lora is None else 0) + _SCALAR

    def inputs(self, width: int, num_linears: int, adapted: bool) -> float:
        """The common input of linear layers: kept where they are trained or adapted.

        Adapters work in float32: under bfloat16 each makes a copy of its own.
        """
        if self.lora is None:
            return float(self.b * width)
        if not adapted:
            return 0.0
        copies = 1 if self.b == _FLOAT32 else num_linears
        return _FLOAT32 * (copies * width + num_linears * self.lora.rank)

    def attention(self) -> float:
        """Projections' inputs, queries, keys, values, and the output."""
        shape, b = self.shape, self.b
        adapted = self.lora is None or self.lora.attention
        heads = shape.num_heads
        total: float = _SCALAR * heads + b * heads * (
            shape.key_dim + shape.value_dim
        )  # queries, output
        output = self.inputs(heads * shape.value_dim, 1, adapted)
        if shape.latent is None:
            kv = shape.num_kv_heads
            total += b * kv * (shape.key_dim + shape.value_dim)
            total += self.inputs(shape.hidden, 3, adapted)
            if shape.head_norms:
                total += self.norm((heads + kv) * shape.key_dim)
            # The kernel's output is the projection's input.
            return total + (output if self.lora is not None and b != _FLOAT32 else 0)
        latent = shape.latent
        total += b * heads * (shape.key_dim + latent.nope + shape.value_dim)  # keys; keys, values
        total += self.inputs(shape.hidden, 2, adapted) + output
        for rank in (latent.rank, latent.query_rank):
            if rank is not None:
                total += self.norm(rank) + self.inputs(rank, 1, adapted)
        return total

    def feed_forward(self, width: int) -> float:
        """Gate, its activation, up, and their product where `down` is trained or adapted."""
        adapted = self.lora is None or self.lora.dense
        total = 3 * self.b * width + self.inputs(self.shape.hidden, 2, adapted)
        return total + self.inputs(width, 1, adapted)

    def mixture(self) -> float:
        """Router, the token's experts, and the shared ones."""
        shape, b, mix = self.shape, self.b, self.shape.mixture
        assert mix is not None
        trains = self.lora is None or self.lora.experts
        expert = b * ((3 if trains else 2) * shape.hidden + (4 if trains else 3) * mix.width)
        total = mix.top_k * (expert + _ROUTING) + (_FLOAT32 + 1) * mix.num_experts
        if self.lora is None and shape.latent is not None:
            total += _FLOAT32 * shape.hidden  # V3's router multiplies in float32
        if mix.shared_width:
            return total + self.feed_forward(mix.shared_width)
        return total + (b * shape.hidden if self.lora is None else 0)
