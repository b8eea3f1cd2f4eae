"""One quantised operator at a time; onnxruntime is the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from benchmarks.frontends import judge_onnx
from tests.frontends.onnx_integers.models import (
    CONVOLUTIONS,
    Array,
    convolution,
    integers,
    model,
    near,
    refused,
    run,
    scalar,
    unary,
)
from tvm_compress.errors import ModelFormatError, UnsupportedError


@pytest.mark.parametrize("opset", [10, 13, 21])
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolution(options: dict[str, Any], opset: int) -> None:
    made, inputs = convolution(np.uint8, np.int8, True, opset, **options)
    near(made, inputs)


def test_channels_of_an_old_opset_that_cannot_be_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    near(*convolution(np.uint8, np.int8, True, 10))


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("types", [(np.uint8, np.uint8), (np.int8, np.int8), (np.uint8, np.int8)])
def test_convolution_of_each_type(types: tuple[Any, Any], channels: bool) -> None:
    made, inputs = convolution(*types, channels, pads=[1, 1, 1, 1])
    near(made, inputs)
    (judged,) = ReferenceEvaluator(made).run(None, inputs)
    (y,) = run(made, inputs)
    assert np.abs(y.astype(np.int64) - judged.astype(np.int64)).max() <= 1


@pytest.mark.parametrize(
    ("a_shape", "b_shape", "a_scale", "b_scale"),
    [
        ((5, 7), (7, 4), scalar(0.02), scalar(0.01)),
        ((2, 5, 7), (7, 4), scalar(0.02), np.linspace(0.005, 0.02, 4, dtype=np.float32)),
        ((5, 7), (7, 4), np.linspace(0.01, 0.03, 5, dtype=np.float32), scalar(0.01)),
    ],
)
def test_product(a_shape: Any, b_shape: Any, a_scale: Array, b_scale: Array) -> None:
    a = integers(0, a_shape, np.uint8)
    constants = {
        "as": a_scale,
        "az": np.full(a_scale.shape, 120, np.uint8),
        "b": integers(1, b_shape, np.int8),
        "bs": b_scale,
        "bz": np.full(b_scale.shape, 0, np.int8),
        "ys": np.full(a_scale.shape, 0.5, np.float32) if a_scale.ndim else scalar(0.5),
        "yz": np.full(a_scale.shape, 128, np.uint8),
    }
    made = model(
        [helper.make_node("QLinearMatMul", ["a", *constants], ["y"])], {"a": a}, ["y"], constants
    )
    if a_scale.ndim == 0:  # onnxruntime takes no scales by row
        near(made, {"a": a})
    (y,) = run(made, {"a": a})
    centred = (a.astype(np.float64) - 120) * a_scale.reshape(-1, 1)
    wanted = centred @ (constants["b"] * b_scale.astype(np.float64)) / 0.5
    wanted = np.clip(np.rint(wanted) + 128, 0, 255)
    assert np.abs(y - wanted).max() <= 1 and (y != wanted).mean() < 0.05


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("quantises", [False, True])
def test_gemm(alpha: float, transposed: int, quantises: bool) -> None:
    a = integers(0, (5, 7), np.uint8)
    constants: dict[str, Any] = {
        "as": scalar(0.02),
        "az": np.asarray(120, np.uint8),
        "b": integers(1, (4, 7) if transposed else (7, 4), np.int8),
        "bs": np.linspace(0.005, 0.02, 4, dtype=np.float32),
        "bz": np.zeros(4, np.int8),
        "c": np.asarray([3000, -4000, 5000, 6000], np.int32),
    }
    if quantises:
        constants |= {"ys": scalar(0.3), "yz": np.asarray(128, np.uint8)}
    names = ["a", *constants]
    node = helper.make_node("QGemm", names, ["y"], transB=transposed, alpha=alpha)
    made = model([node], {"a": a}, ["y"], constants)
    if quantises:
        near(made, {"a": a})
    else:
        (expected,) = judge_onnx(made.SerializeToString(), [a])
        np.testing.assert_allclose(run(made, {"a": a})[0], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("QLinearSigmoid", {}),
        ("QLinearLeakyRelu", {"alpha": 0.2}),
        ("QLinearGlobalAveragePool", {}),
        ("QLinearAveragePool", {"kernel_shape": [2, 3], "pads": [0, 1, 0, 1]}),
        ("QLinearSoftmax", {"axis": 1, "opset": 13}),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_operators_of_one_input(operator: str, options: dict[str, Any], dtype: Any) -> None:
    made = unary(operator, dtype, True, **options)
    x = integers(0, (2, 3, 8, 8), dtype)
    if operator != "QLinearGlobalAveragePool":
        # onnxruntime cuts the softmax off where others round; means of six are often halves.
        near(made, {"x": x}, {"QLinearSoftmax": 0.3, "QLinearAveragePool": 0.05}.get(operator, 0.0))
    else:  # six averages are few
        (expected,) = judge_onnx(made.SerializeToString(), [x])
        (y,) = run(made, {"x": x})
        assert y.shape == expected.shape == (2, 3, 1, 1) and np.unique(expected).size > 2
        assert np.abs(y.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_operators_of_two_inputs(operator: str, dtype: Any) -> None:
    a, b = integers(0, (2, 3, 8, 8), dtype), integers(1, (3, 1, 8), dtype)
    offset = 0 if dtype == np.int8 else 128
    constants = {
        "as": scalar(0.0213),
        "az": np.asarray(offset + 7, dtype),
        "bs": scalar(0.0137),
        "bz": np.asarray(offset - 20, dtype),
        "ys": scalar(0.05),
        "yz": np.asarray(offset + 1, dtype),
    }
    names = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    made = model([helper.make_node(operator, names, ["y"])], {"a": a, "b": b}, ["y"], constants)
    near(made, {"a": a, "b": b})


def test_concatenation_takes_a_scale_for_each_part() -> None:
    a, b = integers(0, (2, 3, 8), np.uint8), integers(1, (2, 5, 8), np.uint8)
    constants = {
        "ys": scalar(0.05),
        "yz": np.asarray(100, np.uint8),
        "as": scalar(0.02),
        "az": np.asarray(7, np.uint8),
        "bs": scalar(0.07),
        "bz": np.asarray(200, np.uint8),
    }
    names = ["ys", "yz", "a", "as", "az", "b", "bs", "bz"]
    node = helper.make_node("QLinearConcat", names, ["y"], axis=1)
    near(model([node], {"a": a, "b": b}, ["y"], constants), {"a": a, "b": b})


def test_an_old_softmax_over_the_last_axis() -> None:
    made = unary("QLinearSoftmax", np.uint8, True, axis=3, opset=11)
    near(made, {"x": integers(0, (2, 3, 8, 8), np.uint8)}, often=0.3)


def test_a_part_without_its_scale() -> None:
    constants = {"s": scalar(1), "z": np.asarray(0, np.uint8)}
    node = helper.make_node("QLinearConcat", ["s", "z", "a", "s", "z", "a"], ["y"], name="cat")
    made = model([node], {"a": integers(0, (2, 3), np.uint8)}, ["y"], constants)
    assert refused(made, ModelFormatError) == (
        "QLinearConcat (node cat) has 6 inputs; expected two, and three for each part: export the "
        "network again."
    )


def test_channels_last() -> None:
    made = unary("QLinearGlobalAveragePool", np.uint8, True, channels_last=1)
    assert refused(made, UnsupportedError) == (
        "QLinearGlobalAveragePool (node one) has its channels last; expected them behind the "
        "batch: export the network before onnxruntime optimises it."
    )


def test_a_softmax_of_several_axes() -> None:
    made = unary("QLinearSoftmax", np.uint8, True, axis=1, opset=11)
    assert refused(made, UnsupportedError) == (
        "QLinearSoftmax (node one) is a softmax over all axes from 1 on, as before opset 13; "
        "expected one over the last axis: quantise the network from opset 13 or newer."
    )
