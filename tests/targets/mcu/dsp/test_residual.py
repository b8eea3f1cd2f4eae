"""A residual that is added behind a convolution, against TensorFlow Lite's ADD by definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from tests.targets.mcu.dsp.layers import (
    expected,
    geometry,
    layer,
    pixels,
    requantized,
    rescaled,
)
from tests.targets.mcu.dsp.machine import assemble, call
from tests.targets.mcu.integer_nets import Layer, emit
from tests.targets.mcu.nets import Net, const, network
from tvm_compress.ops.requantize import quantize_multiplier, requantize
from tvm_compress.targets.mcu.dsp import dsp_takes_sum
from tvm_compress.targets.mcu.dsp.convolution import Convolution
from tvm_compress.targets.mcu.dsp.requantize import Requantize
from tvm_compress.targets.mcu.dsp.residual import Rescaled, Residual, WeightedSum
from tvm_compress.targets.mcu.geometry import Geometry
from tvm_compress.targets.mcu.target import FirmwareArtifact

Array = NDArray[Any]
_WIDE = 1 << 30  # limits of int32 in the operator


def _residual(chance: np.random.Generator, left: int = 20, **limits: int) -> Residual:
    """The two inputs' scales at random, the larger one halved, as TensorFlow Lite does."""
    scales = chance.uniform(0.2, 1.0, 2)
    twice = 2 * scales.max()
    terms = [
        Rescaled(int(chance.integers(-30, 30)), left, *_factor(scale / twice)) for scale in scales
    ]
    multiplier, shift = _factor(twice / (2.0**left * chance.uniform(1.0, 2.0)))
    total = Requantize(
        np.array([multiplier], np.int32),
        np.array([shift], np.int32),
        int(chance.integers(-30, 30)),
        "double",
        limits.get("low", -128),
        limits.get("high", 127),
    )
    return Residual(terms[0], terms[1], total)


def _factor(real: float) -> tuple[int, int]:
    multiplier, shift = quantize_multiplier(real, "double")
    return int(multiplier), int(shift)


def _sum(residual: Residual, own: Array, other: Array) -> Array:
    terms = [
        rescaled((q.astype(np.int64) - term.zero_point) << term.left, term.multiplier, term.shift)
        for q, term in ((own, residual.own), (other, residual.other))
    ]
    total = (terms[0] + terms[1]).reshape(-1, 1)
    return requantized(residual.total, total).reshape(own.shape)


_SHAPES: dict[str, Geometry] = {
    "pointwise": geometry((3, 5), 16, 12),
    "pointwise, odd channels": geometry((2, 5), 7, 5),
    "one pixel": geometry((1, 1), 40, 10),
    "3x3": geometry((6, 7), 8, 6, (3, 3), before=(1, 1)),
    "strided": geometry((8, 7), 3, 5, (3, 3), (2, 2), before=(0, 0), after=(1, 1)),
}


