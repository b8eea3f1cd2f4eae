"""Sums of each channel over all pixels, with MVE: what a global average pool divides."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.integer_steps import ChannelSums
from tvm_compress.targets.mcu.mve.assembler import VectorAssembler

__all__ = ["VectorSums"]

_UNROLL = 4


class VectorSums:
    """The kernel of :class:`ChannelSums`, four channels at a time."""

    layout = "mve"
    scratch_bytes = 0
    arrays: tuple[NDArray[Any], ...] = ()

    def __init__(self, sums: ChannelSums) -> None:
        self.sums = sums
        self.out = VectorAssembler()

    @staticmethod
    def refuses(sums: ChannelSums) -> str | None:
        """Say why the sums cannot be computed this way, or None."""
        if sums.channels < 4:
            return "it has fewer than four channels"
        if sums.channels >= 1 << 12 or sums.pixels >= 1 << 24:
            return "it is too large"
        return None

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x, void *y, void *scratch)``."""
        self.out = VectorAssembler()
        out, channels = self.out, self.sums.channels
        out.op("push {r4-r5, lr}")
        whole, rest = divmod(channels, 4)
        with out.counted("r3", whole):
            self._four()
            out.op("add r0, r0, #4")
        if rest:  # it begins earlier: sums computed twice are the same
            out.op(f"sub r0, r0, #{4 - rest}", f"sub r1, r1, #{4 * (4 - rest)}")
            self._four()
        out.op("pop {r4-r5, pc}")
        return out.function(["const void *x", "void *y", "void *scratch"])

    def _four(self) -> None:
        out = self.out
        rounds, rest = divmod(self.sums.pixels, _UNROLL)
        out.op("vmov.i32 q0, #0", "mov r2, r0")
        if rounds:
            with out.low_overhead(rounds):
                for _ in range(_UNROLL):
                    self._pixel()
        for _ in range(rest):
            self._pixel()
        out.op("vstrw.32 q0, [r1], #16")

    def _pixel(self) -> None:
        step = self.sums.channels
        if step <= 127:
            self.out.op(f"vldrb.s32 q1, [r2], #{step}")
        else:
            self.out.op("vldrb.s32 q1, [r2]")
            self.out.add("r2", "r2", step)
        self.out.op("vadd.i32 q0, q0, q1")
