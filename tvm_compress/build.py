"""``build``: from a module to something that runs."""

from __future__ import annotations

from math import inf
from os import PathLike
from pathlib import Path
from typing import cast, get_args

import tvm

from tvm_compress import edge, ir
from tvm_compress.errors import OptionError
from tvm_compress.ops import REQUANTIZE
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.remove_channels import RemoveChannels
from tvm_compress.passes.to_integers import ToIntegers
from tvm_compress.targets import get_target
from tvm_compress.targets.artifact import Artifact, Goal, Optimize, Target
from tvm_compress.targets.mcu.boards import Board, get_board, limit_board

__all__ = ["Artifact", "build", "prepare"]


def build(
    mod: tvm.IRModule,
    target: str | Target = "c",
    *,
    board: str | PathLike[str] | None = None,
    name: str = "model",
    out_dir: str | PathLike[str] | None = None,
    toolchain: str | None = None,
    fallback: str = "error",
    optimize: str | float = "balanced",
    limits_of: str | PathLike[str] | None = None,
    flash_limit: int | None = None,
    ram_limit: int | None = None,
) -> Artifact:
    """Build a network for a target.

    Args:
        mod: a module as :func:`tvm_compress.load` gives it, compressed or not.
        target: ``c`` (plain C99), ``zephyr`` (a Zephyr application), ``arduino`` (a
            library) or ``reference`` (numpy); or a
            target with options of its own, such as
            :class:`~tvm_compress.targets.mcu.zephyr.target.ZephyrTarget`.
        board: a board's name or the path of its TOML file: the firmware is linked for it and runs
            on its emulator. Without a board the target ``c`` runs on this machine. The target
            ``zephyr`` takes Zephyr's own names.
        name: prefix of every C symbol and file name, so that several models share a firmware.
        out_dir: where the files go; without it a temporary folder that lives as long as the
            artifact.
        toolchain: what compiles firmware: ``zig`` or ``gnu``; without it the first that is
            installed. Zephyr's are ``zephyr``, ``gnuarmemb`` and ``cross-compile``.
        fallback: what becomes of an operator of a quantised network that has no integer form:
            ``error``, or ``float``, which computes it between a dequantize and a quantize.
        optimize: how kernels in assembly (for the DSP extension of Cortex-M4, M7, M33, and for
            MVE) weigh flash against instructions: ``speed``, ``balanced``, or ``size``, which
            lets weights lie in flash coded too; or how many instructions of an inference a byte
            of flash is worth, above 0. Where a firmware does not fit the board's flash, build
            makes flash worth more by itself. Outputs are the same; where there is nothing to
            weigh, so is all else.
        limits_of: another board, by name or file, whose flash, RAM and stack the firmware must
            fit: an emulated board stands for a real one, which is mostly smaller.
        flash_limit: bytes of flash that it must fit, from 1024 on.
        ram_limit: bytes of RAM that it must fit, the stack among them, from 1024 on.

    Raises:
        OptionError: an unknown target, board, toolchain, fallback or optimize, a limit outside
            its range or without a board, or a name that cannot prefix C symbols.
        UnsupportedError: an operator that the target has no form for.
        BudgetError: the network does not fit the board; says by how much and why.
        MissingToolError: no compiler or emulator is installed.
        CompressError: the compiler refused the sources, or the firmware did not run.
    """
    chosen = target if isinstance(target, Target) else get_target(target)
    place = None if out_dir is None else _folder(Path(out_dir))
    where = _limited(chosen.name, board, limits_of, flash_limit, ram_limit)
    number = isinstance(optimize, int | float) and not isinstance(optimize, bool)
    if not (0.0 < optimize < inf if number else optimize in get_args(Goal)):  # type: ignore[operator]
        raise OptionError(
            f"{optimize!r} is nothing that build can optimize for; expected one of "
            f"{', '.join(get_args(Goal))}, or a number above 0: the instructions of an inference "
            "that a byte of flash is worth. Leave it out for balanced."
        )
    mod = prepare(mod, fallback)
    return chosen.build(
        mod,
        name=name,
        board=where,
        out_dir=place,
        toolchain=toolchain,
        optimize=cast(Optimize, optimize),
    )


def prepare(mod: tvm.IRModule, fallback: str = "error") -> tvm.IRModule:
    """Give the module as targets take it: canonical, and in integers where it is quantised.

    Args:
        mod: a module as :func:`tvm_compress.load` gives it.
        fallback: as of :func:`build`.

    Raises:
        OptionError: an unknown fallback.
        UnsupportedError: an operator of a quantised network that has no integer form.
    """
    mod = ToIntegers(fallback=fallback)(Canonicalize()(mod))
    if any(edge.op_name(b.value) == REQUANTIZE for b in ir.bindings(ir.main_function(mod))):
        # Exact on integers; of a float network it would move the last bits.
        mod = RemoveChannels()(mod)
    return mod


def _limited(
    target: str,
    board: str | PathLike[str] | None,
    limits_of: str | PathLike[str] | None,
    flash_limit: int | None,
    ram_limit: int | None,
) -> str | Board | None:
    """Give the board's name, or where there are limits the smaller board."""
    where = None if board is None else str(board)
    limits = {"limits_of": limits_of, "flash_limit": flash_limit, "ram_limit": ram_limit}
    given = [f"{name}={value}" for name, value in limits.items() if value is not None]
    if not given:
        return where
    if where is None:
        raise OptionError(
            f"{' and '.join(given)} was given and no board; expected the board that is to run the "
            "firmware too, such as mps2-an386. Name one or leave the limit out."
        )
    if target not in ("c", "reference"):
        raise OptionError(
            f"{' and '.join(given)} was given for the target {target}, which links nothing by our "
            "boards' sizes; expected the target c. Leave the limit out."
        )
    other = None if limits_of is None else str(limits_of)
    return limit_board(get_board(where), other, flash_limit, ram_limit)


def _folder(path: Path) -> Path:
    """Give the path if it is a folder or can be made one."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise OptionError(
            f"{existing} is a file; expected a folder for the files of the build. Name another "
            "one, or leave it out to build in a temporary folder."
        )
    return path
