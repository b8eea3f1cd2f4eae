"""Ranges, scales and roundings of int8, against what is tried out or counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tvm_compress.errors import DataError, OptionError
from tvm_compress.quantization import (
    RANGES,
    Affine,
    Histogram,
    affine,
    check_ranges,
    equalizing_factors,
    find_range,
    least_scale,
    quantize_bias,
    quantize_weight,
    weight_scales,
)

NUMBERS = st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
VALUES = hnp.arrays(np.float32, st.integers(1, 60), elements=NUMBERS)


def error_of(values: NDArray[Any], how: Affine) -> float:
    """The squared error of rounding, written down once more."""
    real = how.scale * (
        np.clip(np.round(values / np.float64(how.scale)) + how.zero_point, -128, 127)
        - how.zero_point
    )
    return float(np.square(real - values).sum())


@given(VALUES)
def test_a_range_holds_zero_and_its_values(values: NDArray[Any]) -> None:
    how = affine(float(values.min()), float(values.max()))
    assert -128 <= how.zero_point <= 127
    assert how.dequantize(how.quantize(np.zeros(3, np.float32))).tolist() == [0, 0, 0]
    # Half a step of rounding, and half a step by which the zero point moves the range.
    assert (np.abs(how.dequantize(how.quantize(values)) - values) <= how.scale * 1.001).all()
    if values.min() >= 0:
        assert how.zero_point == -128
    elif values.max() <= 0:
        assert how.zero_point == 127


def test_a_range_of_nothing_is_that_of_0_to_1() -> None:
    assert affine(0, 0) == affine(0, 1) == Affine(float(np.float32(1 / 255)), -128)
    assert affine(0, 255, "uint8") == Affine(1.0, 0, "uint8")


def test_rounding_clips_and_takes_halves_to_even() -> None:
    how = Affine(2.0, 10)
    rounded = how.quantize(np.array([-1e9, -1, 1, 3, 1e9], np.float32))
    assert rounded.tolist() == [-128, 10, 10, 12, 127] and rounded.dtype == np.int8


@given(VALUES)
def test_a_histogram_counts_and_keeps_the_sum(values: NDArray[Any]) -> None:
    found = Histogram.of(values)
    assert found.counts.sum() == values.size
    assert (found.low, found.high) == (values.min(), values.max())
    np.testing.assert_allclose(found.means @ found.counts, values.sum(dtype=float), atol=1e-4)
    assert (np.diff(found.means) >= 0).all()
    joined = Histogram.join([found, Histogram.of(np.array([1e5]))])
    assert joined.high == 1e5 and joined.counts.sum() == values.size + 1


@given(VALUES, st.sampled_from(RANGES))
def test_ranges_lie_within_the_values_and_zero(values: NDArray[Any], ranges: Any) -> None:
    low, high = find_range(Histogram.of(values), ranges, 95.0)
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)
    if ranges == "min-max":
        assert (low, high) == (min(values.min(), 0), max(values.max(), 0))


def test_percentiles_are_those_of_the_values() -> None:
    values = np.random.default_rng(0).standard_normal(100_000)
    low, high = find_range(Histogram.of(values), "percentile", 99.0)
    np.testing.assert_allclose([low, high], np.percentile(values, [1, 99]), atol=0.01)
    assert find_range(Histogram.of(values), "percentile", 100.0) == (values.min(), values.max())


@pytest.mark.parametrize("shape", ["relu", "normal", "outlier", "laplace"])
def test_mse_is_as_good_as_the_best_of_many_ranges(shape: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "relu": np.maximum(rng.standard_normal(4000), 0),
        "normal": rng.standard_normal(4000) + 0.5,
        "outlier": np.append(rng.standard_normal(4000), [40.0]),
        "laplace": rng.laplace(size=4000),
    }[shape]
    found = error_of(values, affine(*find_range(Histogram.of(values), "mse")))
    tried = [
        error_of(values, affine(values.min() * f, values.max() * g))
        for f in np.linspace(0.1, 1, 37)
        for g in np.linspace(0.1, 1, 37)
    ]
    assert found <= 1.02 * min(tried)
    assert found <= error_of(values, affine(values.min(), values.max()))


def test_mse_clips_an_outlier_where_algebra_does() -> None:
    # Rounding costs n (h / 255)**2 / 12 and clipping (1.5 - h)**2: least at 1.5 / (1 + a).
    values = np.append(np.random.default_rng(2).uniform(0, 1, 200_000), 1.5)
    best = 1.5 / (1 + 200_000 / 12 / 255**2)
    assert find_range(Histogram.of(values), "mse")[1] == pytest.approx(best, abs=0.02)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=NUMBERS))
def test_scales_of_weights_reach_127(rows: NDArray[Any]) -> None:
    scales = weight_scales(rows)
    whole = quantize_weight(rows, scales[:, None])
    largest = np.abs(whole.astype(int)).max(axis=1)
    assert (largest[np.abs(rows).max(axis=1) > 0] == 127).all()
    assert (whole[rows == 0] == 0).all() and (scales > 0).all()
    assert (np.abs(whole * scales[:, None].astype(float) - rows) <= scales[:, None] * 0.501).all()
    best = weight_scales(rows, "mse")
    errors = [
        np.square(quantize_weight(rows, s[:, None]) * s[:, None].astype(float) - rows).sum(1)
        for s in (best, scales)
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-6) + 1e-9).all()


def test_a_row_of_zeros_has_the_largest_scale() -> None:
    assert weight_scales(np.array([[0.0], [127.0], [254.0]])).tolist() == [2, 1, 2]
    assert weight_scales(np.zeros((2, 3))).tolist() == [1, 1]


def test_a_weight_is_never_below_127() -> None:
    assert quantize_weight(np.array([-1000.0, 1000.0]), np.ones(2)).tolist() == [-127, 127]


def test_biases_are_rounded_in_int32() -> None:
    whole = quantize_bias(np.array([1e30, -1e30, 0.75]), np.array([1e-9, 1e-9, 0.5]))
    assert whole.tolist() == [2**31 - 1, -(2**31), 2] and whole.dtype == np.int32
    least = least_scale(np.array([3.0, -5e3]), 0.25)
    assert (np.abs([3.0, -5e3]) / (least * 0.25) <= 2**30).all()


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5))
def test_equalised_channels_reach_equally_far(reaches: list[float]) -> None:
    first, second = np.array(reaches), np.array(reaches[::-1])
    factors = equalizing_factors(first, second)
    np.testing.assert_allclose(first / factors, second * factors)
    np.testing.assert_allclose(first / factors, np.sqrt(first * second))


def test_unused_channels_are_not_equalised() -> None:
    assert equalizing_factors(np.array([0.0, 3.0]), np.array([2.0, 0.0])).tolist() == [1, 1]


def test_refuses() -> None:
    for wrong in (np.nan, np.inf):
        with pytest.raises(DataError) as refused:
            Histogram.of(np.array([0.0, wrong]))
        assert str(refused.value).endswith(
            "; expected finite numbers: check the samples and the network."
        )
    with pytest.raises(OptionError) as unknown:
        check_ranges("quantize", "entropy", 99)
    assert str(unknown.value) == (
        "quantize: the ranges are 'entropy'; expected min-max, percentile or mse."
    )
    for percentile in (50.0, 100.1):
        with pytest.raises(OptionError) as outside:
            check_ranges("quantize", "mse", percentile)
        assert str(outside.value) == (
            f"quantize: the percentile is {percentile}; expected a number above 50, 100 at most."
        )
