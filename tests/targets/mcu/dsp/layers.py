"""Random integer layers, and what they are to give: plain sums and requantization by definition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.ops.requantize import quantize_multiplier
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.requantize import Requantize
from tvm_compress.targets.mcu.geometry import Geometry

Array = NDArray[Any]
Pair = tuple[int, int]


def geometry(
    size: Pair,
    inputs: int,
    outputs: int,
    kernel: Pair = (1, 1),
    strides: Pair = (1, 1),
    before: Pair = (0, 0),
    after: Pair | None = None,
    dilation: Pair = (1, 1),
    depthwise: bool = False,
    **changes: Any,
) -> Geometry:
    """A 2-D convolution with the channels last; padding is (top, left) and (bottom, right)."""
    after = before if after is None else after
    out = [
        (size[i] + before[i] + after[i] - (kernel[i] - 1) * dilation[i] - 1) // strides[i] + 1
        for i in range(2)
    ]
    assert min(out) > 0
    values: dict[str, Any] = {
        "rank": 2,
        "channels_last": True,
        "batch": 1,
        "groups": outputs if depthwise else 1,
        "inputs": 1 if depthwise else inputs,
        "outputs": outputs,
        "in_size": size,
        "out_size": (out[0], out[1]),
        "kernel": kernel,
        "strides": strides,
        "dilation": dilation,
        "padding": before,
        "in_shape": (1, *size, outputs if depthwise else inputs),
        "out_shape": (1, *out, outputs),
    }
    return Geometry(**{**values, **changes})


# Convolutions and products whose every edge is another one.
SHAPES: dict[str, Geometry] = {
    "pointwise": geometry((3, 5), 16, 12),
    "pointwise, odd channels": geometry((2, 5), 7, 5),
    "one pixel": geometry((1, 1), 40, 10),
    "one pixel, inputs by 2": geometry((1, 1), 42, 7),
    "one pixel, one input": geometry((1, 1), 1, 3),
    "two pixels, one output": geometry((1, 2), 5, 1),
    "rows of a product": geometry((1, 7), 12, 6, rank=0, in_shape=(7, 12), out_shape=(7, 6)),
    "strided without a window": geometry((7, 6), 8, 6, strides=(2, 2)),
    "strided, odd channels": geometry((5, 7), 3, 5, strides=(3, 2)),
    "3x3": geometry((6, 7), 8, 6, (3, 3), before=(1, 1)),
    "3x3 without padding": geometry((6, 7), 4, 4, (3, 3)),
    "3x3 of colours, SAME with stride 2": geometry((8, 8), 3, 8, (3, 3), (2, 2), (0, 0), (1, 1)),
    "10x4 of one channel": geometry((25, 10), 1, 9, (10, 4), (2, 2), (4, 1), (5, 1)),
    "padded to the left alone": geometry((5, 5), 5, 3, (3, 3), before=(2, 2), after=(0, 0)),
    "padded to the right alone": geometry((5, 5), 6, 3, (2, 4), after=(1, 3)),
    "padded more than a window": geometry((3, 3), 4, 3, (3, 3), before=(5, 4)),
    "dilated rows": geometry((9, 5), 6, 5, (3, 2), (2, 1), (2, 1), dilation=(2, 1)),
    "dilated columns": geometry((6, 9), 4, 5, (3, 3), (1, 1), (2, 2), dilation=(2, 2)),
    "dilated columns, odd channels": geometry(
        (3, 12), 3, 4, (2, 3), (1, 2), (0, 1), dilation=(1, 3)
    ),
    "stride of the window": geometry((8, 8), 4, 5, (2, 2), (2, 2)),
    "wide strides": geometry((9, 23), 2, 3, (3, 2), (3, 7)),
    "one row high": geometry((1, 11), 6, 5, (1, 3), (1, 2), (0, 1)),
    "one column wide": geometry((9, 1), 5, 5, (4, 1), (2, 1), (1, 0)),
    "window of the image": geometry((4, 5), 12, 9, (4, 5)),
    "wide kernel": geometry((2, 60), 3, 2, (1, 45)),
    "one-dimensional": geometry(
        (1, 20), 6, 5, (1, 4), (1, 2), (0, 1), rank=1, in_shape=(1, 20, 6), out_shape=(1, 10, 5)
    ),
}


def depthwise(
    size: Pair, channels: int, kernel: Pair = (3, 3), multiple: int = 1, **options: Any
) -> Geometry:
    """A depthwise convolution with ``multiple`` outputs a channel."""
    g = geometry(size, 1, channels, kernel, depthwise=True, **options)
    outputs = channels * multiple
    return replace(g, outputs=outputs, out_shape=(*g.out_shape[:-1], outputs))


def layer(
    g: Geometry,
    chance: np.random.Generator,
    *,
    rounding: str = "double",
    uniform: bool = False,
    largest: int = 127,
    low: int = -128,
    high: int = 127,
    gain: float = 2.0,
) -> IntegerLayer:
    """A layer whose outputs spread over the range of int8 and are clamped now and then."""
    weights = chance.integers(-largest, largest + 1, (g.outputs, g.columns)).astype(np.int16)
    bias = chance.integers(-3000, 3000, g.outputs).astype(np.int64)
    real = gain * chance.uniform(0.5, 1.0, g.outputs) / math.sqrt(g.columns) / largest
    if uniform:
        real[:] = real[0]
    multiplier, shift = quantize_multiplier(real, rounding)
    shift = np.ascontiguousarray(np.broadcast_to(shift, multiplier.shape))
    zero_point, zero = (int(v) for v in chance.integers(-128, 128, 2))
    requantize = Requantize(multiplier, shift, zero_point, rounding, low, high)  # type: ignore[arg-type]
    return IntegerLayer(g, weights, bias, zero, requantize)


def pixels(g: Geometry, chance: np.random.Generator) -> Array:
    """Random inputs (height, width, channels) with many at the ends of int8."""
    x = chance.integers(-128, 128, (*g.in_size, g.inputs * g.groups))
    ends = chance.random(x.shape)
    return np.where(ends < 0.05, -128, np.where(ends > 0.95, 127, x)).astype(np.int8)


def sums(one: IntegerLayer, x: Array) -> Array:
    """The exact sums, int64 (height, width, outputs)."""
    g = one.geometry
    margins = [
        (
            g.padding[i],
            max(0, (g.out_size[i] - 1) * g.strides[i] + (g.kernel[i] - 1) * g.dilation[i]),
        )
        for i in range(2)
    ]
    padded = np.pad(x.astype(np.int64), (*margins, (0, 0)), constant_values=one.zero)
    weights = one.weights.astype(np.int64).reshape(g.outputs, g.inputs, *g.kernel)
    total = np.zeros((*g.out_size, g.outputs), np.int64) + one.bias
    rows, columns = (np.arange(g.out_size[i]) * g.strides[i] for i in range(2))
    for kh in range(g.kernel[0]):
        for kw in range(g.kernel[1]):
            here = padded[rows + kh * g.dilation[0]][:, columns + kw * g.dilation[1]]
            if g.groups == 1:
                total += here @ weights[:, :, kh, kw].T
            else:
                total += np.repeat(here, g.outputs // g.groups, axis=-1) * weights[:, 0, kh, kw]
    return total


def requantized(r: Requantize, acc: Array) -> Array:
    """Requantize (..., outputs) by the definitions, number by number in Python's integers."""
    flat = acc.reshape(-1, acc.shape[-1])
    result = np.empty(flat.shape, np.int8)
    for (i, c), a in np.ndenumerate(flat):
        m, s = int(r.multiplier[c]), int(r.shift[c])
        y = _twice(int(a), m, s) if r.rounding == "double" else _once(int(a), m, s)
        result[i, c] = min(max(y + r.zero_point, r.low), r.high)
    return result.reshape(acc.shape)


def _once(a: int, m: int, s: int) -> int:
    return (a * m + (1 << (30 - s))) // (1 << (31 - s))


def _twice(a: int, m: int, s: int) -> int:
    # gemmlowp: SaturatingRoundingDoublingHighMul divides truncating, RoundingDivideByPOT by mask.
    product = (a << max(s, 0)) * m
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    x = abs(nudged) >> 31
    x = x if nudged >= 0 else -x
    down = max(-s, 0)
    mask = (1 << down) - 1
    return (x >> down) + int((x & mask) > (mask >> 1) + (x < 0))


def rescaled(acc: Array, multiplier: int, shift: int) -> Array:
    """Requantize by one factor, rounding twice, without limits: int64 of the shape of ``acc``."""
    flat = [_twice(int(a), multiplier, shift) for a in acc.ravel()]
    return np.array(flat, np.int64).reshape(acc.shape)


def expected(one: IntegerLayer, x: Array) -> Array:
    """The bytes that a kernel is to give, int8 (height, width, outputs)."""
    return requantized(one.requantize, sums(one, x))
