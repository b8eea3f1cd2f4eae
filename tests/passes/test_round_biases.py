"""``round-biases``: which parameters are rounded, to what, and what a file saves by it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from tvm.relax import op

import tvm_compress as tc
from tests.passes.nets import BIAS, conv_net, values
from tests.training.nets import module
from tvm_compress.errors import OptionError
from tvm_compress.passes import FixedPoint, RoundBiases, ShareWeights
from tvm_compress.passes.round_biases import round_to_bits

Array = NDArray[Any]
BITS = st.integers(2, 16)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FAR_FROM_INFINITY = st.floats(-(2.0**126), 2.0**126, width=32)
TENSORS = arrays("float32", st.integers(0, 12), elements=FINITE)


def step_of(value: Array, bits: int) -> Fraction:
    """The smallest power of two of which the largest magnitude is at most 2**(bits-1) - 1."""
    largest = max((abs(Fraction(float(v))) for v in value.ravel()), default=Fraction(0))
    limit = 2 ** (bits - 1) - 1
    return next(s for s in (Fraction(2) ** k for k in range(-170, 140)) if largest <= limit * s)


@given(arrays("float32", st.integers(0, 12), elements=FAR_FROM_INFINITY), BITS)
def test_values_are_the_nearest_whole_multiples(value: Array, bits: int) -> None:
    found = round_to_bits(value, bits)
    assert found.dtype == value.dtype and found.shape == value.shape
    if not value.any():
        np.testing.assert_array_equal(found, value)
        return
    step = step_of(value, bits)
    numbers = [Fraction(float(v)) / step for v in found]
    # Exact: fractions of Python know no rounding. round() takes halves to the even number.
    assert numbers == [round(Fraction(float(v)) / step) for v in value]
    # The largest uses all of its bits and no more.
    assert 2 ** (bits - 2) <= max(map(abs, numbers)) <= 2 ** (bits - 1) - 1
    assert not np.signbit(found[found == 0]).any()


@given(TENSORS, BITS)
def test_rounding_again_changes_nothing(value: Array, bits: int) -> None:
    once = round_to_bits(value, bits)
    assert round_to_bits(once, bits).tobytes() == once.tobytes()


def test_limits_of_float32_and_other_floats() -> None:
    tiny = np.float32(1e-45)
    assert round_to_bits(np.array([tiny, 0], "float32"), 8).tolist() == [float(tiny), 0]
    # The nearest multiple of the largest float is no float; it must not become an infinity.
    for dtype in ("float32", "float64"):
        top = np.finfo(dtype).max
        assert round_to_bits(np.array([top, 1, -top], dtype), 8).tolist() == [top, 0, -top]
    for dtype in ("float16", "float64"):
        found = round_to_bits(np.array([0.9, -0.3], dtype), 4)
        assert found.dtype == dtype and found.tolist() == [1.0, -0.25]


def test_of_a_network_the_biases_alone_change() -> None:
    before, after = values(conv_net()), values(RoundBiases(5)(conv_net()))
    np.testing.assert_array_equal(after["conv_bias"], round_to_bits(BIAS, 5))
    assert (after["conv_bias"] != before["conv_bias"]).all()
    for name in ("conv_weight", "fc_weight"):
        np.testing.assert_array_equal(after[name], before[name])


VALUE = np.array([0.917, -0.313, 0.1234], "float32")
ROUNDED = round_to_bits(VALUE, 8)


def kept(body: Any, value: Any = VALUE, shape: tuple[int, ...] = (1, 3)) -> bool:
    """Whether the parameter ``b`` of a network of one input stays as it is."""
    made = RoundBiases()(tc.load(module({"x": shape}, {"b": value}, body)))
    (found,) = values(made).values()
    before = values(tc.load(module({"x": shape}, {"b": value}, body)))
    (expected,) = before.values()
    if np.array_equal(found, expected, equal_nan=True):
        return True
    np.testing.assert_array_equal(found, round_to_bits(expected, 8))
    return False


@pytest.mark.parametrize(
    ("body", "stays"),
    [
        (lambda x, b: op.add(x, b), False),
        (lambda x, b: op.add(b, x), False),
        (lambda x, b: op.subtract(x, b), False),
        (lambda x, b: op.add(op.nn.relu(op.add(x, b)), b), False),
        (lambda x, b: op.multiply(x, b), True),
        (lambda x, b: op.maximum(x, b), True),
        (lambda x, b: op.add(op.multiply(x, b), b), True),
        (lambda x, b: tvm.ir.Tuple([op.add(x, b), op.maximum(x, b)]), True),
    ],
)
def test_the_rule_is_the_operator(body: Any, stays: bool) -> None:
    assert kept(body) is stays


def test_the_shift_of_a_normalisation_is_added_and_its_factor_is_not() -> None:
    def body(x: Any, gamma: Any, beta: Any) -> Any:
        return op.nn.layer_norm(x, gamma, beta, axes=[-1])

    made = RoundBiases()(tc.load(module({"x": (1, 3)}, {"g": VALUE, "b": VALUE}, body)))
    np.testing.assert_array_equal(values(made)["g"], VALUE)
    np.testing.assert_array_equal(values(made)["b"], ROUNDED)


def test_masks_single_numbers_integers_and_codebooks_stay() -> None:
    add: Any = op.add
    assert kept(add, np.array([0.3, -np.inf, 0.1], "float32"))
    assert kept(add, np.array([1e-5], "float32"))
    assert kept(add, (np.array([0, 1, 1], "uint8"), VALUE[:2]))
    whole = module({"x": (1, 3)}, {"b": np.array([300, 1, 2], "int32")}, add, dtype="int32")
    assert values(RoundBiases()(tc.load(whole)))["b"].tolist() == [300, 1, 2]


def test_the_bias_behind_a_scale_of_fixed_point() -> None:
    scaled = FixedPoint(4, "channel")(conv_net())
    rounded = values(RoundBiases()(scaled))
    np.testing.assert_array_equal(rounded["conv_bias"], round_to_bits(BIAS, 8))
    scales = {n for n in rounded if n.endswith("_scale")}
    assert scales
    for name in scales:
        np.testing.assert_array_equal(rounded[name], values(scaled)[name])


def test_a_file_spends_a_third_on_the_biases(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    bias = random.normal(0, 0.1, (1, 600)).astype("float32")
    weight = random.normal(size=(4, 600)).astype("float32")

    def body(x: Any, w: Any, b: Any) -> Any:
        return op.add(op.matmul(x, w), b)

    mod = tc.load(module({"x": (1, 4)}, {"w": weight, "b": bias}, body))
    sizes = {}
    for name, made in (("plain", mod), ("rounded", RoundBiases()(mod))):
        path = tmp_path / f"{name}.tcz"
        tc.save(ShareWeights(bits=2)(made), path)
        assert values(tc.load(path))["b"].tobytes() == values(made)["b"].tobytes()
        sizes[name] = path.stat().st_size
    # Of float32's 32 bits the 8 of a bias and about as much for its exponent are left.
    assert sizes["plain"] - sizes["rounded"] > 0.5 * bias.nbytes


@pytest.mark.parametrize("bits", [-1, 1, 17, 8.0, True, "8"])
def test_bits_out_of_range(bits: Any) -> None:
    with pytest.raises(OptionError) as caught:
        RoundBiases(bits)
    assert str(caught.value) == (
        f"round-biases: the biases have {bits!r} bits; expected a whole number from 2 to 16."
    )
