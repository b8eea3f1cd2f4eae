"""Checkpoints of a fine-tuning: complete or absent, and never those of another run."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray

from tvm_compress import ir
from tvm_compress.errors import DataError, OptionError

__all__ = ["Fingerprint", "check_path", "data_digest", "load", "network_digest", "save"]

_FORMAT = "tvm-compress fine-tuning 1"


@dataclass(frozen=True)
class Fingerprint:
    """What a run depends on: digests of the network and the data, and the options as text."""

    network: str
    data: str
    options: str


def network_digest(mod: tvm.IRModule) -> str:
    """Give a digest of a module's structure and of all its parameters."""
    digest = hashlib.sha256(mod.script(show_meta=False).encode())
    for name, parameter in ir.parameters(mod).items():
        digest.update(name.encode())
        if parameter.codes is not None and parameter.centroids is not None:
            _update(digest, parameter.codes)
            _update(digest, parameter.centroids)
        else:
            _update(digest, parameter.value)
    return digest.hexdigest()


def data_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Give a digest of named arrays: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(name.encode())
        _update(digest, array)
    return digest.hexdigest()


def _update(digest: Any, array: NDArray[Any]) -> None:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    # In pieces: the data may be a memory map that is larger than memory.
    for start in range(0, max(len(array), 1), 4096) if array.ndim else [0]:
        piece = array[start : start + 4096] if array.ndim else array
        digest.update(np.ascontiguousarray(piece).tobytes())


def check_path(path: str | os.PathLike[str]) -> Path:
    """Give the path of a checkpoint after checking that it can be written.

    Raises:
        OptionError: it is a folder, or its folder does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise OptionError(f"The checkpoint {path} is a folder; expected the path of a file in it.")
    if not path.parent.is_dir():
        raise OptionError(
            f"The folder {path.parent} of the checkpoint {path.name} does not exist; make it first "
            "or give another path."
        )
    return path


def save(path: Path, fingerprint: Fingerprint, state: Mapping[str, Any]) -> None:
    """Write a checkpoint aside, then rename it: a reader sees the old one or the new one."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save({"format": _FORMAT, **asdict(fingerprint), "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def load(path: Path, fingerprint: Fingerprint) -> dict[str, Any] | None:
    """Give the state of a run that was interrupted, or None where there is no file.

    Raises:
        DataError: the file is no checkpoint, is damaged, or is one of another run.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        known = content["format"] == _FORMAT
        found = Fingerprint(**{f.name: str(content[f.name]) for f in fields(Fingerprint)})
        state: dict[str, Any] = content["state"]
    except Exception as error:
        raise DataError(
            f"{path} is damaged or is no checkpoint of a fine-tuning; expected one that finetune "
            "wrote: delete it to start anew, or give another path."
        ) from error
    if not known:
        raise DataError(
            f"{path} has the checkpoint format {content['format']!r}; expected {_FORMAT!r}: delete "
            "it to start anew, or give another path."
        )
    other = [
        f.name
        for f in fields(Fingerprint)
        if getattr(found, f.name) != getattr(fingerprint, f.name)
    ]
    if other:
        details = ""
        if "options" in other:
            details = f" (its options are {found.options}; now {fingerprint.options})"
        raise DataError(
            f"The checkpoint {path} belongs to another run: it differs in {' and '.join(other)}"
            f"{details}; expected a checkpoint of this run: delete it to start anew, or give "
            "another path."
        )
    return state
