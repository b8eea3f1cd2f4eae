"""``gap_codes(gap_bits, code_bits)``: Deep Compression's relative index, for unstructured zeros.

Only weights whose code is not 0 are stored, each as one entry of ``gap_bits + code_bits`` bits in
one bit string over the whole matrix (rows are not byte-aligned)::

    entry e, bits e*w .. (e+1)*w - 1, w = gap_bits + code_bits:   [ code | gap ]   gap lowest

A row starts at position -1. Gap ``v`` moves the position forward by ``v + 1``; the code belongs
there. A distance over ``2**gap_bits`` is bridged by filler entries with the largest gap and
code 0. ``row_start[r] .. row_start[r+1]`` are the entries of row ``r``. The string ends with two
zero bytes, so that a kernel may read three bytes at the start of any entry.

With ``code_bits == 0`` the weights are pruned but not shared, and ``values`` holds one number an
entry, 0 for a filler: float32, or int8 or int16 of a network in integers.

Source: Han, Mao, Dally, "Deep Compression", section 2 (arXiv 1510.00149). ``reference.c`` holds
the same decoder in C99.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError
from tvm_compress.layouts.bits import (
    WEIGHT_DTYPES,
    check_codes,
    check_matrix,
    check_weights,
    check_width,
    pack_bits,
    unpack_bits,
)
from tvm_compress.layouts.relative import (
    check_row_start,
    distances,
    relative_entries,
    row_start_dtype,
    row_starts,
    spans,
)

__all__ = ["GapCodes", "best_gap_bits"]

# Zero bytes at the end of the stream: an entry of at most 16 bits that starts inside a byte spans
# three bytes, and a kernel reads all three without asking.
STREAM_PADDING_BYTES = 2


@dataclass(frozen=True, eq=False)
class GapCodes:
    """A sparse matrix of codes (or of plain numbers), stored by distances between non-zeros.

    Attributes:
        rows: Number of rows (output channels).
        cols: Number of weights in a row, zeros counted.
        gap_bits: Width of a gap, 1 to 8.
        code_bits: Width of a code, 1 to 8, or 0 where ``values`` are stored instead.
        row_start: Array (rows + 1,) of uint32, index of the first entry of each row.
        data: Array of uint8, the bit string and its two bytes of padding.
        values: Array (entries,) of float32, int8 or int16 where ``code_bits`` is 0, else None.
    """

    rows: int
    cols: int
    gap_bits: int
    code_bits: int
    row_start: NDArray[np.uint32]
    data: NDArray[np.uint8]
    values: NDArray[Any] | None = None

    @classmethod
    def pack(cls, codes: NDArray[np.uint8], gap_bits: int, code_bits: int) -> GapCodes:
        """Pack a matrix of codes; code 0 is the weight zero and is not stored.

        Args:
            codes: Array (rows, cols) of uint8, each code below ``2**code_bits``.
            gap_bits: Width of a gap, 1 to 8.
            code_bits: Width of a code, 1 to 8.

        Raises:
            OptionError: ``gap_bits`` or ``code_bits`` is outside 1..8.
            DataError: ``codes`` has another shape or dtype, or a code that needs more bits.

        >>> packed = GapCodes.pack(np.array([[0, 1, 0, 0, 0, 0, 3]], np.uint8), 2, 2)
        >>> packed.entries, packed.fillers  # 5 steps from position 1 to 6: 4 by a filler, then 1
        (3, 1)
        >>> packed.data.tolist()  # entries 0b0101, 0b0011, 0b1100; then the padding
        [53, 12, 0, 0]
        """
        check_width("gap_bits", gap_bits, 1, 8)
        check_width("code_bits", code_bits, 1, 8)
        check_matrix("codes", codes, np.uint8)
        check_codes(codes, code_bits)
        words: list[NDArray[np.uint16]] = []
        counts: list[NDArray[np.int64]] = []
        for stored, gaps, places, row_entries in relative_entries(codes, gap_bits):
            gaps[places] |= stored.astype(np.uint16) << np.uint16(gap_bits)
            words.append(gaps)
            counts.append(row_entries)
        row_start, data = _stream(words, counts, gap_bits + code_bits)
        rows, cols = codes.shape
        return cls(rows, cols, gap_bits, code_bits, row_start, data)

    @classmethod
    def pack_values(cls, weights: NDArray[Any], gap_bits: int) -> GapCodes:
        """Pack pruned weights that share no centroids; ``code_bits`` becomes 0.

        Args:
            weights: Array (rows, cols) of finite float32, of int8 or of int16. Both zeros, 0.0 and
                -0.0, are dropped and come back as 0.0.
            gap_bits: Width of a gap, 1 to 8.

        Raises:
            OptionError: ``gap_bits`` is outside 1..8.
            DataError: ``weights`` has another shape or dtype, or is not finite everywhere.
        """
        check_width("gap_bits", gap_bits, 1, 8)
        check_weights(weights)
        words: list[NDArray[np.uint16]] = []
        counts: list[NDArray[np.int64]] = []
        values: list[NDArray[Any]] = []
        for stored, gaps, places, row_entries in relative_entries(weights, gap_bits):
            block = np.zeros(gaps.size, weights.dtype)
            block[places] = stored
            words.append(gaps)
            counts.append(row_entries)
            values.append(block)
        row_start, data = _stream(words, counts, gap_bits)
        rows, cols = weights.shape
        return cls(rows, cols, gap_bits, 0, row_start, data, np.concatenate(values))

    def unpack(self) -> NDArray[Any]:
        """Return the dense matrix (rows, cols): uint8 codes, or ``values`` in their places.

        Raises:
            OptionError: ``gap_bits`` or ``code_bits`` is out of range.
            DataError: The data is damaged: ``row_start`` is not a rising list from 0, the stream
                or ``values`` is too short, or a position lies beyond ``cols``.
        """
        words = self._words()
        out = np.zeros(
            (self.rows, self.cols), np.uint8 if self.values is None else self.values.dtype
        )
        gaps = words & np.uint16(2**self.gap_bits - 1)
        for span in spans("gap_codes", gaps, self.row_start, self.cols):
            entries = slice(span.begin, span.end)
            stored = words[entries] >> np.uint16(self.gap_bits)
            out[span.first : span.last].reshape(-1)[span.flat] = (
                stored if self.values is None else self.values[entries]
            )
        return out

    @property
    def entries(self) -> int:
        """Number of stored entries, fillers counted."""
        return int(self.row_start[-1])

    @property
    def fillers(self) -> int:
        """Number of entries that only bridge a long gap (their code or value is 0).

        Raises:
            OptionError, DataError: As :meth:`unpack`, positions not checked.
        """
        words = self._words()
        if self.values is not None:
            return int(np.count_nonzero(self.values[: self.entries] == 0))
        return int(np.count_nonzero(words >> np.uint16(self.gap_bits) == 0))

    @property
    def row_start_stored(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """``row_start`` as it lies in flash: uint16 below 65536 entries, else uint32."""
        return self.row_start.astype(row_start_dtype(self.entries))

    @property
    def nbytes(self) -> int:
        """Bytes that lie in flash: the stream, ``row_start`` as stored, and ``values``."""
        values_bytes = 0 if self.values is None else self.values.nbytes
        row_start_bytes = self.row_start.size * row_start_dtype(self.entries).itemsize
        return int(self.data.nbytes + row_start_bytes + values_bytes)

    def _words(self) -> NDArray[np.uint16]:
        """Check the fields against each other and return all entries, (entries,) of uint16."""
        check_width("gap_bits", self.gap_bits, 1, 8)
        check_width("code_bits", self.code_bits, 0, 8)
        check_row_start("gap_codes", self.row_start, self.rows)
        width = self.gap_bits + self.code_bits
        need = -(-self.entries * width // 8) + STREAM_PADDING_BYTES
        if self.data.dtype != np.uint8 or self.data.ndim != 1 or self.data.size < need:
            raise DataError(
                f"The stream of gap_codes is {self.data.dtype} of shape {self.data.shape}; "
                f"expected uint8 of at least {need} bytes for {self.entries} entries of {width} "
                "bits and the padding. The data is damaged: pack the weights again."
            )
        if (self.values is None) == (self.code_bits == 0) or (
            self.values is not None
            and (self.values.dtype not in WEIGHT_DTYPES or self.values.shape != (self.entries,))
        ):
            found = (
                "None"
                if self.values is None
                else f"{self.values.dtype} of shape {self.values.shape}"
            )
            numbers = f"float32, int8 or int16 of shape ({self.entries},)"
            expected = numbers if self.code_bits == 0 else "None"
            raise DataError(
                f"The values of gap_codes are {found}; expected {expected} with code_bits = "
                f"{self.code_bits}. The data is damaged: pack the weights again."
            )
        return unpack_bits(self.data, width, self.entries).astype(np.uint16, copy=False)


def best_gap_bits(codes_or_weights: NDArray[Any], code_bits: int) -> int:
    """Return the ``gap_bits`` (1..8) with the fewest bytes in flash; the smallest of equals.

    One histogram of the distances between non-zeros tells the number of entries for each width,
    so nothing is packed.

    Args:
        codes_or_weights: Array (rows, cols) of uint8 codes, or of float32, int8 or int16 weights
            where ``code_bits`` is 0.
        code_bits: Width of a code, 0 to 8.

    Raises:
        OptionError: ``code_bits`` is outside 0..8.
        DataError: The array has another shape or dtype, or is not finite everywhere.

    >>> best_gap_bits(np.eye(16, dtype=np.uint8), 4)  # row 15 is a distance of 16
    4
    """
    check_width("code_bits", code_bits, 0, 8)
    if code_bits:
        check_matrix("codes", codes_or_weights, np.uint8)
    else:
        check_weights(codes_or_weights)
    rows, cols = codes_or_weights.shape
    histogram = np.zeros(cols + 1, np.int64)
    for _, _, distance in distances(codes_or_weights):
        counted = np.bincount(distance)
        histogram[: counted.size] += counted
    lengths = np.arange(1, cols + 1)

    def nbytes(gap_bits: int) -> int:
        # A distance d takes one entry and (d - 1) >> gap_bits fillers before it.
        entries = int(np.sum(histogram[1:] * (1 + ((lengths - 1) >> gap_bits))))
        stream = -(-entries * (gap_bits + code_bits) // 8) + STREAM_PADDING_BYTES
        values = codes_or_weights.itemsize * entries if code_bits == 0 else 0
        row_start_bytes = (int(rows) + 1) * row_start_dtype(entries).itemsize
        return stream + row_start_bytes + values

    return min(range(1, 9), key=nbytes)


def _stream(
    words: list[NDArray[np.uint16]], counts: list[NDArray[np.int64]], width: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Join the blocks: ``row_start`` and the padded bit string."""
    stream = pack_bits(np.concatenate(words), width)
    padding = np.zeros(STREAM_PADDING_BYTES, np.uint8)
    return row_starts(counts), np.concatenate([stream, padding])
