"""Loading a base model: one that ships, a folder, a hub name, or a GGUF file.

The result is always the model in its working precision, its tokenizer, and a local folder in
Hugging Face's format that vLLM can read. Models that cannot be trained or sampled correctly are
rejected here, in one line that names the key, before anything heavy happens.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.config.recipe import ModelSettings
from r1lab.model.attention import check_attention, kernel_of
from r1lab.model.files import (
    check_architecture,
    check_folder,
    check_gguf,
    check_trainable,
    check_vocabulary,
    make_saveable,
    no_end_of_sequence,
    tokenizer_settings,
)
from r1lab.types import R1labError, RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_WEIGHTS = (".safetensors", ".gguf", ".bin", ".json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_base(
    settings: ModelSettings, *, cache: str | Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Path]:
    """Load the base of a recipe; return (model, tokenizer, folder that vLLM can read).

    The model is in `settings.dtype`, except V3's router bias (`e_score_correction_bias`), which
    stays float32 as in the checkpoint: rounding it moves tokens to other experts. On the CPU,
    mixtures of experts use transformers' `eager` experts, by far the fastest for small models. A
    GGUF file is dequantised once into `cache` (default: `$R1LAB_CACHE`, else ~/.cache/r1lab),
    because vLLM reads folders. Raises RecipeError.
    """
    import torch

    check_attention(settings)
    config, tokenizer, folder = prepare_base(settings, cache=cache)
    if settings.gguf_file is None:  # otherwise already dequantised
        check_trainable(config.to_dict(), settings.path)
    with _unreadable(settings.path, "its weights do not load"):
        model = load_model(
            folder, config, getattr(torch, settings.dtype), attention=settings.attention
        )
    return model, tokenizer, folder


def prepare_base(
    settings: ModelSettings, *, cache: str | Path | None = None
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, Path]:
    """Like `load_base` without the model, for sampling only: (configuration, tokenizer, folder)."""
    import torch

    folder = resolve_folder(settings.path)
    if settings.gguf_file is not None:
        place = Path(cache) if cache else cache_folder()
        folder = _dequantise(folder, settings, place, getattr(torch, settings.dtype))
    config = load_config(folder, settings.path)
    tokenizer = _load_tokenizer(folder, settings.path)
    check_base(config, tokenizer, settings.path)
    return config, tokenizer, folder


def load_model(
    source: Path | dict[str, torch.Tensor],
    config: PretrainedConfig,
    dtype: torch.dtype,
    *,
    attention: str = "auto",
) -> PreTrainedModel:
    """Build the model of `config` with weights from a folder or from tensors by checkpoint name.

    `attention` is a recipe's `model.attention`; auto leaves the choice to transformers, except as
    `kernel_of` requires.

    Raises ValueError if weights are missing, which transformers would initialise at random, and for
    an attention kernel that would compute another model.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"transformers has no causal language model for {config.model_type!r}")
    kernel = kernel_of(config, attention)
    options: dict[str, Any] = {} if kernel is None else {"attn_implementation": kernel}
    counts = ("n_routed_experts", "num_local_experts", "num_experts")  # names by family
    is_mixture = any(getattr(config, name, None) for name in counts)
    if is_mixture and not torch.cuda.is_available():
        options["experts_implementation"] = "eager"
    folder, weights = (None, source) if isinstance(source, dict) else (source, None)
    with _quietly():
        model, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            folder,
            config=config,
            state_dict=weights,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the names
            **options,
        )
    _check_loaded(model, info)
    if folder is not None:
        _check_values(model)
    _own_memory(model)
    if model.generation_config is not None:
        make_saveable(model.generation_config)
    return model


