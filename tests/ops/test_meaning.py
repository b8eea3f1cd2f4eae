"""The numpy meaning of operators, one by one, against onnxruntime on models of one node.

The ONNX operator goes through ``load``, so the table judges the importer's form, ``canonicalize``
and the meaning together; operators that no ONNX node reaches are judged by TVM's own kernels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from benchmarks.frontends import judge_onnx
from tvm_compress.errors import UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.ops.layout import axes_between, spatial, split_padding
from tvm_compress.ops.meaning import MEANING
from tvm_compress.targets import reference

Array = NDArray[Any]
REPO = Path(__file__).resolve().parents[2]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return np.abs(normal(*shape)) + np.float32(0.1)


def unit(*shape: int) -> Array:
    return np.tanh(normal(*shape)) * np.float32(0.98)


def whole(*shape: int, low: int = -20, high: int = 20, dtype: str = "int32") -> Array:
    values = np.random.default_rng(1).integers(low, high, shape).astype(dtype)
    values[values == 0] = 3
    return values


def i64(*values: int) -> Array:
    return np.asarray(values, np.int64)


def one_node(
    operator: str,
    inputs: Sequence[Array | None],
    constants: Sequence[Array | None] = (),
    opset: int = 18,
    outputs: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    """Make a model of one node: ``inputs`` are fed, ``constants`` follow them; None is left out."""
    names, fed, initializers = [], [], []
    for i, array in enumerate([*inputs, *constants]):
        names.append("" if array is None else f"a{i}")
        if array is None:
            continue
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        if i < len(inputs):
            fed.append(helper.make_tensor_value_info(f"a{i}", kind, array.shape))
        else:
            initializers.append(numpy_helper.from_array(array, f"a{i}"))
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(operator, names, results, name="probe", **attributes)
    # The results' types are inferred: a stated one would have to be right for every row.
    infos = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph([node], "g", fed, infos, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    inferred = onnx.shape_inference.infer_shapes(model)
    for output in inferred.graph.output:
        if not output.type.HasField("tensor_type"):  # operators that are ONNX functions
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    return inferred


def check(model: onnx.ModelProto, inputs: Sequence[Array], tolerance: float = 1e-5) -> None:
    expected = judge_onnx(model.SerializeToString(), inputs)
    mod = load(model)
    names = [str(param.name) for param in mod["main"].params]
    given = reference.run(mod, dict(zip(names, inputs, strict=True)))
    assert len(given) == len(expected)
    for y, wanted in zip(given.values(), expected, strict=True):
        assert (y.dtype, y.shape) == (wanted.dtype, wanted.shape)
        if y.dtype.kind != "f":
            np.testing.assert_array_equal(y, wanted)
        else:
            scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-30))
            np.testing.assert_allclose(y, wanted, rtol=tolerance, atol=tolerance * scale)


Row = tuple[str, Sequence[Any], Sequence[Any], dict[str, Any]]


def row(operator: str, *inputs: Any, constants: Sequence[Any] = (), **attributes: Any) -> Any:
    shown = "-".join(f"{k}={v}" for k, v in attributes.items())
    extra = "x".join("none" if c is None else "_".join(map(str, c.shape)) for c in constants)
    return pytest.param(operator, inputs, constants, attributes, id=f"{operator}-{extra}-{shown}")


X = normal(2, 4, 9, 7)
V = normal(3, 5)
EDGES = np.asarray([-3, -2.5, -1.5, -1, -0.5, -0.0, 0, 0.5, 1, 1.5, 2.5, 3], np.float32)

UNARY = [
    *(row(name, normal(3, 5)) for name in ("Abs", "Ceil", "Floor", "Neg", "Exp", "Sin", "Cos")),
    *(row(name, normal(3, 5)) for name in ("Tan", "Atan", "Sinh", "Cosh", "Asinh", "Tanh", "Erf")),
    *(row(name, positive(3, 5)) for name in ("Log", "Sqrt", "Reciprocal")),
    *(row(name, unit(3, 5)) for name in ("Acos", "Asin", "Atanh")),
    row("Acosh", positive(3, 5) + np.float32(1)),
    *(row(name, EDGES) for name in ("Round", "Sign", "Relu", "Sigmoid", "Softplus", "Softsign")),
    *(row(name, EDGES) for name in ("Selu", "Elu", "HardSigmoid", "HardSwish", "Mish")),
    row("Sigmoid", np.asarray([-90, -20, 0, 20, 90], np.float32)),
    row("Softplus", np.asarray([-90, -20, 0, 20, 90], np.float32)),
    row("Mish", np.asarray([-90, -20, 0, 20, 90], np.float32)),
    row("LeakyRelu", EDGES),
    row("LeakyRelu", EDGES, alpha=0.3),
    row("Elu", EDGES, alpha=0.7),
    row("Selu", EDGES, alpha=1.5, gamma=0.9),
    row("HardSigmoid", EDGES, alpha=0.3, beta=0.4),
    row("ThresholdedRelu", EDGES, alpha=1.5),
    row("Shrink", EDGES, lambd=1.2, bias=0.3),
    row("Gelu", EDGES, opset=20),
    row("Gelu", EDGES, opset=20, approximate="tanh"),
    row("PRelu", X, constants=[normal(4, 1, 1)]),
    row("PRelu", X, constants=[normal(1)]),
    row("Not", V > 0),
    row("Identity", V),
    row("Dropout", V),
    row("IsNaN", np.asarray([1, np.nan, -np.inf], np.float32)),
    row("IsInf", np.asarray([1, np.inf, -np.inf], np.float32)),
    row("BitwiseNot", whole(3, 5)),
]
BINARY = [
    *(row(n, V, normal(3, 5, seed=1)) for n in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean")),
    *(row(n, V, normal(5, seed=1)) for n in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")),
    *(row(n, normal(5), constants=[normal(2, 1, 5)]) for n in ("Add", "Sub", "Mul", "Div")),
    *(row(n, whole(3, 5), whole(3, 1)) for n in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    row("Div", whole(4, 4), constants=[np.asarray([-7, 3, -2, 5], np.int32)]),
    row("Sum", V, V, V),
    row("Max", V, normal(3, 5, seed=1), normal(3, 5, seed=2)),
    row("Pow", positive(3, 5), normal(3, 5)),
    row("Pow", V, constants=[np.asarray(2, np.float32)]),
    row("Mod", whole(3, 5), whole(3, 1)),
    row("Mod", V, normal(3, 5, seed=1), fmod=1),
    *(row(n, whole(3, 5), whole(3, 1)) for n in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    row(
        "BitShift",
        whole(3, 5, low=0, dtype="uint32"),
        whole(5, low=0, high=8, dtype="uint32"),
        direction="LEFT",
    ),
    row(
        "BitShift",
        whole(3, 5, low=0, dtype="uint32"),
        whole(5, low=0, high=8, dtype="uint32"),
        direction="RIGHT",
    ),
    *(
        row(n, whole(3, 5, low=0, high=4), whole(3, 5, low=1, high=5))
        for n in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    ),
    *(row(n, V > 0, normal(3, 5, seed=1) > 0) for n in ("And", "Or", "Xor")),
    row("Where", V > 0, V, normal(3, 1, seed=1)),
    row("Where", V > 0, constants=[np.asarray(1, np.float32), normal(5)]),
]
BOUNDS = [np.asarray(-0.5, np.float32), np.asarray(0.7, np.float32)]
CLIP = [
    row("Clip", V, constants=BOUNDS),
    row("Clip", V, constants=[BOUNDS[0]]),
    row("Clip", V, constants=[None, BOUNDS[1]]),
    row("Clip", V, constants=[np.asarray(0, np.float32), np.asarray(6, np.float32)]),
    row("Clip", V),
    row("Clip", V, opset=6, min=-0.5, max=0.7),
    row("Clip", V, opset=6, min=0.0),
    row("Clip", V, opset=6, max=0.1),
    row("Clip", whole(3, 5), constants=[np.asarray(-2, np.int32), np.asarray(7, np.int32)]),
]
CAST = [
    row("Cast", normal(3, 5) * 10, to=TensorProto.INT32),
    row("Cast", np.asarray([-2.7, -0.5, 0.0, 0.5, 2.7], np.float32), to=TensorProto.INT8),
    row("Cast", whole(3, 5), to=TensorProto.FLOAT),
    row("Cast", whole(3, 5), to=TensorProto.BOOL),
    row("Cast", np.asarray([-0.5, 0.0, 2.0], np.float32), to=TensorProto.BOOL),
    row("Cast", V > 0, to=TensorProto.FLOAT),
    row("Cast", np.asarray([300, -129, 128], np.int32), to=TensorProto.INT8),
]
SHAPES = [
    row("Reshape", X, constants=[i64(2, -1, 7)]),
    row("Reshape", X, constants=[i64(0, 0, -1)]),
    row("Flatten", X),
    row("Flatten", X, axis=2),
    row("Flatten", X, axis=0),
    row("Transpose", X),
    row("Transpose", X, perm=[0, 2, 3, 1]),
    row("Transpose", X, perm=[3, 0, 2, 1]),
    row("Squeeze", normal(1, 3, 1, 2)),
    row("Squeeze", normal(1, 3, 1, 2), constants=[i64(2)]),
    row("Squeeze", normal(1, 3, 1, 2), constants=[i64(-2, 0)]),
    row("Unsqueeze", V, constants=[i64(0, 2)]),
    row("Unsqueeze", V, constants=[i64(-1)]),
    row("Unsqueeze", V, opset=11, axes=[1]),
    row("Expand", normal(3, 1), constants=[i64(2, 3, 4)]),
    row("Expand", normal(3, 4), constants=[i64(1, 1)]),
    row("Tile", V, constants=[i64(2, 3)]),
    row("Concat", X, X, axis=1),
    row("Concat", X, X, X, axis=-1),
    row("Split", X, constants=[i64(1, 3)], axis=1, outputs=2),
    row("Split", X, axis=1, outputs=2, num_outputs=2),
    row("Split", normal(7, 2), axis=0, outputs=3, num_outputs=3),
    row("Split", X, axis=-1, constants=[i64(2, 2, 3)], outputs=3),
    row("Slice", X, constants=[i64(1), i64(3), i64(1)]),
    row("Slice", X, constants=[i64(0, 1), i64(8, 7), i64(2, 3), i64(3, 2)]),
    row("Slice", X, constants=[i64(-1), i64(-100), i64(2), i64(-1)]),
    row("Slice", X, constants=[i64(7), i64(1), i64(2), i64(-3)]),
    row("Slice", X, constants=[i64(-5), i64(-1), i64(-2)]),
    row("Slice", X, constants=[i64(100), i64(-(2**63) + 1), i64(3), i64(-2)]),
    row("Slice", X, constants=[i64(2), i64(2**63 - 1), i64(2)]),
    row("Slice", X, constants=[i64(0, 0), i64(1, 2)]),
    row("Slice", X, opset=9, starts=[1, 2], ends=[3, 5], axes=[1, 3]),
    row("Gather", X, constants=[i64(3, 0, 1)], axis=1),
    row("Gather", X, constants=[i64(-1, -4)], axis=1),
    row("Gather", X, constants=[np.asarray(2, np.int64)], axis=2),
    row("Gather", X, constants=[np.asarray([[0, 1], [1, 0]])], axis=0),
    row("Gather", normal(4, 3), whole(5, low=1, high=4, dtype="int64")),
    row("GatherElements", V, whole(2, 5, low=1, high=3, dtype="int64"), axis=0),
    row("DepthToSpace", normal(1, 8, 2, 3), blocksize=2),
    row("DepthToSpace", normal(1, 8, 2, 3), blocksize=2, mode="CRD"),
    row("SpaceToDepth", normal(1, 2, 4, 6), blocksize=2),
]
PAD = [
    row("Pad", X, constants=[i64(0, 0, 1, 2, 0, 0, 3, 0)]),
    row("Pad", X, constants=[i64(0, 1, 1, 2, 1, 0, 3, 0), np.asarray(1.5, np.float32)]),
    row("Pad", X, constants=[i64(0, 0, 1, 2, 0, 0, 3, 1)], mode="reflect"),
    row("Pad", X, constants=[i64(0, 0, 1, 2, 0, 0, 3, 0)], mode="edge"),
    row("Pad", X, constants=[i64(0, 0, 1, 2, 0, 0, 3, 0)], mode="wrap", opset=19),
    row("Pad", X, opset=9, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=0.5),
    row("Pad", whole(3, 4), constants=[i64(1, 0, 0, 2), np.asarray(-4, np.int32)]),
]
REDUCE = [
    *(
        row(name, X, constants=[i64(*axes)] if axes else [], keepdims=keep, opset=18)
        for name in ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2")
        for axes, keep in (((2, 3), 1), ((-1,), 0), ((), 1), ((), 0))
    ),
    *(
        row(name, positive(2, 3, 4), constants=[i64(1)], keepdims=0)
        for name in ("ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
    ),
    row("ReduceMean", X, opset=13, axes=[2, 3], keepdims=1),
    row("ReduceSum", whole(3, 5), constants=[i64(0)], keepdims=0),
    row("ReduceMax", whole(3, 5), constants=[i64(1)], keepdims=0),
    row("ReduceSum", X, constants=[i64()], noop_with_empty_axes=1),
    row("ArgMax", X, axis=1, keepdims=1),
    row("ArgMax", X, axis=-1, keepdims=0),
    row("ArgMin", X, axis=2, keepdims=0),
    row("ArgMax", np.asarray([[1, 3, 3], [2, 2, 1]], np.float32), axis=1, keepdims=0),
    row("CumSum", V, constants=[np.asarray(1, np.int64)]),
    row("CumSum", V, constants=[np.asarray(0, np.int64)], reverse=1),
    row("CumSum", V, constants=[np.asarray(1, np.int64)], exclusive=1),
    *(row("Softmax", X, axis=axis) for axis in (0, 1, -1)),
    *(row("LogSoftmax", X, axis=axis) for axis in (1, -1)),
    row("Softmax", np.asarray([[1000, 1001, 999]], np.float32), axis=1),
    row("Softmax", X, opset=11, axis=1),
    row("Hardmax", V, axis=1),
]
PRODUCTS = [
    row("MatMul", normal(3, 4), constants=[normal(4, 5)]),
    row("MatMul", normal(3, 4), normal(4, 5)),
    row("MatMul", normal(4), constants=[normal(4, 5)]),
    row("MatMul", normal(3, 4), constants=[normal(4)]),
    row("MatMul", normal(4), normal(4)),
    row("MatMul", normal(2, 1, 3, 4), constants=[normal(5, 4, 2)]),
    row("MatMul", normal(5, 3, 4), normal(5, 4, 2)),
    *(
        row(
            "Gemm",
            normal(*((4, 3) if ta else (3, 4))),
            constants=[normal(*((5, 4) if tb else (4, 5))), *c],
            transA=ta,
            transB=tb,
            alpha=0.5,
            beta=2.0,
        )
        for ta in (0, 1)
        for tb in (0, 1)
        for c in ([], [normal(5)], [normal(3, 1)], [normal(3, 5)], [np.asarray(2, np.float32)])
    ),
    row("Gemm", normal(3, 4), constants=[normal(4, 5), normal(5)]),
    row("Einsum", normal(2, 3, 4), normal(2, 4, 5), equation="bij,bjk->bik"),
]
CONV = [
    row("Conv", X, constants=[normal(6, 4, 3, 3), normal(6)]),
    row("Conv", X, constants=[normal(6, 4, 3, 3)], strides=[2, 1], pads=[1, 0, 2, 1]),
    row("Conv", X, constants=[normal(6, 2, 3, 2)], group=2, dilations=[2, 3]),
    row("Conv", X, constants=[normal(8, 1, 3, 3), normal(8)], group=4, pads=[1, 1, 1, 1]),
    row("Conv", X, constants=[normal(4, 1, 3, 3)], group=4, strides=[2, 2], auto_pad="SAME_UPPER"),
    row("Conv", X, constants=[normal(6, 4, 2, 4)], strides=[2, 3], auto_pad="SAME_LOWER"),
    row("Conv", X, constants=[normal(6, 4, 3, 3)], auto_pad="VALID", strides=[2, 2]),
    row("Conv", X, constants=[normal(6, 4, 1, 1)], strides=[2, 2]),
    row("Conv", normal(2, 4, 9), constants=[normal(6, 2, 3), normal(6)], group=2, pads=[2, 1]),
    row("Conv", normal(1, 2, 5, 6, 4), constants=[normal(3, 2, 2, 3, 2)], pads=[1, 0, 1, 0, 2, 1]),
    row("Conv", X, normal(6, 4, 3, 3)),
    row("ConvTranspose", X, constants=[normal(4, 3, 3, 3), normal(3)]),
    row("ConvTranspose", X, constants=[normal(4, 3, 3, 2)], strides=[2, 3], pads=[1, 0, 0, 1]),
    row("ConvTranspose", X, constants=[normal(4, 3, 3, 3)], strides=[2, 2], output_padding=[1, 0]),
    row("ConvTranspose", X, constants=[normal(4, 3, 3, 3)], dilations=[2, 1]),
    row("ConvTranspose", X, constants=[normal(4, 3, 2, 2)], group=2, strides=[2, 2]),
    row("ConvTranspose", normal(1, 4, 6), constants=[normal(4, 3, 3)], strides=[2], pads=[1, 1]),
    row("ConvTranspose", X, constants=[normal(4, 3, 3, 3)], strides=[2, 2], auto_pad="SAME_UPPER"),
    row("ConvTranspose", X, constants=[normal(4, 3, 3, 3)], strides=[2, 2], auto_pad="SAME_LOWER"),
    *(
        row(
            "ConvTranspose",
            X,
            constants=[normal(4, 3, 3, 3)],
            strides=[2, 2],
            output_shape=shape,
            **more,
        )
        for shape, more in (
            ([18, 14], {}),
            ([17, 14], {"auto_pad": "SAME_UPPER"}),
            ([18, 13], {"auto_pad": "SAME_LOWER"}),
            ([20, 16], {}),
        )
    ),
]
POOL = [
    *(
        row(name, X, kernel_shape=[3, 2], **attributes)
        for name in ("MaxPool", "AveragePool")
        for attributes in (
            {},
            {"strides": [2, 2]},
            {"strides": [2, 3], "pads": [1, 0, 0, 1]},
            {"strides": [2, 2], "ceil_mode": 1},
            {"strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
            {"strides": [3, 3], "ceil_mode": 1, "pads": [0, 1, 2, 1]},
            {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
            {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
            {"strides": [2, 2], "auto_pad": "VALID"},
            {"dilations": [2, 1], "opset": 19},
        )
    ),
    *(
        row("AveragePool", X, kernel_shape=[3, 3], count_include_pad=1, opset=19, **attributes)
        for attributes in (
            {"pads": [1, 1, 1, 1]},
            {"strides": [2, 2], "pads": [1, 0, 1, 2]},
            {"strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
            {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        )
    ),
    # The last window would start in the padding: it must not be made.
    row("MaxPool", normal(1, 1, 5, 5), kernel_shape=[1, 1], strides=[3, 3], ceil_mode=1),
    row("MaxPool", normal(1, 1, 4, 4), kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1),
    row("MaxPool", normal(2, 3, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
    row("AveragePool", normal(2, 3, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
    row("MaxPool", normal(1, 2, 5, 6, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2]),
    row("AveragePool", normal(1, 2, 5, 6, 4), kernel_shape=[2, 2, 2], pads=[1, 0, 0, 0, 1, 1]),
    row("GlobalAveragePool", X),
    row("GlobalMaxPool", X),
    row("LpPool", X, kernel_shape=[3, 2], strides=[2, 2], p=2),
    row("GlobalLpPool", X, p=2),
]
NORM = [
    row("BatchNormalization", X, constants=[normal(4), normal(4, seed=1), normal(4), positive(4)]),
    row(
        "BatchNormalization",
        X,
        constants=[normal(4), normal(4), normal(4), positive(4)],
        epsilon=0.1,
    ),
    row("InstanceNormalization", X, constants=[normal(4), normal(4, seed=1)]),
    row("LayerNormalization", X, constants=[normal(7), normal(7, seed=1)]),
    row("LayerNormalization", X, constants=[normal(9, 7), normal(9, 7, seed=1)], axis=2),
    row("LayerNormalization", X, constants=[normal(7)], epsilon=0.01),
    row("GroupNormalization", X, constants=[normal(4), normal(4, seed=1)], num_groups=2, opset=21),
    row("LRN", X, size=3),
    row("MeanVarianceNormalization", X),
]
S = np.asarray(0.05, np.float32)
SC = np.asarray([0.05, 0.1, 0.02, 0.3], np.float32)
QUANT = [
    row("QuantizeLinear", X, constants=[S, np.asarray(3, np.int8)]),
    row("QuantizeLinear", X, constants=[S, np.asarray(130, np.uint8)]),
    row("QuantizeLinear", X, constants=[S]),
    row("QuantizeLinear", X, constants=[SC, np.asarray([0, 3, -5, 9], np.int8)], axis=1),
    row("QuantizeLinear", EDGES, constants=[np.asarray(1, np.float32), np.asarray(0, np.int8)]),
    row("DequantizeLinear", whole(2, 4, 3, dtype="int8"), constants=[S, np.asarray(3, np.int8)]),
    row("DequantizeLinear", whole(2, 4, 3, dtype="int8"), constants=[S]),
    row(
        "DequantizeLinear",
        whole(2, 4, 3, dtype="int8"),
        constants=[SC, np.asarray([0, 3, -5, 9], np.int8)],
        axis=1,
    ),
    row("DequantizeLinear", whole(5, dtype="int32") * 1000, constants=[S]),
    row(
        "DequantizeLinear",
        whole(2, 4, low=0, high=255, dtype="uint8"),
        constants=[S, np.asarray(128, np.uint8)],
    ),
]


def resized(size: Sequence[int], **attributes: Any) -> Any:
    sizes = i64(2, 4, *size)
    shown = "-".join(f"{k}={v}" for k, v in attributes.items())
    return pytest.param(
        "Resize", [X], [None, None, sizes], attributes, id=f"Resize-{list(size)}-{shown}"
    )


COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROUNDING = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
RESIZE = [
    *(
        resized(size, mode="linear", coordinate_transformation_mode=mode)
        for mode in COORDINATES
        for size in ((18, 14), (5, 4), (13, 21), (9, 7))
    ),
    *(
        resized(size, mode="nearest", coordinate_transformation_mode=mode, nearest_mode=rounding)
        for mode in COORDINATES
        for rounding in ROUNDING
        for size in ((18, 14), (5, 4), (13, 21))
    ),
    row("Resize", X, constants=[None, np.asarray([1, 1, 2, 2], np.float32)]),
    row("Resize", X, constants=[None, np.asarray([1, 1, 2, 2], np.float32)], mode="linear"),
    row("Upsample", X, constants=[np.asarray([1, 1, 2, 2], np.float32)], opset=9),
]
TABLE = [
    *UNARY,
    *BINARY,
    *CLIP,
    *CAST,
    *SHAPES,
    *PAD,
    *REDUCE,
    *PRODUCTS,
    *CONV,
    *POOL,
    *NORM,
    *QUANT,
    *RESIZE,
]


@pytest.mark.parametrize(("operator", "inputs", "constants", "attributes"), TABLE)
def test_equals_onnxruntime(
    operator: str,
    inputs: Sequence[Array],
    constants: Sequence[Array | None],
    attributes: Mapping[str, Any],
) -> None:
    check(one_node(operator, inputs, constants, **attributes), inputs)


# What no ONNX node of the table becomes is judged by TVM's own kernels.
OP = relax.op
N4 = normal(2, 6, 5, 4)


def tvm_row(name: str, build: Callable[..., Any], *inputs: Array) -> Any:
    return pytest.param(name, build, inputs, id=name)


BY_TVM = [
    tvm_row("floor_divide", OP.floor_divide, whole(3, 5), whole(3, 5, low=-5, high=5)),
    tvm_row("floor_mod", OP.floor_mod, whole(3, 5), whole(3, 5, low=-5, high=5)),
    tvm_row("not_equal", OP.not_equal, whole(3, 5, low=0, high=4), whole(5, low=0, high=4)),
    tvm_row("atan2", OP.atan2, normal(3, 5), normal(3, 5, seed=1)),
    tvm_row("rsqrt", OP.rsqrt, positive(3, 5)),
    tvm_row("square", OP.square, normal(3, 5)),
    tvm_row("trunc", OP.trunc, EDGES),
    tvm_row("isfinite", OP.isfinite, np.asarray([1, np.nan, np.inf], np.float32)),
    tvm_row("selu", OP.nn.selu, EDGES),
    tvm_row("silu", OP.nn.silu, normal(3, 5) * 10),
    tvm_row("gelu_tanh", OP.nn.gelu_tanh, normal(3, 5)),
    tvm_row("softplus", lambda x: OP.nn.softplus(x, beta=2.0), normal(3, 5)),
    tvm_row("variance", lambda x: OP.variance(x, [1]), normal(3, 5)),
    tvm_row("std", lambda x: OP.std(x, [0], keepdims=True), normal(3, 5)),
    tvm_row("repeat", lambda x: OP.repeat(x, 2, 1), normal(3, 5)),
    tvm_row("repeat_flat", lambda x: OP.repeat(x, 2), normal(3, 5)),
    tvm_row("stack", lambda x, y: OP.stack([x, y], 1), normal(3, 5), normal(3, 5, seed=1)),
    tvm_row("zeros_like", lambda x: OP.add(OP.zeros_like(x), x), normal(3, 5)),
    tvm_row("ones_like", lambda x: OP.add(OP.ones_like(x), x), normal(3, 5)),
    tvm_row("zeros", lambda x: OP.add(x, OP.zeros((2, 5), "float32")), normal(2, 5)),
    tvm_row("ones", lambda x: OP.add(x, OP.ones((5,), "float32")), normal(2, 5)),
    tvm_row("full", lambda x: OP.add(x, OP.full((5,), relax.const(3, "float32"))), normal(2, 5)),
    tvm_row("flatten", OP.flatten, normal(3, 5)),
    tvm_row("batch_flatten", OP.nn.batch_flatten, N4),
    tvm_row("split_at", lambda x: OP.split(x, [1, 4], 1)[1], normal(3, 5)),
    tvm_row("split_uneven", lambda x: OP.split(x, 3, 1)[2], normal(3, 7)),
    tvm_row("cumsum_flat", lambda x: OP.cumsum(x), whole(3, 5)),
    tvm_row(
        "group_norm",
        lambda x, g, b: OP.nn.group_norm(x, g, b, 3, 1, [2, 3]),
        N4,
        normal(6),
        normal(6, seed=1),
    ),
    tvm_row("rms_norm", lambda x, w: OP.nn.rms_norm(x, w, [-1]), N4, normal(4)),
    tvm_row(
        "batch_norm_training",
        lambda x, *p: OP.nn.batch_norm(x, *p, axis=1, training=True)[0],
        N4,
        positive(6),
        normal(6),
        normal(6),
        positive(6),
    ),
    tvm_row("pool_nhwc", lambda x: OP.nn.max_pool2d(x, [2, 2], [2, 1], layout="NHWC"), N4),
    tvm_row(
        "pool_avg_nhwc",
        lambda x: OP.nn.avg_pool2d(x, [2, 3], padding=[0, 1, 1, 1], layout="NHWC"),
        N4,
    ),
    *(
        tvm_row(
            f"adaptive_{rank}d_{size}",
            lambda x, r=rank, s=size: getattr(OP.nn, f"adaptive_avg_pool{r}d")(x, s and [s] * r),
            normal(1, 2, *[7] * rank),
        )
        for rank in (1, 2, 3)
        for size in (None, 1, 3)
        if rank > 1 or size
    ),
    tvm_row("adaptive_3_2", lambda x: OP.nn.adaptive_avg_pool2d(x, (3, 2)), normal(1, 2, 7, 5)),
    tvm_row(
        "conv_nhwc",
        lambda x, w: OP.nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="HWIO"),
        N4,
        normal(3, 3, 4, 5),
    ),
    tvm_row(
        "conv_nwc",
        lambda x, w: OP.nn.conv1d(x, w, strides=2, data_layout="NWC", kernel_layout="WIO"),
        normal(1, 9, 4),
        normal(3, 4, 5),
    ),
    tvm_row(
        "conv_int8",
        lambda x, w: OP.nn.conv2d(x, w, out_dtype="int32"),
        whole(1, 4, 5, 5, low=-128, high=128, dtype="int8"),
        whole(3, 4, 3, 3, low=-128, high=128, dtype="int8"),
    ),
    tvm_row(
        "matmul_int8",
        lambda x, w: OP.matmul(x, w, out_dtype="int32"),
        whole(3, 40, low=-128, high=128, dtype="int8"),
        whole(40, 5, low=-128, high=128, dtype="int8"),
    ),
    tvm_row(
        "resize_nhwc", lambda x: OP.image.resize2d(x, (9, 3), layout="NHWC", method="linear"), N4
    ),
    tvm_row(
        "resize_tf",
        lambda x: OP.image.resize2d(
            x,
            (9, 3),
            method="nearest_neighbor",
            coordinate_transformation_mode="tf_half_pixel_for_nn",
            rounding_method="floor",
        ),
        N4,
    ),
    tvm_row("squeeze_all", OP.squeeze, normal(1, 3, 1)),
    tvm_row(
        "add_wraps",
        OP.add,
        whole(4, low=100, high=127, dtype="int8"),
        whole(4, low=100, high=127, dtype="int8"),
    ),
    tvm_row(
        "multiply_wraps",
        OP.multiply,
        whole(4, low=100, high=127, dtype="int8"),
        whole(4, low=100, high=127, dtype="int8"),
    ),
    tvm_row(
        "divide_truncates",
        OP.divide,
        np.asarray([-7, 7, -7, 7, -6], np.int32),
        np.asarray([2, -2, -2, 2, 3], np.int32),
    ),
]


def module_of(build: Callable[..., Any], inputs: Sequence[Array]) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    args = [
        relax.Var(f"x{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(inputs)
    ]
    with builder.function("main", args):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(build(*args)))
        builder.emit_func_output(result)
    return relax.transform.Normalize()(builder.get())


@pytest.mark.parametrize(("name", "build", "inputs"), BY_TVM)
def test_equals_tvm(name: str, build: Callable[..., Any], inputs: Sequence[Array]) -> None:
    mod = module_of(build, inputs)
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    expected = machine["main"](*(tvm.runtime.tensor(a) for a in inputs)).numpy()
    (given,) = reference.run(mod, {f"x{i}": a for i, a in enumerate(inputs)}).values()
    assert (given.dtype, given.shape) == (expected.dtype, expected.shape)
    if given.dtype.kind == "f":
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(given, expected)


def test_integer_division_is_exact_beyond_float64() -> None:
    a = np.asarray([2**62 + 1, -(2**62) - 1], np.int64)
    (given,) = reference.run(module_of(OP.divide, [a, a]), {"x0": a, "x1": a // a * 3}).values()
    np.testing.assert_array_equal(given, [(2**62 + 1) // 3, -((2**62 + 1) // 3)])


def operators_in(mod: tvm.IRModule) -> set[str]:
    found = set()

    def visit(expr: Any) -> None:
        if isinstance(expr, tvm.ir.Call) and isinstance(expr.op, tvm.ir.Op):
            found.add(str(expr.op.name))

    relax.analysis.post_order_visit(mod["main"], visit)
    return found


def test_every_operator_has_a_judge() -> None:
    from tvm_compress.frontends.onnx import import_model

    judged: set[str] = set()
    for table_row in TABLE:
        operator, inputs, constants, attributes = table_row.values
        mod = import_model(one_node(operator, inputs, constants, **attributes), None)
        judged |= operators_in(relax.transform.Normalize()(mod))
    for table_row in BY_TVM:
        _, build, inputs = table_row.values
        judged |= operators_in(module_of(build, inputs))
    # Ours are judged in their own tests.
    own = {name for name in MEANING if name.startswith("tvm_compress.")}
    assert set(MEANING) - judged - own == set()


def test_page_lists_every_operator() -> None:
    page = (REPO / "docs" / "operators.md").read_text()
    listed = re.findall(r"^- `([\w.]+)`$", page, re.MULTILINE)
    assert listed == sorted([*MEANING, "tvm_compress.codebook"]), (
        "docs/operators.md is not in step with MEANING: its list must hold these names, sorted."
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"method": "cubic"},
            "reference: relax.image.resize2d by cubic has no numpy meaning; expected "
            "nearest_neighbor or linear: export the network with one of them.",
        ),
        (
            {"coordinate_transformation_mode": "tf_crop_and_resize"},
            "reference: relax.image.resize2d with the coordinates tf_crop_and_resize has no numpy "
            "meaning; expected half_pixel, pytorch_half_pixel, align_corners, asymmetric or "
            "tf_half_pixel_for_nn: export the network with one of them.",
        ),
    ],
)
def test_refused_forms_of_resize(options: dict[str, str], sentence: str) -> None:
    mod = module_of(lambda x: OP.image.resize2d(x, (3, 3), **options), [N4])
    with pytest.raises(UnsupportedError) as caught:
        reference.run(mod, N4)
    assert str(caught.value) == sentence


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 2**31),
)
def test_convolution_by_its_definition(
    spatial_sizes: list[int],
    kernel: int,
    stride: int,
    dilation: int,
    groups: int,
    before: int,
    after: int,
    seed: int,
) -> None:
    """Sum over every output, channel and tap, written out; integers, so equality is exact."""
    rng = np.random.default_rng(seed)
    rank = len(spatial_sizes)
    x = rng.integers(-9, 9, (1, 2 * groups, *spatial_sizes)).astype(np.float32)
    w = rng.integers(-9, 9, (3 * groups, 2, *[kernel] * rank)).astype(np.float32)
    outputs = [
        (n + before + after - (kernel - 1) * dilation - 1) // stride + 1 for n in spatial_sizes
    ]
    if min(outputs) < 1:
        return
    expected = np.zeros((1, 3 * groups, *outputs))
    for o, i, *rest in np.ndindex(3 * groups, 2, *outputs, *[kernel] * rank):
        place, tap = rest[:rank], rest[rank:]
        source = [p * stride + t * dilation - before for p, t in zip(place, tap, strict=True)]
        if all(0 <= s < n for s, n in zip(source, spatial_sizes, strict=True)):
            channel = o // 3 * 2 + i
            expected[(0, o, *place)] += x[(0, channel, *source)] * w[(o, i, *tap)]
    build = OP.nn.conv1d if rank == 1 else OP.nn.conv2d
    padding = [before] * rank + [after] * rank
    mod = module_of(
        lambda a, b: build(a, b, strides=stride, padding=padding, dilation=dilation, groups=groups),
        [x, w],
    )
    (given_y,) = reference.run(mod, {"x0": x, "x1": w}).values()
    np.testing.assert_array_equal(given_y, expected)


def test_normalisations_leave_out_scale_and_shift() -> None:
    gamma, beta = normal(4), normal(4, seed=1)
    wide = N4.astype(np.float64)
    plain = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)

    def build(center: bool, scale: bool) -> Array:
        mod = module_of(
            lambda x, g, b: OP.nn.layer_norm(x, g, b, [-1], center=center, scale=scale),
            [N4, gamma, beta],
        )
        (y,) = reference.run(mod, {"x0": N4, "x1": gamma, "x2": beta}).values()
        return y

    np.testing.assert_allclose(build(False, True), plain * gamma, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(build(True, False), plain + beta, rtol=1e-5, atol=1e-6)


def test_layout_letters() -> None:
    assert [spatial(rank) for rank in (1, 2, 3)] == ["W", "HW", "DHW"]
    assert axes_between("HWIO", "OIHW") == (3, 2, 0, 1)
    assert split_padding([1, 2, 3, 4, 5, 6]) == [(1, 4), (2, 5), (3, 6)]
    with pytest.raises(ValueError, match="NHWC and NCDHW do not name the same axes"):
        axes_between("NHWC", "NCDHW")
