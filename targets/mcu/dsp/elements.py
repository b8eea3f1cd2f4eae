"""Elementwise steps between layers: sums of two tensors, functions of one byte, uint8 borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import Assembler, AssemblyFunction
from tvm_compress.targets.mcu.dsp.residual import Addition

__all__ = ["Flip", "Sum", "Table"]

Array = NDArray[Any]
_UNROLL = 4


class Sum:
    """The kernel of an addition that no convolution takes in: ``y`` of ``x`` and ``other``."""

    layout = "dsp"
    arrays: tuple[Array, ...] = ()

    def __init__(self, addition: Addition, size: int) -> None:
        self.addition, self.size = addition, size
        self.scratch_bytes = addition.scratch_bytes(0)

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x, const void *other, void *y, void *scratch)``."""
        out = Assembler()
        # The arguments are the frame, and the tables are made where scratch begins.
        out.op("push {r0-r10, lr}")
        self.addition.prepare(out, {"out": 12, "tables": 12}, 0)
        self.addition.merge(out, {"out": 0, "residual": 4, "y": 8, "tables": 12}, self.size)
        out.op("add sp, sp, #16", "pop {r4-r10, pc}")
        parameters = ["const void *x", "const void *other", "void *y", "void *scratch"]
        return replace(out.function(parameters), in_place=(0, 1))


class Table:
    """The kernel of any function of one int8: 256 entries by the byte's unsigned value."""

    layout = "table"
    scratch_bytes = 0

    def __init__(self, entries: Sequence[int] | Array, size: int) -> None:
        """Take ``entries`` in the order of the signed values, -128 first, and how many bytes."""
        self.arrays = (np.roll(np.asarray(entries, np.int8), 128),)
        self.size = size

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x, const void *table, void *y, void *scratch)``."""
        out = Assembler()
        out.op("push {r4-r7}")
        rounds, rest = divmod(self.size, _UNROLL)
        if rounds:
            with out.counted("r3", rounds):
                self._some(out, _UNROLL)
        if rest:
            self._some(out, rest)
        out.op("pop {r4-r7}", "bx lr")
        parameters = ["const void *x", "const void *table", "void *y", "void *scratch"]
        return replace(out.function(parameters), in_place=(0,))

    @staticmethod
    def _some(out: Assembler, count: int) -> None:
        registers = ("r4", "r5", "r6", "r7")[:count]
        out.op(*(f"ldrb {register}, [r0], #1" for register in registers))
        out.op(*(f"ldrb {register}, [r1, {register}]" for register in registers))
        out.op(*(f"strb {register}, [r2], #1" for register in registers))


class Flip:
    """The kernel that makes int8 of uint8 by subtracting 128, and uint8 of int8 by adding it."""

    layout = "eor"
    scratch_bytes = 0
    arrays: tuple[Array, ...] = ()

    def __init__(self, size: int) -> None:
        self.size = size

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x, void *y, void *scratch)``."""
        out = Assembler()
        out.op("push {r4-r6}")
        rounds, rest = divmod(self.size, 4 * _UNROLL)
        if rounds:
            with out.counted("r2", rounds):
                self._words(out, _UNROLL)
        if rest // 4:
            self._words(out, rest // 4)
        for _ in range(rest % 4):
            out.op("ldrb r3, [r0], #1", "eor r3, r3, #0x80", "strb r3, [r1], #1")
        out.op("pop {r4-r6}", "bx lr")
        parameters = ["const void *x", "void *y", "void *scratch"]
        return replace(out.function(parameters), in_place=(0,))

    @staticmethod
    def _words(out: Assembler, count: int) -> None:
        registers = ("r3", "r4", "r5", "r6")[:count]
        out.op(*(f"ldr {register}, [r0], #4" for register in registers))
        out.op(*(f"eor {register}, {register}, #0x80808080" for register in registers))
        out.op(*(f"str {register}, [r1], #4" for register in registers))
