"""Means and sums of one tensor: pooled, along axes, and between neighbours of a linear resize."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax

from tvm_compress import edge, tflite_arithmetic
from tvm_compress.integer_forms.quantised import Array, Expr, Quantised, Target, Walk
from tvm_compress.integer_forms.rescaling import check_sums, int32, narrow, ratio, rounded
from tvm_compress.ops import quantize_multiplier, requantize
from tvm_compress.ops.layout import spatial, split_padding
from tvm_compress.ops.meaning import window_counts

__all__ = ["mean", "pooled", "resized", "total"]


# ---- pieces --------------------------------------------------------------------------------------


def _divided(walk: Walk, name: str, acc: Expr, counts: Array | int, target: Target) -> Expr:
    """Divide sums of int8 by counts, ties away from zero, or upwards where they stand for uint8."""
    half = np.asarray(counts, np.int32) // 2

    def operand(value: Array, what: str) -> Expr:
        made = edge.constant(value.astype(np.int32))
        return made if value.ndim == 0 else walk.emit(made, f"{name}_{what}")

    if target.unsigned:
        above = operand(np.asarray(counts, np.int32) * 128 + half, "halves")
        moved = walk.emit(relax.op.add(acc, above), f"{name}_moved")
        up = relax.op.divide(moved, operand(np.asarray(counts), "counts"))
        return walk.emit(relax.op.subtract(walk.emit(up, f"{name}_up"), int32(128)), f"{name}_mean")
    sign = walk.emit(relax.op.right_shift(acc, int32(31)), f"{name}_sign")
    # Half of the count, less of a negative sum: division truncates.
    turned = walk.emit(relax.op.multiply(sign, operand(half * 2, "counts")), f"{name}_turned")
    moved = walk.emit(relax.op.add(acc, operand(half, "halves")), f"{name}_moved")
    moved = walk.emit(relax.op.add(moved, turned), f"{name}_nudged")
    return walk.emit(relax.op.divide(moved, operand(np.asarray(counts), "counts")), f"{name}_mean")


def _centred_sums(walk: Walk, name: str, acc: Expr, x: Quantised, count: int) -> Expr:
    """Take the zero point off sums of ``count`` elements."""
    check_sums(name, 256.0 * count)
    if x.zero_point == 0:
        return acc
    return walk.emit(relax.op.subtract(acc, int32(count * x.zero_point)), f"{name}_centred")


def _mean_of(walk: Walk, name: str, acc: Expr, x: Quantised, count: int, target: Target) -> Expr:
    """Give the mean of ``count`` summed elements."""
    check_sums(name, 128.0 * count)
    if walk.rounding == "double" and x.same(target):
        return narrow(walk, _divided(walk, name, acc, count, target), target)
    acc = _centred_sums(walk, name, acc, x, count)
    return rounded(walk, acc, ratio(x.scale, target.scale) / count, target)


# ---- windows -------------------------------------------------------------------------------------


def pooled(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give an average pool, of windows or of a whole map."""
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
    if whole and not padded and window == [shape[axis] for axis in axes]:
        acc = walk.emit(relax.op.astype(x.q, "int32"), f"{name}_wide")
        acc = walk.emit(relax.op.sum(acc, axes, keepdims=True), name)
        return _mean_of(walk, name, acc, x, int(math.prod(window)), target)
    acc = _window_sums(walk, name, call, x, window, padding)
    if acc is None:
        return None
    counts = window_counts(call.attrs, shape)
    if counts.min() == counts.max():
        return _mean_of(walk, name, acc, x, int(counts.flat[0]), target)
    mean = _divided(walk, name, acc, counts, target)
    if x.same(target):
        return narrow(walk, mean, target)
    mean = walk.emit(relax.op.subtract(mean, int32(x.zero_point)), f"{name}_centred")
    return rounded(walk, mean, ratio(x.scale, target.scale), target)


def _window_sums(
    walk: Walk,
    name: str,
    call: Any,
    x: Quantised,
    window: list[int],
    padding: list[tuple[int, int]],
) -> Expr | None:
    """Sum the windows of a pool: a depthwise convolution with ones."""
    layout, a = str(call.attrs.layout), call.attrs
    shape, outputs = edge.static_shape(call.args[0]) or (), edge.static_shape(call) or ()
    axes = [axis for axis, letter in enumerate(layout) if letter not in "NC"]
    channels, rank = shape[layout.index("C")], len(window)
    strides, dilation = [int(s) for s in a.strides], [int(d) for d in a.dilation]
    include = bool(getattr(a, "count_include_pad", False))
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
    data = x.q
    widths = [width for letter in layout for width in around.get(letter, (0, 0))]
    if any(widths):
        fill = float(x.zero_point) if include else 0.0  # what is not counted adds 0 to the sum
        data = walk.emit(relax.op.nn.pad(data, widths, pad_value=fill), f"{name}_padded")
    ones = walk.emit(edge.constant(np.ones((channels, 1, *window), np.int8)), f"{name}_ones")
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
    return walk.emit(acc, name)


# ---- axes ----------------------------------------------------------------------------------------


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
    return x, walk.emit(acc, name), count


def total(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give a sum along axes."""
    summed = _summed(walk, name, call)
    if summed is None:
        return None
    x, acc, count = summed
    acc = _centred_sums(walk, name, acc, x, count)
    return rounded(walk, acc, ratio(x.scale, target.scale), target)


def mean(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give a mean along axes."""
    summed = _summed(walk, name, call)
    if summed is None:
        return None
    x, acc, count = summed
    if walk.rounding == "single":
        return _mean_of(walk, name, acc, x, count, target)
    acc = _centred_sums(walk, name, acc, x, count)
    multiplier, shift = quantize_multiplier(ratio(x.scale, target.scale), "double")
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


# ---- neighbours ----------------------------------------------------------------------------------


def resized(walk: Walk, name: str, call: Any, target: Target) -> Expr | None:
    """Give the linear resize: weights of 10 bits along both axes, as TensorFlow Lite's."""
    x = walk.quantised(call.args[0])
    shape, a = edge.static_shape(call.args[0]), call.attrs
    if x is None or shape is None or str(a.method) != "linear":
        return None
    layout, mode = str(a.layout), str(a.coordinate_transformation_mode)
    sizes = edge.static_shape(call) or ()
    # TensorFlow Lite has integer positions of int8, and float ones of uint8.
    exact = walk.rounding == "single" or target.unsigned
    acc = walk.emit(relax.op.astype(x.q, "int32"), f"{name}_wide")
    for letter in "HW":
        axis = layout.index(letter)
        taps = tflite_arithmetic.resize_taps(shape[axis], sizes[axis], mode, exact=exact)
        if taps is None:
            return None
        along = [1] * len(shape)
        along[axis] = -1
        terms = []
        for places, weights in zip(*taps, strict=True):
            index = edge.constant(places.astype(np.int32))
            taken = walk.emit(relax.op.take(acc, index, axis=axis, mode="clip"), f"{name}_taken")
            factor = edge.constant(weights.astype(np.int32).reshape(along))
            factor = walk.emit(factor, f"{name}_weights")
            terms.append(walk.emit(relax.op.multiply(taken, factor), f"{name}_term"))
        acc = walk.emit(relax.op.add(*terms), name)
    if x.same(target):
        return narrow(walk, _divided(walk, name, acc, 1 << 20, target), target)
    acc = walk.emit(relax.op.subtract(acc, int32(x.zero_point << 20)), f"{name}_centred")
    return rounded(walk, acc, ratio(x.scale, target.scale) / (1 << 20), target)
