from __future__ import annotations

import heapq
import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_compress.codec import huffman

COUNTS = st.lists(st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 10**6)), max_size=256)


def unlimited_cost(counts: list[int]) -> tuple[int, int]:
    """Bits of Huffman's own code, by his own algorithm, and its longest word."""
    heap = [(count, 0) for count in counts if count]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        (a, da), (b, db) = heapq.heappop(heap), heapq.heappop(heap)
        bits += a + b
        heapq.heappush(heap, (a + b, max(da, db) + 1))
    return bits, heap[0][1] if heap else 0


@given(COUNTS)
def test_lengths_make_a_complete_code_as_short_as_huffmans(counts: list[int]) -> None:
    lengths = huffman.lengths(np.array(counts, np.int64))
    used = [i for i, count in enumerate(counts) if count]
    assert np.flatnonzero(lengths).tolist() == used
    if len(used) < 2:
        assert all(lengths[used] == huffman.SINGLE)
        return
    assert sum(2.0 ** -int(n) for n in lengths[used]) == 1
    assert huffman.valid(lengths)
    bits, longest = unlimited_cost(counts)
    mine = sum(c * int(n) for c, n in zip(counts, lengths, strict=True))
    if longest <= huffman.LONGEST:
        assert mine == bits
    else:
        assert bits <= mine
        assert int(lengths.max()) <= huffman.LONGEST


def test_a_limited_code_is_the_best_of_its_lengths() -> None:
    # Fibonacci counts ask for one more bit a symbol: 14 symbols would need 13 bits.
    counts = np.array([1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377])
    assert unlimited_cost(counts.tolist())[1] == 13
    lengths = huffman.lengths(counts)

    @cache
    def best(rarest: int, left: int, longest: int) -> float:
        """Fewest bits for the symbols from ``rarest`` on in ``left`` words of 12 bits."""
        if rarest == len(counts):
            return 0 if left == 0 else math.inf
        return min(
            (
                int(counts[rarest]) * n + best(rarest + 1, left - (1 << 12 - n), n)
                for n in range(1, longest + 1)
                if 1 << 12 - n <= left
            ),
            default=math.inf,
        )

    assert (counts * lengths).sum() == best(0, 1 << 12, 12)


@given(COUNTS.filter(lambda counts: sum(map(bool, counts)) > 1))
def test_words_are_prefix_free_and_found_again(counts: list[int]) -> None:
    lengths = huffman.lengths(np.array(counts, np.int64))
    words = huffman.words(lengths)
    symbols, widths = huffman.lookup(lengths)
    texts = [f"{words[s]:0{lengths[s]}b}" for s in np.flatnonzero(lengths)]
    ordered = sorted(texts)
    assert not any(b.startswith(a) for a, b in pairwise(ordered))
    for symbol, text in zip(np.flatnonzero(lengths), texts, strict=True):
        for tail in ("0", "1"):
            index = int(text.ljust(12, tail), 2)
            assert (symbols[index], widths[index]) == (symbol, len(text))


@given(
    st.lists(st.integers(0, 32).flatmap(lambda w: st.tuples(st.just(w), st.integers(0, 2**w - 1))))
)
def test_words_are_packed_bit_after_bit(items: list[tuple[int, int]]) -> None:
    text = "".join(f"{value:0{width}b}" if width else "" for width, value in items)
    text += "0" * (-len(text) % 8)
    expected = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    widths = np.array([w for w, _ in items], np.int64)
    values = np.array([v for _, v in items], np.int64)
    assert huffman.pack_words(values, widths) == expected


@pytest.mark.parametrize(
    "lengths", [[], [0], [1], [12], [1, 2], [1, 1, 1], [15, 15], [1, 15], [13]]
)
def test_what_is_no_complete_code_is_told(lengths: list[int]) -> None:
    assert not huffman.valid(np.array(lengths, np.uint8))
