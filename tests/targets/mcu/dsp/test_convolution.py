"""Convolutions and products in assembly: bytes, memory, cost and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.targets.mcu.dsp.judge import check
from tests.targets.mcu.dsp.layers import SHAPES, expected, geometry, layer, pixels
from tests.targets.mcu.dsp.machine import assemble, call
from tests.targets.mcu.dsp.strategies import geometries
from tvm_compress.targets.mcu.dsp import dsp_kernel
from tvm_compress.targets.mcu.dsp.convolution import Convolution
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.product import LAYOUTS, Product
from tvm_compress.targets.mcu.geometry import Geometry

Array = NDArray[Any]


def _sparse(one: IntegerLayer, density: float, channels: int, seed: int = 0) -> IntegerLayer:
    """Set blocks of four inputs and ``channels`` outputs to zero, but for a fraction."""
    chance = np.random.default_rng(seed)
    g = one.geometry
    w = one.weights.reshape(g.outputs, g.inputs, -1).copy()
    for o in range(0, g.outputs, channels):
        for c in range(0, g.inputs, 4):
            for tap in range(w.shape[2]):
                if chance.random() >= density:
                    w[o : o + channels, c : c + 4, tap] = 0
    return replace(one, weights=w.reshape(g.outputs, -1))


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    chance = np.random.default_rng(len(name))
    kernels = []
    for rounding in ("double", "single"):
        for uniform in (False, True):
            one = layer(SHAPES[name], chance, rounding=rounding, uniform=uniform, gain=0.5)
            assert Convolution.refuses(one) is None
            kernels.append(Convolution(one))
    check(kernels)


@pytest.mark.parametrize("largest", [127, 255])
@pytest.mark.parametrize("rounding", ["double", "single"])
def test_every_layout_with_every_tile(largest: int, rounding: str) -> None:
    chance = np.random.default_rng(largest)
    kernels = []
    for shape in ("pointwise", "pointwise, odd channels", "3x3", "dilated rows"):
        one = layer(SHAPES[shape], chance, rounding=rounding, largest=largest, gain=0.5)
        assert one.pairable == (largest == 127)
        for layout, count in Product.forms(one):
            kernels += [Convolution(one, unroll=u, layout=layout, pixels=count) for u in (1, 8, 48)]
        assert {layout for layout, _ in Product.forms(one)} <= set(LAYOUTS) - {"codes"}
    check(kernels)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_codes(count: int) -> None:
    """Half a byte a weight, of at most 16 different ones with the 0 that fills up."""
    chance = np.random.default_rng(count)
    kernels = []
    for shape in (
        "pointwise",
        "one pixel",
        "pointwise, odd channels",
        "3x3",
        "10x4 of one channel",
    ):
        one = layer(SHAPES[shape], chance, rounding=chance.choice(["double", "single"]), gain=0.5)
        values = np.append(chance.choice(np.arange(1, 128), count - 1, replace=False), 0)
        picked = chance.choice(values * chance.choice([-1, 1], count), one.weights.shape)
        one = replace(one, weights=picked.astype(np.int16))
        forms = [form for form in Product.forms(one) if form[0] == "codes"]
        assert [size for _, size in forms] == [2, 1]
        width = one.geometry.flattened().out_size[1]
        for layout, size in forms:
            if size <= width:
                kernels += [Convolution(one, unroll=u, layout=layout, pixels=size) for u in (1, 48)]
    check(kernels)
    few = layer(SHAPES["pointwise"], chance)
    assert len(np.unique(few.weights)) > 16
    assert "codes" not in {layout for layout, _ in Product.forms(few)}


def test_codes_where_flash_is_scarce() -> None:
    chance = np.random.default_rng(4)
    one = layer(geometry((2, 2), 64, 64), chance)
    one = replace(one, weights=chance.choice(np.arange(-7, 9), one.weights.shape).astype(np.int16))
    fast, small = Convolution(one, byte_cost=1.0), Convolution(one, byte_cost=1024.0)
    assert (fast.layout, small.layout) == ("paired", "codes")
    check([fast, small])


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("uniform", [False, True])
def test_blocks(density: float, uniform: bool) -> None:
    chance = np.random.default_rng(1)
    kernels = []
    for shape in (
        "pointwise",
        "one pixel",
        "pointwise, odd channels",
        "3x3",
        "10x4 of one channel",
    ):
        one = _sparse(layer(SHAPES[shape], chance, uniform=uniform), density, 2)
        for count in range(1, 1 + min(3, one.geometry.flattened().out_size[1])):
            kernels += [Convolution(one, unroll=u, layout="blocks", pixels=count) for u in (1, 48)]
    check(kernels)


def test_gaps_that_a_byte_cannot_pass_over() -> None:
    """A byte reaches 31, 15 or 10 blocks on: blocks of zeros stand between."""
    chance = np.random.default_rng(2)
    g = geometry((1, 3), 4 * 70, 4)
    kernels = []
    for reach, count in ((31, 1), (15, 2), (10, 3)):
        for kept in ([reach], [reach + 1], [0, reach + 2], [2 * reach + 2], [69], [0, 69], [68]):
            one = layer(g, chance, gain=0.2)
            blocks = one.weights.reshape(g.outputs, -1, 4).copy()
            blocks[:, [b for b in range(70) if b not in kept]] = 0
            one = replace(one, weights=blocks.reshape(g.outputs, -1))
            kernels.append(Convolution(one, unroll=1, layout="blocks", pixels=count))
    check(kernels)


def test_rounds_that_keep_different_numbers_of_blocks() -> None:
    chance = np.random.default_rng(3)
    one = layer(geometry((1, 6), 64, 10), chance, gain=0.5)
    blocks = one.weights.reshape(10, 16, 4).copy()
    for o in range(10):
        blocks[o, o // 2 * 3 :] = 0  # the first two have none at all
    one = replace(one, weights=blocks.reshape(10, -1))
    check(
        [
            Convolution(one, unroll=unroll, layout="blocks", pixels=n)
            for unroll in (1, 48)
            for n in (1, 2, 3)
        ]
    )


@given(st.data())
@settings(max_examples=80)
def test_any_layer(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    g = data.draw(geometries(8, 12, st.integers(1, 9)))
    one = layer(
        g,
        np.random.default_rng(draw(0, 1 << 20)),
        rounding=data.draw(st.sampled_from(["single", "double"])),
        uniform=data.draw(st.booleans()),
        largest=data.draw(st.sampled_from([127, 127, 255, 32767])),
        low=data.draw(st.sampled_from([-128, -128, -20])),
        high=data.draw(st.sampled_from([127, 127, 50])),
        gain=0.5,
    )
    one = _sparse(one, data.draw(st.sampled_from([1.0, 1.0, 0.3])), 2, seed=g.inputs)
    assume(Convolution.refuses(one) is None)
    check([Convolution(one, unroll=data.draw(st.sampled_from([1, 16, 48])))], seed=draw(0, 100))


def _saturated(one: IntegerLayer, value: int) -> None:
    """Run a layer on inputs that are all the same, of both signs in turns and at random."""
    g = one.geometry
    kernel = Convolution(one)
    code = assemble({"f": kernel.function()})["f"]
    shape = (*g.in_size, g.inputs)
    sign = np.where(one.weights[0] > 0, 127, -128).reshape(g.inputs, *g.kernel)[:, 0, 0]
    for x in (np.full(shape, value), np.broadcast_to(sign, shape), np.broadcast_to(~sign, shape)):
        x = np.ascontiguousarray(x.astype(np.int8))
        y = np.zeros((*g.out_size, g.outputs), np.int8)
        scratch = np.zeros(kernel.scratch_bytes, np.uint8)
        called = call(code, [x, kernel.stream(), y, scratch], [2, 3])
        np.testing.assert_array_equal(called.buffers[2], expected(one, x))


def _edge_of_pairs(beyond: int = 0, rounding: str = "double") -> IntegerLayer:
    """Weights of +-127 and a bias that takes the bound to the last that fits a pair."""
    most = ((1 << 31) - 1) // 257
    g = geometry((1, 2), 500, 4)
    one = layer(g, np.random.default_rng(4), rounding=rounding, gain=0.02)
    w = np.where(one.weights > 0, 127, -127).astype(np.int16)
    w[1::2] = 127
    w[3] = -127
    one = replace(one, weights=w, bias=np.zeros(4, np.int64))
    bias = np.where(w.sum(axis=1) > 0, -1, 1) * (most + beyond - one.bound)
    return replace(one, weights=w, bias=bias.astype(np.int64))


@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("rounding", ["double", "single"])
def test_the_largest_sums_that_fit_a_pair(value: int, rounding: str) -> None:
    one = _edge_of_pairs(0, rounding)
    assert one.pairable
    assert one.bound.max() * 257 > (1 << 31) - 1 - 257
    assert Convolution(one).layout != "wide"
    _saturated(one, value)
    beyond = _edge_of_pairs(1, rounding)
    assert not beyond.pairable
    assert Convolution(beyond).layout == "wide"
    _saturated(beyond, value)


def test_what_is_pairable() -> None:
    one = layer(geometry((1, 1), 4, 2), np.random.default_rng(0))
    for weight, pairable in ((127, True), (-127, True), (128, False), (-128, False)):
        weights = one.weights.copy()
        weights[1, 2] = weight
        assert replace(one, weights=weights).pairable == pairable
    assert replace(one, weights=np.zeros_like(one.weights)).pairable


@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_that_fit_a_word(value: int, sign: int) -> None:
    """The bias takes a sum to where rounding just does not wrap around; one more is refused."""
    one = layer(geometry((1, 2), 30, 4), np.random.default_rng(5), largest=32767, gain=0.2)
    one = replace(one, bias=np.zeros(4, np.int64))
    room = (1 << 31) - 1 - one.requantize.most_added - one.bound
    one = replace(one, bias=sign * room)
    # The bound takes the worse of the two ends, so the other sign has a little room left.
    assert not one.too_large
    assert (1 << 31) - (one.bound + one.requantize.most_added).max() < 1 << 18
    _saturated(one, value)
    while not one.too_large:
        one = replace(one, bias=one.bias + sign * (1 << 18))
    assert Convolution.refuses(one) == "its sums are too large"


def test_the_bound_is_reached_and_never_passed() -> None:
    one = layer(geometry((1, 1), 9, 4), np.random.default_rng(6))
    w = one.weights.astype(int)
    ends = [
        sum(v * (127 if (v > 0) == up else -128) for v in row) + int(b)
        for row, b in zip(w, one.bias, strict=True)
        for up in (True, False)
    ]
    assert one.bound.tolist() == [max(map(abs, ends[2 * i : 2 * i + 2])) for i in range(4)]


def _with(one: IntegerLayer, **changes: Any) -> IntegerLayer:
    return replace(one, geometry=replace(one.geometry, **changes))


def _refused() -> dict[str, tuple[IntegerLayer, str]]:
    chance = np.random.default_rng(0)
    window = layer(geometry((6, 6), 4, 4, (3, 3), before=(1, 1)), chance)
    pixel = layer(geometry((6, 6), 4, 4, strides=(2, 2)), chance)
    large = replace(window, bias=np.full(4, (1 << 31) - 1, np.int64))
    many = layer(geometry((1, 1), 1, 1366), chance)
    bare = "it is padded without a window"
    return {
        "batch": (_with(window, batch=2), "the batch is not 1"),
        "groups": (_with(window, groups=2), "it is grouped"),
        "channels": (_with(window, channels_last=False), "its channels come first"),
        "outputs": (many, "it has too many output channels"),
        "padding": (layer(geometry((6, 6), 4, 4, before=(1, 0)), chance), bare),
        "padding below": (layer(geometry((6, 6), 4, 4, after=(1, 0)), chance), bare),
        "padding to the right": (layer(geometry((6, 6), 4, 4, after=(0, 1)), chance), bare),
        "padding behind a stride": (
            layer(geometry((6, 6), 4, 4, strides=(2, 2), after=(1, 1)), chance),
            bare,
        ),
        "stride": (
            layer(geometry((6, 6), 4, 4, (1, 3), (2, 1)), chance),
            "its stride is larger than its window",
        ),
        "stride of nine": (
            layer(geometry((19, 6), 4, 4, (9, 3), (9, 1)), chance),
            "its stride is larger than its window",
        ),
        "sums": (large, "its sums are too large"),
        "height": (
            layer(geometry((300, 2), 1, 1, (256, 1)), chance),
            "its windows are too high",
        ),
        "height by dilation": (
            layer(geometry((300, 2), 1, 1, (18, 1), dilation=(15, 1)), chance),
            "its windows are too high",
        ),
        "rows": (layer(geometry((4, 300), 600, 1, (3, 3)), chance), "its rows are too long"),
        "requantize": (
            replace(pixel, requantize=replace(pixel.requantize, shift=np.full(4, 1))),
            "a shift is out of range",
        ),
    }


@pytest.mark.parametrize("name", _refused())
def test_refusals(name: str) -> None:
    one, why = _refused()[name]
    assert Convolution.refuses(one) == why
    assert dsp_kernel(one) is None


@pytest.mark.parametrize(
    "g",
    [
        geometry((256, 2), 1, 2, (255, 1)),
        geometry((256, 2), 1, 1, (18, 1), before=(100, 0), dilation=(14, 1)),
        geometry((2, 700), 1, 2, (1, 600)),
        geometry((1, 4000), 4, 2, (1, 3), before=(0, 1)),
        geometry((3, 30), 700, 1, (3, 3)),
        geometry((9, 9), 700, 1, (3, 3), (3, 3)),
        geometry((1, 3), 4, 1365),
        geometry((3, 3), 6000, 1, strides=(2, 2)),
        geometry((17, 17), 3, 2, (8, 8), (8, 8)),
        geometry((34, 34), 8, 1, (32, 32)),
        geometry((2, 2), 3, 2, (3, 3), before=(20, 20)),
        geometry((1, 2), 64, 2, (1, 3), before=(0, 300)),
    ],
    ids=lambda g: f"{g.in_size} {g.inputs}-{g.outputs} {g.kernel}",
)
def test_extreme_shapes_assemble_with_both_assemblers(g: Geometry, both: list[Any]) -> None:
    """Immediates of large offsets are right, or the layer is refused before."""
    one = layer(g, np.random.default_rng(0), gain=0.5)
    assert Convolution.refuses(one) is None
    function = Convolution(one).function()
    sizes = [len(assemble({"f": function}, command)["f"]) for command in both]
    assert max(sizes) <= function.code_bytes


_OVER = [name for name in SHAPES if "more than a window" not in name]


@pytest.mark.parametrize("name", _OVER)
def test_outputs_over_the_inputs(name: str) -> None:
    """The output may begin ``distances`` bytes before the input, and over it from there on."""
    one = layer(SHAPES[name], np.random.default_rng(len(name)), gain=0.5)
    x = pixels(one.geometry, np.random.default_rng(0))
    right = expected(one, x)
    for count in range(1, 1 + min(3, one.geometry.flattened().out_size[1])):
        if count > one.geometry.out_size[1] and not one.geometry.pointwise:
            continue
        kernel = Convolution(one, pixels=count)
        function = kernel.function()
        ((parameter, distance),) = function.distances
        assert parameter == 0
        assert distance >= 0
        code = assemble({"f": function})["f"]
        scratch = np.zeros(kernel.scratch_bytes, np.uint8)
        buffers = [x, kernel.stream(), np.zeros(right.shape, np.int8), scratch]
        for further in (0, 5):
            called = call(code, buffers, [0, 2, 3], over={2: (0, distance + further)})
            np.testing.assert_array_equal(called.buffers[2], right)


def test_outputs_closer_than_that_spoil_inputs() -> None:
    chance = np.random.default_rng(0)
    shapes = [geometry((2, 6), 4, 12), geometry((6, 4), 4, 12, (3, 3), before=(1, 1))]
    for g in shapes:
        one = layer(g, chance)
        x = pixels(g, chance)
        kernel = Convolution(one)
        function = kernel.function()
        ((_, distance),) = function.distances
        assert distance > 0
        code = assemble({"f": function})["f"]
        y = np.zeros((*g.out_size, g.outputs), np.int8)
        buffers = [x, kernel.stream(), y, np.zeros(kernel.scratch_bytes, np.uint8)]
        called = call(code, buffers, [0, 2, 3], over={2: (0, distance - 8)})
        assert (called.buffers[2] != expected(one, x)).any()


def test_kernels_use_no_register_of_the_fpu() -> None:
    for one in (layer(g, np.random.default_rng(0), low=-5) for g in SHAPES.values()):
        lines = Convolution(one).function().text.splitlines()
        assert not [line for line in lines if line.strip().startswith("v")]


def test_the_stack_is_aligned_for_calls_of_c() -> None:
    for one in (layer(g, np.random.default_rng(0)) for g in SHAPES.values()):
        first, second = Convolution(one).function().text.splitlines()[:2]
        assert first.strip() == "push {r4-r11, lr}"
        assert (9 * 4 + int(second.split("#")[1])) % 8 == 0


def test_stack_is_small_and_grows_with_the_rows_of_a_window() -> None:
    taken = []
    for name in ("pointwise", "3x3", "10x4 of one channel"):
        one = layer(SHAPES[name], np.random.default_rng(0))
        kernel = Convolution(one)
        x = np.zeros((*one.geometry.in_size, one.geometry.inputs), np.int8)
        y = np.zeros((*one.geometry.out_size, one.geometry.outputs), np.int8)
        buffers = [x, kernel.stream(), y, np.zeros(kernel.scratch_bytes, np.uint8)]
        taken.append(call(assemble({"f": kernel.function()})["f"], buffers, [2, 3]).stack_bytes)
    assert taken == sorted(taken)
    assert taken[-1] <= 160
