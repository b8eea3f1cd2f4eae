"""What of an integer module runs in kernels with MVE, and that the module stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from tests.targets.mcu.mve.test_convolution import TOOLS
from tvm_compress.ops.requantize import quantize_multiplier, requantize
from tvm_compress.targets.mcu.mve.groups import find_vector_groups

Array = NDArray[Any]
Emit = Callable[..., Any]


def module(build: Callable[[Emit, Any, Any], Any], shape: tuple[int, ...] = (1, 5, 5, 6)) -> Any:
    """A module of two int8 inputs; ``build(emit, x, y)`` gives the output."""
    builder = relax.BlockBuilder()
    x, y = (relax.Var(name, relax.TensorType(shape, "int8")) for name in ("x", "y"))
    with builder.function("main", [x, y]):
        with builder.dataflow():
            out = builder.emit_output(build(builder.emit, x, y))
        builder.emit_func_output(out)
    return builder.get()


def number(value: int) -> Any:
    return relax.const(np.array(value, np.int32), "int32")


def side(emit: Emit, x: Any, zero: int, real: float) -> Any:
    wide = emit(relax.op.astype(x, "int32"))
    centred = emit(relax.op.subtract(wide, number(zero)))
    shifted = emit(relax.op.multiply(centred, number(1 << 20)))
    limits = {"low": 1 - (1 << 30), "high": (1 << 30) - 1, "out_dtype": "int32"}
    factor = quantize_multiplier(real, "double")
    return emit(requantize(shifted, *factor, rounding="double", **limits))


def addition(emit: Emit, x: Any, y: Any, zero_point: int = -20) -> Any:
    """TensorFlow Lite's."""
    total = emit(relax.op.add(side(emit, x, 3, 0.4), side(emit, y, -7, 0.5)))
    factor = quantize_multiplier(1.7 / (1 << 20), "double")
    return emit(requantize(total, *factor, rounding="double", zero_point=zero_point))


def weighted(emit: Emit, x: Any, y: Any) -> Any:
    """That of a network of our own quantisation: rounded once."""
    terms = [
        emit(relax.op.multiply(emit(relax.op.astype(v, "int32")), number(f)))
        for v, f in ((x, 700), (y, -333))
    ]
    total = emit(relax.op.add(number(2048), emit(relax.op.add(*terms))))
    shifted = emit(relax.op.right_shift(total, number(10)))
    clipped = emit(relax.op.clip(shifted, -100, 127))
    return emit(relax.op.astype(clipped, "int8"))


def rescaled(emit: Emit, x: Any, y: Any) -> Any:
    wide = emit(relax.op.subtract(emit(relax.op.astype(x, "int32")), number(5)))
    factor = quantize_multiplier(0.8, "single")
    first = emit(requantize(wide, *factor, rounding="single", zero_point=9))
    return addition(emit, first, y, zero_point=-128)


def pooled(emit: Emit, x: Any, y: Any) -> Any:
    return emit(relax.op.sum(emit(relax.op.astype(x, "int32")), axis=[1, 2], keepdims=True))


def kinds(mod: Any) -> list[str]:
    return [group.kind for group in find_vector_groups(mod).values()]


FOUND = {addition: ["add"], weighted: ["add"], rescaled: ["add"], pooled: ["sum"]}


def samples(shape: tuple[int, ...]) -> dict[str, Array]:
    chance = np.random.default_rng(1)
    return {name: chance.integers(-128, 128, (3, *shape[1:])).astype(np.int8) for name in "xy"}


@pytest.mark.qemu
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("build", FOUND, ids=lambda build: build.__name__)
def test_groups_are_found_and_give_the_bytes_of_the_reference(build: Any, tool: str) -> None:
    mod = module(build)
    assert kinds(mod) == FOUND[build]
    x = samples((1, 5, 5, 6))
    if build is pooled:
        mod = module(
            lambda e, x, y: e(relax.op.astype(e(relax.op.clip(pooled(e, x, y), -100, 100)), "int8"))
        )
    board = tc.build(mod, target="c", board="mps3-an547", toolchain=tool)
    expected = tc.build(mod, target="reference").run(x)
    for name, value in board.run(x).items():
        np.testing.assert_array_equal(value, expected[name])
    layers = board.profile({k: v[:1] for k, v in x.items()}).layers
    assert [f"{kind} (mve)" for kind in FOUND[build]] == [
        layer.kind for layer in layers if layer.kind.endswith("(mve)")
    ]


