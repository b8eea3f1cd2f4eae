"""The integer form of each operator of a quantised network: the rules of ``to-integers``.

A rule is called with a quantize's float argument and gives the int8 expression, or None where the
operator has no integer form as it stands. With ``double`` rounding each rule is TensorFlow Lite's
arithmetic (Jacob et al., arXiv 1712.05877, and the published reference kernels); with ``single``
it is the cheapest form that rounds once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tvm import relax, tirx

from tvm_compress import edge, tflite_arithmetic
from tvm_compress.errors import UnsupportedError
from tvm_compress.ops import (
    LOOKUP,
    REQUANTIZE,
    codebook,
    codebook_numpy,
    lookup,
    quantize_multiplier,
    requantize,
    softmax,
)
from tvm_compress.ops.layout import spatial, split_padding
from tvm_compress.ops.meaning import MEANING, window_counts

__all__ = ["FORMS", "MOVES", "Held", "Quantised", "Target", "Walk"]

Array = NDArray[Any]
Expr = Any
_INT32 = 1 << 31
_WIDE: dict[str, Any] = {"low": 1 - (1 << 30), "high": (1 << 30) - 1, "out_dtype": "int32"}


@dataclass(frozen=True)
class Quantised:
    """An int8 expression that stands for the real ``(q - zero_point) * scale``."""

    q: Expr
    scale: NDArray[np.float32]
    zero_point: int

    def of(self, q: Expr) -> Quantised:
        """Give another expression of the same scale."""
        return Quantised(q, self.scale, self.zero_point)

    def same(self, other: Any) -> bool:
        """Whether another one has the same scale and zero point."""
        return (
            other is not None and self.scale == other.scale and self.zero_point == other.zero_point
        )


@dataclass(frozen=True)
class Target:
    """What a quantize asks for: scale, zero point and the limits of the int8.

    Averages of a uint8 round ties up, those of an int8 away from zero.
    """

    scale: NDArray[np.float32]
    zero_point: int
    low: int = -128
    high: int = 127
    unsigned: bool = False  # the int8 stands for a uint8, less 128

    def within(self, low: int, high: int) -> Target:
        """Give the target of what is clipped to ``low .. high`` and then to these limits."""
        low, high = (min(max(bound, self.low), self.high) for bound in (low, high))
        return Target(self.scale, self.zero_point, low, high, self.unsigned)


@dataclass(frozen=True)
class Held:
    """An integer parameter that is dequantised: dense, or codes and integer centroids."""

    var: Expr
    array: Array
    centroids: Array | None
    scale: Array
    zero_point: Array
    axis: int

    @property
    def integers(self) -> Array:
        """The dense integers."""
        return self.array if self.centroids is None else codebook_numpy(self.array, self.centroids)

    @property
    def real(self) -> Array:
        """The numbers that it stands for, float32."""
        return dequantized(self.integers, self.scale, self.zero_point, self.axis)


class Walk(Protocol):
    """What a rule asks of the pass that walks over the bindings."""

    rounding: str

    def emit(self, value: Expr, name: str) -> Expr: ...  # noqa: D102
    def value(self, expr: Expr) -> Expr: ...  # noqa: D102
    def wanted(self, var: Expr) -> str: ...  # noqa: D102
    def quantised(self, expr: Expr) -> Quantised | None: ...  # noqa: D102
    def held(self, expr: Expr) -> Held | None: ...  # noqa: D102
    def number(self, expr: Expr) -> Array | None: ...  # noqa: D102


_Form = Callable[[Walk, str, Any, Target], Expr | None]
FORMS: dict[str, _Form] = {}


def _form(*operators: str) -> Callable[[_Form], _Form]:
    def register(rule: _Form) -> _Form:
        for operator in operators:
            FORMS[f"relax.{operator}"] = rule
        return rule

    return register


def dequantized(array: Array, scale: Array, zero_point: Array, axis: int) -> Array:
    """Give the float32 that integers stand for."""
    shape = [1] * array.ndim
    if array.ndim:
        shape[axis] = -1
    parts = [p.reshape(shape) if p.size > 1 else p.reshape(()) for p in (scale, zero_point)]
    steps = array.astype(np.int64) - parts[1].astype(np.int64)
    return (steps * parts[0].astype(np.float64)).astype(np.float32)


# ---- small pieces --------------------------------------------------------------------------------


def _int32(value: int) -> Expr:
    return relax.const(int(value), "int32")


def _wide(walk: Walk, x: Quantised, name: str) -> Expr:
    """Give the int32 of a tensor less its zero point."""
    wide = walk.emit(relax.op.astype(x.q, "int32"), f"{name}_wide")
    if x.zero_point == 0:
        return wide
    return walk.emit(relax.op.subtract(wide, _int32(x.zero_point)), f"{name}_centred")


def _factor(walk: Walk, real: float | NDArray[np.float64]) -> tuple[Array, Array]:
    return quantize_multiplier(real, walk.rounding)


def _requantize(
    walk: Walk,
    acc: Expr,
    real: float | NDArray[np.float64],
    target: Target,
    axis: int = -1,
    rounding: str | None = None,
) -> Expr:
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


def _narrow(walk: Walk, x: Expr, target: Target) -> Expr:
    """Clip an int32 that has the target's zero point already."""
    clipped = walk.emit(relax.op.clip(x, float(target.low), float(target.high)), "clipped")
    return relax.op.astype(clipped, "int8")


