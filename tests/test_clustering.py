from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import kmeans1d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tvm_compress import clustering
from tvm_compress.clustering import (
    METHODS,
    Method,
    kmeans_1d,
    share,
    share_integers,
    squared_error,
)
from tvm_compress.errors import DataError, InputError, OptionError

F32 = NDArray[np.float32]

# Figure 3 of Deep Compression (arXiv 1510.00149).
PAPER = np.array(
    [
        [2.09, -0.98, 1.48, 0.09],
        [0.05, -0.14, -1.08, 2.12],
        [-0.91, 1.92, 0, -1.03],
        [1.87, 0, 1.53, 1.49],
    ],
    np.float32,
)
PAPER_CODES = [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]

# A coarse grid makes ties and repeated values common; its sums are exact in float64.
grid_values = hnp.arrays(np.float32, st.integers(1, 40), elements=st.integers(-40, 40)).map(
    lambda a: (a / 8).astype(np.float32)
)
any_values = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    elements=st.one_of(st.sampled_from([0.0, -0.0, 1.0]), st.floats(-1e3, 1e3, width=32)),
)


def partition_cost(values: F32, assignment: NDArray[Any]) -> float:
    """Sum of squared distances from the float64 means of the clusters."""
    x, index = values.astype(np.float64).ravel(), np.asarray(assignment).ravel()
    return sum(float(((x[index == i] - x[index == i].mean()) ** 2).sum()) for i in np.unique(index))


def oracle(values: F32, k: int) -> NDArray[np.intp]:
    """The best assignment by an independent implementation."""
    result = kmeans1d.cluster(values.ravel(), k)
    return np.array(result.clusters)


def optimum(values: F32, k: int) -> float:
    """The least cost by an independent implementation."""
    return partition_cost(values, oracle(values, k))


