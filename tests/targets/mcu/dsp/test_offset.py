"""Weights beyond int8 that fit a byte without what they have in common: bytes, stream, choice."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.targets.mcu.dsp.judge import check
from tests.targets.mcu.dsp.layers import SHAPES, expected, geometry, layer, pixels
from tests.targets.mcu.dsp.machine import assemble, call
from tests.targets.mcu.dsp.strategies import geometries
from tvm_compress.layouts.paired import unpair_words
from tvm_compress.targets.mcu.dsp.convolution import Convolution
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.narrow import NarrowProduct
from tvm_compress.targets.mcu.dsp.product import Product
from tvm_compress.targets.mcu.dsp.residual import Addition, WeightedSum
from tvm_compress.targets.mcu.dsp.sparse import SparseProduct

Array = NDArray[Any]


def _between(one: IntegerLayer, low: int, high: int, seed: int = 0) -> IntegerLayer:
    """Give weights between two ends, with both of them in the first and the last channel."""
    chance = np.random.default_rng(seed)
    weights = chance.integers(low, high + 1, one.weights.shape).astype(np.int16)
    weights[0, 0], weights[-1, -1] = low, high
    return replace(one, weights=weights)


def _offset(
    one: IntegerLayer, count: int, unroll: int = 16, residual: Addition | None = None
) -> Convolution:
    return Convolution(one, residual, layout="offset", pixels=count, unroll=unroll)


def _counts(one: IntegerLayer) -> list[int]:
    g = one.geometry
    return [n for n in (1, 2, 3) if n <= (g.flattened() if g.pointwise else g).out_size[1]]


# -- which layers --


@given(st.integers(-300, 300), st.integers(0, 300))
@example(-254, 254)
@example(0, 254)
@example(0, 255)
@example(-128, 254)
@example(-128, 255)
def test_the_offset_is_the_one_next_to_zero(low: int, spread: int) -> None:
    one = layer(geometry((1, 1), 4, 3), np.random.default_rng(0))
    one = _between(one, low, low + spread)
    # The weights, and the zero of inputs that are none, as they lie in a pair.
    kept = np.append(one.weights, 0).astype(int)
    fit = [d for d in range(-600, 601) if abs(kept - d).max() <= 127]
    assert one.offset == min(fit, key=abs, default=None)
    assert one.pairable == (one.offset == 0)
    layouts = {layout for layout, _ in Product.forms(one)}
    if one.offset is None:
        assert layouts == {"wide"}
    else:
        assert ("offset" in layouts, "paired" in layouts) == (one.offset != 0, one.offset == 0)
    if not one.pairable:
        assert not NarrowProduct.forms(one)


def test_sparse_products_take_no_such_weights() -> None:
    one = _between(layer(geometry((1, 4), 64, 8), np.random.default_rng(0)), -20, 150)
    kept = np.random.default_rng(1).random(one.weights.shape) < 0.1
    kept[-1, -1] = True
    one = replace(one, weights=np.where(kept, one.weights, 0).astype(np.int16))
    assert one.offset == 23
    assert not SparseProduct.forms(one)


# -- the stream --


@given(st.data())
@settings(max_examples=60)
def test_weights_come_back_from_the_stream(data: st.DataObject) -> None:
    """Read as the function does: biases, the words of a round's pairs, constants."""
    low = data.draw(st.integers(-254, -1))
    high = data.draw(st.integers(0, 254 + low))
    assume(low < -127 or high > 127)
    g = geometry((1, 3), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9)))
    rounding = data.draw(st.sampled_from(["single", "double"]))
    one = layer(g, np.random.default_rng(low + 254), rounding=rounding)
    one = _between(one, low, high, seed=high)
    assume(one.offset)
    count = data.draw(st.integers(1, 3))
    kernel = _offset(one, count)
    order, stream = np.asarray(kernel.order()), kernel.stream()
    pairs = 2 if count == 1 else 1
    steps, together = kernel.product.steps, {3: 2, 2: 4, 1: 2}[count]
    assert stream.dtype == np.uint32
    assert len(stream) == kernel.product.words
    at, seen = 0, []

    def take(size: int) -> Array:
        nonlocal at
        at += size
        return stream[at - size : at]

    while at < len(stream):
        first = len(seen)
        channels = [min(first + i, g.outputs - 1) for i in range(2 * pairs)]
        biases = [int(one.bias[c]) for c in channels]
        raw = [b for a, b in zip(biases[::2], biases[1::2], strict=True) for b in (256 * a + b, b)]
        assert take(2 * pairs).tolist() == [v & 0xFFFFFFFF for v in raw]
        words = take(steps * pairs).reshape(-1, pairs, together).swapaxes(0, 1)
        for q in range(pairs):
            for channel, row in zip(
                channels[2 * q : 2 * q + 2], unpair_words(words[q].reshape(-1)), strict=True
            ):
                weights = row.astype(int) + one.offset
                real = weights[: len(order)]
                columns = one.weights[channel, np.maximum(order, 0)]
                assert real.tolist() == np.where(order < 0, 0, columns).tolist()
                assert not weights[len(order) :].any()
        for c in channels:
            own = [v & 0xFFFFFFFF for v in one.requantize.own(c)]
            assert take(len(own)).tolist() == own
        seen += channels
    assert at == len(stream)
    assert set(seen) == set(range(g.outputs))


