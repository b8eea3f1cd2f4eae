"""Where a kernel's weights come from: dense, or packed as they lie in flash.

A kernel reads a source in one of two ways. Of a :data:`Grid` it loads the weight at any row and
column. Of a :data:`Sparse` source it walks over the entries of a row: the positions in
:func:`stream_order` never fall, and an entry of value zero may stand between others. Up to
``unrolled`` entries of a bank or a block may stand one behind the other, without a loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T

from tvm_compress.layouts import BANK_CODE_BITS, Bank, Block, DenseCodes, GapCodes
from tvm_compress.layouts.bank import BANK
from tvm_compress.layouts.block import BLOCK
from tvm_compress.targets.mcu.geometry import Geometry
from tvm_compress.targets.mcu.tir import Expr, as_int, loop, register

__all__ = [
    "Dense",
    "Grid",
    "Operand",
    "PackedBanks",
    "PackedBlocks",
    "PackedCodes",
    "PackedGaps",
    "Source",
    "Sparse",
    "stream_order",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Operand:
    """A constant array that a kernel takes: its name for symbols, and its value."""

    name: str
    value: Array


@dataclass(frozen=True)
class Dense:
    """Weights as they are: float32, int8 or int16 of shape (rows, columns)."""

    weights: Array
    layout = "dense"

    @property
    def dtype(self) -> str:
        """The dtype of a weight."""
        return str(self.weights.dtype)

    def operands(self) -> list[Operand]:
        """Give the arrays that lie in flash."""
        return [Operand("weights", self.weights)]

    def load(self, buffers: Sequence[Expr], row: Expr, column: Expr) -> Expr:
        """Give the weight at (row, column)."""
        return buffers[0][row, column]


def _centroid(centroids: Expr, rows: int, row: Expr, code: Expr) -> Expr:
    """Give the centroid of a code: of the one codebook, or of that of the row's group."""
    if len(centroids.shape) == 1:
        return centroids[code]
    return centroids[row // (rows // int(centroids.shape[0])), code]


@dataclass(frozen=True)
class PackedCodes:
    """``dense_codes``: one code a weight, and the centroids.

    ``centroids`` has the shape (k,), or (groups, k): as many rows that follow each other read
    each of them.
    """

    packed: DenseCodes
    centroids: Array
    layout = "dense_codes"

    @property
    def dtype(self) -> str:
        """The dtype of a weight."""
        return str(self.centroids.dtype)

    def operands(self) -> list[Operand]:
        """Give the arrays that lie in flash."""
        return [Operand("codes", self.packed.data), Operand("centroids", self.centroids)]

    def load(self, buffers: Sequence[Expr], row: Expr, column: Expr) -> Expr:
        """Give the weight at (row, column): bit field, then centroid."""
        data, centroids = buffers
        bits = self.packed.bits
        if bits == 8:
            code = as_int(data[row, column])
        else:
            per_byte = 8 // bits if 8 % bits == 0 else 0
            if per_byte:  # a code never crosses a byte
                shift = (column % per_byte) * bits
                code = (as_int(data[row, column // per_byte]) >> shift) & ((1 << bits) - 1)
            else:
                start = column * bits
                low, high = as_int(data[row, start // 8]), self._next_byte(data, row, start // 8)
                code = ((low | (high << 8)) >> (start % 8)) & ((1 << bits) - 1)
        return _centroid(centroids, self.packed.data.shape[0], row, code)

    def _next_byte(self, data: Expr, row: Expr, byte: Expr) -> Expr:
        # The last code of a row ends with the row, so the byte behind it is read but not used;
        # the index is clamped to stay inside the array.
        last = self.packed.data.shape[1] - 1
        return as_int(data[row, T.min(byte + 1, last)])


def stream_order(matrix: Array, geometry: Geometry) -> Array:
    """Reorder the columns of (rows, columns) from (channel, kh, kw) to (kw, kh, channel)."""
    cube = matrix.reshape(-1, geometry.inputs, *geometry.kernel)
    return np.ascontiguousarray(cube.transpose(0, 3, 2, 1).reshape(matrix.shape))


def _row(row_start: Expr, row: Expr) -> tuple[Expr, Expr]:
    """Emit the reading of where a row's entries are: (first, count)."""
    first, count = register("first", "int32"), register("count", "int32")
    first.set(as_int(row_start[row]))
    count.set(as_int(row_start[row + 1]) - first.get())
    return first.get(), count.get()


def _each(count: int, most: Expr | None, unrolled: int) -> Iterator[Expr]:
    """Go over ``count`` entries, or over ``most`` of them that the run tells."""
    if most is None and count <= unrolled:
        yield from range(count)
        return
    with loop("e", 0, count if most is None else most) as entry:
        yield entry


@dataclass(frozen=True)
class PackedGaps:
    """``gap_codes``: entries of (gap, code), and the centroids or one value an entry.

    The rows are in :func:`stream_order`; ``centroids`` are as those of :class:`PackedCodes`.
    """

    packed: GapCodes
    centroids: Array
    layout = "gap_codes"

    @property
    def dtype(self) -> str:
        """The dtype of a weight."""
        return str(self.centroids.dtype)

    @property
    def longest(self) -> int:
        """The most entries of a row."""
        return int(np.diff(self.packed.row_start.astype(np.int64)).max(initial=0))

    def operands(self) -> list[Operand]:
        """Give the arrays that lie in flash."""
        return [
            Operand("entries", self.packed.data),
            Operand("rows", self.packed.row_start_stored),
            Operand("centroids", self.centroids),
        ]

    def walk(
        self, buffers: Sequence[Expr], row: Expr, unrolled: int
    ) -> Iterator[tuple[Expr, Expr]]:
        """Open the loop over the entries of a row; give (position, value)."""
        position = register("position", "int32", -1)
        first, count = _row(buffers[1], row)
        with loop("entry", 0, count) as entry:
            gap, value = self._entry(buffers, row, first + entry)
            position.set(position.get() + gap)
            yield position.get(), value

    def _entry(self, buffers: Sequence[Expr], row: Expr, index: Expr) -> tuple[Expr, Expr]:
        """Emit the decoding of an entry of a row; give (gap + 1, value)."""
        data, _, centroids = buffers
        gap_bits, code_bits = self.packed.gap_bits, self.packed.code_bits
        width = gap_bits + code_bits
        field = register("field", "int32")
        if width == 8:
            field.set(as_int(data[index]))
        elif width == 16:
            field.set(as_int(data[index * 2]) | (as_int(data[index * 2 + 1]) << 8))
        elif 8 % width == 0:
            field.set(as_int(data[index * width // 8]) >> (index * width % 8))
        else:
            start = register("start", "int32")
            start.set(index * width)
            byte = start.get() >> 3
            bits = as_int(data[byte]) | (as_int(data[byte + 1]) << 8)
            if width > 9:  # 7 bits of offset and the field may cross a second byte border
                bits = bits | (as_int(data[byte + 2]) << 16)
            field.set(bits >> (start.get() & 7))
        gap = field.get() & ((1 << gap_bits) - 1)
        if code_bits == 0:
            return gap + 1, centroids[index]
        code = (field.get() >> gap_bits) & ((1 << code_bits) - 1)
        return gap + 1, _centroid(centroids, self.packed.row_start.size - 1, row, code)


@dataclass(frozen=True)
class PackedBanks:
    """``bank``: equally many entries of a byte for every bank of 16 columns, and the centroids.

    The rows are in :func:`stream_order`; ``centroids`` are as those of :class:`PackedCodes`.
    """

    packed: Bank
    centroids: Array
    layout = "bank"

    @property
    def dtype(self) -> str:
        """The dtype of a weight."""
        return str(self.centroids.dtype)

    @property
    def longest(self) -> int:
        """The most entries of a row."""
        return self.packed.entries

    def operands(self) -> list[Operand]:
        """Give the arrays that lie in flash."""
        return [Operand("entries", self.packed.data), Operand("centroids", self.centroids)]

    def walk(
        self, buffers: Sequence[Expr], row: Expr, unrolled: int
    ) -> Iterator[tuple[Expr, Expr]]:
        """Open the loops over the entries of a row; give (position, value)."""
        data, centroids = buffers
        packed = self.packed
        keep, entries = packed.keep, packed.entries
        banks = -(-packed.cols // BANK)
        field, position = register("field", "int32"), register("position", "int32")
        with loop("bank", 0, banks) as bank:
            # Only a short last bank has fewer entries.
            most = None if entries == banks * keep else T.min(keep, entries - bank * keep)
            for entry in _each(keep, most, unrolled):
                field.set(as_int(data[row, bank * keep + entry]))
                position.set(bank * BANK + (field.get() >> BANK_CODE_BITS))
                code = field.get() & ((1 << BANK_CODE_BITS) - 1)
                yield position.get(), _centroid(centroids, packed.rows, row, code)


@dataclass(frozen=True)
class PackedBlocks:
    """``block``: a byte of distance and four values for every block that is not zero.

    The rows are in :func:`stream_order`.
    """

    packed: Block
    layout = "block"

    @property
    def dtype(self) -> str:
        """The dtype of a weight."""
        return str(self.packed.values.dtype)

    @property
    def longest(self) -> int:
        """The most values of a row that are walked over."""
        blocks = int(np.diff(self.packed.row_start.astype(np.int64)).max(initial=0))
        return min(BLOCK * blocks, self.packed.cols)

    def operands(self) -> list[Operand]:
        """Give the arrays that lie in flash."""
        return [
            Operand("gaps", self.packed.gaps),
            Operand("rows", self.packed.row_start_stored),
            Operand("values", self.packed.values),
        ]

    def walk(
        self, buffers: Sequence[Expr], row: Expr, unrolled: int
    ) -> Iterator[tuple[Expr, Expr]]:
        """Open the loops over the values of a row; give (position, value)."""
        gaps, rows, values = buffers
        cols = self.packed.cols
        position = register("position", "int32", -BLOCK)
        first, count = _row(rows, row)
        with loop("entry", 0, count) as entry:
            index = first + entry
            position.set(position.get() + (as_int(gaps[index]) + 1) * BLOCK)
            # Behind a short last block there is no input to read.
            most = T.min(BLOCK, cols - position.get()) if cols % BLOCK else None
            for lane in _each(BLOCK, most, unrolled):
                yield position.get() + lane, values[index, lane]


Grid = Dense | PackedCodes
Sparse = PackedGaps | PackedBanks | PackedBlocks
Source = Grid | Sparse