def distribution(name: str, size: int = 100_000) -> F32:
    rng = np.random.default_rng(7)
    made: dict[str, Callable[[], NDArray[Any]]] = {
        "normal": lambda: 0.05 * rng.standard_normal(size),
        "heavy tails": lambda: 0.05 * rng.standard_t(3, size),
        "lognormal": lambda: rng.lognormal(0, 2, size),
        "far from zero, one outlier": lambda: np.append(1 + 0.01 * rng.standard_normal(size), -1),
        "uniform": lambda: rng.uniform(1, 2, size),
        "atoms": lambda: np.append(
            rng.choice([-1.0, 0.25, 0.2500001, 3.0], size // 2), rng.standard_normal(size // 2)
        ),
        "two scales": lambda: np.append(
            1e-6 * rng.standard_normal(size // 2), 1e4 * rng.standard_normal(size // 2)
        ),
    }
    return made[name]().astype(np.float32)


DISTRIBUTIONS = (
    "normal",
    "heavy tails",
    "lognormal",
    "far from zero, one outlier",
    "uniform",
    "atoms",
    "two scales",
)


# The optimum


def test_the_example_of_the_paper() -> None:
    assignment, centroids = kmeans_1d(PAPER, 4)
    np.testing.assert_allclose(centroids, [-1.00, 0.00, 1.50, 2.00], atol=1e-6)
    assert assignment.tolist() == PAPER_CODES


def test_the_example_of_the_paper_with_zeros_apart() -> None:
    codes, centroids = share(PAPER, 2)
    # Three free clusters for the 14 non-zero weights; the best cuts are those of {-1, 0, 2 or 1.5}.
    low, near, high = [-0.98, -1.08, -0.91, -1.03], [0.09, 0.05, -0.14], [2.09, 1.48, 2.12, 1.92]
    high += [1.87, 1.53, 1.49]
    expected = [0.0, *(sum(part) / len(part) for part in (low, near, high))]
    np.testing.assert_allclose(centroids, expected, atol=1e-6)
    assert codes.tolist() == [[3, 1, 3, 2], [2, 2, 1, 3], [1, 3, 0, 1], [3, 0, 3, 3]]


@settings(max_examples=300)
@given(grid_values, st.integers(1, 12))
def test_optimal_costs_what_the_oracle_costs(values: F32, k: int) -> None:
    assignment, centroids = kmeans_1d(values, k)
    assert centroids.size == min(k, np.unique(values).size)
    assert partition_cost(values, assignment) == pytest.approx(optimum(values, k), 1e-9, 1e-12)


@pytest.mark.parametrize("k", [1, 2, 15, 16, 256])
@pytest.mark.parametrize("name", ["normal", "heavy tails", "lognormal", "atoms"])
def test_optimal_is_exact_for_thousands_of_values(name: str, k: int) -> None:
    values = distribution(name, 3000)
    assignment, centroids = kmeans_1d(values, k)
    assert centroids.shape == (k,)
    assert partition_cost(values, assignment) == pytest.approx(optimum(values, k), 1e-9)


@given(
    hnp.arrays(np.float32, st.integers(1, 8), elements=st.floats(-100, 100, width=32)),
    st.integers(1, 4),
)
def test_optimal_is_the_best_of_all_partitions(values: F32, k: int) -> None:
    exact = sorted(Fraction(float(v)) for v in values)

    def cost(part: list[Fraction]) -> Fraction:
        total = sum(part, Fraction(0))
        return sum((v * v for v in part), Fraction(0)) - total**2 / max(len(part), 1)

    best = min(
        sum(cost(exact[a:b]) for a, b in itertools.pairwise((0, *cuts, len(exact))))
        for cuts in itertools.combinations_with_replacement(range(len(exact) + 1), k - 1)
    )
    assignment, _ = kmeans_1d(values, k)
    found = sum(
        cost([Fraction(float(v)) for v in values[assignment == i]]) for i in np.unique(assignment)
    )
    # Float64 sums tell two partitions apart down to rounding at the largest square.
    assert best <= found <= best * (1 + Fraction(1, 10**9)) + Fraction(1, 10**9)


def test_outliers_cost_no_digits_elsewhere() -> None:
    bulk = distribution("normal", 500)
    values = np.concatenate([[-1e18], bulk, [1e18, 3e18]]).astype(np.float32)
    assignment, centroids = kmeans_1d(values, 8)
    alone, _ = kmeans_1d(bulk, 5)
    np.testing.assert_array_equal(assignment[1:-2], alone + 1)
    np.testing.assert_array_equal(centroids[[0, 6, 7]], values[[0, -2, -1]])


@pytest.mark.parametrize("k", [2, 15, 64])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("binned", [False, True], ids=["sorted", "binned"])
def test_large_tensors_come_within_a_thousandth(
    name: str, k: int, binned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both roads of large tensors at a size that the oracle takes, with coarser bins in proportion.
    monkeypatch.setattr(clustering, "_EXACT_POINTS", 1000)
    monkeypatch.setattr(clustering, "_GROUPS", 1000)
    if binned:
        monkeypatch.setattr(clustering, "_SORTED_SIZE", 1000)
    values = distribution(name, 20_000)
    assignment, centroids = kmeans_1d(values, k)
    best = optimum(values, k)
    assert best * (1 - 1e-9) <= partition_cost(values, assignment) <= best * 1.001
    assert squared_error(values, assignment, centroids) <= best * 1.001


def test_a_hundred_thousand_weights_come_within_a_thousandth() -> None:
    values = distribution("heavy tails")
    assert np.unique(values).size > clustering._EXACT_POINTS
    assignment, _ = kmeans_1d(values, 16)
    assert partition_cost(values, assignment) <= optimum(values, 16) * 1.001


def test_a_million_pruned_weights_come_within_a_thousandth() -> None:
    rng = np.random.default_rng(3)
    weights = np.zeros((1200, 1000), np.float32)
    assert weights.size > clustering._SORTED_SIZE
    kept = rng.random(weights.shape) < 0.1
    weights[kept] = rng.standard_t(4, int(kept.sum()))
    codes, _ = share(weights, 4)
    np.testing.assert_array_equal(codes != 0, kept)
    assert partition_cost(weights[kept], codes[kept]) <= optimum(weights[kept], 15) * 1.001


@pytest.mark.parametrize("k", [4, 15, 64])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_stated_bound_holds_before_any_lloyd_step(name: str, k: int) -> None:
    values = distribution(name, 20_000)
    points = clustering._summarize(values, skip_zeros=False)
    starts = np.append(clustering._group(points, 500), points.values.size)
    prefix = clustering._Prefix.of(points)
    grouped = clustering._Prefix(
        prefix.origin, prefix.count[starts], prefix.sum[starts], prefix.square[starts]
    )
    cuts = starts[clustering._best_ranges(grouped, k)]
    assignment = np.searchsorted(points.values[cuts[1:-1]], values, side="right")

    clusters = oracle(values, k)
    means = np.array([values[clusters == i].astype(np.float64).mean() for i in range(k)])
    bound = 0.0
    for left, right in itertools.pairwise(means):
        cut = np.searchsorted(points.values, (left + right) / 2, side="right")
        group = np.searchsorted(starts, cut, side="right") - 1
        first, stop = starts[group], starts[group + 1]
        if cut > first:
            count = points.counts[first:stop].sum()
            width = points.values[stop - 1] - points.values[first]
            bound += 0.5 * count * width * (right - left)
    best = partition_cost(values, clusters)
    cost = partition_cost(values, assignment)
    assert best * (1 - 1e-9) <= cost <= (best + bound) * (1 + 1e-9)


# Lloyd's iteration and its starts


@given(grid_values, st.lists(st.integers(-60, 60), min_size=1, max_size=9), st.integers(1, 6))
def test_a_lloyd_step_never_raises_the_cost(values: F32, start: list[int], steps: int) -> None:
    points = clustering._summarize(values, skip_zeros=False)
    prefix = clustering._Prefix.of(points)
    centroids = np.sort(np.array(start) / 8.0)

    def cost(centroids: NDArray[np.float64]) -> float:
        return float((np.abs(values[:, None] - centroids).min(axis=1) ** 2).sum())

    before = cost(centroids)
    for _ in range(steps):
        centroids = clustering._lloyd_step(prefix, clustering._cuts(points, centroids), centroids)
        assert np.all(np.diff(centroids) >= 0)
        after = cost(centroids)
        assert after <= before * (1 + 1e-12) + 1e-12
        before = after


@pytest.mark.parametrize("method", METHODS)
def test_each_method_ends_where_lloyd_stands_still(method: Method) -> None:
    values = distribution("heavy tails", 5000)
    assignment, centroids = kmeans_1d(values, 12, method=method)
    for i in np.unique(assignment):
        mean = values[assignment == i].astype(np.float64).mean()
        assert centroids[i] == pytest.approx(mean, rel=1e-6)
    assert np.unique(assignment).size > 4


@pytest.mark.parametrize("method", METHODS)
def test_binned_tensors_end_nearly_where_lloyd_stands_still(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clustering, "_SORTED_SIZE", 1000)
    values = distribution("normal", 50_000)
    assignment, centroids = kmeans_1d(values, 12, method=method)
    for i in range(12):
        mean = values[assignment == i].astype(np.float64).mean()
        assert centroids[i] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_refining_on_the_values_lowers_the_cost(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clustering, "_SORTED_SIZE", 1000)
    monkeypatch.setattr(clustering, "_FINE_BINS", 50)
    values = distribution("uniform", 50_000)
    as_delivered = squared_error(values, *kmeans_1d(values, 12, method=method))
    costs = []
    for steps in (0, 1, 2):
        monkeypatch.setattr(clustering, "_REFINING_STEPS", steps)
        costs.append(squared_error(values, *kmeans_1d(values, 12, method=method)))
    assert costs[0] > costs[1] > costs[2] == as_delivered


def test_a_point_half_way_is_in_the_lower_range() -> None:
    points = clustering._summarize(np.arange(5, dtype=np.float32), skip_zeros=False)
    assert clustering._cuts(points, np.array([0.0, 4.0])).tolist() == [0, 3, 5]


def test_a_refining_step_is_a_lloyd_step_on_the_values() -> None:
    values = np.array([0, -4, -2, 1, 0, 3, 8], np.float32)
    start = np.array([-3.0, 1.5, 6.0, 100.0])
    kept = clustering._refine(values, start, skip_zeros=False)
    np.testing.assert_allclose(kept, [-3.0, 1.0, 8.0, 100.0])
    skipped = clustering._refine(values, start, skip_zeros=True)
    np.testing.assert_allclose(skipped, [-3.0, 2.0, 8.0, 100.0])


def test_linear_starts_from_equal_spacing_and_keeps_an_empty_cluster() -> None:
    values = np.array([0, 1, 2, 10], np.float32)
    assignment, centroids = kmeans_1d(values, 3, method="linear")
    # Start 0, 5, 10: nothing is nearest to 5.
    assert centroids.tolist() == [1, 5, 10]
    assert assignment.tolist() == [0, 0, 0, 2]


def test_density_starts_from_quantiles() -> None:
    values = np.array([0, 1, 2, 10], np.float32)
    assignment, centroids = kmeans_1d(values, 3, method="density")
    # Start 0, 1, 10: the values at 1/6, 1/2 and 5/6 of the four.
    assert centroids.tolist() == [0, 1.5, 10]
    assert assignment.tolist() == [0, 1, 1, 2]


def test_density_takes_the_middles_of_equal_shares() -> None:
    points = clustering._summarize(np.arange(10, dtype=np.float32), skip_zeros=False)
    assert clustering._start(points, 2, "density", 0).tolist() == [2, 7]
    assert clustering._start(points, 3, "density", 0).tolist() == [1, 4, 8]


def test_random_starts_from_values_by_their_frequency() -> None:
    points = clustering._summarize(
        np.repeat(np.array([1, 2, 3], np.float32), [1, 1, 98]), skip_zeros=False
    )
    starts = [clustering._start(points, 1, "random", seed)[0] for seed in range(200)]
    assert set(starts) <= {1, 2, 3}
    assert 180 < starts.count(3.0) < 200
    pair = clustering._start(points, 2, "random", 0)
    assert pair[0] < pair[1]


def test_random_is_settled_by_its_seed() -> None:
    values = distribution("heavy tails", 2000)
    results = [kmeans_1d(values, 9, method="random", seed=seed)[1] for seed in (1, 1, 2, 3, 4)]
    np.testing.assert_array_equal(results[0], results[1])
    assert any(not np.array_equal(results[0], other) for other in results[2:])


@pytest.mark.parametrize("method", ["linear", "density", "random"])
def test_optimal_costs_no_more_than_any_start(method: Method) -> None:
    values = distribution("heavy tails", 5000)
    best = squared_error(values, *kmeans_1d(values, 8))
    assert best <= squared_error(values, *kmeans_1d(values, 8, method=method)) * (1 + 1e-9)


# Sharing


def test_share_by_hand() -> None:
    weights = np.array([[-0.0, 4, 0], [4.5, -1, 0]], np.float32)
    codes, centroids = share(weights, 2)
    assert codes.dtype == np.uint8
    assert centroids.dtype == np.float32
    assert codes.tolist() == [[0, 2, 0], [3, 1, 0]]
    assert centroids.tolist() == [0, -1, 4, 4.5]


def test_one_bit_has_one_free_centroid() -> None:
    codes, centroids = share(np.array([0, 1, 3, 0], np.float32), 1)
    assert codes.tolist() == [0, 1, 1, 0]
    assert centroids.tolist() == [0, 2]


@pytest.mark.parametrize("method", METHODS)
def test_few_values_are_kept_and_the_rest_is_padded(method: Method) -> None:
    codes, centroids = share(np.array([3, 0, -7, 3], np.float32), 3, method=method)
    assert codes.tolist() == [2, 0, 1, 2]
    assert centroids.tolist() == [0, -7, 3, 0, 0, 0, 0, 0]


@settings(max_examples=300)
@given(any_values, st.integers(1, 8), st.sampled_from(METHODS))
def test_share_keeps_its_promises(weights: F32, bits: int, method: Method) -> None:
    given_weights = weights.copy()
    codes, centroids = share(weights, bits, method=method)
    np.testing.assert_array_equal(weights, given_weights)
    assert codes.shape == weights.shape
    assert codes.dtype == np.uint8
    assert centroids.shape == (2**bits,)
    assert centroids.dtype == np.float32
    assert centroids[0] == 0
    np.testing.assert_array_equal(codes == 0, weights == 0)

    distinct = np.unique(weights[weights != 0])
    free = centroids[1 : 1 + min(2**bits - 1, distinct.size)].astype(np.float64)
    assert np.all(np.diff(free) >= 0)
    assert not centroids[1 + free.size :].any()
    assert not codes.size or codes.max() <= free.size
    if distinct.size <= free.size:
        np.testing.assert_array_equal(centroids[codes], weights)
    for weight, code in zip(weights.ravel(), codes.ravel(), strict=True):
        if code:
            distance = np.abs(free - float(weight))
            assert distance[code - 1] == pytest.approx(distance.min(), rel=1e-12, abs=0)


def test_half_way_goes_to_the_lower_code() -> None:
    # The midpoint 1 + 2**-24 of the two centroids is no float32: nothing may round onto it.
    centroids = np.array([1, 1 + 2**-23, 3], np.float32)
    bounds = clustering._bounds(centroids)
    values = np.array([1, 1 + 2**-23, 2, 2 + 2**-22, 3], np.float32)
    assert clustering._nearest(values, bounds).tolist() == [0, 1, 1, 2, 2]
    above = np.array([1 + 2**-23, 1 + 2**-22], np.float32)
    assert clustering._nearest(above, clustering._bounds(above)).tolist() == [0, 1]


def test_zeros_are_values_if_they_are_not_kept() -> None:
    weights = np.array([0, 0, 0, 1, 8, 9, -0.0], np.float32)
    codes, centroids = share(weights, 2, keep_zeros=False)
    assert centroids.tolist() == [0, 0, 1, 8.5]
    assert codes.tolist() == [1, 1, 1, 2, 3, 3, 1]


@given(any_values, st.integers(1, 8))
def test_code_0_is_unused_if_zeros_are_not_kept(weights: F32, bits: int) -> None:
    codes, centroids = share(weights, bits, keep_zeros=False)
    assert centroids[0] == 0
    assert codes.all()


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_an_empty_tensor_has_empty_codes(shape: tuple[int, ...], method: Method) -> None:
    empty = np.empty(shape, np.float32)
    codes, centroids = share(empty, 4, method=method)
    assert codes.shape == shape
    assert centroids.tolist() == [0] * 16
    assignment, none = kmeans_1d(empty, 3, method=method)
    assert assignment.shape == shape
    assert none.shape == (0,)


@pytest.mark.parametrize("sorted_size", [100, 1 << 20])
def test_a_tensor_of_zeros_has_code_0_alone(
    sorted_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clustering, "_SORTED_SIZE", sorted_size)
    codes, centroids = share(np.zeros((40, 50), np.float32), 4)
    assert not codes.any()
    assert not centroids.any()


def test_a_view_and_a_read_only_array_are_taken() -> None:
    weights = distribution("normal", 600).reshape(20, 30)
    weights.flags.writeable = False
    for view in (weights, weights.T, weights[::2, ::-3]):
        codes, centroids = share(view, 3)
        again, same = share(view.copy(), 3)
        np.testing.assert_array_equal(codes, again)
        np.testing.assert_array_equal(centroids, same)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_weights_does_not_matter(method: Method) -> None:
    weights = distribution("heavy tails", 3000)
    order = np.random.default_rng(1).permutation(weights.size)
    codes, centroids = share(weights, 4, method=method)
    permuted, same = share(weights[order], 4, method=method)
    np.testing.assert_array_equal(centroids, same)
    np.testing.assert_array_equal(codes[order], permuted)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0, 2.0**30])
@pytest.mark.parametrize("method", METHODS)
def test_a_power_of_two_scales_the_centroids(method: Method, factor: float) -> None:
    weights = distribution("heavy tails", 3000)
    codes, centroids = share(weights, 4, method=method)
    same, scaled = share(weights * np.float32(factor), 4, method=method)
    np.testing.assert_array_equal(codes, same)
    np.testing.assert_array_equal(centroids * np.float32(factor), scaled)


def test_the_largest_and_smallest_floats_are_shared() -> None:
    big, tiny = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    weights = np.array([-big, -tiny, 0, tiny, big], np.float32)
    codes, centroids = share(weights, 3)
    np.testing.assert_array_equal(centroids[codes], weights)
    codes, centroids = share(weights, 2)
    assert np.isfinite(centroids).all()
    assert codes.tolist() == [1, 2, 0, 2, 3]


# The bins of large tensors


@pytest.mark.parametrize("skip_zeros", [False, True])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_bins_are_ranges_of_the_sorted_values(name: str, skip_zeros: bool) -> None:
    values = distribution(name, 30_000)
    values[::7] = 0
    points = clustering._histogram(values, skip_zeros=skip_zeros)
    left = np.sort(values[values != 0] if skip_zeros else values).astype(np.float64)
    assert points.counts.min() >= 1
    assert points.counts.sum() == left.size
    assert not points.exact
    first = np.concatenate([[0], np.cumsum(points.counts)[:-1]]).astype(int)
    means = np.add.reduceat(left, first) / points.counts
    np.testing.assert_allclose(points.values, means, rtol=1e-12)
    assert np.all(np.diff(points.values) > 0)


def test_bins_are_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_FINE_BINS", 4096)
    values = distribution("far from zero, one outlier", 100_000)
    points = clustering._histogram(values, skip_zeros=False)
    # Sign, exponent and 7 bits alone would leave 10 to 20 bins for the bulk.
    assert points.values.size > 2000
    assert points.counts.max() < 500


def test_a_frequent_value_is_a_group_of_its_own() -> None:
    counts = np.ones(1000)
    counts[600] = 1e9
    points = clustering._Points(np.linspace(0, 1, 1000), counts, exact=True)
    starts = clustering._group(points, 10)
    assert {0, 600, 601} <= set(starts.tolist())
    assert starts.size <= 10


def test_a_shared_large_tensor_keeps_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_SORTED_SIZE", 1000)
    rng = np.random.default_rng(5)
    table = np.append(np.float32(0), rng.standard_normal(15).astype(np.float32))
    weights = table[rng.integers(0, 16, 200_000)]
    codes, centroids = share(weights, 4)
    np.testing.assert_array_equal(centroids[codes], weights)


# Errors


@pytest.mark.parametrize("bits", [0, 9, -1, 2.5, "4", True, None])
def test_bits_outside_1_to_8(bits: Any) -> None:
    with pytest.raises(OptionError) as caught:
        share(PAPER, bits)
    assert str(caught.value) == (
        f"share: bits is {bits!r}; expected an integer from 1 to 8. "
        "Choose 4 for 16 centroids, 8 for the closest fit."
    )


@pytest.mark.parametrize("k", [0, 257, 2.0])
def test_k_outside_1_to_256(k: Any) -> None:
    with pytest.raises(OptionError) as caught:
        kmeans_1d(PAPER, k)
    assert str(caught.value) == (
        f"kmeans_1d: k is {k!r}; expected an integer from 1 to 256, as an assignment is one byte. "
        "Ask for fewer clusters."
    )


@pytest.mark.parametrize("function", [share, kmeans_1d])
def test_an_unknown_method(function: Any) -> None:
    with pytest.raises(OptionError) as caught:
        function(PAPER, 2, method="kmeans++")
    assert str(caught.value) == (
        "The clustering method is 'kmeans++'; expected one of optimal, linear, density, random. "
        "Choose optimal if in doubt."
    )


@pytest.mark.parametrize("seed", [-1, 0.5])
@pytest.mark.parametrize("function", [share, kmeans_1d])
def test_a_seed_that_is_none(function: Any, seed: Any) -> None:
    with pytest.raises(OptionError) as caught:
        function(PAPER, 2, method="random", seed=seed)
    assert str(caught.value) == (
        f"The clustering seed is {seed!r}; expected an integer from 0. Use 0 if in doubt."
    )


@pytest.mark.parametrize(
    ("function", "name", "what"), [(share, "share", "weights"), (kmeans_1d, "kmeans_1d", "values")]
)
def test_values_that_are_no_numbers(function: Any, name: str, what: str) -> None:
    values = np.ones(100_000, np.float32)
    values[[0, 70_000, 99_999]] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError) as caught:
        function(values, 2)
    assert str(caught.value) == (
        f"{name}: 3 of 100000 {what} are NaN or infinite; expected finite numbers. "
        "Check how the network was trained or converted, then try again."
    )


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.ones(3, np.int8), "int8"),
        (np.ones(3), "float64"),
        (np.ones(3, ">f4"), ">f4"),
        ([1.0], "list"),
    ],
)
def test_values_of_another_dtype(values: Any, dtype: str) -> None:
    with pytest.raises(DataError) as caught:
        share(values, 2)
    assert str(caught.value) == (
        f"share: the weights are {dtype}; expected a float32 array. Convert them with "
        "astype('float32'), and share weights before they are quantized."
    )


