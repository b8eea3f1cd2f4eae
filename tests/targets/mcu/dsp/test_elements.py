"""Sums of two tensors, tables and uint8 borders: every byte, over their inputs too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.targets.mcu.dsp.machine import assemble, call
from tests.targets.mcu.dsp.test_residual import _residual, _sum
from tvm_compress.targets.mcu.dsp.elements import Flip, Sum, Table
from tvm_compress.targets.mcu.dsp.residual import Addition, Residual, WeightedSum

Array = NDArray[Any]
_SIZES = (1, 2, 3, 4, 5, 7, 15, 16, 19, 64, 65, 130)


def _pairs() -> tuple[Array, Array]:
    grid = np.arange(-128, 128).astype(np.int8)
    x, other = np.meshgrid(grid, grid, indexing="ij")
    return x.ravel(), other.ravel()


def _right(addition: Addition, x: Array, other: Array) -> Array:
    if isinstance(addition, Residual):
        return _sum(addition, x, other)
    a = addition
    total = x.astype(np.int64) * a.own + other.astype(np.int64) * a.other + a.constant
    return np.clip(total >> a.shift, a.low, a.high).astype(np.int8)


_ADDITIONS: dict[str, Addition] = {
    "twice": _residual(np.random.default_rng(1)),
    "twice, clamped": _residual(np.random.default_rng(2), low=-33, high=90),
    "once": WeightedSum(700_123, -512_000, 3 << 19, 20, -128, 127),
    "once, clamped": WeightedSum(-3, 5, 1, 1, -100, 12),
}


@pytest.mark.parametrize("name", _ADDITIONS)
def test_sums_of_all_pairs_of_bytes(name: str) -> None:
    x, other = _pairs()
    addition = _ADDITIONS[name]
    kernel = Sum(addition, x.size)
    right = _right(addition, x, other)
    assert len(np.unique(right)) > 50
    code = assemble({"f": kernel.function()})["f"]
    scratch = np.random.default_rng(0).integers(0, 256, kernel.scratch_bytes).astype(np.uint8)
    called = call(code, [x, other, np.zeros(x.size, np.int8), scratch], [2, 3])
    np.testing.assert_array_equal(called.buffers[2], right)


@pytest.mark.parametrize("name", _ADDITIONS)
def test_sums_of_any_size_and_over_an_input(name: str) -> None:
    chance = np.random.default_rng(3)
    addition = _ADDITIONS[name]
    functions = {size: Sum(addition, size).function() for size in _SIZES}
    codes = assemble({f"f{size}": f for size, f in functions.items()})
    for size, function in functions.items():
        x, other = (chance.integers(-128, 128, size).astype(np.int8) for _ in range(2))
        scratch = np.zeros(Sum(addition, size).scratch_bytes, np.uint8)
        right = _right(addition, x, other)
        assert function.in_place == (0, 1)
        for under in (None, 0, 1):
            over = {} if under is None else {2: (under, 0)}
            written = [2, 3] if under is None else [2, 3, under]
            called = call(
                codes[f"f{size}"],
                [x, other, np.zeros(size, np.int8), scratch],
                written,
                offset=size % 4,
                over=over,
            )
            np.testing.assert_array_equal(called.buffers[2], right)
            if "clamped" not in name:
                assert called.instructions == function.instructions


def test_tables() -> None:
    chance = np.random.default_rng(4)
    entries = chance.permutation(np.arange(-128, 128))
    sizes = (*_SIZES, 256)
    functions = {size: Table(entries, size).function() for size in sizes}
    codes = assemble({f"f{size}": f for size, f in functions.items()})
    for size, function in functions.items():
        x = (np.arange(size) - 128 if size == 256 else chance.integers(-128, 128, size)).astype(
            np.int8
        )
        right = entries[x.astype(np.int64) + 128].astype(np.int8)
        (table,) = Table(entries, size).arrays
        assert table.dtype == np.int8 and function.in_place == (0,)
        for over in ({}, {2: (0, 0)}):
            written = [0, 2] if over else [2]
            buffers = [x, table, np.zeros(size, np.int8), np.zeros(4, np.uint8)]
            called = call(codes[f"f{size}"], buffers, written, offset=3, over=over)
            np.testing.assert_array_equal(called.buffers[2], right)
            assert called.instructions == function.instructions


def test_flips() -> None:
    chance = np.random.default_rng(5)
    functions = {size: Flip(size).function() for size in (*_SIZES, 256)}
    codes = assemble({f"f{size}": f for size, f in functions.items()})
    for size, function in functions.items():
        x = (np.arange(256) if size == 256 else chance.integers(0, 256, size)).astype(np.uint8)
        down = (x.astype(np.int64) - 128).astype(np.int8)
        assert function.in_place == (0,)
        for given, right in ((x, down), (down, x)):
            for over in ({}, {1: (0, 0)}):
                written = [0, 1] if over else [1]
                buffers = [given, np.zeros(size, right.dtype), np.zeros(4, np.uint8)]
                called = call(codes[f"f{size}"], buffers, written, offset=1, over=over)
                np.testing.assert_array_equal(called.buffers[1], right)
                assert called.instructions == function.instructions
