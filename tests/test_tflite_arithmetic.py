"""TensorFlow Lite's fixed point against real numbers; its bits are held to LiteRT elsewhere.

``tests/passes/test_to_integers_tflite.py`` compares softmax, logistic, tanh and resize with LiteRT.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_compress.tflite_arithmetic import (
    divide_by_power,
    exp_of_negative,
    exp_table,
    high_mul,
    logistic_table,
    reciprocal,
    resize_taps,
    tanh_table,
)

INT32 = st.integers(-(2**31), 2**31 - 1)


@given(INT32, INT32)
def test_high_mul_is_the_nearest_and_saturates(a: int, b: int) -> None:
    exact = Fraction(a * b, 2**31)
    nearest = (exact + Fraction(1, 2)).__floor__()
    assert int(high_mul(np.array([a]), b)[0]) == min(nearest, 2**31 - 1)


def test_high_mul_of_the_least_numbers() -> None:
    assert int(high_mul(np.array([-(2**31)]), -(2**31))[0]) == 2**31 - 1


@given(INT32, st.integers(0, 31))
def test_divide_by_power_rounds_ties_away_from_zero(x: int, exponent: int) -> None:
    size = (Fraction(abs(x), 2**exponent) + Fraction(1, 2)).__floor__()
    assert int(divide_by_power(np.array([x]), exponent)[0]) == (size if x >= 0 else -size)


@pytest.mark.parametrize("bits", [4, 5])
def test_exp(bits: int) -> None:
    raw = np.concatenate([np.linspace(-(2**31), 0, 5000).astype(np.int64), [-1, -2, 0]])
    real = np.exp(raw * 2.0 ** (bits - 31))
    np.testing.assert_allclose(exp_of_negative(raw, bits) / 2.0**31, real, atol=2e-7)


def test_reciprocal() -> None:
    raw = np.linspace(0, 2**31 - 1, 5000).astype(np.int64)
    np.testing.assert_allclose(reciprocal(raw) / 2.0**31, 1 / (1 + raw / 2.0**31), atol=1e-8)


@pytest.mark.parametrize("scale", [1e-8, 0.001, 0.05, 0.7, 4.0])
def test_exp_table(scale: float) -> None:
    real = np.exp(np.arange(-255, 1) * scale)
    given_ = exp_table(scale, 1.0) / 2.0**31
    # Differences beyond 5 integer bits count for nothing.
    np.testing.assert_allclose(given_, real, atol=1e-6)
    assert given_[-1] == (2**31 - 1) / 2**31


@pytest.mark.parametrize("zero", [-128, 0, 90])
@pytest.mark.parametrize("scale", [1e-4, 0.03, 0.2])
def test_tables(scale: float, zero: int) -> None:
    x = (np.arange(-128, 128) - zero) * scale
    logistic = np.clip(np.round(256 / (1 + np.exp(-x))) - 128, -128, 127)
    assert np.abs(logistic_table(scale, zero) - logistic).max() <= 1
    tanh = np.clip(np.round(128 * np.tanh(x)), -128, 127)
    assert np.abs(tanh_table(scale, zero) - tanh).max() <= 1


@given(
    st.integers(1, 40),
    st.integers(1, 80),
    st.sampled_from(["asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel"]),
    st.booleans(),
)
def test_resize_taps(size: int, target: int, mode: str, exact: bool) -> None:
    taps = resize_taps(size, target, mode, exact=exact)
    assert taps is not None
    places, weights = taps
    assert places.shape == weights.shape == (2, target)
    assert places.min() >= 0
    assert places.max() < size
    np.testing.assert_array_equal(weights.sum(0), 1 << 10)
    # The weighted place is the position, within the rounding of positions and weights.
    step = size / target if mode != "align_corners" or target == 1 else (size - 1) / (target - 1)
    position = np.arange(target) * step
    if mode.endswith("half_pixel"):
        position = position + step / 2 - 0.5
        position = position * (mode == "half_pixel" or target > 1)
    inside = (position >= 0) & (position <= size - 1)
    given_ = (places * weights).sum(0) / 1024
    error = np.abs(given_ - position)[inside]
    assert error.max(initial=0) <= (1 if exact else target) / 1024


def test_positions_that_are_none_of_its_own() -> None:
    assert resize_taps(4, 8, "tf_crop_and_resize") is None
