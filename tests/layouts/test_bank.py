from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tvm_compress.errors import DataError, OptionError
from tvm_compress.layouts import Bank, bank
from tvm_compress.passes.bank_prune import keep_in_banks

if TYPE_CHECKING:
    from tests.layouts.conftest import Reference

Codes = NDArray[np.uint8]


@st.composite
def matrices(draw: st.DrawFn) -> Codes:
    """Codes of any density, mostly with a short last bank."""
    cols = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 255, 256])))
    shape = (draw(st.integers(1, 5)), cols)
    density = draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.where(rng.random(shape) < density, rng.integers(1, 16, shape), 0).astype(np.uint8)


def banks_by_hand(codes: Codes) -> list[list[list[tuple[int, int]]]]:
    """The (column within the bank, code) of every weight: of a row, of a bank."""
    found = []
    for row in codes.tolist():
        line = []
        for first in range(0, len(row), 16):
            part = row[first : first + 16]
            line.append([(place, code) for place, code in enumerate(part) if code])
        found.append(line)
    return found


@given(matrices())
def test_bytes_and_round_trip(codes: Codes) -> None:
    packed = Bank.pack(codes)
    by_hand = banks_by_hand(codes)
    fullest = max(1, *(len(line) for row in by_hand for line in row))
    assert packed.keep == fullest
    expected = []
    for row in by_hand:
        line: list[int] = []
        for number, weights in enumerate(row):
            size = min(16, codes.shape[1] - 16 * number)
            last = weights[-1][0] if weights else 0
            fillers = min(fullest, size) - len(weights)
            line += [16 * place + code for place, code in weights] + [16 * last] * fillers
        expected.append(line)
    assert packed.data.tolist() == expected
    # The paper's balance: as many bytes for every row, and for every bank but a short one.
    sizes = [min(16, codes.shape[1] - first) for first in range(0, codes.shape[1], 16)]
    assert packed.nbytes == codes.shape[0] * sum(min(fullest, size) for size in sizes)
    assert packed.nbytes == len(packed.data.tobytes()) == codes.shape[0] * packed.entries
    out = packed.unpack()
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, codes)


@given(matrices(), st.integers(1, 3))
def test_chunks_join_without_a_seam(codes: Codes, rows: int) -> None:
    whole = Bank.pack(codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank, "_CHUNK_WEIGHTS", rows * codes.shape[1])
        packed = Bank.pack(codes)
        np.testing.assert_array_equal(packed.unpack(), codes)
    assert packed.data.tobytes() == whole.data.tobytes()


@pytest.mark.parametrize("keep", [1, 2, 4, 16])
@pytest.mark.parametrize("cols", [16, 64, 75])
def test_a_balanced_matrix_has_no_fillers(keep: int, cols: int) -> None:
    chance = np.random.default_rng(keep)
    kept = keep_in_banks(chance.uniform(1, 2, (7, cols)), keep, 16) != 0
    codes = (kept * chance.integers(1, 16, kept.shape)).astype(np.uint8)
    packed = Bank.pack(codes)
    assert packed.keep == keep
    assert packed.nbytes == np.count_nonzero(codes)


def test_transposed_codes() -> None:
    codes = (np.arange(48, dtype=np.uint8) % 16).reshape(6, 8).T
    np.testing.assert_array_equal(Bank.pack(codes).unpack(), codes)


