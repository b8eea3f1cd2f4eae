"""Integer products that are cast to float and scaled; onnxruntime is the judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.frontends import judge_onnx
from tests.frontends.onnx_integers.models import (
    Array,
    integers,
    model,
    operators_of,
    scalar,
)
from tvm_compress import ir
from tvm_compress.frontends import load
from tvm_compress.targets import reference


def scaled_product(**change: Any) -> tuple[onnx.ModelProto, Array]:
    """Make Cast(MatMulInteger) times a scale, with one thing changed."""
    a = integers(0, (3, 9), np.uint8)
    constants = {
        "b": integers(1, (9, 4), np.int8),
        "az": np.asarray(100, np.uint8),
        "s": change.get("scale", np.linspace(0.01, 0.02, 4, dtype=np.float32)),
    }
    nodes = [
        helper.make_node("MatMulInteger", ["a", "b", "az"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=change.get("to", TensorProto.FLOAT)),
        helper.make_node("Mul", change.get("order", ["f", "s"]), ["y"]),
    ]
    outputs = ["y", *change.get("outputs", ())]
    return model(nodes, {"a": a}, outputs, constants), a


@pytest.mark.parametrize("order", [["f", "s"], ["s", "f"]])
@pytest.mark.parametrize("scale", [scalar(0.02), np.linspace(0.01, 0.02, 4, dtype=np.float32)])
def test_a_scaled_integer_product_becomes_a_float_one(order: list[str], scale: Array) -> None:
    made, a = scaled_product(order=order, scale=scale)
    mod = load(made)
    assert "relax.dequantize" in operators_of(mod)
    assert ir.main_function(mod).ret_ty.dtype.dtype == "float32"
    (y,) = reference.run(mod, a).values()
    np.testing.assert_allclose(y, judge_onnx(made.SerializeToString(), [a])[0], rtol=1e-5)


def scales_of_the_run(shape: Sequence[int], order: list[str]) -> onnx.ModelProto:
    """Make Cast(MatMulInteger) times a product of scales, with those of x and its zero fed."""
    nodes = [
        helper.make_node("MatMulInteger", ["a", "b", "az"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", order, ["s"]),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    constants = {"b": integers(1, (9, 4), np.int8), "bs": np.linspace(1, 2, 4, dtype=np.float32)}
    inputs = {
        "a": integers(0, (3, 9), np.uint8),
        "as": np.ones(tuple(shape), np.float32),
        "az": np.asarray(0, np.uint8),
    }
    return model(nodes, inputs, ["y"], constants)


@pytest.mark.parametrize("order", [["as", "bs"], ["bs", "as"]])
@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_scales_and_zero_points_of_the_run(shape: tuple[int, ...], order: list[str]) -> None:
    made = scales_of_the_run(shape, order)
    rows = np.random.default_rng(0).random(shape).astype(np.float32)
    inputs = {"a": integers(0, (3, 9), np.uint8), "as": rows, "az": np.asarray(77, np.uint8)}
    mod = load(made)
    # Scales for each row are no scale of a tensor.
    assert ("relax.dequantize" in operators_of(mod)) == (shape == ())
    (y,) = reference.run(mod, inputs).values()
    (expected,) = judge_onnx(made.SerializeToString(), list(inputs.values()))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)


def test_one_scale_for_both_and_a_zero_point_of_the_run() -> None:
    made, a = scaled_product()
    del made.graph.initializer[1]
    made.graph.input.append(helper.make_tensor_value_info("az", TensorProto.UINT8, []))
    inputs = {"a": a, "az": np.asarray(31, np.uint8)}
    mod = load(made)
    assert "relax.dequantize" in operators_of(mod)
    (y,) = reference.run(mod, inputs).values()
    (expected,) = judge_onnx(made.SerializeToString(), list(inputs.values()))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": ["i"]},  # the integers are asked for too
        {"outputs": ["f"]},
        {"scale": np.linspace(0.01, 0.02, 3, dtype=np.float32).reshape(3, 1)},  # scales by row
        {"to": TensorProto.DOUBLE, "scale": np.asarray(0.02, np.float64)},
    ],
)
def test_other_integer_products_stay_integers(change: dict[str, Any]) -> None:
    made, a = scaled_product(**change)
    mod = load(made)
    assert "relax.dequantize" not in operators_of(mod)
    expected = judge_onnx(made.SerializeToString(), [a])
    for y, wanted in zip(reference.run(mod, a).values(), expected, strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-6)
