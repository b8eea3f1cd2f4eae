"""Rectifiers and clips as limits of the integers that an operator gives anyway."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvm_compress import edge
from tvm_compress.integer_forms.quantised import Expr, Target, Walk
from tvm_compress.ops import LOOKUP, REQUANTIZE, lookup, requantize

__all__ = ["activation", "narrowed"]


def activation(value: Any, target: Target) -> Target | None:
    """Give the target of what a relu or a clip in front of a quantize limits, or None."""
    operator = edge.op_name(value)
    if operator == "relax.nn.relu":
        return target.within(target.zero_point, 127 if target.high >= 127 else target.high)
    if operator == "relax.clip":
        low, high = (_steps(float(bound.value), target) for bound in value.args[1:])
        return target.within(low, high)
    return None


def _steps(number: float, target: Target) -> int:
    """Give the integer of a real number, beyond the limits too; ties to even as in quantize."""
    steps = float(np.round(np.float32(number) / np.float32(target.scale))) + target.zero_point
    return int(min(max(steps, -(1 << 20)), 1 << 20))


def narrowed(walk: Walk, value: Any, low: int, high: int) -> Expr | None:
    """Take a clip of int8 into the operator that gives it, or None."""
    operator = edge.op_name(value)
    if operator == REQUANTIZE:
        a = value.attrs
        limits = [min(max(int(a[key]), low), high) for key in ("low", "high")]
        return requantize(
            value.args[0],
            *(edge.constant_value(arg) for arg in value.args[1:]),
            axis=int(a["axis"]),
            zero_point=int(a["zero_point"]),
            rounding=str(a["rounding"]),
            low=limits[0],
            high=limits[1],
            out_dtype=str(a["out_dtype"]),
        )
    if operator == LOOKUP:
        return lookup(value.args[0], np.clip(edge.constant_value(value.args[1]), low, high))
    if operator == "relax.astype":
        inner = walk.value(value.args[0])
        if edge.op_name(inner) == "relax.clip" and edge.dtype_of(inner) == "int32":
            bounds = [min(max(int(float(b.value)), low), high) for b in inner.args[1:]]
            clip = relax.op.clip(inner.args[0], *(float(b) for b in bounds))
            return relax.op.astype(walk.emit(clip, "clipped"), "int8")
    return None
