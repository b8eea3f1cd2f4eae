"""What between the layers of a module runs in kernels for the DSP extension, and its bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from tests.targets.mcu.dsp.test_residual import _add
from tests.targets.mcu.nets import Net, const, network
from tvm_compress.ops.lookup import lookup
from tvm_compress.ops.requantize import quantize_multiplier, requantize
from tvm_compress.targets.mcu.dsp import PREFERENCES
from tvm_compress.targets.mcu.dsp.steps import find_dsp_steps
from tvm_compress.targets.mcu.target import FirmwareArtifact

Array = NDArray[Any]
Describe = Callable[..., Any]
SHAPE = (1, 8, 10, 12)


def _module(
    describe: Describe,
    shape: tuple[int, ...] = SHAPE,
    dtype: str = "int8",
    inputs: int = 1,
    rounding: str = "double",
) -> Any:
    mod = network({f"x{i}": (shape, dtype) for i in range(inputs)}, describe)
    if rounding == "double":
        main = mod["main"].with_attr("tvm_compress.rounding", "double")
        mod.update_func(mod.get_global_var("main"), main)
    return mod


def _kinds(mod: Any, shape: tuple[int, ...] = SHAPE, dtype: str = "int8") -> list[str]:
    """Build for the board and compare with the reference; give the kinds of the steps."""
    built = tc.build(mod, board="cortex-m4")
    assert isinstance(built, FirmwareArtifact)
    limits, chance = np.iinfo(dtype), np.random.default_rng(0)
    x = {
        spec.name: chance.integers(limits.min, limits.max + 1, (3, *shape[1:])).astype(dtype)
        for spec in built.firmware.model.inputs
    }
    right = tc.build(mod, target="reference").run(x)
    for name, value in built.run(x).items():
        assert value.dtype == right[name].dtype
        np.testing.assert_array_equal(value, right[name])
    return [one.kind for one in built.firmware.model.layers]


def _quantised(
    operator: Callable[[Any], Any], scale: float = 0.1, zero: int = 3, dtype: str = "int8"
) -> Describe:
    """An operator on real numbers between a dequantize and a quantize, maybe of other steps."""

    def describe(net: Net, x: Any) -> Any:
        def steps(s: float, z: int) -> tuple[Any, Any]:
            return const(s), const(z, dtype)

        real = net(relax.op.dequantize(x, *steps(0.1, 3)))
        return net(relax.op.quantize(net(operator(real)), *steps(scale, zero), out_dtype=dtype))

    return describe


def _average(window: int, stride: int, **options: Any) -> Callable[[Any], Any]:
    return lambda x: relax.op.nn.avg_pool2d(
        x, [window, window], [stride, stride], layout="NHWC", **options
    )


def _global(x: Any) -> Any:
    return relax.op.mean(x, [1, 2], keepdims=True)


def _maximum(window: int, stride: int, pad: int = 0) -> Describe:
    options = {"padding": [pad, pad], "layout": "NHWC"}
    return lambda net, x: net(
        relax.op.nn.max_pool2d(x, [window, window], [stride, stride], **options)
    )


MEANS = {
    "average": (_average(2, 2), 0.1, 3),
    "average, other steps": (_average(3, 2), 0.07, -9),
    "average, ReLU behind": (lambda x: relax.op.nn.relu(_average(2, 2)(x)), 0.1, 3),
    "global": (_global, 0.1, 3),
    "global, other steps": (_global, 0.03, 5),
    "global pool": (
        lambda x: relax.op.nn.adaptive_avg_pool2d(x, [1, 1], layout="NHWC"),
        0.1,
        3,
    ),
}


@pytest.mark.parametrize("rounding", ["single", "double"])
@pytest.mark.parametrize("name", MEANS)
def test_means(name: str, rounding: str) -> None:
    operator, scale, zero = MEANS[name]
    mod = _module(_quantised(operator, scale, zero), rounding=rounding)
    (kind,) = _kinds(mod)
    if "ReLU" not in name:
        assert kind == "mean (sxtab16)"


def test_an_average_of_uint8_and_its_borders() -> None:
    mod = _module(_quantised(_average(4, 2), dtype="uint8"), dtype="uint8")
    assert _kinds(mod, dtype="uint8") == ["flip (eor)", "mean (sxtab16)", "flip (eor)"]


def test_averages_that_are_left_to_loops() -> None:
    for operator, shape in (
        (_average(3, 1, padding=[1, 1]), SHAPE),
        (_average(2, 2), (1, 4, 4, 3)),
    ):
        kinds = _kinds(_module(_quantised(operator), shape), shape)
        assert kinds and not any("sxtab16" in kind for kind in kinds)


@pytest.mark.parametrize(("window", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 0)])
def test_maxima(window: int, stride: int, pad: int) -> None:
    assert _kinds(_module(_maximum(window, stride, pad))) == ["max_pool (ssub8)"]


def test_maxima_that_are_left_to_loops() -> None:
    def dilated(net: Net, x: Any) -> Any:
        return net(relax.op.nn.max_pool2d(x, [2, 2], dilation=[2, 2], layout="NHWC"))

    assert "ssub8" not in str(_kinds(_module(dilated)))
    few = (1, 4, 4, 3)
    assert "ssub8" not in str(_kinds(_module(_maximum(2, 2), few), few))
    assert not find_dsp_steps(_module(_maximum(2, 2), (2, 4, 4, 8)))


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_an_addition_without_a_convolution(rounding: str) -> None:
    def describe(net: Net, x: Any, y: Any) -> Any:
        if rounding == "double":
            return _add(net, x, y)
        terms = []
        for v, factor in ((x, 700), (y, -333)):
            wide = net(relax.op.astype(v, "int32"))
            terms.append(net(relax.op.multiply(wide, const(factor, "int32"))))
        total = net(relax.op.add(net(relax.op.add(*terms)), const(2048, "int32")))
        steps = net(relax.op.right_shift(total, const(10, "int32")))
        return net(relax.op.astype(net(relax.op.clip(steps, -100, 127)), "int8"))

    mod = _module(describe, inputs=2)
    assert _kinds(mod) == ["add (dsp)"]
    few = _module(describe, (1, 2, 2, 2), inputs=2)
    assert not find_dsp_steps(few)  # not worth its code


def _rescaled(net: Net, x: Any) -> Any:
    wide = net(relax.op.subtract(net(relax.op.astype(x, "int32")), const(5, "int32")))
    factor = quantize_multiplier(0.8, "double")
    return net(requantize(wide, *factor, rounding="double", zero_point=9, low=-50))


def test_functions_of_one_byte_are_tables_where_that_is_worth_256_bytes() -> None:
    assert _kinds(_module(_rescaled)) == ["rescale (table)"]
    costs = [PREFERENCES[name].byte_cost for name in ("speed", "size")]
    assert [len(find_dsp_steps(_module(_rescaled), cost)) for cost in costs] == [1, 0]
    assert not find_dsp_steps(_module(_rescaled, (1, 2, 2, 2)))

    def squared(net: Net, x: Any) -> Any:
        return net(lookup(x, (np.arange(-128, 128) ** 2 // 200).astype(np.int8)))

    assert _kinds(_module(squared)) == ["lookup (table)"]

    def widened(net: Net, x: Any) -> Any:
        return net(lookup(x, (np.arange(256) ** 2).astype(np.int32)))

    assert not find_dsp_steps(_module(widened))


def test_only_a_move_by_128_is_a_border() -> None:
    def moved(by: int, dtype: str) -> Describe:
        def describe(net: Net, x: Any) -> Any:
            wide = net(relax.op.astype(x, "int32"))
            return net(relax.op.astype(net(relax.op.add(wide, const(by, "int32"))), dtype))

        return describe

    def kinds(by: int, given: str, made: str) -> list[str]:
        steps = find_dsp_steps(_module(moved(by, made), dtype=given))
        return [step.kind for step in steps.values()]

    assert kinds(128, "int8", "uint8") == kinds(-128, "uint8", "int8") == ["flip"]
    for by, given, made in (
        (127, "int8", "uint8"),
        (-128, "int8", "uint8"),
        (128, "uint8", "int8"),
        (128, "uint8", "uint8"),
    ):
        assert kinds(by, given, made) == []


def test_what_is_read_twice_stays() -> None:
    def twice(net: Net, x: Any) -> Any:
        wide = net(relax.op.astype(x, "int32"))
        moved = net(relax.op.add(wide, const(1, "int32")))
        factor = quantize_multiplier(0.4, "double")
        one = net(requantize(moved, *factor, rounding="double"))
        return [one, net(relax.op.astype(net(relax.op.clip(moved, -9, 9)), "int8"))]

    assert not find_dsp_steps(_module(twice))
