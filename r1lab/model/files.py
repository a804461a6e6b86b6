"""Check a base model's folder before importing anything heavy.

Missing or incomplete files are reported within milliseconds: configuration, shards, the headers of
safetensors files (https://huggingface.co/docs/safetensors, "Format"), and the tokenizer's files.
`r1lab.model.load`, which builds the architecture, checks whether the tensors fit it. This module
does not import torch.
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
_SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_MAX_HEADER = 100 * 2**20  # bytes: the format's own limit
# Sampling settings in generation_config.json, each with its neutral value.
_SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0, "top_k": 50,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
# Tokenizer classes whose tokens are all named in the folder's files; others add some of their own.
_GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def check_folder(folder: Path, path: str, *, causal: bool = True) -> Values:
    """Return the values of config.json of a complete folder; `path` is the recipe's.

    Raises RecipeError.
    """
    _check_kind(folder, path)
    values = _read_json(folder / "config.json", path)
    if not isinstance(values.get("model_type"), str):
        raise RecipeError(
            f"model.path: {path!r}: its config.json has no model_type, so it is not a transformers "
            "model; give a model's own folder"
        )
    check_architecture(values, path)
    if causal:
        check_causal(values, path)
    _check_weights(folder, path)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise RecipeError(
            f"model.path: {path!r} holds no tokenizer ({_TOKENIZERS[0]}, {_TOKENIZERS[1]}, ...); "
            "copy the one that belongs to the model into it"
        )
    _check_end_of_sequence(folder, path)
    return values


def _check_kind(folder: Path, path: str) -> None:
    """Reject a folder that is not a model's own, and name what it is."""
    if (folder / "adapter_config.json").is_file() and not _weight_files(folder):
        base = _read_json(folder / "adapter_config.json", path).get("base_model_name_or_path")
        raise RecipeError(
            f"model.path: {path!r} is an adapter of {base or 'an unnamed base'}, not a base; "
            f"{f'set model.path to {base}, or ' if base else ''}merge the two with "
            f"r1lab export {path} --out FOLDER"
        )
    if (folder / "config.json").is_file():
        return
    if (meant := _model_inside(folder)) is not None:
        raise RecipeError(
            f"model.path: {path!r} has no config.json, but its {meant.relative_to(folder)} has; "
            f"set model.path to {Path(path) / meant.relative_to(folder)}"
        )
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    if ggufs:
        fix = f"name its GGUF in model.gguf_file ({ggufs[0]})"
    elif not any(folder.iterdir()):
        fix = "it is an empty folder; give a model's own folder"
    elif (folder / "recipe.yaml").is_file():
        fix = "it is a run folder without a checkpoint yet; give the run's own base"
    else:
        fix = "give a model's own folder"
    raise RecipeError(f"model.path: {path!r} holds no config.json; {fix}")


# Where the model is in the folder of a run, a checkpoint, a stage, another trainer or the hub's
# cache.
_INSIDE = (
    "model", "checkpoints/*/model", "*/model", "checkpoint-*", "checkpoints/*", "snapshots/*", "*",
)  # fmt: skip


def _model_inside(folder: Path) -> Path | None:
    """Return the model inside a parent folder that was given instead; the latest checkpoint."""
    for pattern in _INSIDE:
        places = [
            place
            for place in folder.glob(pattern)
            if (place / "config.json").is_file() or (place / "adapter_config.json").is_file()
        ]
        if places:
            numbers = {
                place: re.findall(r"[0-9]+", str(place.relative_to(folder))) for place in places
            }
            return max(places, key=lambda place: ([int(n[:9]) for n in numbers[place]], place.name))
    return None


def check_gguf(folder: Path, path: str, name: str) -> Path:
    """Return the GGUF file `name` of a folder; raises RecipeError if it is not one."""
    file = folder / name
    if not file.is_file():
        present = ", ".join(sorted(other.name for other in folder.glob("*.gguf"))) or "none"
        raise RecipeError(
            f"model.gguf_file: {name!r} is not in {path!r} (GGUF files there: {present})"
        )
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise RecipeError(
                f"model.gguf_file: {name!r} in {path!r} is not a GGUF file; download it again"
            )
    return file


# Encoders whose configuration may lack the architecture that would identify them.
_ENCODERS = frozenset({
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "modernbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta",
})  # fmt: skip
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_HEADS = {  # what the class of an architecture ends in, and what it is then
    "ForSequenceClassification": "a classifier or reward model",
    "ForTokenClassification": "a classifier or reward model",
    "ForRewardModel": "a reward model",
    "ForProcessRewardModel": "a reward model",
    "RewardModel": "a reward model",
    "ForMaskedLM": "an encoder",
    "ForPreTraining": "an encoder",
    "ForQuestionAnswering": "an encoder",
}


