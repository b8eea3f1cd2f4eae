from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tvm_compress.search.allocation import Scan, allocate, finer, monotone, recovered

Array = np.ndarray[Any, Any]


@st.composite
def tables(draw: st.DrawFn, kinds: int) -> tuple[Array, Array, Array]:
    """Damage (L, C), costs (K, L, C) and limits (K,), whole numbers, so that ties are common."""
    layers, choices = draw(st.integers(1, 4)), draw(st.integers(1, 5))

    def table(*shape: int) -> Array:
        return draw(arrays.arrays(np.int64, shape, elements=st.integers(0, 20))).astype(np.float64)

    limits = draw(arrays.arrays(np.int64, (kinds,), elements=st.integers(-2, 60)))
    return table(layers, choices), table(kinds, layers, choices), limits.astype(np.float64)


def totals(damage: Array, costs: Array, chosen: Any) -> tuple[float, Array]:
    rows = np.arange(len(damage))
    return float(damage[rows, chosen].sum()), costs[:, rows, chosen].sum(-1)


def fitting(damage: Array, costs: Array, limits: Array) -> list[float]:
    """The damage of every allocation that fits, by trying all."""
    found = []
    for chosen in product(range(damage.shape[1]), repeat=len(damage)):
        harm, used = totals(damage, costs, list(chosen))
        if (used <= np.maximum(limits, 1e-30)).all():
            found.append(harm)
    return found


def largest_step(damage: Array, costs: Array) -> float:
    """The largest drop of damage between neighbours on a layer's convex hull of (cost, damage)."""
    largest = 0.0
    for points in zip(costs, damage, strict=True):
        hull: list[tuple[float, float]] = []
        for cost, harm in sorted(zip(*points, strict=True)):
            if hull and harm >= hull[-1][1]:
                continue
            while len(hull) > 1:
                (a, x), (b, y) = hull[-2:]
                if (harm - x) * (b - a) > (y - x) * (cost - a):
                    break
                hull.pop()
            if hull and hull[-1][0] == cost:
                hull.pop()
            hull.append((cost, harm))
        drops = [x - y for (_, x), (_, y) in pairwise(hull)]
        largest = max([largest, *drops])
    return largest


@given(tables(kinds=1))
def test_one_limit_against_all_allocations(given_tables: tuple[Array, Array, Array]) -> None:
    damage, costs, limits = given_tables
    harm, used = totals(damage, costs, allocate(damage, costs, limits))
    possible = fitting(damage, costs, limits)
    if possible:
        assert used[0] <= max(limits[0], 1e-30)
        assert min(possible) <= harm <= min(possible) + largest_step(damage, costs[0]) + 1e-9
    else:
        assert used[0] == costs[0].min(1).sum()


@settings(max_examples=40)
@given(tables(kinds=2))
def test_two_limits_against_all_allocations(given_tables: tuple[Array, Array, Array]) -> None:
    damage, costs, limits = given_tables
    harm, used = totals(damage, costs, allocate(damage, costs, limits))
    possible = fitting(damage, costs, limits)
    fits = bool((used <= np.maximum(limits, 1e-30)).all())
    assert not fits or harm >= min(possible)
    # No single layer can be changed for the better.
    chosen = allocate(damage, costs, limits)
    for layer, choice in product(range(len(damage)), range(damage.shape[1])):
        other = chosen.copy()
        other[layer] = choice
        changed, cost = totals(damage, costs, other)
        assert not fits or changed >= harm or (cost > limits + 1e-9).any()


def test_limits_that_pull_apart_are_both_met() -> None:
    # Small is slow and fast is large; only one of each meets both limits.
    damage = np.array([[1.0, 1.0], [1.0, 1.0]])
    costs = np.array([[[10.0, 1.0], [9.0, 1.0]], [[1.0, 10.0], [1.0, 12.0]]])
    _, used = totals(damage, costs, allocate(damage, costs, np.array([11.0, 11.0])))
    assert used.tolist() == [10.0, 11.0]
    # A limit of nearly nothing for the one still leaves the other its due.
    damage = np.array([[0.0, 5.0, 9.0]])
    costs = np.array([[[90.0, 20.0, 1.0]], [[1.0, 2.0, 3.0]]])
    assert allocate(damage, costs, np.array([25.0, 1e9])).tolist() == [1]
    assert allocate(damage, costs, np.array([1e9, 2.5])).tolist() == [0]


def test_what_harms_nothing_is_taken_at_the_least_cost() -> None:
    damage = np.zeros((3, 3))
    costs = np.array([[[5.0, 1.0, 3.0]] * 3])
    assert allocate(damage, costs, np.array([100.0])).tolist() == [1, 1, 1]


def test_prices_of_any_size_are_found() -> None:
    damage = np.array([[0.0, 1e-12], [0.0, 1e12]])
    costs = np.array([[[8.0, 1.0], [8.0, 1.0]]])
    assert allocate(damage, costs, np.array([10.0])).tolist() == [1, 0]
    assert allocate(damage * 1e-9, costs * 1e9, np.array([10e9])).tolist() == [1, 0]


grids = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-1, 5)
)


@given(grids)
def test_monotone_is_the_least_table_that_rises(grid: Array) -> None:
    found = monotone(grid)
    for d, b in np.ndindex(*grid.shape):
        assert found[d, b] == max(0.0, grid[: d + 1, : b + 1].max())


@given(grids, st.floats(0, 1))
def test_recovery_takes_from_the_damage_of_pruning_alone(grid: Array, recovery: float) -> None:
    harm = monotone(grid)
    found = recovered(harm, recovery)
    np.testing.assert_allclose(found - found[:, :1], harm - harm[:, :1], atol=1e-12)
    np.testing.assert_allclose(found[:, 0], recovery * harm[:, 0], atol=1e-12)
    np.testing.assert_array_equal(recovered(harm, 1.0), harm)


@given(arrays.arrays(np.float64, (2, 4, 3), elements=st.floats(-9, 9)), st.integers(1, 5))
def test_finer_keeps_what_was_measured(values: Array, steps: int) -> None:
    found = finer(values, steps)
    assert found.shape == (2, 3 * steps + 1, 3)
    np.testing.assert_array_equal(found[:, ::steps], values)
    between = np.stack([np.linspace(a, b, steps + 1) for a, b in pairwise(values[0])])
    for number, part in enumerate(between):
        np.testing.assert_allclose(
            found[0, number * steps : (number + 1) * steps + 1], part, atol=1e-12
        )


@pytest.mark.parametrize("densities", [(1.0,), (1.0, 0.5), (1.0, 0.5, 0.1)])
def test_choices_are_the_grid_and_the_layer_as_it_is(densities: tuple[float, ...]) -> None:
    shape = (2, len(densities), 2)
    damage = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    costs = 100 - damage[None]
    choices = Scan(densities, (4, 2), damage, costs, np.array([[500.0, 600.0]])).choices()
    assert choices.density[-1] == 1 and choices.bits[-1] == 0
    assert choices.damage[:, -1].tolist() == [0, 0]
    assert choices.costs[0, :, -1].tolist() == [500, 600]
    assert choices.damage.shape == (2, choices.bits.size) == choices.costs.shape[1:]
    for d, density in enumerate(densities):
        for b, bits in enumerate((4, 2)):
            (at,) = np.flatnonzero((choices.density == density) & (choices.bits == bits))
            assert choices.damage[:, at].tolist() == damage[:, d, b].tolist()
            assert choices.cost(np.array([at, -1])).tolist() == [costs[0, 0, d, b] + 600]
