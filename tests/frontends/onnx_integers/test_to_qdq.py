"""Networks as onnxruntime's quantisers write them; it and ONNX's evaluator are the judges."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from benchmarks.frontends import judge_onnx
from tests.frontends.onnx_integers.models import convolution, floats, model, scalar
from tvm_compress import edge, ir
from tvm_compress.frontends import load
from tvm_compress.frontends.onnx_integers import to_qdq
from tvm_compress.targets import reference

OUTPUTS = ("s", "lr", "mm", "y")


def network(opset: int = 13) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "c1.w", "c1.b"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["ar"], name="relu"),
        node("Conv", ["ar", "dw.w", "dw.b"], ["d"], name="dw", group=4, strides=[2, 2]),
        node("Clip", ["d", "low", "high"], ["dr"], name="clip"),
        node("MaxPool", ["ar"], ["m"], name="mp", kernel_shape=[3, 3], strides=[2, 2]),
        node("Add", ["dr", "m"], ["s"], name="add"),
        node("Concat", ["s", "m"], ["k"], name="cat", axis=1),
        node("Sigmoid", ["k"], ["sg"], name="sig"),
        node("Mul", ["k", "sg"], ["mu"], name="mul"),
        node("LeakyRelu", ["mu"], ["lr"], name="lr", alpha=0.1),
        node("GlobalAveragePool", ["lr"], ["g"], name="gap"),
        node("Flatten", ["g"], ["f"], name="flat"),
        node("Gemm", ["f", "fc.w", "fc.b"], ["l"], name="fc", transB=1),
        node("MatMul", ["l", "mm.w"], ["mm"], name="mm"),
        node("Softmax", ["mm"], ["y"], name="sm", axis=1),
    ]
    constants = {
        "c1.w": floats(0, 4, 3, 3, 3) * 0.3,
        "c1.b": floats(1, 4),
        "dw.w": floats(2, 4, 1, 3, 3) * 0.3,
        "dw.b": floats(3, 4),
        "fc.w": floats(4, 6, 8) * 0.3,
        "fc.b": floats(5, 6),
        "mm.w": floats(6, 6, 5),
        "low": scalar(0),
        "high": scalar(2),
    }
    made = model(nodes, {"x": floats(0, 1, 3, 9, 9)}, (), constants, opset)
    for name, shape in zip(OUTPUTS, ((1, 4, 4, 4), (1, 8, 4, 4), (1, 5), (1, 5)), strict=True):
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        made.graph.output.append(info)
    return made


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.samples = iter([{"x": floats(seed, 1, 3, 9, 9)} for seed in range(3)])

    def get_next(self) -> Any:
        return next(self.samples, None)


def quantised(
    folder: Path, quant_format: QuantFormat, opset: int = 13, **options: Any
) -> onnx.ModelProto:
    path = folder / "network.onnx"
    logging.disable(logging.WARNING)
    try:
        quantize_static(network(opset), str(path), Calibration(), quant_format, **options)
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(path)


INT8, UINT8 = QuantType.QInt8, QuantType.QUInt8


CASES = [
    pytest.param({"activation_type": INT8, "weight_type": INT8, "per_channel": True}, id="s8-chan"),
    pytest.param({"activation_type": INT8, "weight_type": INT8}, id="s8-tensor"),
    pytest.param(
        {"activation_type": UINT8, "weight_type": INT8, "per_channel": True}, id="u8-s8-channel"
    ),
    pytest.param({"activation_type": UINT8, "weight_type": UINT8}, id="u8-u8-tensor"),
    pytest.param(
        {"activation_type": UINT8, "weight_type": INT8, "reduce_range": True}, id="reduced"
    ),
    pytest.param(
        {
            "activation_type": INT8,
            "weight_type": INT8,
            "per_channel": True,
            "extra_options": {"ActivationSymmetric": True},
        },
        id="symmetric",
    ),
]


@pytest.mark.parametrize("quant_format", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("options", CASES)
def test_statically_quantised_networks(
    quant_format: QuantFormat, options: dict[str, Any], tmp_path: Path
) -> None:
    made = quantised(tmp_path, quant_format, **options)
    expected_operator = "QLinearConv" if quant_format == QuantFormat.QOperator else "Conv"
    assert expected_operator in {node.op_type for node in made.graph.node}
    steps = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    mod = load(made)
    for seed in range(2):
        x = floats(seed, 1, 3, 9, 9)
        expected = judge_onnx(made.SerializeToString(), [x])
        outputs = reference.run(mod, {"x": x})
        for (name, y), wanted in zip(outputs.items(), expected, strict=True):
            assert len(np.unique(wanted)) > 3
            step = float(steps[f"{name}_scale"])
            assert np.abs(y - wanted).max() <= 1.001 * step, name


@pytest.mark.parametrize("quant_format", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_the_rewritten_graph_is_valid_onnx_of_the_same_meaning(
    quant_format: QuantFormat, tmp_path: Path
) -> None:
    # ONNX's evaluator has DequantizeLinear from opset 19 on.
    made = quantised(
        tmp_path, quant_format, 19, activation_type=INT8, weight_type=INT8, per_channel=True
    )
    x = floats(7, 1, 3, 9, 9)
    expected = judge_onnx(made.SerializeToString(), [x])
    weights = {t.name: t.SerializeToString() for t in made.graph.initializer}
    written = to_qdq(made)
    onnx.checker.check_model(written, full_check=True)
    operators = {node.op_type for node in written.graph.node}
    assert not [name for name in operators if name.startswith(("QLinear", "QGemm"))]
    assert {t.name: t.SerializeToString() for t in written.graph.initializer} == weights
    for y, wanted in zip(ReferenceEvaluator(written).run(None, {"x": x}), expected, strict=True):
        np.testing.assert_allclose(y, wanted, atol=0.03)
    for y, wanted in zip(judge_onnx(written.SerializeToString(), [x]), expected, strict=True):
        np.testing.assert_allclose(y, wanted, atol=0.03)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weight_type", [INT8, UINT8])
def test_dynamically_quantised_networks(
    per_channel: bool, weight_type: QuantType, tmp_path: Path
) -> None:
    path = tmp_path / "network.onnx"
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            network(),
            str(path),
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=per_channel,
            weight_type=weight_type,
        )
    finally:
        logging.disable(logging.NOTSET)
    made = onnx.load(path)
    operators = [node.op_type for node in made.graph.node]
    assert operators.count("ConvInteger") == 2 and operators.count("MatMulInteger") == 2
    assert not {"ConvInteger", "MatMulInteger"} & {n.op_type for n in to_qdq(made).graph.node}
    x = floats(3, 1, 3, 9, 9)
    expected = judge_onnx(str(path), [x])
    for y, wanted in zip(reference.run(load(path), {"x": x}).values(), expected, strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_weights_and_biases_stay_integers_under_their_names() -> None:
    made, _ = convolution(np.uint8, np.int8, True)
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    mod = load(made)
    bound = {edge.var_name(b.var): b.value for b in ir.bindings(mod["main"])}
    parameters = ir.parameters(mod)
    assert {n: p.value.dtype for n, p in parameters.items()} == {"w": np.int8, "b": np.int32}
    np.testing.assert_array_equal(parameters["w"].value, tensors["w"])
    np.testing.assert_array_equal(parameters["b"].value.reshape(-1), tensors["b"])
    steps = {}
    for value in bound.values():
        if edge.op_name(value) == "relax.dequantize" and edge.var_name(value.args[0]) in "wb":
            axis = int(value.attrs.axis)
            assert edge.static_shape(value)[axis] == 6
            steps[edge.var_name(value.args[0])] = edge.constant_value(value.args[1])
            assert not edge.constant_value(value.args[2]).any()
    np.testing.assert_array_equal(steps["w"], tensors["ws"])
    np.testing.assert_array_equal(steps["b"], tensors["ws"] * tensors["xs"])
