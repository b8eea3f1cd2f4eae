"""Two channels in a halfword: what comes out again, and what the processor's arithmetic sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tvm_compress.layouts.paired import pair_words, unpair_words, wide_words

Array = NDArray[Any]


def _signed(value: int, bits: int) -> int:
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


@st.composite
def _channels(draw: st.DrawFn, least: int = -127) -> tuple[Array, Array]:
    steps = draw(st.integers(0, 12))
    a = draw(st.lists(st.integers(least, 127), min_size=2 * steps, max_size=2 * steps))
    b = draw(st.lists(st.integers(-128, 127), min_size=2 * steps, max_size=2 * steps))
    return np.array(a, np.int16), np.array(b, np.int16)


@given(_channels())
@example((np.array([-127, 127]), np.array([-128, 127])))
@example((np.array([127, -127]), np.array([-128, 127])))
def test_unpair_gives_the_channels_back(channels: tuple[Array, Array]) -> None:
    words = pair_words(*channels)
    assert words.dtype == np.uint32
    assert words.shape == (channels[0].size // 2, 1)
    for back, channel in zip(unpair_words(words), channels, strict=True):
        assert back.dtype == np.int8
        np.testing.assert_array_equal(back, channel)


@given(st.lists(st.integers(-127 * 256 - 128, 127 * 256 + 127), max_size=12))
@example([-127 * 256 - 128, 127 * 256 + 127])
def test_pair_gives_words_back(halves: list[int]) -> None:
    halves = halves[: len(halves) // 2 * 2]
    words = np.array([h & 0xFFFF for h in halves], np.uint16).view(np.uint32)[:, None]
    a, b = unpair_words(words)
    assert (256 * a.astype(int) + b).tolist() == halves
    np.testing.assert_array_equal(pair_words(a, b), words)


@given(_channels(), st.data())
def test_two_multiply_accumulates_give_both_sums(
    channels: tuple[Array, Array], data: st.DataObject
) -> None:
    """SMLAD with the raw word, then with its low bytes sign-extended, bit by bit in Python."""
    count = channels[0].size
    x = data.draw(st.lists(st.integers(-128, 127), min_size=count, max_size=count))
    raw = low = 0
    for i, word in enumerate(pair_words(*channels)[:, 0].tolist()):
        inputs = x[2 * i : 2 * i + 2]
        for half, value in enumerate(inputs):
            raw += _signed(word >> 16 * half & 0xFFFF, 16) * value
            low += _signed(word >> 16 * half & 0xFF, 8) * value
    first, second = (sum(int(w) * v for w, v in zip(c, x, strict=True)) for c in channels)
    assert low == second
    assert raw - low == 256 * first


@pytest.mark.parametrize(("a", "b"), [(-128, -1), (127, 256), (128, 0)])
def test_pairs_that_leave_a_halfword_are_our_own_mistake(a: int, b: int) -> None:
    with pytest.raises(AssertionError):
        pair_words(np.array([a, 0]), np.array([b, 0]))


@given(_channels(least=-32768))
@example((np.array([-32768, 32767], np.int16), np.array([-1, 0], np.int16)))
def test_wide_words_hold_a_halfword_a_weight(channels: tuple[Array, Array]) -> None:
    words = wide_words(*channels)
    assert words.dtype == np.uint32
    assert words.shape == (channels[0].size // 2, 2)
    for column, channel in zip(words.T, channels, strict=True):
        halves = [_signed(int(w) >> 16 * half & 0xFFFF, 16) for w in column for half in (0, 1)]
        assert halves == channel.tolist()
