"""Kernels in TIR that multiply straight from packed weights.

One builder makes the kernel of one layer from three parts: the :class:`Geometry`, where a weight
comes from (:class:`Dense`, :class:`PackedCodes`, :class:`PackedGaps`) and what follows the sum
(the epilogue: bias, residual, activation). A weight is decoded at the place where it is
multiplied; no full tensor of weights exists at run time.

Three loop nests serve all cases:

- *grid*: weights that can be addressed (dense, ``dense_codes``). A tile of output pixels sits in
  registers, so a weight is loaded and decoded once a tile. Rows and columns at the border clip
  their window instead of reading a padded copy of the input.
- *stream, pointwise*: ``gap_codes`` where each output pixel sees one input pixel; the row's
  entries are decoded once a tile of pixels.
- *stream, spatial*: ``gap_codes`` with a window. Each entry is decoded once and adds its product
  to the whole plane of its output channel, which is accumulated in the output buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Cast, FloatImm, IntImm
from tvm.tirx.script import builder as T

from tvm_compress.layouts import DenseCodes, GapCodes
from tvm_compress.targets.mcu.geometry import Geometry

__all__ = ["OPAQUE", "Dense", "Epilogue", "Operand", "PackedCodes", "PackedGaps", "build_kernel"]

Expr = Any
Array = NDArray[Any]

# FuseOps leaves a function of this pattern alone: the epilogue is inside already.
OPAQUE = 8

# Output pixels in registers: the Cortex-M4F has 32 single registers; two are for weight and pixel.
_TILE = 8


@dataclass(frozen=True)
class Operand:
    """A constant array that a kernel takes: its name for symbols, and its value."""

    name: str
    value: Array


@dataclass(frozen=True)
class Dense:
    """Weights as they are: float32 of shape (rows, columns)."""

    weights: Array
    layout = "dense"

    def operands(self) -> list[Operand]:
        """Give the arrays that lie in flash."""
        return [Operand("weights", self.weights)]

    def load(self, buffers: Sequence[Expr], row: Expr, column: Expr) -> Expr:
        """Give the weight at (row, column)."""
        return buffers[0][row, column]


@dataclass(frozen=True)
class PackedCodes:
    """``dense_codes``: one code a weight, and the centroids."""

    packed: DenseCodes
    centroids: Array
    layout = "dense_codes"

    def operands(self) -> list[Operand]:
        """Give the arrays that lie in flash."""
        return [Operand("codes", self.packed.data), Operand("centroids", self.centroids)]

    def load(self, buffers: Sequence[Expr], row: Expr, column: Expr) -> Expr:
        """Give the weight at (row, column): bit field, then centroid."""
        data, centroids = buffers
        bits = self.packed.bits
        if bits == 8:
            code = _int(data[row, column])
        else:
            per_byte = 8 // bits if 8 % bits == 0 else 0
            if per_byte:  # a code never crosses a byte
                shift = (column % per_byte) * bits
                code = (_int(data[row, column // per_byte]) >> shift) & ((1 << bits) - 1)
            else:
                start = column * bits
                low, high = _int(data[row, start // 8]), self._next_byte(data, row, start // 8)
                code = ((low | (high << 8)) >> (start % 8)) & ((1 << bits) - 1)
        return centroids[code]

    def _next_byte(self, data: Expr, row: Expr, byte: Expr) -> Expr:
        # The last code of a row ends with the row, so the byte behind it is read but not used;
        # the index is clamped to stay inside the array.
        last = self.packed.data.shape[1] - 1
        return _int(data[row, T.min(byte + 1, last)])


@dataclass(frozen=True)
class PackedGaps:
    """``gap_codes``: entries of (gap, code), and the centroids or one value an entry."""

    packed: GapCodes
    centroids: Array
    layout = "gap_codes"

    def operands(self) -> list[Operand]:
        """Give the arrays that lie in flash."""
        rows = self.packed.row_start
        rows = rows.astype(np.uint16) if self.packed.entries < 1 << 16 else rows
        return [
            Operand("entries", self.packed.data),
            Operand("rows", rows),
            Operand("centroids", self.centroids),
        ]

    def entry(self, buffers: Sequence[Expr], index: Expr) -> tuple[Expr, Expr]:
        """Emit the decoding of an entry; give (gap + 1, value)."""
        data, _, centroids = buffers
        gap_bits, code_bits = self.packed.gap_bits, self.packed.code_bits
        width = gap_bits + code_bits
        field = _register("field", "int32")
        if width == 8:
            field.set(_int(data[index]))
        elif width == 16:
            field.set(_int(data[index * 2]) | (_int(data[index * 2 + 1]) << 8))
        elif 8 % width == 0:
            field.set(_int(data[index * width // 8]) >> (index * width % 8))
        else:
            start = _register("start", "int32")
            start.set(index * width)
            byte = start.get() >> 3
            bits = _int(data[byte]) | (_int(data[byte + 1]) << 8)
            if width > 9:  # 7 bits of offset and the field may cross a second byte border
                bits = bits | (_int(data[byte + 2]) << 16)
            field.set(bits >> (start.get() & 7))
        gap = field.get() & ((1 << gap_bits) - 1)
        if code_bits == 0:
            return gap + 1, centroids[index]
        return gap + 1, centroids[(field.get() >> gap_bits) & ((1 << code_bits) - 1)]


Source = Dense | PackedCodes | PackedGaps


@dataclass(frozen=True)
class Epilogue:
    """What follows the sum: ``apply(sum, operands' elements) -> element``.

    ``operands`` are the shapes of the tensors that it reads, each broadcastable to the output.
    """

    apply: Callable[[Expr, Sequence[Expr]], Expr]
    operands: tuple[tuple[tuple[int, ...], str], ...] = ()


def _int(value: Expr) -> Expr:
    return Cast("int32", value)


def _i64(shape: Sequence[int]) -> list[Expr]:
    return [IntImm("int64", size) for size in shape]


def build_kernel(geometry: Geometry, source: Source, epilogue: Epilogue) -> Any:
    """Build the PrimFunc ``(x, epilogue operands..., weight arrays..., y)``.

    The arguments have the shapes that the IR gives them, so that a Relax ``call_tir`` can call it.
    """
    if geometry.pointwise:
        geometry = geometry.flattened()
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
            x = T.arg("x", T.buffer(_i64(geometry.in_shape), "float32"))
            extra = [
                T.arg(f"e{i}", T.buffer(_i64(shape), dtype))
                for i, (shape, dtype) in enumerate(epilogue.operands)
            ]
            weights = [
                T.arg(operand.name, T.buffer(_i64(operand.value.shape), str(operand.value.dtype)))
                for operand in source.operands()
            ]
            y = T.arg("y", T.buffer(_i64(geometry.out_shape), "float32"))
            kernel = _Kernel(geometry, source, epilogue, x, extra, weights, y)
            with _loop("n", 0, geometry.batch) as n:
                kernel.batch = n
                kernel.emit()
    return builder.get()


class _Kernel:
    """The loop nests of one kernel, emitted into the open IR builder."""

    def __init__(
        self,
        geometry: Geometry,
        source: Source,
        epilogue: Epilogue,
        x: Expr,
        extra: Sequence[Expr],
        weights: Sequence[Expr],
        y: Expr,
    ) -> None:
        self.g, self.source, self.epilogue = geometry, source, epilogue
        self.x, self.extra, self.weights, self.y = x, extra, weights, y
        self.batch: Expr = 0

    def emit(self) -> None:
        if not isinstance(self.source, PackedGaps):
            self._grid()
        elif self.g.pointwise:
            self._stream_pointwise()
        else:
            self._stream_spatial()

    # -- where elements lie -------------------------------------------------------------------

    def _index(self, shape: tuple[int, ...], channel: Expr, row: Expr, column: Expr) -> list[Expr]:
        """Give the indices of (channel, pixel) in a tensor of the input's or output's layout.

        For a flattened geometry ``column`` counts all pixels.
        """
        g = self.g
        flat = g.pointwise
        if g.rank == 0:
            lead = shape[:-1]
            indices, rest = [], column
            for size in reversed(lead):
                indices.append(rest % size)
                rest = rest // size
            return [*reversed(indices), channel]
        spatial = shape[1:-1] if g.channels_last else shape[2:]
        if g.rank == 1:
            pixel = [column]
        elif flat:
            pixel = [column // spatial[1], column % spatial[1]]
        else:
            pixel = [row, column]
        if g.channels_last:
            return [self.batch, *pixel, channel]
        return [self.batch, channel, *pixel]

    def _input(self, channel: Expr, row: Expr, column: Expr) -> Expr:
        return self.x[tuple(self._index(self.g.in_shape, channel, row, column))]

    def _store(self, channel: Expr, row: Expr, column: Expr, total: Expr) -> None:
        indices = self._index(self.g.out_shape, channel, row, column)
        elements = []
        for buffer, (shape, _) in zip(self.extra, self.epilogue.operands, strict=True):
            aligned = indices[len(indices) - len(shape) :]
            where = [0 if n == 1 else i for n, i in zip(shape, aligned, strict=True)]
            elements.append(buffer[tuple(where)] if where else buffer[()])
        T.buffer_store(self.y, self.epilogue.apply(total, elements), indices)

    def _first_input(self, output: Expr) -> Expr:
        """Give the first input channel that an output channel sees."""
        g = self.g
        if g.groups == 1:
            return 0
        return output // (g.outputs // g.groups) * g.inputs

    def _clip(self, axis: int, place: Expr) -> tuple[Expr, Expr]:
        """Give the taps [low, high) of one axis that lie inside the input at an output place."""
        g = self.g
        step, dilation, pad = g.strides[axis], g.dilation[axis], g.padding[axis]
        size, taps = g.in_size[axis], g.kernel[axis]
        reach = (taps - 1) * dilation
        if pad == 0 and (g.out_size[axis] - 1) * step + reach < size:
            return 0, taps
        origin = place * step - pad
        low = T.max(0, (0 - origin + dilation - 1) // dilation) if pad else 0
        high = T.min(taps, (size - 1 - origin) // dilation + 1)
        return low, high

    # -- loop nests ---------------------------------------------------------------------------

    def _grid(self) -> None:
        g = self.g
        with _loop("o", 0, g.outputs) as o:
            with _loop("row", 0, g.out_size[0]) as row:
                first, last = g.interior()
                self._tiles(o, row, first, last)
                borders = first + g.out_size[1] - last
                if borders:
                    with _loop("border", 0, borders) as b:
                        # The border columns are those in front of the interior and behind it.
                        column = b if first == 0 and last == 0 else T.Select(
                            b < first, b, b + (last - first)
                        )
                        self._grid_tile(o, row, column, 1, clip=True)

    def _tiles(self, o: Expr, row: Expr, first: int, last: int) -> None:
        tile = _best_tile(last - first)
        whole = (last - first) // tile
        if whole:
            with _loop("tile", 0, whole) as t:
                self._tile(o, row, t * tile + first, tile)
        rest = (last - first) % tile
        if rest:
            self._tile(o, row, IntImm("int32", last - rest), rest)

    def _tile(self, o: Expr, row: Expr, column: Expr, tile: int) -> None:
        if isinstance(self.source, PackedGaps):
            self._stream_tile(o, column, tile)
        else:
            self._grid_tile(o, row, column, tile, clip=False)

    def _grid_tile(self, o: Expr, row: Expr, column: Expr, tile: int, *, clip: bool) -> None:
        g, source = self.g, self.source
        assert not isinstance(source, PackedGaps)
        sums = _registers("sum", tile)
        low, high = self._clip(0, row)
        left, right = self._clip(1, column) if clip else (0, g.kernel[1])
        base = self._first_input(o)
        with (
            _loop("c", 0, g.inputs) as c,
            _loop("kh", low, high) as kh,
            _loop("kw", left, right) as kw,
        ):
            weight = _register("weight")
            place = (c * g.kernel[0] + kh) * g.kernel[1] + kw
            weight.set(source.load(self.weights, o, place))
            for t in range(tile):
                pixel = self._input(
                    base + c,
                    row * g.strides[0] + kh * g.dilation[0] - g.padding[0],
                    (column + t) * g.strides[1] + kw * g.dilation[1] - g.padding[1],
                )
                sums[t].set(sums[t].get() + weight.get() * pixel)
        for t in range(tile):
            self._store(o, row, column + t, sums[t].get())

    @contextmanager
    def _entries(self, o: Expr) -> Iterator[tuple[_Register, _Register]]:
        """Loop over the entries of a row; give registers of (position, weight)."""
        assert isinstance(self.source, PackedGaps)
        rows = self.weights[1]
        position = _register("position", "int32", -1)
        first, count = _register("first", "int32"), _register("count", "int32")
        first.set(_int(rows[o]))
        count.set(_int(rows[o + 1]) - first.get())
        with _loop("entry", 0, count.get()) as entry:
            gap, value = self.source.entry(self.weights, first.get() + entry)
            weight = _register("weight")
            weight.set(value)
            position.set(position.get() + gap)
            yield position, weight

    def _stream_pointwise(self) -> None:
        with _loop("o", 0, self.g.outputs) as o:
            self._tiles(o, 0, 0, self.g.out_size[1])

    def _stream_tile(self, o: Expr, column: Expr, tile: int) -> None:
        sums = _registers("sum", tile)
        base = self._first_input(o)
        with self._entries(o) as (position, weight):
            for t in range(tile):
                pixel = self._input(base + position.get(), 0, column + t)
                sums[t].set(sums[t].get() + weight.get() * pixel)
        for t in range(tile):
            self._store(o, 0, column + t, sums[t].get())

    def _stream_spatial(self) -> None:
        g = self.g
        height, width = g.out_size
        with _loop("o", 0, g.outputs) as o:
            with _loop("row", 0, height) as row, _loop("column", 0, width) as column:
                indices = self._index(g.out_shape, o, row, column)
                T.buffer_store(self.y, FloatImm("float32", 0.0), indices)
            base = self._first_input(o)
            with self._entries(o) as (position, weight):
                channel, tap = _register("channel", "int32"), _register("tap", "int32")
                kh, kw = _register("kh", "int32"), _register("kw", "int32")
                taps = g.kernel[0] * g.kernel[1]
                channel.set(T.truncdiv(position.get(), taps))
                tap.set(position.get() - channel.get() * taps)
                kh.set(T.truncdiv(tap.get(), g.kernel[1]))
                kw.set(tap.get() - kh.get() * g.kernel[1])
                edges = [_register(name, "int32") for name in ("top", "rows", "left", "columns")]
                for axis, place in enumerate((kh, kw)):
                    low, high = self._reach(axis, place.get())
                    edges[2 * axis].set(low)
                    edges[2 * axis + 1].set(high - edges[2 * axis].get())
                top, rows, left, columns = (edge.get() for edge in edges)
                with _loop("row", 0, rows) as row, _loop("column", 0, columns) as column:
                    pixel = self._input(
                        base + channel.get(),
                        (top + row) * g.strides[0] + kh.get() * g.dilation[0] - g.padding[0],
                        (left + column) * g.strides[1] + kw.get() * g.dilation[1] - g.padding[1],
                    )
                    indices = self._index(g.out_shape, o, top + row, left + column)
                    total = self.y[tuple(indices)] + weight.get() * pixel
                    T.buffer_store(self.y, total, indices)
            with _loop("row", 0, height) as row, _loop("column", 0, width) as column:
                indices = self._index(g.out_shape, o, row, column)
                self._store(o, row, column, self.y[tuple(indices)])

    def _reach(self, axis: int, tap: Expr) -> tuple[Expr, Expr]:
        """Give the output places [low, high) of one axis at which a tap lies inside the input."""
        g = self.g
        step, pad = g.strides[axis], g.padding[axis]
        size, count = g.in_size[axis], g.out_size[axis]
        offset = tap * g.dilation[axis] - pad
        # The numerators may be negative by less than one step, so they are shifted up before C's
        # truncating division and the result back down.
        lift = pad // step + 1
        low = T.truncdiv(step - 1 - offset + lift * step, step) - lift
        high = T.truncdiv(size - 1 - offset + lift * step, step) - lift + 1
        reach = (g.kernel[axis] - 1) * g.dilation[axis]
        return (
            T.max(0, low) if pad else 0,
            T.min(count, high) if (count - 1) * step + reach - pad >= size else count,
        )


def _best_tile(count: int) -> int:
    """Give the number of pixels a tile: the largest divisor up to the register limit, or so."""
    divisors = [t for t in range(1, _TILE + 1) if count % t == 0]
    best = max(divisors, default=1)
    # A prime count would give tiles of one pixel; a shorter last tile costs less.
    return best if best >= _TILE // 2 or count <= 1 else min(count, _TILE)


class _Register:
    """A local scalar; C compilers keep it in a register."""

    def __init__(self, buffer: Expr) -> None:
        self._buffer = buffer

    def get(self) -> Expr:
        return self._buffer[0]

    def set(self, value: Expr) -> None:
        T.buffer_store(self._buffer, value, [0])


def _register(name: str, dtype: str = "float32", start: float | None = None) -> _Register:
    """Make a local scalar, undefined without ``start``."""
    buffer = T.alloc_buffer((1,), dtype)
    IRBuilder.name(name, buffer)
    register = _Register(buffer)
    if start is not None:
        make = FloatImm if dtype == "float32" else IntImm
        register.set(make(dtype, start))
    return register


def _registers(name: str, count: int) -> list[_Register]:
    """Make sums of 0.0."""
    return [_register(f"{name}{i}", start=0.0) for i in range(count)]


@contextmanager
def _loop(name: str, low: Expr, high: Expr) -> Iterator[Expr]:
    with T.serial(low, high) as index:
        IRBuilder.name(name, index)
        yield index
