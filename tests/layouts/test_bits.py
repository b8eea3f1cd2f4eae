from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_compress.errors import DataError, OptionError
from tvm_compress.layouts import bits as bits_module
from tvm_compress.layouts import pack_bits, unpack_bits


@st.composite
def values_of_width(draw: st.DrawFn) -> tuple[list[int], int]:
    bits = draw(st.integers(1, 16))
    return draw(st.lists(st.integers(0, 2**bits - 1), max_size=60)), bits


def big_integer_pack(values: list[int], bits: int) -> bytes:
    """Pack by Python's unlimited integers: an oracle that shares nothing with numpy."""
    number = sum(value << (i * bits) for i, value in enumerate(values))
    return number.to_bytes(-(-len(values) * bits // 8), "little")


@given(values_of_width(), st.sampled_from([np.uint16, np.uint32, np.uint64]))
def test_bytes_equal_the_big_integer(case: tuple[list[int], int], dtype: type) -> None:
    values, bits = case
    assert pack_bits(np.array(values, dtype), bits).tobytes() == big_integer_pack(values, bits)


@given(values_of_width(), st.binary(max_size=3))
def test_round_trip_ignores_bytes_behind(case: tuple[list[int], int], behind: bytes) -> None:
    values, bits = case
    packed = np.frombuffer(big_integer_pack(values, bits) + behind, np.uint8)
    out = unpack_bits(packed, bits, len(values))
    assert out.tolist() == values
    assert out.dtype == (np.uint8 if bits <= 8 else np.uint16)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [15, 16, 17, 31, 32, 33])
def test_chunks_join_without_a_seam(bits: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits_module, "_CHUNK_GROUPS", 2)
    values = np.random.default_rng(bits).integers(0, 2**bits, count, dtype=np.uint16)
    packed = pack_bits(values, bits)
    assert packed.tobytes() == big_integer_pack(values.tolist(), bits)
    np.testing.assert_array_equal(unpack_bits(packed, bits, count), values)


def test_strided_input() -> None:
    values = np.arange(64, dtype=np.uint8)
    np.testing.assert_array_equal(unpack_bits(pack_bits(values[::2], 6)[::1], 6, 32), values[::2])
    spread = np.zeros(48, np.uint8)
    spread[::2] = pack_bits(values[::2], 6)
    np.testing.assert_array_equal(unpack_bits(spread[::2], 6, 32), values[::2])


@pytest.mark.parametrize("bits", [0, 17, -1, 2.5, "4"])
def test_bits_out_of_range(bits: object) -> None:
    message = rf"^bits is {bits!r}; expected a whole number from 1 to 16\. Choose a bits in that"
    with pytest.raises(OptionError, match=message):
        pack_bits(np.zeros(1, np.uint8), bits)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=message):
        unpack_bits(np.zeros(9, np.uint8), bits, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.zeros(3, np.int32), r"int32 of shape \(3,\)"),
        (np.zeros((2, 2), np.uint8), r"uint8 of shape \(2, 2\)"),
        ([1, 2], "list"),
    ],
)
def test_values_of_wrong_kind(values: object, found: str) -> None:
    with pytest.raises(
        DataError, match=rf"^The values to pack are {found}; expected a one-dim.*Flatten it"
    ):
        pack_bits(values, 4)  # type: ignore[arg-type]


def test_value_too_large() -> None:
    with pytest.raises(
        DataError,
        match=r"^Value 2 to pack is 8; expected at most 7, the largest of 3 bits\. Use more",
    ):
        pack_bits(np.array([7, 0, 8], np.uint8), 3)


@pytest.mark.parametrize("count", [-1, 1.5])
def test_count_out_of_range(count: object) -> None:
    with pytest.raises(
        OptionError, match=rf"^count is {count}; expected a whole number, 0 or more"
    ):
        unpack_bits(np.zeros(4, np.uint8), 4, count)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("packed", "found"),
    [
        (np.zeros(3, np.int8), r"int8 of shape \(3,\)"),
        (np.zeros((1, 3), np.uint8), r"uint8 of shape \(1, 3\)"),
        (b"abc", "bytes"),
    ],
)
def test_packed_of_wrong_kind(packed: object, found: str) -> None:
    with pytest.raises(DataError, match=rf"^The packed data is {found}; expected a one-dim.*Pass"):
        unpack_bits(packed, 4, 2)  # type: ignore[arg-type]


def test_packed_too_short() -> None:
    with pytest.raises(
        DataError,
        match=r"^The packed data has 1 bytes; expected at least 2 for 3 values of 5 bits\. The",
    ):
        unpack_bits(np.zeros(1, np.uint8), 5, 3)
