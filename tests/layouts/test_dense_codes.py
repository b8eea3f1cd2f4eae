from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tvm_compress.errors import DataError, OptionError
from tvm_compress.layouts import DenseCodes

if TYPE_CHECKING:
    from tests.layouts.conftest import Reference

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 40))


@st.composite
def coded(draw: st.DrawFn) -> tuple[NDArray[np.uint8], int]:
    bits = draw(st.integers(1, 8))
    codes = draw(hnp.arrays(np.uint8, draw(SHAPES), elements=st.integers(0, 2**bits - 1)))
    return codes, bits


def bytes_by_hand(codes: NDArray[np.uint8], bits: int) -> list[list[int]]:
    """The layout from its words: pad to 8 codes, eight codes fill `bits` bytes."""
    table = []
    for row in codes.tolist():
        row += [0] * (-len(row) % 8)
        line: list[int] = []
        for begin in range(0, len(row), 8):
            text = "".join(f"{code:0{bits}b}" for code in reversed(row[begin : begin + 8]))
            line += [int(text[len(text) - 8 * k - 8 : len(text) - 8 * k], 2) for k in range(bits)]
        table.append(line)
    return table


@given(coded())
def test_round_trip_and_bytes(case: tuple[NDArray[np.uint8], int]) -> None:
    codes, bits = case
    packed = DenseCodes.pack(codes, bits)
    assert packed.data.tolist() == bytes_by_hand(codes, bits)
    assert packed.nbytes == len(packed.data.tobytes())
    assert packed.nbytes == codes.shape[0] * -(-codes.shape[1] // 8) * bits
    out = packed.unpack()
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, codes)


def test_transposed_codes() -> None:
    codes = np.arange(48, dtype=np.uint8).reshape(6, 8).T
    np.testing.assert_array_equal(DenseCodes.pack(codes, 6).unpack(), codes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(case=coded())
def test_reference_c_agrees(reference: Reference, case: tuple[NDArray[np.uint8], int]) -> None:
    text, out = reference.dense(DenseCodes.pack(*case))
    assert text == "The matrix was unpacked."
    np.testing.assert_array_equal(out, case[0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(case=coded(), data=st.data())
def test_reference_c_refuses_a_cut_stream(
    reference: Reference, case: tuple[NDArray[np.uint8], int], data: st.DataObject
) -> None:
    packed = DenseCodes.pack(*case)
    keep = data.draw(st.integers(1, packed.data.size)) - 1
    text, _ = reference.dense(dataclasses.replace(packed, data=packed.data.reshape(-1)[:keep]))
    # The harness passes NULL for no bytes at all.
    assert text.startswith("The packed stream is too short" if keep else "A required pointer is")


def test_reference_c_checks_its_arguments(reference: Reference) -> None:
    packed = DenseCodes.pack(np.ones((2, 3), np.uint8), 1)
    for bits in (0, 9, 255):
        assert reference.dense(dataclasses.replace(packed, bits=bits))[0].startswith("A bit width")
    assert reference.dense(packed, out_count=5)[0].startswith("The output is too small")
    assert reference.dense(packed, out_count=0)[0].startswith("A required pointer is NULL")
    huge = dataclasses.replace(packed, rows=2**32 - 1, cols=2**32 - 1)
    assert reference.dense(huge, out_count=6)[0].startswith("The output is too small")


@pytest.mark.parametrize("bits", [0, 9, 1.0])
def test_bits_out_of_range(bits: object) -> None:
    message = rf"^bits is {bits}; expected a whole number from 1 to 8\. Choose"
    with pytest.raises(OptionError, match=message):
        DenseCodes.pack(np.zeros((1, 1), np.uint8), bits)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=message):
        DenseCodes(1, 1, bits, np.zeros((1, 1), np.uint8)).unpack()  # type: ignore[arg-type]


@pytest.mark.parametrize(("codes", "found"), [(np.zeros((2, 2), np.int8), "int8"), ([[1]], "list")])
def test_wrong_dtype(codes: object, found: str) -> None:
    with pytest.raises(
        DataError, match=rf"^The codes are {found}; expected a numpy array of uint8\. Convert them"
    ):
        DenseCodes.pack(codes, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), (0, 3), (3, 0)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"^The codes have shape \(.*expected two dim.*Reshape"):
        DenseCodes.pack(np.zeros(shape, np.uint8), 4)


def test_too_many_codes() -> None:
    # A broadcast view takes no memory.
    codes = np.broadcast_to(np.zeros(1, np.uint8), (2**16, 2**16))
    with pytest.raises(DataError, match=r"have 4294967296 elements; expected fewer than.*Split"):
        DenseCodes.pack(codes, 4)


def test_code_too_large() -> None:
    with pytest.raises(
        DataError, match=r"^The code at row 1, column 0 is 4; expected at most 3, .*2 bits\. Pack"
    ):
        DenseCodes.pack(np.array([[0, 3], [4, 0]], np.uint8), 2)


@pytest.mark.parametrize(
    "data", [np.zeros((2, 3), np.uint8), np.zeros((2, 4), np.int8), np.zeros(8, np.uint8)]
)
def test_damaged_data(data: NDArray) -> None:
    with pytest.raises(
        DataError,
        match=r"^The packed data of dense_codes is .*expected uint8 of shape \(2, 4\) for 2 "
        r"rows of 5 codes of 4 bits\. The data is damaged",
    ):
        DenseCodes(2, 5, 4, data).unpack()