def test_an_assignment_of_another_shape() -> None:
    assignment, centroids = kmeans_1d(PAPER, 2)
    with pytest.raises(DataError) as caught:
        squared_error(PAPER, assignment.ravel(), centroids)
    assert str(caught.value) == (
        "squared_error: the assignment has shape (16,) and the values (4, 4); expected the same "
        "shape. Pass the arrays of one clustering."
    )


def test_the_errors_are_the_users_to_mend() -> None:
    assert issubclass(OptionError, InputError)
    assert issubclass(DataError, InputError)


@given(
    hnp.arrays(
        np.int8, st.tuples(st.integers(1, 3), st.integers(1, 7)), elements=st.integers(-9, 9)
    ),
    st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=3, max_size=3),
    st.sampled_from(METHODS),
)
def test_integers_are_shared_in_the_units_of_their_channels(
    weights: NDArray[np.int8], units: list[float], method: Method
) -> None:
    scales = np.array(units)[: len(weights), None]
    codes, centroids = share_integers(weights, scales, 1, method=method)
    np.testing.assert_array_equal(codes == 0, weights == 0)
    assert centroids.dtype == np.int8 and centroids[0] == 0
    if (weights != 0).any():
        # Of one free centroid the best is tried out: all whole numbers but zero.
        kept = weights != 0

        def cost(centroid: int) -> float:
            error = scales * (weights.astype(int) - centroid) * kept
            return float(np.square(error).sum())

        assert centroids[1] != 0
        best = min(cost(c) for c in range(-9, 10) if c)
        # Beside zero it is one of both, which may not be the better one.
        assert cost(int(centroids[1])) == pytest.approx(best) or abs(centroids[1]) == 1


def test_few_integers_keep_their_values() -> None:
    weights = np.array([[0, -127, 5], [5, 0, 127]], np.int8)
    codes, centroids = share_integers(weights, np.ones((2, 1)), 2)
    np.testing.assert_array_equal(centroids, [0, -127, 5, 127])
    np.testing.assert_array_equal(centroids[codes], weights)


def test_four_codes_of_integers_are_as_good_as_any() -> None:
    weights = np.random.default_rng(0).integers(-6, 7, (2, 12)).astype(np.int8)
    scales = np.array([[1.0], [2.0]])

    def cost(table: Any) -> float:
        nearest = np.abs(weights[..., None].astype(int) - np.array(table)).min(-1)
        return float(np.square(scales * nearest * (weights != 0)).sum())

    _, centroids = share_integers(weights, scales, 2)
    best = min(cost(t) for t in itertools.combinations([c for c in range(-6, 7) if c], 3))
    # Rounding the means to whole numbers is all that it may lose.
    assert cost(centroids[1:]) <= 1.2 * best
