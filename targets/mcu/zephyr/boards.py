"""What Zephyr calls its boards, and what their cores have that kernels in assembly need.

A Zephyr tree says everything else of a board. Until 3.6 boards have names such as ``mps2_an385``,
from 3.7 on names such as ``mps2/an385``; most old names are the new ones with underscores, and the
others are listed here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from tvm_compress.errors import OptionError

__all__ = ["BOARDS", "ZephyrBoard", "board_in_tree", "get_zephyr_board", "plain"]

Kernels = Literal["c", "dsp", "mve"]


@dataclass(frozen=True)
class ZephyrBoard:
    """A board of Zephyr's.

    Attributes:
        names: Zephyr's names of it, the newest first, then the name that the target ``c`` knows.
        kernels: what kernels of integer layers are written in: plain C, which every core runs, or
            assembly for the DSP extension or for MVE.
        machine: QEMU's name of the machine, or None where QEMU has none.
    """

    names: tuple[str, ...]
    kernels: Kernels = "c"
    machine: str | None = None


# The CPU0 of the AN521 has neither FPU nor DSP extension.
BOARDS = (
    ZephyrBoard(("mps2/an385", "mps2-an385"), "c", "mps2-an385"),
    ZephyrBoard(("mps2/an386", "mps2-an386"), "dsp", "mps2-an386"),
    ZephyrBoard(("mps2/an500", "mps2-an500"), "dsp", "mps2-an500"),
    ZephyrBoard(("mps2/an521/cpu0", "mps2_an521", "mps2-an521"), "c", "mps2-an521"),
    ZephyrBoard(("mps3/corstone300/an547", "mps3/an547", "mps3-an547"), "mve", "mps3-an547"),
    ZephyrBoard(("qemu_cortex_m3", "lm3s6965evb"), "c", "lm3s6965evb"),
    ZephyrBoard(("nucleo_l4r5zi",), "dsp"),
    ZephyrBoard(("nucleo_h743zi",), "dsp"),
    ZephyrBoard(("stm32f746g_disco",), "dsp"),
    ZephyrBoard(("nrf5340dk/nrf5340/cpuapp", "nrf5340dk"), "dsp"),
)


def plain(name: str) -> str:
    """A board's name in the spelling that old and new ones share.

    >>> plain("mps2/an521/cpu0"), plain("mps2_an385"), plain("nrf52840dk@1.0.0/nrf52840")
    ('mps2_an521_cpu0', 'mps2_an385', 'nrf52840dk_nrf52840')
    """
    return re.sub(r"@[^/]*", "", name).replace("/", "_")


def get_zephyr_board(name: str) -> ZephyrBoard:
    """The board of that name; of one that is not listed nothing is known but the name.

    Raises:
        OptionError: the text cannot be the name of a board.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*(@[\w.]+)?(/[\w-]+)*", name, re.ASCII):
        raise OptionError(
            f"{name!r} is no name of a board of Zephyr's; expected one such as mps2_an385 or "
            "mps2/an385. List those of your tree with: west boards."
        )
    for board in BOARDS:
        if plain(name) in map(plain, board.names):
            return board
    return ZephyrBoard((name,))


def board_in_tree(name: str, board: ZephyrBoard, tree: Collection[str]) -> str:
    """The board's name as a tree spells it.

    Args:
        name: as the user gave it.
        board: what :func:`get_zephyr_board` says of it.
        tree: the names of all boards of the tree.

    Raises:
        OptionError: the tree has no such board; the message names the nearest.
    """
    spelled = {plain(known): known for known in tree}
    for wanted in (name, *board.names):
        if plain(wanted) in spelled:
            # A revision (board@1.2.0) is the user's choice; the tree lists boards without it.
            return name if "@" in name else spelled[plain(wanted)]
    near = get_close_matches(plain(name), spelled, 3, 0.5)
    hint = f"The nearest are {', '.join(spelled[n] for n in near)}. " if near else ""
    raise OptionError(
        f"The Zephyr tree has no board {name}. {hint}Choose one that `west boards` lists, or set "
        "ZEPHYR_BASE to a tree that has it."
    )