def check_causal(values: Values, path: str) -> None:
    """Reject models whose configuration is not causal; raises RecipeError."""
    kind, given = values["model_type"], values.get("architectures")
    names = [str(name) for name in given] if isinstance(given, list) else []
    nested = next((key for key in _NESTED if isinstance(values.get(key), dict)), None)
    head = next((_HEADS[end] for end in _HEADS for name in names if name.endswith(end)), None)
    is_causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    if head is not None and not is_causal:
        what, fix = head, "give a causal language model"
    elif values.get("is_encoder_decoder"):
        what, fix = "a sequence-to-sequence model", "give a decoder-only model"
    elif nested is not None:
        inner = values[nested].get("model_type") or "another model"
        what = f"a model of several parts, whose language model is its {nested} ({inner})"
        fix = "give that part as a separate model"
    elif kind in _ENCODERS and not values.get("is_decoder"):
        what, fix = "an encoder", "give a causal language model"
    elif names and not is_causal:
        what, fix = f"a {', '.join(names)}", "give the ...ForCausalLM of its kind"
    else:
        return
    raise RecipeError(
        f"model.path: {path!r} ({kind}) is {what}, not a causal language model; {fix}"
    )


def check_trainable(values: Values, path: str) -> None:
    """Reject quantised weights, which get no gradient; raises RecipeError."""
    quantization = values.get("quantization_config") or values.get("compression_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise RecipeError(
            f"model.path: {path!r} is quantised ({method or 'see its quantization_config'}) and "
            "cannot be trained; give the unquantised base (model.lora.four_bit quantises it to "
            "four bits under adapters)"
        )


def check_routers(values: Values, path: str) -> None:
    """Reject keys about V3's routers for a dense model; raises RecipeError."""
    counts = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    if not any(values.get(name) for name in counts):
        raise RecipeError(
            "algorithm.router_bias_speed, algorithm.router_replay: "
            f"{path!r} is a dense {values['model_type']} without a DeepSeek-V3 router; "
            "leave them at 0 and none"
        )


def check_architecture(values: Values, path: str) -> None:
    """Reject models that vLLM would silently run wrongly; raises RecipeError."""
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
            f"model.path: {path!r} has topk_method {routing!r} in its config.json; set it to "
            "'noaux_tc', which transformers computes and vLLM needs"
        )


def is_v3_style(model_type: str) -> bool:
    """Return whether a model type has DeepSeek-V3's latent attention (MLA) and router."""
    return model_type in ("deepseek_v3", "deepseek_v2")


def check_vocabulary(num_entries: int, values: Values, path: str) -> None:
    """Reject a tokenizer with entries that have no embedding in the model; raises RecipeError."""
    size = values.get("vocab_size")
    if isinstance(size, int) and num_entries > size:
        raise RecipeError(
            f"model.path: {path!r} has a tokenizer of {num_entries} entries for a model of "
            f"{size}; use the model's own tokenizer"
        )


@dataclass(frozen=True, slots=True)
class QuickTokenizer:
    """The contents of tokenizer.json, read much faster than by transformers."""

    encode: Callable[[str], Sequence[int]]
    num_entries: int
    unknown: int | None  # the id of the token for unknown words
    has_padding: bool


def quick_tokenizer(folder: Path, path: str) -> QuickTokenizer | None:
    """Return the tokenizer of a folder; None without a tokenizer.json or a package to read it."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the package raises a bare Exception for a broken file
        raise RecipeError(
            f"model.path: {path!r}: its tokenizer.json does not load: {error}"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = tokenizer_settings(folder)
    spelt = _spelt(special.get("unk_token"))
    # transformers adds tokens that the small files name and tokenizer.json lacks.
    named = {_spelt(special.get(f"{name}_token")) for name in _SPECIAL_TOKENS}
    added = special.get("added_tokens_decoder")
    named |= {_spelt(token) for token in (added.values() if isinstance(added, dict) else ())}
    further = [name for name in named if name is not None and tokenizer.token_to_id(name) is None]
    return QuickTokenizer(
        encode=lambda text: tokenizer.encode(text).ids,
        num_entries=tokenizer.get_vocab_size() + len(further),
        unknown=None if spelt is None else tokenizer.token_to_id(spelt),
        has_padding=bool(special.get("pad_token")),
    )


def _spelt(token: object) -> str | None:
    """Return a token of a tokenizer's small files, which hold text or an object with the text."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _weight_files(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (_WHOLE, _INDEX, *_OTHER_WEIGHTS))


