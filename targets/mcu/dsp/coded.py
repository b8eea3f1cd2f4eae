"""Weights that lie in flash Huffman coded, and are decoded while they are multiplied.

What :class:`~tvm_compress.targets.mcu.dsp.product.Product` multiplies are halfwords ``256 * a + b``
of two int8: two channels' weights, or one of 16 bits. Both bytes are coded by one canonical code of
at most 12 bits a byte (:mod:`tvm_compress.codec.huffman`), ``a`` first. A kernel calls
``runtime/weight_decoder.c`` for a piece of a few dozen halfwords at a time, in front of the loop
that multiplies them: the layer never lies decoded in memory. It pays where a layer has few tiles
of pixels, each of which decodes its weights again.

A code's table holds words of up to ``LOOKUP`` bits to be looked up and the longer ones to be
compared; layers share a table where one for both is smaller than two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.codec import huffman

__all__ = ["DECODER_BYTES", "LOOKUP", "WeightCode", "count_bytes", "decoder_files", "share_codes"]

Array = NDArray[Any]

_RUNTIME = Path(__file__).parents[1] / "runtime"
_FILES = ("weight_decoder.h", "weight_decoder.c")

# Bits that are looked up: the number in runtime/weight_decoder.h, which a test compares.
LOOKUP = 7
_ENTRIES = 1 << LOOKUP
_ROWS = huffman.LONGEST - LOOKUP
# What is read behind the last word.
_SLACK = 4
# Measured on what GCC and zig make of the decoder: bytes of its code, instructions of a call, of a
# halfword whose words are short, and of each longer word on top of that.
DECODER_BYTES = 256
_CALL, _HALFWORD, _LONGER = 18, 24, 18


@dataclass(frozen=True)
class WeightCode:
    """A code of bytes, told by the uint8 (256,) lengths of its words."""

    lengths: Array

    @staticmethod
    def of(counts: Array) -> WeightCode:
        """Make the best code for bytes that occur ``counts`` (256,) times."""
        counts = counts.copy()
        # A word of no bits would be no entry to look up.
        for byte in (0, 1):
            if np.count_nonzero(counts) < 2:
                counts[byte] = max(counts[byte], 1)
        return WeightCode(huffman.lengths(counts))

    @cached_property
    def table(self) -> Array:
        """The decoder's table, uint16; runtime/weight_decoder.c says what stands where."""
        lengths = self.lengths.astype(np.int64)
        symbols, found = huffman.lookup(self.lengths)
        step = 1 << _ROWS
        entries = 256 * symbols[::step].astype(np.int64) + found[::step]
        entries[found[::step] > LOOKUP] = 0
        words = huffman.words(self.lengths)
        rows, before = [], 2 * (_ENTRIES + 2 * _ROWS)
        for length in range(LOOKUP + 1, huffman.LONGEST + 1):
            shorter = lengths[(lengths > 0) & (lengths <= length)]
            end = int((1 << (16 - shorter)).sum())
            here = words[lengths == length]
            rows += [end - 1, before - (int(here.min()) if here.size else 0)]
            before += here.size
        order = np.argsort(self.lengths, kind="stable")
        longer = order[lengths[order] > LOOKUP].astype(np.uint8)
        longer = np.append(longer, np.zeros(longer.size % 2, np.uint8))
        numbers = np.asarray([*entries.tolist(), *rows], np.int64) & 0xFFFF
        return np.concatenate([numbers.astype("<u2"), longer.view("<u2")]).astype(np.uint16)

    def size_bytes(self, counts: Array) -> int:
        """Bytes that :meth:`encode` gives for bytes that occur ``counts`` times."""
        bits = int((counts * self.lengths).sum())
        return _words_of_bits(bits) * 4

    def encode(self, halfwords: Array) -> Array:
        """Code halfwords, uint16 (n,), as words in memory's order, uint32."""
        data = _bytes_of(halfwords)
        assert (self.lengths[data] > 0).all()
        coded = huffman.pack_words(huffman.words(self.lengths)[data], self.lengths[data])
        words = _words_of_bits(int(self.lengths[data].sum(dtype=np.int64)))
        return np.frombuffer(coded.ljust(4 * words, b"\0"), "<u4").astype(np.uint32)

    def instructions(self, counts: Array) -> float:
        """Instructions of the decoder for bytes that occur ``counts`` times, but for its calls."""
        return float(_HALFWORD * counts.sum() / 2 + _LONGER * counts[self.lengths > LOOKUP].sum())

    @staticmethod
    def call_instructions() -> int:
        """Instructions of one call of the decoder around its loop."""
        return _CALL


def _words_of_bits(bits: int) -> int:
    return -(-(-(-bits // 8) + _SLACK) // 4)


def _bytes_of(halfwords: Array) -> Array:
    """Give the bytes a and b of each ``256 * a + b``, b signed, as uint8 (2 n,)."""
    values = halfwords.astype(np.uint16).view(np.int16).astype(np.int64)
    low = (values + 128 & 0xFF) - 128
    return np.stack([values - low >> 8, low], axis=1).astype(np.int8).view(np.uint8).reshape(-1)


def count_bytes(halfwords: Array) -> Array:
    """Count the bytes that are coded, int64 (256,)."""
    return np.bincount(_bytes_of(halfwords), minlength=256).astype(np.int64)


def share_codes(counts: Sequence[Array]) -> list[WeightCode]:
    """Give each layer a code: its own, or one that several share where that takes less flash.

    Args:
        counts: of each layer how often each byte occurs, int64 (256,).
    """
    groups = [([i], count) for i, count in enumerate(counts)]
    sizes = [_estimate(count) for count in counts]
    while len(groups) > 1:
        # Any two whose table is worth less than what a common code costs, the best first.
        gains = [
            (sizes[i] + sizes[j] - _estimate(groups[i][1] + groups[j][1]), i, j)
            for i in range(len(groups))
            for j in range(i)
        ]
        gain, i, j = max(gains)
        if gain <= 0:
            break
        (members, count), _ = groups.pop(i), sizes.pop(i)
        groups[j] = (groups[j][0] + members, groups[j][1] + count)
        sizes[j] = _estimate(groups[j][1])
    codes = [(members, WeightCode.of(count)) for members, count in groups]
    return [next(code for members, code in codes if i in members) for i in range(len(counts))]


def _estimate(counts: Array) -> float:
    """Bytes of the words and of the table, by the bytes' entropy."""
    used = counts[counts > 0]
    bits = -np.log2(used / used.sum())
    longer = int((bits > LOOKUP + 0.5).sum())
    return float((used * bits).sum() / 8) + 2 * (_ENTRIES + 2 * _ROWS) + longer


def decoder_files(name: str) -> dict[str, str]:
    """Give the decoder's C files for a model, whose name takes the place of ``weight``."""
    texts = {file: (_RUNTIME / file).read_text() for file in _FILES}
    renamed = {
        file: text.replace("weight_decoder", f"{name}_decoder").replace(
            "WEIGHT_DECODER", f"{name}_DECODER"
        )
        for file, text in texts.items()
    }
    return {file.replace("weight", name): text for file, text in renamed.items()}
