"""Sparse weights multiplied as they are packed: bytes, streams, cost and what has no such form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.targets.mcu.dsp.judge import check
from tests.targets.mcu.dsp.layers import SHAPES, expected, geometry, layer, pixels
from tests.targets.mcu.dsp.machine import assemble, call
from tvm_compress.targets.mcu.dsp.convolution import Convolution
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.residual import WeightedSum
from tvm_compress.targets.mcu.dsp.sparse import SPARSE_LAYOUTS, SparseProduct
from tvm_compress.targets.mcu.geometry import Geometry

Array = NDArray[Any]


def _thin(one: IntegerLayer, density: float, chance: np.random.Generator) -> IntegerLayer:
    """Keep a fraction of the weights, and let them have 15 different values."""
    values = chance.choice(np.setdiff1d(np.arange(-127, 128), [0]), 15, replace=False)
    w = chance.choice(values, one.weights.shape) * (chance.random(one.weights.shape) < density)
    return replace(one, weights=w.astype(np.int16))


def _width(g: Geometry) -> int:
    return (g.flattened() if g.pointwise else g).out_size[1]


def _kernel(one: IntegerLayer, layout: str, count: int, unroll: int = 4) -> Convolution:
    return Convolution(one, layout=layout, pixels=count, unroll=unroll)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    chance = np.random.default_rng(len(name))
    kernels = []
    for i, density in enumerate((0.05, 0.3, 0.6)):
        rounding = ("double", "single")[i % 2]
        one = layer(SHAPES[name], chance, rounding=rounding, uniform=i == 2, gain=0.5)
        one = _thin(one, density, chance)
        count = min(8, _width(one.geometry))
        if np.count_nonzero(one.weights) < one.weights.size / 2:
            assert {(n, count) for n in SPARSE_LAYOUTS} <= set(SparseProduct.forms(one))
        kernels += [_kernel(one, n, count, unroll=(4, 16)[i % 2]) for n in SPARSE_LAYOUTS]
    check(kernels)


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
@pytest.mark.parametrize("rounding", ["double", "single"])
@pytest.mark.parametrize("uniform", [False, True])
def test_every_tile_with_every_rest(layout: str, rounding: str, uniform: bool) -> None:
    chance = np.random.default_rng(8)
    kernels = []
    for g in (geometry((1, 13), 21, 3), geometry((3, 13), 2, 3, (2, 3), before=(0, 1))):
        one = layer(g, chance, rounding=rounding, uniform=uniform, gain=0.5, low=-100)
        one = _thin(one, 0.3, chance)
        kernels += [_kernel(one, layout, count) for count in range(1, 9)]
    check(kernels)


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
@pytest.mark.parametrize("unroll", [1, 8, 16, 100])
def test_rows_of_every_length(layout: str, unroll: int) -> None:
    """Each row enters the loop at another place, or has nothing; or all are alike."""
    chance = np.random.default_rng(unroll)
    kernels = []
    for counts in (range(40), [0] * 3, [0, 1], [7] * 3, [unroll] * 2, [unroll, unroll + 1], [40]):
        for width, count in ((1, 1), (2, 2), (4, 4), (11, 8)):
            one = layer(geometry((1, width), 41, len(counts)), chance, gain=0.5)
            one = _thin(one, 1.0, chance)
            kept = np.argsort(chance.random(one.weights.shape), axis=1) < np.array(counts)[:, None]
            one = replace(one, weights=(one.weights * kept).astype(np.int16))
            kernels.append(_kernel(one, layout, count, unroll))
    check(kernels)


def test_the_cost_is_exact_where_nothing_is_clamped() -> None:
    chance = np.random.default_rng(9)
    for name in ("pointwise", "one pixel", "strided, odd channels", "window of the image"):
        one = _thin(layer(SHAPES[name], chance, gain=0.5), 0.3, chance)
        x = pixels(one.geometry, chance)
        for form in SparseProduct.forms(one):
            kernel = _kernel(one, *form)
            function = kernel.function()
            y = np.zeros(one.geometry.out_shape[-3:], np.int8)
            buffers = [x, kernel.stream(), y, np.zeros(kernel.scratch_bytes, np.uint8)]
            called = call(assemble({"f": function})["f"], buffers, [2, 3])
            assert called.instructions == pytest.approx(function.instructions, abs=1e-6)


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
def test_gaps_that_do_not_fit(layout: str) -> None:
    """Entries of zeros stand between, just where they must: 15 columns, or what a byte tells."""
    chance = np.random.default_rng(2)
    kernels = []
    for count, reach in ((1, 255), (2, 63), (4, 31), (8, 15)):
        most = 15 if layout == "gap_codes" else reach
        for kept in ([most], [most + 1], [0, most + 1], [0, most + 2], [2 * most + 2], [599]):
            one = _thin(layer(geometry((1, count), 600, 2), chance), 1.0, chance)
            w = np.zeros_like(one.weights)
            w[:, kept] = one.weights[:, kept]
            kernel = _kernel(replace(one, weights=w), layout, count)
            before = [-1, *kept[:-1]]
            entries = sum((b - a - 1) // (most + 1) + 1 for a, b in zip(before, kept, strict=True))
            assert kernel.product.whole_words == 2 * (
                (count > 1) + 1 + -(-entries // (4 if layout == "gap_codes" else 2)) + 3
            ) + 2 * (entries > 4)
            kernels.append(kernel)
    check(kernels)


@given(st.data())
@settings(max_examples=40)
def test_streams_hold_the_weights(data: st.DataObject) -> None:
    """Decoded entry by entry, in the order of the buffer."""
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    window = data.draw(st.booleans())
    inputs, outputs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    width = data.draw(st.integers(1, 12))
    g = geometry((2, width), inputs, outputs, (2, 3) if window else (1, 1), before=(0, window))
    one = _thin(layer(g, chance), data.draw(st.sampled_from([0.0, 0.02, 0.2, 0.65])), chance)
    layout = data.draw(st.sampled_from(SPARSE_LAYOUTS))
    count = data.draw(st.integers(1, min(8, _width(one.geometry))))
    unroll = data.draw(st.sampled_from([4, 8, 16]))
    kernel = _kernel(one, layout, count, unroll)
    stream, order, per = kernel.stream(), kernel.order(), 4 if layout == "gap_codes" else 2
    assert len(stream) == kernel.product.words
    table = stream[: kernel.product.table_words].view(np.int32)
    buffered = window or count > 1
    assert stream[len(table)] == 4 * (len(stream) - len(table) - 1)
    own, start, at = len(one.requantize.own(0)), 1 + buffered, len(table) + 1
    counts = _entry_counts(one.weights, order, 15 if per == 4 else 255 // _apart(count, buffered))
    jumps = len(set(counts)) > 1 or max(counts) > unroll
    for o, entries in enumerate(counts):
        words = -(-entries // per)
        first = stream[at : at + start].tolist()
        bias, total = int(one.bias[o]), int(one.weights[o].sum())
        if buffered:
            assert first[0] | first[1] << 32 == _both(bias, total, per) & (1 << 64) - 1
        else:
            assert first == [bias & 0xFFFFFFFF]
        if jumps:
            assert stream[at + start] >> 16 == 4 * words
        at += start + jumps
        data_bytes = stream[at : at + words].astype("<u4").view(np.uint8)
        at += words + own
        assert stream[at - own : at].tolist() == [
            word & 0xFFFFFFFF for word in one.requantize.own(o)
        ]
        place, found = -1, np.zeros(len(order), np.int64)
        each = data_bytes.reshape(-1, 4 // per)[-entries:].tolist()
        for entry in each:
            if per == 4:
                gap, value = entry[0] >> 4, int(table[entry[0] & 15]) >> (8 if buffered else 0)
            else:
                gap, rest = divmod(entry[0], _apart(count, buffered))
                value = int(np.array(entry[1], np.uint8).view(np.int8))
                assert rest == 0
            place += gap + 1
            found[place] = value
        right = [one.weights[o, column] if column >= 0 else 0 for column in order]
        assert found.tolist() == right
    assert at == len(stream)


def _apart(count: int, buffered: bool) -> int:
    """Bytes of a column in the buffer."""
    return 2 * next(n for n in (2, 4, 8) if n >= count) if buffered else 1


def _both(bias: int, total: int, per: int) -> int:
    """What the sums of two pixels begin with, in 64 bits."""
    first = bias - 128 * total
    return (bias << 32) + (first << 8) if per == 4 else (bias << 24) + first


def _entry_counts(weights: Array, order: list[int], most: int) -> list[int]:
    counts = []
    for row in weights:
        places = [i for i, column in enumerate(order) if column >= 0 and row[column]]
        steps = np.diff(places, prepend=-1) if places else np.ones(1, int)
        counts.append(int(sum((step - 1) // (most + 1) + 1 for step in steps)))
    return counts


@given(st.data())
@settings(max_examples=30)
def test_any_layer(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    window = data.draw(st.booleans())
    kernel = (draw(1, 3), draw(2, 4)) if window else (1, 1)
    strides = (draw(1, kernel[0] if window else 3), draw(1, 3))
    dilation = (draw(1, 2), draw(1, 2))
    size = (draw(4, 8), draw(7, 20))
    before, after = (((draw(0, 2), draw(0, 2)) if window else (0, 0)) for _ in range(2))
    g = geometry(size, draw(1, 20), draw(1, 9), kernel, strides, before, after, dilation)
    chance = np.random.default_rng(draw(0, 1 << 20))
    one = layer(
        g,
        chance,
        rounding=data.draw(st.sampled_from(["single", "double"])),
        uniform=data.draw(st.booleans()),
        low=data.draw(st.sampled_from([-128, -128, -20])),
        gain=0.5,
    )
    one = _thin(one, data.draw(st.sampled_from([0.1, 0.3, 0.6])), chance)
    count = draw(1, min(8, _width(g)))
    layout = data.draw(st.sampled_from(SPARSE_LAYOUTS))
    check([_kernel(one, layout, count, data.draw(st.sampled_from([4, 16])))])


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
@pytest.mark.parametrize("in_place", [False, True])
def test_residuals(layout: str, in_place: bool) -> None:
    """The sum may be written over the residual."""
    chance = np.random.default_rng(3)
    residual = WeightedSum(700, -333, 2048, 10, -100, 127)
    assert residual.refuses() is None
    shapes = (geometry((3, 7), 8, 6), geometry((1, 1), 40, 6), geometry((4, 9), 4, 5, (3, 3)))
    for g in shapes:
        one = _thin(layer(g, chance, gain=0.5), 0.3, chance)
        kernel = Convolution(one, residual, layout=layout)
        x = pixels(g, chance)
        other = chance.integers(-128, 128, (*g.out_size, g.outputs)).astype(np.int8)
        own = expected(one, x).astype(int)
        right = np.clip(own * 700 - other.astype(int) * 333 + 2048 >> 10, -100, 127)
        scratch = np.frombuffer(chance.bytes(kernel.scratch_bytes), np.uint8)
        buffers = [x, other, kernel.stream(), np.zeros(right.shape, np.int8), scratch]
        called = call(
            assemble({"f": kernel.function()})["f"],
            buffers,
            [1, 3, 4] if in_place else [3, 4],
            over={3: (1, 0)} if in_place else {},
        )
        np.testing.assert_array_equal(called.buffers[3], right)


@pytest.mark.parametrize("name", [name for name in SHAPES if "more than a window" not in name])
def test_outputs_over_the_inputs(name: str) -> None:
    """The output may begin ``distances`` bytes before the input, and over it from there on."""
    chance = np.random.default_rng(len(name))
    one = _thin(layer(SHAPES[name], chance, gain=0.5), 0.4, chance)
    x = pixels(one.geometry, chance)
    right = expected(one, x)
    kernel = Convolution(one, layout="gap_codes")
    function = kernel.function()
    ((parameter, distance),) = function.distances
    assert parameter == 0
    buffers = [x, kernel.stream(), np.zeros(right.shape, np.int8)]
    buffers.append(np.zeros(kernel.scratch_bytes, np.uint8))
    code = assemble({"f": function})["f"]
    called = call(code, buffers, [0, 2, 3], over={2: (0, distance)})
    np.testing.assert_array_equal(called.buffers[2], right)


def test_an_input_that_is_read_all_along_is_not_written_over() -> None:
    chance = np.random.default_rng(0)
    one = _thin(layer(geometry((1, 1), 40, 10), chance), 0.3, chance)
    assert [Convolution(one, layout=n).distance for n in ("paired", "gaps")] == [0, 10]


def _edge(beyond: int, layout: str, rounding: str) -> IntegerLayer:
    """Weights of +-127 and a bias that takes the bound to the last that fits 24 bits."""
    chance = np.random.default_rng(4)
    one = layer(geometry((1, 8), 500, 4), chance, rounding=rounding, gain=0.02)
    w = np.where(chance.random((4, 500)) < 0.5, 127, -127) * (chance.random((4, 500)) < 0.4)
    one = replace(one, weights=w.astype(np.int16), bias=np.zeros(4, np.int64))
    bias = np.where(w.sum(axis=1) > 0, -1, 1) * ((1 << 23) - 1 + beyond - one.bound)
    return replace(one, bias=bias)


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
@pytest.mark.parametrize("rounding", ["double", "single"])
def test_the_largest_sums_that_fit(layout: str, rounding: str) -> None:
    one = _edge(0, layout, rounding)
    assert one.bound.tolist() == [(1 << 23) - 1] * 4
    assert layout in {name for name, _ in SparseProduct.forms(one)}
    assert SparseProduct.forms(_edge(1, layout, rounding)) == []
    kernel = _kernel(one, layout, 8)
    code = assemble({"f": kernel.function()})["f"]
    sign = np.where(one.weights[0] > 0, 127, -128)
    rows = [sign, ~sign, np.full(500, -128), np.full(500, 127), -sign - 1, sign, ~sign, sign]
    x = np.array(rows).astype(np.int8).reshape(1, 8, 500)
    buffers = [x, kernel.stream(), np.zeros((1, 8, 4), np.int8)]
    buffers.append(np.zeros(kernel.scratch_bytes, np.uint8))
    called = call(code, buffers, [2, 3])
    np.testing.assert_array_equal(called.buffers[2], expected(one, x))


def test_one_pixel_takes_any_sum_that_fits_a_word() -> None:
    chance = np.random.default_rng(5)
    one = _thin(layer(geometry((1, 1), 30, 4), chance, gain=0.2), 0.3, chance)
    one = replace(one, bias=np.array([1 << 30, -(1 << 30), 5, 1 << 24]))
    assert {count for _, count in SparseProduct.forms(one)} == {1}
    check([_kernel(one, layout, 1) for layout in SPARSE_LAYOUTS])


def test_which_layers_have_no_such_form() -> None:
    chance = np.random.default_rng(6)

    def forms(g: Geometry, density: float = 0.3, **changes: Any) -> list[str]:
        one = replace(_thin(layer(g, chance), density, chance), **changes)
        return sorted({layout for layout, _ in SparseProduct.forms(one)})

    g = geometry((2, 6), 64, 8)
    assert forms(g) == list(SPARSE_LAYOUTS)
    assert forms(g, 0.8) == []
    many = chance.integers(-127, 128, (8, 64)) * (chance.random((8, 64)) < 0.3)
    assert forms(g, weights=many.astype(np.int16)) == ["gaps"]
    large = np.where(chance.random((8, 64)) < 0.3, 200, 0).astype(np.int16)
    assert forms(g, weights=large) == ["gap_codes"]
    assert forms(geometry((2, 6), 4093, 1), 0.01) == []  # the second pixel of a pair is too far
    assert forms(geometry((2, 6), 4092, 1), 0.01) == list(SPARSE_LAYOUTS)
    assert forms(geometry((2, 2), 4000, 1, (2, 2), before=(1, 1)), 0.01) == list(SPARSE_LAYOUTS)
    assert forms(geometry((8, 8), 600, 1, (8, 8)), 0.001) == []  # too many columns
    few = replace(_thin(layer(geometry((1, 9), 4, 1365), chance), 0.3, chance))
    assert {count for _, count in SparseProduct.forms(few)} == {4, 3}  # 9 is three times 3


def test_values_beyond_a_byte() -> None:
    chance = np.random.default_rng(7)
    for g in (geometry((1, 9), 40, 5), geometry((1, 1), 40, 5)):
        one = layer(g, chance, largest=32767, gain=0.3)
        values = np.array([0, 32767, -32768, 300, -129])
        w = chance.choice(values, one.weights.shape, p=[0.8, 0.05, 0.05, 0.05, 0.05])
        one = replace(one, weights=w.astype(np.int16))
        if g.out_size[1] > 1:  # what fits 24 bits is little
            one = replace(one, weights=(one.weights // 32).astype(np.int16), bias=one.bias // 9)
        assert {layout for layout, _ in SparseProduct.forms(one)} == {"gap_codes"}
        check([Convolution(one, layout="gap_codes")])


def test_where_sparse_wins() -> None:
    """By the whole layer's cost: from half of the weights on; one pixel needs far fewer."""
    chance = np.random.default_rng(10)

    def chosen(g: Geometry, density: float, cost: float, values: int = 15) -> str:
        one = _thin(layer(g, chance, rounding="single"), density, chance)
        if values > 15:
            kept = one.weights != 0
            one = replace(one, weights=(layer(g, chance).weights * kept).astype(np.int16))
        return Convolution(one, byte_cost=cost).layout

    wide, alone = geometry((8, 8), 64, 64), geometry((1, 1), 256, 64)
    assert [chosen(wide, d, 1.0) for d in (0.25, 0.5, 0.64)] == ["gaps", "gaps", "paired"]
    assert chosen(wide, 0.15, 1024.0) == "gap_codes"
    assert [chosen(wide, d, 16.0, 200) for d in (0.2, 0.64)] == ["gaps", "paired"]
    assert [chosen(alone, d, 0.0) for d in (0.1, 0.25)] == ["gaps", "paired"]
    assert chosen(alone, 0.25, 1024.0) == "gap_codes"


