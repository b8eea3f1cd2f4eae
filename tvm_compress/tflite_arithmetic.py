"""TensorFlow Lite's fixed-point functions, in numpy with exact integers.

Its reference kernels are written with gemmlowp's fixed-point numbers: an int32 ``raw`` with ``n``
integer bits stands for ``raw * 2**(n - 31)``. Source: Jacob et al., arXiv 1712.05877, appendix A,
and the published behaviour of the kernels, to which ``tests/test_tflite_arithmetic.py`` holds it.
All arrays are int64 that hold int32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tvm_compress.ops.requantize import quantize_multiplier

__all__ = [
    "EXP_BITS",
    "divide_by_power",
    "exp_table",
    "high_mul",
    "logistic_table",
    "reciprocal",
    "resize_taps",
    "tanh_table",
]

Raw = NDArray[np.int64]

EXP_BITS = 5  # integer bits of the scaled difference in softmax
_ONE = (1 << 31) - 1  # 1.0 with no integer bits
# 48/17 and -32/17 with 2 integer bits: the best line through 1/x on 0.5 .. 1.
_LINE = (1515870810, -1010580540)


def high_mul(a: Raw | int, b: Raw | int) -> Raw:
    """Give the high half of twice the product, ties upwards (saturating where both are least).

    >>> high_mul(np.array([1 << 30, -3]), 1 << 30)
    array([536870912,        -1])
    """
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    return np.asarray(np.minimum((product + (1 << 30)) >> 31, _ONE))


def divide_by_power(x: Raw, exponent: int | Raw) -> Raw:
    """Divide by ``2**exponent``, ties away from zero.

    >>> divide_by_power(np.array([3, -3, 2, -2]), 1)
    array([ 2, -2,  1, -1])
    """
    mask = (np.int64(1) << np.asarray(exponent, np.int64)) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def _times_power(x: Raw, exponent: int) -> Raw:
    """Multiply by ``2**exponent``, saturated to int32."""
    return np.asarray(np.clip(x << exponent, -(1 << 31), _ONE))


def _exp_of_quarter(a: Raw) -> Raw:
    """Give exp of -1/4 <= a < 0 (no integer bits): Taylor's series around -1/8."""
    constant_term, third = 1895147668, 715827883
    x = a + (1 << 28)
    x2 = high_mul(x, x)
    x3 = high_mul(x2, x)
    x4 = high_mul(x2, x2)
    rest = divide_by_power(high_mul(divide_by_power(x4, 2) + x3, third) + x2, 1)
    return np.minimum(constant_term + high_mul(constant_term, x + rest), _ONE)


def exp_of_negative(a: Raw, integer_bits: int) -> Raw:
    """Give exp of a <= 0 with ``integer_bits``, as a number without integer bits."""
    fraction_bits = 31 - integer_bits
    quarter = np.int64(1) << (fraction_bits - 2)
    mod = (a & (quarter - 1)) - quarter
    result = _exp_of_quarter(_times_power(mod, integer_bits))
    remainder = mod - a
    # exp(-2**k) for k = -2 .. 4 without integer bits.
    for k, factor in enumerate(
        (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242), start=-2
    ):
        if integer_bits > k:
            taken = (remainder >> (fraction_bits + k)) & 1
            result = np.where(taken != 0, high_mul(result, factor), result)
    if integer_bits > 5:
        result = np.where(a < -(np.int64(1) << (fraction_bits + 5)), 0, result)
    return np.where(a == 0, _ONE, result)


def reciprocal(a: Raw) -> Raw:
    """Give ``1 / (1 + a)`` of 0 <= a <= 1, both without integer bits: three steps of Newton.

    >>> reciprocal(np.array([0, 1 << 30])) / 2.0**31
    array([1.        , 0.66666667])
    """
    return _times_power(_newton(a), 1)


def _newton(a: Raw) -> Raw:
    """Give ``2 / (1 + a)`` with 2 integer bits."""
    half = (a + _ONE + 1) >> 1  # (1 + a) / 2, rounded
    x = _LINE[0] + high_mul(half, _LINE[1])
    for _ in range(3):
        x = x + _times_power(high_mul(x, (1 << 29) - high_mul(half, x)), 2)
    return x


def exp_table(input_scale: float, beta: float) -> NDArray[np.int32]:
    """Give softmax's exp of each difference to the greatest input, -255 .. 0.

    Returns:
        256 int32 without integer bits; 0 where the kernel counts a difference for nothing.
    """
    real = min(float(beta) * float(input_scale) * (1 << (31 - EXP_BITS)), (1 << 31) - 1.0)
    multiplier, shift = (int(v) for v in quantize_multiplier(real / (1 << 31), "double"))
    shift += 31
    difference = np.arange(-255, 1, dtype=np.int64)
    reach = ((1 << EXP_BITS) - 1) * (1 << (31 - EXP_BITS)) / float(1 << max(shift, 0))
    if shift < 0:
        scaled = divide_by_power(high_mul(difference, multiplier), -shift)
        return exp_of_negative(scaled, EXP_BITS).astype(np.int32)
    known = difference >= -int(np.floor(reach))
    scaled = high_mul(np.where(known, difference, 0) << shift, multiplier)
    return np.where(known, exp_of_negative(scaled, EXP_BITS), 0).astype(np.int32)