def test_a_byte_of_flash_a_weight() -> None:
    one = _between(layer(geometry((1, 1), 640, 48), np.random.default_rng(0)), -100, 154)
    for count in (1, 2, 3):
        size = 4 * _offset(replace(one, geometry=geometry((1, 3), 640, 48)), count).product.words
        assert 0 < size - 640 * 48 <= 48 * 4 * (1 + 3)


# -- bytes --


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    chance = np.random.default_rng(len(name))
    kernels = []
    for rounding, uniform in product(("double", "single"), (False, True)):
        limits = {"low": -90, "high": 100} if uniform and rounding == "double" else {}
        one = layer(SHAPES[name], chance, rounding=rounding, uniform=uniform, gain=0.5, **limits)
        low = int(chance.choice([-254, -156, -128, -110, -1, 0]))
        one = _between(one, low, low + 254, seed=len(name))
        assert one.offset
        for count in _counts(one):
            kernels.append(_offset(one, count, int(chance.choice([1, 8, 48]))))
    check(kernels)


@given(st.data())
@settings(max_examples=50)
def test_any_layer(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    g = data.draw(geometries(7, 12, st.integers(1, 9)))
    one = layer(
        g,
        np.random.default_rng(draw(0, 1 << 20)),
        rounding=data.draw(st.sampled_from(["single", "double"])),
        uniform=data.draw(st.booleans()),
        low=data.draw(st.sampled_from([-128, -128, -20])),
        high=data.draw(st.sampled_from([127, 127, 50])),
        gain=0.5,
    )
    # From -1 down to -254, or up to as much, or on both sides of zero.
    low = draw(-254, 0)
    one = _between(one, low, data.draw(st.sampled_from([low + 254, draw(0, low + 254)])))
    assume(one.offset)
    assume(Convolution.refuses(one) is None)
    count = data.draw(st.sampled_from(_counts(one)))
    check([_offset(one, count, data.draw(st.sampled_from([1, 16, 48])))], seed=draw(0, 100))


def _run(kernel: Convolution, x: Array) -> Array:
    g = kernel.layer.geometry
    code = assemble({"f": kernel.function()})["f"]
    scratch = np.full(kernel.scratch_bytes, 0x5A, np.uint8)
    y = np.zeros((*g.out_size, g.outputs), np.int8)
    called: Array = call(code, [x, kernel.stream(), y, scratch], [2, 3]).buffers[2]
    return called


@pytest.mark.parametrize(("low", "high"), [(-254, 0), (-200, 54), (-1, 253), (0, 254)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_weights_and_inputs_at_their_ends(low: int, high: int, count: int) -> None:
    """Each pixel of a tile has its own sum, at the end of its range."""
    one = layer(geometry((1, 3), 60, 5), np.random.default_rng(0), gain=0.2)
    for first, second in product((low, high), repeat=2):
        weights = np.empty_like(one.weights)
        weights[::2], weights[1::2] = first, second
        weights[0, 0], weights[-1, -1] = low, high
        other = replace(one, weights=weights)
        kernel = _offset(other, count)
        for ends in ((-128, 127, -128), (127, -128, 0), (-128, -128, 127)):
            x = np.repeat(np.array(ends, np.int8), 60).reshape(1, 3, 60)
            np.testing.assert_array_equal(_run(kernel, x), expected(other, x))


@pytest.mark.parametrize("rounding", ["double", "single"])
@pytest.mark.parametrize("low", [-254, -2])
def test_the_largest_sums_that_fit(low: int, rounding: str) -> None:
    """Without the offset sums would be smaller or larger: those with the weights count.

    The bias takes each channel to the last bound that fits; one more, and it is too much.
    """
    one = layer(geometry((1, 2), 200, 4), np.random.default_rng(4), rounding=rounding, gain=0.02)
    one = replace(_between(one, low, low + 254), bias=np.zeros(4, np.int64))
    sign = -1 if low == -254 else 1
    # The end of a sum that is the farther from zero: of weights below zero that of inputs of -128.
    w = one.weights.astype(np.int64)
    far = np.maximum(w * -128, w * 127).sum(axis=1)
    near = np.minimum(w * -128, w * 127).sum(axis=1)
    for beyond in (0, 1):
        room = ((1 << 31) - 1) // 257 + beyond
        bias = room - far if sign > 0 else -room - near
        other = replace(one, bias=bias)
        assert other.bound.tolist() == [room] * 4
        if beyond:
            assert other.offset is None
            assert Convolution(other).layout == "wide"
            continue
        assert other.offset == low + 127
        assert 257 * room + 257 >= 1 << 31
        for channel, count in product(range(4), (1, 2)):
            up = (w[channel] > 0) == (sign > 0)
            x = np.broadcast_to(np.where(up, 127, -128).astype(np.int8), (1, 2, 200)).copy()
            np.testing.assert_array_equal(_run(_offset(other, count), x), expected(other, x))


@pytest.mark.parametrize("name", ["pointwise", "3x3", "one pixel"])
def test_with_a_residual(name: str) -> None:
    chance = np.random.default_rng(len(name))
    residual = WeightedSum(own=3000, other=-2500, constant=1 << 11, shift=12, low=-100, high=90)
    one = _between(layer(SHAPES[name], chance, rounding="single", gain=0.5), -40, 200)
    for count in _counts(one):
        kernel = _offset(one, count, residual=residual)
        x = pixels(one.geometry, chance)
        own = expected(one, x).astype(np.int64)
        other = chance.integers(-128, 128, own.shape).astype(np.int8)
        sums = (3000 * own - 2500 * other.astype(np.int64) + (1 << 11)) >> 12
        scratch = np.frombuffer(chance.bytes(kernel.scratch_bytes), np.uint8)
        code = assemble({"f": kernel.function()})["f"]
        y = np.zeros(own.shape, np.int8)
        called = call(code, [x, other, kernel.stream(), y, scratch], [3, 4])
        np.testing.assert_array_equal(called.buffers[3], np.clip(sums, -100, 90))


# -- what is chosen --


def test_it_is_taken_where_flash_counts() -> None:
    one = _between(layer(geometry((1, 8), 64, 32), np.random.default_rng(0)), -150, 100)
    fast, small = Convolution(one, byte_cost=0.0), Convolution(one, byte_cost=64.0)
    assert (fast.layout, small.layout) == ("wide", "offset")
    assert small.product.words < 0.6 * fast.product.words
    # More than a byte's spread is left to halfwords at any price.
    wider = _between(one, -150, 105)
    assert Convolution(wider, byte_cost=1e6).layout == "wide"
    check([fast, small])


def test_an_int8_weight_of_minus_128_does_not_double_the_flash() -> None:
    one = _between(layer(geometry((1, 1), 256, 64), np.random.default_rng(0)), -128, 126)
    assert one.offset == -1
    kernel = Convolution(one)
    assert kernel.layout == "offset"
    check([kernel])


def test_both_assemblers_take_it(both: list[Any]) -> None:
    functions = {
        f"f{count}{rounding}": _offset(
            _between(
                layer(geometry((1, 5), 24, 7), np.random.default_rng(0), rounding=rounding), 0, 200
            ),
            count,
        ).function()
        for count in (1, 2, 3)
        for rounding in ("double", "single")
    }
    codes = [assemble(functions, command) for command in both]
    for name, function in functions.items():
        assert max(len(code[name]) for code in codes) <= function.code_bytes
