"""Operators that move the integers of one tensor, or pick among them, as they do with reals."""

from __future__ import annotations

from typing import Any

from tvm import relax

from tvm_compress import edge
from tvm_compress.integer_forms.quantised import Expr, Quantised

__all__ = ["alike", "pad", "relu", "resize_nearest"]


def alike(call: Any, x: Quantised) -> Expr:
    """Give the same operator of the integers."""
    return edge.with_args(call, [x.q, *call.args[1:]])


def relu(call: Any, x: Quantised) -> Expr:
    """Give the integers cut at the zero point."""
    return relax.op.clip(x.q, float(x.zero_point), 127.0)


def pad(call: Any, x: Quantised) -> Expr | None:
    """Pad zeros with the zero point; None for another number."""
    a = call.attrs
    if str(a.pad_mode) != "constant":
        return alike(call, x)
    if float(a.pad_value) != 0.0:
        return None
    return relax.op.nn.pad(x.q, [int(w) for w in a.pad_width], pad_value=float(x.zero_point))


def resize_nearest(call: Any, x: Quantised) -> Expr | None:
    """Give the resize that takes the nearest element; None for another one."""
    return alike(call, x) if str(call.attrs.method) == "nearest_neighbor" else None
