"""Dense convolutions and products with MVE against plain sums, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.targets.mcu.dsp.layers import depthwise, expected, geometry, layer, pixels
from tests.targets.mcu.mve.machine import Case, check
from tests.targets.mcu.mve.strategies import convolutions, layers, product, relu
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.geometry import Geometry
from tvm_compress.targets.mcu.mve import mve_kernel
from tvm_compress.targets.mcu.mve.convolution import VectorConvolution

TOOLS = ["zig", pytest.param("gnu", marks=pytest.mark.gnu)]


def case(name: str, one: IntegerLayer, chance: np.random.Generator, *mode: Any) -> Case:
    assert VectorConvolution.refuses(one) is None
    x = pixels(one.geometry, chance)
    kernel = VectorConvolution(one, *mode)
    # The kernel says itself whether it may write over its input: then it does.
    over = kernel.function().in_place == (0,)
    return Case(name, kernel, [x], expected(one, x), bool(chance.integers(2)), over)


# Each takes another way through the kernel: steps held in registers or not, unrolled or in a loop,
# near or far; blocks of 16, 8, 4 and less; rows of the image or of a copy.
WAYS = {
    "one step, no whole one": geometry((2, 3), 5, 7),
    "one step": geometry((2, 3), 16, 16),
    "two steps": geometry((2, 3), 20, 21),
    "three steps": geometry((2, 3), 48, 3),
    "four steps": geometry((2, 2), 64, 64),
    "nine steps": product(2, 137, 8),
    "thirteen steps": product(1, 200, 20),
    "many steps": product(1, 640, 9),
    "steps that begin earlier": product(3, 349, 15),
    "strides without a window": geometry((5, 7), 9, 10, strides=(2, 3)),
    "one pixel": product(1, 8, 65),
    "one column": geometry((5, 4), 24, 6, strides=(2, 4)),
    "rows of the image": geometry((5, 6), 16, 12, (3, 2)),
    "rows of a copy": geometry((5, 6), 16, 12, (3, 3), before=(1, 1)),
    "one row a window": geometry((3, 9), 17, 5, (1, 3), before=(0, 1)),
    "two rows a window": geometry((4, 5), 33, 5, (2, 1), strides=(2, 1)),
    "four rows a window": geometry((7, 5), 10, 18, (4, 3), strides=(3, 2), before=(2, 1)),
    "far rows": geometry((3, 4), 60, 4, (2, 3), before=(1, 1)),
    "far and many": geometry((3, 3), 80, 9, (3, 3), before=(1, 1)),
    "gathered": geometry((6, 5), 3, 16, (3, 3), strides=(2, 2), after=(1, 1)),
    "gathered from many rows": geometry((11, 6), 1, 17, (10, 4), strides=(2, 2), before=(4, 1)),
    "gathered in long rows": geometry((6, 4), 70, 3, (5, 2), before=(2, 1)),
    "more padding than image": geometry((2, 2), 4, 5, (4, 4), before=(3, 3)),
    "padding in front alone": geometry((4, 4), 6, 5, (3, 3), before=(2, 2), after=(0, 0)),
    "padding behind alone": geometry((4, 4), 6, 5, (3, 3), strides=(2, 2), after=(1, 1)),
    "stride of the whole window": geometry((6, 6), 5, 6, (3, 3), strides=(3, 3), before=(1, 1)),
    "dilated columns": geometry((6, 9), 7, 9, (3, 3), dilation=(2, 3), before=(2, 3)),
    "dilated wide columns": geometry((3, 9), 150, 2, (1, 2), dilation=(1, 3), before=(0, 1)),
    "dilated rows": geometry((8, 4), 8, 6, (3, 2), dilation=(2, 1), before=(2, 0)),
}


@pytest.mark.qemu
@pytest.mark.parametrize("tool", TOOLS)
def test_every_way_gives_the_exact_bytes(tool: str) -> None:
    chance = np.random.default_rng(1)
    cases = [
        case(name, layer(g, chance, rounding=("double", "single")[i % 2]), chance)
        for i, (name, g) in enumerate(WAYS.items())
    ]
    check(cases, tool)


@pytest.mark.qemu
def test_weights_of_nine_bits() -> None:
    chance = np.random.default_rng(8)
    names = ("one step, no whole one", "four steps", "many steps", "rows of a copy", "gathered")
    cases = []
    for name in names:
        one = layer(WAYS[name], chance, largest=254)
        one.weights[0, :2] = (254, -256)
        cases.append(case(name, one, chance))
    check(cases)


@pytest.mark.qemu
def test_windows_are_read_from_rows_or_from_one_piece() -> None:
    chance = np.random.default_rng(2)
    cases = []
    for name in ("rows of the image", "rows of a copy", "four rows a window", "far rows"):
        for mode in ("rows", "gather"):
            one = layer(WAYS[name], chance)
            cases.append(case(f"{name}: {mode}", one, chance, mode))
    check(cases)


def test_an_output_takes_the_place_of_an_input_that_has_been_read() -> None:
    def in_place(g: Geometry) -> bool:
        one = layer(g, np.random.default_rng(0))
        return VectorConvolution(one).function().in_place == (0,)

    assert in_place(geometry((3, 3), 8, 8))
    assert not in_place(geometry((3, 3), 8, 9))
    assert in_place(geometry((9, 9), 16, 16, (3, 3), before=(1, 1)))
    assert not in_place(geometry((9, 9), 16, 24, (3, 3), before=(1, 1)))
    assert in_place(geometry((9, 9), 16, 24, (3, 3), strides=(2, 2), before=(1, 1)))
    assert not in_place(geometry((9, 9), 16, 16, (2, 2)))  # read where it lies
    # Padding in front: the first row of outputs is as long as all that was read.
    assert in_place(geometry((9, 9), 3, 3, (3, 3), before=(2, 1), after=(0, 1)))
    assert not in_place(geometry((9, 9), 3, 4, (3, 3), before=(2, 1), after=(0, 1)))


@pytest.mark.qemu
def test_every_rounding_and_limit() -> None:
    chance = np.random.default_rng(3)
    g, cases = geometry((3, 3), 12, 28), []
    for rounding in ("double", "single"):
        for uniform in (False, True):
            for low, high in ((-128, 127), (-50, 127), (-128, 60), (-9, 20)):
                one = layer(g, chance, rounding=rounding, uniform=uniform, low=low, high=high)
                cases.append(case(f"{rounding} {uniform} {low} {high}", one, chance))
                cases.append(case(f"{cases[-1].name} relu", relu(one), chance))
    check([c for c in cases if c.kernel.layer.requantize.low <= c.kernel.layer.requantize.high])  # type: ignore[attr-defined]


@pytest.mark.qemu
def test_ties_are_rounded_as_the_rounding_says() -> None:
    # Sums -128 .. 127 halved, and divided by 8: every second and eighth one is a tie.
    g = product(256, 1, 2)
    x = np.arange(-128, 128, dtype=np.int8).reshape(1, 256, 1)
    cases = []
    for rounding, zero_point in (("double", 0), ("single", 0), ("double", -128), ("double", 3)):
        one = layer(g, np.random.default_rng(0), rounding=rounding, uniform=True)
        shift = np.array([-1, -3], np.int32) if rounding == "double" else np.full(2, -3, np.int32)
        requantize = replace(
            one.requantize,
            multiplier=np.full(2, 1 << 30, np.int32),
            shift=shift,
            zero_point=zero_point,
        )
        one = replace(
            one,
            weights=np.array([[2], [2]], np.int16),
            bias=np.zeros(2, np.int64),
            requantize=requantize,
        )
        cases.append(Case(rounding, VectorConvolution(one), [x], expected(one, x)))
    check(cases)
    differing = cases[0].expected[:, :, 1] != cases[1].expected[:, :, 1]
    assert differing.sum() > 10, "no tie was met"


@pytest.mark.qemu
def test_dead_channels_and_factors_of_a_half_and_more() -> None:
    chance = np.random.default_rng(4)
    one = layer(geometry((2, 2), 6, 20), chance)
    shift, multiplier = one.requantize.shift.copy(), one.requantize.multiplier.copy()
    multiplier[3], shift[3] = 0, 0  # as quantize_multiplier gives a factor that is too small
    dead = replace(one, requantize=replace(one.requantize, multiplier=multiplier, shift=shift))
    shift = shift.copy()
    shift[[5, 9]] = 0  # nothing to round a second time
    large = relu(replace(one, requantize=replace(one.requantize, shift=shift)))
    check([case("dead", dead, chance), case("large", large, chance)])
    most = replace(one, requantize=replace(one.requantize, shift=shift, low=-128, zero_point=0))
    assert VectorConvolution.refuses(most) == "a shift is out of range"


@pytest.mark.qemu
@given(st.lists(layers(convolutions()), min_size=12, max_size=12), st.integers(0, 1 << 16))
@settings(max_examples=4, deadline=None)
def test_any_layer_gives_the_exact_bytes(many: list[IntegerLayer], seed: int) -> None:
    chance = np.random.default_rng(seed)
    check([case(repr(one.geometry), one, chance) for one in many])


def test_layers_of_other_kinds_are_refused_with_a_reason() -> None:
    chance = np.random.default_rng(5)
    g = geometry((4, 4), 8, 8, (3, 3))

    def refusal(one: IntegerLayer) -> str | None:
        assert mve_kernel(one) is None
        return VectorConvolution.refuses(one)

    def of(**changes: Any) -> IntegerLayer:
        return layer(replace(g, **changes), chance)

    one = layer(g, chance)
    assert refusal(of(batch=2)) == "the batch is not 1"
    assert refusal(of(groups=2, inputs=4)) == "it is grouped"
    assert refusal(of(channels_last=False)) == "its channels come first"
    padded = of(kernel=(1, 1), padding=(1, 1))
    assert refusal(padded) == "it is padded without a window"
    # Below the image alone: no padding in front says so.
    below = of(kernel=(1, 1), strides=(2, 2), padding=(0, 0), in_size=(4, 5), out_size=(3, 3))
    assert refusal(below) == "it is padded without a window"
    beside = replace(below, geometry=replace(below.geometry, in_size=(5, 4)))
    assert refusal(beside) == "it is padded without a window"
    assert refusal(of(strides=(4, 1))) == "its stride is larger than its window"
    assert refusal(of(in_size=(4, 1 << 17))) == "its rows are too long"
    wide = replace(one, weights=np.full_like(one.weights, 255))
    assert refusal(wide) == "its weights have more than 9 bits"
    large = replace(one, bias=np.full_like(one.bias, (1 << 31) - 5))
    assert refusal(large) == "its sums are too large"


def test_requantizations_without_exact_instructions_are_refused() -> None:
    one = layer(product(1, 4, 3), np.random.default_rng(6), rounding="single")

    def refusal(**changes: Any) -> str | None:
        arrays = {k: np.array(v, np.int32) if k != "rounding" else v for k, v in changes.items()}
        changed = replace(one, requantize=replace(one.requantize, **arrays))
        return VectorConvolution.refuses(changed)

    assert refusal(multiplier=[5, -1, 3]) == "a multiplier is negative"
    assert refusal(shift=[-4, -4, -5]) == "the shifts differ"
    assert refusal(shift=[-32] * 3) == "a shift is out of range"
    assert refusal(shift=[0] * 3) == "a shift is out of range"
    assert refusal(shift=[1, -4, -4], rounding="double") == "a shift is out of range"


def test_depthwise_layers_are_left_to_their_own_kernel() -> None:
    one = layer(depthwise((4, 4), 8), np.random.default_rng(7))
    assert VectorConvolution.refuses(one) == "it is grouped"
    assert type(mve_kernel(one)).__name__ == "VectorDepthwise"
