"""The corpus of the fuzzer is read without a finding, and so are simple mutations of it."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

from tests.codec.twin import Twin, missing
from tests.fuzz.fuzz_tcz import CORPUS, check, mended
from tvm_compress import codec
from tvm_compress.codec.container import read_sections
from tvm_compress.errors import ModelFormatError

FILES = sorted(CORPUS.glob("*.tcz"))
# constriction finds words that no coder writes, and says so by an AssertionError.
NO_WORDS = (
    "VENaGgEAAAADASAAAABYKO3uAggAAAB+9LwfAy0AAAAWRU3/GJhxiCruMzx5h0wH11J2NDAjOWbVf3gZOu6jU5vHR0xr"
    "8awDAQoCBiFCAwEsBxCgPwIAAP/++MMcAAAAwAAAAAAAAAAAAAAAAAAAAAAAAAAA7W+wbiBndrk="
)
# TVM reads attributes of another operator's type as if they were its own.
NO_ATTRIBUTES = (
    "VENaGgEAAAADAWEAAADZYj0YAgEAAACN7wLSAwEAAACN7wLSYO71HqUB7jM8eYdMAS2yuYPO4bf5WjRMdFRMIaeXfXZZ"
    "h4u73F0s8nlghxJZkpV0JomOpMdzAMeBvq/XnLbdfDN6XhbFhTe2IX40HBRKanDKAU4WLeLH7xyHe7iUI/V2mtCGs1EA"
    "AA=="
)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    if reason := missing("cc"):
        pytest.skip(reason)
    return Twin("cc", tmp_path_factory.mktemp("fuzz"))


def test_the_corpus_is_there_and_sound() -> None:
    assert len(FILES) == 16
    for path in FILES:
        read_sections(path.read_bytes())


def test_words_that_no_coder_writes_are_refused() -> None:
    with pytest.raises(ModelFormatError, match=r"weights.*bits are none that a writer writes"):
        codec.unpack(mended(b64decode(NO_WORDS)))


def test_attributes_of_another_operator_are_refused() -> None:
    with pytest.raises(ModelFormatError, match=r"resize2d has attributes of the type"):
        codec.unpack(mended(b64decode(NO_ATTRIBUTES)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_the_corpus_and_its_mutations(path: Path, decoder: Twin) -> None:
    data = path.read_bytes()
    assert mended(data) == data
    check(data, decoder)
    chance = np.random.default_rng(len(data))
    for _ in range(12):
        other = bytearray(data)
        other[int(chance.integers(len(other)))] ^= 1 << int(chance.integers(8))
        with pytest.raises(ModelFormatError):
            read_sections(bytes(other))
        read_sections(mended(bytes(other)[:40] + bytes(other)[40:])) if other[5] < 2 else None
        check(bytes(other), decoder)
