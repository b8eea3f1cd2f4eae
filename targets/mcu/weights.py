"""Where a kernel's weights come from: dense, or packed as they lie in flash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T

from tvm_compress.layouts import DenseCodes, GapCodes
from tvm_compress.targets.mcu.geometry import Geometry
from tvm_compress.targets.mcu.tir import Expr, as_int, register

__all__ = ["Dense", "Operand", "PackedCodes", "PackedGaps", "Source", "stream_order"]

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

    def operands(self) -> list[Operand]:
        """Give the arrays that lie in flash."""
        rows = self.packed.row_start
        rows = rows.astype(np.uint16) if self.packed.entries < 1 << 16 else rows
        return [
            Operand("entries", self.packed.data),
            Operand("rows", rows),
            Operand("centroids", self.centroids),
        ]

    def entry(self, buffers: Sequence[Expr], row: Expr, index: Expr) -> tuple[Expr, Expr]:
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


Source = Dense | PackedCodes | PackedGaps
