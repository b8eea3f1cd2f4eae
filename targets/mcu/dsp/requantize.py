"""Requantization in the registers of a Cortex-M with the DSP extension.

Rounding twice, as TensorFlow Lite does: the doubled product's high word, rounded, is one SMMLAR,
because ``2 * m - 2**32`` fits a signed word and ``acc * 2 * m = acc * (2 * m - 2**32) + acc *
2**32``. The second rounding goes half away from zero: one is taken off a negative number before
the half is added (not where a rectifier cuts all negative numbers). Rounding once takes SMMLA with
the half (and the zero point) as its addend.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import Assembler

__all__ = ["Requantize", "clamp"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Requantize:
    """What follows a sum; ``multiplier`` and ``shift`` are int32 of shape (outputs,)."""

    multiplier: Array
    shift: Array
    zero_point: int
    rounding: Literal["single", "double"]
    low: int
    high: int

    def refuses(self) -> str | None:
        """Say why these instructions would not give the exact bytes, or None."""
        m, s = self.multiplier.astype(np.int64), self.shift.astype(np.int64)
        if (m <= 0).any():
            return "a multiplier is not positive"
        if not -128 <= self.zero_point <= 127:
            return "the zero point is not an int8"
        if self.rounding == "double":
            # Where shifts differ and negative numbers count, each has a half to add, which a shift
            # of 0 has not.
            if s.max() > (0 if self.uniform or self.rectified else -1) or s.min() < -22:
                return "a shift is out of range"
            if m.min() < 1 << 30:
                return "a multiplier is not normalised"
            return None
        if len(np.unique(s)) != 1:
            return "the shifts differ"
        if not 1 <= self.single_shift <= 15:
            return "the shift is out of range"
        return None

    @property
    def rectified(self) -> bool:
        """Whether negative numbers end at ``low`` however they are rounded."""
        return max(self.low, -128) >= self.zero_point

    @property
    def single_shift(self) -> int:
        """Bits that remain to be shifted behind the high word of the product."""
        return 31 - int(self.shift.flat[0]) - 32

    @cached_property
    def uniform(self) -> bool:
        """Whether all channels have one factor."""
        return len(np.unique(self.multiplier)) == len(np.unique(self.shift)) == 1

    @property
    def most_added(self) -> Array:
        """The largest magnitude that is added to each channel's sum before it is shifted.

        Rounding once adds to the high word of a product, which is less than half a word.
        """
        if self.rounding == "single":
            return np.zeros(len(self.shift), np.int64)
        down = np.maximum(-self.shift.astype(np.int64), 0)
        return np.asarray(1 + (1 + 2 * abs(self.zero_point) << down >> 1))

    def words(self, channel: int) -> list[int]:
        """Give the constants of a channel: factor and addend, and where it varies the shift."""
        m, s = int(self.multiplier[channel]), int(self.shift[channel])
        if self.rounding == "double":
            half = 1 << (-s - 1) if s else 0
            return [2 * m & 0xFFFFFFFF, half + (self.zero_point << -s), -s][
                : 2 + (not self.uniform)
            ]
        return [m, self._addend]

    @property
    def _addend(self) -> int:
        return (1 << (self.single_shift - 1)) + (self.zero_point << self.single_shift)

    @property
    def shared(self) -> list[int]:
        """The constants of all channels; the last is for sums that come 256 times larger."""
        if self.rounding == "double":
            return self.words(0) if self.uniform else []
        factor = [int(self.multiplier[0])] if self.uniform else []
        return [*factor, self._addend, self._addend << 8]

    def own(self, channel: int) -> list[int]:
        """Give the constants of a channel that are not shared."""
        if self.uniform:
            return []
        return self.words(channel)[: 3 if self.rounding == "double" else 1]

    def registers(self, own: list[str], shared: list[str], scaled: bool) -> list[str]:
        """Give the registers of :meth:`words` out of those of :attr:`own` and :attr:`shared`."""
        if self.rounding == "double":
            return own or shared
        *factor, addend, larger = shared
        return [*(own or factor), larger if scaled else addend]

    def emit(self, out: Assembler, total: str, words: list[str], scaled: bool = False) -> None:
        """Turn a sum into the byte to store; ``words`` are the registers of :meth:`words`.

        ``scaled`` says that the sum comes 256 times too large.
        """
        if self.rounding == "double":
            multiplier, addend, *shift = words
            if scaled:
                out.op(f"asr {total}, {total}, #8")
            out.op(f"smmlar {total}, {total}, {multiplier}, {total}")
            constant = -int(self.shift[0])
            if (shift or constant) and not self.rectified:
                out.op(f"add {total}, {total}, {total}, asr #31")
            out.op(f"add {total}, {total}, {addend}")
            if shift:
                out.op(f"asr {total}, {total}, {shift[0]}")
            moved = "" if shift or not constant else f", asr #{constant}"
            out.op(f"ssat {total}, #8, {total}{moved}")
        else:
            multiplier, addend = words
            k = self.single_shift + (8 if scaled else 0)
            out.op(f"smmla {total}, {total}, {multiplier}, {addend}")
            out.op(f"ssat {total}, #8, {total}, asr #{k}")
        clamp(out, total, self.low, self.high)


def clamp(out: Assembler, register: str, low: int, high: int) -> None:
    """Clamp what lies between -128 and 127 further."""
    for bound, limit, condition in ((low, -128, "lt"), (high, 127, "gt")):
        if bound != limit:
            out.op(f"cmp {register}, #{bound}", f"it {condition}")
            out.op(f"mov{condition} {register}, #{bound & 0xFFFFFFFF}")
