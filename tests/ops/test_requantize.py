"""``requantize``: both roundings against integers without bounds, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

import tvm_compress as tc
from tvm_compress.errors import UnsupportedError
from tvm_compress.ops import quantize_multiplier, requantize, requantize_numpy

INT32 = st.integers(-(2**31), 2**31 - 1)
EDGES = st.sampled_from([-(2**31), -(2**31) + 1, -1, 0, 1, 2**30, 2**31 - 1])
SUMS = st.one_of(INT32, st.integers(-70000, 70000), EDGES)
MULTIPLIERS = st.one_of(st.integers(0, 2**31 - 1), st.sampled_from([0, 1, 2**30, 2**31 - 1]))


def by_hand(x: int, multiplier: int, shift: int, rounding: str) -> int:
    """The factor's product in Python's integers, written from gemmlowp's description."""
    if rounding == "single":
        exact = Fraction(x * multiplier) * Fraction(2) ** (shift - 31)
        return (exact + Fraction(1, 2)).__floor__()
    x = x << shift if shift > 0 else x
    x = (x + 2**31) % 2**32 - 2**31
    product = x * multiplier
    nudge = 2**30 if product >= 0 else 1 - 2**30
    total = product + nudge
    high = abs(total) // 2**31 * (1 if total >= 0 else -1)
    if shift >= 0:
        return high
    exact = Fraction(high, 2**-shift)
    whole = (abs(exact) + Fraction(1, 2)).__floor__()  # ties away from zero
    return whole if exact >= 0 else -whole


@pytest.mark.parametrize("rounding", ["double", "single"])
@given(x=SUMS, multiplier=MULTIPLIERS, shift=st.integers(-31, 30), zero=st.integers(-128, 127))
def test_against_integers_without_bounds(
    rounding: str, x: int, multiplier: int, shift: int, zero: int
) -> None:
    numbers = np.int32(multiplier), np.int32(shift)
    given_ = requantize_numpy(
        np.array([x], np.int32),
        *map(np.asarray, numbers),
        zero_point=zero,
        rounding=rounding,
        low=-100,
        high=90,
    )
    expected = by_hand(x, multiplier, shift, rounding) + zero
    assert given_.dtype == np.int8
    assert int(given_[0]) == min(max(expected, -100), 90)


@given(
    st.lists(
        st.floats(2.0**-20, 2.0**20, allow_nan=False) | st.just(0.0) | st.floats(1e-30, 1e-8),
        min_size=1,
        max_size=6,
    )
)
def test_multipliers_are_the_nearest(reals: list[float]) -> None:
    real = np.array(reals)
    multiplier, shift = quantize_multiplier(real, "double")
    assert multiplier.dtype == shift.dtype == np.int32
    for r, m, s in zip(reals, multiplier.tolist(), shift.tolist(), strict=True):
        assert -31 <= s <= 30
        assert m == 0 or 2**30 <= m < 2**31
        error = abs(Fraction(r) - Fraction(m) * Fraction(2) ** (s - 31))
        assert error <= Fraction(1, 2) * Fraction(2) ** (s - 31) or (m == 0 and r < 2.0**-32)
    multiplier, one = quantize_multiplier(real, "single")
    assert one.shape == ()
    step = Fraction(2) ** (int(one) - 31)
    for r, m in zip(reals, multiplier.tolist(), strict=True):
        assert 0 <= m < 2**31
        assert abs(Fraction(r) - m * step) <= step / 2
    if max(reals) > 2.0**-30:
        assert multiplier.max() >= 2**30  # no bit is wasted


def test_a_carry_keeps_the_multiplier_below_its_bound() -> None:
    almost = np.array([1 - 2.0**-40])
    assert [int(v[0]) for v in quantize_multiplier(almost, "double")] == [2**30, 1]
    multiplier, shift = quantize_multiplier(almost, "single")
    assert (int(multiplier[0]), int(shift)) == (2**30, 1)


@pytest.mark.parametrize("real", [-0.5, float("nan"), float("inf"), 2.0**30])
def test_factors_out_of_range(real: float) -> None:
    with pytest.raises(UnsupportedError) as caught:
        quantize_multiplier(np.array([0.5, real]), "double")
    assert str(caught.value) == (
        f"A factor between two scales is {real:g}; expected a finite number from 0 to below 2**30: "
        "scales that are positive and not of quite another size."
    )


def net(shape: tuple[int, ...], dtype: str, *numbers: Any, **options: Any) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(builder.emit(requantize(x, *numbers, **options)), "y")
        builder.emit_func_output(y)
    return builder.get()


@pytest.mark.parametrize("rounding", ["double", "single"])
@pytest.mark.parametrize("limit", [127, 2**30 - 1])
def test_c_and_llvm_equal_numpy(rounding: str, limit: int) -> None:
    """Every shift, with sums and multipliers at their ends."""
    rng = np.random.default_rng(0)
    shift = np.arange(-31, 31, dtype=np.int32)
    multiplier = rng.integers(0, 2**31, shift.size).astype(np.int32)
    multiplier[::7], multiplier[1::7], multiplier[2::7] = 2**31 - 1, 2**30, 0
    x = rng.integers(-(2**31), 2**31, (1, 24, shift.size))
    x[0, :8] >>= 12
    x[0, 8:16] >>= 22
    x[0, 20:24] = [[2**31 - 1], [-(2**31)], [0], [-1]]
    x = x.astype(np.int32)
    dtype = "int8" if limit == 127 else "int32"
    options = {"zero_point": 3, "low": -limit, "high": limit, "out_dtype": dtype}
    expected = requantize_numpy(x, multiplier, shift, rounding=rounding, **options)  # type: ignore[arg-type]
    mod = net(x.shape, "int32", multiplier, shift, rounding=rounding, **options)
    (c,) = tc.build(mod, target="c").run(x).values()
    np.testing.assert_array_equal(c, expected)
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(x)).numpy(), expected)
    (reference,) = tc.build(mod, target="reference").run(x).values()
    np.testing.assert_array_equal(reference, expected)


@pytest.mark.parametrize(
    ("dtype", "numbers", "options", "sentence"),
    [
        ("int8", (1, 0), {}, "the sums are int8; expected int32."),
        (
            "int32",
            (1, 0),
            {"rounding": "even"},
            "the rounding is even; expected double or single.",
        ),
        (
            "int32",
            ([1, 2], 0),
            {},
            "the multipliers have the shape (2,); expected one number, or one for each of the sums "
            "(2, 3) along axis -1.",
        ),
        (
            "int32",
            (1, [1, 2]),
            {"axis": 2},
            "the shifts have the shape (2,); expected one number, or one for each of the sums "
            "(2, 3) along axis 2.",
        ),
        (
            "int32",
            (1, 0),
            {"high": 128},
            "the limits are -128 .. 128; expected them in -128 .. 127, the numbers of int8.",
        ),
        (
            "int32",
            (1, 0),
            {"low": 3, "high": 2},
            "the limits are 3 .. 2; expected them in -128 .. 127, the numbers of int8.",
        ),
    ],
)
def test_what_the_operator_refuses(
    dtype: str, numbers: Any, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TypeError) as caught:
        net((2, 3), dtype, *map(np.asarray, numbers), **options)
    assert str(caught.value) == f"tvm_compress.requantize: {sentence}"
