from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_compress.codec.cursor import Cursor, Damaged, varint
from tvm_compress.codec.text import pack_text, unpack_text

TEXTS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([b"conv2d", b"add_", b"\0", b"\xff" * 3]), max_size=20).map(b"".join),
)


@settings(max_examples=60)
@given(TEXTS)
def test_a_text_comes_back(text: bytes) -> None:
    assert unpack_text(pack_text(text), len(text)) == text


def test_a_repeated_text_costs_little_and_noise_costs_hardly_more_than_itself() -> None:
    assert len(pack_text(b"const_fold_opt_" * 40)) < 30
    noise = bytes((i * i * 7919 + i) % 251 for i in range(300))
    assert len(pack_text(noise)) < 330


def test_the_coded_bytes_are_those_of_every_machine() -> None:
    assert pack_text(b"relax.nn.conv2d relax.nn.relu relax.nn.conv2d").hex() == GOLDEN


@settings(max_examples=40)
@given(st.binary(min_size=1, max_size=30), st.data())
def test_bytes_that_no_writer_writes_are_told(text: bytes, data: st.DataObject) -> None:
    coded = bytearray(pack_text(text))
    coded.insert(data.draw(st.integers(0, len(coded))), data.draw(st.integers(0, 255)))
    try:
        other = unpack_text(bytes(coded), len(text))
    except Damaged as error:
        assert str(error) == "it is not coded the way a writer codes it"
    else:
        assert pack_text(other) == bytes(coded)


def test_zeros_behind_the_coded_bytes_are_told() -> None:
    with pytest.raises(Damaged, match="not coded the way a writer codes it"):
        unpack_text(pack_text(b"abc") + b"\0", 3)


@given(st.integers(0, 2**35 - 1))
def test_a_number_comes_back(value: int) -> None:
    cursor = Cursor(varint(value))
    assert cursor.varint() == value
    assert cursor.left == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it ends 1 bytes early"),
        (b"\x80", "it ends 1 bytes early"),
        (b"\x80\x00", "longer than it needs to be"),
        (b"\xff\xff\xff\xff\xff\x01", "a number is too long"),
    ],
)
def test_what_is_no_number_is_told(data: bytes, message: str) -> None:
    with pytest.raises(Damaged, match=message):
        Cursor(data).varint()


GOLDEN = "8b601330bcb3d30912054634e9106980d45b29c6"
