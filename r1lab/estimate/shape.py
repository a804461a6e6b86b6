"""The shape of a model, from the values of its config.json: parameters, operations, cache.

DeepSeek-V3's form (arXiv 2412.19437, section 2.1: latent attention, mixture of experts with shared
ones), Llama's, and Llama's with a mixture in place of its dense layers (Mixtral, Qwen-MoE). The
counts equal those of transformers' modules on the meta device, which a test compares.

Legend beside that of r1lab.types: H width of the model, F of a feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1lab.hints import nearest
from r1lab.types import RecipeError

# Kinds of model whose layers are Llama's but for what `shape_of` reads besides.
_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "mixtral")
FAMILIES = ("deepseek_v3", "deepseek_v2", *_LLAMA_LIKE)


@dataclass(frozen=True, slots=True)
class Latent:
    """Latent attention (MLA): the ranks and head sizes of arXiv 2405.04434, section 2.1."""

    query_rank: int | None  # None: queries are projected at once
    rank: int
    nope: int
    rope: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """Routed experts of a layer, and the dense part that every token goes through beside them."""

    num_experts: int
    top_k: int
    width: int
    shared_width: int = 0
    shared_gate: bool = False


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What is known of a model without its weights.

    `key_dim` and `value_dim` are of one head; `num_dense` layers come first (all, without a
    mixture). Biases are counted where `attention_bias` has them: on queries, keys and values.
    """

    kind: str
    hidden: int
    num_layers: int
    num_dense: int
    dense_width: int
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    vocabulary: int
    tied: bool
    latent: Latent | None = None
    mixture: Mixture | None = None
    attention_bias: bool = False
    output_bias: bool = False
    head_norms: bool = False

    # --- parameters ----------------------------------------------------------------------------

    @property
    def attention_linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each linear layer of one attention."""
        h, heads = self.hidden, self.num_heads
        output = (heads * self.value_dim, h)
        if self.latent is None:
            kv = self.num_kv_heads
            return (
                (h, heads * self.key_dim), (h, kv * self.key_dim), (h, kv * self.value_dim), output,
            )  # fmt: skip
        latent = self.latent
        query = heads * self.key_dim
        queries = (
            ((h, query),)
            if latent.query_rank is None
            else ((h, latent.query_rank), (latent.query_rank, query))
        )
        keys = heads * (latent.nope + self.value_dim)
        return (*queries, (h, latent.rank + latent.rope), (latent.rank, keys), output)

    @property
    def attention_parameters(self) -> int:
        """Of one layer, without its input norm."""
        count = _sum_of_products(self.attention_linears)
        if self.latent is not None:
            return count + self.latent.rank + (self.latent.query_rank or 0)
        if self.attention_bias:
            count += sum(out for _, out in self.attention_linears[:3])
        if self.output_bias:
            count += self.hidden
        return count + (2 * self.key_dim if self.head_norms else 0)

    @property
    def expert_parameters(self) -> int:
        """Of one routed expert; 0 without a mixture."""
        return 3 * self.hidden * self.mixture.width if self.mixture else 0

    def layer_parameters(self, *, is_dense: bool, active: bool = False) -> int:
        """Of one layer; `active`: of what a token goes through."""
        count = self.attention_parameters + 2 * self.hidden
        if is_dense:
            return count + 3 * self.hidden * self.dense_width
        assert self.mixture is not None
        mix = self.mixture
        count += 3 * self.hidden * mix.shared_width + (self.hidden if mix.shared_gate else 0)
        experts = mix.top_k if active else mix.num_experts
        return count + mix.num_experts * self.hidden + experts * self.expert_parameters

    def _all_layers(self, active: bool) -> int:
        mixed = self.num_layers - self.num_dense
        count = self.num_dense * self.layer_parameters(is_dense=True)
        if mixed:
            count += mixed * self.layer_parameters(is_dense=False, active=active)
        return count

    @property
    def embedding_parameters(self) -> int:
        """Of the table of tokens, which is the head too where they are tied."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        tables = 1 if self.tied else 2
        return self._all_layers(active=False) + self.hidden + tables * self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Those that a token is multiplied with: its experts and the head, no look-up of a row."""
        return self._all_layers(active=True) + self.hidden + self.embedding_parameters

    @property
    def routed_parameters(self) -> int:
        """All routed experts of all layers."""
        if self.mixture is None:
            return 0
        mixed = self.num_layers - self.num_dense
        return mixed * self.mixture.num_experts * self.expert_parameters

    def lora_parameters(self, rank: int, *, attention: bool, dense: bool, experts: bool) -> int:
        """Of adapters as `r1lab.model.adapters` places them: rank x (in + out) of each weight."""
        count = 0
        if attention:
            count += self.num_layers * sum(a + b for a, b in self.attention_linears)
        mixed = self.num_layers - self.num_dense
        if dense:
            count += self.num_dense * 3 * (self.hidden + self.dense_width)
        if self.mixture is not None:
            mix = self.mixture
            if dense and mix.shared_width:
                count += mixed * 3 * (self.hidden + mix.shared_width)
            if dense and mix.shared_gate:
                count += mixed * (self.hidden + 1)
            if experts:  # two fused weights an expert: gate and up together, and down
                each = (self.hidden + 2 * mix.width) + (self.hidden + mix.width)
                count += mixed * mix.num_experts * each
        return rank * count

    # --- operations and cache ------------------------------------------------------------------

    def attention_operations(self, context: float) -> float:
        """Of one token's forward over `context` earlier ones, in all layers: scores and values."""
        return 2.0 * self.num_layers * self.num_heads * (self.key_dim + self.value_dim) * context

    def forward_operations(self, num_tokens: float, mean_context: float) -> float:
        """Of a forward pass (arXiv 2001.08361, section 2.1): 2 a parameter, and the attention."""
        per_token = 2.0 * self.active_parameters + self.attention_operations(mean_context)
        return num_tokens * per_token

    def cache_numbers(self, *, decompressed: bool = False) -> int:
        """Numbers that a token keeps in the cache; `decompressed`: MLA as ordinary attention.

        vLLM then pads the values of a head to the size of its keys.
        """
        if self.latent is not None and not decompressed:
            return self.num_layers * (self.latent.rank + self.latent.rope)
        if self.latent is not None:
            return self.num_layers * self.num_heads * 2 * self.key_dim
        return self.num_layers * self.num_kv_heads * (self.key_dim + self.value_dim)

    def touched_parameters(self, num_tokens: float) -> float:
        """Weights that one forward over so many tokens reads: of routed experts those chosen.

        Choices are taken as even and independent: an expert stays out with (1 - k / E)^tokens.
        """
        rest = self.parameters - self.routed_parameters
        if not self.tied:
            rest -= self.embedding_parameters  # rows are looked up
        if self.mixture is None:
            return float(rest)
        out: float = (1 - self.mixture.top_k / self.mixture.num_experts) ** num_tokens
        return rest + self.routed_parameters * (1 - out)


