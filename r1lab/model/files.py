"""A base model's folder, looked through before anything heavy is imported.

What is missing or torn is told here within milliseconds: configuration, shards, the headers of
safetensors files (https://huggingface.co/docs/safetensors, "Format"), and the tokenizer's files.
Whether the tensors are those of the architecture is told by `r1lab.model.load`, which builds it.
Nothing here imports torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1lab.types import RecipeError

Values = Mapping[str, Any]
Shape = tuple[int, ...]

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json", "tiktoken.model",
)  # fmt: skip
_EXPERT = re.compile(r"(.*\.experts)\.([0-9]+)\.(.+)")
_MAX_HEADER = 100 * 2**20  # bytes: the format's own limit
# Settings of sampling in generation_config.json, each with the value that sets nothing.
_SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0, "top_k": 50,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
# Classes whose tokens are those that the folder's files name; others bring some of their own.
_GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def check_folder(folder: Path, path: str) -> Values:
    """The values of config.json in a folder that looks whole; `path` is that of the recipe.

    Raises RecipeError.
    """
    if not (folder / "config.json").is_file():
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        fix = f"name it in model.gguf_file ({ggufs[0]})" if ggufs else "give a model's own folder"
        raise RecipeError(f"model.path: {path!r} holds no config.json; {fix}")
    values = _read_json(folder / "config.json", path)
    if not isinstance(values.get("model_type"), str):
        raise RecipeError(
            f"model.path: {path!r}: its config.json names no model_type, so it is no model of "
            "transformers; give a model's own folder"
        )
    check_architecture(values, path)
    _check_weights(folder, path)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise RecipeError(
            f"model.path: {path!r} holds no tokenizer ({_TOKENIZERS[0]}, {_TOKENIZERS[1]}, ...); "
            "copy the one that belongs to the model into it"
        )
    _check_end_of_sequence(folder, path)
    return values


def check_architecture(values: Values, path: str) -> None:
    """Refuse what vLLM would run wrongly without a word; raises RecipeError."""
    kind = values["model_type"]
    if is_v3_style(kind) and values.get("tie_word_embeddings"):
        # vLLM's DeepSeek model does not tie lm_head: it would sample noise.
        raise RecipeError(
            f"model.path: {path!r} is V3-style with tied embeddings, which vLLM does not tie; "
            "save it with tie_word_embeddings=false and lm_head a copy of the embedding"
        )
    routing = values.get("topk_method")
    if kind == "deepseek_v3" and routing != "noaux_tc":
        # Without it vLLM makes no e_score_correction_bias and cannot load the router.
        raise RecipeError(
            f"model.path: {path!r} has topk_method {routing!r} in its config.json, and vLLM needs "
            "'noaux_tc', which is what transformers computes; set it"
        )


def is_v3_style(model_type: str) -> bool:
    """Whether a type of model has DeepSeek-V3's form: latent attention (MLA) and its router."""
    return model_type in ("deepseek_v3", "deepseek_v2")


def check_vocabulary(num_entries: int, values: Values, path: str) -> None:
    """Refuse a tokenizer with entries that its model has no embedding for; raises RecipeError."""
    size = values.get("vocab_size")
    if isinstance(size, int) and num_entries > size:
        raise RecipeError(
            f"model.path: {path!r} has a tokenizer of {num_entries} entries for a model of "
            f"{size}; give the tokenizer that belongs to it"
        )


@dataclass(frozen=True, slots=True)
class QuickTokenizer:
    """What tokenizer.json says, in a fraction of the time that transformers takes to read it."""

    encode: Callable[[str], Sequence[int]]
    num_entries: int
    unknown: int | None  # the id of the token that stands for every unknown word
    has_padding: bool


