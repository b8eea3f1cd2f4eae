"""Pooling of int8 maps with their channels last: means and maxima of windows.

Means: SXTAB16 adds two channels of a pixel to two sums of 16 bits, which hold 256 pixels and then
move into words. What makes bytes of the sums, a division or a requantization, follows in registers.

Maxima: SSUB8 compares four channels, and SEL takes the larger ones. A window that reaches beyond
the image is a smaller one; windows of one size that follow each other share their instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import Assembler, AssemblyFunction
from tvm_compress.targets.mcu.dsp.requantize import clamp
from tvm_compress.targets.mcu.integer_steps import Mean, Node, Windows

__all__ = ["Maxima", "Means"]

_LANE_PIXELS = 256  # of -128 each give -2**15
_UNROLL = 8
_INLINE_PIXELS = 32
_OFFSETS = 4096  # of a load
_SUMS = ("r7", "r8", "r9", "r10")
_CONSTANTS = ("r3", "r4", "r5", "r6", "r11", "lr")


class Means:
    """The kernel of a :class:`Mean`: ``y[h, w, c]`` from the sum of the window of ``x``."""

    layout = "sxtab16"
    scratch_bytes = 0
    arrays: tuple[NDArray[Any], ...] = ()

    def __init__(self, mean: Mean) -> None:
        self.mean = mean
        self.out = Assembler()
        self.tail = _Tail(mean.root)

    @staticmethod
    def refuses(mean: Mean) -> str | None:
        """Say why the means cannot be computed this way, or None."""
        w = mean.windows
        if not w.inside:
            return "a window reaches beyond the image"
        if w.channels < 4:
            return "it has fewer than four channels"
        if w.channels >= _OFFSETS or math.prod(w.kernel) >= 1 << 24:
            return "it is too large"
        if math.prod(w.kernel) > _LANE_PIXELS and not _in_one_piece(w):
            return "a window is too large"
        return _Tail(mean.root).refuses()

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x, void *y, void *scratch)``."""
        self.out = Assembler()
        out, w = self.out, self.mean.windows
        out.op("push {r4-r11, lr}")
        loops = max(w.out_size) > 1
        if loops:
            out.op("sub sp, sp, #8")
        columns, pitch = w.out_size[1] * w.strides[1], w.in_size[1]
        with out.counted_on_stack(0, "r2", w.out_size[0]):
            with out.counted_on_stack(4, "r2", w.out_size[1]):
                self._pixel()
                if w.out_size[1] > 1:
                    out.add("r0", "r0", (w.strides[1] - 1) * w.channels, "r2")
            # A lone column has not moved on to the next one.
            moved = columns if w.out_size[1] > 1 else 1
            if w.out_size[0] > 1:
                out.add("r0", "r0", (w.strides[0] * pitch - moved) * w.channels, "r2")
        if loops:
            out.op("add sp, sp, #8")
        out.op("pop {r4-r11, pc}")
        return out.function(["const void *x", "void *y", "void *scratch"])

    def _pixel(self) -> None:
        """Write all channels of one output."""
        out = self.out
        whole, rest = divmod(self.mean.windows.channels, 4)
        count = whole + (rest > 0)
        with out.counted("r12", count):
            self._four()
            out.op("add r0, r0, #4")
            if rest:  # the second four begin earlier: what is computed twice is the same
                out.op(f"cmp r12, #{count}", "itt eq")
                out.op(f"subeq r0, r0, #{4 - rest}", f"subeq r1, r1, #{4 - rest}")

    def _four(self) -> None:
        out, w = self.out, self.mean.windows
        height, width = w.kernel
        out.op("mov r2, r0")
        if _in_one_piece(w):
            height, width = 1, height * width
        if height * width <= _LANE_PIXELS:
            out.op("mov r5, #0", "mov r6, #0")
            times = 1 if height * width <= _INLINE_PIXELS else height
            with out.counted("r11", times):
                for row in range(height // times):
                    self._run(width)
                    if row + 1 < height or times > 1:
                        out.add("r2", "r2", (w.in_size[1] - width) * w.channels, "r4")
            out.op("sxth r7, r5", "sxth r8, r6", "asr r9, r5, #16", "asr r10, r6, #16")
        else:
            chunks, rest = divmod(width, _LANE_PIXELS)
            out.op(*(f"mov {register}, #0" for register in _SUMS))
            with out.counted("r11", chunks):
                self._chunk(_LANE_PIXELS)
            if rest:
                self._chunk(rest)
        self.tail.constants(out)
        for register in _SUMS:
            self.tail.emit(out, register)
            out.op(f"strb {register}, [r1], #1")

    def _chunk(self, pixels: int) -> None:
        out = self.out
        out.op("mov r5, #0", "mov r6, #0")
        self._run(pixels)
        out.op("sxtah r7, r7, r5", "sxtah r8, r8, r6")
        out.op("add r9, r9, r5, asr #16", "add r10, r10, r6, asr #16")

    def _run(self, pixels: int) -> None:
        """Add pixels that follow each other; r2 moves behind them."""
        step = self.mean.windows.channels
        unroll = min(_UNROLL, (_OFFSETS - 1) // step + 1)
        rounds, rest = divmod(pixels, unroll)
        if rounds:
            with self.out.counted("r3", rounds):
                self._add(unroll)
        if rest:
            self._add(rest)

    def _add(self, pixels: int) -> None:
        out, step = self.out, self.mean.windows.channels
        for first in range(0, pixels, 2):
            pair = list(zip(("r4", "lr"), range(first, min(first + 2, pixels)), strict=False))
            for register, pixel in pair:
                out.op(f"ldr {register}, [r2, #{pixel * step}]")
            for register, _ in pair:
                out.op(f"sxtab16 r5, r5, {register}", f"sxtab16 r6, r6, {register}, ror #8")
        out.add("r2", "r2", pixels * step, "r4")


def _in_one_piece(w: Windows) -> bool:
    """Whether the pixels of a window follow each other in memory."""
    return w.kernel[0] == 1 or w.kernel[1] == w.in_size[1]


class _Tail:
    """Makes the byte of a sum in its register; r2 is lost."""

    def __init__(self, root: Node) -> None:
        self.low, self.high = -128, 127
        self.whole = root
        while root.op in ("at_least", "at_most"):
            if root.op == "at_least":
                self.low = max(self.low, root.value)
            else:
                self.high = min(self.high, root.value)
            root = root.args[0]
        self.root = root
        self.steps = [node for node in root.walk() if node.args]
        words = [word for node in self.steps for word in _words(node)]
        self.registers = dict(zip(dict.fromkeys(words), _CONSTANTS, strict=False))
        self.too_many = len(set(words)) > len(_CONSTANTS)

    def refuses(self) -> str | None:
        """Say why the tree cannot be computed this way, or None."""
        if (why := self.whole.overflow) is not None:
            return why
        if self.whole.interval[0] < -128 or self.whole.interval[1] > 127:
            return "its result could leave int8"
        if any(node.op in ("at_least", "at_most", "subtract", "add") for node in self.steps):
            return "there is more between the sum and its clamp than a chain of numbers"
        return "there are too many constants" if self.too_many else None

    def constants(self, out: Assembler) -> None:
        """Load what the steps take."""
        for word, register in self.registers.items():
            out.move(register, word)

    def emit(self, out: Assembler, t: str) -> None:
        """Turn the sum in a register into the byte to store."""
        for node in self.steps:
            self._step(out, node, t)
        low, high = self.root.interval
        if low < -128 or high > 127:
            out.op(f"ssat {t}, #8, {t}")
        # What is beyond the interval needs no comparison.
        clamp(
            out, t, -128 if low >= self.low else self.low, 127 if high <= self.high else self.high
        )

    def _step(self, out: Assembler, node: Node, t: str) -> None:
        v = node.value
        word = self.registers[_words(node)[0]] if _words(node) else ""
        if node.op == "add_number":
            if word:
                out.op(f"add {t}, {t}, {word}")
            else:
                out.add(t, t, v)
        elif node.op == "multiply":
            out.op(f"lsl {t}, {t}, #{v.bit_length() - 1}" if not word else f"mul {t}, {t}, {word}")
        elif node.op in ("high", "low"):
            r = "r" if node.op == "high" else ""
            # The doubled factor may stand for itself less 2**32: then the sum is added on top.
            mul = f"smmul{r} {t}, {t}, {word}"
            out.op(mul if v < 1 << 30 else f"smmla{r} {t}, {t}, {word}, {t}")
        elif node.op == "divide":
            out.op(f"sdiv {t}, {t}, {word}")
        elif node.op == "divide_away":
            half = self.registers[v // 2]
            # Below zero the half's complement is its negative less one.
            out.op(f"eor r2, {half}, {t}, asr #31", f"add {t}, {t}, r2")
            out.op(f"add {t}, {t}, {t}, lsr #31", f"sdiv {t}, {t}, {word}")
        elif v:
            if node.op == "halve_away" and node.args[0].interval[0] < 0:
                out.op(f"add {t}, {t}, {t}, asr #31")
            if node.op != "right_shift":
                out.op(f"add {t}, {t}, {word}")
            out.op(f"asr {t}, {t}, #{v}")


def _words(node: Node) -> list[int]:
    """Give the constants that a step takes from registers."""
    v = node.value
    if node.op == "add_number":
        return [] if abs(v) < 1 << 12 else [v]
    if node.op == "multiply":
        return [] if v > 0 and v & (v - 1) == 0 else [v]
    if node.op in ("high", "low"):
        return [2 * v & 0xFFFFFFFF]
    if node.op == "divide":
        return [v]
    if node.op == "divide_away":
        return [v, v // 2]
    return [1 << (v - 1)] if node.op in ("halve_up", "halve_away") and v else []


@dataclass(frozen=True)
class _Segment:
    """Windows along an axis that follow each other evenly and have one size.

    ``first`` is where the first of them begins within the image, ``step`` from one to the next.
    """

    first: int
    step: int
    count: int
    size: int


class Maxima:
    """The kernel of a maximum pool: ``y[h, w, c]``, the largest of the window of ``x``."""

    layout = "ssub8"
    scratch_bytes = 0
    arrays: tuple[NDArray[Any], ...] = ()

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.out = Assembler()

    @staticmethod
    def refuses(windows: Windows) -> str | None:
        """Say why the maxima cannot be computed this way, or None."""
        w = windows
        if w.channels < 4:
            return "it has fewer than four channels"
        segments = [_segments(w, axis) for axis in (0, 1)]
        if min(s.size for each in segments for s in each) < 1:
            return "a window lies beyond the image"
        if max(s.size for s in segments[0]) > len(_ROWS):
            return "a window is too high"
        if max(s.size for s in segments[1]) * w.channels > _OFFSETS:
            return "a window is too wide"
        return None

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x, void *y, void *scratch)``."""
        self.out = Assembler()
        out, w = self.out, self.windows
        pitch = w.in_size[1] * w.channels
        out.op("push {r4-r12, lr}")
        out.move("r10", pitch)
        at = 0  # the row of the image where lr points to
        out.op("mov lr, r0")
        for rows in _segments(w, 0):
            out.add("lr", "lr", (rows.first - at) * pitch, "r8")
            with out.counted("r12", rows.count):
                for columns in _segments(w, 1):
                    out.add("r0", "lr", columns.first * w.channels, "r8")
                    with out.counted("r11", columns.count):
                        self._pixel(rows.size, columns.size)
                        if columns.count > 1:
                            out.add("r0", "r0", columns.step * w.channels, "r8")
                if rows.count > 1:
                    out.add("lr", "lr", rows.step * pitch, "r8")
            at = rows.first + (rows.step * rows.count if rows.count > 1 else 0)
        out.op("pop {r4-r12, pc}")
        return out.function(["const void *x", "void *y", "void *scratch"])

    def _pixel(self, height: int, width: int) -> None:
        """Write all channels of the window at r0."""
        out = self.out
        whole, rest = divmod(self.windows.channels, 4)
        rows = _ROWS[:height]
        for i, row in enumerate(rows):
            out.op(f"add {row}, {rows[i - 1]}, r10" if i else f"mov {row}, r0")
        with out.counted("r9", whole):
            self._four(rows, width)
        if rest:  # it begins earlier: what is computed twice is the same
            out.op(*(f"sub {register}, {register}, #{4 - rest}" for register in (*rows, "r1")))
            self._four(rows, width)

    def _four(self, rows: Sequence[str], width: int) -> None:
        out, step = self.out, self.windows.channels
        to = "r6"
        for row in rows:
            for column in reversed(range(width)):  # the last load moves on to the next channels
                offset = f", #{column * step}]" if column else "], #4"
                out.op(f"ldr {to}, [{row}{offset}")
                if to == "r7":
                    out.op("ssub8 r8, r6, r7", "sel r6, r6, r7")
                to = "r7"
        out.op("str r6, [r1], #4")


_ROWS = ("r2", "r3", "r4", "r5")


def _segments(w: Windows, axis: int) -> list[_Segment]:
    """Give the windows along an axis."""
    found: list[_Segment] = []
    for i in range(w.out_size[axis]):
        start = i * w.strides[axis] - w.padding[axis]
        first, last = max(start, 0), min(start + w.kernel[axis], w.in_size[axis])
        size = last - first
        if found and found[-1].size == size:
            # Windows of one size are whole, or cover all of the image, or are two at its ends: the
            # steps between them are equal.
            old = found[-1]
            step = first - old.first if old.count == 1 else old.step
            found[-1] = _Segment(old.first, step, old.count + 1, size)
            continue
        found.append(_Segment(first, 0, 1, size))
    return found
