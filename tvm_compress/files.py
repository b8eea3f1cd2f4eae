"""Files are written whole or not at all: aside first, then renamed into place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tvm_compress.errors import OptionError

__all__ = ["check_output", "write_whole"]


def check_output(path: Path) -> None:
    """Check, before long work, that a file can be written at ``path``.

    Raises:
        OptionError: the path is a folder, or its folder is missing.
    """
    if path.is_dir():
        raise OptionError(f"The output {path} is a folder; expected the name of a file in it.")
    if not path.parent.is_dir():
        raise OptionError(
            f"The folder {path.parent} of the output {path.name} does not exist; create it or "
            "choose another."
        )


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file by ``write(stream)``; until that has ended, ``path`` stays as it was.

    Raises:
        OptionError: see :func:`check_output`.
    """
    check_output(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as stream:
            write(stream)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
