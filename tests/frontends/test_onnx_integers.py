"""ONNX's quantised operators; the judges are onnxruntime, ONNX's reference evaluator and numpy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from numpy.typing import NDArray
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
from tvm_compress import edge, ir
from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.frontends.onnx_integers import to_qdq
from tvm_compress.targets import reference

Array = NDArray[Any]
MICROSOFT = "com.microsoft"


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    constants: Mapping[str, Any],
    opset: int = 13,
) -> onnx.ModelProto:
    """Make a model whose inputs have the shapes and types of ``inputs``."""

    def info(name: str, array: Array) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor_value_info(name, kind, array.shape)

    for node in nodes:
        if node.op_type.startswith(("QLinear", "QGemm")) and node.op_type not in (
            "QLinearConv",
            "QLinearMatMul",
        ):
            node.domain = MICROSOFT
    graph = helper.make_graph(
        list(nodes),
        "g",
        [info(name, array) for name, array in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    made = helper.make_model(graph, opset_imports=opsets)
    made.ir_version = 8
    return made


def run(made: onnx.ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    return list(reference.run(load(made), inputs).values())


def near(made: onnx.ModelProto, inputs: Mapping[str, Array], often: float = 0.02) -> None:
    """Compare integers with onnxruntime's: none is off by two, ``often`` is the share of ones."""
    for y, wanted in zip(
        run(made, inputs), judge_onnx(made.SerializeToString(), list(inputs.values())), strict=True
    ):
        assert (y.dtype, y.shape) == (wanted.dtype, wanted.shape)
        assert len(np.unique(wanted)) > 8, "the test tells nothing"
        difference = np.abs(y.astype(np.int64) - wanted.astype(np.int64))
        assert difference.max() <= 1
        assert (difference > 0).mean() <= often


def integers(seed: int, shape: Sequence[int], dtype: Any) -> Array:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    return rng.integers(info.min, info.max, tuple(shape), dtype=dtype, endpoint=True)


def scalar(value: float) -> Array:
    return np.asarray(value, np.float32)


# ---- what onnxruntime's quantiser writes ---------------------------------------------------------