def shape_of(values: Mapping[str, Any], path: str) -> ModelShape:
    """The shape behind the values of a config.json; `path` names the model in a RecipeError."""
    kind = str(values.get("model_type"))
    if kind not in FAMILIES:
        raise RecipeError(
            f"model.path: {path!r} is a {kind!r}, and an estimate knows {', '.join(FAMILIES)}"
            f"{nearest(kind, FAMILIES)}"
        )
    try:
        return _read_v3(kind, values) if kind.startswith("deepseek") else _read_llama(kind, values)
    except KeyError as error:
        raise RecipeError(
            f"model.path: {path!r}: its config.json has no {error.args[0]}, which every {kind} has"
        ) from None


def _read_v3(kind: str, values: Mapping[str, Any]) -> ModelShape:
    width = values["moe_intermediate_size"]
    nope, rope = values["qk_nope_head_dim"], values["qk_rope_head_dim"]
    layers, dense = values["num_hidden_layers"], values["first_k_dense_replace"]
    return ModelShape(
        kind=kind,
        hidden=values["hidden_size"],
        num_layers=layers,
        num_dense=min(dense, layers),
        dense_width=values["intermediate_size"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=values["num_attention_heads"],
        key_dim=nope + rope,
        value_dim=values["v_head_dim"],
        vocabulary=values["vocab_size"],
        tied=bool(values.get("tie_word_embeddings", False)),
        latent=Latent(values.get("q_lora_rank"), values["kv_lora_rank"], nope, rope),
        mixture=Mixture(
            values["n_routed_experts"], values["num_experts_per_tok"], width,
            width * (values.get("n_shared_experts") or 0),
        ),
    )  # fmt: skip


def _read_llama(kind: str, values: Mapping[str, Any]) -> ModelShape:
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    size = values.get("head_dim") or hidden // heads
    layers = values["num_hidden_layers"]
    mixture = _read_mixture(kind, values)
    dense = layers
    if mixture is not None:
        only = values.get("mlp_only_layers") or []
        if only or values.get("decoder_sparse_step", 1) != 1:
            raise RecipeError(f"model.path: a {kind} with dense layers in between is not estimated")
        dense = 0
    return ModelShape(
        kind=kind,
        hidden=hidden,
        num_layers=layers,
        num_dense=dense,
        dense_width=values["intermediate_size"],
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        key_dim=size,
        value_dim=size,
        vocabulary=values["vocab_size"],
        # Llama's classes leave them apart by default, Qwen's and Mistral's too.
        tied=bool(values.get("tie_word_embeddings", False)),
        mixture=mixture,
        # Qwen2 has biases and no entry for them.
        attention_bias=bool(values.get("attention_bias", values.get("qkv_bias", "qwen2" in kind))),
        output_bias=bool(values.get("attention_bias", False)) and "qwen2" not in kind,
        head_norms=kind.startswith("qwen3"),
    )


def _read_mixture(kind: str, values: Mapping[str, Any]) -> Mixture | None:
    if kind == "mixtral":
        return Mixture(
            values["num_local_experts"], values["num_experts_per_tok"], values["intermediate_size"]
        )
    if not kind.endswith("_moe"):
        return None
    return Mixture(
        values.get("num_experts") or values["num_local_experts"],
        values["num_experts_per_tok"],
        values["moe_intermediate_size"],
        values.get("shared_expert_intermediate_size", 0) if kind == "qwen2_moe" else 0,
        shared_gate=kind == "qwen2_moe",
    )


def _sum_of_products(linears: tuple[tuple[int, int], ...]) -> int:
    return sum(a * b for a, b in linears)
