"""Depthwise convolutions with MVE against plain sums, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.targets.mcu.dsp.layers import depthwise, expected, geometry, layer, pixels
from tests.targets.mcu.mve.machine import Case, check
from tests.targets.mcu.mve.strategies import depthwise_convolutions, layers, relu
from tests.targets.mcu.mve.test_convolution import TOOLS
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.mve.depthwise import VectorDepthwise


def case(name: str, one: IntegerLayer, chance: np.random.Generator) -> Case:
    assert VectorDepthwise.refuses(one) is None, name
    x = pixels(one.geometry, chance)
    at_end = bool(chance.integers(2))
    return Case(name, VectorDepthwise(one), [x], expected(one, x), at_end)


# One to four outputs of a patch, one or more patches of a vector, tiles whole and cut.
WAYS = {
    "four outputs a patch": depthwise((8, 8), 16, before=(1, 1)),
    "odd rows and columns": depthwise((5, 7), 9, before=(1, 1)),
    "one row": depthwise((3, 9), 8, (3, 3), before=(0, 1)),
    "one column": depthwise((9, 3), 8, (3, 3), before=(1, 0)),
    "one output": depthwise((3, 3), 17, (3, 3)),
    "strides": depthwise((9, 9), 12, strides=(2, 2), after=(1, 1)),
    "strides and a cut tile": depthwise((6, 6), 20, strides=(2, 2), after=(1, 1)),
    "no rows of its own": depthwise((7, 5), 33, (1, 3), before=(0, 1)),
    "no columns of its own": depthwise((6, 5), 6, (3, 1), before=(1, 0)),
    "one tap": depthwise((5, 6), 7, (1, 1)),
    "large window": depthwise((7, 8), 5, (4, 4), before=(2, 1), after=(1, 2)),
    "strides of other lengths": depthwise((9, 12), 4, (2, 3), strides=(1, 3), before=(1, 2)),
    "stride beyond the window": depthwise((9, 12), 4, (2, 2), strides=(3, 3), after=(1, 1)),
    "more padding than image": depthwise((2, 4), 6, (4, 4), before=(3, 3), after=(3, 3)),
    "many channels": depthwise((2, 3), 600, before=(1, 1)),
    "short row": depthwise((4, 2), 8, before=(1, 1)),
    "rows of many tiles": depthwise((2, 18), 3, before=(1, 1)),
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
def test_every_rounding_and_limit() -> None:
    chance = np.random.default_rng(2)
    g, cases = depthwise((4, 5), 7, before=(1, 1)), []
    for rounding in ("double", "single"):
        for uniform in (False, True):
            for low, high in ((-128, 127), (-50, 127), (-128, 60), (-9, 20)):
                one = layer(g, chance, rounding=rounding, uniform=uniform, low=low, high=high)
                cases.append(case(f"{rounding} {uniform} {low} {high}", one, chance))
        cases.append(case(f"{rounding} relu", relu(layer(g, chance, rounding=rounding)), chance))
    check(cases)


@pytest.mark.qemu
def test_weights_of_nine_bits() -> None:
    chance = np.random.default_rng(8)
    cases = []
    for name in ("odd rows and columns", "strides", "rows of many tiles", "one output"):
        one = layer(WAYS[name], chance, largest=254)
        one.weights[0, :2] = (254, -256)
        cases.append(case(name, one, chance))
    check(cases)


@pytest.mark.qemu
@given(
    st.lists(layers(depthwise_convolutions()), min_size=12, max_size=12), st.integers(0, 1 << 16)
)
@settings(max_examples=4, deadline=None)
def test_any_layer_gives_the_exact_bytes(many: list[IntegerLayer], seed: int) -> None:
    chance = np.random.default_rng(seed)
    check([case(repr(one.geometry), one, chance) for one in many])


def test_layers_of_other_kinds_are_refused_with_a_reason() -> None:
    chance = np.random.default_rng(5)
    g = depthwise((6, 6), 8)
    refusal = VectorDepthwise.refuses

    def of(**changes: Any) -> IntegerLayer:
        return layer(replace(g, **changes), chance)

    assert refusal(of(batch=2)) == "the batch is not 1"
    dense = "it is not depthwise with one output a channel"
    assert refusal(layer(geometry((6, 6), 8, 8, (3, 3)), chance)) == dense
    assert refusal(of(outputs=16)) == dense
    assert refusal(of(channels_last=False)) == "its channels come first"
    assert refusal(of(kernel=(5, 3))) == "its window is larger than 4 x 4"
    assert refusal(of(dilation=(1, 2))) == "its window is larger than 4 x 4"
    assert refusal(of(outputs=8192, groups=8192, strides=(1, 2))) == "it has too many channels"
    assert refusal(of(in_size=(6, 1))) == "its rows are shorter than a vector"
    one = layer(g, chance)
    wide = replace(one, weights=np.full_like(one.weights, 255))
    assert refusal(wide) == "its weights have more than 9 bits"
    large = replace(one, bias=np.full_like(one.bias, (1 << 31) - 5))
    assert refusal(large) == "its sums are too large"
    negative = replace(one.requantize, multiplier=-one.requantize.multiplier)
    assert refusal(replace(one, requantize=negative)) == "a multiplier is negative"
