"""``paired``: the int8 weights of two output channels in one halfword, ``256 * a + b``.

A word holds two inputs of both channels, the first in its low half. A multiply-accumulate of the
raw word with two 16-bit inputs gives ``256 * A + B``; with the low bytes sign-extended (SXTB16) it
gives ``B``. So one byte of flash holds one weight, and one instruction unpacks two. ``wide`` is the
layout for weights that do not fit: a word of two inputs for each channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pair_words", "unpair_words", "wide_words"]

Array = NDArray[Any]


def _words(low: Array, high: Array) -> Array:
    return (low.astype(np.int64) & 0xFFFF | (high.astype(np.int64) & 0xFFFF) << 16).astype(
        np.uint32
    )


def pair_words(a: Array, b: Array) -> Array:
    """Pack two channels: int (n,) in [-127, 127] and [-128, 127], n even -> uint32 (n / 2, 1).

    >>> [hex(int(w[0])) for w in pair_words(np.array([1, -1]), np.array([2, -2]))]
    ['0xfefe0102']
    """
    halves = 256 * a.astype(np.int64) + b
    assert halves.size == 0 or -(1 << 15) <= halves.min() <= halves.max() < 1 << 15
    return _words(halves[0::2], halves[1::2])[:, None]


def unpair_words(words: Array) -> tuple[Array, Array]:
    """Give the two channels of :func:`pair_words`, int8 (n,) each."""
    halves = words.reshape(-1, 1).astype(np.uint32).view(np.int16).reshape(-1).astype(np.int32)
    b = halves.astype(np.int8)
    return ((halves - b) >> 8).astype(np.int8), b


def wide_words(a: Array, b: Array) -> Array:
    """Pack two channels of int16 (n,), n even, as uint32 (n / 2, 2).

    >>> wide_words(np.array([1, 2]), np.array([3, -1])).tolist()
    [[131073, 4294901763]]
    """
    return np.stack([_words(c[0::2], c[1::2]) for c in (a, b)], axis=1)