def _ratio(a: Array, b: Array) -> float:
    return float(a) / float(b)


def _bounded(name: str, most: int | float) -> None:
    if most >= _INT32:
        raise UnsupportedError(
            f"to-integers: the sums of {name} reach {int(most)}; expected them below 2**31, which "
            "an int32 holds: split the layer, or quantise its weights with smaller numbers."
        )


# ---- moves, activations, tables ------------------------------------------------------------------


def _relu(call: Any, x: Quantised) -> Expr:
    return relax.op.clip(x.q, float(x.zero_point), 127.0)


def _pad(call: Any, x: Quantised) -> Expr:
    a = call.attrs
    widths = [int(w) for w in a.pad_width]
    if str(a.pad_mode) != "constant":
        return edge.with_args(call, [x.q])
    if float(a.pad_value) != 0.0:
        return None
    return relax.op.nn.pad(x.q, widths, pad_value=float(x.zero_point))


def _resize_nearest(call: Any, x: Quantised) -> Expr:
    if str(call.attrs.method) != "nearest_neighbor":
        return None
    return edge.with_args(call, [x.q, *call.args[1:]])


MOVES: dict[str, Callable[[Any, Quantised], Expr | None]] = {
    "relax.nn.relu": _relu,
    "relax.nn.pad": _pad,
    "relax.image.resize2d": _resize_nearest,
}


def _steps(number: float, target: Target) -> int:
    """Give the integer of a real number, beyond the limits too; ties to even as in quantize."""
    steps = float(np.round(np.float32(number) / np.float32(target.scale))) + target.zero_point
    return int(min(max(steps, -(1 << 20)), 1 << 20))


def activation(value: Any, target: Target) -> Target | None:
    """Give the target of what a relu or a clip in front of a quantize limits, or None."""
    operator = edge.op_name(value)
    if operator == "relax.nn.relu":
        return target.within(target.zero_point, 127 if target.high >= 127 else target.high)
    if operator == "relax.clip":
        low, high = (_steps(float(bound.value), target) for bound in value.args[1:])
        return target.within(low, high)
    return None


