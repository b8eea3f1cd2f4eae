"""Depthwise convolutions in assembly: bytes, memory, cost, in place, and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.targets.mcu.dsp.judge import check
from tests.targets.mcu.dsp.layers import depthwise, expected, geometry, layer, pixels
from tests.targets.mcu.dsp.machine import assemble, call
from tvm_compress.targets.mcu.dsp import dsp_kernel
from tvm_compress.targets.mcu.dsp.depthwise import Depthwise
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.geometry import Geometry

_SHAPES: dict[str, Geometry] = {
    "3x3": depthwise((6, 5), 8, before=(1, 1)),
    "3x3, odd channels": depthwise((5, 6), 7, before=(1, 1)),
    "3x3, two channels": depthwise((5, 6), 2, before=(1, 1)),
    "3x3 without padding": depthwise((5, 5), 5),
    "one output": depthwise((3, 3), 6),
    "one pixel": depthwise((1, 1), 6, before=(1, 1)),
    "a row of ten pairs": depthwise((3, 20), 4, before=(1, 1)),
    "SAME with stride 2": depthwise((8, 8), 9, strides=(2, 2), after=(1, 1)),
    "stride 2, odd width": depthwise((7, 9), 6, strides=(2, 2), before=(1, 1)),
    "stride 1 by 2": depthwise((5, 7), 5, (2, 3), strides=(1, 2), before=(1, 0)),
    "stride 3 by 1": depthwise((9, 4), 5, strides=(3, 1), before=(0, 1)),
    "one row high": depthwise((1, 11), 5, (1, 3), before=(0, 1)),
    "rows of their own": depthwise((6, 5), 5, (1, 3), before=(0, 2)),
    "padded above more than a window": depthwise((4, 4), 5, (2, 3), before=(5, 3)),
    "padded below more than a window": depthwise((4, 4), 5, (2, 3), after=(4, 5)),
    "5x5": depthwise((7, 8), 6, (5, 5), before=(2, 2)),
    "5x5 with stride 2": depthwise((9, 8), 5, (5, 5), strides=(2, 2), before=(1, 2)),
    "7x7": depthwise((7, 9), 4, (7, 7), before=(3, 3)),
    "4x4": depthwise((6, 7), 4, (4, 4), before=(1, 1), after=(2, 2)),
    "5x1": depthwise((9, 5), 5, (5, 1), before=(2, 0)),
    "2x2 with its stride": depthwise((6, 8), 4, (2, 2), strides=(2, 2)),
    "9x3 with stride 2": depthwise((12, 9), 3, (9, 3), strides=(3, 2), before=(4, 1)),
    "two outputs a channel": depthwise((5, 6), 6, multiple=2, before=(1, 1)),
    "three outputs a channel, 5x5": depthwise((6, 5), 5, (5, 5), multiple=3, before=(2, 2)),
    "256 channels": depthwise((3, 3), 256, before=(1, 1)),
    "one-dimensional": depthwise(
        (1, 9), 6, (1, 3), before=(0, 1), rank=1, in_shape=(1, 9, 6), out_shape=(1, 9, 6)
    ),
}


@pytest.mark.parametrize("name", _SHAPES)
def test_shapes_in_strips_of_all_heights(name: str) -> None:
    chance = np.random.default_rng(len(name))
    g = _SHAPES[name]
    kernels = []
    for i, plane_bytes in enumerate((1, 300, 700, 4096)):
        rounding, uniform = ("double", "single")[i % 2], i >= 2
        one = layer(g, chance, rounding=rounding, uniform=uniform, gain=0.5, largest=127)
        assert Depthwise.refuses(one) is None
        kernels.append(Depthwise(one, plane_bytes))
    assert kernels[0].strips == g.out_size[0]
    assert kernels[-1].strips == 1
    check(kernels)


@given(st.data())
@settings(max_examples=100)
def test_any_layer(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel = (draw(1, 3), 3) if draw(0, 1) else (draw(1, 7), draw(1, 9))
    strides = (draw(1, kernel[0]), draw(1, 2))
    before, after = ((draw(0, 3), draw(0, 3)) for _ in range(2))
    size = (draw(1, 12), draw(1, 12))
    assume(all(size[i] + before[i] + after[i] >= kernel[i] for i in range(2)))
    one = layer(
        depthwise(
            size, draw(2, 10), kernel, draw(1, 3), strides=strides, before=before, after=after
        ),
        np.random.default_rng(draw(0, 1 << 20)),
        rounding=data.draw(st.sampled_from(["single", "double"])),
        uniform=data.draw(st.booleans()),
        largest=data.draw(st.sampled_from([127, 255, 32767])),
        low=data.draw(st.sampled_from([-128, -20])),
        high=data.draw(st.sampled_from([127, 50])),
        gain=0.5,
    )
    assume(Depthwise.refuses(one) is None)
    kernel_of = Depthwise(one, data.draw(st.sampled_from([1, 300, 1000, 4096])))
    check([kernel_of], seed=draw(0, 100))
    if kernel_of.function().in_place == (0,):
        _in_place(kernel_of)


def _in_place(kernel: Depthwise) -> None:
    """Run with the output over the input."""
    g = kernel.layer.geometry
    x = pixels(g, np.random.default_rng(7))
    right = expected(kernel.layer, x)
    # The larger of the two says how much memory there is.
    y = np.zeros(right.shape, np.int8)
    code = assemble({"f": kernel.function()})["f"]
    scratch = np.zeros(kernel.scratch_bytes, np.uint8)
    buffers = [x, kernel.stream(), y, scratch]
    called = call(code, buffers, [0, 2, 3], over={2: (0, 0)})
    np.testing.assert_array_equal(called.buffers[2], right, str(g))


@pytest.mark.parametrize("plane_bytes", [1, 300, 4096])
@pytest.mark.parametrize("name", ["3x3", "SAME with stride 2", "stride 2, odd width"])
def test_in_place(name: str, plane_bytes: int) -> None:
    kernel = Depthwise(layer(_SHAPES[name], np.random.default_rng(0)), plane_bytes)
    assert kernel.function().in_place == (0,)
    _in_place(kernel)


def test_outputs_that_overtake_the_inputs_are_not_in_place() -> None:
    wide = layer(depthwise((9, 4), 4, before=(2, 2)), np.random.default_rng(0))
    late = layer(depthwise((9, 12), 4, (1, 3), before=(1, 0)), np.random.default_rng(0))
    for one in (wide, late):
        assert Depthwise(one, 1).function().in_place == ()
        with pytest.raises(AssertionError, match="Mismatched elements"):
            _in_place(Depthwise(one, 1))
        # In one strip all rows are read before the first output is written.
        kernel = Depthwise(one)
        assert kernel.strips == 1
        assert kernel.function().in_place == (0,)
        _in_place(kernel)


def test_strips_hold_the_planes_to_what_is_asked() -> None:
    one = layer(depthwise((40, 20), 8, before=(1, 1)), np.random.default_rng(0))
    sizes = [Depthwise(one, asked).scratch_bytes for asked in (1, 1000, 4096, 10000)]
    rows = 3 * 48 * 4  # three rows of 23 halfwords (22 and an over-read one), in four planes
    assert sizes[0] == rows
    assert sizes == sorted(sizes)
    assert sizes[1] <= 1000 < sizes[2] <= 4096 < sizes[3] <= 10000
    check([Depthwise(one, 1000), Depthwise(one, 4096)])


def _with(one: IntegerLayer, **changes: Any) -> IntegerLayer:
    return replace(one, geometry=replace(one.geometry, **changes))


def _refused() -> dict[str, tuple[IntegerLayer, str]]:
    chance = np.random.default_rng(0)
    one = layer(_SHAPES["3x3"], chance)
    depth = "it is not depthwise"
    first, strange = "its channels come first", "its strides or dilation are out of the ordinary"
    return {
        "batch": (_with(one, batch=2), "the batch is not 1"),
        "dense": (layer(geometry((6, 5), 4, 8, (3, 3)), chance), depth),
        "groups": (layer(geometry((6, 5), 2, 8, (3, 3), groups=4), chance), depth),
        "one group": (layer(depthwise((6, 5), 1), chance), depth),
        "channels": (_with(one, channels_last=False), first),
        "product": (_with(one, rank=0), first),
        "dilation": (_with(one, dilation=(2, 1)), strange),
        "stride": (layer(depthwise((6, 7), 8, strides=(1, 3)), chance), strange),
        "stride of rows": (layer(depthwise((6, 5), 8, (2, 3), strides=(3, 1)), chance), strange),
        "many": (layer(depthwise((2, 3), 2048, (1, 3)), chance), "it has too many channels"),
        "high": (layer(depthwise((20, 30), 4, (18, 3)), chance), "its rows are too long"),
        "long": (layer(depthwise((3, 251), 4), chance), "its rows are too long"),
        "planes": (layer(depthwise((2, 900), 4, (1, 3)), chance), "its planes are too large"),
        "sums": (replace(one, bias=np.full(8, -(1 << 31) + 1, np.int64)), "its sums are too large"),
        "requantize": (
            replace(one, requantize=replace(one.requantize, multiplier=np.zeros(8, np.int32))),
            "a multiplier is not positive",
        ),
    }


@pytest.mark.parametrize("name", _refused())
def test_refusals(name: str) -> None:
    one, why = _refused()[name]
    assert Depthwise.refuses(one) == why
    if name not in ("dense", "one group"):
        assert dsp_kernel(one) is None


@pytest.mark.parametrize("name", _SHAPES)
def test_less_code_for_scarce_flash(name: str) -> None:
    one = layer(_SHAPES[name], np.random.default_rng(len(name)))
    short, long = check([Depthwise(one, unroll=1), Depthwise(one)])
    assert short.code_bytes <= long.code_bytes
    assert dsp_kernel(one, byte_cost=1024.0).function() == short  # type: ignore[union-attr]
    assert dsp_kernel(one).function() == long  # type: ignore[union-attr]


def test_the_kernel_of_a_layer() -> None:
    chance = np.random.default_rng(0)
    assert isinstance(dsp_kernel(layer(_SHAPES["3x3"], chance)), Depthwise)
    assert not isinstance(dsp_kernel(layer(geometry((3, 3), 4, 4), chance)), Depthwise | None)


@pytest.mark.parametrize(
    "g",
    [
        depthwise((3, 200), 4, before=(1, 1)),
        depthwise((3, 210), 4),
        depthwise((1, 660), 5, (1, 3)),
        depthwise((4, 3), 2047, before=(1, 1)),
        depthwise((3, 4), 300, strides=(2, 2), after=(1, 1)),
        depthwise((30, 30), 4, before=(10, 10)),
        depthwise((30, 100), 3, (1, 3), before=(4, 1)),
        depthwise((200, 5), 4, before=(1, 1)),
    ],
    ids=lambda g: f"{g.in_size} {g.outputs} {g.kernel}",
)
def test_extreme_shapes_assemble_with_both_assemblers(g: Geometry, both: list[Any]) -> None:
    one = layer(g, np.random.default_rng(0))
    assert Depthwise.refuses(one) is None
    function = Depthwise(one).function()
    sizes = [len(assemble({"f": function}, command)["f"]) for command in both]
    assert max(sizes) <= function.code_bytes


@pytest.mark.parametrize("before", [(10, 10), (4, 1)])
def test_padding_higher_than_a_strip(before: tuple[int, int]) -> None:
    g = depthwise((8, 30), 4, (1, 3), before=before)
    check([Depthwise(layer(g, np.random.default_rng(0)), rows * 4 * 4 * 30) for rows in (1, 3)])


def test_kernels_use_no_register_of_the_fpu() -> None:
    for one in (layer(g, np.random.default_rng(0), low=-5) for g in _SHAPES.values()):
        lines = Depthwise(one).function().text.splitlines()
        assert not [line for line in lines if line.strip().startswith("v")]


def test_stack_is_small() -> None:
    one = layer(_SHAPES["3x3"], np.random.default_rng(0))
    kernel = Depthwise(one)
    x = np.zeros((*one.geometry.in_size, one.geometry.outputs), np.int8)
    y = np.zeros((*one.geometry.out_size, one.geometry.outputs), np.int8)
    buffers = [x, kernel.stream(), y, np.zeros(kernel.scratch_bytes, np.uint8)]
    called = call(assemble({"f": kernel.function()})["f"], buffers, [2, 3])
    assert called.stack_bytes <= 112
