"""Three or four channels in a halfword: what comes out again, and what masked words multiply to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tvm_compress.layouts.narrow import QUAD, TRIPLE, narrow_words, unnarrow_words

Array = NDArray[Any]
Widths = tuple[int, ...]


def _signed(value: int, bits: int) -> int:
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


@st.composite
def _channels(draw: st.DrawFn) -> tuple[Array, Widths]:
    widths = draw(st.sampled_from([QUAD, TRIPLE]))
    count = 2 * draw(st.integers(0, 12))
    rows = [
        draw(st.lists(st.integers(-(1 << b - 1), (1 << b - 1) - 1), min_size=count, max_size=count))
        for b in widths
    ]
    return np.array(rows, np.int8).reshape(len(widths), count), widths


def test_channels_fill_a_halfword() -> None:
    assert sum(QUAD) == sum(TRIPLE) == 16


@given(_channels())
def test_the_channels_come_back(drawn: tuple[Array, Widths]) -> None:
    channels, widths = drawn
    words = narrow_words(channels, widths)
    assert words.dtype == np.uint32
    assert words.shape == (channels.shape[1] // 2,)
    back = unnarrow_words(words, widths)
    assert back.dtype == np.int8
    np.testing.assert_array_equal(back, channels)


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=9), st.sampled_from([QUAD, TRIPLE]))
def test_every_word_is_a_code(values: list[int], widths: Widths) -> None:
    words = np.array(values, np.uint32)
    np.testing.assert_array_equal(narrow_words(unnarrow_words(words, widths), widths), words)


@given(_channels(), st.data())
def test_the_raw_word_less_its_fields_is_the_last_channel(
    drawn: tuple[Array, Widths], data: st.DataObject
) -> None:
    """SMLAD with the raw word and with each field cut out, bit by bit in Python."""
    channels, widths = drawn
    count = channels.shape[1]
    x = data.draw(st.lists(st.integers(-128, 127), min_size=count, max_size=count))
    raw, fields = 0, [0] * (len(widths) - 1)
    for i, word in enumerate(narrow_words(channels, widths).tolist()):
        for half, value in enumerate(x[2 * i : 2 * i + 2]):
            bits = word >> 16 * half & 0xFFFF
            raw += _signed(bits, 16) * value
            for f in range(len(fields)):
                place = sum(widths[:f])
                fields[f] += (bits >> place & (1 << widths[f]) - 1) * value
    places = [sum(widths[:f]) for f in range(len(widths))]
    right = (channels.astype(np.int64) @ np.array(x, np.int64)).tolist()
    for f, total in enumerate(fields):
        assert total - (1 << widths[f] - 1) * sum(x) == right[f]
    rest = raw - sum(total << place for total, place in zip(fields, places, strict=False))
    assert rest == right[-1] << places[-1]


@pytest.mark.parametrize(
    ("widths", "channel", "value"),
    [(QUAD, 0, 8), (QUAD, 3, -9), (TRIPLE, 1, -17), (TRIPLE, 0, 16), (TRIPLE, 2, 32)],
)
def test_weights_that_leave_their_field_are_our_own_mistake(
    widths: Widths, channel: int, value: int
) -> None:
    channels = np.zeros((len(widths), 2), np.int64)
    channels[channel, 1] = value
    with pytest.raises(AssertionError):
        narrow_words(channels, widths)