def _check_loaded(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Reject weights that do not fit the architecture; the ValueError names them."""
    missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if info["mismatched_keys"]:
        name, actual, needed = min(info["mismatched_keys"])
        raise ValueError(
            f"{name} has shape {tuple(actual)}, config.json requires {tuple(needed)} "
            f"({len(info['mismatched_keys'])} weights have a wrong shape)"
        )
    if missing:
        raise ValueError(f"{len(missing)} weights are missing ({', '.join(missing[:3])}, ...)")
    config = model.config
    # Layers that predict further tokens (MTP) follow the last one and are not loaded.
    layers = config.num_hidden_layers
    further = getattr(config, "num_nextn_predict_layers", 0) or 0
    prefixes = tuple(f"model.layers.{layers + i}." for i in range(further))
    extra = [name for name in extra if not name.startswith(prefixes)]
    if extra:
        raise ValueError(
            f"{len(extra)} weights do not belong to a {config.model_type} with {layers} layers, as "
            f"in config.json ({', '.join(extra[:3])}, ...)"
        )


def _check_values(model: PreTrainedModel) -> None:
    """Reject weights that no sampler could use unchanged; raises ValueError."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = model.config.tie_word_embeddings and head is not None
    if tied and head.weight is not embedding.weight:
        # transformers then keeps them separate, while vLLM uses the embedding for both.
        raise ValueError(
            "config.json ties the embeddings, but lm_head differs from them; set "
            "tie_word_embeddings=false there"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} contains NaN or infinity")


def _own_memory(model: PreTrainedModel) -> None:
    """Copy weights that are still pages of the checkpoint file into the model's own memory.

    Such pages follow the file: if it is rewritten while the model trains, its values silently
    replace the trained ones.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def shipped_models() -> dict[str, Path]:
    """Return the bases that come with the package, by name."""
    try:
        root = resources.files("r1lab.data") / "models"
    except ModuleNotFoundError:
        return {}
    folder = Path(str(root))
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def resolve_folder(path: str) -> Path:
    """Return the folder of `model.path`: a shipped name, a folder, or a hub name (downloaded)."""
    shipped = shipped_models()
    if path in shipped:
        return shipped[path]
    folder = Path(os.path.expanduser(path))
    if folder.is_dir():
        return folder
    if folder.is_file():
        more = f" and model.gguf_file to {folder.name}" if folder.suffix == ".gguf" else ""
        raise RecipeError(
            f"model.path: {path!r} is a file; give a model's folder"
            + (f": set it to {folder.parent}{more}" if folder.suffix in _WEIGHTS else "")
        )
    if _HUB_NAME.fullmatch(path) and not folder.parent.is_dir():
        return _download(path)
    close = difflib.get_close_matches(path, shipped, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "give a folder or a hub name (owner/model)"
    known = ", ".join(shipped) or "none in this installation"
    raise RecipeError(
        f"model.path: {path!r} is neither a folder nor a shipped base ({known}); {hint}"
    )


def load_config(folder: Path, path: str, *, causal: bool = True) -> PretrainedConfig:
    """Return the configuration in `folder`; `path` is the value of `model.path`, for errors.

    `causal` False: a model with another head is meant, such as a reward model.
    """
    from transformers import AutoConfig

    check_folder(folder, path, causal=causal)
    with _unreadable(path, "its config.json does not load"), _quietly():
        return AutoConfig.from_pretrained(folder, local_files_only=True)


def check_base(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Reject a base that would silently sample or train wrongly; raises RecipeError."""
    check_architecture(
        config.to_dict() | {"topk_method": getattr(config, "topk_method", None)}, path
    )
    if tokenizer.eos_token_id is None:
        raise no_end_of_sequence(path)
    check_vocabulary(len(tokenizer), {"vocab_size": config.vocab_size}, path)


def end_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path | None = None) -> tuple[int, ...]:
    """Return the token ids that end a response: those of tokenizer and generation_config.json."""
    from transformers import GenerationConfig

    ends = {tokenizer.eos_token_id}
    if folder is not None and (folder / "generation_config.json").is_file():
        ids = GenerationConfig.from_pretrained(folder).eos_token_id
        ends |= set(ids) if isinstance(ids, list) else {ids}
    return tuple(sorted(token for token in ends if token is not None))


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide transformers' progress bar and load report; what matters in it is checked here."""
    from transformers.utils import logging as hf_logging

    shown, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if shown:
            hf_logging.enable_progress_bar()


class _unreadable:
    """Context manager that turns a library's error about a folder's content into one line."""

    def __init__(self, path: str, what: str) -> None:
        self.path, self.what = path, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # safetensors, tokenizers and huggingface_hub raise their own classes.
        if isinstance(error, Exception) and not isinstance(error, R1labError | MemoryError):
            reason = " ".join(str(error).split())[:300]
            raise RecipeError(f"model.path: {self.path!r}: {self.what}: {reason}") from error


def _load_tokenizer(folder: Path, path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, TokenizersBackend

    # Even with a complete tokenizer.json, AutoTokenizer uses for some models (Qwen2) a class that
    # splits text in its own way, whatever the file says.
    whole = tokenizer_settings(folder).get("tokenizer_class") == TokenizersBackend.__name__
    kind = TokenizersBackend if whole else AutoTokenizer
    with _unreadable(path, "its tokenizer does not load"), _quietly():
        return kind.from_pretrained(folder, local_files_only=True)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(name, ignore_patterns=["*.bin", "*.pth", "*.onnx", "original/*"])
        )
    # LocalEntryNotFoundError (no network and nothing cached) is an OSError too.
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"model.path: {name!r} is not a local folder and could not be fetched from the hub "
            f"({reason}); check the name, or give a local folder"
        ) from error


def cache_folder() -> Path:
    """Return the folder for files derived from models: `$R1LAB_CACHE`, else ~/.cache/r1lab."""
    return Path(os.environ.get("R1LAB_CACHE", "~/.cache/r1lab")).expanduser()


def _dequantise(folder: Path, settings: ModelSettings, cache: Path, dtype: torch.dtype) -> Path:
    """Write the GGUF file's weights as an ordinary folder, once, and return that folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    assert settings.gguf_file is not None
    source = check_gguf(folder, settings.path, settings.gguf_file)
    stat = source.stat()
    key = f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns} {settings.dtype}"
    target = cache / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if (target / "config.json").is_file():
        return target
    logging.getLogger(__name__).info("dequantising %s into %s", source, target)
    with _unreadable(settings.path, "its GGUF file does not load"), _quietly():
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=settings.gguf_file,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=settings.gguf_file)
    _drop_foreign_tokens(tokenizer, source)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    make_saveable(model.generation_config)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(target)
    except OSError:  # another process finished first
        if not (target / "config.json").is_file():
            raise
    return target


def _drop_foreign_tokens(tokenizer: Any, source: Path) -> None:
    """Remove tokens that are not in the GGUF file, for which the model has no embedding.

    transformers 5.19 builds byte-level tokenizers with its GPT-2 class, which adds GPT-2's
    `<|endoftext|>` to any vocabulary without it.
    """
    from gguf import GGUFReader
    from tokenizers import Tokenizer

    num_tokens = len(GGUFReader(source).fields["tokenizer.ggml.tokens"].data)
    if len(tokenizer) > num_tokens:
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        parts["added_tokens"] = [t for t in parts["added_tokens"] if t["id"] < num_tokens]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))