def quick_tokenizer(folder: Path, path: str) -> QuickTokenizer | None:
    """The tokenizer of a folder; None without a tokenizer.json, or a package that reads it."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # what the package raises for a broken file is a bare Exception
        raise RecipeError(
            f"model.path: {path!r}: its tokenizer.json does not load: {error}"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = tokenizer_settings(folder)
    unknown = special.get("unk_token")
    spelt = unknown.get("content") if isinstance(unknown, dict) else unknown
    return QuickTokenizer(
        encode=lambda text: tokenizer.encode(text).ids,
        num_entries=tokenizer.get_vocab_size(),
        unknown=tokenizer.token_to_id(spelt) if isinstance(spelt, str) else None,
        has_padding=bool(special.get("pad_token")),
    )


def _check_weights(folder: Path, path: str) -> None:
    if (folder / _INDEX).is_file():
        placed = _read_json(folder / _INDEX, path).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
            raise RecipeError(
                f"model.path: {path!r}: its {_INDEX} has no weight_map; fetch it anew"
            )
        shards = sorted(set(placed.values()))
    elif (folder / _WHOLE).is_file():
        placed, shards = {}, [_WHOLE]
    elif any((folder / name).is_file() for name in _OTHER_WEIGHTS):
        return
    else:
        raise RecipeError(
            f"model.path: {path!r} holds no weights ({_WHOLE}, or {_INDEX} and its shards); give "
            "the folder of a whole model"
        )
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent:
        raise RecipeError(
            f"model.path: {path!r} lacks {len(absent)} of its {len(shards)} files of weights "
            f"({', '.join(absent[:3])}); fetch them anew"
        )
    held = {name: _read_shapes(folder / name, path) for name in shards}
    _check_experts({name: shape for shard in held.values() for name, shape in shard.items()}, path)
    lost = [tensor for tensor, shard in placed.items() if tensor not in held[shard]]
    if lost:
        raise RecipeError(
            f"model.path: {path!r}: {len(lost)} tensors are not in the file that {_INDEX} names "
            f"({', '.join(lost[:3])}); fetch it anew"
        )


def _check_experts(shapes: Mapping[str, Shape], path: str) -> None:
    """Every expert of a layer has the same tensors: they are stacked when they are loaded."""
    layers: dict[tuple[str, str], dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if found := _EXPERT.fullmatch(name):
            layer, expert, part = found.groups()
            layers.setdefault((layer, part), {})[expert] = shape
    experts: dict[str, set[str]] = {}
    for (layer, _), found_shapes in layers.items():
        experts.setdefault(layer, set()).update(found_shapes)
    for (layer, part), by_expert in layers.items():
        for expert in sorted(experts[layer] - by_expert.keys()):
            raise RecipeError(
                f"model.path: {path!r}: the tensor {layer}.{expert}.{part} is missing, and the "
                f"other {len(by_expert)} experts have it; fetch the weights anew"
            )
        if len(set(by_expert.values())) > 1:
            raise RecipeError(
                f"model.path: {path!r}: the experts' {layer}.*.{part} differ in shape "
                f"({', '.join(map(str, sorted(set(by_expert.values()))))}); fetch the weights anew"
            )


def _read_shapes(file: Path, path: str) -> dict[str, Shape]:
    """The tensors of a safetensors file whose header fits the length of the file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise _torn(file, path, f"{size:,} bytes that are no safetensors file")
        try:
            header = json.loads(opened.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
            shapes = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            raise _torn(file, path, "its header is no safetensors header") from None
    if 8 + length + end != size:
        raise _torn(file, path, f"it has {size:,} bytes and should have {8 + length + end:,}")
    return shapes


def _torn(file: Path, path: str, what: str) -> RecipeError:
    return RecipeError(f"model.path: {path!r}: {file.name} is torn ({what}); fetch it anew")


def _check_end_of_sequence(folder: Path, path: str) -> None:
    tokens = tokenizer_settings(folder)
    if tokens.get("tokenizer_class") in _GENERIC_TOKENIZERS and not tokens.get("eos_token"):
        raise no_end_of_sequence(path)


def no_end_of_sequence(path: str) -> RecipeError:
    """The refusal of a tokenizer that has no token for the end."""
    return RecipeError(
        f"model.path: {path!r} has a tokenizer without an end-of-sequence token, so no "
        "response could end; set eos_token in its tokenizer_config.json"
    )


def unsampled_settings(folder: Path) -> list[str]:
    """Settings of sampling in generation_config.json that stand there without `do_sample`."""
    file = folder / "generation_config.json"
    values = _read_json(file, str(folder)) if file.is_file() else {}
    if values.get("do_sample") is True or values.get("temperature") == 0:
        return []
    return [n for n, value in _SAMPLING.items() if values.get(n) not in (None, value)]


def make_saveable(config: Any) -> None:
    """Put right, in place, what transformers loads with a warning and refuses to save.

    Many published bases ship such settings (Llama 2 and Vicuna a temperature without do_sample).
    Settings of sampling mean that it samples, several sequences or settings of beams mean nothing
    without beams, and so on; see `GenerationConfig.validate`.
    """
    if config.do_sample is not True:
        given = {name: getattr(config, name, None) for name in _SAMPLING}
        sets = {name for name, value in given.items() if value not in (None, _SAMPLING[name])}
        if "temperature" in sets and not config.temperature:  # temperature 0 is greedy decoding
            for name in sets:
                setattr(config, name, None)
        elif sets:
            config.do_sample = True
    if config.num_beams in (None, 1):
        config.early_stopping, config.length_penalty = None, None
        if config.do_sample is not True:
            config.num_return_sequences = None
    if config.pad_token_id is not None and config.pad_token_id < 0:
        config.pad_token_id = None
    if config.use_cache is False:
        config.cache_implementation = None
    if config.return_dict_in_generate is not True:
        for name in config.extra_output_flags:
            setattr(config, name, None)


def tokenizer_settings(folder: Path) -> Values:
    """What the tokenizer's small files say, those of special_tokens_map.json underneath."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= _read_json(folder / name, str(folder))
    return found


def _read_json(file: Path, path: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise RecipeError(
            f"model.path: {path!r}: its {file.name} is no JSON ({reason}); fetch it anew"
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(f"model.path: {path!r}: its {file.name} is no object; fetch it anew")
    return values
