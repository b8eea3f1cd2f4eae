"""Integer layers as nodes of a module: what ``to-integers`` makes of a quantised layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tests.targets.mcu.nets import Net, const, network
from tvm_compress import edge
from tvm_compress.ops import codebook
from tvm_compress.ops.requantize import quantize_multiplier, requantize

Array = NDArray[Any]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A layer with random weights of the shape OIHW, OIW or (K, N).

    Attributes:
        kind: what the board, or this machine, is to run it as.
        pad: top, left, bottom, right.
        gain: of the real factor, which otherwise spreads the outputs over int8.
        zeros: the fraction of the weights, in blocks of two outputs and four inputs, that is zero.
        shared: whether the weight is a codebook of int8 centroids.
        change: what is done to the weights, or to the codes of shared ones.
    """

    x: tuple[int, ...]
    weight: tuple[int, ...]
    kind: str
    strides: Pair = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: Pair = (1, 1)
    groups: int = 1
    rounding: str = "double"
    uniform: bool = False
    largest: int = 127
    low: int = -128
    high: int = 127
    bias: int = 2000
    gain: float = 1.0
    zeros: float = 0.0
    layout: str = "NHWC"
    shared: bool = False
    change: Callable[[Array], Array] = field(default=lambda w: w)


def _weight(one: Layer, chance: np.random.Generator) -> Array:
    w = chance.integers(-one.largest, one.largest + 1, one.weight)
    if one.zeros:  # blocks of two outputs and four inputs
        blocks = list(one.weight)
        inputs, outputs = (0, 1) if len(blocks) == 2 else (1, 0)
        blocks[inputs], blocks[outputs] = -(-blocks[inputs] // 4), -(-blocks[outputs] // 2)
        kept = chance.random(blocks) >= one.zeros
        kept = kept.repeat(4, axis=inputs).repeat(2, axis=outputs)
        w = w * kept[tuple(slice(n) for n in w.shape)]
    return one.change(w).astype(np.int8 if one.largest < 128 else np.int16)


def emit(net: Net, x: Any, one: Layer, index: int) -> Any:
    """Add a layer; ``index`` seeds its numbers and is part of its weight's name."""
    chance = np.random.default_rng(index)
    w = _weight(one, chance)
    if one.shared:
        centroids = np.sort(chance.choice(np.arange(-127, 128), 16, replace=False))
        centroids = np.concatenate([[0], centroids[:15]]).astype(np.int8)
        codes = chance.integers(0, 16, one.weight) * (chance.random(one.weight) >= one.zeros)
        codes = one.change(codes)
        w = centroids[codes]
        value = codebook(const(codes, "uint8"), const(centroids, "int8"))
    else:
        value = const(w, str(w.dtype))
    weight = net(value, f"w{index}")
    product = len(one.weight) == 2
    outputs = one.weight[1 if product else 0]
    axis = one.layout.index("C") if not product else len(one.x) - 1
    if any(one.pad):
        top, left, bottom, right = one.pad
        around = {"H": (top, bottom), "W": (left, right)}
        widths = [n for letter in one.layout for n in around.get(letter, (0, 0))]
        limits = np.iinfo(edge.dtype_of(x))
        value = float(chance.integers(limits.min, limits.max + 1))
        x = net(relax.op.nn.pad(x, widths, pad_mode="constant", pad_value=value))
    if product:
        total = net(relax.op.matmul(x, weight, out_dtype="int32"))
    else:
        letters = one.layout.strip("NC")
        operator = relax.op.nn.conv2d if letters == "HW" else relax.op.nn.conv1d
        total = net(
            operator(
                x,
                weight,
                strides=list(one.strides[2 - len(letters) :]),
                dilation=list(one.dilation[2 - len(letters) :]),
                groups=one.groups,
                data_layout=one.layout,
                kernel_layout="OI" + letters,
                out_dtype="int32",
            )
        )
    shape = [1] * len(one.x)
    shape[axis] = outputs
    bias = chance.integers(-one.bias, one.bias + 1, outputs)
    total = net(relax.op.add(total, const(bias.reshape(shape), "int32")))
    columns = w.size // outputs
    real: Any = one.gain * chance.uniform(0.5, 1.0, outputs) / np.sqrt(columns) / one.largest
    factor = quantize_multiplier(real[0] if one.uniform else real, one.rounding)
    zero_point = int(chance.integers(-128, 128))
    return net(
        requantize(
            total,
            *factor,
            axis=axis,
            zero_point=zero_point,
            rounding=one.rounding,
            low=one.low,
            high=one.high,
        )
    )


def module_of(layers: Mapping[str, Layer], dtype: str = "int8") -> tvm.IRModule:
    """Build a module of layers that know nothing of each other: inputs x0.., outputs y0.."""

    def describe(net: Net, *xs: Any) -> list[Any]:
        pairs = enumerate(zip(xs, layers.values(), strict=True))
        return [emit(net, x, one, i) for i, (x, one) in pairs]

    inputs = {f"x{i}": (one.x, dtype) for i, one in enumerate(layers.values())}
    return network(inputs, describe)


def samples_of(layers: Mapping[str, Layer], dtype: str = "int8") -> list[dict[str, Array]]:
    """Random inputs, such of the two ends of the dtype alone, and such of the least number."""
    chance = np.random.default_rng(1)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    random = [chance.integers(low, high + 1, one.x) for one in layers.values()]
    ends = [np.where(chance.random(x.shape) < 0.5, low, high) for x in random]
    least = [np.full(x.shape, low) for x in random]
    return [{f"x{i}": x.astype(dtype) for i, x in enumerate(xs)} for xs in (random, ends, least)]


def differing(
    layers: Mapping[str, Layer],
    run: Callable[[dict[str, Array]], dict[str, Array]],
    right: list[dict[str, Array]],
    dtype: str = "int8",
) -> list[str]:
    """Name the layers whose bytes are not those that are ``right`` for :func:`samples_of`."""
    names = []
    for sample, expected in zip(samples_of(layers, dtype), right, strict=True):
        actual = run(sample)
        assert list(actual) == list(expected)
        for name, key in zip(layers, expected, strict=True):
            assert actual[key].dtype == expected[key].dtype == np.int8
            assert actual[key].shape == expected[key].shape
            if actual[key].tobytes() != expected[key].tobytes():
                names.append(name)
    return names
