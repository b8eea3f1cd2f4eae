"""Weights of few bits in assembly: rounds of channels, the stream, bytes and cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.targets.mcu.dsp.judge import check
from tests.targets.mcu.dsp.layers import expected, geometry, layer, pixels
from tests.targets.mcu.dsp.machine import assemble, call
from tests.targets.mcu.dsp.strategies import geometries
from tvm_compress.layouts.narrow import QUAD, TRIPLE, unnarrow_words
from tvm_compress.layouts.paired import unpair_words
from tvm_compress.targets.mcu.dsp.convolution import Convolution
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.narrow import NarrowProduct, share_halfwords
from tvm_compress.targets.mcu.dsp.residual import Addition, WeightedSum
from tvm_compress.targets.mcu.geometry import Geometry

Array = NDArray[Any]
_PAIR = (8, 8)


def _ends(bits: int) -> tuple[int, int]:
    """The range of weights of so many bits; a pair's first byte holds no -128."""
    half = 1 << bits - 1
    return (-half if bits < 8 else 1 - half), half - 1


def _of_bits(one: IntegerLayer, bits: Sequence[int], seed: int = 0) -> IntegerLayer:
    """Give output channel c weights of ``bits[c % len(bits)]`` bits, both ends among them."""
    chance = np.random.default_rng(seed)
    weights = one.weights.copy()
    for c, row in enumerate(weights):
        low, high = _ends(bits[c % len(bits)])
        row[:] = chance.integers(low, high + 1, row.size)
        ends = chance.permutation(row.size)[:2]
        row[ends] = (high, low)[: len(ends)]
    return replace(one, weights=weights)


def _narrow(
    one: IntegerLayer, count: int, unroll: int = 16, residual: Addition | None = None
) -> Convolution:
    return Convolution(one, residual, layout="narrow", pixels=count, unroll=unroll)


def _product(one: IntegerLayer, count: int = 1) -> NarrowProduct:
    kernel = _narrow(one, count)
    assert isinstance(kernel.product, NarrowProduct)
    return kernel.product


def _widths(one: IntegerLayer) -> list[tuple[int, ...]]:
    return [found.kind.widths for found in share_halfwords(one)]


# -- which channels go where --


