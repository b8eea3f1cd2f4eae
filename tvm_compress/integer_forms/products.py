"""Convolutions and matrix products: int32 sums of int8 by int8 or int16, and their biases."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvm_compress import edge
from tvm_compress.integer_forms.quantised import Array, Expr, Held, Quantised, Target, Walk
from tvm_compress.integer_forms.rescaling import INT32_END, check_sums, rounded
from tvm_compress.ops import codebook, codebook_numpy, quantize_multiplier
from tvm_compress.ops.layout import spatial, split_padding

__all__ = ["product", "with_bias"]

_CONVOLUTIONS = tuple(f"relax.nn.conv{rank}d" for rank in (1, 2, 3))


def product(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give a convolution or product without a bias."""
    return _layer(walk, call, name, None, f"{name}_bias", target)


def with_bias(walk: Walk, name: str, total: Expr, bias: Expr, target: Target) -> Expr | None:
    """Give the sum of a convolution or product and a parameter, or None if it is another sum."""
    value = walk.value(total)
    if edge.op_name(value) not in (*_CONVOLUTIONS, "relax.matmul"):
        return None
    if walk.held(bias) is None and walk.number(bias) is None:
        return None
    return _layer(walk, value, walk.wanted(total), bias, name, target)


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
    if rank < 2 or (not convolution and rank > 2):
        return None
    several = weight.scale.size > 1 or weight.zero_point.size > 1
    if several and weight.axis % rank != output:
        return None
    channels = weight.array.shape[output]
    integers, var = _centred_weight(walk, weight, output)
    others = tuple(axis for axis in range(rank) if axis != output)
    totals = integers.sum(others, dtype=np.int64)
    sizes = np.abs(integers).sum(others, dtype=np.int64)
    scales = np.broadcast_to(weight.scale.astype(np.float64).reshape(-1), (channels,))
    real = float(x.scale) * (scales if weight.scale.size > 1 else scales[0])
    summand, shape = _bias(walk, bias, float(x.scale) * scales, channels, call, convolution)
    if summand is None:
        return None
    folded = summand - x.zero_point * totals
    check_sums(name, int((sizes * 128 + np.abs(folded)).max(initial=0)))
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
    real = real / float(target.scale)
    if not convolution:
        # LiteRT's fully connected rounds once, unlike its convolutions.
        return rounded(walk, acc, real, target, axis, "single")
    if walk.rounding == "double":
        shift = np.maximum(quantize_multiplier(real, "double")[1], 0)
        check_sums(name, float(((sizes * 128 + np.abs(folded)) * 2.0**shift).max(initial=0)))
    return rounded(walk, acc, real, target, axis)


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
    return np.clip(steps, -INT32_END, INT32_END - 1).astype(np.int64), shape


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
    check_sums(name, length * 255.0 * 255.0)
    sides = []
    for side in (x, y):
        wide = walk.emit(relax.op.astype(side.q, "int16"), f"{name}_wide")
        zero = relax.const(side.zero_point, "int16")
        sides.append(walk.emit(relax.op.subtract(wide, zero), f"{name}_centred"))
    acc = walk.emit(relax.op.matmul(*sides, out_dtype="int32"), name)
    real = float(x.scale) * float(y.scale) / float(target.scale)
    return rounded(walk, acc, real, target)
