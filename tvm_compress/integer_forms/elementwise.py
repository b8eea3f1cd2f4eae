"""Operators of several activations, each in its own scale: sums, products, extremes, joins."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvm_compress import edge
from tvm_compress.errors import UnsupportedError
from tvm_compress.integer_forms.products import with_bias
from tvm_compress.integer_forms.quantised import Expr, Quantised, Target, Walk
from tvm_compress.integer_forms.rescaling import (
    INT32_END,
    centred,
    check_sums,
    int32,
    narrow,
    ratio,
    requantized,
    rounded,
)
from tvm_compress.ops import quantize_multiplier, requantize

__all__ = ["add", "concat", "extreme", "multiply", "subtract"]

# TensorFlow Lite moves both sides of a sum up by as much before it rescales them.
_LEFT_SHIFT = 20
_WIDE: dict[str, Any] = {"low": 1 - (1 << 30), "high": (1 << 30) - 1, "out_dtype": "int32"}


def add(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give a sum of two activations, or the convolution or product whose bias is added."""
    for total, bias in (call.args, reversed(call.args)):
        form = with_bias(walk, name, total, bias, target)
        if form is not None:
            return form
    return _sum(walk, name, call, target, 1)


def subtract(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give a difference of two activations."""
    return _sum(walk, name, call, target, -1)


def _sum(walk: Walk, name: str, call: Any, target: Target, sign: int) -> Expr | None:
    x, y = (walk.quantised(arg) for arg in call.args)
    if x is None or y is None:
        return None
    if walk.rounding == "single":
        return _weighted_sum(walk, name, x, y, target, sign)
    twice = 2.0 * float(max(x.scale, y.scale))
    sides = []
    for side in (x, y):
        wide = centred(walk, side, name)
        # A product, as C leaves the left shift of a negative number undefined.
        wide = walk.emit(relax.op.multiply(wide, int32(1 << _LEFT_SHIFT)), f"{name}_shifted")
        factor = quantize_multiplier(float(side.scale) / twice, "double")
        scaled = requantize(wide, *factor, rounding="double", **_WIDE)
        sides.append(walk.emit(scaled, f"{name}_scaled"))
    operator = relax.op.add if sign > 0 else relax.op.subtract
    acc = walk.emit(operator(*sides), name)
    real = twice / ((1 << _LEFT_SHIFT) * float(target.scale))
    check_sums(name, 2.0**29 * 2.0 ** max(int(quantize_multiplier(real, "double")[1]), 0))
    return rounded(walk, acc, real, target)


def _weighted_sum(
    walk: Walk, name: str, x: Quantised, y: Quantised, target: Target, sign: int
) -> Expr:
    """Give ``(x * m1 + y * m2 + c) >> r`` in int32."""
    reals = [ratio(x.scale, target.scale), sign * ratio(y.scale, target.scale)]
    zeros = [x.zero_point, y.zero_point]
    for right in range(30, 0, -1):
        factors = [round(real * 2**right) for real in reals]
        constant = (target.zero_point << right) + (1 << (right - 1))
        constant -= sum(f * z for f, z in zip(factors, zeros, strict=True))
        if 128 * sum(abs(f) for f in factors) + abs(constant) < INT32_END:
            break
    else:
        raise UnsupportedError(
            f"to-integers: the inputs of {name} have scales {float(x.scale):g} and "
            f"{float(y.scale):g}, its output {float(target.scale):g}; expected scales of less "
            "different size: quantise the network again."
        )
    terms = []
    for side, factor in zip((x, y), factors, strict=True):
        wide = walk.emit(relax.op.astype(side.q, "int32"), f"{name}_wide")
        terms.append(walk.emit(relax.op.multiply(wide, int32(factor)), f"{name}_term"))
    acc = walk.emit(relax.op.add(*terms), name)
    acc = walk.emit(relax.op.add(acc, int32(constant)), f"{name}_rounded")
    acc = walk.emit(relax.op.right_shift(acc, int32(right)), f"{name}_steps")
    return narrow(walk, acc, target)


def multiply(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give the product of two activations, element by element."""
    x, y = (walk.quantised(arg) for arg in call.args)
    if x is None or y is None:
        return None
    real = float(x.scale) * float(y.scale) / float(target.scale)
    if walk.rounding == "double":  # in float32, as TensorFlow Lite computes it
        real = float(np.float32(x.scale) * np.float32(y.scale) / np.float32(target.scale))
    acc = relax.op.multiply(centred(walk, x, name), centred(walk, y, name))
    acc = walk.emit(acc, name)
    shift = max(int(quantize_multiplier(real, walk.rounding)[1]), 0)
    check_sums(name, 255.0 * 255.0 * 2.0**shift)
    return rounded(walk, acc, real, target)


def extreme(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give the larger or the smaller of two, both in the target's steps."""
    sides = _in_steps(walk, name, call.args, target)
    return None if sides is None else edge.with_args(call, sides)


def concat(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Join tensors, all in the target's steps."""
    parts = walk.value(call.args[0])
    sides = _in_steps(walk, name, getattr(parts, "fields", ()), target)
    return relax.op.concat(sides, axis=call.attrs.axis) if sides else None


def _in_steps(walk: Walk, name: str, args: Any, target: Target) -> list[Expr] | None:
    """Give operands in the target's steps, or None where one is not quantised."""
    sides = []
    for arg in args:
        form = requantized(walk, name, arg, target)
        if form is None:
            return None
        sides.append(walk.emit(form, f"{name}_part"))
    return sides
