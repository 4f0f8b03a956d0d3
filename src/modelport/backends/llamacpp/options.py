"""The `options` of a `llamacpp` model row, and where its socket lies."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

# sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS, the closing zero included; llama.cpp's own socket
# beside this one has a name four bytes longer.
_SOCKET_PATH_BYTES = 99
# How the engine's process marks its own lines among llama.cpp's.
COMPLAINT = "modelport: "
_SAMPLING = frozenset(
    [
        *("temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "dynatemp_range", "dynatemp_exponent"),
        *("repeat_penalty", "repeat_last_n", "frequency_penalty", "presence_penalty", "xtc_probability"),
        *("xtc_threshold", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "mirostat"),
        *("mirostat_tau", "mirostat_eta"),
    ]
)


class LlamaCppOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the engine runs a model and how it samples where the caller says nothing.

    `sampling` takes llama.cpp's own names (see `sampling.py`); it is merged over the built-in table.
    `context_tokens` is for one slot, prompt and answer together; 0: the model's own, at most 4096.
    `threads` 0: as many as this process may use. `system_prompt` is used where a chat has no system message;
    empty: what the model's template says.
    """

    slots: Annotated[int, Meta(ge=1, le=64)] = 4
    queue: Annotated[int, Meta(ge=0, le=4096)] = 64
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    context_tokens: Annotated[int, Meta(ge=0)] = 0
    batch_tokens: Annotated[int, Meta(ge=16, le=4096)] = 64
    gpu_layers: Annotated[int, Meta(ge=0)] = 0
    sampling: dict[str, float] = {}
    system_prompt: str = ""
    chat_template: str = ""

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> LlamaCppOptions:
        """The options of a model row. Raises: ValueError that names the wrong one."""
        try:
            parsed = msgspec.convert(dict(options), cls)
            for name in parsed.sampling.keys() - _SAMPLING:
                raise ValueError(f"options of a llamacpp model: sampling has no {name!r}")
            return parsed
        except msgspec.ValidationError as error:
            raise ValueError(f"options of a llamacpp model: {error}") from error


def socket_path_for(data_dir: Path, name: str) -> Path:
    """Where the engine of the model version `name` listens; the same answer in every process.

    In the data directory, or in a private folder below the system's temporary one where the path would be longer
    than a UNIX socket's may be.
    """
    digest = hashlib.sha256(f"{data_dir.resolve()}\0{name}".encode()).hexdigest()[:16]
    path = data_dir.resolve() / "run" / f"llm-{digest}.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    return Path(tempfile.gettempdir()) / f"modelport-{os.getuid()}" / f"llm-{digest}.sock"


def control_path_for(socket_path: Path) -> Path:
    """Where llama.cpp's own server listens; it takes a name for a UNIX socket only if it ends in `.sock`."""
    return socket_path.with_name(f"{socket_path.stem}.ctl.sock")
