"""The grid of fixed point, its codes and its steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_compress import clustering
from tvm_compress.errors import OptionError
from tvm_compress.fixed_point import best_steps, encode, grid, step_of

BITS = st.integers(2, 8)


@given(BITS, st.floats(2.0**-20, 2.0**10, width=32))
def test_a_code_is_the_number_in_twos_complement(bits: int, step: float) -> None:
    values = grid(bits, step)
    assert values.dtype == np.float32 and values.shape == (2**bits,)
    for code, value in enumerate(values):
        signed = int.from_bytes((code << (8 - bits)).to_bytes(1, "big"), "big", signed=True)
        assert value == np.float32(step) * np.float32(signed >> (8 - bits))


@given(BITS, st.floats(2.0**-20, 2.0**10, width=32), st.integers(0, 99))
def test_codes_are_the_nearest_in_the_grid(bits: int, step: float, seed: int) -> None:
    weights = np.random.default_rng(seed).normal(0, 2**bits * step / 4, 50)
    weights[0] = 0
    codes = encode(weights, bits, np.float64(step))
    values = grid(bits, step).astype(np.float64)
    error = np.abs(values[codes] - weights)
    nearest = np.abs(values[:, None] - weights).min(axis=0)
    np.testing.assert_allclose(error, nearest, atol=1e-6 * step * 2**bits)
    assert codes[0] == 0 and codes.dtype == np.uint8


def test_halves_go_to_the_even_number() -> None:
    codes = encode(np.array([0.5, 1.5, 2.5, -0.5, -1.5]), 4, np.array(1.0))
    np.testing.assert_array_equal(grid(4)[codes], [0, 2, 2, 0, -2])


@given(BITS, st.floats(2.0**-20, 2.0**10, width=32))
def test_a_grid_is_known_by_its_values_alone(bits: int, step: float) -> None:
    assert step_of(grid(bits, step)) == step
    other = grid(bits, step)
    other[-1] = np.nextafter(other[-1], np.float32(0))
    assert step_of(other) is None
    assert step_of(np.sort(grid(bits, step))) is None
    assert step_of(-grid(bits, step)) is None
    assert step_of(grid(bits, step)[:-1]) is None
    assert step_of(np.stack([grid(bits, step)] * 2)) is None


def test_shared_weights_are_never_taken_for_fixed_point() -> None:
    # Of the same values as a grid of two bits, but in the order of clustering.
    weights = grid(2, 0.5)[np.arange(40) % 4]
    codes, centroids = clustering.share(weights, 2)
    np.testing.assert_array_equal(centroids[codes], weights)
    assert step_of(centroids) is None
    assert step_of(np.array([0, 1], np.float32)) is None  # one bit: no fixed point


@given(BITS, st.integers(0, 99), st.booleans())
def test_steps_are_as_good_as_a_search(bits: int, seed: int, power_of_two: bool) -> None:
    rows = np.random.default_rng(seed).standard_normal((2, 500)) * [[1], [100]]
    steps = best_steps(rows, bits, power_of_two=power_of_two)
    assert steps.shape == (2,) and steps.dtype == np.float32
    for row, step in zip(rows, steps, strict=True):

        def error(step: float, row: np.ndarray = row) -> float:
            return float(np.square(grid(bits, step)[encode(row, bits, np.array(step))] - row).sum())

        if power_of_two:
            assert np.frexp(step)[0] == 0.5
            best = min(error(2.0**e) for e in range(-20, 12))
            assert error(float(step)) <= best * (1 + 1e-6)
        else:
            widest = np.abs(row).max() / (2 ** (bits - 1) - 1)
            tried = [error(widest * part) for part in np.linspace(0.02, 1.3, 300)]
            # The error wavers from step to step by the chance of 500 roundings.
            assert error(float(step)) <= 1.15 * min(tried)


def test_zeros_and_tiny_rows_have_a_usable_step() -> None:
    np.testing.assert_array_equal(best_steps(np.zeros((2, 3)), 4), [1, 1])
    steps = best_steps(np.array([[1e-42, -1e-42]]), 4)
    assert np.isfinite(steps).all() and (steps > 0).all()
    np.testing.assert_array_equal(best_steps(np.zeros((1, 0)), 4), [1])


def test_a_sample_decides_for_a_long_row() -> None:
    row = np.random.default_rng(0).standard_normal((1, 200_000))
    row[0, 1] = 3e3  # beside the sample: the largest magnitude still counts
    assert best_steps(row, 8)[0] > 0.2 * 3e3 / 127 * 0.99


@pytest.mark.parametrize("bits", [1, 9, 0, 2.5])
def test_refuses_bits_outside_their_range(bits: int) -> None:
    for call in (
        lambda: grid(bits),
        lambda: encode(np.zeros(2), bits, np.array(1.0)),
        lambda: best_steps(np.zeros((1, 2)), bits),
    ):
        with pytest.raises(OptionError) as caught:
            call()
        assert str(caught.value) == (
            f"fixed point: the weights have {bits} bits; expected a whole number from 2 to 8."
        )
