"""Relative positions: where the entries of a sparse row are, told by the distance between them.

A row starts at position -1. The gap ``v`` of an entry, a field of ``gap_bits`` bits, moves the
position forward by ``v + 1``. A distance over ``2**gap_bits`` is bridged by filler entries with the
largest gap and the value zero. ``row_start[r] .. row_start[r+1]`` are the entries of row ``r``.

Source: Han, Mao, Dally, "Deep Compression", section 2 (arXiv 1510.00149).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError

__all__ = [
    "Span",
    "check_row_start",
    "distances",
    "relative_entries",
    "row_start_dtype",
    "row_starts",
    "spans",
]

# Weights worked on at once: positions are int64, eight times the size of the codes.
_CHUNK_WEIGHTS = 1 << 21


def row_start_dtype(entries: int) -> np.dtype[Any]:
    """Give the dtype of ``row_start`` in flash: uint16 below 65536 entries, else uint32."""
    return np.dtype(np.uint16 if entries < 65536 else np.uint32)


def distances(
    matrix: NDArray[Any],
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]]:
    """Walk over blocks of rows: (block, flat index, distance to the one before) of non-zeros."""
    rows, cols = matrix.shape
    step = max(1, _CHUNK_WEIGHTS // cols)
    for first in range(0, rows, step):
        block = np.ascontiguousarray(matrix[first : first + step])
        flat = np.flatnonzero(block)
        distance = np.empty_like(flat)
        # The walk of a row begins one before its first weight.
        row_begin = flat - flat % cols
        distance[:1] = flat[:1] + 1 - row_begin[:1]
        distance[1:] = flat[1:] - np.maximum(flat[:-1], row_begin[1:] - 1)
        yield block, flat, distance


def relative_entries(
    matrix: NDArray[Any], gap_bits: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]]]:
    """Walk over blocks of rows: (stored weights, gap of every entry, their entries, row counts).

    ``gaps`` holds all entries, fillers too; the i-th stored weight is entry ``places[i]``.
    """
    cols = matrix.shape[1]
    for block, flat, distance in distances(matrix):
        needed = 1 + ((distance - 1) >> gap_bits)
        places = np.cumsum(needed) - 1
        total = int(places[-1]) + 1 if places.size else 0
        gaps = np.full(total, 2**gap_bits - 1, np.uint16)
        gaps[places] = (distance - 1) & (2**gap_bits - 1)
        # bincount sums in float64, exact far beyond any count here.
        row_entries = np.bincount(flat // cols, weights=needed, minlength=block.shape[0])
        yield block.reshape(-1)[flat], gaps, places, row_entries.astype(np.int64)


def row_starts(counts: list[NDArray[np.int64]]) -> NDArray[np.uint32]:
    """Give ``row_start``, (rows + 1,) of uint32, of the numbers of entries of all rows."""
    per_row = np.concatenate(counts)
    row_start = np.zeros(per_row.size + 1, np.uint32)
    row_start[1:] = np.cumsum(per_row)
    return row_start


def check_row_start(layout: str, row_start: NDArray[Any], rows: int) -> None:
    """Raise :class:`DataError` unless ``row_start`` rises from 0 and fits the rows."""
    if (
        row_start.dtype != np.uint32
        or row_start.shape != (rows + 1,)
        or int(row_start[0]) != 0
        or bool((row_start[1:] < row_start[:-1]).any())
    ):
        raise DataError(
            f"row_start of {layout} is not a list of {rows + 1} uint32 that begins at 0 "
            "and never falls; expected the first entry of every row and the number of "
            "entries. The data is damaged: pack the weights again."
        )


@dataclass(frozen=True)
class Span:
    """Rows ``first`` to ``last`` (not included), and where their entries belong.

    ``flat`` holds the index into these rows, laid end to end, of the entries ``begin`` to ``end``
    (not included): an array of int64.
    """

    first: int
    last: int
    begin: int
    end: int
    flat: NDArray[np.int64]


def spans(
    layout: str, gaps: NDArray[Any], row_start: NDArray[np.uint32], cols: int, what: str = "columns"
) -> Iterator[Span]:
    """Walk over blocks of rows that hold entries, and give where the entries belong.

    Args:
        layout: What the error's sentence calls the layout.
        gaps: Unsigned integers (entries,), the gap of every entry.
        row_start: As :func:`check_row_start` takes it.
        cols: Positions of a row.
        what: What the positions count.

    Raises:
        DataError: A position lies beyond ``cols``.
    """
    rows = row_start.size - 1
    step = max(1, _CHUNK_WEIGHTS // cols)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        starts = row_start[first : last + 1].astype(np.int64)
        begin, end = int(starts[0]), int(starts[-1])
        if begin == end:
            continue
        travelled = np.concatenate(([0], np.cumsum(gaps[begin:end].astype(np.int64) + 1)))
        per_row = np.diff(starts)
        position = travelled[1:] - np.repeat(travelled[starts[:-1] - begin], per_row) - 1
        beyond = position >= cols
        if beyond.any():
            entry = int(beyond.argmax())
            row = first + int(np.searchsorted(starts - begin, entry, side="right")) - 1
            raise DataError(
                f"Row {row} of {layout} reaches position {position[entry]}; expected at most "
                f"{cols - 1}, for the matrix has {cols} {what}. The data is "
                "damaged: pack the weights again."
            )
        flat = position + np.repeat(np.arange(last - first) * cols, per_row)
        yield Span(first, last, begin, end, flat)