def requantized(walk: Walk, name: str, expr: Expr, target: Target) -> Expr | None:
    """Give integers of one scale as those of another."""
    x = walk.quantised(expr)
    if x is None:
        return None
    if x.scale == target.scale and x.zero_point == target.zero_point:
        if (target.low, target.high) == (-128, 127):
            return x.q
        return relax.op.clip(x.q, float(target.low), float(target.high))
    return _requantize(walk, _wide(walk, x, name), _ratio(x.scale, target.scale), target)


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
    return lookup(x.q, np.clip(exact, target.low, target.high).astype(np.int8))


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
    if expr in seen:
        return True
    constant = walk.number(expr)
    if constant is not None:
        return constant.size == 1
    held = walk.held(expr)
    if held is not None:
        return held.integers.size == 1
    value = walk.value(expr)
    if edge.op_name(value) == "relax.dequantize":
        leaf = walk.quantised(expr)
        if leaf is not None:
            leaves.append(leaf)
        return leaf is not None
    if edge.op_name(value) not in _ELEMENTWISE:
        leaf = walk.quantised(expr)
        if leaf is not None:
            leaves.append(leaf)
        return leaf is not None
    seen.add(expr)
    args = [arg for arg in value.args if not isinstance(arg, tirx.FloatImm | tirx.IntImm)]
    return all([_function_of_one(walk, arg, leaves, seen) for arg in args]) and bool(leaves)


def _evaluate(walk: Walk, expr: Expr, real: Array, known: dict[Any, Array]) -> Array:
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


# ---- sums of products ----------------------------------------------------------------------------

_CONVOLUTIONS = tuple(f"relax.nn.conv{rank}d" for rank in (1, 2, 3))


