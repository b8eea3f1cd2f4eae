from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_compress.codec.bits import Decoder, Encoder, Meter, Mixer, blocks, logit_tables
from tvm_compress.codec.cursor import Damaged


def test_tables_are_the_logistic_function_and_its_inverse() -> None:
    stretch, squash = logit_tables()
    for i in range(4096):
        chance = (i + 0.5) / 4096
        assert abs(stretch[i] - 256 * math.log(chance / (1 - chance))) <= 0.5001
    limit = len(squash) // 2
    for x in range(-limit, limit + 1):
        expected = 65536 / (1 + math.exp(-x / 256))
        assert abs(squash[limit + x] - expected) <= 1.0001
        assert 0 < squash[limit + x] < 65536


@given(st.integers(0, 3000), st.integers(1, 200), st.integers(0, 500))
def test_blocks_cover_everything_once(count: int, first: int, more: int) -> None:
    cut = blocks(count, first, first + more)
    assert [start for start, _ in cut] == [0, *(stop for _, stop in cut)][: len(cut)]
    assert sum(stop - start for start, stop in cut) == count
    assert all(0 < stop - start <= first + more for start, stop in cut)


@settings(max_examples=30)
@given(st.integers(0, 400), st.floats(0, 1), st.integers(0, 1000))
def test_bits_come_back_whatever_the_contexts(count: int, share: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    bits = (chance.random(count) < share).astype(np.int64)
    contexts = [chance.integers(0, 4, count), chance.integers(0, 9, count)]

    def run(coder: Encoder | Decoder, given_bits: np.ndarray | None) -> np.ndarray:
        mixer = Mixer((4, 9))
        out = [
            mixer.code(
                coder, [c[a:b] for c in contexts], None if given_bits is None else given_bits[a:b]
            )
            for a, b in blocks(count, 16, 64)
        ]
        return np.concatenate(out) if out else np.zeros(0, np.int64)

    encoder = Encoder()
    run(encoder, bits)
    decoder = Decoder(encoder.data())
    np.testing.assert_array_equal(run(decoder, None), bits)
    assert decoder.exhausted()


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 1)), max_size=60),
    st.sampled_from(["as it is", "longer", "shorter", "changed"]),
    st.binary(min_size=4, max_size=12),
    st.integers(0, 1 << 16),
)
def test_a_decoder_takes_the_words_of_an_encoder_and_no_others(
    coded: list[tuple[int, int]], change: str, more: bytes, place: int
) -> None:
    chances = np.array([chance for chance, _ in coded], np.int64)
    bits = np.array([bit for _, bit in coded], np.int64)

    def encode(bits: np.ndarray) -> bytes:
        encoder = Encoder()
        encoder.code(chances, bits)
        return encoder.data()

    right = encode(bits)
    data = bytearray(right)
    if change == "longer":
        data += more[: len(more) // 4 * 4]
    elif change == "shorter":
        del data[len(data) - 4 :]
    elif change == "changed" and data:
        data[place % len(data)] ^= more[0]
    decoder = Decoder(bytes(data))
    try:
        read = decoder.code(chances, None)
    except Damaged:
        assert change in ("shorter", "changed")
        return
    assert decoder.exhausted() == (encode(read) == bytes(data))
    assert decoder.exhausted() or bytes(data) != right
    if change == "longer":
        np.testing.assert_array_equal(read, bits)
        assert not decoder.exhausted()


def test_a_meter_adds_up_the_information_of_the_bits() -> None:
    chances, bits = np.array([1, 16384, 16384, 65535]), np.array([1, 1, 0, 1])
    expected = 16 + 2 + math.log2(4 / 3) + math.log2(65536 / 65535)
    encoder = Encoder()
    writing = Meter(encoder)
    np.testing.assert_array_equal(writing.code(chances, bits), bits)
    assert writing.bits == pytest.approx(expected)
    reading = Meter(Decoder(encoder.data()))
    for at in range(4):
        reading.code(chances[at : at + 1], None)
    assert reading.bits == pytest.approx(expected)


def _coded_bytes(bits: np.ndarray, contexts: list[np.ndarray], sizes: tuple[int, ...]) -> int:
    encoder, mixer = Encoder(), Mixer(sizes)
    for a, b in blocks(bits.size, 64, 1024):
        mixer.code(encoder, [c[a:b] for c in contexts], bits[a:b])
    return len(encoder.data())


def test_a_mixer_comes_near_the_entropy_and_finds_the_context_that_helps() -> None:
    chance = np.random.default_rng(5)
    count = 20_000
    which = chance.integers(0, 2, count)
    bits = (chance.random(count) < np.where(which, 0.95, 0.05)).astype(np.int64)
    share = float((bits != which).mean())
    entropy = -count * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    noise = chance.integers(0, 50, count)
    assert _coded_bytes(bits, [which, noise], (2, 50)) < 1.05 * entropy
    assert _coded_bytes(bits, [noise], (50,)) > 0.99 * count / 8


def test_the_coded_words_are_those_of_every_machine_and_constriction() -> None:
    bits = np.array([0, 1, 1, 0, 0, 0, 1, 0] * 12, np.int64)
    encoder, mixer = Encoder(), Mixer((2, 3))
    at = np.arange(bits.size)
    for a, b in blocks(bits.size, 16, 64):
        mixer.code(encoder, [at[a:b] % 2, at[a:b] % 3], bits[a:b])
    assert encoder.data().hex() == GOLDEN


@pytest.mark.parametrize("chance", [1, 2, 32768, 65535])
def test_a_chance_is_coded_as_it_is(chance: int) -> None:
    # The range coder must take k / 65536 exactly: both outcomes cost what they should.
    count = 4000
    chances = np.full(count, chance, np.int64)
    encoder = Encoder()
    encoder.code(chances, np.ones(count, np.int64))
    bits = count * (16 - math.log2(chance))
    assert bits / 8 - 1 <= len(encoder.data()) <= bits / 8 * 1.0001 + 9


GOLDEN = "d7796262c34fc3ac730923d9"
