"""What an emulator gives back, and which code belongs to which layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import CompressError
from tvm_compress.targets.mcu.boards import Isa
from tvm_compress.targets.mcu.elf import Elf

__all__ = [
    "DISPATCH",
    "EDGES",
    "FIRST_LAYER",
    "INHERIT",
    "JUMPS",
    "OUTSIDE",
    "PASSED",
    "PLANES",
    "CodeMap",
    "Execution",
    "check_blocks",
    "code_map",
]

# Owners of code and planes of counts; runtime/layer_counter.h has the same numbers.
INHERIT, OUTSIDE, DISPATCH, FIRST_LAYER = 0, 1, 2, 3
EDGES, JUMPS, PASSED, PLANES = 0, 1, 2, 3

_HARNESS = ("harness_", "semihost_", "startup_", "main")


@dataclass(frozen=True)
class Execution:
    """How a run of a firmware ended.

    Attributes:
        exit_code: what the firmware gave to the semihosting exit call.
        files: the files that the firmware wrote, by name.
        counts: where counted, int64 of shape (PLANES, owners, halfwords + 1), by halfword of the
            :class:`CodeMap`. ``EDGES``: how often a block of code began here, less how often one
            ended here; the running sum is how often an instruction ran. ``JUMPS``: how often
            other code than the next followed what ends here. ``PASSED``: how often a watched
            instruction was not skipped.
    """

    exit_code: int
    files: dict[str, bytes]
    counts: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class CodeMap:
    """The owner of every halfword of code.

    Attributes:
        base: the address of the first halfword.
        owners: uint16, one a halfword: a layer's number (from ``FIRST_LAYER``), ``DISPATCH`` for
            the model's run function, ``OUTSIDE`` for the harness, ``INHERIT`` for code that
            counts for whoever called it (libm, memcpy).
        owner_count: one more than the largest owner.
        code: the bytes of the code, two a halfword.
        watched: bool, one a halfword: the instructions of which ``PASSED`` is counted, all of
            which access memory; see :func:`tvm_compress.targets.mcu.cycles.watch`.
        isa: whose instructions they are.
    """

    base: int
    owners: NDArray[np.uint16]
    owner_count: int
    code: bytes
    watched: NDArray[np.bool_]
    isa: Isa = "arm"

    @property
    def wide(self) -> NDArray[np.bool_]:
        """Whether an instruction that begins here has 32 bits; one a halfword.

        Sources: Armv7-M Architecture Reference Manual, A5.1 (the first halfword begins with
        0b11101 or more); The RISC-V Instruction Set Manual, Volume I, 1.5 (it ends with 0b11).
        """
        first = np.frombuffer(self.code, "<u2")[: len(self.owners)]
        wide: NDArray[np.bool_] = first & 3 == 3 if self.isa == "riscv" else first >> 11 >= 0b11101
        return wide


def code_map(elf: Elf, run_symbol: str, layer_symbols: tuple[str, ...]) -> CodeMap:
    """Tell from the functions' symbols which layer owns which code.

    A compiler may split a function ("f.part.0", "f.cold"): the pieces belong to the same layer.
    """
    owner_of = {run_symbol: DISPATCH}
    owner_of |= {symbol: FIRST_LAYER + index for index, symbol in enumerate(layer_symbols)}
    text = next(section for section in elf.sections if section.name == ".text")
    owners = np.zeros((text.size + 1) // 2, np.uint16)
    for symbol in elf.symbols:
        inside = text.address <= symbol.address < text.address + text.size
        if symbol.kind != "function" or not inside:
            continue
        start = (symbol.address - text.address) // 2
        stop = start + (symbol.size + 1) // 2
        owner = owner_of.get(symbol.name.split(".", 1)[0], INHERIT)
        if owner == INHERIT and symbol.name.startswith(_HARNESS):
            owner = OUTSIDE
        if owner != INHERIT:
            owners[start:stop] = owner
    segment = next(
        part
        for part in elf.segments
        if part.virtual <= text.address < part.virtual + len(part.data)
    )
    offset = text.address - segment.virtual
    code = segment.data[offset : offset + 2 * len(owners)].ljust(2 * len(owners), b"\0")
    watched = np.zeros(len(owners), np.bool_)
    count = FIRST_LAYER + len(layer_symbols)
    return CodeMap(text.address, owners, count, code, watched, elf.isa)


def check_blocks(unknown: int) -> None:
    """Check that all code that ran was in the map.

    Args:
        unknown: blocks of code that ran outside.

    Raises:
        CompressError: there were some.
    """
    if unknown:
        raise CompressError(
            "The firmware ran code outside its section .text, which cannot be counted. "
            "Keep functions in .text."
        )