def floats(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


# ---- one operator at a time ----------------------------------------------------------------------


def convolution(
    x_type: Any, w_type: Any, channels: bool, opset: int = 10, **options: Any
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    x = integers(0, (2, 4, 9, 8), x_type)
    groups = options.get("group", 1)
    w = integers(1, (6, 4 // groups, 3, 2), w_type)
    scales = np.linspace(0.001, 0.004, 6, dtype=np.float32) if channels else scalar(0.002)
    signed = w_type == np.int8
    zero = np.asarray(0 if signed else 128, w_type)
    constants = {
        "xs": scalar(0.02),
        "xz": np.asarray(3 if x_type == np.int8 else 131, x_type),
        "w": w,
        "ws": scales,
        "wz": np.full(6, zero) if channels else zero,
        "ys": scalar(0.05),
        "yz": np.asarray(-7 if x_type == np.int8 else 120, x_type),
        "b": np.random.default_rng(2).integers(-40000, 40000, 6, dtype=np.int32),
    }
    names = ["x", *list(constants)[:-1], "b"]
    node = helper.make_node("QLinearConv", names, ["y"], name="conv", **options)
    return model([node], {"x": x}, ["y"], constants, opset), {"x": x}


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"pads": [1, 0, 2, 1], "strides": [2, 1]},
    {"group": 2, "dilations": [2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
]


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


def unary(operator: str, dtype: Any, zeros: bool, **options: Any) -> onnx.ModelProto:
    offset = 0 if dtype == np.int8 else 128
    constants = {"xs": scalar(0.03), "ys": scalar(0.02 if "Leaky" in operator else 0.004)}
    if "Pool" in operator:
        constants["ys"] = scalar(0.01)
    names = ["x", "xs", "", "ys"]
    if zeros:
        constants |= {"xz": np.asarray(offset + 5, dtype), "yz": np.asarray(offset - 90, dtype)}
        names = ["x", "xs", "xz", "ys", "yz"]
    node = helper.make_node(operator, names, ["y"], name="one", **options)
    return model([node], {"x": integers(0, (2, 3, 8, 8), dtype)}, ["y"], constants)


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


def test_a_zero_point_that_is_left_out_is_zero() -> None:
    a = integers(0, (4, 40), np.uint8)
    constants = {"as": scalar(0.02), "bs": scalar(0.03), "ys": scalar(0.06)}
    names = ["a", "as", "", "a", "bs", "", "ys"]
    made = model([helper.make_node("QLinearAdd", names, ["y"])], {"a": a}, ["y"], constants)
    wanted = np.clip(np.rint(a * 0.05 / 0.06), 0, 255)
    (y,) = run(made, {"a": a})
    assert y.dtype == np.uint8 and np.abs(y - wanted).max() <= 1 and (y == wanted).mean() > 0.9


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


# ---- exact int32 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [(0, 0), (255, 0), (17, -128), (0, 127)])
def test_an_integer_product_is_exact_where_float_is_not(zeros: tuple[int, int]) -> None:
    a = np.full((2, 3000), 255, np.uint8)
    a[1] = integers(0, (3000,), np.uint8)
    b = integers(1, (3000, 4), np.int8)
    b[:, 0], b[::2, 1] = 127, -128
    constants = {"b": b, "az": np.asarray(zeros[0], np.uint8), "bz": np.asarray(zeros[1], np.int8)}
    node = helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"], name="mm")
    made = model([node], {"a": a}, ["y"], constants)
    wanted = (a.astype(np.int64) - zeros[0]) @ (b.astype(np.int64) - zeros[1])
    if zeros[0] != 255:
        assert np.abs(wanted).max() > 1 << 24
    (y,) = run(made, {"a": a})
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(judge_onnx(made.SerializeToString(), [a])[0], wanted)
    parameter = ir.parameters(load(made))["b"]
    assert parameter.value.dtype == (np.int8 if zeros[1] == 0 else np.int16)
    np.testing.assert_array_equal(parameter.value, b.astype(np.int64) - zeros[1])


def test_zero_points_by_row_and_column() -> None:
    a, b = integers(0, (5, 9), np.uint8), integers(1, (9, 4), np.uint8)
    rows, columns = integers(2, (5,), np.uint8), integers(3, (4,), np.uint8)
    node = helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])
    made = model([node], {"a": a}, ["y"], {"b": b, "az": rows, "bz": columns})
    wanted = (a.astype(np.int64) - rows[:, None]) @ (b.astype(np.int64) - columns)
    np.testing.assert_array_equal(run(made, {"a": a})[0], wanted)


@pytest.mark.parametrize("options", [*CONVOLUTIONS, {"pads": [2, 1, 0, 3]}])
@pytest.mark.parametrize("w_type", [np.int8, np.uint8])
def test_an_integer_convolution_is_exact(w_type: Any, options: dict[str, Any]) -> None:
    x = integers(0, (1, 4, 9, 8), np.uint8)
    w = integers(1, (6, 4 // options.get("group", 1), 3, 2), w_type)
    constants = {
        "w": w,
        "xz": np.asarray(131, np.uint8),
        "wz": np.asarray(0 if w_type == np.int8 else 100, w_type),
    }
    node = helper.make_node("ConvInteger", ["x", *constants], ["y"], name="conv", **options)
    made = model([node], {"x": x}, ["y"], constants, opset=10)
    (y,) = run(made, {"x": x})
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, judge_onnx(made.SerializeToString(), [x])[0])
    assert ir.parameters(load(made))["w"].value.dtype == (w_type if w_type == np.int8 else np.int16)


def test_an_integer_convolution_of_one_dimension_without_zero_points() -> None:
    x, w = integers(0, (1, 2, 9), np.uint8), integers(1, (3, 2, 4), np.int8)
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], pads=[2, 1])
    made = model([node], {"x": x}, ["y"], {"w": w})
    padded = np.pad(x, [(0, 0), (0, 0), (2, 1)]).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 4, axis=2)
    wanted = np.einsum("nipk,oik->nop", windows, w.astype(np.int64))
    np.testing.assert_array_equal(run(made, {"x": x})[0], wanted)


def test_integer_operators_compile_by_the_stock_pipeline() -> None:
    x, w = integers(0, (1, 4, 6, 6), np.uint8), integers(1, (3, 4, 3, 3), np.int8)
    node = helper.make_node("ConvInteger", ["x", "w", "xz"], ["y"], pads=[1, 1, 1, 1])
    made = model([node], {"x": x}, ["y"], {"w": w, "xz": np.asarray(90, np.uint8)})
    mod = load(made)
    executable = tvm.compile(mod, target="llvm")
    machine = tvm.relax.VirtualMachine(executable, tvm.cpu())
    y = machine["main"](tvm.runtime.tensor(x)).numpy()
    np.testing.assert_array_equal(y, run(made, {"x": x})[0])


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


def operators_of(mod: tvm.IRModule) -> set[str | None]:
    return {edge.op_name(binding.value) for binding in ir.bindings(mod["main"])}


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


# ---- the form ------------------------------------------------------------------------------------


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


# ---- refusals ------------------------------------------------------------------------------------


def refused(made: onnx.ModelProto, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        load(made)
    return str(caught.value)


def changed(made: onnx.ModelProto, **tensors: Any) -> onnx.ModelProto:
    for tensor in made.graph.initializer:
        if tensor.name in tensors:
            new = numpy_helper.from_array(np.asarray(tensors[tensor.name]), tensor.name)
            tensor.CopyFrom(new)
    return made


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


def test_an_integer_convolution_of_too_many_dimensions() -> None:
    x, w = integers(0, (1, 2, 2, 2, 2, 2), np.uint8), integers(1, (3, 2, 1, 1, 1, 1), np.int8)
    made = model([helper.make_node("ConvInteger", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": w})
    assert refused(made, UnsupportedError) == (
        "A ConvInteger has a weight of 6 dimensions; expected 3 to 5."
    )
