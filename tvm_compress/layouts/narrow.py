"""``narrow``: weights of few bits, those of three or four output channels in one halfword.

A halfword holds a field for each channel, the first one's in the low bits. The last field is
signed, the others hold ``weight + 2**(bits - 1)``, which is never negative: a mask cuts them out,
and a multiply-accumulate of the raw halfword gives the sum of all fields times their places.
A word holds two inputs, the first in its low half, as in :mod:`tvm_compress.layouts.paired`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["QUAD", "TRIPLE", "narrow_words", "unnarrow_words"]

Array = NDArray[Any]

# Bits of each channel: they fill a halfword.
QUAD = (4, 4, 4, 4)
TRIPLE = (5, 5, 6)


def narrow_words(channels: Array, widths: tuple[int, ...]) -> Array:
    """Pack channels: int (len(widths), n) of so many bits each, n even -> uint32 (n / 2,).

    >>> [hex(w) for w in narrow_words(np.array([[-8, 7], [0, 0], [7, 0], [-1, 1]]), QUAD).tolist()]
    ['0x188fff80']
    """
    halves = np.zeros(channels.shape[1], np.int64)
    place = 0
    for i, (weights, bits) in enumerate(zip(channels.astype(np.int64), widths, strict=True)):
        half = 1 << (bits - 1)
        assert weights.size == 0 or (-half <= weights.min() and weights.max() < half)
        halves += (weights + (half if i < len(widths) - 1 else 0)) << place
        place += bits
    return halves.astype(np.uint16).view("<u4").astype(np.uint32)


def unnarrow_words(words: Array, widths: tuple[int, ...]) -> Array:
    """Give the channels of :func:`narrow_words`, int8 (len(widths), n)."""
    halves = words.astype("<u4").view("<u2").astype(np.int64)
    channels = []
    for i, bits in enumerate(widths):
        field, half = halves & (1 << bits) - 1, 1 << (bits - 1)
        channels.append(field - half if i < len(widths) - 1 else (field ^ half) - half)
        halves >>= bits
    return np.stack(channels).astype(np.int8)
