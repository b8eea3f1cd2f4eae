"""The addition of two int8 tensors of different scales, as the end of a convolution.

Where sums are rounded once, it is ``(a * factor + b * factor + constant) >> shift``. TensorFlow
Lite's ADD brings both inputs to one scale, ``(x - zero) * 2**20`` times a factor, adds them and
requantizes the sum. An int8 has 256 values, so the first part is a table of each input,
made in scratch when the layer begins; an element costs two loads, an addition and a requantization.
The convolution leaves the outputs of a tile in scratch, and the sum takes the residual's place:
it may be written over it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm_compress.targets.mcu.dsp.assembler import Assembler
from tvm_compress.targets.mcu.dsp.requantize import Requantize, clamp

__all__ = ["Addition", "Rescaled", "Residual", "WeightedSum"]

_TABLE_BYTES = 1024


@dataclass(frozen=True)
class Rescaled:
    """How an input becomes a term: ``(x - zero_point) * 2**left``, requantized by the factor."""

    zero_point: int
    left: int
    multiplier: int
    shift: int


@dataclass(frozen=True)
class Residual:
    """What follows a convolution: terms of its output and of the residual, and of their sum."""

    own: Rescaled
    other: Rescaled
    total: Requantize

    def refuses(self) -> str | None:
        """Say why these instructions would not give the exact bytes, or None."""
        for term in (self.own, self.other):
            if not -31 < term.shift <= 0 or term.multiplier < 1 << 30:
                return "a term of the sum is scaled up"
        if self.total.rounding != "double" or not self.total.uniform:
            return "the sum is not rounded twice"
        return self.total.refuses()

    def scratch_bytes(self, sums: int) -> int:
        """Bytes of scratch: ``sums`` outputs of a tile, and the two tables."""
        return -(-sums // 8) * 8 + 2 * _TABLE_BYTES

    def prepare(self, out: Assembler, frame: dict[str, int], sums: int) -> None:
        """Make the tables behind the outputs of a tile; their address goes into the frame."""
        out.op(f"ldr r0, [sp, #{frame['out']}]")
        out.add("r0", "r0", -(-sums // 8) * 8, "r1")
        out.op(f"str r0, [sp, #{frame['tables']}]")
        for term in (self.own, self.other):
            down = -term.shift
            out.move("r2", 2 * term.multiplier)
            out.move("r3", term.zero_point << term.left)
            if down:
                out.move("r6", 1 << (down - 1))
            out.op("mov r1, #0")
            with out.repeat(256) as start:
                # The table goes by the byte's unsigned value.
                out.op("sxtb r4, r1", f"rsb r4, r3, r4, lsl #{term.left}")
                out.op("smmlar r4, r4, r2, r4")
                if down:
                    out.op("add r4, r4, r4, asr #31", "add r4, r4, r6", f"asr r4, r4, #{down}")
                out.op("str r4, [r0], #4", "add r1, r1, #1", "cmp r1, #256", f"bne {start}")

    def merge(self, out: Assembler, frame: dict[str, int], count: int) -> None:
        """Add ``count`` outputs of a tile to the residual, into the output."""
        out.op(f"ldr r3, [sp, #{frame['tables']}]")
        out.add("r4", "r3", _TABLE_BYTES)
        for register, word in zip(("r5", "r6"), self.total.words(0), strict=True):
            out.move(register, word)
        _elements(out, frame, count, "u", self._element)

    def _element(self, out: Assembler) -> None:
        out.op("ldr r9, [r3, r9, lsl #2]", "ldr r10, [r4, r10, lsl #2]", "add r9, r9, r10")
        self.total.emit(out, "r9", ["r5", "r6"])


@dataclass(frozen=True)
class WeightedSum:
    """What follows a convolution: ``(a * own + b * other + constant) >> shift``, clamped."""

    own: int
    other: int
    constant: int
    shift: int
    low: int
    high: int

    def refuses(self) -> str | None:
        """Say why these instructions would not give the exact bytes, or None."""
        if not 1 <= self.shift <= 31:
            return "the shift is out of range"
        largest = 128 * (abs(self.own) + abs(self.other)) + abs(self.constant)
        return "its sums are too large" if largest >= 1 << 31 else None

    def scratch_bytes(self, sums: int) -> int:
        """Bytes of scratch: ``sums`` outputs of a tile."""
        return -(-sums // 8) * 8

    def prepare(self, out: Assembler, frame: dict[str, int], sums: int) -> None:
        """Write what runs once: nothing."""

    def merge(self, out: Assembler, frame: dict[str, int], count: int) -> None:
        """Add ``count`` outputs of a tile to the residual, into the output."""
        for register, word in (("r3", self.own), ("r4", self.other), ("r5", self.constant)):
            out.move(register, word)
        _elements(out, frame, count, "s", self._element)

    def _element(self, out: Assembler) -> None:
        out.op("mla r9, r9, r3, r5", "mla r9, r10, r4, r9")
        out.op(f"ssat r9, #8, r9, asr #{self.shift}")
        clamp(out, "r9", self.low, self.high)


Addition = Residual | WeightedSum


def _elements(
    out: Assembler,
    frame: dict[str, int],
    count: int,
    sign: str,
    element: Callable[[Assembler], None],
) -> None:
    """Go over the outputs of a tile: r9 and r10 are widened, r9 is stored."""
    for register, slot in (("r0", "out"), ("r1", "residual"), ("r2", "y")):
        out.op(f"ldr {register}, [sp, #{frame[slot]}]")
    quads, rest = divmod(count, 4)
    if quads:
        with out.counted("lr", quads):
            out.op("ldr r7, [r0], #4", "ldr r8, [r1], #4")
            for i in range(4):
                turned = f", ror #{8 * i}" if i else ""
                out.op(f"{sign}xtb r9, r7{turned}", f"{sign}xtb r10, r8{turned}")
                element(out)
                out.op("strb r9, [r2], #1")
    load = "ldrb" if sign == "u" else "ldrsb"
    for _ in range(rest):
        out.op(f"{load} r9, [r0], #1", f"{load} r10, [r1], #1")
        element(out)
        out.op("strb r9, [r2], #1")
