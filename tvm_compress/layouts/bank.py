"""``bank(k)``: k entries of one byte for every bank of 16 columns, for balanced zeros.

A row is cut into banks of 16 columns; the last one may be shorter. Every bank has ``keep`` entries,
as many as the fullest bank of the matrix has weights, the last one of a row at most as many as it
has columns. So all rows are equally long, and no row needs a start::

    entry:  | column within the bank, 4 bits | code, 4 bits |   code lowest
    bank of columns 0 0 5 0 0 0 0 9 0.., keep = 3:   0x25, 0x79, 0x70

Entries of a bank rise by column. A bank of fewer weights ends with fillers: code 0, and the column
of the entry before (0 in an empty bank), so that columns never fall along a row. Code 0 must be the
weight zero.

Source: Cao et al., "Efficient and Effective Sparse LSTM on FPGA with Bank-Balanced Sparsity" (FPGA
2019), section 3. ``reference.c`` holds the same decoder in C99.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError
from tvm_compress.layouts.bits import check_codes, check_matrix, check_width

__all__ = ["BANK", "BANK_CODE_BITS", "Bank"]

# Columns of a bank, and bits of a code: a column and a code fill one byte.
BANK = 16
BANK_CODE_BITS = 4

# Weights worked on at once: their indices are int64, eight times the size of the codes.
_CHUNK_WEIGHTS = 1 << 21


@dataclass(frozen=True, eq=False)
class Bank:
    """A sparse matrix of codes, with equally many entries in every bank of 16 columns.

    Attributes:
        rows: Number of rows (output channels).
        cols: Number of weights in a row, zeros counted.
        keep: Entries of a bank, 1 to 16.
        data: Array (rows, entries) of uint8; ``entries`` as the property says.
    """

    rows: int
    cols: int
    keep: int
    data: NDArray[np.uint8]

    @classmethod
    def pack(cls, codes: NDArray[np.uint8]) -> Bank:
        """Pack a matrix of codes; code 0 is the weight zero, and ``keep`` the largest count found.

        Args:
            codes: Array (rows, cols) of uint8, each code at most 15.

        Raises:
            DataError: ``codes`` has another shape or dtype, or a code that needs more bits.

        >>> packed = Bank.pack(np.array([[0, 0, 5, 0, 0, 0, 0, 9], [0, 3, 0, 0, 0, 0, 0, 0]], "u1"))
        >>> packed.keep, [[hex(entry) for entry in row] for row in packed.data]
        (2, [['0x25', '0x79'], ['0x13', '0x10']])
        """
        check_matrix("codes", codes, np.uint8)
        check_codes(codes, BANK_CODE_BITS)
        rows, cols = codes.shape
        counts = np.add.reduceat(codes != 0, np.arange(0, cols, BANK), axis=1, dtype=np.int64)
        keep = max(1, int(counts.max()))
        packed = cls(rows, cols, keep, np.empty((rows, _entries(cols, keep)), np.uint8))
        step = max(1, _CHUNK_WEIGHTS // cols)
        for first in range(0, rows, step):
            packed.data[first : first + step] = _pack_rows(codes[first : first + step], keep)
        return packed

    def unpack(self) -> NDArray[np.uint8]:
        """Return the codes, an array (rows, cols) of uint8.

        Raises:
            OptionError: ``keep`` is outside 1..16.
            DataError: The data is damaged: it has another shape or dtype, or an entry lies beyond
                the last column or out of order.
        """
        check_width("keep", self.keep, 1, BANK)
        shape = (self.rows, _entries(self.cols, self.keep))
        if self.data.dtype != np.uint8 or self.data.shape != shape:
            raise DataError(
                f"The packed data of bank is {self.data.dtype} of shape {self.data.shape}; "
                f"expected uint8 of shape {shape} for {self.rows} rows of {self.cols} codes with "
                f"{self.keep} entries a bank. The data is damaged: pack the codes again."
            )
        out = np.zeros((self.rows, self.cols), np.uint8)
        step = max(1, _CHUNK_WEIGHTS // self.cols)
        for first in range(0, self.rows, step):
            self._unpack_rows(first, self.data[first : first + step], out[first : first + step])
        return out

    def _unpack_rows(self, first: int, data: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        banks = np.arange(data.shape[1]) // self.keep
        code, place = data & (2**BANK_CODE_BITS - 1), data >> BANK_CODE_BITS
        columns = banks * BANK + place
        beyond = columns >= self.cols
        if beyond.any():
            row, entry = divmod(int(beyond.argmax()), data.shape[1])
            raise DataError(
                f"Row {first + row} of bank reaches column {columns[row, entry]}; expected at most "
                f"{self.cols - 1}, for the matrix has {self.cols} columns. The data is damaged: "
                "pack the codes again."
            )
        # What stands before the first entry of a bank: a weight at column -1. A filler there has
        # column 0.
        begins = np.arange(data.shape[1]) % self.keep == 0
        before = np.where(begins, -1, np.roll(place, 1, axis=1).astype(np.int16))
        filler = np.where(begins, False, np.roll(code, 1, axis=1) == 0)
        wrong = np.where(
            code == 0, place != np.maximum(before, 0), filler | (place.astype(np.int16) <= before)
        )
        if wrong.any():
            row, entry = divmod(int(wrong.argmax()), data.shape[1])
            raise DataError(
                f"Entry {entry} of row {first + row} of bank is 0x{data[row, entry]:02x} behind "
                f"column {before[row, entry]} of its bank; expected a larger column, or code 0 and "
                "the same column at the end of a bank. The data is damaged: pack the codes again."
            )
        row, entry = np.nonzero(code)
        out[row, columns[row, entry]] = code[row, entry]

    @property
    def entries(self) -> int:
        """Number of entries of a row: ``keep`` a bank, of a short last bank at most its columns."""
        return _entries(self.cols, self.keep)

    @property
    def nbytes(self) -> int:
        """Bytes that lie in flash: one an entry."""
        return int(self.data.nbytes)


def _entries(cols: int, keep: int) -> int:
    return cols // BANK * keep + min(cols % BANK, keep)


def _pack_rows(codes: NDArray[np.uint8], keep: int) -> NDArray[np.uint8]:
    """Pack some rows of codes into (rows, entries) of uint8."""
    rows, cols = codes.shape
    banks = -(-cols // BANK)
    row, column = np.nonzero(codes)
    bank = row * banks + column // BANK
    counts = np.bincount(bank, minlength=rows * banks)
    rank = np.arange(bank.size) - np.repeat(np.cumsum(counts) - counts, counts)
    code, place = (np.zeros((rows * banks, keep), np.uint8) for _ in range(2))
    code[bank, rank] = codes[row, column]
    place[bank, rank] = column % BANK
    # Columns rise and fillers hold 0, so the largest so far is the one of the entry before.
    place = np.maximum.accumulate(place, axis=1)
    packed: NDArray[np.uint8] = place << np.uint8(BANK_CODE_BITS) | code
    return packed.reshape(rows, banks * keep)[:, : _entries(cols, keep)]