def _check_weights(folder: Path, path: str) -> None:
    if not _weight_files(folder):
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        fix = f"set model.gguf_file to {ggufs[0]}, or give" if ggufs else "give"
        raise RecipeError(
            f"model.path: {path!r} has no weights ({_WHOLE}, or {_INDEX} and its shards); {fix} "
            "the folder of a complete model"
        )
    index = next((n for n in (_INDEX, _WHOLE, *_OTHER_WEIGHTS[::-1]) if (folder / n).is_file()), "")
    placed: dict[str, Any] = {}
    shards = [index]
    if index.endswith(".json"):
        placed = _read_json(folder / index, path).get("weight_map") or {}
        are_files = isinstance(placed, dict) and all(isinstance(v, str) for v in placed.values())
        if not placed or not are_files:
            raise RecipeError(
                f"model.path: {path!r}: its {index} has no weight_map; download it again"
            )
        shards = sorted(set(placed.values()))
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent:
        raise RecipeError(
            f"model.path: {path!r} lacks {len(absent)} of its {len(shards)} files of weights "
            f"({', '.join(absent[:3])}); download them again"
        )
    if index in _OTHER_WEIGHTS:
        return
    held = {name: _read_shapes(folder / name, path) for name in shards}
    _check_experts({name: shape for shard in held.values() for name, shape in shard.items()}, path)
    lost = [tensor for tensor, shard in placed.items() if tensor not in held[shard]]
    if lost:
        raise RecipeError(
            f"model.path: {path!r}: {len(lost)} tensors are not in the file that {_INDEX} names "
            f"({', '.join(lost[:3])}); download it again"
        )


def _check_experts(shapes: Mapping[str, Shape], path: str) -> None:
    """Check that every expert of a layer has the same tensors: loading stacks them."""
    layers: dict[tuple[str, str], dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if match := _EXPERT.fullmatch(name):
            layer, expert, part = match.groups()
            layers.setdefault((layer, part), {})[expert] = shape
    experts: dict[str, set[str]] = {}
    for (layer, _), found_shapes in layers.items():
        experts.setdefault(layer, set()).update(found_shapes)
    for (layer, part), by_expert in layers.items():
        for expert in sorted(experts[layer] - by_expert.keys()):
            raise RecipeError(
                f"model.path: {path!r}: the tensor {layer}.{expert}.{part} is missing, and the "
                f"other {len(by_expert)} experts have it; download the weights again"
            )
        if len(set(by_expert.values())) > 1:
            raise RecipeError(
                f"model.path: {path!r}: the experts' {layer}.*.{part} differ in shape "
                f"({', '.join(map(str, sorted(set(by_expert.values()))))}); download the "
                "weights again"
            )


def _read_shapes(file: Path, path: str) -> dict[str, Shape]:
    """Return the tensors of a safetensors file whose header matches the length of the file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise _torn(file, path, f"{size:,} bytes that are not a safetensors file")
        try:
            header = json.loads(opened.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
            shapes = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            raise _torn(file, path, "its header is not a safetensors header") from None
    if 8 + length + end != size:
        raise _torn(file, path, f"it has {size:,} bytes and should have {8 + length + end:,}")
    return shapes


def _torn(file: Path, path: str, what: str) -> RecipeError:
    return RecipeError(
        f"model.path: {path!r}: {file.name} is incomplete or corrupted ({what}); download it again"
    )


def _check_end_of_sequence(folder: Path, path: str) -> None:
    tokens = tokenizer_settings(folder)
    if tokens.get("tokenizer_class") in _GENERIC_TOKENIZERS and not tokens.get("eos_token"):
        raise no_end_of_sequence(path)


def no_end_of_sequence(path: str) -> RecipeError:
    """Return the error for a tokenizer without an end-of-sequence token."""
    return RecipeError(
        f"model.path: {path!r} has a tokenizer without an end-of-sequence token, so no "
        "response could end; set eos_token in its tokenizer_config.json"
    )


def unsampled_settings(folder: Path) -> list[str]:
    """Return sampling settings that generation_config.json sets without `do_sample`."""
    file = folder / "generation_config.json"
    values = _read_json(file, str(folder)) if file.is_file() else {}
    if values.get("do_sample") is True or values.get("temperature") == 0:
        return []
    return [n for n, value in _SAMPLING.items() if values.get(n) not in (None, value)]


def make_saveable(config: Any) -> None:
    """Correct, in place, settings that transformers loads with a warning and refuses to save.

    Many published bases ship such settings (Llama 2 and Vicuna a temperature without do_sample).
    Sampling settings imply do_sample; several sequences or beam settings are ignored without beams,
    and so on; see `GenerationConfig.validate`.
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
    """Merge the tokenizer's small files; special_tokens_map.json has the lowest priority."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= _read_json(folder / name, str(folder))
    return settings


def _read_json(file: Path, path: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise RecipeError(
            f"model.path: {path!r}: its {file.name} is not JSON ({reason}); download it again"
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(
            f"model.path: {path!r}: its {file.name} is not a JSON object; download it again"
        )
    return values