def _scaled_inputs(scale: float, zero_point: int) -> tuple[Raw, Raw]:
    """Give each int8 with 4 integer bits, and its place: -1 or 1 beyond the reach, else 0."""
    bits = 4
    real = float(scale) * (1 << (31 - bits))
    multiplier, shift = (int(v) for v in quantize_multiplier(real / (1 << 31), "double"))
    shift += 31
    centred = np.arange(-128, 128, dtype=np.int64) - zero_point
    reach = int(np.floor(((1 << bits) - 1) * (1 << (31 - bits)) / float(1 << max(shift, 0))))
    place = np.where(centred <= -reach, -1, np.where(centred >= reach, 1, 0))
    inside = np.where(place == 0, centred, 0)
    if shift < 0:
        return divide_by_power(high_mul(inside, multiplier), -shift), place
    return high_mul(inside << shift, multiplier), place


def logistic_table(scale: float, zero_point: int) -> NDArray[np.int8]:
    """Give the logistic function of each int8; outputs have scale 1/256 and zero point -128."""
    x, place = _scaled_inputs(scale, zero_point)
    upper = reciprocal(exp_of_negative(-np.abs(x), 4))
    result = np.where(x > 0, upper, _ONE - upper)
    result = np.where(x == 0, 1 << 30, result)
    steps = np.minimum(divide_by_power(result, 23), 255) - 128
    return np.where(place < 0, -128, np.where(place > 0, 127, steps)).astype(np.int8)


def tanh_table(scale: float, zero_point: int) -> NDArray[np.int8]:
    """Give tanh of each int8; outputs have scale 1/128 and zero point 0."""
    x, place = _scaled_inputs(scale, zero_point)
    e = exp_of_negative(-np.abs(x), 5)  # the same bits with 5 integer bits: exp of twice -|x|
    # (1 - e) / (1 + e) is 2 / (1 + e) - 1.
    magnitude = _times_power(_newton(e) - (1 << 29), 2)
    result = np.where(x == 0, 0, np.sign(x) * magnitude)
    steps = np.minimum(divide_by_power(result, 24), 127)
    return np.where(place < 0, -128, np.where(place > 0, 127, steps)).astype(np.int8)


def resize_taps(
    size: int, target: int, mode: str, *, exact: bool = False
) -> tuple[Raw, Raw] | None:
    """Give the two places, (2, target), that a linear resize reads along an axis, and the weights.

    The weights have 10 fraction bits. The positions are multiples of a step of as many bits, as in
    TensorFlow Lite's kernel of int8, or ``exact``. None where ``mode`` is another than its three.

    >>> resize_taps(2, 4, "asymmetric")
    (array([[0, 0, 1, 1],
           [0, 1, 1, 1]]), array([[1024,  512, 1024,  512],
           [   0,  512,    0,  512]]))
    """
    if mode == "align_corners" and target > 1:
        scale = ((size - 1) * (1 << 10) + (target - 1) // 2) // (target - 1)
    else:
        scale = (size * (1 << 10) + target // 2) // target
    position = np.arange(target, dtype=np.int64) * scale
    if mode in ("half_pixel", "pytorch_half_pixel"):
        position = position + (scale >> 1) - (1 << 9)
        if mode == "pytorch_half_pixel" and target == 1:
            position = position * 0
    elif mode not in ("asymmetric", "align_corners"):
        return None
    if exact:
        place = np.arange(target)
        if mode == "align_corners":
            real = place * ((size - 1) / max(target - 1, 1))
        else:
            real = (place + 0.5 * (mode != "asymmetric")) * size / target
            real = real - 0.5 * (mode != "asymmetric")
        if mode == "pytorch_half_pixel" and target == 1:
            real = real * 0
        position = np.round(np.maximum(real, 0) * (1 << 10)).astype(np.int64)
    # C's division truncates, so that a position in front of the first place reads it alone.
    low = np.maximum(np.sign(position) * (np.abs(position) >> 10), 0)
    above = position + (1 << 10) - 1
    high = np.minimum(np.sign(above) * (np.abs(above) >> 10), size - 1)
    low = np.minimum(low, size - 1)
    share = position - (low << 10)
    return np.stack([low, high]), np.stack([(1 << 10) - share, share])