@_form("nn.conv1d", "nn.conv2d", "nn.conv3d", "matmul")
def _product(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    return _layer(walk, call, name, None, f"{name}_bias", target)


@_form("add")
def _add(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    for total, bias in (call.args, reversed(call.args)):
        value = walk.value(total)
        if edge.op_name(value) in (*_CONVOLUTIONS, "relax.matmul") and walk.quantised(bias) is None:
            held = walk.held(bias)
            if held is not None or walk.number(bias) is not None:
                return _layer(walk, value, walk.wanted(total), bias, name, target)
        if edge.op_name(value) in (*_CONVOLUTIONS, "relax.matmul") and walk.held(bias) is not None:
            return _layer(walk, value, walk.wanted(total), bias, name, target)
    return _sum(walk, name, call, target, 1)


@_form("subtract")
def _subtract(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    return _sum(walk, name, call, target, -1)


def _layer(
    walk: Walk, call: Any, name: str, bias: Expr | None, sum_name: str, target: Target
) -> Expr | None:
    """Give a convolution or product with its bias."""
    x, weight = walk.quantised(call.args[0]), walk.held(call.args[1])
    if x is None:
        return None
    if weight is None:
        y = walk.quantised(call.args[1]) if edge.op_name(call) == "relax.matmul" else None
        return None if y is None or bias is not None else _matmul(walk, name, call, x, y, target)
    convolution = edge.op_name(call) in _CONVOLUTIONS
    rank = weight.array.ndim
    output = str(call.attrs.kernel_layout).index("O") if convolution else rank - 1
    if rank < 2 or (weight.scale.size > 1 and weight.axis % rank != output):
        return None
    if weight.zero_point.size > 1 and weight.axis % rank != output:
        return None
    channels = weight.array.shape[output]
    integers, var = _centred_weight(walk, weight, output)
    others = tuple(axis for axis in range(rank) if axis != output)
    if not convolution and rank > 2:
        return None
    totals = integers.sum(others, dtype=np.int64)
    sizes = np.abs(integers).sum(others, dtype=np.int64)
    scales = np.broadcast_to(weight.scale.astype(np.float64).reshape(-1), (channels,))
    product = float(x.scale) * (scales if weight.scale.size > 1 else scales[0])
    summand, shape = _bias(walk, bias, float(x.scale) * scales, channels, call, convolution)
    if summand is None:
        return None
    folded = summand - x.zero_point * totals
    _bounded(name, int((sizes * 128 + np.abs(folded)).max(initial=0)))
    if convolution:
        data = _padded(walk, call, x, name)
        acc = edge.integer_convolution(call, data, var)
        axis = str(call.attrs.out_layout or call.attrs.data_layout).index("C")
    else:
        acc = relax.op.matmul(x.q, var, out_dtype="int32")
        axis = edge.tensor_type(call).ndim - 1
    acc = walk.emit(acc, name)
    constant = walk.emit(edge.constant(folded.astype(np.int32).reshape(shape)), f"{name}_bias")
    acc = walk.emit(relax.op.add(acc, constant), sum_name)
    real = product / float(target.scale)
    if not convolution:
        # LiteRT's fully connected rounds once, unlike its convolutions.
        return _requantize(walk, acc, real, target, axis, "single")
    if walk.rounding == "double":
        shift = np.maximum(_factor(walk, real)[1], 0)
        _bounded(name, float(((sizes * 128 + np.abs(folded)) * 2.0**shift).max(initial=0)))
    return _requantize(walk, acc, real, target, axis)


def _centred_weight(walk: Walk, weight: Held, output: int) -> tuple[Array, Expr]:
    """Give the weight less its zero point: the numbers and what is bound to its name."""
    shape = [1] * weight.array.ndim
    shape[output] = -1
    zero = weight.zero_point.astype(np.int64)
    name = walk.wanted(weight.var) if isinstance(weight.var, relax.Var) else "weight"
    if (
        not zero.any()
        and (weight.centroids if weight.centroids is not None else weight.array).dtype == np.int8
    ):
        return weight.integers.astype(np.int64), weight.var
    if weight.centroids is not None and zero.size == 1:
        centred = weight.centroids.astype(np.int64) - zero.reshape(())
        table = edge.constant(centred.astype(_narrowest(centred)))
        var = walk.emit(codebook(edge.constant(weight.array), table), name)
        return codebook_numpy(weight.array, centred), var
    integers = weight.integers.astype(np.int64)
    integers = integers - (zero.reshape(shape) if zero.size > 1 else zero.reshape(()))
    return integers, walk.emit(edge.constant(integers.astype(_narrowest(integers))), name)


def _narrowest(integers: Array) -> str:
    small = integers.min(initial=0) >= -128 and integers.max(initial=0) <= 127
    return "int8" if small else "int16"


def _bias(
    walk: Walk, bias: Expr | None, scales: Array, channels: int, call: Any, convolution: bool
) -> tuple[Array | None, tuple[int, ...]]:
    """Give the bias in steps of the sums, (C,) int64, and the shape in which it is added."""
    rank = int(edge.tensor_type(call).ndim)
    shape: tuple[int, ...] = (channels,)
    if convolution:
        axis = str(call.attrs.out_layout or call.attrs.data_layout).index("C")
        shape = (channels, *([1] * (rank - 1 - axis)))
    if bias is None:
        return np.zeros(channels, np.int64), shape
    held = walk.held(bias)
    array = walk.number(bias) if held is None else held.integers
    assert array is not None
    full = (1,) * (rank - array.ndim) + array.shape
    axis = rank - len(shape)
    if array.ndim > rank or any(n != 1 for i, n in enumerate(full) if i != axis):
        return None, shape
    if held is not None and held.array.dtype == np.int32 and not held.zero_point.any():
        own = np.broadcast_to(held.scale.astype(np.float64).reshape(-1), scales.shape)
        # TensorFlow Lite adds the integers whatever their scale is said to be.
        if walk.rounding == "double" or np.allclose(own, scales, rtol=1e-4, atol=0):
            return np.broadcast_to(array.reshape(-1), (channels,)).astype(np.int64), shape
    real = np.asarray(array if held is None else held.real, np.float64).reshape(-1)
    steps = np.round(np.broadcast_to(real, (channels,)) / scales)
    return np.clip(steps, -_INT32, _INT32 - 1).astype(np.int64), shape


def _padded(walk: Walk, call: Any, x: Quantised, name: str) -> Expr:
    """Pad with the zero point, which stands for 0."""
    layout = str(call.attrs.data_layout)
    sides = split_padding([int(p) for p in call.attrs.padding])
    if not any(a or b for a, b in sides):
        return x.q
    around = dict(zip(spatial(len(layout) - 2), sides, strict=True))
    widths = [width for letter in layout for width in around.get(letter, (0, 0))]
    return walk.emit(relax.op.nn.pad(x.q, widths, pad_value=float(x.zero_point)), f"{name}_padded")


def _matmul(walk: Walk, name: str, call: Any, x: Quantised, y: Quantised, target: Target) -> Expr:
    """Give the product of two activations."""
    length = (edge.static_shape(call.args[0]) or (1,))[-1]
    _bounded(name, length * 255.0 * 255.0)
    sides = []
    for side in (x, y):
        wide = walk.emit(relax.op.astype(side.q, "int16"), f"{name}_wide")
        zero = relax.const(side.zero_point, "int16")
        sides.append(walk.emit(relax.op.subtract(wide, zero), f"{name}_centred"))
    acc = walk.emit(relax.op.matmul(*sides, out_dtype="int32"), name)
    real = float(x.scale) * float(y.scale) / float(target.scale)
    return _requantize(walk, acc, real, target)


# ---- elementwise of two --------------------------------------------------------------------------

_LEFT_SHIFT = 20


def _sum(walk: Walk, name: str, call: Any, target: Target, sign: int) -> Expr | None:
    x, y = (walk.quantised(arg) for arg in call.args)
    if x is None or y is None:
        return None
    if walk.rounding == "single":
        return _weighted_sum(walk, name, x, y, target, sign)
    twice = 2.0 * float(max(x.scale, y.scale))
    sides = []
    for side in (x, y):
        wide = _wide(walk, side, name)
        # A product, as C leaves the left shift of a negative number undefined.
        wide = walk.emit(relax.op.multiply(wide, _int32(1 << _LEFT_SHIFT)), f"{name}_shifted")
        factor = _factor(walk, float(side.scale) / twice)
        scaled = requantize(wide, *factor, rounding="double", **_WIDE)
        sides.append(walk.emit(scaled, f"{name}_scaled"))
    operator = relax.op.add if sign > 0 else relax.op.subtract
    acc = walk.emit(operator(*sides), name)
    real = twice / ((1 << _LEFT_SHIFT) * float(target.scale))
    _bounded(name, 2.0**29 * 2.0 ** max(int(_factor(walk, real)[1]), 0))
    return _requantize(walk, acc, real, target)


def _weighted_sum(
    walk: Walk, name: str, x: Quantised, y: Quantised, target: Target, sign: int
) -> Expr:
    """Give ``(x * m1 + y * m2 + c) >> r`` in int32."""
    reals = [_ratio(x.scale, target.scale), sign * _ratio(y.scale, target.scale)]
    zeros = [x.zero_point, y.zero_point]
    for right in range(30, 0, -1):
        factors = [round(real * 2**right) for real in reals]
        constant = (target.zero_point << right) + (1 << (right - 1))
        constant -= sum(f * z for f, z in zip(factors, zeros, strict=True))
        if 128 * sum(abs(f) for f in factors) + abs(constant) < _INT32:
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
        terms.append(walk.emit(relax.op.multiply(wide, _int32(factor)), f"{name}_term"))
    acc = walk.emit(relax.op.add(*terms), name)
    acc = walk.emit(relax.op.add(acc, _int32(constant)), f"{name}_rounded")
    acc = walk.emit(relax.op.right_shift(acc, _int32(right)), f"{name}_steps")
    return _narrow(walk, acc, target)


@_form("multiply")
def _multiply(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    x, y = (walk.quantised(arg) for arg in call.args)
    if x is None or y is None:
        return None
    real = float(x.scale) * float(y.scale) / float(target.scale)
    if walk.rounding == "double":  # in float32, as TensorFlow Lite computes it
        real = float(np.float32(x.scale) * np.float32(y.scale) / np.float32(target.scale))
    acc = relax.op.multiply(_wide(walk, x, name), _wide(walk, y, name))
    acc = walk.emit(acc, name)
    shift = max(int(_factor(walk, real)[1]), 0)
    _bounded(name, 255.0 * 255.0 * 2.0**shift)
    return _requantize(walk, acc, real, target)


@_form("maximum", "minimum")
def _extreme(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    sides = [_same_steps(walk, name, arg, target) for arg in call.args]
    if any(side is None for side in sides):
        return None
    return edge.with_args(call, sides)


def _same_steps(walk: Walk, name: str, arg: Expr, target: Target) -> Expr | None:
    """Give an operand in the target's steps."""
    form = requantized(walk, name, arg, target)
    return None if form is None else walk.emit(form, f"{name}_part")


@_form("concat")
def _concat(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    parts = walk.value(call.args[0])
    sides = [_same_steps(walk, name, field, target) for field in getattr(parts, "fields", ())]
    if not sides or any(side is None for side in sides):
        return None
    return relax.op.concat(sides, axis=call.attrs.axis)


# ---- means ---------------------------------------------------------------------------------------


def _divided(walk: Walk, name: str, acc: Expr, counts: Array | int, target: Target) -> Expr:
    """Divide sums of int8 by counts, ties away from zero, or upwards where they stand for uint8."""
    half = np.asarray(counts, np.int32) // 2

    def operand(value: Array, what: str) -> Expr:
        made = edge.constant(value.astype(np.int32))
        return made if value.ndim == 0 else walk.emit(made, f"{name}_{what}")

    if target.unsigned:
        above = operand(np.asarray(counts, np.int32) * 128 + half, "halves")
        moved = walk.emit(relax.op.add(acc, above), f"{name}_moved")
        mean = relax.op.divide(moved, operand(np.asarray(counts), "counts"))
        return walk.emit(
            relax.op.subtract(walk.emit(mean, f"{name}_up"), _int32(128)), f"{name}_mean"
        )
    sign = walk.emit(relax.op.right_shift(acc, _int32(31)), f"{name}_sign")
    # Half of the count, less of a negative sum: division truncates.
    turned = walk.emit(relax.op.multiply(sign, operand(half * 2, "counts")), f"{name}_turned")
    moved = walk.emit(relax.op.add(acc, operand(half, "halves")), f"{name}_moved")
    moved = walk.emit(relax.op.add(moved, turned), f"{name}_nudged")
    return walk.emit(relax.op.divide(moved, operand(np.asarray(counts), "counts")), f"{name}_mean")


@_form(
    "nn.avg_pool1d",
    "nn.avg_pool2d",
    "nn.avg_pool3d",
    "nn.adaptive_avg_pool1d",
    "nn.adaptive_avg_pool2d",
    "nn.adaptive_avg_pool3d",
)
def _average(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    x = walk.quantised(call.args[0])
    shape = edge.static_shape(call.args[0])
    if x is None or shape is None:
        return None
    layout = str(call.attrs.layout)
    axes = [axis for axis, letter in enumerate(layout) if letter not in "NC"]
    outputs = edge.static_shape(call) or ()
    whole = all(outputs[axis] == 1 for axis in axes)
    if "adaptive" in str(edge.op_name(call)):
        if not whole:
            return None
        window = [shape[axis] for axis in axes]
        padding = [(0, 0)] * len(axes)
    else:
        window = [int(k) for k in call.attrs.pool_size]
        padding = split_padding([int(p) for p in call.attrs.padding])
    padded = any(a or b for a, b in padding)
    all_of_it = whole and not padded and window == [shape[axis] for axis in axes]
    if all_of_it:
        acc = walk.emit(relax.op.astype(x.q, "int32"), f"{name}_wide")
        acc = walk.emit(relax.op.sum(acc, axes, keepdims=True), name)
        return _mean_of(walk, name, acc, x, int(math.prod(window)), target)
    counts = window_counts(call.attrs, shape)
    include = bool(getattr(call.attrs, "count_include_pad", False))
    channels = shape[layout.index("C")]
    # The sum of a window is a depthwise convolution with ones.
    data, strides = x.q, [int(s) for s in call.attrs.strides]
    dilation = [int(d) for d in call.attrs.dilation]
    beyond = [
        max((outputs[axis] - 1) * s + (k - 1) * d + 1 - shape[axis] - sum(around), 0)
        for axis, s, k, d, around in zip(axes, strides, window, dilation, padding, strict=True)
    ]
    if any(beyond) and include:
        return None
    around = {
        layout[axis]: (before, after + more)
        for axis, (before, after), more in zip(axes, padding, beyond, strict=True)
    }
    if padded or any(beyond):
        widths = [width for letter in layout for width in around.get(letter, (0, 0))]
        fill = float(x.zero_point) if include else 0.0  # what is not counted adds 0 to the sum
        data = walk.emit(relax.op.nn.pad(data, widths, pad_value=fill), f"{name}_padded")
    ones = walk.emit(edge.constant(np.ones((channels, 1, *window), np.int8)), f"{name}_ones")
    rank = len(window)
    build = (relax.op.nn.conv1d, relax.op.nn.conv2d, relax.op.nn.conv3d)[rank - 1]
    acc = build(
        data,
        ones,
        strides=strides,
        padding=0,
        dilation=dilation,
        groups=channels,
        data_layout=layout,
        kernel_layout="OI" + spatial(rank),
        out_dtype="int32",
    )
    acc = walk.emit(acc, name)
    if counts.min() == counts.max():
        return _mean_of(walk, name, acc, x, int(counts.flat[0]), target)
    mean = _divided(walk, name, acc, counts, target)
    if x.scale == target.scale and x.zero_point == target.zero_point:
        return _narrow(walk, mean, target)
    mean = walk.emit(relax.op.subtract(mean, _int32(x.zero_point)), f"{name}_centred")
    return _requantize(walk, mean, _ratio(x.scale, target.scale), target)


def _mean_of(walk: Walk, name: str, acc: Expr, x: Quantised, count: int, target: Target) -> Expr:
    """Give the mean of ``count`` summed elements."""
    _bounded(name, 128.0 * count)
    same = x.scale == target.scale and x.zero_point == target.zero_point
    if walk.rounding == "double" and same:
        mean = _divided(walk, name, acc, count, target)
        return _narrow(walk, mean, target)
    if x.zero_point:
        acc = walk.emit(relax.op.subtract(acc, _int32(count * x.zero_point)), f"{name}_centred")
    _bounded(name, 256.0 * count)
    return _requantize(walk, acc, _ratio(x.scale, target.scale) / count, target)


def _summed(walk: Walk, name: str, call: Any) -> tuple[Quantised, Expr, int] | None:
    """Sum over the axes of a call: (the tensor, its int32 sums, how many elements each)."""
    x = walk.quantised(call.args[0])
    shape = edge.static_shape(call.args[0])
    if x is None or shape is None:
        return None
    axes = range(len(shape)) if call.attrs.axis is None else [int(a) for a in call.attrs.axis]
    count = math.prod(shape[axis] for axis in axes)
    acc = walk.emit(relax.op.astype(x.q, "int32"), f"{name}_wide")
    acc = relax.op.sum(acc, call.attrs.axis, keepdims=bool(call.attrs.keepdims))
    acc = walk.emit(acc, name)
    return x, acc, count


@_form("sum")
def _total(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    summed = _summed(walk, name, call)
    if summed is None:
        return None
    x, acc, count = summed
    _bounded(name, 256.0 * count)
    if x.zero_point:
        acc = walk.emit(relax.op.subtract(acc, _int32(count * x.zero_point)), f"{name}_centred")
    return _requantize(walk, acc, _ratio(x.scale, target.scale), target)


@_form("mean")
def _mean(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    summed = _summed(walk, name, call)
    if summed is None:
        return None
    x, acc, count = summed
    if walk.rounding == "single":
        return _mean_of(walk, name, acc, x, count, target)
    _bounded(name, 256.0 * count)
    if x.zero_point:
        acc = walk.emit(relax.op.subtract(acc, _int32(count * x.zero_point)), f"{name}_centred")
    multiplier, shift = _factor(walk, _ratio(x.scale, target.scale))
    # TensorFlow Lite divides the multiplier by the count, moved up by as many bits as fit.
    bits = min(count.bit_length() - 1, 32, 31 + int(shift))
    multiplier = np.asarray((int(multiplier) << bits) // count, np.int32)
    return requantize(
        acc,
        multiplier,
        shift - bits,
        zero_point=target.zero_point,
        rounding="double",
        low=target.low,
        high=target.high,
    )


# ---- softmax, resize -----------------------------------------------------------------------------


@_form("nn.softmax")
def _softmax(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    x = walk.quantised(call.args[0])
    if x is None:
        return None
    exps = tflite_arithmetic.exp_table(float(x.scale), 1.0)
    result = softmax(x.q, exps, int(call.attrs.axis))
    own = Quantised(None, np.float32(1 / 256), -128)  # type: ignore[arg-type]
    if own.scale == target.scale and own.zero_point == target.zero_point:
        if (target.low, target.high) == (-128, 127):
            return result
        result = walk.emit(result, name)
        return relax.op.clip(result, float(target.low), float(target.high))
    result = walk.emit(result, name)
    return _requantize(
        walk, _wide(walk, own.of(result), name), _ratio(own.scale, target.scale), target
    )


@_form("image.resize2d")
def _resize(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give the linear resize: weights of 10 bits along both axes, as TensorFlow Lite's."""
    x = walk.quantised(call.args[0])
    shape, a = edge.static_shape(call.args[0]), call.attrs
    if x is None or shape is None or str(a.method) != "linear":
        return None
    layout = str(a.layout)
    sizes = edge.static_shape(call) or ()
    acc = walk.emit(relax.op.astype(x.q, "int32"), f"{name}_wide")
    for letter in "HW":
        axis = layout.index(letter)
        mode = str(a.coordinate_transformation_mode)
        # TensorFlow Lite has integer positions of int8, and float ones of uint8.
        exact = walk.rounding == "single" or target.unsigned
        taps = tflite_arithmetic.resize_taps(shape[axis], sizes[axis], mode, exact=exact)
        if taps is None:
            return None
        places, weights = taps
        along = [1] * len(shape)
        along[axis] = -1
        terms = []
        for i in range(2):
            index = edge.constant(places[i].astype(np.int32))
            taken = walk.emit(relax.op.take(acc, index, axis=axis, mode="clip"), f"{name}_taken")
            factor = edge.constant(weights[i].astype(np.int32).reshape(along))
            factor = walk.emit(factor, f"{name}_weights")
            terms.append(walk.emit(relax.op.multiply(taken, factor), f"{name}_term"))
        acc = walk.emit(relax.op.add(*terms), name)
    if x.scale == target.scale and x.zero_point == target.zero_point:
        mean = _divided(walk, name, acc, 1 << 20, target)
        return _narrow(walk, mean, target)
    acc = walk.emit(relax.op.subtract(acc, _int32(x.zero_point << 20)), f"{name}_centred")
    return _requantize(walk, acc, _ratio(x.scale, target.scale) / (1 << 20), target)
