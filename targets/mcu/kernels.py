"""Kernels in TIR that multiply straight from packed weights.

One builder makes the kernel of one layer from three parts: the :class:`Geometry`, where a weight
comes from (:class:`Dense`, :class:`PackedCodes`, :class:`PackedGaps`) and what follows the sum
(the epilogue: bias, residual, activation).

All loop nests go over output channels, then over output pixels in tiles that sit in registers, so
a weight is loaded once a tile. No padded copy of the input is made: the rows of a window are
clipped at run time, and in the tiles at the left and right border the products with padding are
left out when the kernel is made. How a weight is decoded:

- where all pixels of a channel fit one tile (a product with a vector), at the place where it is
  multiplied: no weight ever lies decoded in memory;
- else once for each output channel, into a scratch row that all its pixels read: the channel's
  weights for ``dense_codes``, a list of (input offset, value) of the non-zero ones for
  ``gap_codes``. The rows of ``gap_codes`` are in the order (kw, kh, input channel), so that what one
  column of the window multiplies is one piece of the list, whatever rows are clipped.

No full tensor of weights exists at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Cast, FloatImm, IntImm
from tvm.tirx.script import builder as T

from tvm_compress.layouts import DenseCodes, GapCodes
from tvm_compress.targets.mcu.geometry import Geometry

__all__ = [
    "OPAQUE",
    "Dense",
    "Epilogue",
    "Operand",
    "PackedCodes",
    "PackedGaps",
    "build_kernel",
    "stream_order",
]

Expr = Any
Array = NDArray[Any]

# FuseOps leaves a function of this pattern alone: the epilogue is inside already.
OPAQUE = 8

# Output pixels in registers: the Cortex-M4F has 32 single registers; two are for weight and pixel.
_TILE = 8


_SHORT_LIST = 32
# Input channels in a row of an unrolled loop, and products in all unrolled code of a kernel.
_UNROLLED = 8
_MOST_TERMS = 200


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


def stream_order(matrix: Array, geometry: Geometry) -> Array:
    """Reorder the columns of (rows, columns) from (channel, kh, kw) to (kw, kh, channel)."""
    cube = matrix.reshape(-1, geometry.inputs, *geometry.kernel)
    return np.ascontiguousarray(cube.transpose(0, 3, 2, 1).reshape(matrix.shape))


@dataclass(frozen=True)
class PackedGaps:
    """``gap_codes``: entries of (gap, code), and the centroids or one value an entry.

    The rows are in :func:`stream_order`.
    """

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
        g = self.g
        tiles = _cut(g)
        # With one tile a channel there is nothing to share, and no scratch is needed.
        once = g.kernel == (1, 1) and g.out_size[0] == 1 and sum(t.count for t in tiles) == 1
        with _loop("o", 0, g.outputs) as o:
            terms = self._inline(o) if once else self._prepare(o)
            with _loop("row", 0, g.out_size[0]) as row:
                for tile in tiles:
                    if tile.count == 1:
                        self._tile(terms, o, row, IntImm("int32", tile.start), tile)
                        continue
                    with _loop("tile", 0, tile.count) as t:
                        self._tile(terms, o, row, t * tile.size + tile.start, tile)

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
        # Where the padding is wider than the window, some places see no tap at all.
        if pad > reach:
            low = T.min(taps, low)
        if (g.out_size[axis] - 1) * step - pad >= size:
            high = T.max(0, high)
        return low, high

    # -- sums -----------------------------------------------------------------------------------

    def _tile(self, terms: _Terms, o: Expr, row: Expr, column: Expr, tile: _Tile) -> None:
        """Sum and store the pixels of one tile."""
        sums = _registers("sum", tile.size)
        window = tile.window or [(self._clip(1, column), range(tile.size))]
        for weight, pixel, pixels in terms(row, column, self._clip(0, row), window):
            for t in pixels:
                sums[t].set(sums[t].get() + weight.get() * pixel(t))
        for t in range(tile.size):
            self._store(o, row, column + t, sums[t].get())

    def _inline(self, o: Expr) -> _Terms:
        """Decode each weight where it is multiplied."""
        source = self.source
        if not isinstance(source, PackedGaps):
            return self._grid(o, lambda place: source.load(self.weights, o, place))
        base = self._first_input(o)

        def terms(row: Expr, column: Expr, rows: _Range, window: _Window) -> _TermIterator:
            with self._entries(o) as (position, weight):
                yield (
                    weight,
                    lambda t: self._input(base + position.get(), 0, column + t),
                    window[0][1],
                )

        return terms

    def _prepare(self, o: Expr) -> _Terms:
        """Decode the weights of an output channel into a scratch row."""
        if isinstance(self.source, PackedGaps):
            return self._list(o)
        if isinstance(self.source, Dense):
            weights = self.weights[0]
            return self._grid(o, lambda place: weights[o, place])
        scratch = _buffer("decoded", self.g.columns, "float32")
        with _loop("k", 0, self.g.columns) as k:
            T.buffer_store(scratch, self.source.load(self.weights, o, k), [k])
        return self._grid(o, lambda place: scratch[place])

    def _grid(self, o: Expr, load: Callable[[Expr], Expr]) -> _Terms:
        """Go over all weights of a channel that lie inside the input."""
        g = self.g
        base = self._first_input(o)

        def terms(row: Expr, column: Expr, rows: _Range, window: _Window) -> _TermIterator:
            # The innermost loops of a known count are unrolled here, where it pays, and not left
            # to the compiler, which would unroll everything and treble the code.
            unrolled = 1
            if g.kernel == (1, 1):
                most = min(_UNROLLED, 32 // len(window[0][1]))
                unrolled = max(u for u in range(1, most + 1) if g.inputs % u == 0)
            with _loop("c", 0, g.inputs // unrolled) as block, _loop("kh", *rows) as kh:
                for i, (columns, pixels) in product(range(unrolled), window):
                    c = block * unrolled + i
                    with _columns(columns) as kw:
                        weight = _register("weight")
                        weight.set(load((c * g.kernel[0] + kh) * g.kernel[1] + kw))

                        def pixel(t: int, c: Expr = c, kw: Expr = kw) -> Expr:
                            return self._input(
                                base + c,
                                row * g.strides[0] + kh * g.dilation[0] - g.padding[0],
                                (column + t) * g.strides[1] + kw * g.dilation[1] - g.padding[1],
                            )

                        yield weight, pixel, pixels

        return terms

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

    def _list(self, o: Expr) -> _Terms:
        """Decode a channel's entries into a list of (input offset, value), ordered by tap."""
        g, source = self.g, self.source
        assert isinstance(source, PackedGaps)
        taps = g.kernel[0] * g.kernel[1]
        # At least what may lie on the stack, so that kernels of short lists have one text.
        longest = int(np.diff(source.packed.row_start.astype(np.int64)).max(initial=0))
        longest = max(_SHORT_LIST, longest)
        offsets, values = _buffer("offsets", longest, "int32"), _buffer("values", longest, "float32")
        starts = _buffer("starts", taps + 1, "int32")
        length, next_tap = _register("length", "int32", 0), _register("next_tap", "int32", 0)
        channel_step, row_step, column_step = self._steps()

        def mark(until: Expr) -> None:
            with _loop("j", 0, until - next_tap.get()) as j:
                T.buffer_store(starts, length.get(), [next_tap.get() + j])
            next_tap.set(until)

        with self._entries(o) as (position, weight):
            tap, channel = _register("tap", "int32"), _register("channel", "int32")
            tap.set(T.truncdiv(position.get(), g.inputs) if taps > 1 else IntImm("int32", 0))
            channel.set(position.get() - tap.get() * g.inputs)
            mark(tap.get() + 1)
            offset = channel.get() * channel_step
            if taps > 1:
                kw = _register("kw", "int32")
                kw.set(T.truncdiv(tap.get(), g.kernel[0]))
                kh = tap.get() - kw.get() * g.kernel[0]
                offset = offset + kh * (g.dilation[0] * row_step)
                offset = offset + kw.get() * (g.dilation[1] * column_step)
            T.buffer_store(offsets, offset, [length.get()])
            T.buffer_store(values, weight.get(), [length.get()])
            # A filler entry is written too, and overwritten by the next one.
            length.set(length.get() + _int(weight.get() != FloatImm("float32", 0.0)))
        mark(IntImm("int32", taps + 1))
        base = self._first_input(o) * channel_step

        def terms(row: Expr, column: Expr, rows: _Range, window: _Window) -> _TermIterator:
            origin = _register("origin", "int32")
            origin.set(
                base
                + (row * g.strides[0] - g.padding[0]) * row_step
                + (column * g.strides[1] - g.padding[1]) * column_step
            )
            # Where no row is ever clipped and all columns see the same pixels, the list is whole.
            height = g.kernel[0]
            whole = rows == (0, height) and len({tuple(pixels) for _, pixels in window}) == 1
            if whole and len(window) == g.kernel[1]:
                window = [((0, 1), window[0][1])]
                height = taps
                rows = (0, taps)
            elif len({tuple(pixels) for _, pixels in window}) == 1 and len(window) > 1:
                window = [((window[0][0][0], window[-1][0][1]), window[0][1])]
            for columns, pixels in window:
                with _columns(columns) as kw:
                    begin, end = _register("begin", "int32"), _register("end", "int32")
                    begin.set(starts[kw * height + rows[0]])
                    end.set(starts[kw * height + rows[1]])
                    with _loop("e", 0, end.get() - begin.get()) as e:
                        weight, place = _register("weight"), _register("place", "int32")
                        weight.set(values[begin.get() + e])
                        place.set(origin.get() + offsets[begin.get() + e])

                        def pixel(t: int, place: _Register = place) -> Expr:
                            return self._flat(place.get() + t * g.strides[1] * column_step)

                        yield weight, pixel, pixels

        return terms

    def _steps(self) -> tuple[int, int, int]:
        """Give the distance in elements of two channels, rows and columns of the input."""
        g = self.g
        channels = g.inputs * g.groups
        if g.channels_last:
            return 1, g.in_size[1] * channels, channels
        return g.in_size[0] * g.in_size[1], g.in_size[1], 1

    def _flat(self, place: Expr) -> Expr:
        """Give the element of the input at a distance from the sample's first one."""
        rank = len(self.g.in_shape)
        indices = [0] * (rank - 1) if self.g.rank == 0 else [self.batch] + [0] * (rank - 2)
        return self.x[(*indices, place)]


