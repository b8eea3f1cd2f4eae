"""Functions that are looked up: any elementwise one of one tensor, and softmax's exponential."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from tvm_compress import edge, ops, tflite_arithmetic
from tvm_compress.integer_forms.quantised import Array, Expr, Quantised, Target, Walk
from tvm_compress.integer_forms.rescaling import rescaled
from tvm_compress.ops.meaning import MEANING

__all__ = ["softmax", "table"]

_NAMES = """
abs acos acosh add asin asinh atan atanh ceil clip cos cosh divide erf exp floor log maximum minimum
multiply negative nn.gelu nn.gelu_tanh nn.leakyrelu nn.relu nn.selu nn.silu nn.softplus power round
rsqrt sigmoid sign sin sinh sqrt square subtract tan tanh trunc
"""
_ELEMENTWISE = {f"relax.{name}" for name in _NAMES.split()}


def table(walk: Walk, expr: Expr, target: Target) -> Expr | None:
    """Give any elementwise function of one quantised tensor as a table of 256 entries."""
    leaves: list[Quantised] = []
    if not _function_of_one(walk, expr, leaves, set()):
        return None
    if any(leaf.q != leaves[0].q or not leaf.same(leaves[0]) for leaf in leaves):
        return None
    x = leaves[0]
    if edge.static_shape(x.q) != edge.static_shape(expr):
        return None
    entries = np.arange(-128, 128)
    exact = _gemmlowp_table(walk, expr, x, target)
    if exact is None:
        real = ((entries - x.zero_point) * np.float64(x.scale)).astype(np.float32)
        with np.errstate(all="ignore"):
            result = _evaluate(walk, expr, real, {})
        finite = np.nan_to_num(result.astype(np.float64), nan=0.0, posinf=1e30, neginf=-1e30)
        steps = np.round(np.clip(finite / np.float64(target.scale), -1e6, 1e6))
        exact = steps + target.zero_point
    return ops.lookup(x.q, np.clip(exact, target.low, target.high).astype(np.int8))


def _gemmlowp_table(walk: Walk, expr: Expr, x: Quantised, target: Target) -> Array | None:
    """Give TensorFlow Lite's own table where it has one."""
    operator = edge.op_name(walk.value(expr))
    direct = walk.rounding == "double" and walk.quantised(walk.value(expr).args[0]) is not None
    known = (float(target.scale), target.zero_point)
    if direct and operator == "relax.sigmoid" and known == (1 / 256, -128):
        return tflite_arithmetic.logistic_table(float(x.scale), x.zero_point)
    if direct and operator == "relax.tanh" and known == (1 / 128, 0):
        return tflite_arithmetic.tanh_table(float(x.scale), x.zero_point)
    return None


def _function_of_one(walk: Walk, expr: Expr, leaves: list[Quantised], seen: set[Any]) -> bool:
    """Whether all that is computed is elementwise of quantised ``leaves`` and single numbers."""
    if expr in seen:
        return True
    constant = walk.number(expr)
    if constant is not None:
        return constant.size == 1
    held = walk.held(expr)
    if held is not None:
        return held.integers.size == 1
    value = walk.value(expr)
    if edge.op_name(value) not in _ELEMENTWISE:
        leaf = walk.quantised(expr)
        if leaf is not None:
            leaves.append(leaf)
        return leaf is not None
    seen.add(expr)
    args = [arg for arg in value.args if not isinstance(arg, tirx.FloatImm | tirx.IntImm)]
    return all([_function_of_one(walk, arg, leaves, seen) for arg in args]) and bool(leaves)


def _evaluate(walk: Walk, expr: Expr, real: Array, known: dict[Any, Array]) -> Array:
    """Compute a function of one tensor at all of the tensor's values."""
    if expr in known:
        return known[expr]
    constant = walk.number(expr)
    held = walk.held(expr)
    value = walk.value(expr)
    if constant is not None:
        result = constant.reshape(())
    elif held is not None:
        result = held.real.reshape(())
    elif edge.op_name(value) not in _ELEMENTWISE:
        result = real
    else:
        args = [
            float(arg.value)
            if isinstance(arg, tirx.FloatImm | tirx.IntImm)
            else _evaluate(walk, arg, real, known)
            for arg in value.args
        ]
        result = np.asarray(MEANING[edge.op_name(value) or ""](value.attrs, *args))
        result = result.astype(np.float32)
    known[expr] = result
    return result


def softmax(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give softmax by a table of exponentials; its own scale is 1/256 and its zero point -128."""
    x = walk.quantised(call.args[0])
    if x is None:
        return None
    exps = tflite_arithmetic.exp_table(float(x.scale), 1.0)
    result = ops.softmax(x.q, exps, int(call.attrs.axis))
    own = Quantised(result, np.asarray(1 / 256, np.float32), -128)
    if own.same(target) and not target.limited:
        return result
    return rescaled(walk, name, own.of(walk.emit(result, name)), target)