@pytest.mark.parametrize("name", _SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_bytes(name: str, in_place: bool) -> None:
    chance = np.random.default_rng(len(name))
    for count in (1, 2, 3):
        one = layer(_SHAPES[name], chance, gain=0.5, rounding=("single", "double")[count % 2])
        g = one.geometry
        if count > g.flattened().out_size[1]:
            continue
        limits = {"low": -50, "high": 60} if count == 3 else {}
        residual = _residual(chance, **limits)
        assert residual.refuses() is None
        assert dsp_takes_sum(one)
        kernel = Convolution(one, residual, pixels=count)
        function = kernel.function()
        assert function.in_place == (1,)
        assert function.distances == ()
        code = assemble({"f": function})["f"]
        assert len(code) <= function.code_bytes
        x = pixels(g, chance)
        other = chance.integers(-128, 128, (*g.out_size, g.outputs)).astype(np.int8)
        right = _sum(residual, expected(one, x), other)
        assert len(np.unique(right)) > 4
        scratch = np.frombuffer(chance.bytes(kernel.scratch_bytes), np.uint8)
        buffers = [x, other, kernel.stream(), np.zeros(right.shape, np.int8), scratch]
        over = {3: (1, 0)} if in_place else {}
        for at_end in (True, False):
            written = [1, 3, 4] if in_place else [3, 4]
            called = call(code, buffers, written, at_end=at_end, offset=1, over=over)
            np.testing.assert_array_equal(called.buffers[3], right)
            if name != "3x3" and name != "strided" and not limits:
                assert abs(called.instructions - function.instructions) <= 1


@pytest.mark.parametrize("left", [20, 21])
def test_every_value_of_both_terms(left: int) -> None:
    """All 65,536 pairs of bytes, through a layer that hands its input on."""
    chance = np.random.default_rng(left)
    g = geometry((64, 4), 1, 256)
    one = layer(g, chance)
    # 127 * m * 2**(s - 31) = 1, and the bias makes output channel c hold x: here x is all of int8.
    multiplier, shift = (np.full(256, v, np.int32) for v in _factor(1 / 127))
    requantize_one = Requantize(multiplier, shift, 0, "double", -128, 127)
    weights = np.full((256, 1), 127, np.int16)
    one = replace(one, weights=weights, bias=np.zeros(256, np.int64), requantize=requantize_one)
    x = np.arange(-128, 128).astype(np.int8).reshape(64, 4, 1)
    other = np.broadcast_to(np.arange(-128, 128).astype(np.int8), (64, 4, 256)).copy()
    own = expected(one, x)
    assert (own == x).all()
    residual = _residual(chance, left)
    assert residual.refuses() is None
    kernel = Convolution(one, residual, layout="paired", pixels=3, unroll=16)
    buffers = [x, other, kernel.stream(), other, np.zeros(kernel.scratch_bytes, np.uint8)]
    called = call(assemble({"f": kernel.function()})["f"], buffers, [3, 4])
    np.testing.assert_array_equal(called.buffers[3], _sum(residual, own, other))


_GOOD = _residual(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("residual", "why"),
    [
        (replace(_GOOD, own=replace(_GOOD.own, shift=1)), "a term of the sum is scaled up"),
        (replace(_GOOD, other=replace(_GOOD.other, shift=-31)), "a term of the sum is scaled up"),
        (
            replace(_GOOD, other=replace(_GOOD.other, multiplier=5)),
            "a term of the sum is scaled up",
        ),
        (
            replace(_GOOD, total=replace(_GOOD.total, rounding="single")),
            "the sum is not rounded twice",
        ),
        (
            replace(_GOOD, total=replace(_GOOD.total, shift=np.array([1]))),
            "a shift is out of range",
        ),
        (_GOOD, None),
    ],
)
def test_refusals(residual: Residual, why: str | None) -> None:
    assert residual.refuses() == why


@pytest.mark.parametrize("name", _SHAPES)
def test_weighted_sums(name: str) -> None:
    """``(a * own + b * other + constant) >> shift``: one rounding for our own quantisation."""
    chance = np.random.default_rng(len(name))
    for shift, low, high in ((20, -128, 127), (1, -7, 9), (23, 0, 127)):
        one = layer(_SHAPES[name], chance, gain=0.5)
        g = one.geometry
        scale = 1 << shift
        a, b = (int(v) for v in chance.integers(-scale, scale + 1, 2))
        addition = WeightedSum(a, b, (scale >> 1) + 5 * scale, shift, low, high)
        assert addition.refuses() is None
        kernel = Convolution(one, addition)
        x = pixels(g, chance)
        other = chance.integers(-128, 128, (*g.out_size, g.outputs)).astype(np.int8)
        total = a * expected(one, x).astype(np.int64) + b * other.astype(np.int64)
        total += addition.constant
        right = np.clip(total >> shift, low, high).astype(np.int8)
        code = assemble({"f": kernel.function()})["f"]
        scratch = np.frombuffer(chance.bytes(kernel.scratch_bytes), np.uint8)
        for over in ({}, {3: (1, 0)}):
            buffers = [x, other, kernel.stream(), np.zeros(right.shape, np.int8), scratch]
            written = [1, 3, 4] if over else [3, 4]
            called = call(code, buffers, written, offset=1, over=over)
            np.testing.assert_array_equal(called.buffers[3], right)


@pytest.mark.parametrize(
    ("addition", "why"),
    [
        (WeightedSum(1, 1, 0, 0, -128, 127), "the shift is out of range"),
        (WeightedSum(1, 1, 0, 32, -128, 127), "the shift is out of range"),
        (WeightedSum(1 << 23, -(1 << 23), 0, 20, -128, 127), "its sums are too large"),
        (WeightedSum((1 << 23) - 1, -(1 << 23), 127, 31, -128, 127), None),
        (WeightedSum((1 << 23) - 1, -(1 << 23), 128, 31, -128, 127), "its sums are too large"),
    ],
)
def test_refusals_of_weighted_sums(addition: WeightedSum, why: str | None) -> None:
    assert addition.refuses() == why


# -- in a module ----------------------------------------------------------------------------------


def _add(net: Net, a: Any, b: Any, left: int = 20, rounding: str = "double") -> Any:
    terms = []
    for x, zero, real in ((a, 3, 0.5), (b, -7, 0.31)):
        wide = net(relax.op.astype(x, "int32"))
        wide = net(relax.op.subtract(wide, const(zero, "int32")))
        wide = net(relax.op.multiply(wide, const(1 << left, "int32")))
        factor = quantize_multiplier(real, "double")
        options = {"low": 1 - _WIDE, "high": _WIDE - 1, "out_dtype": "int32"}
        terms.append(net(requantize(wide, *factor, rounding="double", **options)))
    total = net(relax.op.add(*terms))
    factor = quantize_multiplier(1.2 / 2**left, "double")
    return net(requantize(total, *factor, zero_point=9, rounding=rounding))


_ONE = Layer((1, 6, 5, 8), (8, 8, 3, 3), "", pad=(1, 1, 1, 1))
_POINTWISE = Layer((1, 6, 5, 8), (8, 8, 1, 1), "")


def _built(describe: Any, dtype: str = "int8") -> list[str]:
    """Build for the board, compare with the reference; give the kinds of the layers."""
    mod = network({"x": ((1, 6, 5, 8), dtype)}, describe)
    built = tc.build(mod, board="cortex-m4")
    assert isinstance(built, FirmwareArtifact)
    limits = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(limits.min, limits.max + 1, (3, 6, 5, 8)).astype(dtype)
    right = tc.build(mod, target="reference").run(x)
    for run in (built.run, tc.build(mod, target="c").run):
        for name, value in run(x).items():
            np.testing.assert_array_equal(value, right[name])
    return [one.kind for one in built.firmware.model.layers]


def test_a_sum_is_taken_in_by_the_later_layer() -> None:
    def describe(net: Net, x: Any) -> Any:
        first = emit(net, x, _POINTWISE, 0)
        return _add(net, emit(net, first, _ONE, 1), first)

    assert len(_built(describe)) == 2

    def both(net: Net, x: Any) -> Any:
        return _add(net, emit(net, x, _POINTWISE, 0), emit(net, x, _ONE, 1))

    assert len(_built(both)) == 2


@pytest.mark.parametrize("swapped", [False, True])
def test_a_sum_with_the_input(swapped: bool) -> None:
    def describe(net: Net, x: Any) -> Any:
        y = emit(net, x, _ONE, 1)
        return _add(net, x, y) if swapped else _add(net, y, x)

    assert len(_built(describe)) == 1


def test_sums_that_are_not_taken_in() -> None:
    def twice(net: Net, x: Any) -> Any:
        y = emit(net, x, _ONE, 1)
        return [_add(net, y, x), _add(net, x, y)]

    assert len(_built(twice)) > 2
    for left, rounding in ((22, "double"), (20, "single")):
        kinds = _built(
            lambda net, x, left=left, rounding=rounding: _add(
                net, emit(net, x, _ONE, 1), x, left, rounding
            )
        )
        assert len(kinds) > 1
    depthwise = replace(_ONE, weight=(8, 1, 3, 3), groups=8)
    assert len(_built(lambda net, x: _add(net, emit(net, x, depthwise, 1), x))) > 1


def test_unsigned_inputs_are_left_to_the_plain_kernel() -> None:
    def describe(net: Net, x: Any) -> Any:
        one, other = (emit(net, x, each, i) for i, each in enumerate((_POINTWISE, _ONE)))
        return _add(net, one, other)

    kinds = _built(describe, "uint8")
    assert kinds[:2] == ["conv2d (dense)"] * 2