def test_what_is_read_twice_or_has_other_shapes_is_left_to_loops() -> None:
    def twice(emit: Emit, x: Any, y: Any) -> Any:
        scaled = side(emit, x, 3, 0.4)
        total = emit(relax.op.add(emit(relax.op.add(scaled, scaled)), side(emit, y, 0, 0.3)))
        return emit(requantize(total, *quantize_multiplier(1e-6, "double"), rounding="double"))

    def broadcast(emit: Emit, x: Any, y: Any) -> Any:
        row = emit(relax.op.strided_slice(y, axes=[1], begin=[0], end=[1]))
        return addition(emit, x, row)

    def along(emit: Emit, x: Any, y: Any) -> Any:
        wide = emit(relax.op.astype(x, "int32"))
        vector = relax.const(np.arange(6, dtype=np.int32), "int32")
        return emit(
            relax.op.astype(emit(relax.op.clip(emit(relax.op.add(wide, vector)), -9, 9)), "int8")
        )

    def large(emit: Emit, x: Any, y: Any) -> Any:
        wide = emit(relax.op.multiply(emit(relax.op.astype(x, "int32")), number(1 << 25)))
        return emit(requantize(wide, *quantize_multiplier(1e-6, "double"), rounding="double"))

    def enlarged(emit: Emit, x: Any, y: Any) -> Any:
        wide = emit(relax.op.astype(x, "int32"))
        return emit(requantize(wide, *quantize_multiplier(3.0, "double"), rounding="double"))

    def rows(emit: Emit, x: Any, y: Any) -> Any:
        return emit(relax.op.sum(emit(relax.op.astype(x, "int32")), axis=[1]))

    for build in (twice, broadcast, along, large, enlarged, rows):
        assert kinds(module(build)) == [], build.__name__


def test_sums_of_few_channels_or_of_several_images_are_left_to_loops() -> None:
    assert kinds(module(pooled, (1, 5, 5, 3))) == []
    assert kinds(module(pooled, (2, 5, 5, 6))) == []


@pytest.mark.qemu
def test_a_network_of_all_kernels_gives_the_bytes_of_the_reference() -> None:
    chance = np.random.default_rng(2)

    def layer(emit: Emit, x: Any, name: str, kernel: int, channels: int, groups: int = 1) -> Any:
        inputs = 6 if x.ty.shape[3] == 6 else int(x.ty.shape[3])
        shape = (channels, inputs // groups, kernel, kernel)
        weight = emit(relax.const(chance.integers(-127, 128, shape).astype(np.int8), "int8"), name)
        if kernel > 1:
            x = emit(
                relax.op.nn.pad(x, [0, 0, 1, 1, 1, 1, 0, 0], pad_mode="constant", pad_value=-7.0)
            )
        options = {"data_layout": "NHWC", "kernel_layout": "OIHW", "out_dtype": "int32"}
        total = emit(relax.op.nn.conv2d(x, weight, groups=groups, **options))
        bias = chance.integers(-2000, 2000, channels).astype(np.int32)
        total = emit(relax.op.add(total, relax.const(bias, "int32")))
        real = chance.uniform(0.5, 1, channels) / np.sqrt(np.prod(shape[1:])) / 60
        factor = quantize_multiplier(real, "double")
        return emit(requantize(total, *factor, axis=3, rounding="double", zero_point=-7, low=-7))

    def network(emit: Emit, x: Any, y: Any) -> Any:
        first = layer(emit, x, "first", 3, 12)
        second = layer(emit, first, "second", 3, 12, groups=12)
        third = layer(emit, second, "third", 1, 12)
        return addition(emit, first, addition(emit, third, second))

    mod = module(network)
    x = samples((1, 5, 5, 6))
    board = tc.build(mod, target="c", board="mps3-an547")
    expected = tc.build(mod, target="reference").run(x)
    for name, value in board.run(x).items():
        np.testing.assert_array_equal(value, expected[name])
    layers = board.profile({k: v[:1] for k, v in x.items()}).layers
    assert [layer.kind for layer in layers[1:]] == [
        "conv2d (mve)",
        "depthwise_conv2d (mve)",
        "conv2d (mve)",
        "add (mve)",
        "add (mve)",
    ]
