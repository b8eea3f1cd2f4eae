"""``block(1x4)``: blocks of four columns of one row that are not zero throughout.

For weights that are pruned in blocks and not shared: one position is stored for four weights. A row
is cut into blocks of four columns; the last one may be shorter, and is stored with zeros behind it.
A stored block is a byte, its distance from the one before less one, and four values. A row starts
at block -1. A distance over 256 is bridged by a filler: the byte 255 and four zeros::

    row 0 0 0 0 | 3 0 5 1 | 0 0 0 0 | 0 0 0 0 | 2:   gaps 1, 2   values 3 0 5 1, 2 0 0 0

``row_start[r] .. row_start[r+1]`` are the blocks of row ``r``.

Source: Gray, Radford, Kingma, "GPU Kernels for Block-Sparse Weights" (2017); the distances are
those of :mod:`tvm_compress.layouts.relative`. ``reference.c`` holds the same decoder in C99.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError
from tvm_compress.layouts.bits import WEIGHT_DTYPES, check_weights
from tvm_compress.layouts.relative import (
    check_row_start,
    relative_entries,
    row_start_dtype,
    row_starts,
    spans,
)

__all__ = ["BLOCK", "Block"]

# Columns of a block: four int8 weights are one word.
BLOCK = 4
_GAP_BITS = 8


@dataclass(frozen=True, eq=False)
class Block:
    """A sparse matrix of numbers, stored by its blocks of four columns that are not all zero.

    Attributes:
        rows: Number of rows (output channels).
        cols: Number of weights in a row, zeros counted.
        row_start: Array (rows + 1,) of uint32, index of the first block of each row.
        gaps: Array (blocks,) of uint8, the distance from the block before, less one.
        values: Array (blocks, 4) of float32, int8 or int16.
    """

    rows: int
    cols: int
    row_start: NDArray[np.uint32]
    gaps: NDArray[np.uint8]
    values: NDArray[Any]

    @classmethod
    def pack(cls, weights: NDArray[Any]) -> Block:
        """Pack pruned weights.

        Args:
            weights: Array (rows, cols) of finite float32, of int8 or of int16. In blocks that are
                stored -0.0 stays -0.0; of the others it comes back as 0.0.

        Raises:
            DataError: ``weights`` has another shape or dtype, or is not finite everywhere.

        >>> packed = Block.pack(np.array([[0, 0, 0, 0, 3, 0, 5, 1] + 8 * [0] + [2]], np.int8))
        >>> packed.gaps.tolist(), packed.values.tolist()
        ([1, 2], [[3, 0, 5, 1], [2, 0, 0, 0]])
        """
        check_weights(weights)
        rows, cols = weights.shape
        blocks = np.pad(weights, [(0, 0), (0, -cols % BLOCK)]).reshape(rows, -1, BLOCK)
        taken: NDArray[np.bool_] = np.any(blocks, axis=2)
        gaps: list[NDArray[np.uint8]] = []
        counts: list[NDArray[np.int64]] = []
        stored: list[NDArray[np.bool_]] = []
        for _, row_gaps, places, row_entries in relative_entries(taken, _GAP_BITS):
            gaps.append(row_gaps.astype(np.uint8))
            counts.append(row_entries)
            # Entries that are no fillers, in the order of the taken blocks.
            stored.append(np.zeros(row_gaps.size, np.bool_))
            stored[-1][places] = True
        values = np.zeros((sum(g.size for g in gaps), BLOCK), weights.dtype)
        values[np.concatenate(stored)] = blocks[taken]
        return cls(rows, cols, row_starts(counts), np.concatenate(gaps), values)

    def unpack(self) -> NDArray[Any]:
        """Return the dense matrix (rows, cols), of the dtype of ``values``.

        Raises:
            DataError: The data is damaged: ``row_start`` is not a rising list from 0, ``gaps`` or
                ``values`` has another shape or dtype, or a weight lies beyond ``cols``.
        """
        check_row_start("block", self.row_start, self.rows)
        for what, array, shape, dtypes, names in (
            ("gaps", self.gaps, (self.blocks,), (np.uint8,), "uint8"),
            ("values", self.values, (self.blocks, BLOCK), WEIGHT_DTYPES, "float32, int8 or int16"),
        ):
            if array.dtype not in dtypes or array.shape != shape:
                raise DataError(
                    f"The {what} of block are {array.dtype} of shape {array.shape}; expected "
                    f"{names} of shape {shape}. The data is damaged: pack the weights again."
                )
        width = -(-self.cols // BLOCK)
        out = np.zeros((self.rows, width, BLOCK), self.values.dtype)
        for span in spans("block", self.gaps, self.row_start, width, "blocks of columns"):
            rows = out[span.first : span.last].reshape(-1, BLOCK)
            rows[span.flat] = self.values[span.begin : span.end]
        matrix = out.reshape(self.rows, width * BLOCK)
        # By bytes: -0.0 is no zero that pack writes.
        beyond = np.ascontiguousarray(matrix[:, self.cols :]).view(np.uint8).any(axis=1)
        if beyond.any():
            raise DataError(
                f"Row {int(beyond.argmax())} of block holds a weight that is not zero beyond its "
                f"{self.cols} columns; expected zeros behind a short last block. The data is "
                "damaged: pack the weights again."
            )
        return np.ascontiguousarray(matrix[:, : self.cols])

    @property
    def blocks(self) -> int:
        """Number of stored blocks, fillers counted."""
        return int(self.row_start[-1])

    @property
    def row_start_stored(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """``row_start`` as it lies in flash: uint16 below 65536 blocks, else uint32."""
        return self.row_start.astype(row_start_dtype(self.blocks))

    @property
    def nbytes(self) -> int:
        """Bytes that lie in flash: gaps, values, and ``row_start`` as stored."""
        row_start_bytes = self.row_start.size * row_start_dtype(self.blocks).itemsize
        return int(self.gaps.nbytes + self.values.nbytes + row_start_bytes)
