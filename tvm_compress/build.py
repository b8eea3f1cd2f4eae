"""``build``: from a module to something that runs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import tvm

from tvm_compress.errors import OptionError
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.targets import get_target
from tvm_compress.targets.artifact import Artifact

__all__ = ["Artifact", "build"]


def build(
    mod: tvm.IRModule,
    target: str = "c",
    *,
    board: str | PathLike[str] | None = None,
    name: str = "model",
    out_dir: str | PathLike[str] | None = None,
    toolchain: str | None = None,
) -> Artifact:
    """Build a network for a target.

    Args:
        mod: a module as :func:`tvm_compress.load` gives it, compressed or not.
        target: ``c`` (plain C99) or ``reference`` (numpy).
        board: a board's name or the path of its TOML file: the firmware is linked for it and runs
            on its emulator. Without a board the target ``c`` runs on this machine.
        name: prefix of every C symbol and file name, so that several models share a firmware.
        out_dir: where the files go; without it a temporary folder that lives as long as the
            artifact.
        toolchain: what compiles firmware: ``zig`` or ``gnu``; without it the first that is
            installed.

    Raises:
        OptionError: an unknown target, board or toolchain, or a name that cannot prefix C symbols.
        UnsupportedError: an operator that the target has no form for.
        BudgetError: the network does not fit the board; says by how much and why.
        MissingToolError: no compiler or emulator is installed.
        CompressError: the compiler refused the sources, or the firmware did not run.
    """
    chosen = get_target(target)
    place = None if out_dir is None else _folder(Path(out_dir))
    where = None if board is None else str(board)
    return chosen.build(
        Canonicalize()(mod), name=name, board=where, out_dir=place, toolchain=toolchain
    )


def _folder(path: Path) -> Path:
    """Give the path if it is a folder or can be made one."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise OptionError(
            f"{existing} is a file; expected a folder for the files of the build. Name another "
            "one, or leave it out to build in a temporary folder."
        )
    return path
