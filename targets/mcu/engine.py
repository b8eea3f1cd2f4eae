"""What an emulator gives back, and which code belongs to which layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.elf import Elf

__all__ = ["DISPATCH", "FIRST_LAYER", "INHERIT", "OUTSIDE", "CodeMap", "Execution", "code_map"]

# Owners of code; runtime/layer_counter.h has the same numbers.
INHERIT, OUTSIDE, DISPATCH, FIRST_LAYER = 0, 1, 2, 3

_HARNESS = ("harness_", "semihost_", "startup_", "main")


@dataclass(frozen=True)
class Execution:
    """How a run of a firmware ended.

    Attributes:
        exit_code: what the firmware gave to the semihosting exit call.
        files: the files that the firmware wrote, by name.
        counts: instructions by owner (uint64, index as in :class:`CodeMap`), where counted.
    """

    exit_code: int
    files: dict[str, bytes]
    counts: NDArray[np.uint64] | None = None


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
    """

    base: int
    owners: NDArray[np.uint16]
    owner_count: int
    code: bytes


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
    return CodeMap(text.address, owners, FIRST_LAYER + len(layer_symbols), code)
