"""``dense_codes(bits)``: one packed code a weight, row by row.

A row is padded with code 0 to a multiple of 8 codes. Eight codes of ``bits`` bits fill exactly
``bits`` bytes, so every group of 8 starts on a byte and a kernel unpacks it with constant shifts::

    row:  | group 0: bytes 0 .. bits-1 | group 1: bytes bits .. 2*bits-1 | ...
    group of 3-bit codes a..h, byte 0 = ccbbbaaa, byte 1 = fedddc.. and so on, low bit first

``reference.c`` holds the same decoder in C99.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError
from tvm_compress.layouts.bits import (
    check_codes,
    check_matrix,
    check_width,
    pack_bits,
    unpack_bits,
)

__all__ = ["DenseCodes"]


@dataclass(frozen=True, eq=False)
class DenseCodes:
    """A matrix of codes, each packed into ``bits`` bits.

    Attributes:
        rows: Number of rows (output channels).
        cols: Number of codes in a row, padding not counted.
        bits: Width of a code, 1 to 8.
        data: Array (rows, ceil(cols / 8) * bits) of uint8.
    """

    rows: int
    cols: int
    bits: int
    data: NDArray[np.uint8]

    @classmethod
    def pack(cls, codes: NDArray[np.uint8], bits: int) -> DenseCodes:
        """Pack a matrix of codes.

        Args:
            codes: Array (rows, cols) of uint8, each code below ``2**bits``.
            bits: Width of a code, 1 to 8.

        Raises:
            OptionError: ``bits`` is outside 1..8.
            DataError: ``codes`` has another shape or dtype, or a code that needs more bits.

        >>> DenseCodes.pack(np.array([[1, 0, 3], [2, 2, 2]], np.uint8), 2).data.tolist()
        [[49, 0], [42, 0]]
        """
        check_width("bits", bits, 1, 8)
        check_matrix("codes", codes, np.uint8)
        check_codes(codes, bits)
        rows, cols = codes.shape
        groups = -(-cols // 8)
        padded = codes
        if cols % 8:
            padded = np.zeros((rows, 8 * groups), np.uint8)
            padded[:, :cols] = codes
        data = pack_bits(padded.reshape(-1), bits).reshape(rows, groups * bits)
        return cls(rows=rows, cols=cols, bits=bits, data=data)

    def unpack(self) -> NDArray[np.uint8]:
        """Return the codes, an array (rows, cols) of uint8.

        Raises:
            OptionError: ``bits`` is outside 1..8.
            DataError: ``data`` is not uint8 of the shape that the other fields ask for.
        """
        check_width("bits", self.bits, 1, 8)
        groups = -(-self.cols // 8)
        shape = (self.rows, groups * self.bits)
        if self.data.dtype != np.uint8 or self.data.shape != shape:
            raise DataError(
                f"The packed data of dense_codes is {self.data.dtype} of shape {self.data.shape}; "
                f"expected uint8 of shape {shape} for {self.rows} rows of {self.cols} codes of "
                f"{self.bits} bits. The data is damaged: pack the codes again."
            )
        flat = unpack_bits(self.data.reshape(-1), self.bits, self.rows * groups * 8)
        return np.ascontiguousarray(
            flat.reshape(self.rows, groups * 8)[:, : self.cols], dtype=np.uint8
        )

    @property
    def nbytes(self) -> int:
        """Bytes that lie in flash: the packed rows with their padding."""
        return int(self.data.nbytes)
