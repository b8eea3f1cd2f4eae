"""Codes by rate and distortion, against counting by hand, brute force and the codec itself."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tvm_compress import clustering, codec
from tvm_compress import rate_distortion as rate
from tvm_compress import reconstruction as solve

Array = NDArray[Any]
ONE = np.zeros((1, 1), np.int64)
SEEDS = st.integers(0, 10**6)


def some_codes(seed: int, rows: int, columns: int, levels: int) -> Array:
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.ones(levels))
    return rng.choice(levels, (rows, columns), p=chances)


def free(codes: Array) -> Array:
    return np.zeros(codes.shape, bool)


@given(SEEDS, st.integers(1, 6), st.integers(1, 8), st.integers(2, 6))
def test_lengths_of_codes_are_their_entropy(seed: int, rows: int, columns: int, k: int) -> None:
    codes = some_codes(seed, rows, columns, k)
    lengths = rate.code_lengths(codes, k)
    counted = Counter(int(c) for c in codes.ravel() if c)
    for code in range(1, k):
        if code in counted:
            expected = -log2(counted[code] / sum(counted.values()))
            assert lengths.code[code] == pytest.approx(expected, abs=1e-9)
        else:
            assert lengths.code[code] == np.inf
    # Whether a code is 0 is one event or the other.
    np.testing.assert_allclose(2.0**-lengths.zero + 2.0**-lengths.other, 1, rtol=1e-9)
    by_hand = 0.0
    for (row, column), code in np.ndenumerate(codes):
        by_hand += lengths.other[row, column] if code else lengths.zero[row, column]
        by_hand += lengths.code[code]
    assert lengths.bits(codes) == pytest.approx(by_hand)


def test_a_zero_is_cheap_where_row_and_column_are_empty() -> None:
    codes = np.ones((20, 20), np.int64)
    codes[:10] = 0
    codes[:, :10] = 0
    zero = rate.code_lengths(codes, 2).zero
    assert zero[0, 0] < zero[0, 15] < zero[15, 15]
    assert zero[0, 0] < zero[15, 0] < zero[15, 15]


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_bits_are_near_what_the_archive_spends(density: float) -> None:
    rng = np.random.default_rng(0)
    weight = rng.laplace(size=(128, 256)) * rng.gamma(4, size=(128, 1)) / 4
    weight[rng.random(weight.shape) >= density * rng.gamma(4, size=(1, 256)) / 4] = 0
    codes, centroids = clustering.share(weight.astype(np.float32), 4)
    spent = 8 * codec.coded_bytes(codes, centroids)
    said = rate.code_lengths(codes, 16).bits(codes)
    assert 0.93 * spent < said < 1.07 * spent


@given(SEEDS, st.floats(1e-3, 1.0), st.booleans())
@settings(max_examples=60)
def test_choices_are_the_best_of_all(seed: int, lam: float, parts: bool) -> None:
    rng = np.random.default_rng(seed)
    # Up to 7 centroids all are within reach.
    levels, shape = int(rng.integers(2, 6)), (3, 4)
    table = np.sort(rng.normal(size=(2 if parts else 1, levels)), axis=1)
    table[:, 0] = 0
    table[:, 1:].sort(axis=1)
    part = np.array([[0], [1], [1]]) if parts else ONE
    weight, importance = rng.normal(size=shape), rng.gamma(2, size=shape)
    lengths = rate.code_lengths(some_codes(seed, *shape, levels), levels)
    held = rng.random(shape) < 0.2
    shared = rate.Shared(np.zeros(shape, np.int64), table, part)
    codes, cost, second = rate.choose(weight, importance, shared, lengths, lam, held)
    for place in np.ndindex(*shape):
        mine = table[np.broadcast_to(part, shape)[place]]
        costs = sorted(
            importance[place] * (weight[place] - mine[k]) ** 2
            + lam * (lengths.other[place] + lengths.code[k] if k else lengths.zero[place])
            for k in range(levels)
            if not (held[place] and k)
        )
        costs += [np.inf]
        assert cost[place] == pytest.approx(costs[0])
        assert second[place] == pytest.approx(costs[1])
        assert not (held[place] and codes[place])
        value = importance[place] * (weight[place] - mine[codes[place]]) ** 2
        bits = lengths.other if codes[place] else lengths.zero
        assert cost[place] == pytest.approx(
            value + lam * (bits[place] + lengths.code[codes[place]])
        )


@given(SEEDS, st.floats(0.01, 3.0))
def test_a_grid_is_rounding(seed: int, step: float) -> None:
    weight = np.random.default_rng(seed).normal(size=(3, 5))
    made = rate.grid(weight, step)
    step = max(step, np.abs(weight).max() / 127)
    np.testing.assert_allclose(made.values(), np.rint(weight / step) * step, atol=1e-12)
    assert made.table.shape[1] <= 256 and made.table[0, 0] == 0
    assert (np.diff(made.table[0, 1:]) > 0).all()


def test_a_grid_of_what_is_all_zero_or_on_one_side() -> None:
    assert not rate.grid(np.zeros((2, 2)), 0.0).values().any()
    for sign in (1, -1):
        weight = sign * np.array([[3.0, 4.1, 5.2]])
        np.testing.assert_allclose(rate.grid(weight, 1.0).values(), sign * np.array([[3, 4, 5]]))


@given(SEEDS, st.booleans())
def test_ascending_changes_no_value(seed: int, parts: bool) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(2 if parts else 1, 5))
    codes = rng.integers(0, 5, (4, 3))
    part = np.array([[0], [1], [0], [1]]) if parts else ONE
    shared, old = rate.ascending(codes, table, part)
    np.testing.assert_array_equal(shared.values(), table[part, codes])
    assert (np.diff(shared.table[:, 1:], axis=1) >= 0).all()
    np.testing.assert_array_equal(old[part, shared.codes], codes)
    np.testing.assert_array_equal(shared.codes == 0, codes == 0)


def total(weight: Array, shared: rate.Shared, lam: float) -> float:
    """The cost by the definition, with the lengths of the codes themselves."""
    bits = rate.code_lengths(shared.codes, shared.table.shape[1]).bits(shared.codes)
    entries = np.unique(shared.codes).size * rate.CENTROID_BITS
    return float(np.square(shared.values() - weight).sum()) + lam * (bits + entries)


@pytest.mark.parametrize("lam", [0.003, 0.03, 0.3])
def test_turns_lower_the_cost(lam: float) -> None:
    weight = np.random.default_rng(1).laplace(size=(40, 60))
    start = rate.grid(weight, 0.2)
    made, _ = rate.reduce_rate(weight, np.ones(()), start, lam, free(weight))
    assert total(weight, made, lam) < total(weight, start, lam)
    # What is found is nearly settled: one more call changes next to nothing.
    again, _ = rate.reduce_rate(weight, np.ones(()), made, lam, free(weight))
    assert total(weight, again, lam) > 0.99 * total(weight, made, lam)


def test_centroids_that_are_not_worth_their_bits_go() -> None:
    rng = np.random.default_rng(0)
    weight = rng.choice([-1.0, 1.0], (30, 30)) + rng.normal(0, 0.01, (30, 30))
    start = rate.grid(weight, 0.01)
    made, _ = rate.reduce_rate(weight, np.ones(()), start, 1e-2, free(weight))
    assert np.unique(made.codes).size == 2
    np.testing.assert_allclose(np.sort(np.unique(made.values())), [-1, 1], atol=0.01)


def test_fixed_centroids_stay() -> None:
    weight = np.random.default_rng(1).laplace(size=(10, 20))
    start = rate.grid(weight, 0.3)
    made, _ = rate.reduce_rate(weight, np.ones(()), start, 0.05, free(weight), fixed=True)
    np.testing.assert_array_equal(made.table, start.table)
    assert (made.codes != start.codes).any()


@given(SEEDS)
@settings(max_examples=20)
def test_held_weights_stay_zero(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(6, 10))
    held = rng.random(weight.shape) < 0.5
    made, _ = rate.quantise(weight, np.ones(()), 0.01, held)
    assert not made.codes[held].any()
    grams = np.eye(10)[None] + 0.3
    codes = rate.compensate(weight[None], grams, np.ones((1, 6)), made, 0.01, held).codes
    assert not codes[held].any() and codes.any()


@pytest.mark.parametrize("distribution", ["normal", "laplace"])
def test_beats_least_squares_at_equal_bytes(distribution: str) -> None:
    """At high rate a grid with entropy coding gains up to 1.53 dB on centroids of least error."""
    weight = getattr(np.random.default_rng(0), distribution)(size=(60, 120))
    codes, centroids = clustering.share(weight.astype(np.float32), 4, keep_zeros=False)
    by_share = codec.coded_bytes(codes, centroids)
    error = float(np.square(centroids[codes] - weight).sum())
    low, high = 3e-3, 3e-2  # the size falls as lam grows
    for _ in range(5):
        lam = (low * high) ** 0.5
        made, _ = rate.quantise(weight, np.ones(()), lam, free(weight))
        size = codec.coded_bytes(made.codes.astype(np.uint8), made.table[0].astype(np.float32))
        low, high = (lam, high) if size > by_share else (low, lam)
    made, _ = rate.quantise(weight, np.ones(()), high, free(weight))
    assert float(np.square(made.values() - weight).sum()) < 0.94 * error


def correlated(seed: int, rows: int, columns: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, columns)) @ rng.normal(size=(columns, columns))
    return rng.normal(size=(rows, columns)), inputs.T @ inputs / 200 + 0.1 * np.eye(columns)


def test_compensated_codes_keep_outputs() -> None:
    errors = np.zeros(2)
    for seed in range(6):
        weight, gram = correlated(seed, 12, 10)
        freedom = 1 / np.diag(solve.upper_factor(gram)) ** 2
        plain, _ = rate.quantise(weight, freedom, 0.01, free(weight))
        scale = np.ones((1, 12))
        made = rate.compensate(weight[None], gram[None], scale, plain, 0.01, free(weight))
        errors += [solve.output_error(m.values() - weight, gram) for m in (made, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_columns_without_correlation_are_chosen_alone() -> None:
    rng = np.random.default_rng(3)
    weight, diagonal = rng.normal(size=(2, 3, 5)), rng.gamma(3, size=5)
    scale = rng.gamma(3, size=(2, 3))
    grams = np.stack([np.diag(diagonal)] * 2)
    flat = weight.reshape(6, 5)
    shared = rate.grid(flat, 0.4)
    made = rate.compensate(weight, grams, scale, shared, 0.05, free(flat))
    lengths = rate.code_lengths(shared.codes, shared.table.shape[1])
    importance = scale.reshape(6, 1) * diagonal
    expected, _, _ = rate.choose(flat, importance, shared, lengths, 0.05, free(flat))
    np.testing.assert_array_equal(made.codes, expected)


def test_codes_are_near_the_best_of_all() -> None:
    """Against all pairs of codes of each row; the bits cost next to nothing."""
    weight, _ = correlated(0, 60, 2)
    gram = np.array([[1.0, 0.9], [0.9, 1.0]])
    shared = rate.grid(weight, 0.9)
    table = shared.table[0]

    def errors(codes: Array) -> Array:
        change = table[codes] - weight[:, None]
        return np.asarray(np.einsum("rnc,cd,rnd->rn", change, gram, change))

    pairs = np.array(list(product(range(len(table)), repeat=2)))
    best = errors(np.broadcast_to(pairs, (60, *pairs.shape))).min(1).sum()
    scale = np.ones((1, 60))
    made = rate.compensate(weight[None], gram[None], scale, shared, 1e-9, free(weight))
    assert best <= errors(made.codes[:, None]).sum() < 1.3 * best
    assert errors(shared.codes[:, None]).sum() > 1.5 * best
