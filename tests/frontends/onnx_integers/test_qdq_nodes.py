"""Scales and zero points: where they lie, and which are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.frontends.onnx_integers.models import (
    changed,
    convolution,
    floats,
    integers,
    model,
    refused,
    run,
    scalar,
    unary,
)
from tvm_compress import edge, ir
from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.frontends.onnx_integers import to_qdq


def test_the_bias_has_the_scale_of_input_times_weight() -> None:
    """One bias step more is one accumulator step more: compared by hand with numpy."""
    made, inputs = convolution(np.uint8, np.int8, True)
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    written = to_qdq(made)
    values = {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t)
        for n in written.graph.node
        if n.op_type == "Constant"
    }
    (bias,) = [n for n in written.graph.node if n.input and n.input[0] == "b"]
    np.testing.assert_array_equal(values[bias.input[1]], tensors["ws"] * tensors["xs"])
    assert len(bias.input) == 2 and helper.get_node_attr_value(bias, "axis") == 0
    assert inputs["x"].dtype == np.uint8


def test_a_zero_point_that_is_left_out_is_zero() -> None:
    a = integers(0, (4, 40), np.uint8)
    constants = {"as": scalar(0.02), "bs": scalar(0.03), "ys": scalar(0.06)}
    names = ["a", "as", "", "a", "bs", "", "ys"]
    made = model([helper.make_node("QLinearAdd", names, ["y"])], {"a": a}, ["y"], constants)
    wanted = np.clip(np.rint(a * 0.05 / 0.06), 0, 255)
    (y,) = run(made, {"a": a})
    assert y.dtype == np.uint8 and np.abs(y - wanted).max() <= 1 and (y == wanted).mean() > 0.9


def test_the_scales_of_a_product_lie_along_its_last_axis() -> None:
    a = integers(0, (2, 3, 5, 7), np.uint8)
    scales = np.linspace(0.005, 0.02, 4, dtype=np.float32)
    constants = {
        "as": scalar(0.02),
        "az": np.asarray(120, np.uint8),
        "b": integers(1, (7, 4), np.int8),
        "bs": scales.reshape(1, 4),
        "bz": np.zeros((1, 4), np.int8),
        "ys": scalar(0.5),
        "yz": np.asarray(128, np.uint8),
    }
    node = helper.make_node("QLinearMatMul", ["a", *constants], ["y"])
    mod = load(model([node], {"a": a}, ["y"], constants))
    (call,) = [
        b.value
        for b in ir.bindings(mod["main"])
        if edge.op_name(b.value) == "relax.dequantize" and edge.static_shape(b.value) == (7, 4)
    ]
    assert int(call.attrs.axis) == 1
    np.testing.assert_array_equal(edge.constant_value(call.args[1]), scales)


def test_scales_are_constants_of_the_call() -> None:
    made = unary("QLinearSigmoid", np.int8, True)
    assert not ir.parameters(load(made))


Make = Callable[[float], onnx.ModelProto]


SCALES: list[tuple[str, Make]] = [
    (
        "QLinearSigmoid (node one) has the scale {} for x",
        lambda s: changed(unary("QLinearSigmoid", np.int8, True), xs=scalar(s)),
    ),
    (
        "QLinearSigmoid (node one) has the scale {} for y",
        lambda s: changed(unary("QLinearSigmoid", np.int8, True), ys=scalar(s)),
    ),
    (
        "QLinearConv (node conv) has the scale {} for w",
        lambda s: changed(
            convolution(np.uint8, np.int8, True)[0],
            ws=np.asarray([1, 1, s, 1, 1, 1], np.float32),
        ),
    ),
    (
        "QuantizeLinear (node y) has the scale {} for y",
        lambda s: model(
            [helper.make_node("QuantizeLinear", ["x", "s"], ["y"])],
            {"x": floats(0, 3)},
            ["y"],
            {"s": scalar(s)},
        ),
    ),
    (
        "DequantizeLinear (node y) has the scale {} for x",
        lambda s: model(
            [helper.make_node("DequantizeLinear", ["x", "s"], ["y"])],
            {"x": integers(0, (3,), np.int8)},
            ["y"],
            {"s": scalar(s)},
        ),
    ),
]


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0.0"), (-0.5, "-0.5"), (np.nan, "nan"), (np.inf, "inf")]
)
@pytest.mark.parametrize(("begin", "make"), SCALES)
def test_scales_that_are_none(begin: str, make: Make, value: float, said: str) -> None:
    assert refused(make(value), ModelFormatError) == (
        f"{begin.format(said)}; expected finite numbers over 0: quantise the network again, with "
        "inputs that vary."
    )


def test_zero_points_of_another_type() -> None:
    made = changed(unary("QLinearSigmoid", np.int8, True), xz=np.asarray(3, np.uint8))
    assert refused(made, ModelFormatError) == (
        "QLinearSigmoid (node one) has a zero point of type uint8 for x; expected int8, the type "
        "of the tensor: quantise the network again."
    )
    made = changed(convolution(np.uint8, np.int8, True)[0], wz=np.zeros(6, np.uint8))
    assert refused(made, ModelFormatError).startswith(
        "QLinearConv (node conv) has a zero point of type uint8 for w; expected int8"
    )
    a = integers(0, (2, 3), np.uint8)
    node = helper.make_node("MatMulInteger", ["a", "b", "az"], ["y"], name="mm")
    constants = {"b": integers(1, (3, 2), np.int8), "az": np.asarray(1, np.int8)}
    assert refused(model([node], {"a": a}, ["y"], constants), ModelFormatError).startswith(
        "MatMulInteger (node mm) has a zero point of type int8 for a; expected uint8"
    )


def test_a_zero_point_of_another_type_behind_an_operator_of_onnxruntime() -> None:
    a = integers(0, (2, 3), np.uint8)
    constants = {"s": scalar(1), "z": np.asarray(3, np.int8)}
    nodes = [
        helper.make_node("QLinearAdd", ["a", "s", "", "a", "s", "", "s"], ["b"]),
        helper.make_node("QLinearSigmoid", ["b", "s", "z", "s"], ["y"], name="behind"),
    ]
    assert refused(model(nodes, {"a": a}, ["y"], constants), ModelFormatError).startswith(
        "QLinearSigmoid (node behind) has a zero point of type int8 for b; expected uint8"
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (TensorProto.INT16, "int16"),
        (TensorProto.UINT16, "uint16"),
        (TensorProto.INT4, "int4"),
        (TensorProto.UINT4, "uint4"),
        (TensorProto.FLOAT8E4M3FN, "float8e4m3fn"),
    ],
)
def test_types_that_no_frontend_takes(kind: int, said: str) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    tensors = [
        numpy_helper.from_array(scalar(0.1), "s"),
        helper.make_tensor("w", kind, [4], [1, 2, 3, 4]),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], name="weight"),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    assert refused(made, UnsupportedError) == (
        f"DequantizeLinear (node weight) has w as {said}, which no frontend takes; expected int8 "
        "or uint8 (int32 for a bias): quantise the network to 8 bits."
    )
    nodes = [helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=kind)]
    nodes.append(helper.make_node("DequantizeLinear", ["q", "s"], ["y"]))
    graph = helper.make_graph(nodes, "g", [x], [y], tensors[:1])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    assert f"QuantizeLinear (node q) has q as {said}" in refused(made, UnsupportedError)


def test_int32_is_for_biases() -> None:
    made = convolution(np.uint8, np.int8, True)[0]
    made = changed(made, w=np.zeros((6, 4, 3, 2), np.int32), wz=np.zeros(6, np.int32))
    assert "QLinearConv (node conv) has w as int32" in refused(made, UnsupportedError)


def test_blocks_and_grids_of_scales() -> None:
    x = floats(0, 4, 6)
    constants = {"w": integers(0, (4, 6), np.int8), "s": np.ones((2, 6), np.float32)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], name="d", axis=0, block_size=2),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    made = model(nodes, {"x": x}, ["y"], constants, opset=21)
    assert refused(made, UnsupportedError) == (
        "DequantizeLinear (node d) has one scale for each block of 2 elements; expected one scale, "
        "or one a channel: quantise the network by tensor or by channel."
    )
    a = integers(0, (2, 5, 7), np.uint8)
    constants = {
        "as": np.ones((2, 5, 1), np.float32),
        "az": np.zeros((2, 5, 1), np.uint8),
        "b": integers(1, (7, 4), np.int8),
        "bs": scalar(1),
        "bz": np.asarray(0, np.int8),
        "ys": scalar(1),
        "yz": np.asarray(0, np.uint8),
    }
    node = helper.make_node("QLinearMatMul", ["a", *constants], ["y"], name="mm")
    assert refused(model([node], {"a": a}, ["y"], constants), UnsupportedError) == (
        "QLinearMatMul (node mm) has scales of shape (2, 5, 1) for a; expected one scale, or one a "
        "channel: quantise the network by tensor or by channel."
    )


def test_scales_and_zero_points_that_do_not_fit() -> None:
    made = changed(convolution(np.uint8, np.int8, True)[0], xs=np.ones(4, np.float32))
    assert refused(made, UnsupportedError) == (
        "QLinearConv (node conv) has scales of shape (4,) for x; expected one scale: quantise the "
        "network by tensor or by channel."
    )
    made = changed(convolution(np.uint8, np.int8, True)[0], ys=np.ones(6, np.float32))
    assert "has scales of shape (6,) for y; expected one scale:" in refused(made, UnsupportedError)
    made = changed(convolution(np.uint8, np.int8, True)[0], wz=np.zeros(5, np.int8))
    assert refused(made, ModelFormatError) == (
        "QLinearConv (node conv) has zero points of shape (5,) for w; expected the shape of its "
        "scales, (6,): quantise the network again."
    )