@pytest.mark.parametrize("layout", ["blocks", *SPARSE_LAYOUTS])
def test_layers_of_one_shape_share_their_code(layout: str) -> None:
    """However many weights each has."""
    chance = np.random.default_rng(12)
    g = geometry((1, 13), 64, 6)
    layers = [_thin(layer(g, chance), density, chance) for density in (0.3, 0.35)]
    requantize = layers[0].requantize  # whose zero point and shift are in the code too
    layers = [replace(one, requantize=requantize) for one in layers]
    kernels = [Convolution(one, layout=layout, pixels=3, unroll=16) for one in layers]
    assert len(kernels[0].stream()) != len(kernels[1].stream())
    assert kernels[0].function() == kernels[1].function()
    check(kernels)


def test_tiles_without_a_rest_take_less_code() -> None:
    chance = np.random.default_rng(13)
    one = _thin(layer(geometry((1, 125), 64, 16), chance), 0.15, chance)
    kernels = [Convolution(one, byte_cost=cost) for cost in (0.0, 1024.0)]
    assert [kernel.product.pixels for kernel in kernels] == [8, 5]
    fast, small = (kernel.function() for kernel in kernels)
    assert small.code_bytes < fast.code_bytes
    assert fast.instructions < small.instructions


def test_both_assemblers_write_the_same_loop(both: list[Any]) -> None:
    """Rows jump into the loop by the sizes of its instructions."""
    chance = np.random.default_rng(11)
    for width, count in ((1, 1), (2, 2), (4, 4), (11, 8)):
        one = _thin(layer(geometry((1, width), 50, 7), chance, gain=0.5), 0.3, chance)
        x = pixels(one.geometry, chance)
        right = expected(one, x)
        for layout in SPARSE_LAYOUTS:
            kernel = _kernel(one, layout, count)
            for command in both:
                code = assemble({"f": kernel.function()}, command)["f"]
                buffers = [x, kernel.stream(), np.zeros(right.shape, np.int8)]
                buffers.append(np.zeros(kernel.scratch_bytes, np.uint8))
                called = call(code, buffers, [2, 3])
                np.testing.assert_array_equal(called.buffers[2], right)
