"""Compatibility of trainer and server, checked before any request. Does not import torch.

A server answers `GET /r1lab/about` with `ServerInfo`; `difference` returns what prevents a trainer
from using it.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from r1lab import __version__
from r1lab.types import R1labError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Version of the protocol between the two; increment it with every change.
PROTOCOL = 1
LEAST_VLLM = (0, 32)
KEY_VARIABLE = "R1LAB_SERVER_KEY"
FOLDER_VARIABLE = "R1LAB_WEIGHTS_FOLDER"
BASE = ""  # replaces a run's token: the weights that the server was started with

# Keys of config.json that do not affect the computation.
_INCIDENTAL = re.compile(
    r"_.*|transformers_version|architectures|dtype|torch_dtype|use_cache|experts_implementation"
    r"|.*_token_id|id2label|label2id|auto_map|output_.*|return_dict|chunk_size_feed_forward"
)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server: its versions, the model it serves, and the limits it was started with.

    `shape` holds the configuration's values that determine the computation, `vocabulary` a hash of
    (token, id); `workers` counts the processes that hold weights, `transfers` lists the ways in
    which they accept new ones.
    """

    protocol: int
    r1lab: str
    vllm: str
    shape: Mapping[str, Any]
    vocabulary: str
    dtype: str
    max_model_len: int
    workers: int
    transfers: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return asdict(self)


def facts_from(values: Mapping[str, Any]) -> ServerInfo:
    """Parse a server's info. Raises R1labError if its protocol differs."""
    protocol = values.get("protocol")
    if protocol != PROTOCOL:
        raise R1labError(
            f"the server has protocol {protocol!r} (r1lab {values.get('r1lab', 'unknown')}), the "
            f"trainer {PROTOCOL} (r1lab {__version__}); install the same r1lab on both sides"
        )
    return ServerInfo(**{**values, "transfers": tuple(values["transfers"])})


def shape_of(config: PretrainedConfig) -> dict[str, Any]:
    """Return the configuration values that determine the computation, as in JSON."""
    values = json.loads(json.dumps(config.to_dict(), default=str))
    return {key: value for key, value in values.items() if not _INCIDENTAL.fullmatch(key)}


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of the vocabulary, equal if every token has the same id."""
    entries = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(entries.encode()).hexdigest()


def difference(server: ServerInfo, *, shape: Mapping[str, Any], vocabulary: str, dtype: str,
               transfer: str) -> str | None:  # fmt: skip
    """Describe what prevents a trainer with this model from using the server; None: nothing."""
    if _release(server.vllm) < LEAST_VLLM:
        least = ".".join(map(str, LEAST_VLLM))
        return f"it runs vLLM {server.vllm}; r1lab needs at least {least}; update it"
    keys = [k for k in sorted({*shape, *server.shape}) if shape.get(k) != server.shape.get(k)]
    if keys:
        key = keys[0]
        return (
            f"it serves another model ({key}: {_short(server.shape.get(key))} there, "
            f"{_short(shape.get(key))} in model.path); start it with the base of this recipe"
        )
    if server.vocabulary != vocabulary:
        return (
            "it serves a model with another vocabulary than model.path's tokenizer; start it with "
            "the base of this recipe"
        )
    if server.dtype != dtype:
        return (
            f"it computes in {server.dtype}, and model.dtype is {dtype}; start it with --dtype "
            f"{dtype}"
        )
    if transfer not in server.transfers:
        start = "--weights-folder FOLDER" if transfer == "folder" else f"--transfer {transfer}"
        return f"it takes no weights by {transfer!r}; start it with {start}"
    return None


def check_address(host: str, port: int) -> None:
    """Reject an address that others can reach without a key, and a port that is not available.

    Cheap, before anything heavy. Raises R1labError.
    """
    if not is_loopback(host) and not os.environ.get(KEY_VARIABLE):
        raise R1labError(
            f"--host: {host} lets other machines in; set {KEY_VARIABLE} to a secret here and for "
            "for the clients, or use 127.0.0.1"
        )
    if port > 65535:
        raise R1labError(f"--port: {port} is not a port; use one up to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise taken(host, port) from None
            raise R1labError(f"--host, --port: {host}:{port}: {error.strerror}") from None


def taken(host: str, port: int) -> R1labError:
    """Return the error for a port that is in use."""
    return R1labError(
        f"--port: {port} is taken by another process on {host}; use another port, or stop that "
        "process"
    )


def is_loopback(host: str | None) -> bool:
    """Return whether an address is reachable only from this machine."""
    if host in (None, "localhost"):
        return host is not None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