# --- damaged data, and the C reference


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(codes=matrices())
def test_reference_c_agrees(reference: Reference, codes: Codes) -> None:
    text, out = reference.bank(Bank.pack(codes))
    assert text == "The matrix was unpacked."
    np.testing.assert_array_equal(out, codes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(codes=matrices(), data=st.data())
def test_damage_gives_the_same_verdict_in_c_and_numpy(
    reference: Reference, codes: Codes, data: st.DataObject
) -> None:
    packed = Bank.pack(codes)
    what = data.draw(st.sampled_from(["one", "bytes", "cut", "header"]))
    if what in ("one", "bytes"):
        damaged = packed.data.copy().reshape(-1)
        count = 1 if what == "one" else damaged.size
        for _ in range(min(count, 8)):
            damaged[data.draw(st.integers(0, damaged.size - 1))] = data.draw(st.integers(0, 255))
        packed = dataclasses.replace(packed, data=damaged.reshape(packed.data.shape))
    elif what == "cut":
        packed = dataclasses.replace(packed, data=packed.data.reshape(-1)[:-1])
    else:
        packed = dataclasses.replace(packed, keep=data.draw(st.integers(0, 20)))
        if 1 <= packed.keep <= 16:  # bytes enough, so that their meaning is what differs
            damaged = np.resize(packed.data, (packed.rows, packed.entries))
            packed = dataclasses.replace(packed, data=damaged)
    text, out = reference.bank(packed)
    try:
        expected = packed.unpack()
    except (DataError, OptionError):
        assert text != "The matrix was unpacked."
    else:
        assert text == "The matrix was unpacked."
        np.testing.assert_array_equal(out, expected)
        # What is accepted is what pack writes, but for entries that nothing needed.
        again = Bank.pack(expected)
        if again.keep == packed.keep:
            assert again.data.tobytes() == packed.data.tobytes()


def test_reference_c_checks_its_arguments(reference: Reference) -> None:
    packed = Bank.pack(np.eye(3, 20, dtype=np.uint8))

    def text(out_count: int | None = None, **changes: Any) -> str:
        return reference.bank(dataclasses.replace(packed, **changes), out_count)[0]

    assert text(keep=0).startswith("A bit width is out of range")
    assert text(keep=17).startswith("A bit width is out of range")
    assert text(out_count=59).startswith("The output is too small")
    assert text(out_count=0).startswith("A required pointer is NULL")
    assert text(data=packed.data[:0]).startswith("A required pointer is NULL")
    assert text(data=packed.data[:-1]).startswith("The packed stream is too short")
    changed = packed.data.copy()
    changed[2, 1] = 0x41  # column 20 of 20
    assert text(data=changed).startswith("An entry lies beyond the last column")
    changed[2, 1] = 0x10  # an empty bank begins at its first column
    assert text(data=changed).startswith("The entries of a bank do not rise")
    assert text(60, rows=2**32 - 1, cols=2**32 - 1).startswith("The output is too small")


@pytest.mark.parametrize("keep", [0, 17, 2.0])
def test_keep_out_of_range(keep: Any) -> None:
    packed = dataclasses.replace(Bank.pack(np.eye(2, dtype=np.uint8)), keep=keep)
    with pytest.raises(OptionError, match=rf"^keep is {keep}; expected .* from 1 to 16\. Choose"):
        packed.unpack()


@pytest.mark.parametrize(
    "data", [np.zeros((2, 2), np.uint8), np.zeros((2, 1), np.int8), np.zeros(2, np.uint8)]
)
def test_damaged_shape(data: NDArray[Any]) -> None:
    packed = dataclasses.replace(Bank.pack(np.eye(2, dtype=np.uint8)), data=data)
    with pytest.raises(
        DataError,
        match=r"^The packed data of bank is .*; expected uint8 of shape \(2, 1\) for 2 rows of 2 "
        r"codes with 1 entries a bank\. The data is damaged",
    ):
        packed.unpack()


@pytest.mark.parametrize("row", [0, 1, 2])
def test_damaged_column(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "_CHUNK_WEIGHTS", 40)
    packed = Bank.pack(np.ones((3, 20), np.uint8))
    packed.data[row, 18] = 0x41
    with pytest.raises(
        DataError,
        match=rf"^Row {row} of bank reaches column 20; expected at most 19, for the matrix has 20 "
        r"columns\. The data is damaged",
    ):
        packed.unpack()


@pytest.mark.parametrize(
    ("entries", "entry", "byte", "before"),
    [
        ([0x11, 0x11], 1, 0x11, 1),  # the same column twice
        ([0x21, 0x11], 1, 0x11, 2),  # falling
        ([0x00, 0x11], 1, 0x11, 0),  # a weight behind a filler
        ([0x11, 0x20], 1, 0x20, 1),  # a filler elsewhere
        ([0x20, 0x20], 0, 0x20, -1),  # a first filler elsewhere
    ],
)
def test_damaged_order(entries: list[int], entry: int, byte: int, before: int) -> None:
    data = np.array([[0x01, 0x11], entries], np.uint8)
    with pytest.raises(
        DataError,
        match=rf"^Entry {entry} of row 1 of bank is 0x{byte:02x} behind column {before} of its "
        r"bank; expected a larger column, or code 0 and the same column at the end of a bank\. "
        r"The data is damaged",
    ):
        Bank(2, 4, 2, data).unpack()


# --- errors of pack


def test_wrong_codes() -> None:
    with pytest.raises(DataError, match=r"^The codes are int64; expected .* of uint8\. Convert"):
        Bank.pack(np.zeros((2, 2), np.int64))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"^The codes have shape \(4,\); expected two dim.*Reshape"):
        Bank.pack(np.zeros(4, np.uint8))
    with pytest.raises(
        DataError, match=r"^The code at row 0, column 1 is 16; expected at most 15, .* 4 bits\. "
    ):
        Bank.pack(np.array([[0, 16]], np.uint8))
