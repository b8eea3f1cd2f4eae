from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tvm_compress.errors import DataError
from tvm_compress.layouts import Block, relative

if TYPE_CHECKING:
    from tests.layouts.conftest import Reference

Matrix = NDArray[Any]


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    """Numbers of any density of blocks; wide rows have distances that are bridged."""
    cols = draw(st.one_of(st.integers(1, 60), st.sampled_from([1024, 1027, 1028, 2100])))
    shape = (draw(st.integers(1, 4)), cols)
    density = draw(st.sampled_from([0.0, 0.002, 0.02, 0.1, 0.5, 1.0]))
    dtype = draw(st.sampled_from([np.float32, np.int8, np.int16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = (rng.random((shape[0], -(-cols // 4))) < density).repeat(4, axis=1)[:, :cols]
    kept &= rng.random(shape) < draw(st.sampled_from([0.3, 1.0]))
    values = rng.normal(size=shape)
    if dtype != np.float32:
        values = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape)
    return np.where(kept, values, 0).astype(dtype)


def blocks_by_hand(matrix: Matrix) -> list[list[tuple[int, list[Any]]]]:
    """The (gap, four values) of every stored block, one row after the other."""
    table = []
    for row in matrix.tolist():
        line: list[tuple[int, list[Any]]] = []
        zeros = 0
        for first in range(0, len(row), 4):
            values = [*row[first : first + 4], 0, 0, 0][:4]
            if not any(values):
                zeros += 1
                continue
            while zeros >= 256:
                line.append((255, [0] * 4))
                zeros -= 256
            line.append((zeros, values))
            zeros = 0
        table.append(line)
    return table


@given(matrices())
def test_bytes_and_round_trip(matrix: Matrix) -> None:
    packed = Block.pack(matrix)
    by_hand = blocks_by_hand(matrix)
    flat = [block for line in by_hand for block in line]
    assert packed.gaps.dtype == np.uint8
    assert packed.gaps.tolist() == [gap for gap, _ in flat]
    assert packed.values.dtype == matrix.dtype
    assert packed.values.tolist() == [values for _, values in flat]
    assert packed.row_start.tolist() == np.cumsum([0] + [len(line) for line in by_hand]).tolist()
    # A byte of distance and four numbers a block, and two bytes a row.
    assert packed.nbytes == len(flat) * (1 + 4 * matrix.itemsize) + 2 * (len(by_hand) + 1)
    stored = (packed.gaps, packed.values, packed.row_start_stored)
    assert packed.nbytes == sum(len(array.tobytes()) for array in stored)
    out = packed.unpack()
    assert out.dtype == matrix.dtype
    np.testing.assert_array_equal(out, matrix)


@given(matrices(), st.integers(1, 3))
def test_chunks_join_without_a_seam(matrix: Matrix, rows: int) -> None:
    whole = Block.pack(matrix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relative, "_CHUNK_WEIGHTS", rows * -(-matrix.shape[1] // 4))
        packed = Block.pack(matrix)
        np.testing.assert_array_equal(packed.unpack(), matrix)
    for name in ("gaps", "values", "row_start"):
        assert getattr(packed, name).tobytes() == getattr(whole, name).tobytes()


def test_a_distance_of_256_needs_no_filler_and_one_of_257_does() -> None:
    for blocks, gaps in ((256, [255]), (257, [255, 0])):
        matrix = np.zeros((1, 4 * blocks), np.int8)
        matrix[0, -1] = 7
        packed = Block.pack(matrix)
        assert packed.gaps.tolist() == gaps
        assert packed.values.tolist()[:-1] == [[0, 0, 0, 0]] * (len(gaps) - 1)
        np.testing.assert_array_equal(packed.unpack(), matrix)


def test_row_start_widens_at_65536_blocks() -> None:
    below = Block.pack(np.ones((1, 65535 * 4), np.int8))
    assert below.row_start_stored.dtype == np.uint16
    assert below.nbytes == 65535 * 5 + 2 * 2
    at = Block.pack(np.ones((1, 65536 * 4), np.int8))
    assert at.row_start_stored.tolist() == [0, 65536]
    assert at.nbytes == 65536 * 5 + 4 * 2


def test_negative_zero() -> None:
    matrix = np.array([[-0.0, 0, 0, 0, -0.0, 1, 0, 0]], np.float32)
    packed = Block.pack(matrix)
    assert packed.gaps.tolist() == [1]
    assert np.signbit(packed.unpack()).tolist() == [[False] * 4 + [True] + [False] * 3]


def test_transposed_weights() -> None:
    weights = (np.arange(48) % 7).astype(np.int8).reshape(6, 8).T
    np.testing.assert_array_equal(Block.pack(weights).unpack(), weights)


# --- damaged data, and the C reference


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(matrix=matrices(), wide=st.booleans())
def test_reference_c_agrees(reference: Reference, matrix: Matrix, wide: bool) -> None:
    packed = Block.pack(matrix)
    text, out = reference.block(packed, row_start=packed.row_start if wide else None)
    assert text == "The matrix was unpacked."
    np.testing.assert_array_equal(out, matrix)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(matrix=matrices(), data=st.data())
def test_damage_gives_the_same_verdict_in_c_and_numpy(
    reference: Reference, matrix: Matrix, data: st.DataObject
) -> None:
    packed = Block.pack(matrix)
    what = data.draw(st.sampled_from(["gaps", "values", "row_start", "cut", "header"]))
    if what == "gaps":
        noise = data.draw(st.binary(min_size=packed.gaps.size, max_size=packed.gaps.size))
        packed = dataclasses.replace(packed, gaps=np.frombuffer(noise, np.uint8))
    elif what == "values":
        packed = dataclasses.replace(packed, values=packed.values + packed.values.dtype.type(1))
    elif what == "row_start":
        start = packed.row_start.copy()
        at = data.draw(st.integers(0, start.size - 1))
        start[at] = data.draw(st.integers(0, 2**32 - 1) | st.integers(0, 20))
        packed = dataclasses.replace(packed, row_start=start)
        if int(start[-1]) <= 200:  # as many blocks as the list says
            packed = dataclasses.replace(
                packed,
                gaps=np.resize(np.append(packed.gaps, np.uint8(0)), start[-1]),
                values=np.resize(
                    np.append(packed.values, np.ones((1, 4), matrix.dtype)), (start[-1], 4)
                ),
            )
    elif what == "cut" and packed.blocks:
        name = data.draw(st.sampled_from(["gaps", "values"]))
        packed = dataclasses.replace(packed, **{name: getattr(packed, name)[:-1]})
    elif what == "header":
        packed = dataclasses.replace(packed, cols=data.draw(st.integers(1, 1100)))
    text, out = reference.block(packed, row_start=packed.row_start)
    try:
        expected = packed.unpack()
    except DataError:
        assert text != "The matrix was unpacked."
    else:
        assert text == "The matrix was unpacked."
        np.testing.assert_array_equal(out, expected)


def test_reference_c_checks_its_arguments(reference: Reference) -> None:
    packed = Block.pack(np.eye(3, 7, k=4, dtype=np.int8))
    replace = dataclasses.replace

    def text(case: Block, **options: Any) -> str:
        return reference.block(case, **options)[0]

    odd = replace(packed, values=packed.values.astype(np.float64))
    assert text(odd).startswith("A bit width is out of range")
    assert text(packed, out_count=20).startswith("The output is too small")
    assert text(packed, out_count=0).startswith("A required pointer is NULL")
    assert text(packed, row_start=np.zeros(4, np.uint8)).startswith("A required pointer is NULL")
    assert text(replace(packed, gaps=packed.gaps[:0])).startswith("A required pointer is NULL")
    assert text(replace(packed, values=packed.values[:0])).startswith("A required pointer is NULL")
    for start in ([0, 1, 2], [1, 1, 2, 3], [0, 2, 1, 3]):
        assert text(packed, row_start=np.array(start, np.uint16)).startswith("row_start is not")
    assert text(replace(packed, gaps=packed.gaps[:-1])).startswith("The packed stream is too short")
    assert text(replace(packed, values=packed.values[:-1])).startswith("There are fewer values")
    assert text(replace(packed, cols=4)).startswith("An entry lies beyond the last column")
    assert text(replace(packed, cols=6)).startswith("An entry lies beyond the last column")
    huge = replace(packed, rows=2**32 - 1, cols=2**32 - 1)
    assert text(huge, out_count=9).startswith("The output is too small")


@pytest.mark.parametrize(
    "row_start",
    [
        np.array([0, 1], np.uint32),
        np.array([1, 1, 2], np.uint32),
        np.array([0, 3, 2], np.uint32),
        np.array([0, 1, 2], np.int64),
    ],
)
def test_damaged_row_start(row_start: Matrix) -> None:
    packed = dataclasses.replace(Block.pack(np.eye(2, dtype=np.int8)), row_start=row_start)
    with pytest.raises(DataError, match=r"^row_start of block is not a list of 3 uint32 that begi"):
        packed.unpack()


@pytest.mark.parametrize("array", [np.zeros(1, np.uint8), np.zeros(2, np.int8)])
def test_damaged_gaps(array: Matrix) -> None:
    packed = dataclasses.replace(Block.pack(np.eye(2, dtype=np.int8)), gaps=array)
    with pytest.raises(
        DataError,
        match=rf"^The gaps of block are {array.dtype} of shape \({array.size},\); expected uint8 "
        r"of shape \(2,\)\. The data is damaged: pack the weights again\.$",
    ):
        packed.unpack()


@pytest.mark.parametrize("array", [np.zeros((1, 4), np.int8), np.zeros((2, 4), np.float64)])
def test_damaged_values(array: Matrix) -> None:
    packed = dataclasses.replace(Block.pack(np.eye(2, dtype=np.int8)), values=array)
    with pytest.raises(
        DataError,
        match=rf"^The values of block are {array.dtype} of shape \({len(array)}, 4\); expected "
        r"float32, int8 or int16 of shape \(2, 4\)\. The data is damaged",
    ):
        packed.unpack()


@pytest.mark.parametrize("row", [0, 1, 2])
def test_damaged_position(row: int) -> None:
    weights = np.zeros((3, 9), np.int8)
    weights[row, 8] = 1
    packed = dataclasses.replace(Block.pack(weights), cols=8)
    with pytest.raises(
        DataError,
        match=rf"^Row {row} of block reaches position 2; expected at most 1, for the matrix has 2 "
        r"blocks of columns\. The data is damaged",
    ):
        packed.unpack()


@pytest.mark.parametrize("value", [1, -0.0])
def test_a_weight_behind_a_short_last_block(value: float) -> None:
    packed = Block.pack(np.ones((2, 6), np.float32))
    packed.values[3, 2] = value
    with pytest.raises(
        DataError,
        match=r"^Row 1 of block holds a weight that is not zero beyond its 6 columns; expected "
        r"zeros behind a short last block\. The data is damaged",
    ):
        packed.unpack()


def test_wrong_weights() -> None:
    with pytest.raises(
        DataError, match=r"^The weights are int64; expected .* of float32, int8 or int16\. Convert"
    ):
        Block.pack(np.zeros((2, 2), np.int64))
    with pytest.raises(DataError, match=r"^The weights have shape \(4,\); expected two.*Reshape"):
        Block.pack(np.zeros(4, np.int8))
    with pytest.raises(DataError, match=r"^The weights hold NaN or infinity; expected.*Mend the"):
        Block.pack(np.array([[np.nan]], np.float32))