def _fewest(bits: Sequence[int]) -> int:
    """The fewest rounds for channels of 4, 5, 6 and 8 bits, by trying all numbers of them."""
    n = Counter(bits)
    best = len(bits)
    for quads in range(n[4] // 4 + 1):
        fives = n[4] - 4 * quads + n[5]
        for triples in range(len(bits) // 3 + 1):
            if 3 * triples <= fives + min(n[6], triples):
                rest = len(bits) - 4 * quads - 3 * triples
                best = min(best, quads + triples + -(-rest // 2))
    return best


@given(st.lists(st.sampled_from([4, 5, 6, 8]), min_size=1, max_size=40))
def test_rounds_are_as_few_as_there_can_be(bits: list[int]) -> None:
    one = _of_bits(layer(geometry((1, 1), 6, len(bits)), np.random.default_rng(0)), bits)
    rounds = share_halfwords(one)
    assert len(rounds) == _fewest(bits)
    kinds = [found.kind.widths for found in rounds]
    assert kinds == sorted(kinds, key=[QUAD, TRIPLE, _PAIR].index)
    for found in rounds:
        for channel, width in zip(found.channels, found.kind.widths, strict=True):
            assert bits[channel] <= width
    times = Counter(channel for found in rounds for channel in found.channels)
    assert set(times) == set(range(len(bits)))
    twice = [channel for channel, count in times.items() if count > 1]
    assert len(twice) <= 1
    if twice:
        assert rounds[-1].channels == (twice[0], twice[0])


def _biased(one: IntegerLayer, bound: Array | int) -> IntegerLayer:
    """Change biases so that the channels' bounds are these."""
    one = replace(one, bias=np.zeros_like(one.bias))
    w = one.weights.astype(np.int64)
    highest = np.maximum(w * -128, w * 127).sum(axis=1)
    assert (highest <= bound).all()
    one = replace(one, bias=bound - highest)
    np.testing.assert_array_equal(one.bound, np.broadcast_to(bound, len(w)))
    return one


def _first(one: IntegerLayer, high: bool = True) -> Array:
    """Inputs, one pixel, that take channel 0 to the end of its range."""
    up = (one.weights[0] > 0) == high
    x = np.where(up, 127, -128).astype(np.int8)
    return x.reshape(1, 1, -1)


@pytest.mark.parametrize(
    ("bits", "widths", "instead", "room"),
    [
        (4, QUAD, TRIPLE, (1 << 19) - 1),
        (5, TRIPLE, _PAIR, (1 << 21) - 1),
        (6, _PAIR, _PAIR, (1 << 31) // 257),
    ],
)
@pytest.mark.parametrize("rounding", ["double", "single"])
def test_sums_that_just_fit_a_field(
    bits: int, widths: tuple[int, ...], instead: tuple[int, ...], room: int, rounding: str
) -> None:
    """One more, and the channels go where sums are not as many times larger."""
    one = layer(geometry((1, 1), 20, 12), np.random.default_rng(1), rounding=rounding, gain=0.02)
    one = _of_bits(one, [bits])
    for bound, kind in ((room, widths), (room + 1, instead)):
        other = _biased(one, bound)
        if bound > (1 << 31) // 257:
            assert not other.pairable
            assert NarrowProduct.forms(other) == []
            continue
        assert set(_widths(other)) == {kind}
        assert Convolution.refuses(other) is None
        kernel = _narrow(other, 1)
        code = assemble({"f": kernel.function()})["f"]
        for channel, high in product(range(12), (True, False)):
            x = _first(replace(other, weights=np.roll(other.weights, -channel, axis=0)), high)
            scratch = np.zeros(kernel.scratch_bytes, np.uint8)
            y = np.zeros((1, 1, 12), np.int8)
            called = call(code, [x, kernel.stream(), y, scratch], [2, 3])
            np.testing.assert_array_equal(called.buffers[2], expected(other, x))


def test_channels_of_large_sums_take_the_other_fields() -> None:
    """Sums of the last field come 4096 times larger, those of the others 256 times."""
    one = _of_bits(layer(geometry((1, 1), 20, 8), np.random.default_rng(2), gain=0.02), [4])
    bound = np.array([1 << 20] * 3 + [1 << 18] + [1 << 20] * 3 + [1 << 18])
    one = _biased(one, bound)
    rounds = share_halfwords(one)
    assert [found.kind.widths for found in rounds] == [QUAD, QUAD]
    assert {found.channels[-1] for found in rounds} == {3, 7}
    check([_narrow(one, 1)])
    # A quad for each that fits the last field.
    bound[3] = 1 << 20
    assert _widths(_biased(one, bound)) == [QUAD, TRIPLE, _PAIR]


def test_layers_that_have_no_form() -> None:
    def forms(bits: Sequence[int], outputs: int = 12) -> list[tuple[str, int]]:
        one = layer(geometry((1, 4), 8, outputs), np.random.default_rng(3))
        return NarrowProduct.forms(_of_bits(one, bits))

    assert forms([4]) == forms([5]) == forms([8, 8, 5, 5, 6]) == [("narrow", 2), ("narrow", 1)]
    assert forms([8]) == forms([6]) == forms([6, 8, 8]) == []
    assert forms([4], outputs=2) == []
    one = _of_bits(layer(geometry((1, 4), 8, 4), np.random.default_rng(3)), [4])
    weights = one.weights.copy()
    weights[0, 0] = -128
    assert NarrowProduct.forms(replace(one, weights=weights)) == []


# -- the stream --


@given(st.data())
@settings(max_examples=60)
def test_weights_come_back_from_the_stream(data: st.DataObject) -> None:
    """Read as the function does: sums, weights, where the outputs lie, constants."""
    bits = data.draw(st.lists(st.sampled_from([4, 5, 6, 8]), min_size=1, max_size=20))
    more = data.draw(st.sampled_from([0, 0, 250]))
    outputs = len(bits) + more
    g = geometry((1, 1), data.draw(st.integers(1, 9)), outputs)
    one = layer(
        g,
        np.random.default_rng(len(bits)),
        rounding=data.draw(st.sampled_from(["single", "double"])),
        uniform=data.draw(st.booleans()),
    )
    one = _of_bits(one, bits)
    assume(one.pairable)
    product_, order = _product(one), _narrow(one, 1).order()
    stream = product_.stream
    assert stream.dtype == np.uint32
    assert product_.words == product_.whole_words == len(stream)
    at, seen = 0, []

    def take(count: int) -> Array:
        nonlocal at
        at += count
        return stream[at - count : at]

    for found in product_.rounds:
        widths, n = found.kind.widths, len(found.kind.widths)
        sums, words = take(n).astype(np.int64), take(len(order) // 2)
        if widths == _PAIR:
            first, second = unpair_words(words)
            rows = np.stack([second, first])
        else:
            rows = unnarrow_words(words, widths)
        channels: list[int] = []
        places = 4 if outputs <= 256 else 2
        for i in range(n):
            if i % places == 0:
                word = int(take(1)[0])
            channels.append(word >> 32 // places * (i % places) & (1 << 32 // places) - 1)
            own = one.requantize.own(channels[-1])
            assert [int(v) for v in take(len(own))] == [v & 0xFFFFFFFF for v in own]
        for row, channel in zip(rows, channels, strict=True):
            right = [0 if c < 0 else int(one.weights[channel, c]) for c in order]
            assert row.tolist() == right
        scales = {QUAD: (0, 4, 8), TRIPLE: (0, 0), _PAIR: (0,)}[widths]
        fields = {QUAD: (0, 4, 8, 12), TRIPLE: (0, 5, 10), _PAIR: (0, 8)}[widths]
        biases = [int(one.bias[c]) for c in channels]
        begin = [b << s for b, s in zip(biases, scales, strict=False)]
        begin.append(sum(b << f for b, f in zip(biases, fields, strict=True)))
        assert [int(s) & 0xFFFFFFFF for s in sums] == [b & 0xFFFFFFFF for b in begin]
        seen += channels
    assert at == len(stream)
    assert set(seen) == set(range(outputs))


def test_bytes_of_flash_a_weight() -> None:
    """Two bytes for each input of a round, and what a round needs beside."""
    for bits, channels in (([4], 4), ([5, 5, 6], 3), ([8, 8, 5, 5, 6, 5, 5, 6], 16 / 6)):
        one = _of_bits(layer(geometry((1, 1), 640, 48), np.random.default_rng(0)), bits)
        rounds = 48 / channels
        size = 4 * _product(one).words
        assert 0 < size - 2 * 640 * rounds <= rounds * 4 * (4 + 1 + 4 * 3)


# -- bytes --

_SHAPES: dict[str, Geometry] = {
    "pointwise": geometry((3, 5), 16, 13),
    "pointwise, odd channels": geometry((2, 5), 7, 5),
    "one pixel": geometry((1, 1), 40, 10),
    "one pixel, inputs by 2": geometry((1, 1), 42, 7),
    "one pixel, one input": geometry((1, 1), 1, 6),
    "two pixels, more than a byte of outputs": geometry((1, 2), 4, 261),
    "strided without a window": geometry((7, 6), 8, 6, strides=(2, 2)),
    "3x3": geometry((6, 7), 8, 9, (3, 3), before=(1, 1)),
    "3x3 of colours, SAME with stride 2": geometry((8, 8), 3, 8, (3, 3), (2, 2), (0, 0), (1, 1)),
    "10x4 of one channel": geometry((12, 10), 1, 9, (10, 4), (2, 2), (4, 1), (5, 1)),
    "dilated columns, odd channels": geometry(
        (3, 12), 3, 4, (2, 3), (1, 2), (0, 1), dilation=(1, 3)
    ),
}
_MIXES = {
    "4 bits": (4,),
    "5 bits": (5,),
    "5, 5 and 6 bits": (5, 5, 6),
    "all": (4, 8, 5, 4, 6, 5, 4, 4),
}


@pytest.mark.parametrize("mix", _MIXES)
@pytest.mark.parametrize("name", _SHAPES)
def test_shapes(name: str, mix: str) -> None:
    chance = np.random.default_rng(len(name) + len(mix))
    g = _SHAPES[name]
    kernels = []
    for rounding, uniform in product(("double", "single"), (False, True)):
        limits = {"low": -90, "high": 100} if uniform and mix == "all" else {}
        one = layer(g, chance, rounding=rounding, uniform=uniform, **limits)
        one = _of_bits(one, _MIXES[mix], seed=g.columns)
        for count in (1, 2):
            if count <= (g.flattened() if g.pointwise else g).out_size[1]:
                kernels.append(_narrow(one, count, int(chance.choice([1, 8, 48]))))
    check(kernels)


@given(st.data())
@settings(max_examples=40)
def test_any_layer(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    bits = data.draw(st.lists(st.sampled_from([4, 5, 6, 8]), min_size=3, max_size=14))
    g = data.draw(geometries(6, 10, st.just(len(bits))))
    one = layer(
        g,
        np.random.default_rng(draw(0, 1 << 20)),
        rounding=data.draw(st.sampled_from(["single", "double"])),
        uniform=data.draw(st.booleans()),
        low=data.draw(st.sampled_from([-128, -128, -20])),
        high=data.draw(st.sampled_from([127, 127, 50])),
    )
    one = _of_bits(one, bits)
    assume(Convolution.refuses(one) is None)
    count = draw(1, 2)
    g = one.geometry
    assume(count <= (g.flattened() if g.pointwise else g).out_size[1])
    check([_narrow(one, count, data.draw(st.sampled_from([1, 16, 48])))], seed=draw(0, 100))


@pytest.mark.parametrize("bits", [(4,), (5, 5, 6), (6, 5, 8)])
def test_all_weights_and_inputs_at_their_ends(bits: tuple[int, ...]) -> None:
    one = layer(geometry((1, 2), 60, 6), np.random.default_rng(0), gain=0.3)
    for which in product((0, 1), repeat=2):
        weights = np.empty_like(one.weights)
        for c in range(6):
            weights[c] = _ends(bits[c % len(bits)])[which[c % 2]]
        other = replace(one, weights=weights)
        kernel = _narrow(other, 2)
        code = assemble({"f": kernel.function()})["f"]
        for first, second in product((-128, 127), repeat=2):
            x = np.empty((1, 2, 60), np.int8)
            x[:, 0], x[:, 1] = first, second
            y = np.zeros((1, 2, 6), np.int8)
            scratch = np.zeros(kernel.scratch_bytes, np.uint8)
            called = call(code, [x, kernel.stream(), y, scratch], [2, 3])
            np.testing.assert_array_equal(called.buffers[2], expected(other, x))


@pytest.mark.parametrize("name", ["pointwise", "3x3", "one pixel"])
def test_with_a_residual(name: str) -> None:
    chance = np.random.default_rng(len(name))
    residual = WeightedSum(own=3000, other=-2500, constant=1 << 11, shift=12, low=-100, high=90)
    g = _SHAPES[name]
    for count in (1, 2)[: g.out_size[1]]:
        one = _of_bits(layer(g, chance, rounding="single"), (4, 5, 8))
        kernel = _narrow(one, count, residual=residual)
        x = pixels(g, chance)
        other = chance.integers(-128, 128, (*g.out_size, g.outputs)).astype(np.int8)
        own = expected(one, x).astype(np.int64)
        sums = (3000 * own - 2500 * other.astype(np.int64) + (1 << 11)) >> 12
        right = np.clip(sums, -100, 90)
        y = np.zeros(right.shape, np.int8)
        scratch = np.frombuffer(chance.bytes(kernel.scratch_bytes), np.uint8)
        code = assemble({"f": kernel.function()})["f"]
        called = call(code, [x, other, kernel.stream(), y, scratch], [3, 4])
        np.testing.assert_array_equal(called.buffers[3], right)


# -- what is chosen --


def test_narrow_weights_are_taken_where_flash_counts() -> None:
    chance = np.random.default_rng(0)
    one = _of_bits(layer(geometry((1, 1), 256, 64), chance), (4, 5))
    fast, small = Convolution(one, byte_cost=0.0), Convolution(one, byte_cost=16.0)
    assert (fast.layout, small.layout) == ("paired", "narrow")
    assert small.product.words < 0.7 * fast.product.words
    wide = _of_bits(one, (8,))
    assert Convolution(wide, byte_cost=16.0).layout == "paired"
    coded = Convolution(one, byte_cost=16.0, coded=True)
    assert coded.layout == "coded_paired"
    check([fast, small])


def test_both_assemblers_take_it(both: list[Any]) -> None:
    functions = {
        f"f{count}{rounding}": _narrow(
            _of_bits(
                layer(geometry((1, 3), 24, 300), np.random.default_rng(0), rounding=rounding),
                (4, 5, 8, 6, 4),
            ),
            count,
            96,
        ).function()
        for count in (1, 2)
        for rounding in ("double", "single")
    }
    codes = [assemble(functions, command) for command in both]
    for name, function in functions.items():
        assert max(len(code[name]) for code in codes) <= function.code_bytes
