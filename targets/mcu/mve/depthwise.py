"""Depthwise int8 convolution with windows of up to 4 x 4, for Cortex-M with MVE.

Four rows of the input at a time are interleaved byte by byte (VST4), padding included, so that the
four inputs of a channel in one column lie in one word. A gathering load fetches four such words,
the patch of 4 x 4 inputs of one channel, and each output inside it is one VMLADAV: with a window of
3 x 3 and no stride, one load and four products for four outputs. Weights lie in the registers of
each output's window, 0 outside it. Weights of 9 bits are the sum of two of 8 bits, the second of
which is loaded where it is multiplied.

Rows are interleaved once for every one or two rows of outputs. The four sums in a vector are those
of one channel, so the constants of requantization are core registers; its bytes are scattered over
the pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.mve.assembler import VectorAssembler, vectors
from tvm_compress.targets.mcu.mve.requantize import VectorRequantize
from tvm_compress.targets.mcu.mve.weights import halves

__all__ = ["VectorDepthwise"]

Array = NDArray[Any]

_STEP = 16
# Rows and columns of a patch; lanes of a vector of sums.
_PATCH = 4
_LANES = 4
_SUMS = ("r0", "r2", "r4", "r6")
_ROWS = ("r2", "r4", "r6", "r8")
# Tiles of a row that are written one behind the other and not in a loop.
_UNROLL = 3


class VectorDepthwise:
    """The kernel of one layer; see the module's docstring."""

    layout = "mve"

    def __init__(self, layer: IntegerLayer) -> None:
        self.layer, self.g = layer, layer.geometry
        self.requantize = VectorRequantize(layer.requantize)
        g = self.g
        fits = [(_PATCH - taps) // step + 1 for taps, step in zip(g.kernel, g.strides, strict=True)]
        # Outputs of a patch, and of a vector of sums, which takes one or more patches side by side.
        self.rows = min(fits[0], 2, g.out_size[0])
        self.patch = min(fits[1], _LANES // self.rows, g.out_size[1])
        if self.patch == 3:  # patches fill a vector
            self.patch = 2
        self.columns = _LANES // self.rows
        self.tiles = -(-g.out_size[1] // self.columns)
        self.strips = -(-g.out_size[0] // self.rows)
        self._split = len(halves(layer.weights)) > 1
        self.out = VectorAssembler()

    @staticmethod
    def refuses(layer: IntegerLayer) -> str | None:
        """Say why the layer cannot be computed this way, or None."""
        g = layer.geometry
        if g.batch != 1:
            return "the batch is not 1"
        if g.inputs != 1 or g.groups != g.outputs or g.groups == 1:
            return "it is not depthwise with one output a channel"
        if g.rank == 0 or not g.channels_last:
            return "its channels come first"
        if max(g.kernel) > _PATCH or g.dilation != (1, 1):
            return "its window is larger than 4 x 4"
        if g.outputs * g.strides[1] >= 1 << 14:
            return "it has too many channels"
        if g.in_size[1] * g.outputs < _STEP:
            return "its rows are shorter than a vector"
        if layer.weights.min(initial=0) < -256 or layer.weights.max(initial=0) > 254:
            return "its weights have more than 9 bits"
        if layer.bound.max(initial=0) >= 1 << 31:
            return "its sums are too large"
        return VectorRequantize(layer.requantize).refuses()

    # -- memory -----------------------------------------------------------------------------------

    @property
    def _row_bytes(self) -> int:
        """Bytes of a row of the input."""
        return self.g.in_size[1] * self.g.outputs

    @property
    def _strip_columns(self) -> int:
        """Columns of the interleaved rows: padding, input, and what the last tile reads."""
        g = self.g
        last = (self.tiles * self.columns - self.patch) * g.strides[1] + _PATCH
        return max(g.padding[1] + g.in_size[1], last)

    @property
    def _strip_bytes(self) -> int:
        return self._strip_columns * self.g.outputs * _PATCH

    @property
    def _outside(self) -> bool:
        """Whether windows reach rows above or below the image."""
        g = self.g
        reach = (g.out_size[0] - 1) * g.strides[0] - g.padding[0] + g.kernel[0]
        return g.padding[0] > 0 or reach > g.in_size[0]

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch: four interleaved rows, and a row outside the image."""
        row = -(-self._row_bytes // 16) * 16 if self._outside else 0
        return -(-self._strip_bytes // 16) * 16 + row

    def stream(self) -> Array:
        """Give the offsets of a gathering load and of a scattering store, then the channels.

        Of each channel: the patch of weights of each output in it, bias, multiplier, shift, and
        what more than 8 bits of weights leave; uint32.
        """
        g, layer = self.g, self.layer
        lanes = [(row, column) for row in range(self.rows) for column in range(self.columns)]
        words = [column * g.outputs * _PATCH for column in range(_PATCH)]
        words += [(row * g.out_size[1] + column) * g.outputs for row, column in lanes]
        head = np.asarray(words, np.uint32)
        first, *second = (self._patches(part) for part in halves(layer.weights))
        of = layer.requantize
        constants = [layer.bias.astype(np.int32), of.multiplier.astype(np.int32)]
        if self.requantize.has_shifts:
            constants.append(self.requantize.shifts)
        block = np.stack(constants, axis=1).view(np.uint32)
        channels = np.concatenate([first, block, *second], axis=1)
        return np.concatenate([head, channels.reshape(-1)])

    def _patches(self, part: Array) -> Array:
        """Give the words of the weights of each output of a patch, (channels, words)."""
        g = self.g
        weights = part.reshape(g.outputs, *g.kernel)
        patches = np.zeros((g.outputs, self.rows, self.patch, _PATCH, _PATCH), np.int8)
        for row in range(self.rows):
            for column in range(self.patch):
                top, left = row * g.strides[0], column * g.strides[1]
                # A column of a patch is a word: columns first.
                window = patches[:, row, column, left:, top:]
                window[:, : g.kernel[1], : g.kernel[0]] = weights.transpose(0, 2, 1)
        return patches.reshape(g.outputs, -1).view(np.uint32)

    # -- code -------------------------------------------------------------------------------------

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x, const void *stream, void *y, void *scratch)``."""
        self.out = VectorAssembler()
        out, g = self.out, self.g
        slots = ("x", "stream", "y", "strip", "outside", "row", "left", "end")
        size = 4 * len(slots) + 4
        self._frame = {name: 64 + 4 * i for i, name in enumerate(slots)}
        out.op("push {r4-r11, lr}", f"sub sp, sp, #{size}", "vpush {d8-d15}")
        for register, name in (("r0", "x"), ("r2", "y"), ("r3", "strip")):
            self._save(register, name)
        out.op("vldrw.u32 q4, [r1]", "vldrw.u32 q6, [r1, #16]", "add r1, r1, #32")
        self._save("r1", "stream")
        words = (len(self.stream()) - 8) * 4
        out.add("r1", "r1", words, "r2")
        self._save("r1", "end")
        self._fill()
        out.move("r0", -g.padding[0])
        self._save("r0", "row")
        spare = self.strips * self.rows - g.out_size[0]
        with out.counted_on_stack(self._frame["left"], "r0", self.strips):
            if spare and self.strips > 1:
                # The last strip begins earlier: outputs computed twice are the same.
                on = out.label()
                self._load("r0", "left")
                out.op("cmp r0, #1", f"bne {on}")
                with out.repeat(1 / self.strips):
                    self._back(spare)
                out.place(on)
            self._strip()
        out.op("vpop {d8-d15}", f"add sp, sp, #{size}", "pop {r4-r11, pc}")
        parameters = ["const void *x", "const void *stream", "void *y", "void *scratch"]
        return out.function(parameters)

    def _save(self, register: str, slot: str) -> None:
        self.out.op(f"str {register}, [sp, #{self._frame[slot]}]")

    def _load(self, register: str, slot: str) -> None:
        self.out.op(f"ldr {register}, [sp, #{self._frame[slot]}]")

    def _fill(self) -> None:
        """Fill what no row of the image is ever written to with the padding's value."""
        out, zero = self.out, self.layer.zero
        self._load("r0", "strip")
        out.fill("r0", zero, self._strip_bytes, "r1")
        if self._outside:
            self._save("r0", "outside")
            out.fill("r0", zero, self._row_bytes, "r1")

    def _back(self, rows: int) -> None:
        out, g = self.out, self.g
        self._load("r0", "row")
        out.add("r0", "r0", -rows * g.strides[0])
        self._save("r0", "row")
        self._load("r0", "y")
        out.add("r0", "r0", -rows * g.out_size[1] * g.outputs, "r1")
        self._save("r0", "y")

    def _strip(self) -> None:
        """One or two rows of outputs."""
        out, g = self.out, self.g
        self._interleave()
        self._load("r10", "stream")
        self._load("r1", "strip")
        self._load("r3", "y")
        out.move("r9", self.layer.requantize.zero_point)
        if self._unrolled:
            with out.low_overhead(g.outputs):
                self._channel()
        else:
            self._load("r11", "end")
            with out.repeat(g.outputs) as start:
                self._channel()
                out.op("cmp r10, r11", f"bne {start}")
        self._load("r0", "y")
        out.add("r0", "r0", self.rows * g.out_size[1] * g.outputs, "r1")
        self._save("r0", "y")

    def _interleave(self) -> None:
        """Interleave the next rows of the input."""
        out, g = self.out, self.g
        needed = (self.rows - 1) * g.strides[0] + g.kernel[0]
        self._load("r0", "row")
        self._load("r1", "x")
        out.move("r3", self._row_bytes)
        if self._outside:
            self._load("r5", "outside")
        for i, register in enumerate(_ROWS[:needed]):
            out.add("r7", "r0", i)
            out.op(f"mla {register}, r7, r3, r1")
            if self._outside:
                out.move("r9", g.in_size[0])
                # Unsigned: rows above the image too.
                out.op("cmp r7, r9", "it hs", f"movhs {register}, r5")
        out.add("r0", "r0", self.rows * g.strides[0])
        self._save("r0", "row")
        self._load("r0", "strip")
        out.add("r0", "r0", g.padding[1] * g.outputs * _PATCH, "r7")
        whole, rest = divmod(self._row_bytes, _STEP)
        rounds, single = divmod(whole, 2)
        if rounds:
            with out.low_overhead(rounds):
                self._interleave_step(needed)
                self._interleave_step(needed)
        if single:
            self._interleave_step(needed)
        if rest:  # it begins earlier: bytes written twice are the same
            for register in _ROWS[:needed]:
                out.op(f"sub {register}, {register}, #{_STEP - rest}")
            out.op(f"sub r0, r0, #{(_STEP - rest) * _PATCH}")
            self._interleave_step(needed)

    def _interleave_step(self, rows: int) -> None:
        out = self.out
        for i in range(rows):
            out.op(f"vldrb.u8 q{i}, [{_ROWS[i]}], #{_STEP}")
        for i in range(4):
            out.op(f"vst4{i}.8 {{q0, q1, q2, q3}}, [r0]{'!' if i == 3 else ''}")

    # -- products ---------------------------------------------------------------------------------

    @property
    def _unrolled(self) -> bool:
        """Whether the tiles of a row are written one behind the other; else lr counts them."""
        return self.tiles <= _UNROLL

    def _channel(self) -> None:
        """One channel of a strip: r10 its words, r1 its first patch, r3 its first output."""
        out = self.out
        out.op(f"vldmia r10!, {vectors(0, self.rows * self.patch)}")
        out.load_words("r10", ("r5", "r7", "r8")[: 3 if self.requantize.has_shifts else 2])
        whole, rest = divmod(self.g.out_size[1], self.columns)
        widths = [self.columns] * whole + [rest] * bool(rest)
        if not self._unrolled:
            with out.low_overhead(whole):
                self._tile(self.columns)
            widths = widths[whole:]
        for i, columns in enumerate(widths):
            self._tile(columns, last=i == len(widths) - 1)
        if self._split:
            out.op(f"add r10, r10, #{16 * self.rows * self.patch}")
        # On to the next channel of the row's first pixel.
        x_moved, y_moved = self.tiles * self.columns, self.tiles * self.columns
        if widths:  # behind the last tile nothing moved
            y_moved -= self.columns
            x_moved -= self.columns - (-(-widths[-1] // self.patch) - 1) * self.patch
        out.add("r1", "r1", _PATCH - x_moved * self._patch_bytes, "r0")
        out.add("r3", "r3", 1 - y_moved * self.g.outputs, "r0")

    @property
    def _patch_bytes(self) -> int:
        """Bytes of the interleaved rows from one column of outputs to the next."""
        return self.g.strides[1] * self.g.outputs * _PATCH

    def _tile(self, columns: int, last: bool = False) -> None:
        """One vector of outputs, of whose columns so many are stored."""
        out, g, of = self.out, self.g, self.requantize
        patches = -(-columns // self.patch)  # what lies behind the last column is not loaded
        for patch in range(patches):
            out.op("vldrw.u32 q5, [r1, q4]")
            for row in range(self.rows):
                for column in range(self.patch):
                    lane = row * self.columns + patch * self.patch + column
                    output = row * self.patch + column
                    out.op(f"vmladav.s8 {_SUMS[lane]}, q{output}, q5")
                    if self._split:
                        out.op(f"vldrw.u32 q7, [r10, #{16 * output}]")
                        out.op(f"vmladava.s8 {_SUMS[lane]}, q7, q5")
            if patch < patches - 1 or not last:
                out.add("r1", "r1", self.patch * self._patch_bytes)
        out.op("vmov q5[2], q5[0], r0, r4", "vmov q5[3], q5[1], r2, r6")
        out.op("vadd.i32 q5, q5, r5")
        of.multiply(out, ["q5"], ["r7"], "q7")
        of.narrow(out, ["q5"], ["r8"], "r9")
        of.clamp(out, "q5", "q7", "r0")
        if columns < self.columns:
            lanes = sum(
                0xF << 4 * (r * self.columns + c) for r in range(self.rows) for c in range(columns)
            )
            out.move("r0", lanes)
            out.op("vmsr p0, r0", "vpst", "vstrbt.32 q5, [r3, q6]")
        else:
            out.op("vstrb.32 q5, [r3, q6]")
        if not last:
            out.add("r3", "r3", self.columns * g.outputs)