# A half-open range of taps or places, known when the kernel is made or at run time.
_Range = tuple[Expr, Expr]
# Columns of the window, and the pixels of the tile for which they lie inside the input.
_Window = Sequence[tuple[_Range, Sequence[int]]]
# The terms of a sum: given an output place, the window's rows inside the input and its columns,
# they open the loops and give each weight, the input pixel of the tile's t-th output, and which t.
_TermIterator = Iterator[tuple["_Register", Callable[[int], Expr], Sequence[int]]]
_Terms = Callable[[Expr, Expr, _Range, _Window], _TermIterator]


@dataclass(frozen=True)
class _Tile:
    """``count`` tiles of ``size`` pixels from the output column ``start`` on.

    ``window`` says which columns of the window are inside the input for which pixels; without it
    that is found at run time, for one pixel a tile.
    """

    count: int
    start: int
    size: int
    window: tuple[tuple[_Range, Sequence[int]], ...] = ()


def _cut(g: Geometry) -> list[_Tile]:
    """Cut a row of output pixels into tiles.

    Tiles whose windows lie inside the input are alike and form a loop. The others are at the
    border and are made one by one.

    >>> from tvm_compress.targets.mcu.geometry import Geometry
    >>> row = Geometry(1, False, 1, 1, 3, 8, (1, 40), (1, 40), (1, 3), (1, 1), (1, 1), (0, 1), (), ())
    >>> [(tile.count, tile.start, tile.size) for tile in _cut(row)]
    [(1, 0, 8), (3, 8, 8), (1, 32, 8)]
    """
    width, taps = g.out_size[1], range(g.kernel[1])
    size = max(t for t in range(1, _TILE + 1) if width % t == 0)
    # A prime count would give tiles of one pixel; a shorter last tile costs less.
    if size < _TILE // 2:
        size = min(width, _TILE)
    tiles: list[_Tile] = []
    for start in range(0, width, size):
        pixels = range(min(size, width - start))
        window = []
        for kw in taps:
            places = [(start + t) * g.strides[1] - g.padding[1] + kw * g.dilation[1] for t in pixels]
            inside = [t for t, place in zip(pixels, places, strict=True) if 0 <= place < g.in_size[1]]
            if inside:
                window.append(((kw, kw + 1), tuple(inside)))
        tile = _Tile(1, start, len(pixels), tuple(window))
        inner = len(window) == len(taps) and all(len(p) == len(pixels) for _, p in window)
        last = tiles[-1] if tiles else None
        if inner and last and last.size == tile.size and last.window == tile.window:
            tiles[-1] = _Tile(last.count + 1, last.start, last.size, last.window)
        else:
            tiles.append(tile)
    terms = sum(len(pixels) for tile in tiles for _, pixels in tile.window)
    # Very wide windows would unroll into too much code, and a tile that sees padding alone has no
    # window that says so: such rows go pixel by pixel.
    if terms > _MOST_TERMS or not all(tile.window for tile in tiles):
        return [_Tile(width, 0, 1)]
    return tiles


@contextmanager
def _columns(columns: _Range) -> Iterator[Expr]:
    """Loop over columns of the window; a single one needs no loop."""
    if isinstance(columns[0], int) and columns[1] == columns[0] + 1:
        yield columns[0]
    else:
        with _loop("kw", *columns) as kw:
            yield kw


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


def _buffer(name: str, size: int, dtype: str) -> Expr:
    """Make a local array; a large one becomes scratch memory in the arena."""
    buffer = T.alloc_buffer((size,), dtype)
    IRBuilder.name(name, buffer)
    return buffer


def _registers(name: str, count: int) -> list[_Register]:
    """Make sums of 0.0."""
    return [_register(f"{name}{i}", start=0.0) for i in range(count)]


@contextmanager
def _loop(name: str, low: Expr, high: Expr) -> Iterator[Expr]:
    with T.serial(low, high) as index:
        IRBuilder.name(name, index)
        yield index
