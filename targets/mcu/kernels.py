"""Kernels in TIR that multiply straight from packed weights.

One builder makes the kernel of one layer from three parts: the :class:`Geometry`, where a weight
comes from (a :data:`Source`) and what follows the sum (the epilogue: bias, residual, activation).

All loop nests go over output channels, then over output pixels in tiles that sit in registers, so
a weight is loaded once a tile. No padded copy of the input is made: the rows of a window are
clipped at run time, and in the tiles at the left and right border the products with padding are
left out when the kernel is made. How a weight is decoded:

- where all pixels of a channel fit one tile (a product with a vector), at the place where it is
  multiplied: no weight ever lies decoded in memory;
- else once for each output channel, into a scratch row that all its pixels read: the channel's
  weights for ``dense_codes``, a list of (input offset, value) of the non-zero ones for the sparse
  layouts. Their rows are in the order (kw, kh, input channel), so that what one column of the
  window multiplies is one piece of the list, whatever rows are clipped.

No full tensor of weights exists at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Cast, IntImm
from tvm.tirx.script import builder as T

from tvm_compress.targets.mcu.geometry import Geometry
from tvm_compress.targets.mcu.tir import Expr, Register, array, as_int, loop, register, registers
from tvm_compress.targets.mcu.weights import Dense, Grid, Source, Sparse

__all__ = ["OPAQUE", "Arithmetic", "Epilogue", "build_kernel", "build_stub"]

# FuseOps leaves a function of this pattern alone: the epilogue is inside already.
OPAQUE = 8

# Output pixels in registers: the Cortex-M4F has 32 single registers; two are for weight and pixel.
_TILE = 8
# The shortest scratch list: what may lie on the stack, so that short lists have one kernel's text.
_SHORT_LIST = 32
# Input channels in a row of an unrolled loop, and products in all unrolled code of a kernel.
_UNROLLED = 8
_MOST_TERMS = 200


@dataclass(frozen=True)
class Epilogue:
    """What follows the sum: ``apply(sum, operands' elements) -> element``.

    ``operands`` are the shapes of the tensors that it reads, each broadcastable to the output.
    """

    apply: Callable[[Expr, Sequence[Expr]], Expr]
    operands: tuple[tuple[tuple[int, ...], str], ...] = ()


@dataclass(frozen=True)
class Arithmetic:
    """The dtypes of input and output, and the integer that the input's padding stands for.

    Integers are summed in int32, floats in float32. A ``zero`` is taken off every input, so that
    padding adds nothing to the sum.
    """

    x: str = "float32"
    y: str = "float32"
    zero: int = 0

    @property
    def total(self) -> str:
        """The dtype of sums and of decoded weights in registers."""
        return self.x if self.x.startswith("float") else "int32"


def _i64(shape: Sequence[int]) -> list[Expr]:
    return [IntImm("int64", size) for size in shape]


def build_kernel(
    geometry: Geometry, source: Source, epilogue: Epilogue, arithmetic: Arithmetic | None = None
) -> Any:
    """Build the PrimFunc ``(x, epilogue operands..., weight arrays..., y)``.

    The arguments have the shapes that the IR gives them, so that a Relax ``call_tir`` can call it.
    """
    arithmetic = arithmetic or Arithmetic()
    if geometry.pointwise:
        geometry = geometry.flattened()
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
        x = T.arg("x", T.buffer(_i64(geometry.in_shape), arithmetic.x))
        extra = [
            T.arg(f"e{i}", T.buffer(_i64(shape), dtype))
            for i, (shape, dtype) in enumerate(epilogue.operands)
        ]
        weights = [
            T.arg(operand.name, T.buffer(_i64(operand.value.shape), str(operand.value.dtype)))
            for operand in source.operands()
        ]
        y = T.arg("y", T.buffer(_i64(geometry.out_shape), arithmetic.y))
        kernel = _Kernel(geometry, source, epilogue, arithmetic, x, extra, weights, y)
        with loop("n", 0, geometry.batch) as n:
            kernel.batch = n
            kernel.emit()
    return builder.get()


def build_stub(
    inputs: Sequence[tuple[tuple[int, ...], str]], out: tuple[tuple[int, ...], str]
) -> Any:
    """Build the PrimFunc ``(inputs..., y)`` of what another function than a loop nest computes.

    Tensors are (shape, dtype).
    """
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
        for i, (shape, dtype) in enumerate((*inputs, out)):
            T.arg(f"x{i}" if i < len(inputs) else "y", T.buffer(_i64(shape), dtype))
        T.evaluate(IntImm("int32", 0))
    return builder.get()


class _Kernel:
    """The loop nests of one kernel, emitted into the open IR builder."""

    def __init__(
        self,
        geometry: Geometry,
        source: Source,
        epilogue: Epilogue,
        arithmetic: Arithmetic,
        x: Expr,
        extra: Sequence[Expr],
        weights: Sequence[Expr],
        y: Expr,
    ) -> None:
        self.g, self.source, self.epilogue = geometry, source, epilogue
        self.arithmetic, self.total = arithmetic, arithmetic.total
        self.x, self.extra, self.weights, self.y = x, extra, weights, y
        self.batch: Expr = 0

    def emit(self) -> None:
        g = self.g
        tiles = _cut(g)
        # With one tile a channel there is nothing to share, and no scratch is needed.
        once = g.pointwise and g.out_size[0] == 1 and sum(t.count for t in tiles) == 1
        with loop("o", 0, g.outputs) as o:
            terms = self._inline(o) if once else self._prepare(o)
            with loop("row", 0, g.out_size[0]) as row:
                for tile in tiles:
                    if tile.count == 1:
                        self._tile(terms, o, row, IntImm("int32", tile.start), tile)
                        continue
                    with loop("tile", 0, tile.count) as t:
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
        return self._wide(self.x[tuple(self._index(self.g.in_shape, channel, row, column))])

    def _wide(self, element: Expr) -> Expr:
        """Give an input's element as sums take it."""
        if self.total != "int32":
            return element
        zero = self.arithmetic.zero
        return as_int(element) - zero if zero else as_int(element)

    def _weight(self, value: Expr) -> Register:
        """Put a weight into a register of the sums' dtype."""
        weight = register("weight", self.total)
        weight.set(as_int(value) if self.total == "int32" else value)
        return weight

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
        # ceil(-origin / dilation) and ceil((size - origin) / dilation). Numerators that fall with
        # the place would be right too, but TVM simplifies (1 - row) // 2 to row // -2.
        low = T.max(0, 0 - origin // dilation) if pad else 0
        high = T.min(taps, 0 - (origin - size) // dilation)
        # Where the padding is wider than the window, some places see no tap at all.
        if pad > reach:
            low = T.min(taps, low)
        if (g.out_size[axis] - 1) * step - pad >= size:
            high = T.max(0, high)
        return low, high

    # -- sums -----------------------------------------------------------------------------------

    def _tile(self, terms: _Terms, o: Expr, row: Expr, column: Expr, tile: _Tile) -> None:
        """Sum and store the pixels of one tile."""
        sums = registers("sum", tile.size, self.total)
        window = tile.window or [(self._clip(1, column), range(tile.size))]
        for weight, pixel, pixels in terms(row, column, self._clip(0, row), window):
            for t in pixels:
                sums[t].set(sums[t].get() + weight.get() * pixel(t))
        for t in range(tile.size):
            self._store(o, row, column + t, sums[t].get())

    def _inline(self, o: Expr) -> _Terms:
        """Decode each weight where it is multiplied."""
        source = self.source
        if isinstance(source, Grid):
            return self._grid(o, lambda place: source.load(self.weights, o, place))
        base = self._first_input(o)

        def terms(row: Expr, column: Expr, rows: _Range, window: _Window) -> _TermIterator:
            unrolled = _UNROLLED // len(window[0][1])
            for position, value in source.walk(self.weights, o, unrolled):
                weight = self._weight(value)

                def pixel(t: int, position: Expr = position) -> Expr:
                    return self._input(base + position, 0, column + t)

                yield weight, pixel, window[0][1]

        return terms

    def _prepare(self, o: Expr) -> _Terms:
        """Decode the weights of an output channel into a scratch row."""
        if isinstance(self.source, Sparse):
            return self._list(o, self.source)
        if isinstance(self.source, Dense):
            weights = self.weights[0]
            return self._grid(o, lambda place: weights[o, place])
        scratch = array("decoded", self.g.columns, self.source.dtype)
        with loop("k", 0, self.g.columns) as k:
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
            with loop("c", 0, g.inputs // unrolled) as block, loop("kh", *rows) as kh:
                for i, (columns, pixels) in product(range(unrolled), window):
                    c = block * unrolled + i
                    with _columns(columns) as kw:
                        weight = self._weight(load((c * g.kernel[0] + kh) * g.kernel[1] + kw))

                        def pixel(t: int, c: Expr = c, kw: Expr = kw) -> Expr:
                            return self._input(
                                base + c,
                                row * g.strides[0] + kh * g.dilation[0] - g.padding[0],
                                (column + t) * g.strides[1] + kw * g.dilation[1] - g.padding[1],
                            )

                        yield weight, pixel, pixels

        return terms

    def _list(self, o: Expr, source: Sparse) -> _Terms:
        """Decode a channel's entries into a list of (input offset, value), ordered by tap."""
        g = self.g
        taps = g.kernel[0] * g.kernel[1]
        # At least what may lie on the stack, so that kernels of short lists have one text.
        longest = max(_SHORT_LIST, source.longest)
        offsets, values = array("offsets", longest, "int32"), array("values", longest, source.dtype)
        starts = array("starts", taps + 1, "int32")
        length, next_tap = register("length", "int32", 0), register("next_tap", "int32", 0)
        channel_step, row_step, column_step = self._steps()

        def mark(until: Expr) -> None:
            with loop("j", 0, until - next_tap.get()) as j:
                T.buffer_store(starts, length.get(), [next_tap.get() + j])
            next_tap.set(until)

        for position, value in source.walk(self.weights, o, 1):
            weight = self._weight(value)
            tap, channel = register("tap", "int32"), register("channel", "int32")
            tap.set(T.truncdiv(position, g.inputs) if taps > 1 else IntImm("int32", 0))
            channel.set(position - tap.get() * g.inputs)
            mark(tap.get() + 1)
            offset = channel.get() * channel_step
            if taps > 1:
                kw = register("kw", "int32")
                kw.set(T.truncdiv(tap.get(), g.kernel[0]))
                kh = tap.get() - kw.get() * g.kernel[0]
                offset = offset + kh * (g.dilation[0] * row_step)
                offset = offset + kw.get() * (g.dilation[1] * column_step)
            T.buffer_store(offsets, offset, [length.get()])
            T.buffer_store(values, Cast(source.dtype, weight.get()), [length.get()])
            # A zero, of a filler or of a block, is written too, and overwritten by the next one.
            length.set(length.get() + as_int(weight.get() != Cast(self.total, IntImm("int32", 0))))
        mark(IntImm("int32", taps + 1))
        base = self._first_input(o) * channel_step

        def terms(row: Expr, column: Expr, rows: _Range, window: _Window) -> _TermIterator:
            origin = register("origin", "int32")
            origin.set(
                base
                + (row * g.strides[0] - g.padding[0]) * row_step
                + (column * g.strides[1] - g.padding[1]) * column_step
            )
            # Where no row is ever clipped and all columns see the same pixels, the list is whole.
            height = g.kernel[0]
            whole = rows == (0, height) and len({tuple(pixels) for _, pixels in window}) == 1
            if whole and len(window) == g.kernel[1] and window[0][0] == (0, 1):
                window = [((0, 1), window[0][1])]
                height = taps
                rows = (0, taps)
            elif len({tuple(pixels) for _, pixels in window}) == 1 and len(window) > 1:
                window = [((window[0][0][0], window[-1][0][1]), window[0][1])]
            for columns, pixels in window:
                with _columns(columns) as kw:
                    begin, end = register("begin", "int32"), register("end", "int32")
                    begin.set(starts[kw * height + rows[0]])
                    end.set(starts[kw * height + rows[1]])
                    with loop("e", 0, end.get() - begin.get()) as e:
                        weight = self._weight(values[begin.get() + e])
                        place = register("place", "int32")
                        place.set(origin.get() + offsets[begin.get() + e])

                        def pixel(t: int, place: Register = place) -> Expr:
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
        return self._wide(self.x[(*indices, place)])


# A half-open range of taps or places, known when the kernel is made or at run time.
_Range = tuple[Expr, Expr]
# Columns of the window, and the pixels of the tile for which they lie inside the input.
_Window = Sequence[tuple[_Range, Sequence[int]]]
# The terms of a sum: given an output place, the window's rows inside the input and its columns,
# they open the loops and give each weight, the input pixel of the tile's t-th output, and which t.
_TermIterator = Iterator[tuple["Register", Callable[[int], Expr], Sequence[int]]]
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
    >>> sizes = {"in_size": (1, 40), "out_size": (1, 40), "kernel": (1, 3), "padding": (0, 1)}
    >>> ones = {"strides": (1, 1), "dilation": (1, 1), "in_shape": (), "out_shape": ()}
    >>> row = Geometry(1, False, 1, 1, 3, 8, **sizes, **ones)
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
            places = [
                (start + t) * g.strides[1] - g.padding[1] + kw * g.dilation[1] for t in pixels
            ]
            inside = [
                t for t, place in zip(pixels, places, strict=True) if 0 <= place < g.in_size[1]
            ]
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
        with loop("kw", *columns) as kw:
            yield kw
