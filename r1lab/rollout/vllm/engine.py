"""vLLM in the trainer's own process: the default sampler.

In process it starts in seconds, weights are passed as tensors, and every process of a launch has
its own engine. `patches` fixes the errors of vLLM's CPU build.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from uuid import uuid4

import torch

from r1lab.model.files import is_v3_style
from r1lab.model.load import end_tokens, load_config
from r1lab.model.replay import routed_layers
from r1lab.precision import settled
from r1lab.prompts import Template
from r1lab.rollout.sampler import as_completion
from r1lab.rollout.vllm import patches as mends
from r1lab.rollout.vllm.build_info import MLA_KERNEL_SHAPE, fits_mla_kernel
from r1lab.rollout.vllm.reload import load_weights
from r1lab.rollout.vllm.start import explain_start_errors
from r1lab.rollout.vllm.stream import RandomStream, VllmStream
from r1lab.types import Completion, FinishReason, R1labError, RecipeError, SamplingSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase
    from vllm import RequestOutput, SamplingParams
    from vllm.outputs import CompletionOutput

Attention = Literal["auto", "mla", "decompressed"]
# On CPUs with AMX, vLLM 0.32 prefers a backend that discards kv_b_proj's weight after packing, so
# that weights cannot be loaded into it again. The reference backend keeps the weight.
CPU_MLA_BACKEND = "CPU_MLA"


class VllmSampler:
    """A `Sampler` over vLLM in process.

    `model_folder` is loaded first, as version 0. `attention` selects vLLM's latent attention (MLA)
    kernel or ordinary attention on decompressed heads: `auto` uses the kernel if it supports the
    model's shape. `kv_cache_gib` applies on the CPU, `gpu_memory_utilization` on a GPU. `seed`
    starts the random stream for unseeded calls.
    """

    _is_open: ClassVar[bool] = False

    def __init__(
        self,
        model_folder: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        kv_cache_gib: float = 1.0,
        gpu_memory_utilization: float = 0.45,
        max_num_seqs: int = 512,
        seed: int = 0,
        attention: Attention = "auto",
        routed_experts: bool = False,
    ) -> None:
        if VllmSampler._is_open:
            # Engines would share process groups and environment variables; closing one breaks all.
            raise RuntimeError(
                "a process holds one vLLM engine at a time: close the open one first"
            )
        config = load_config(Path(model_folder), str(model_folder))
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        uses_mla_kernel = choose_attention(config, attention)
        with mends.process_state_kept(), mends.quiet_start():
            from vllm import LLM, envs
            from vllm.platforms import current_platform

            envs.disable_envs_cache()  # an earlier engine of this process may have cached them
            mends.patch_before_build()
            on_cpu = current_platform.is_cpu()
            options: dict[str, Any] = {}
            if routed_experts:
                _check_routing(config, on_cpu)
                options["enable_return_routed_experts"] = True
            if on_cpu:
                options["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
                if uses_mla_kernel:
                    options["attention_config"] = {"backend": CPU_MLA_BACKEND}
            else:
                options["gpu_memory_utilization"] = gpu_memory_utilization
            if _launched():
                options["distributed_executor_backend"] = "external_launcher"
            explained = explain_start_errors(
                str(model_folder),
                on_cpu=on_cpu,
                kv_cache_gib=kv_cache_gib,
                gpu_memory_utilization=gpu_memory_utilization,
                max_model_len=max_model_len,
            )
            with explained:
                self.llm = LLM(
                    str(model_folder),
                    skip_tokenizer_init=True,
                    dtype=settled(dtype),
                    max_model_len=max_model_len,
                    max_num_seqs=max_num_seqs,
                    # Log-probs of the sampled distribution: after temperature and top-p.
                    logprobs_mode="processed_logprobs",
                    enforce_eager=on_cpu,
                    seed=seed,
                    **options,
                )
        VllmSampler._is_open = True
        # vLLM numbers all layers, including dense ones.
        self._routed_layers = routed_layers(config) if routed_experts else None
        self.version = 0
        self.max_model_len: int = self.llm.model_config.max_model_len
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens(tokenizer, Path(model_folder))
        self._random = RandomStream(seed)
        self._stream: VllmStream | None = None

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: SamplingSettings,
        *,
        template: Template,
    ) -> list[tuple[Completion, ...]]:
        """See `Sampler.generate`."""
        if not prompts:
            return []
        stream = self.stream(settings, template=template)
        stream.add(prompts)
        groups: dict[int, tuple[Completion, ...]] = {}
        while done := stream.wait():
            groups |= done
        return [groups[number] for number in range(len(prompts))]

    def stream(self, settings: SamplingSettings, *, template: Template) -> VllmStream:
        """See `Streaming.stream`."""
        self._end_stream()
        # A prefix cache left by an earlier call would change the shape of this call's prefill, and
        # with it the last bits of its log-probs; so each call starts with an empty cache.
        mends.drop_prefix_cache(self.llm)
        self._stream = VllmStream(
            lambda: self.llm,
            self._params(settings),
            self._random if settings.seed is None else RandomStream(settings.seed),
            lambda output: self._group(output, settings, template),
        )
        return self._stream

    def _end_stream(self) -> None:
        """Drop what an earlier call left in the engine."""
        if self._stream is not None:
            self._stream.drop()
            self._stream = None

    def tokens(self, prompt: Sequence[int], settings: SamplingSettings) -> Generator[int]:
        """See `TokenSampler.tokens`."""
        from vllm import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        self._end_stream()
        params = self._params(settings)
        params.output_kind = RequestOutputKind.DELTA
        random = self._random if settings.seed is None else RandomStream(settings.seed)
        engine, request = self.llm.llm_engine, uuid4().hex
        engine.add_request(request, TokensPrompt(prompt_token_ids=list(prompt)), params)
        try:
            while engine.has_unfinished_requests():
                with mends.run_uncompiled(), random.lent():
                    outputs = engine.step()
                for output in outputs:
                    yield from output.outputs[0].token_ids
        finally:
            engine.abort_request([request])

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """See `Sampler.sync`; raises R1labError if weights are missing or do not fit."""
        self._end_stream()
        load_weights(mends.model_runner_of(self.llm), weights, version)
        mends.drop_prefix_cache(self.llm)
        self.version = version

    def close(self) -> None:
        """See `Sampler.close`."""
        if not hasattr(self, "llm"):
            return
        try:
            mends.shut_down(self.llm, keep_process_group=_launched())
        finally:  # even if the engine is already dead, so that another one can be built
            del self.llm
            VllmSampler._is_open = False

    def _params(self, settings: SamplingSettings) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = settings.temperature == 0
        return SamplingParams(
            n=1 if greedy else settings.num_samples,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            stop_token_ids=list(self._end_tokens),
            logprobs=0 if settings.logprobs else None,  # 0: only of the sampled token
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _group(
        self, output: RequestOutput, settings: SamplingSettings, template: Template
    ) -> tuple[Completion, ...]:
        group = tuple(
            self._completion(member, template)
            for member in sorted(output.outputs, key=lambda member: member.index)
        )
        # Greedy decoding is requested once: all members of the group are equal.
        return group * settings.num_samples if settings.temperature == 0 else group

    def _completion(self, output: CompletionOutput, template: Template) -> Completion:
        reasons: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
        return as_completion(
            output.token_ids,
            None if output.logprobs is None else output.logprobs.logprobs,
            reasons.get(output.finish_reason, "abort"),
            tokenizer=self._tokenizer,
            template=template,
            end_tokens=self._end_tokens,
            version=self.version,
            routed_experts=self._experts(output),
        )

    def _experts(self, output: CompletionOutput) -> torch.Tensor | None:
        if self._routed_layers is None or output.routed_experts is None:
            return None
        # [prompt and response except the last token, all layers, top_k]
        experts = torch.as_tensor(output.routed_experts.astype("int16"))
        return experts[:, self._routed_layers]


def _check_routing(config: PretrainedConfig, on_cpu: bool) -> None:
    if on_cpu:
        raise RecipeError(
            "algorithm.router_replay: 'sampler' is not possible with vLLM on a CPU (it returns "
            "experts only through its model runner V2, which needs Triton); use 'old', or "
            "sampling.engine 'transformers'"
        )
    if not is_v3_style(config):
        raise RecipeError(
            "algorithm.router_replay: 'sampler' needs a V3-style model, not "
            f"{type(config).__name__}; set it to 'none'"
        )


def _launched() -> bool:
    """Return whether a launcher (torchrun, accelerate) started this process as one of several."""
    needed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in needed)


def choose_attention(config: PretrainedConfig, attention: Attention) -> bool:
    """Set the environment variables that select attention for an engine built after this.

    Returns whether that engine uses vLLM's latent attention (MLA) kernel.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if is_v3_style(config.model_type):
        fits = fits_mla_kernel(config.kv_lora_rank, config.qk_rope_head_dim)
        if attention == "mla" and not fits:
            raise R1labError(
                f"attention: 'mla' needs kv_lora_rank {MLA_KERNEL_SHAPE[0]} and qk_rope_head_dim "
                f"{MLA_KERNEL_SHAPE[1]}, and this model has {config.kv_lora_rank} and "
                f"{config.qk_rope_head_dim}; use 'decompressed', or widen it (r1lab.model.widen)"
            )
        kernel = attention == "mla" or (attention == "auto" and fits)
        os.environ["VLLM_MLA_DISABLE"] = "0" if kernel else "1"
        return kernel
    return False
