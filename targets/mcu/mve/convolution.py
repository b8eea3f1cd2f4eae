"""Int8 convolutions and products for Cortex-M with MVE, layer by layer.

One function computes a layer whole, pixel after pixel. The inner step is a product of 16 inputs of
one pixel with those of up to seven output channels: one load of the inputs, one of all the weights
(VLDM fills seven vector registers), seven VMLADAVA of 16 multiplications each; the sums lie in the
even core registers, which are the ones that this instruction adds to. A pixel of up to 48 inputs is
loaded once for all output channels.

The sums of all channels of a pixel go to a small buffer, and are requantized from there 16 at a
time (:mod:`~tvm_compress.targets.mcu.mve.requantize`). Narrowing interleaves its operands, so the
channels lie in the buffer in another order than in the output.

Where windows overlap or are padded, the rows that one row of windows covers are copied with the
padding around them, and slide on with the output's rows. From there either the steps read each row
of a window where it lies (``rows``), or the window is copied to one piece first, where its rows
are shorter than a step (``gather``). The cheaper one is taken, by the count of instructions. What
an incomplete step reads too much meets weights of 0.

Weights of 9 bits, as networks of uint8 have them, are the sum of two of 8 bits, and a window is
read once for each.

Weights with zeros, or with few different values, may be multiplied as they are packed
(:mod:`~tvm_compress.targets.mcu.mve.compressed`); windows then lie in one piece.

Biases, weights and the constants of requantization lie in one stream in the order of use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.mve.assembler import NEAR, VectorAssembler, vectors
from tvm_compress.targets.mcu.mve.compressed import TABLE, Compressed, compressed_forms
from tvm_compress.targets.mcu.mve.requantize import VectorRequantize
from tvm_compress.targets.mcu.mve.weights import halves

__all__ = ["VectorConvolution"]

Array = NDArray[Any]

# Inputs of a step: the bytes of a vector register.
_STEP = 16
_SUMS = ("r0", "r2", "r4", "r6", "r8", "r10", "r12")
# Core registers that no sum needs; r1 is the stream's address and r11 that of the sums.
_ODD = ("r3", "r5", "r7", "r9")
# The most steps whose inputs stay in registers, and the most steps of a piece that are unrolled.
_HELD = 3
_UNROLL = 12

Mode = Literal["pixels", "rows", "gather"]


@dataclass(frozen=True)
class _Piece:
    """Bytes of a window that lie side by side: ``steps`` of 16 from where ``register`` points.

    The last step begins earlier where it would end behind the piece, unless ``rounded``.
    """

    register: str
    size: int
    rounded: bool

    @property
    def steps(self) -> int:
        return -(-self.size // _STEP)

    @property
    def offsets(self) -> list[int]:
        """Where each step begins."""
        last = (self.steps - 1) * _STEP if self.rounded else max(self.size - _STEP, 0)
        return [*range(0, (self.steps - 1) * _STEP, _STEP), last]

    @property
    def far(self) -> bool:
        """Whether loads cannot reach all steps without moving the register."""
        return self.offsets[-1] > NEAR


class VectorConvolution:
    """The kernel of one layer; see the module's docstring.

    Args:
        layer: what to compute.
        mode: where windows are read; without it the cheapest way.
        compressed: the form of the weights, if it is not dense; it says where windows are read.
    """

    def __init__(
        self,
        layer: IntegerLayer,
        mode: Mode | None = None,
        *,
        compressed: Compressed | None = None,
    ) -> None:
        self.layer, self.g = layer, layer.geometry
        if self.g.pointwise:
            self.g = self.g.flattened()
        self.requantize = VectorRequantize(layer.requantize)
        self.compressed = compressed
        if compressed is not None:
            in_place = not compressed.layout.aligned and compressed.layout.read <= self.g.columns
            mode = "pixels" if self.g.kernel == (1, 1) and in_place else "gather"
        self.mode: Mode = self._cheapest() if mode is None else mode
        self.out = VectorAssembler()

    @property
    def layout(self) -> str:
        """How the weights lie in the stream."""
        return "mve" if self.compressed is None else f"mve_{self.compressed.name}"

    @classmethod
    def forms(cls, layer: IntegerLayer) -> list[VectorConvolution]:
        """Give the kernels of all forms that the layer's weights can have, dense first."""
        dense = cls(layer)
        places = dense.places()
        return [
            dense,
            *(cls(layer, compressed=form) for form in compressed_forms(layer.weights[:, places])),
        ]

    def cost(self, byte_cost: float) -> float:
        """Give the instructions of an inference, and those that the flash is worth."""
        function = self.function()
        return function.instructions + byte_cost * (function.code_bytes + self.stream_bytes)

    @property
    def stream_bytes(self) -> int:
        """Bytes of :meth:`stream`."""
        if self.compressed is None:
            return self.stream().nbytes
        head = self.compressed.layout.head().nbytes
        constants = sum(words.nbytes for words in self._constants())
        return head + self.compressed.stream_bytes(self._channels) + constants

    @staticmethod
    def refuses(layer: IntegerLayer) -> str | None:
        """Say why the layer cannot be computed this way, or None."""
        g = layer.geometry
        if (why := layer.not_dense) is not None:
            return why
        if g.kernel != (1, 1) and g.strides[0] > (g.kernel[0] - 1) * g.dilation[0] + 1:
            return "its stride is larger than its window"
        if layer.weights.min(initial=0) < -256 or layer.weights.max(initial=0) > 254:
            return "its weights have more than 9 bits"
        if layer.bound.max(initial=0) >= 1 << 31:
            return "its sums are too large"
        row = (g.in_size[1] + g.padding[1] + g.kernel[1]) * g.inputs
        if g.kernel != (1, 1) and row * g.kernel[0] * g.dilation[0] > 1 << 20:
            return "its rows are too long"
        return VectorRequantize(layer.requantize).refuses()

    def _cheapest(self) -> Mode:
        if self.g.kernel == (1, 1):
            return "pixels"
        modes: list[Mode] = ["gather"]
        near = self.g.dilation[1] == 1 and self._row_bytes >= _STEP
        if near and self.g.kernel[0] <= len(_ODD):
            modes.append("rows")

        def cost(mode: Mode) -> float:
            return VectorConvolution(self.layer, mode).function().instructions

        return min(modes, key=cost)

    # -- sizes ------------------------------------------------------------------------------------

    @property
    def _row_bytes(self) -> int:
        """Bytes of one row of a window."""
        return self.g.kernel[1] * self.g.inputs

    @cached_property
    def _copied(self) -> bool:
        """Whether rows are copied: there is padding, or a copy of a window reads behind a row."""
        g = self.g
        if self.mode == "pixels" or g.kernel == (1, 1):
            return False
        reach = [
            (out - 1) * step + (taps - 1) * dilation - pad >= size
            for out, step, taps, dilation, pad, size in zip(
                g.out_size, g.strides, g.kernel, g.dilation, g.padding, g.in_size, strict=True
            )
        ]
        return g.padding != (0, 0) or any(reach) or self.mode == "gather"

    @property
    def _window_rows(self) -> int:
        """Rows of the input that a window covers."""
        return (self.g.kernel[0] - 1) * self.g.dilation[0] + 1

    @property
    def _pitch(self) -> int:
        """Bytes from one row to the next where windows read them, a multiple of 4 in a copy."""
        g = self.g
        own = g.in_size[1] * g.inputs
        if not self._copied:
            return own
        window = (g.kernel[1] - 1) * g.dilation[1] + 1
        last = ((g.out_size[1] - 1) * g.strides[1] + window) * g.inputs
        return -(-max(g.padding[1] * g.inputs + own, last) // 4) * 4

    @property
    def _rows_bytes(self) -> int:
        """Bytes of the copied rows; a copy of a window reads on into where it writes."""
        return -(-self._window_rows * self._pitch // 16) * 16 if self._copied else 0

    @property
    def _window_bytes(self) -> int:
        """Bytes of one window in one piece, and what a step writes behind it."""
        # Less than 256 bytes may be read behind it with weights of 0: the sums, and the table.
        return 0 if self.mode != "gather" else -(-self.g.columns // _STEP) * _STEP + _STEP

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch: rows, a window, the sums of a pixel, a table of weights."""
        table = 0 if self.compressed is None else self.compressed.layout.table_bytes
        return self._table_place + table

    @property
    def _table_place(self) -> int:
        return self._rows_bytes + self._window_bytes + -(-self.g.outputs // 4) * 16

    @property
    def _in_place(self) -> bool:
        """Whether every input is read before an output takes its place."""
        g = self.g
        if g.kernel == (1, 1):
            # An output pixel is stored when the input pixel of its number has been read.
            return g.outputs <= g.inputs
        stored, read = g.out_size[1] * g.outputs, g.in_size[1] * g.inputs
        return self._copied and all(
            row * stored <= read * min(row * g.strides[0] + self._next_row, g.in_size[0])
            for row in range(1, g.out_size[0] + 1)
        )

    # -- the order of things ----------------------------------------------------------------------

    @cached_property
    def _parts(self) -> list[Array]:
        """Weights whose sum is the layer's; a window is read once for each of them."""
        return halves(self.layer.weights)

    @property
    def _pieces(self) -> list[_Piece]:
        """What is read for the sums of a window."""
        return self._window * len(self._parts)

    @cached_property
    def _window(self) -> list[_Piece]:
        """What a window is read from."""
        g = self.g
        if self.mode == "pixels":
            return [_Piece("r3", g.inputs, rounded=False)]
        if self.mode == "gather":
            return [_Piece("r3", g.columns, rounded=True)]
        return [_Piece(r, self._row_bytes, rounded=False) for r in _ODD[: g.kernel[0]]]

    def columns(self) -> Array:
        """Give the column of the weights at each of the 16 places of each step, -1 for none."""
        place = self.places()
        steps, start = [], 0
        for piece in self._window:
            done = 0
            for offset in piece.offsets:
                step = np.full(_STEP, -1, np.int64)
                for i in range(max(done - offset, 0), min(_STEP, piece.size - offset)):
                    step[i] = place[start + offset + i]
                done = offset + _STEP
                steps.append(step)
            start += piece.size
        return np.asarray(steps)

    def places(self) -> Array:
        """Give the column of the weights at each byte of a window."""
        g = self.g
        channel, kh, kw = np.meshgrid(
            np.arange(g.inputs), np.arange(g.kernel[0]), np.arange(g.kernel[1]), indexing="ij"
        )
        # From the weights' order (channel, kh, kw) to that of the pixels (kh, kw, channel).
        column = (channel * g.kernel[0] + kh) * g.kernel[1] + kw
        return np.asarray(column.transpose(1, 2, 0).reshape(-1))

    @property
    def _held(self) -> bool:
        """Whether a pixel's inputs stay in registers for all its output channels."""
        return sum(piece.steps for piece in self._pieces) <= _HELD

    @property
    def _width(self) -> int:
        """Output channels of a full group; every register of its weights is a vector."""
        return 8 - sum(piece.steps for piece in self._pieces) if self._held else 7

    def _blocks(self) -> list[tuple[int, int]]:
        """Give (first channel, how many) of what is requantized at a time: 16, 8, 4 or fewer."""
        blocks, first = [], 0
        while first < self.g.outputs:
            size = next((n for n in (16, 8, 4) if first + n <= self.g.outputs), 4)
            size = min(size, self.g.outputs - first)
            blocks.append((first, size))
            first += size
        return blocks

    def _sums_order(self) -> list[int]:
        """Give the output channel of each sum in the buffer."""
        order = []
        for first, size in self._blocks():
            every = max(size // 4, 1)
            order += [first + i for v in range(every) for i in range(v, size, every)]
        return order

    @cached_property
    def _channels(self) -> list[int]:
        """The channel of each sum in the buffer."""
        order = self._sums_order()
        return order if self.compressed is None else self.compressed.order(order)

    @property
    def _sorted(self) -> bool:
        """Whether outputs are scattered to where their channels lie."""
        return self.compressed is not None and self.compressed.sorts

    def stream(self) -> Array:
        """Give the words that the function reads, uint32: all but a table for every pixel."""
        head = []
        if self.compressed is not None:
            head = [self.compressed.layout.head().view("<u4").astype(np.uint32)]
            sums = [self.compressed.stream(self._channels, self.layer.bias)]
        else:
            sums = self._dense()
        return np.concatenate([*head, *sums, *self._constants()])

    def _dense(self) -> list[Array]:
        """The biases and weights of all groups of channels."""
        layer, order = self.layer, self._channels
        columns = self.columns()
        parts = [np.where(columns >= 0, w[:, np.maximum(columns, 0)], 0) for w in self._parts]
        weights = np.concatenate(parts, axis=1)
        words = []
        end = self.g.outputs
        while end:  # the buffer is filled from its end
            group = order[max(end - self._width, 0) : end]
            words.append(layer.bias[group].astype(np.int32).view(np.uint32))
            packed = weights[group].astype(np.int8).transpose(1, 0, 2)
            words.append(np.ascontiguousarray(packed).view(np.uint32).reshape(-1))
            end -= len(group)
        return words

    def _constants(self) -> list[Array]:
        """The constants of requantization, and where outputs are scattered their places."""
        layer, words, place = self.layer, [], 0
        order = self._sums_order()
        for first, size in self._blocks():
            block = self._channels[place : place + size]
            block += block[-1:] * (-size % 4)  # what is left of a vector is not stored
            words.append(layer.requantize.multiplier[block].astype(np.int32).view(np.uint32))
            if self.requantize.has_shifts:
                words.append(self.requantize.shifts[block].view(np.uint32))
            if self._sorted:
                places = np.zeros(-(-size // 4) * 4, np.uint8)
                places[np.asarray(order[place : place + size]) - first] = block[:size]
                words.append(places.view("<u4").astype(np.uint32))
            place += size
        return words

    # -- code -------------------------------------------------------------------------------------

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x, const void *stream, void *y, void *scratch)``."""
        self.out = VectorAssembler()
        out, g = self.out, self.g
        free = list(_ODD)
        for piece in self._window:
            free.remove(piece.register)
        for register in [] if self.compressed is None else self.compressed.registers:
            free.remove(register)
        self._source = free.pop(0) if self.mode == "gather" else ""
        # What is used once a pixel lives in a register where one is left, else in the frame.
        # Stores of vectors to narrower elements take an address in r0 to r7 alone.
        self._home = {"y": free.pop(0)} if free[:1] and free[0] != _ODD[-1] else {}
        self._home |= {name: free.pop(0) for name in ("count", "zero") if free}
        slots = ("x", "stream", "rows", "line", "next", "y", "count", "group")
        if self.compressed is not None:  # it counts groups in a register
            slots = (*slots[:-1], "window")
        self._frame = {name: 4 * i for i, name in enumerate(slots)}
        size = 4 * len(slots) + 4
        out.op("push {r4-r11, lr}", f"sub sp, sp, #{size}", "vpush {d8-d15}")
        self._frame = {name: place + 64 for name, place in self._frame.items()}
        self._save("r2", "y")
        self._save("r0", "x")
        self._save("r3", "rows")
        out.add("r11", "r3", self._rows_bytes + self._window_bytes + 4 * g.outputs, "r12")
        if self.compressed is not None and self.compressed.layout.table_bytes:
            out.add(TABLE, "r3", self._table_place, "r12")
            self.compressed.layout.make_table(out)
            out.add("r1", "r1", self.compressed.layout.head().nbytes)
        self._save("r1", "stream")
        if "zero" in self._home:
            out.move(self._home["zero"], self.layer.requantize.zero_point)
        if self.mode == "pixels":
            self._load("r3", "x")
            self._pixels()
        else:
            self._windows()
        out.op("vpop {d8-d15}", f"add sp, sp, #{size}", "pop {r4-r11, pc}")
        parameters = ["const void *x", "const void *stream", "void *y", "void *scratch"]
        return replace(out.function(parameters), in_place=(0,) if self._in_place else ())

    def _save(self, register: str, name: str) -> None:
        if name in self._home:
            self.out.op(f"mov {self._home[name]}, {register}")
        else:
            self.out.op(f"str {register}, [sp, #{self._frame[name]}]")

    def _load(self, register: str, name: str) -> None:
        self.out.op(f"ldr {register}, [sp, #{self._frame[name]}]")

    def _pixels(self) -> None:
        """Windows of one pixel, read where it lies."""
        g, out = self.g, self.out
        row = g.strides[0] * g.in_size[1]
        if g.out_size[1] > 1:
            row -= g.strides[1] * g.out_size[1]
        with out.counted_on_stack(self._frame["line"], "r0", g.out_size[0]):
            self._row_of_pixels()
            if g.out_size[0] > 1:
                out.add("r3", "r3", row * g.inputs, "r0")

    def _row_of_pixels(self) -> None:
        """All pixels of a row of the output; the pieces point to the first one's window."""
        g, out = self.g, self.out
        step = g.strides[1] * g.inputs
        if "count" in self._home:
            loop = out.counted(self._home["count"], g.out_size[1])
        else:
            loop = out.counted_on_stack(self._frame["count"], "r0", g.out_size[1])
        with loop:
            if self.mode == "gather":
                self._gather()
            self._products()
            self._requantize()
            if g.out_size[1] > 1:
                if self.mode == "gather":
                    out.add(self._source, self._source, step, "r0")
                else:
                    for piece in self._window:
                        out.add(piece.register, piece.register, step, "r0")

    # -- windows ----------------------------------------------------------------------------------

    def _windows(self) -> None:
        """Row after row of the output; the copied rows slide on with it."""
        g, out = self.g, self.out
        line = g.strides[0] * self._pitch
        if self._copied:
            self._load("r0", "rows")
            out.fill("r0", self.layer.zero, self._rows_bytes, "r1")
            self._begin_rows()
        with out.counted_on_stack(self._frame["line"], "r0", g.out_size[0]):
            if self._copied:
                first, count = self._next_row, g.strides[0]
                self._copy_rows(count, self._kept, range(first, first + count * g.out_size[0]))
                self._load("r0", "rows")
            else:
                self._load("r0", "x")
            self._point()
            self._row_of_pixels()
            if not self._copied:
                self._load("r0", "x")
                out.add("r0", "r0", line, "r1")
                self._save("r0", "x")
            elif g.out_size[0] > 1:
                self._slide()

    def _point(self) -> None:
        """Point to the first window of the rows at r0."""
        out, g = self.out, self.g
        if self.mode == "gather":
            out.op(f"mov {self._source}, r0")
            self._load("r3", "rows")
            out.add("r3", "r3", self._rows_bytes, "r1")
            if self.compressed is not None and self.compressed.own_step:
                self._save("r3", "window")
            return
        for i, piece in enumerate(self._window):
            out.add(piece.register, "r0", i * g.dilation[0] * self._pitch, "r1")

    @property
    def _kept(self) -> int:
        """Copied rows that the next row of windows needs too."""
        return max(self._window_rows - self.g.strides[0], 0)

    def _begin_rows(self) -> None:
        """Copy the rows that the first row of windows shares with the one before it."""
        g, out = self.g, self.out
        above = min(g.padding[0], self._kept)
        out.move("r0", above - g.padding[0])
        self._save("r0", "next")
        self._copy_rows(self._kept - above, above, range(above - g.padding[0], self._next_row))

    @property
    def _next_row(self) -> int:
        """The first row of the input that comes with a row of windows and not before the first."""
        return self._kept - self.g.padding[0]

    def _copy_rows(self, count: int, place: int, rows: range) -> None:
        """Copy the input's next rows to ``place`` and behind it; rows outside are filled.

        ``rows`` are those of all calls together.
        """
        g, out = self.g, self.out
        if not count:
            return
        values = g.in_size[1] * g.inputs
        inside = sum(0 <= row < g.in_size[0] for row in rows) / len(rows)
        self._load("r6", "rows")
        out.add("r6", "r6", place * self._pitch + g.padding[1] * g.inputs, "r4")
        self._load("r8", "next")
        self._load("r10", "x")
        with out.counted("r12", count):
            outside, done = out.label(), out.label()
            out.op("mov r0, r6")
            if inside < 1:
                out.move("r4", g.in_size[0])
                out.op("cmp r8, r4", f"bhs {outside}")  # unsigned: rows above the image too
            with out.repeat(inside):
                out.op("mov r2, r10")
                out.copy("r0", "r2", values, "r4")
                out.add("r10", "r10", values, "r4")
            if inside < 1:
                with out.repeat(inside):
                    out.op(f"b {done}")
                out.place(outside)
                with out.repeat(1 - inside):
                    out.fill("r0", self.layer.zero, values, "r4")
                out.place(done)
            out.op("add r8, r8, #1")
            out.add("r6", "r6", self._pitch, "r4")
        self._save("r8", "next")
        self._save("r10", "x")

    def _slide(self) -> None:
        """Move the rows that are needed again to the front, 64 bytes at a time."""
        out = self.out
        size = self._kept * self._pitch
        if not size:
            return
        self._load("r0", "rows")
        out.add("r2", "r0", self.g.strides[0] * self._pitch, "r4")
        whole, rest = divmod(size, 64)
        if whole:
            with out.low_overhead(whole):
                out.op(f"vldmia r2!, {vectors(0, 4)}", f"vstmia r0!, {vectors(0, 4)}")
        out.copy("r0", "r2", rest, "r4")

    def _gather(self) -> None:
        """Copy a window to one piece."""
        g = self.g
        # Inputs that lie side by side: a row of the window, or a tap where columns are dilated.
        taps = 1 if g.dilation[1] == 1 else g.kernel[1]
        size, place = self._row_bytes // taps, 0
        for kh in range(g.kernel[0]):
            for tap in range(taps):
                start = kh * g.dilation[0] * self._pitch + tap * g.dilation[1] * g.inputs
                self._gather_run(start, place, size)
                place += size

    def _gather_run(self, start: int, place: int, size: int) -> None:
        """Copy bytes; those written too much are the next run's, or behind the last one."""
        out, base = self.out, self._source
        if not self._copied:  # behind the last pixel there may be no memory
            out.op("mov r2, r3", f"mov r0, {base}")
            out.copy("r2", "r0", size, "r4")
            return
        if start + size - 1 > NEAR:
            out.add("r0", base, start, "r2")
            base, start = "r0", 0
        if size > NEAR:
            if start:
                out.add("r0", base, start, "r2")
            elif base != "r0":
                out.op(f"mov r0, {base}")
            out.add("r2", "r3", place, "r4")
            out.copy("r2", "r0", size, "r4")
            return
        for offset in range(0, size, _STEP):
            out.op(f"vldrb.u8 q0, [{base}, #{start + offset}]")
            if place + offset <= NEAR:
                out.op(f"vstrb.8 q0, [r3, #{place + offset}]")
            else:
                out.add("r2", "r3", place + offset, "r4")
                out.op("vstrb.8 q0, [r2]")

    # -- products ---------------------------------------------------------------------------------

    def _products(self) -> None:
        """The sums of all output channels of a pixel."""
        out = self.out
        whole, rest = divmod(self.g.outputs, self._width)
        self._load("r1", "stream")
        if self.compressed is not None:
            if self.compressed.own_step and self.mode == "pixels":
                self._save("r3", "window")
            self.compressed.emit(out, self._channels, self._frame["window"])
            return
        if self._held:
            self._hold()
        # Steps that are not unrolled count in lr.
        inner = any(piece.steps > _UNROLL for piece in self._pieces)
        if whole > 1 and inner:
            with out.counted_on_stack(self._frame["group"], "r0", whole):
                self._group(self._width)
        elif whole:
            with out.low_overhead(whole):
                self._group(self._width)
        if rest:
            self._group(rest)

    def _hold(self) -> None:
        """Load the inputs of a pixel from q7 down."""
        out, register = self.out, 7
        for piece in self._pieces:
            if piece.size < _STEP and not piece.rounded:
                # Behind the last pixel there may be no memory.
                out.move("r0", piece.size)
                out.op("vctp.8 r0", "vpst", f"vldrbt.u8 q{register}, [{piece.register}]")
                register -= 1
                continue
            for offset in piece.offsets:
                out.op(f"vldrb.u8 q{register}, [{piece.register}, #{offset}]")
                register -= 1

    def _group(self, channels: int) -> None:
        """The sums of a group of output channels: biases, steps, and on to the buffer."""
        out = self.out
        sums = _SUMS[:channels]
        out.load_words("r1", sums)
        if self._held:
            for i in range(sum(piece.steps for piece in self._pieces)):
                self._step(sums, f"q{7 - i}")
        else:
            for piece in self._pieces:
                self._piece(sums, piece)
        out.push_words("r11", sums)

    def _piece(self, sums: tuple[str, ...], piece: _Piece) -> None:
        out, r = self.out, piece.register
        if not piece.far and piece.steps <= _UNROLL:
            for offset in piece.offsets:
                out.op(f"vldrb.u8 q7, [{r}, #{offset}]")
                self._step(sums, "q7")
            return
        # The last step does not move the address; it may begin earlier.
        before = piece.steps - 1
        rounds, rest = divmod(before, 8) if piece.steps > _UNROLL else (0, before)
        if rounds:
            with out.low_overhead(rounds):
                for _ in range(8):
                    self._moving_step(sums, r)
        for _ in range(rest):
            self._moving_step(sums, r)
        out.op(f"vldrb.u8 q7, [{r}, #{piece.offsets[-1] - before * _STEP}]")
        self._step(sums, "q7")
        out.add(r, r, -before * _STEP)

    def _moving_step(self, sums: tuple[str, ...], register: str) -> None:
        self.out.op(f"vldrb.u8 q7, [{register}], #{_STEP}")
        self._step(sums, "q7")

    def _step(self, sums: tuple[str, ...], pixel: str) -> None:
        out = self.out
        out.op(f"vldmia r1!, {vectors(0, len(sums))}")
        out.op(*(f"vmladava.s8 {total}, q{i}, {pixel}" for i, total in enumerate(sums)))

    # -- from sums to bytes -----------------------------------------------------------------------

    def _requantize(self) -> None:
        """Requantize and store the sums of a pixel; r11 goes back to the buffer's end."""
        out, blocks = self.out, self._blocks()
        zero = self._home.get("zero")
        if zero is None and self.layer.requantize.zero_point:
            zero = "r0"
            out.move(zero, self.layer.requantize.zero_point)
        y = self._home.get("y")
        if y is None:
            y = "r2"
            self._load(y, "y")
        whole = self.g.outputs // 16
        if whole > 2:
            with out.low_overhead(whole):
                self._block(16, y, zero or "")
            blocks = blocks[whole:]
        for _, size in blocks:
            self._block(size, y, zero or "")
        if self._sorted:
            out.add(y, y, self.g.outputs)
        if "y" not in self._home:
            self._save(y, "y")

    def _block(self, size: int, y: str, zero: str) -> None:
        out, requantize = self.out, self.requantize
        count = max(size // 4, 1)  # vectors of sums
        sums = [f"q{i}" for i in range(count)]
        others = [f"q{4 + i}" for i in range(count)]
        if size >= 4:
            out.op(f"vldmia r11!, {vectors(0, count)}")
        else:
            out.op("vldrw.u32 q0, [r11]", f"add r11, r11, #{4 * size}")
        out.op(f"vldmia r1!, {vectors(4, count)}")
        requantize.multiply(out, sums, others, others[0])
        if requantize.has_shifts:
            out.op(f"vldmia r1!, {vectors(4, count)}")
        q = requantize.narrow(out, sums, others, zero)
        requantize.clamp(out, q, "q4", "r4")
        bits = 128 // max(size, 4)
        if self._sorted:
            out.op(f"vldrb.u{bits} q4, [r1], #{max(size, 4)}")
            target, moved = f"[{y}, q4]", False
        else:
            target, moved = f"[{y}]", True
        if size >= 4:
            out.op(f"vstrb.{bits} {q}, {target}" + (f", #{size}" if moved else ""))
        else:
            out.move("r4", size)
            out.op("vctp.32 r4", "vpst", f"vstrbt.32 {q}, {target}")
            if moved:
                out.op(f"add {y}, {y}, #{size}")
