"""Which compilers and emulators a board can have, and which of them are installed."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_compress.targets.mcu import emulator, qemu, toolchain
from tvm_compress.targets.mcu.boards import Board

__all__ = ["Tool", "compilers_of", "emulators_of"]


@dataclass(frozen=True)
class Tool:
    """A compiler or an emulator.

    Attributes:
        name: as ``toolchain`` and ``engine`` take it.
        installed: whether it can be used.
        remedy: how to get it where it is missing, else an empty string.
    """

    name: str
    installed: bool
    remedy: str


def compilers_of(board: Board) -> tuple[Tool, ...]:
    """The toolchains that compile for a board, the default one first."""
    return tuple(
        _tool(name, toolchain.available(name), toolchain.how_to_get(name))
        for name in toolchain.toolchains_of(board)
    )


def emulators_of(board: Board) -> tuple[Tool, ...]:
    """The engines that run a board's firmware, the default one first; none for some boards."""
    there = {"unicorn": emulator.available(), "qemu": qemu.available(board.isa)}
    remedies = {"unicorn": emulator.HOW_TO_GET, "qemu": qemu.how_to_get(board.isa)}
    return tuple(_tool(name, there[name], remedies[name]) for name in board.emulators)


def _tool(name: str, installed: bool, remedy: str) -> Tool:
    return Tool(name, installed, "" if installed else remedy)
