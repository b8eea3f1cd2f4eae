"""Between scales: int8 as int32 less its zero point, and int32 as int8 of another scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_compress.errors import UnsupportedError
from tvm_compress.integer_forms.quantised import Array, Expr, Quantised, Target, Walk
from tvm_compress.ops import quantize_multiplier, requantize

__all__ = [
    "INT32_END",
    "centred",
    "check_sums",
    "int32",
    "narrow",
    "ratio",
    "requantized",
    "rescaled",
    "rounded",
]

INT32_END = 1 << 31


def int32(value: int) -> Expr:
    """Give an int32 constant of shape ()."""
    return relax.const(int(value), "int32")


def ratio(a: Array, b: Array) -> float:
    """Divide one scale by another, in float64."""
    return float(a) / float(b)


def check_sums(name: str, most: int | float) -> None:
    """Check that int32 holds sums of at most this size.

    Raises:
        UnsupportedError: it does not.
    """
    if most >= INT32_END:
        raise UnsupportedError(
            f"to-integers: the sums of {name} reach {int(most)}; expected them below 2**31, which "
            "an int32 holds: split the layer, or quantise its weights with smaller numbers."
        )


def centred(walk: Walk, x: Quantised, name: str) -> Expr:
    """Give the int32 of a tensor less its zero point."""
    wide = walk.emit(relax.op.astype(x.q, "int32"), f"{name}_wide")
    if x.zero_point == 0:
        return wide
    return walk.emit(relax.op.subtract(wide, int32(x.zero_point)), f"{name}_centred")


def rounded(
    walk: Walk,
    acc: Expr,
    real: float | NDArray[np.float64],
    target: Target,
    axis: int = -1,
    rounding: str | None = None,
) -> Expr:
    """Give int32 sums times ``real``, one number or one along ``axis``, in the target's int8."""
    rounding = rounding or walk.rounding
    return requantize(
        acc,
        *quantize_multiplier(real, rounding),
        axis=axis,
        zero_point=target.zero_point,
        rounding=rounding,
        low=target.low,
        high=target.high,
    )


def narrow(walk: Walk, x: Expr, target: Target) -> Expr:
    """Clip an int32 that has the target's zero point already."""
    clipped = walk.emit(relax.op.clip(x, float(target.low), float(target.high)), "clipped")
    return relax.op.astype(clipped, "int8")


def rescaled(walk: Walk, name: str, x: Quantised, target: Target) -> Expr:
    """Give integers of one scale as those of another."""
    if not x.same(target):
        return rounded(walk, centred(walk, x, name), ratio(x.scale, target.scale), target)
    if target.limited:
        return relax.op.clip(x.q, float(target.low), float(target.high))
    return x.q


def requantized(walk: Walk, name: str, expr: Expr, target: Target) -> Expr | None:
    """Give what stands for integers of one scale as those of another, or None."""
    x = walk.quantised(expr)
    return None if x is None else rescaled(walk, name, x, target)
