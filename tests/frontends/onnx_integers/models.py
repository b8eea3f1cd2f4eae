"""Quantised ONNX models of one operator, and how they are run and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.frontends import judge_onnx
from tvm_compress import edge, ir
from tvm_compress.frontends import load
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


def floats(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


def operators_of(mod: tvm.IRModule) -> set[str | None]:
    return {edge.op_name(binding.value) for binding in ir.bindings(mod["main"])}


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
