"""What Zephyr calls its boards.

What their cores have is told by the boards of the target ``c``, and everything else by a Zephyr
tree. Until 3.6 boards have names such as ``mps2_an385``, from 3.7 on names such as ``mps2/an385``;
most old names are the new ones with underscores, and the others are listed here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.boards import get_board

__all__ = ["BOARDS", "ZephyrBoard", "board_in_tree", "get_zephyr_board", "plain"]

Kernels = Literal["c", "dsp", "mve"]


@dataclass(frozen=True)
class ZephyrBoard:
    """A board of Zephyr's.

    Attributes:
        names: Zephyr's names of it, the newest first, then the name that the target ``c`` knows.
        known_as: the last of them, by which the target ``c`` tells what its core has; None where
            nothing is known but the name.
    """

    names: tuple[str, ...]
    known_as: str | None = None

    @property
    def kernels(self) -> Kernels:
        """What kernels of integer layers are written in: C, or assembly for an extension."""
        core = None if self.known_as is None else get_board(self.known_as)
        if core is None:
            return "c"
        return "mve" if core.has_mve else "dsp" if core.has_dsp else "c"

    @property
    def machine(self) -> str | None:
        """QEMU's name of the machine, or None where QEMU has none."""
        return None if self.known_as is None else get_board(self.known_as).qemu_machine


BOARDS = tuple(
    ZephyrBoard(names, names[-1])
    for names in (
        ("mps2/an385", "mps2-an385"),
        ("mps2/an386", "mps2-an386"),
        ("mps2/an500", "mps2-an500"),
        ("mps2/an521/cpu0", "mps2_an521", "mps2-an521"),
        ("mps3/corstone300/an547", "mps3/an547", "mps3-an547"),
        ("qemu_cortex_m3", "lm3s6965evb"),
        ("nucleo_l4r5zi",),
        ("nucleo_h743zi",),
        ("stm32f746g_disco",),
        ("nrf5340dk/nrf5340/cpuapp", "nrf5340dk"),
    )
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
