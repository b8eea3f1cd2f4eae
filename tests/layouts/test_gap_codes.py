from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tvm_compress.errors import DataError, OptionError
from tvm_compress.layouts import GapCodes, best_gap_bits, relative

if TYPE_CHECKING:
    from tests.layouts.conftest import Reference

Case = tuple[NDArray[Any], int, int]  # matrix, gap_bits, code_bits


@st.composite
def sparse(draw: st.DrawFn, max_cols: int = 60) -> Case:
    """A matrix of any density, gap_bits and code_bits; plain numbers where code_bits is 0."""
    gap_bits = draw(st.integers(1, 8))
    code_bits = draw(st.integers(0, 8))
    # Wide rows, so that gaps pass 2**gap_bits with narrow and with wide fields.
    cols = draw(st.one_of(st.integers(1, max_cols), st.sampled_from([255, 256, 257, 1025])))
    shape = (draw(st.integers(1, 5)), cols)
    density = draw(st.sampled_from([0.0, 0.002, 0.02, 0.1, 0.5, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = rng.random(shape) < density
    if code_bits == 0:
        dtype = draw(st.sampled_from([np.float32, np.int8, np.int16]))
        values = rng.normal(size=shape)
        if dtype != np.float32:
            limits = np.iinfo(dtype)
            values = rng.integers(limits.min, limits.max + 1, shape)
        matrix = np.where(kept, values, 0).astype(dtype)
    else:
        matrix = np.where(kept, rng.integers(1, 2**code_bits, shape), 0).astype(np.uint8)
    return matrix, gap_bits, code_bits


def pack(case: Case) -> GapCodes:
    matrix, gap_bits, code_bits = case
    if code_bits == 0:
        return GapCodes.pack_values(matrix, gap_bits)
    return GapCodes.pack(matrix, gap_bits, code_bits)


def entries_by_hand(matrix: NDArray[Any], gap_bits: int) -> list[list[tuple[int, Any]]]:
    """The paper's relative index, one weight at a time: (gap, weight) of every entry of a row."""
    table = []
    for row in matrix.tolist():
        line: list[tuple[int, Any]] = []
        zeros = 0
        for weight in row:
            if weight == 0:
                zeros += 1
                continue
            while zeros >= 2**gap_bits:
                line.append((2**gap_bits - 1, 0))
                zeros -= 2**gap_bits
            line.append((zeros, weight))
            zeros = 0
        table.append(line)
    return table


@given(sparse())
def test_bytes_and_round_trip(case: Case) -> None:
    matrix, gap_bits, code_bits = case
    packed = pack(case)
    by_hand = entries_by_hand(matrix, gap_bits)
    flat = [entry for line in by_hand for entry in line]
    width = gap_bits + code_bits

    number = 0
    for i, (gap, weight) in enumerate(flat):
        number |= (gap | (weight << gap_bits if code_bits else 0)) << (i * width)
    # The paper's size, entries * (gap + code) bits, rounded up to bytes, and two of padding.
    stream_bytes = (len(flat) * width + 7) // 8 + 2
    assert packed.data.tobytes() == number.to_bytes(stream_bytes, "little")
    assert packed.row_start.tolist() == np.cumsum([0] + [len(line) for line in by_hand]).tolist()
    assert packed.row_start.dtype == np.uint32
    assert packed.entries == len(flat)
    assert packed.fillers == sum(weight == 0 for _, weight in flat)
    if code_bits == 0:
        assert packed.values is not None
        assert packed.values.dtype == matrix.dtype
        assert packed.values.tolist() == [weight for _, weight in flat]

    out = packed.unpack()
    assert out.dtype == matrix.dtype
    np.testing.assert_array_equal(out, matrix)


@given(sparse())
def test_nbytes_is_what_is_stored(case: Case) -> None:
    packed = pack(case)
    stored = packed.data.tobytes() + packed.row_start_stored.tobytes()
    if packed.values is not None:
        stored += packed.values.tobytes()
    assert packed.nbytes == len(stored)
    assert packed.row_start_stored.dtype == np.uint16
    assert packed.row_start_stored.tolist() == packed.row_start.tolist()


def test_row_start_widens_at_65536_entries() -> None:
    below = GapCodes.pack(np.ones((1, 65535), np.uint8), 1, 1)
    assert below.row_start_stored.dtype == np.uint16
    assert below.nbytes == 16384 + 2 + 2 * 2
    at = GapCodes.pack(np.ones((1, 65536), np.uint8), 1, 1)
    assert at.row_start_stored.dtype == np.uint32
    assert at.row_start_stored.tolist() == [0, 65536]
    assert at.nbytes == 16384 + 2 + 4 * 2


@given(sparse())
def test_best_gap_bits_equals_trying_all(case: Case) -> None:
    matrix, _, code_bits = case
    sizes = {g: pack((matrix, g, code_bits)).nbytes for g in range(1, 9)}
    assert best_gap_bits(matrix, code_bits) == min(sizes, key=lambda g: sizes[g])


def test_best_gap_bits_sees_row_start_widen() -> None:
    # With gap_bits 1, 2 and 3 the fillers push the entries over 65535 and row_start to uint32.
    codes = np.zeros((20000, 16), np.uint8)
    codes[:, [5, 8, 15]] = 1
    sizes = {g: GapCodes.pack(codes, g, 1).nbytes for g in range(1, 9)}
    entries = {g: GapCodes.pack(codes, g, 1).entries for g in range(1, 9)}
    assert entries[2] > 65535 > entries[3]
    assert best_gap_bits(codes, 1) == min(sizes, key=lambda g: sizes[g]) == 3


@given(sparse(), st.integers(1, 3))
def test_chunks_join_without_a_seam(case: Case, rows: int) -> None:
    whole = pack(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relative, "_CHUNK_WEIGHTS", rows * case[0].shape[1])
        packed = pack(case)
        np.testing.assert_array_equal(packed.unpack(), case[0])
        assert best_gap_bits(case[0], case[2]) in range(1, 9)
    assert packed.data.tobytes() == whole.data.tobytes()
    assert packed.row_start.tolist() == whole.row_start.tolist()


def test_transposed_codes() -> None:
    codes = np.arange(48, dtype=np.uint8).reshape(6, 8).T
    np.testing.assert_array_equal(GapCodes.pack(codes, 2, 6).unpack(), codes)


def test_size_of_the_paper() -> None:
    """Figure 2 of the paper: a distance over 8 takes a filler with a 3-bit gap."""
    weights = np.zeros((1, 16), np.float32)
    weights[0, [1, 4, 15]] = [3.4, 0.9, 1.7]
    packed = GapCodes.pack_values(weights, 3)
    assert packed.values is not None
    np.testing.assert_allclose(packed.values, [3.4, 0.9, 0.0, 1.7], rtol=1e-7)
    # The figure counts distances 1, 3, 8, 3 from index 0; a row here begins at -1, and a stored
    # gap is one less than the distance.
    assert packed.data.tolist()[:2] == [(2 << 3 | 1) | (7 << 6 & 0xFF), 7 >> 2 | (2 << 1)]


def test_a_kernel_may_read_three_bytes_at_any_entry() -> None:
    for gap_bits in range(1, 9):
        for code_bits in range(1, 9):
            for cols in range(1, 12):
                packed = GapCodes.pack(np.ones((1, cols), np.uint8), gap_bits, code_bits)
                last = (packed.entries - 1) * (gap_bits + code_bits) // 8
                assert last + 3 <= packed.data.size


# --- the C reference


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(case=sparse(), wide=st.booleans())
def test_reference_c_agrees(reference: Reference, case: Case, wide: bool) -> None:
    packed = pack(case)
    row_start = packed.row_start if wide else packed.row_start_stored
    text, out = reference.gap(packed, row_start=row_start)
    assert text == "The matrix was unpacked."
    np.testing.assert_array_equal(out, case[0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(case=sparse(max_cols=20), data=st.data())
def test_damage_gives_the_same_verdict_in_c_and_numpy(
    reference: Reference, case: Case, data: st.DataObject
) -> None:
    packed = pack(case)
    what = data.draw(st.sampled_from(["bytes", "row_start", "cut", "header"]))
    if what == "bytes":
        noise = data.draw(st.binary(min_size=packed.data.size, max_size=packed.data.size))
        packed = dataclasses.replace(packed, data=np.frombuffer(noise, np.uint8))
    elif what == "row_start":
        start = packed.row_start.copy()
        at = data.draw(st.integers(0, start.size - 1))
        start[at] = data.draw(st.integers(0, 2**32 - 1) | st.integers(0, 20))
        values = packed.values
        if values is not None and int(start[-1]) <= 200:
            values = np.resize(np.append(values, values.dtype.type(1)), int(start[-1]))
        packed = dataclasses.replace(packed, row_start=start, values=values)
    elif what == "cut":
        cut = data.draw(st.integers(1, packed.data.size - 1))
        packed = dataclasses.replace(packed, data=packed.data[:-cut])
    else:
        packed = dataclasses.replace(
            packed,
            cols=data.draw(st.integers(1, 1100)),
            gap_bits=data.draw(st.integers(0, 10)),
            code_bits=data.draw(st.integers(0, 10)) if packed.values is None else 0,
        )
    # With uint32 row_start no damaged index is narrowed on its way into C.
    text, out = reference.gap(packed, row_start=packed.row_start)
    try:
        expected = packed.unpack()
    except (DataError, OptionError):
        assert text != "The matrix was unpacked."
    else:
        assert text == "The matrix was unpacked."
        np.testing.assert_array_equal(out, expected)


def test_reference_c_checks_its_arguments(reference: Reference) -> None:
    packed = GapCodes.pack(np.eye(3, dtype=np.uint8), 2, 3)
    valued = GapCodes.pack_values(np.eye(3, dtype=np.float32), 2)
    replace = dataclasses.replace

    def text(case: GapCodes, **options: Any) -> str:
        return reference.gap(case, **options)[0]

    for bad in ({"gap_bits": 0}, {"gap_bits": 9}, {"code_bits": 9}, {"code_bits": 0}):
        with_values = replace(packed, **bad, values=np.zeros(3, np.float32))
        assert text(with_values, values_kind=False).startswith("A bit width is out of range")
    assert text(valued, values_kind=False).startswith("A bit width is out of range")
    odd = replace(valued, values=valued.values.astype(np.float64))
    assert text(odd).startswith("A bit width is out of range")
    with_values = replace(packed, values=np.zeros(3, np.float32))
    assert text(with_values, values_kind=True).startswith("A bit width is out of range")
    assert text(packed, out_count=8).startswith("The output is too small")
    assert text(packed, out_count=0).startswith("A required pointer is NULL")
    assert text(packed, row_start=np.zeros(4, np.uint8)).startswith("A required pointer is NULL")
    assert text(replace(packed, data=packed.data[:0])).startswith("A required pointer is NULL")
    assert text(replace(valued, values=valued.values[:0])).startswith("A required pointer is NULL")
    for start in ([0, 1, 2], [1, 1, 2, 3], [0, 2, 1, 3], [0, 1, 2, 3, 3]):
        assert text(packed, row_start=np.array(start, np.uint16)).startswith("row_start is not")
    assert text(replace(packed, data=packed.data[:-1])).startswith("The packed stream is too short")
    assert text(replace(valued, values=valued.values[:-1])).startswith("There are fewer values")
    assert text(replace(packed, cols=2)).startswith("An entry lies beyond the last column")
    assert text(replace(valued, cols=2)).startswith("An entry lies beyond the last column")
    huge = replace(packed, rows=2**32 - 1, cols=2**32 - 1)
    assert text(huge, out_count=9).startswith("The output is too small")


# --- errors


@pytest.mark.parametrize("bits", [0, 9, 2.0])
def test_gap_bits_out_of_range(bits: Any) -> None:
    message = rf"^gap_bits is {bits}; expected a whole number from 1 to 8\. Choose a gap_bits"
    codes = np.eye(2, dtype=np.uint8)
    with pytest.raises(OptionError, match=message):
        GapCodes.pack(codes, bits, 4)
    with pytest.raises(OptionError, match=message):
        GapCodes.pack_values(codes.astype(np.float32), bits)
    with pytest.raises(OptionError, match=message):
        dataclasses.replace(GapCodes.pack(codes, 1, 1), gap_bits=bits).unpack()


def test_code_bits_out_of_range() -> None:
    codes = np.eye(2, dtype=np.uint8)
    for bits in (0, 9):
        with pytest.raises(OptionError, match=rf"^code_bits is {bits}; expected .* from 1 to 8\."):
            GapCodes.pack(codes, 4, bits)
    for bits in (-1, 9):
        with pytest.raises(OptionError, match=rf"^code_bits is {bits}; expected .* from 0 to 8\."):
            best_gap_bits(codes, bits)
        with pytest.raises(OptionError, match=rf"^code_bits is {bits}; expected .* from 0 to 8\."):
            dataclasses.replace(GapCodes.pack(codes, 1, 1), code_bits=bits).unpack()


def test_wrong_dtype() -> None:
    codes = np.zeros((2, 2), np.int64)
    for call in (lambda: GapCodes.pack(codes, 4, 4), lambda: best_gap_bits(codes, 4)):
        with pytest.raises(DataError, match=r"^The codes are int64; expected .* of uint8\. Conv"):
            call()
    for call in (lambda: GapCodes.pack_values(codes, 4), lambda: best_gap_bits(codes, 0)):
        with pytest.raises(
            DataError, match=r"^The weights are int64; expected .* of float32, int8 or int16\. C"
        ):
            call()


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), (0, 3), (3, 0)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"^The codes have shape \(.*expected two dim.*Reshape"):
        GapCodes.pack(np.zeros(shape, np.uint8), 4, 4)
    with pytest.raises(DataError, match=r"^The weights have shape \(.*expected two dim.*Reshape"):
        GapCodes.pack_values(np.zeros(shape, np.float32), 4)


def test_code_too_large() -> None:
    with pytest.raises(
        DataError, match=r"^The code at row 0, column 1 is 9; expected at most 7, .*3 bits\. Pack"
    ):
        GapCodes.pack(np.array([[0, 9], [4, 0]], np.uint8), 2, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers(value: float) -> None:
    with pytest.raises(DataError, match=r"^The weights hold NaN or infinity; expected.*Mend the"):
        GapCodes.pack_values(np.array([[0, value]], np.float32), 2)
    with pytest.raises(DataError, match=r"^The weights hold NaN or infinity; expected.*Mend the"):
        best_gap_bits(np.array([[0, value]], np.float32), 0)


@pytest.mark.parametrize(
    "row_start",
    [
        np.array([0, 1], np.uint32),
        np.array([1, 1, 2], np.uint32),
        np.array([0, 3, 2], np.uint32),
        np.array([0, 1, 2], np.int64),
    ],
)
def test_damaged_row_start(row_start: NDArray[Any]) -> None:
    packed = dataclasses.replace(
        GapCodes.pack(np.eye(2, dtype=np.uint8), 2, 2), row_start=row_start
    )
    message = r"^row_start of gap_codes is not a list of 3 uint32 that begins at 0 and never falls"
    with pytest.raises(DataError, match=message):
        packed.unpack()
    with pytest.raises(DataError, match=message):
        _ = packed.fillers


@pytest.mark.parametrize(
    "data", [np.zeros(2, np.uint8), np.zeros(3, np.int8), np.zeros((1, 3), np.uint8)]
)
def test_damaged_stream(data: NDArray[Any]) -> None:
    packed = dataclasses.replace(GapCodes.pack(np.eye(2, dtype=np.uint8), 2, 2), data=data)
    with pytest.raises(
        DataError,
        match=r"^The stream of gap_codes is .*expected uint8 of at least 3 bytes for 2 entries of "
        r"4 bits and the padding\. The data is damaged",
    ):
        packed.unpack()


@pytest.mark.parametrize("row", [0, 1, 2])
def test_damaged_position(row: int) -> None:
    codes = np.zeros((3, 9), np.uint8)
    codes[row, 7] = 1
    packed = dataclasses.replace(GapCodes.pack(codes, 4, 2), cols=7)
    with pytest.raises(
        DataError,
        match=rf"^Row {row} of gap_codes reaches position 7; expected at most 6, for the matrix "
        r"has 7 columns\. The data is damaged",
    ):
        packed.unpack()


def test_damaged_values() -> None:
    shared = GapCodes.pack(np.eye(2, dtype=np.uint8), 2, 2)
    valued = GapCodes.pack_values(np.eye(2, dtype=np.float32), 2)
    expected = (
        r"expected float32, int8 or int16 of shape \(2,\) with code_bits = 0\. The data is damaged"
    )
    for values, found in (
        (None, "None"),
        (np.zeros(1, np.float32), r"float32 of shape \(1,\)"),
        (np.zeros(2, np.float64), r"float64 of shape \(2,\)"),
    ):
        with pytest.raises(DataError, match=rf"^The values of gap_codes are {found}; {expected}"):
            dataclasses.replace(valued, values=values).unpack()
    with pytest.raises(
        DataError, match=r"are float32 of shape \(2,\); expected None with code_bits = 2\."
    ):
        dataclasses.replace(shared, values=np.zeros(2, np.float32)).unpack()
