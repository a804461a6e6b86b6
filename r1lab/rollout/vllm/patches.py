"""Patches for vLLM (0.32, CPU build), which does not sample correctly without them.

Each patch is one function whose docstring gives the error and the reason.
`tests/parity/test_vllm_mends.py` shows for each that vLLM is wrong without it (except for
`embeddings_in_place` and `inspect_models_here`, which save time), and fails once a newer vLLM is
correct, so that the patch can be removed. On a GPU only `drop_prefix_cache` has an effect.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm import LLM


def patch_before_build() -> None:
    """Apply the patches that must precede an engine's construction."""
    patch_rotary_embedding()
    inspect_models_here()


def patch_after_reload(model: torch.nn.Module) -> None:
    """Apply the patches that must follow a worker's `reload_weights`; then drop the cache."""
    repack_experts(model)
    repack_head(model)


def patch_rotary_embedding() -> None:
    """Fix the CPU's rotary kernel, which misreads 3-D queries [T, H, D] with H > 1 (DeepSeek).

    It takes the head's stride for the token's, so nearly all positions are rotated wrongly and a
    trained model writes garbage (k3 about 5). Such calls are sent to vLLM's own PyTorch
    implementation; flat calls [T, H * D], as in Llama-style models, are correct and keep the
    kernel.
    """
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    kernel = RotaryEmbedding.forward_cpu
    if hasattr(kernel, "unmended"):
        return

    def forward_cpu(
        self: Any, positions: Any, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if query.dim() == 2:
            return kernel(self, positions, query, key)
        return self.forward_native(positions, query, key)

    forward_cpu.unmended = kernel  # type: ignore[attr-defined]
    RotaryEmbedding.forward_cpu = forward_cpu


def inspect_models_here() -> None:
    """On a CPU, inspect a model's class in this process instead of a subprocess.

    The subprocess exists so that CUDA is not initialised too early. It imports all of vLLM again:
    10 to 30 seconds of a core, for each engine, the first time a machine sees a model.
    """
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        registry._run_in_subprocess = lambda inspect: inspect()


def repack_experts(model: torch.nn.Module) -> None:
    """Repack experts after a reload: the CPU's kernel reads packed weights.

    vLLM packs them only on the first load, so after a reload the unpacked weights would be read as
    packed ones, without an error.
    """
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None and next(module.parameters()).device.type == "cpu":
            kernel.fused_experts.process_weights_after_loading(module)


@contextmanager
def embeddings_in_place() -> Iterator[None]:
    """In this context, make a reload on the CPU write embeddings into the model's own tensors.

    vLLM loads each into new memory, packs it for a product (even input embeddings, which are only
    looked up) and copies it over: with 49,152 words that was half of a reload, and a second copy
    remained. `repack_head` must follow.
    """
    from vllm.model_executor.model_loader.reload import inplace, layerwise
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        yield
        return
    begin = inplace.initialize_layerwise_reload

    def begin_but_for_embeddings(model: torch.nn.Module) -> None:
        begin(model)
        for module in _embeddings(model):
            info = layerwise.get_layerwise_info(module)
            layerwise._place_kernel_tensors(module, info)
            info.reset()

    inplace.initialize_layerwise_reload = begin_but_for_embeddings
    try:
        yield
    finally:
        inplace.initialize_layerwise_reload = begin


def _embeddings(model: torch.nn.Module) -> list[Any]:
    """Return input and output embeddings that are not quantised."""
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "quant_method", None), UnquantizedEmbeddingMethod)
    ]


def repack_head(model: Any) -> None:
    """Pack the output layer's weights on the CPU, and no other embedding's.

    A tied head has its own packed copy, which vLLM leaves stale in a reload.
    """
    head = getattr(model, "lm_head", None)
    for module in _embeddings(model):
        if module.weight.device.type == "cpu":
            if head is None or module is head:
                module.quant_method.process_weights_after_loading(module)
            else:
                module.cpu_linear = _not_packed


def _not_packed(*_: Any) -> None:
    raise RuntimeError("an embedding that is no output layer was multiplied by")


def drop_prefix_cache(llm: LLM) -> None:
    """Drop cached prefixes: they hold keys and values of old weights, which vLLM keeps using."""
    if not llm.reset_prefix_cache():
        raise RuntimeError("vLLM could not reset its prefix cache: requests are still running")


def run_uncompiled() -> AbstractContextManager[None]:
    """Run sampling helpers uncompiled: `enforce_eager` only affects the model.

    On the CPU compiling them needs a C++ compiler, which a plain machine does not have, and takes
    seconds at the first call; uncompiled these helpers are as fast.
    """
    from vllm.platforms import current_platform

    return torch.compiler.set_stance("force_eager") if current_platform.is_cpu() else nullcontext()


def shut_down(llm: LLM, *, keep_process_group: bool) -> None:
    """Shut an engine down without destroying the trainer's process group.

    vLLM destroys torch's default process group, whoever created it. In a launch of several
    processes that is the trainer's, which still needs it: there only vLLM's own groups are
    destroyed.
    """
    from vllm.distributed import destroy_model_parallel
    from vllm.v1.engine import core

    clean_up = core.cleanup_dist_env_and_memory
    if keep_process_group:
        core.cleanup_dist_env_and_memory = destroy_model_parallel
    try:
        llm.llm_engine.engine_core.shutdown()
    finally:
        core.cleanup_dist_env_and_memory = clean_up


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Preserve the process's state while an engine is built in it.

    vLLM seeds Python's, NumPy's and torch's generators, and its CPU worker replaces
    `torch.set_num_threads` by a function that does nothing.
    """
    import numpy

    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Hold back what libraries print while vLLM is imported and an engine is built.

    Some of it comes from C++ and progress bars, so the file descriptor itself is redirected; if the
    start fails, all held output is shown. If the user sets VLLM_LOGGING_LEVEL, nothing is held
    back.
    """
    if "VLLM_LOGGING_LEVEL" in os.environ:
        yield
        return
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept_back:
        shown = os.dup(2)
        os.dup2(kept_back.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            kept_back.seek(0)
            with suppress(OSError):  # stderr may be closed, and the start's own error matters
                os.write(shown, kept_back.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            del os.environ["VLLM_LOGGING_LEVEL"]


def loadable_names(model: torch.nn.Module) -> set[str]:
    """Return the names of the parameters that are loaded, not derived.

    MLA's absorbed matrices (W_UK_T, W_UV) are parameters too; vLLM recomputes them at each load.
    """
    from vllm.model_executor.layers.attention import is_deferred_attention_layer

    derived = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if is_deferred_attention_layer(module)
        for parameter, _ in module.named_parameters(recurse=False)
    }
    return {name for name, _ in model.named_parameters()} - derived


def not_loaded(model: torch.nn.Module, reported: set[str]) -> list[str]:
    """Return, sorted, the `loadable_names` that `model.load_weights` did not report.

    The mixtures that load their experts through vLLM's runner (Qwen, Mixtral) report them without
    the `routed_experts` that their parameters' names have.
    """
    loaded = {_without_runner(name) for name in reported}
    return sorted(n for n in loadable_names(model) if _without_runner(n) not in loaded)


def _without_runner(name: str) -> str:
    return name.replace(".experts.routed_experts.", ".experts.")


def model_of(llm: LLM) -> torch.nn.Module:
    """Return the model inside an engine that runs in process."""
    return model_runner_of(llm).get_model()


def model_runner_of(llm: LLM) -> Any:
    """Return the runner that holds the model and can reload its weights."""
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner
