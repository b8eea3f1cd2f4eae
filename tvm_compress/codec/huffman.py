"""Length-limited canonical Huffman codes, and the bit string that they make.

A code of ``count`` symbols is told by its lengths alone, one a symbol: 0 for a symbol that does not
occur, 1 to 12 else, or 15 for the one symbol of a code whose only word has no bits. Words go in
order of (length, symbol), the first bit is the highest.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST", "SINGLE", "lengths", "lookup", "pack_words", "words"]

LONGEST = 12
SINGLE = 15
# Words that are packed at a time, for the memory's sake.
_PIECE = 1 << 20


def lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Give the best lengths of at most 12 bits for symbols that occur ``counts`` times.

    Source: package-merge, Larmore and Hirschberg, "A fast algorithm for optimal length-limited
    Huffman codes" (1990): twelve times the cheapest pairs are packed and join the single symbols;
    a symbol's length is how often it is in the cheapest 2 n - 2 packages.

    >>> lengths(np.array([5, 0, 2, 1])).tolist(), lengths(np.array([0, 9])).tolist()
    ([1, 0, 2, 2], [0, 15])
    """
    used = np.flatnonzero(counts)
    out = np.zeros(counts.size, np.uint8)
    if used.size < 2:
        out[used] = SINGLE
        return out
    order = sorted(used.tolist(), key=lambda symbol: (int(counts[symbol]), symbol))
    single = [(int(counts[symbol]), (symbol,)) for symbol in order]
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(LONGEST):
        merged = list(heapq.merge(single, packages, key=lambda package: package[0]))
        packages = [
            (a[0] + b[0], a[1] + b[1]) for a, b in zip(merged[::2], merged[1::2], strict=False)
        ]
    # The last round has packed pairs, so the cheapest 2 n - 2 are n - 1 packages.
    for _, symbols in packages[: used.size - 1]:
        np.add.at(out, list(symbols), 1)
    return out


def valid(code_lengths: NDArray[np.uint8]) -> bool:
    """Whether lengths make a complete code: every bit string is a sequence of words.

    >>> valid(np.array([1, 0, 2, 2], np.uint8)), valid(np.array([1, 2], np.uint8))
    (True, False)
    """
    used = code_lengths[code_lengths > 0].astype(np.int64)
    if used.size == 1:
        return bool(used[0] == SINGLE)
    return bool((used <= LONGEST).all() and (1 << (LONGEST - used)).sum() == 1 << LONGEST)


def words(code_lengths: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Give the word of each symbol, in the lowest ``length`` bits.

    >>> words(np.array([1, 0, 2, 2], np.uint8)).tolist()
    [0, 0, 2, 3]
    """
    out = np.zeros(code_lengths.size, np.int64)
    word, last = 0, 0
    for symbol in np.argsort(code_lengths, kind="stable").tolist():
        length = int(code_lengths[symbol])
        if length in (0, SINGLE):
            continue
        word <<= length - last
        out[symbol], last = word, length
        word += 1
    return out


def lookup(code_lengths: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Give symbol and length (each (4096,)) of the word that 12 bits begin with."""
    order = np.argsort(code_lengths, kind="stable")
    order = order[code_lengths[order] > 0]
    used = code_lengths[order]
    if used.size == 1:
        return np.full(1 << LONGEST, order[0], np.uint8), np.zeros(1 << LONGEST, np.uint8)
    spans = 1 << (LONGEST - used.astype(np.int64))
    return np.repeat(order, spans).astype(np.uint8), np.repeat(used, spans)


def pack_words(values: NDArray[np.integer[Any]], widths: NDArray[np.integer[Any]]) -> bytes:
    """Put ``values`` of ``widths`` (0 to 32) bits after one another, first bit highest.

    >>> pack_words(np.array([1, 5]), np.array([2, 3])).hex()  # 01 101 000
    '68'
    """
    total = int(widths.sum(dtype=np.int64))
    out = np.zeros(total // 32 + 2, np.uint64)
    last = 0
    for start in range(0, values.size, _PIECE):
        width = widths[start : start + _PIECE].astype(np.int64)
        ends = last + np.cumsum(width)
        starts = ends - width
        last = int(ends[-1])
        index = starts >> 5
        shifted = values[start : start + _PIECE].astype(np.uint64)
        shifted <<= (64 - width - (starts & 31)).astype(np.uint64)
        # A width of 0 would shift by 64, which has no meaning; such values are 0 anyway.
        shifted[width == 0] = 0
        np.add.at(out, index, shifted >> np.uint64(32))
        np.add.at(out, index + 1, shifted & np.uint64(0xFFFFFFFF))
    return out.astype(">u4").tobytes()[: (total + 7) // 8]
