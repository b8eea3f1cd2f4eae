"""Requantization of four sums a register, with MVE.

Rounding twice, as TensorFlow Lite does: the doubled product's high word, rounded, is VQRDMULH. The
second rounding goes half away from zero and VRSHL goes half upwards, so one is taken off negative
numbers first; where the lower limit is the zero point (a ReLU), negative numbers end at the limit
whichever way they were rounded, and this is left out.

Rounding once: VQDMULH gives ``floor(acc * m / 2**31)``; what it cuts off lies below the half that
the shift adds, so that the shift, which rounds upwards, gives the same as one rounding of all.

Where all channels share one shift of 1 to 16, the shift is an immediate of the instruction that
narrows to 16 bits. The zero point is added in 16 bits, where saturation changes nothing that
saturation to 8 bits would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.requantize import Requantize
from tvm_compress.targets.mcu.mve.assembler import VectorAssembler

__all__ = ["VectorRequantize"]

_NARROWING = 16  # the largest shift of VQRSHRNB


@dataclass(frozen=True)
class VectorRequantize:
    """Writes the instructions for a :class:`Requantize`."""

    of: Requantize

    def refuses(self) -> str | None:
        """Say why these instructions would not give the exact bytes, or None."""
        if (self.of.multiplier < 0).any():
            return "a multiplier is negative"
        # Without a second rounding there is no half to go away from zero.
        exact = self.of.rounding == "double" and not self._halves_away
        if self.shifts.max(initial=-1) > (0 if exact else -1) or self.shifts.min(initial=-1) < -31:
            return "a shift is out of range"
        if self.of.rounding == "single" and len(np.unique(self.shifts)) > 1:
            return "the shifts differ"
        return None

    @cached_property
    def shifts(self) -> NDArray[np.int32]:
        """Give the operands of VRSHL, places to the left; what is multiplied by 0 takes any."""
        used = self.of.multiplier != 0
        any_used = int(self.of.shift[used][0]) if used.any() else -1
        return np.where(used, self.of.shift, any_used).astype(np.int32)

    @cached_property
    def shared_shift(self) -> int | None:
        """The places that every channel is shifted right by while it is narrowed, or None."""
        places = np.unique(-self.shifts)
        return int(places[0]) if len(places) == 1 and 1 <= places[0] <= _NARROWING else None

    @property
    def has_shifts(self) -> bool:
        """Whether the shifts lie beside the multipliers."""
        return self.shared_shift is None

    @property
    def _halves_away(self) -> bool:
        return self.of.rounding == "double" and self.of.low < self.of.zero_point

    def multiply(
        self, out: VectorAssembler, sums: Sequence[str], factors: Sequence[str], scratch: str
    ) -> None:
        """Multiply vectors of four sums by vectors or by core registers; ``scratch`` is lost."""
        name = "vqrdmulh" if self.of.rounding == "double" else "vqdmulh"
        out.op(*(f"{name}.s32 {q}, {q}, {f}" for q, f in zip(sums, factors, strict=True)))
        if self._halves_away:
            for q in sums:
                out.op(f"vshr.s32 {scratch}, {q}, #31", f"vadd.i32 {q}, {q}, {scratch}")

    def narrow(
        self, out: VectorAssembler, sums: Sequence[str], shifts: Sequence[str], zero: str
    ) -> str:
        """Shift one, two or four vectors of four sums and narrow them to bytes.

        Element i of vector v becomes byte ``4 * i + v`` of a vector of bytes (four vectors), byte
        ``4 * i + 2 * v`` (two), or byte ``4 * i`` (one).

        Args:
            out: where to write.
            sums: vector registers; the first one holds the result.
            shifts: vector or core registers, unless :attr:`has_shifts` is false.
            zero: the core register that holds the zero point.

        Returns:
            The register with the bytes, not yet clamped further than to -128 .. 127.
        """
        if self.has_shifts:
            for q, shift in zip(sums, shifts, strict=True):
                # The form with a core register has two operands.
                out.op(
                    f"vrshl.s32 {q}, {shift}" if shift[0] == "r" else f"vrshl.s32 {q}, {q}, {shift}"
                )
        halves = len(sums) // 2 if len(sums) > 1 else 1
        for i, q in enumerate(sums):
            part, target = "bt"[i // halves], sums[i % halves]
            if self.has_shifts:
                out.op(f"vqmovn{part}.s32 {target}, {q}")
            else:
                out.op(f"vqrshrn{part}.s32 {target}, {q}, #{self.shared_shift}")
        if self.of.zero_point:
            out.op(*(f"vqadd.s16 {q}, {q}, {zero}" for q in sums[:halves]))
        for part, q in zip("bt", sums[:halves], strict=False):
            out.op(f"vqmovn{part}.s16 {sums[0]}, {q}")
        return sums[0]

    def clamp(self, out: VectorAssembler, q: str, scratch: str, core: str) -> None:
        """Clamp bytes to the limits; ``scratch``, a vector, and ``core`` are lost."""
        for name, bound, limit in (("vmax", self.of.low, -128), ("vmin", self.of.high, 127)):
            if bound != limit:
                out.move(core, bound & 0xFF)
                out.op(f"vdup.8 {scratch}, {core}", f"{name}.s8 {q}, {q}, {scratch}")
