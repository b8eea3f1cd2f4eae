"""Rows on few levels against searches that cannot miss, and against plain rounding."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tvm_compress.narrowing import narrow_rows

Array = NDArray[Any]


def problem(seed: int, rows: int, columns: int, bias: bool = True) -> tuple[Array, Array]:
    """Rows, and Gram matrices of correlated gradients around a mean."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, columns))
    mixed = rng.standard_normal((rows, columns + 1, columns + 1))
    samples = rng.standard_normal((rows, 40, columns + 1)) @ mixed + 2.0
    if not bias:
        samples[:, :, -1] = 0.0
    return weights, np.einsum("rsc,rsd->rcd", samples, samples) / 40


def error(change: Array, shift: float, gram: Array) -> float:
    whole = np.append(change, shift)
    return float(whole @ gram @ whole)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 8), st.booleans())
@settings(max_examples=40, deadline=None)
def test_levels_fit_and_beat_plain_rounding(seed: int, columns: int, bits: int, bias: bool) -> None:
    rows, grams = problem(seed, 3, columns, bias)
    found = narrow_rows(rows, grams, bits)
    assert found.levels.min() >= -(2 ** (bits - 1))
    assert found.levels.max() < 2 ** (bits - 1)
    for row, gram, levels, step, shift in zip(
        rows, grams, found.levels, found.steps, found.shift, strict=True
    ):
        mine = error(levels * step - row, shift, gram)
        full = np.abs(row).max() / (2 ** (bits - 1) - 0.5)
        plain = np.clip(np.rint(row / full), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        change = plain * full - row
        best_shift = -(gram[-1, :-1] @ change) / gram[-1, -1] if bias else 0.0
        damping = 2e-3 * np.trace(gram) / columns * np.square(change).sum()
        assert mine <= error(change, best_shift, gram) + damping + 1e-12
        if not bias:
            assert shift == 0.0


def test_no_single_move_of_a_level_helps() -> None:
    rows, grams = problem(3, 4, 20)
    found = narrow_rows(rows, grams, 4)
    for row, gram, levels, step in zip(rows, grams, found.levels, found.steps, strict=True):
        inner = gram[:-1, :-1] - np.outer(gram[-1, :-1], gram[-1, :-1]) / gram[-1, -1]
        inner += (1e-3 * np.trace(inner) / 20 + 1e-5 * np.trace(gram) / 21) * np.eye(20)
        change = levels * step - row
        before = change @ inner @ change
        for column, move in itertools.product(range(20), (-1, 1)):
            if -8 <= levels[column] + move <= 7:
                other = change.copy()
                other[column] += move * step
                assert other @ inner @ other >= before - 1e-9


def test_near_the_best_of_all_levels() -> None:
    """With three weights of 2 bits every choice can be tried."""
    rows, grams = problem(11, 8, 3)
    found = narrow_rows(rows, grams, 2)
    ratios = []
    for row, gram, levels, step, shift in zip(
        rows, grams, found.levels, found.steps, found.shift, strict=True
    ):
        best = np.inf
        for choice in itertools.product(range(-2, 2), repeat=3):
            change = np.asarray(choice) * step - row
            best = min(best, error(change, -(gram[-1, :-1] @ change) / gram[-1, -1], gram))
        ratios.append(error(levels * step - row, shift, gram) / best)
    assert np.median(ratios) < 1.01
    assert max(ratios) < 2.0


@pytest.mark.parametrize("bits", [4, 5])
def test_a_row_of_zeros_and_one_that_nothing_reaches(bits: int) -> None:
    rows, grams = problem(5, 2, 6)
    rows[0] = 0.0
    grams[1] = 0.0
    found = narrow_rows(rows, grams, bits)
    assert not found.levels[0].any()
    assert np.isfinite(found.error).all()
    assert np.isfinite(found.shift).all()
    # Near where it was: no level is nearer, but for those that were cut off.
    away = np.abs(found.levels[1] * found.steps[1] - rows[1])
    inside = np.abs(found.levels[1]) < 2 ** (bits - 1) - 1
    assert inside.any()
    assert away[inside].max() <= found.steps[1] * 0.51


def test_faint_gradients_that_float32_has_rounded() -> None:
    """Inputs that hardly vary: what is left beside the bias is rounding, of either sign."""
    rng = np.random.default_rng(8)
    samples = (1.0 + 1e-5 * rng.standard_normal((200, 30))).astype(np.float32)
    gram = (samples.T @ samples / 200).astype(np.float64)
    rows = rng.standard_normal((2, 29))
    found = narrow_rows(rows, np.stack([gram, gram * 1e-40]), 4)
    np.testing.assert_array_equal(found.levels[1], narrow_rows(rows[1:], gram[None], 4).levels[0])
    assert found.error[1] < 1e-36
    # The bias takes up what such inputs cannot tell apart.
    change = found.levels * found.steps[:, None] - rows
    np.testing.assert_allclose(found.shift, -change.sum(axis=1), rtol=1e-3, atol=1e-3)


def test_the_better_of_two() -> None:
    rows, grams = problem(6, 5, 8)
    wide, narrow = narrow_rows(rows, grams, 6), narrow_rows(rows, grams, 4)
    best = narrow.better(wide)
    assert (best.error == np.minimum(wide.error, narrow.error)).all()
    take = wide.error < narrow.error
    assert take.all()  # more levels never lose here
    np.testing.assert_array_equal(best.levels, wide.levels)
