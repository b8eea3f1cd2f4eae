"""The archive profile: a tensor becomes adaptively coded bits, the smallest file.

Codes are a matrix, first axis by the rest. Each position says by one bit whether its code is not
0, predicted from its column, its row, its place in the kernel and the rows above; each other code
is then its centroid's rank, bit by bit from the top, predicted from the bits above and from row
and column. Scalars (biases, centroids, what a pruned tensor keeps) are their bits from the top.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.codec.bits import BitCoder, Ints, Mixer, blocks

__all__ = ["ArchiveModels", "coding_order", "from_coding_order", "places"]

_SMALLEST_BLOCK = 64
_LARGEST_BLOCK = 4096


@dataclass(frozen=True)
class _Places:
    """The contexts of the positions of a matrix of shape ``dims``, last axis fastest."""

    dims: tuple[int, ...]
    transposed: bool

    @property
    def rows(self) -> int:
        if self.transposed:
            return prod(self.dims[1:])
        return self.dims[0] if self.dims else 1

    @property
    def cols(self) -> int:
        if self.transposed:
            return self.dims[0]
        return prod(self.dims[1:])

    @property
    def kernel(self) -> int:
        """Positions of a kernel: the axes behind the second."""
        return prod(self.dims[2:]) if not self.transposed else 1

    def largest_block(self) -> int:
        # A block of half a row still sees how dense its row is.
        return min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK * 2, self.cols // 2))


class ArchiveModels:
    """All adaptive state of one section, in one of both directions."""

    def __init__(self, coder: BitCoder) -> None:
        self._coder = coder
        self._scalars: dict[tuple[int, bool], Mixer] = {}
        self._mask_weights: Mixer | None = None
        self._rank_weights: Mixer | None = None

    def scalars(self, count: int, size: int, floating: bool, given: Ints | None) -> Ints:
        """Code ``count`` items of ``size`` bytes, given as unsigned integers (uint64 as int64)."""
        width = 8 * size
        contexts = (size * 256, width * 2)
        mixer = self._scalars.setdefault((size, floating), Mixer(contexts))
        out = np.zeros(count, np.int64)
        mask = np.int64(-1 if width == 64 else (1 << width) - 1)
        for start, stop in blocks(count, 16, _LARGEST_BLOCK):
            items: Ints | None = None
            if given is not None:
                items = given[start:stop] & mask
                if floating:  # the sign goes last, so that the exponent is a byte of its own
                    items = ((items << 1) | ((items >> (width - 1)) & 1)) & mask
            value = np.zeros(stop - start, np.int64)
            node = np.ones(stop - start, np.int64)
            last = np.zeros(stop - start, np.int64)
            for place in range(width):
                if place % 8 == 0:
                    node[:] = 1
                wanted = None if items is None else (items >> (width - 1 - place)) & 1
                where = (place // 8 * 256 + node, 2 * place + last)
                bit = mixer.code(self._coder, where, wanted)
                node = 2 * node + bit
                value = (value << 1) | bit
                last = bit
            if floating:
                value = ((value >> 1) & (mask >> 1 if width < 64 else np.int64((1 << 63) - 1))) | (
                    (value & 1) << (width - 1)
                )
            out[start:stop] = value
        return out

    def mask(
        self, dims: tuple[int, ...], transposed: bool, given: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8]:
        """Code which positions are not zero: ``given`` is (n,) of codes in coding order.

        Gives (n,) of 0 and 1.
        """
        places = _Places(dims, transposed)
        rows, cols, kernel = places.rows, places.cols, max(places.kernel, 1)
        channels = max(cols // kernel, 1)
        mixer = Mixer((216, cols, rows, kernel * 27, channels), self._mask_weights)
        self._mask_weights = mixer
        count = rows * cols
        # In front and behind lie zeros, which stand for all outside.
        front = 3 * cols + 4
        known = np.zeros(front + count + 4, np.uint8)
        for start, stop in blocks(count, _SMALLEST_BLOCK, places.largest_block()):
            # Every fourth first, then those between, then the rest, which see both neighbours.
            for first, step in ((0, 4), (2, 4), (1, 2)):
                at = np.arange(start + first, stop, step, dtype=np.int64)
                if not at.size:
                    continue

                def one(
                    offset: int, start: int = start + first, stop: int = stop, step: int = step
                ) -> Ints:
                    """Whether the position ``offset`` back is known and not zero."""
                    shifted = known[front + start - offset : front + stop - offset : step]
                    return shifted.astype(np.int64)

                beside = one(1) + one(-1) if step == 2 else one(2) + one(-2) if first else 0
                far = (
                    one(4) if step == 4 and not first else one(3) + one(-3) if step == 2 else one(4)
                )
                row = at // cols
                col = at - row * cols
                phase = 2 if step == 2 else first // 2
                above = one(cols) * 4 + one(2 * cols) * 2 + one(3 * cols)
                slant = one(cols - 1) + one(cols + 1)
                where = (
                    (above * 3 + slant) * 9 + beside * 3 + far,
                    col,
                    row,
                    (col % kernel) * 27 + phase * 9 + beside * 3 + far,
                    col // kernel,
                )
                wanted = None if given is None else (given[at] != 0).astype(np.int64)
                known[front + at] = mixer.code(self._coder, where, wanted)
        return known[front : front + count]

    def ranks(self, levels: int, row: Ints, col: Ints, given: Ints | None) -> Ints:
        """Code ranks ``0 .. levels - 1`` at (row, col); a damaged stream may give larger ones."""
        width = max(levels - 1, 0).bit_length()
        out = np.zeros(row.size, np.int64)
        if not row.size or not width:
            return out
        rows, cols = int(row.max()) + 1, int(col.max()) + 1
        contexts = (1 << width, 8 * rows, 8 * cols, 1 << width)
        mixer = Mixer(contexts, self._rank_weights)
        self._rank_weights = mixer
        largest = _LARGEST_BLOCK
        for start, stop in blocks(row.size, _SMALLEST_BLOCK, largest):
            node = np.ones(stop - start, np.int64)
            for depth in range(width):
                wanted = None
                if given is not None:
                    wanted = (given[start:stop] >> (width - 1 - depth)) & 1
                top = np.minimum(node, 7)
                where = (node, row[start:stop] * 8 + top, col[start:stop] * 8 + top, node ^ 1)
                node = 2 * node + mixer.code(self._coder, where, wanted)
            out[start:stop] = node - (1 << width)
        return out


def places(dims: tuple[int, ...], transposed: bool, at: Ints) -> tuple[Ints, Ints]:
    """Give row and column of positions in coding order."""
    cols = max(_Places(dims, transposed).cols, 1)
    return at // cols, at % cols


def coding_order(array: NDArray[Any], transposed: bool) -> NDArray[Any]:
    """Give a tensor's items in coding order, (n,)."""
    if transposed:
        return np.ascontiguousarray(array.reshape(array.shape[0], -1).T).ravel()
    return array.ravel()


def from_coding_order(
    walked: NDArray[np.uint8], dims: tuple[int, ...], transposed: bool
) -> NDArray[np.uint8]:
    """Undo :func:`coding_order`.

    >>> tensor = np.arange(6, dtype=np.uint8).reshape(2, 3)
    >>> from_coding_order(coding_order(tensor, True), (2, 3), True).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    if transposed and walked.size:
        return np.ascontiguousarray(walked.reshape(-1, dims[0]).T).reshape(dims)
    return walked.reshape(dims)
