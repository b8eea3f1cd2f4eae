"""``export_onnx``: onnxruntime gives our numbers, and codes come back as they went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.relax import op

import tvm_compress as tc
from benchmarks.frontends import judge_onnx
from tests.training.nets import module
from tvm_compress import ir
from tvm_compress.errors import OptionError, UnsupportedError
from tvm_compress.export_onnx import export_onnx
from tvm_compress.ops import CODEBOOK
from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.targets import reference
from tvm_compress.tensors import input_specs, output_specs

Array = NDArray[Any]


def inputs_of(mod: tvm.IRModule) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {s.name: rng.normal(size=s.shape).astype(s.dtype) for s in input_specs(mod)}


def agrees(mod: tvm.IRModule) -> onnx.ModelProto:
    """Check that onnxruntime gives our numbers under our names."""
    made = export_onnx(mod)
    inputs = inputs_of(mod)
    assert [i.name for i in made.graph.input] == list(inputs)
    assert [o.name for o in made.graph.output] == [s.name for s in output_specs(mod)]
    found = judge_onnx(made.SerializeToString(), list(inputs.values()))
    for y, expected in zip(found, reference.run(mod, inputs).values(), strict=True):
        assert y.dtype == expected.dtype and y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    return made


def same_parameters(mod: tvm.IRModule, other: tvm.IRModule) -> None:
    before, after = ir.parameters(mod), ir.parameters(other)
    for name in ir.weights(mod):
        np.testing.assert_array_equal(after[name].value, before[name].value)
        assert (after[name].codes is None) == (before[name].codes is None)
        if before[name].codes is not None:
            np.testing.assert_array_equal(after[name].codes, before[name].codes)
            np.testing.assert_array_equal(after[name].centroids, before[name].centroids)


@pytest.mark.parametrize("shared", [False, True])
def test_the_digits(digits_onnx: Path, shared: bool) -> None:
    mod = tc.load(digits_onnx)
    mod = ShareWeights(4)(Prune(0.5)(mod)) if shared else mod
    again = tc.load(agrees(mod))
    same_parameters(mod, again)
    tvm.ir.assert_structural_equal(again, mod)


def test_codes_are_bytes_and_are_stored_once(digits_onnx: Path, tmp_path: Path) -> None:
    mod = ShareWeights(4)(tc.load(digits_onnx))
    path = tmp_path / "small.onnx"
    made = export_onnx(mod, path, name="digits")
    assert path.read_bytes() == made.SerializeToString(deterministic=True)
    assert made.graph.name == "digits"
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for name, weight in ir.weights(mod).items():
        assert name not in tensors
        np.testing.assert_array_equal(tensors[f"{name}.codes"], weight.parameter.codes)
        np.testing.assert_array_equal(tensors[f"{name}.centroids"], weight.parameter.centroids)
        assert tensors[f"{name}.codes"].dtype == np.uint8
    assert path.stat().st_size < digits_onnx.stat().st_size / 2
    same_parameters(mod, tc.load(path))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "mlperf_tiny/kws_dscnn_float",
        "mlperf_tiny/ic_resnet8_float",
        "mlperf_tiny/ad01_float",
        "models/ultraface_rfb320",
    ],
)
def test_published_networks(shared_data: Path, name: str) -> None:
    mod = ShareWeights(3)(tc.load(shared_data / f"{name}.onnx"))
    same_parameters(mod, tc.load(agrees(mod)))


UNARY = ["abs", "ceil", "cos", "erf", "exp", "floor", "negative", "round", "sigmoid", "sign", "sin"]
UNARY += ["atan", "asinh", "sinh", "cosh", "tanh"]
BINARY = ["add", "subtract", "multiply", "divide", "maximum", "minimum"]
OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: getattr(op, name) for name in UNARY},
    **{name: lambda x, n=name: getattr(op, n)(x, op.exp(x)) for name in BINARY},
    "sqrt": lambda x: op.sqrt(op.exp(x)),
    "log": lambda x: op.log(op.exp(op.tanh(x))),
    "power": lambda x: op.power(op.exp(x), relax.const(1.5)),
    "relu": op.nn.relu,
    "leakyrelu": lambda x: op.nn.leakyrelu(x, 0.3),
    "clip": lambda x: op.clip(x, -0.5, 0.25),
    "softmax": lambda x: op.nn.softmax(x, 1),
    "log_softmax": lambda x: op.nn.log_softmax(x, -1),
    "astype": lambda x: op.astype(op.multiply(x, relax.const(5.0)), "int32"),
    "reshape": lambda x: op.reshape(x, (4, 30)),
    "transpose": lambda x: op.permute_dims(x, [0, 3, 1, 2]),
    "reverse": lambda x: op.permute_dims(x),
    "concat": lambda x: op.concat([x, op.exp(x)], axis=2),
    "slice": lambda x: op.strided_slice(x, [1, 3], [1, 0], [3, 5], [1, 2]),
    "slice without steps": lambda x: op.strided_slice(x, [2], [1], [3]),
    "mean": lambda x: op.mean(x, [2, 3]),
    "mean of all": lambda x: op.mean(x),
    "max": lambda x: op.max(x, [1], keepdims=True),
    "min": lambda x: op.min(x, [-1]),
    "sum": lambda x: op.sum(x, [0, 2], keepdims=True),
    "prod": lambda x: op.prod(x, [3]),
    "pad": lambda x: op.nn.pad(x, [0, 0, 1, 0, 0, 2, 1, 1], pad_value=0.5),
    "pad by reflection": lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 2, 1, 1], pad_mode="reflect"),
    "pad by edges": lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 2, 1, 1], pad_mode="replicate"),
    "max_pool": lambda x: op.nn.max_pool2d(x, (2, 3), (1, 2), (1, 0, 0, 1), ceil_mode=True),
    "max_pool dilated": lambda x: op.nn.max_pool2d(x, (2, 2), dilation=(1, 2)),
    "avg_pool": lambda x: op.nn.avg_pool2d(x, (2, 2), padding=(1, 1, 0, 0)),
    "avg_pool padding counted": lambda x: op.nn.avg_pool2d(
        x, (2, 2), padding=(1, 1, 1, 1), count_include_pad=True
    ),
    "avg_pool NHWC": lambda x: op.nn.avg_pool2d(x, (2, 2), layout="NHWC"),
    "avg_pool1d": lambda x: op.nn.avg_pool1d(op.reshape(x, (1, 6, 20)), 4, 3),
    "adaptive_avg_pool": lambda x: op.nn.adaptive_avg_pool2d(x, (1, 1)),
    "a tuple": lambda x: tvm.ir.Tuple([op.exp(x), x]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    agrees(tc.load(module({"x": (1, 6, 4, 5)}, {}, OPERATORS[name])))


@pytest.mark.parametrize(
    ("kind", "data", "weight", "options"),
    [
        ("conv2d", (1, 4, 7, 6), (6, 2, 3, 2), {"groups": 2, "strides": (2, 1)}),
        ("conv2d", (1, 4, 7, 6), (4, 1, 3, 3), {"groups": 4, "padding": (1, 2, 0, 1)}),
        ("conv2d", (1, 7, 6, 4), (5, 4, 2, 2), {"data_layout": "NHWC", "dilation": (2, 1)}),
        ("conv1d", (1, 3, 9), (2, 3, 4), {"padding": 1}),
        ("conv3d", (1, 2, 4, 4, 4), (3, 2, 2, 2, 2), {}),
    ],
)
def test_convolutions(kind: str, data: Any, weight: Any, options: dict[str, Any]) -> None:
    value = np.random.default_rng(1).normal(size=weight).astype(np.float32)
    build = getattr(op.nn, kind)
    mod = tc.load(module({"x": data}, {"w": value}, lambda x, w: build(x, w, **options)))
    agrees(mod)
    same_parameters(ShareWeights(2)(mod), tc.load(agrees(ShareWeights(2)(mod))))


def test_a_kernel_that_lies_otherwise() -> None:
    value = np.random.default_rng(1).normal(size=(3, 2, 4, 5)).astype(np.float32)

    def body(x: Any, w: Any) -> Any:
        return op.nn.conv2d(x, w, kernel_layout="HWIO")

    agrees(module({"x": (1, 4, 5, 5)}, {"w": value}, body))  # not canonical


def test_outputs_that_are_inputs_parameters_or_the_same() -> None:
    value = np.arange(3, dtype=np.float32)

    def body(x: Any, w: Any) -> Any:
        y = op.add(x, w)
        return tvm.ir.Tuple([x, w, y, y])

    agrees(tc.load(module({"x": (1, 3)}, {"w": value}, body)))


def codebook_network(codes: Array, centroids: Array) -> tvm.IRModule:
    given = {"w": (codes, centroids)}
    return tc.load(module({"x": (1, codes.shape[0])}, given, op.matmul))


@settings(max_examples=25)
@given(st.integers(1, 256), st.integers(0, 10**6))
def test_any_codebook_comes_back(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, size, (5, 4)).astype(np.uint8)
    mod = codebook_network(codes, rng.normal(size=size).astype(np.float32))
    same_parameters(mod, tc.load(export_onnx(mod)))


@pytest.mark.parametrize("size", [4, 200])
def test_several_codebooks_are_written_end_to_end(size: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, size, (6, 4)).astype(np.uint8)
    mod = codebook_network(codes, rng.normal(size=(1, 2, size)).astype(np.float32))
    again = tc.load(agrees(mod))
    found = ir.parameters(again)["w" if size == 4 else next(iter(ir.parameters(again)))]
    np.testing.assert_array_equal(found.value, ir.parameters(mod)["w"].value)
    assert found.shared == (2 * size <= 256)


# ---- others' models with a Gather ----------------------------------------------------------------


def gathered(codes: Array, centroids: Array, **attributes: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["w"], **attributes),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    shape = np.take(centroids, codes, axis=attributes.get("axis", 0)).shape
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, shape[0])),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    tensors = [numpy_helper.from_array(centroids, "table"), numpy_helper.from_array(codes, "index")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def is_shared(model: onnx.ModelProto) -> bool:
    mod = tc.load(model)
    inputs = inputs_of(mod)
    expected = judge_onnx(model.SerializeToString(), list(inputs.values()))
    for y, wanted in zip(reference.run(mod, inputs).values(), expected, strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    (weight,) = ir.weights(mod).values()
    return weight.parameter.shared


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_gather_out_of_a_codebook_is_a_shared_weight(dtype: Any) -> None:
    codes = np.asarray([[0, 2], [1, 1], [2, 0]], dtype)
    assert is_shared(gathered(codes, np.asarray([0, -1.5, 2], np.float32)))


def test_other_gathers_are_no_codebooks() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (3, 2))
    assert not is_shared(gathered(codes[:, 0], rng.normal(size=(5, 4)).astype(np.float32)))
    assert not is_shared(gathered(codes, rng.normal(size=257).astype(np.float32)))
    # Indices below 0 count from the end, and are codes all the same.
    assert is_shared(gathered(codes - 4, rng.normal(size=4).astype(np.float32)))
    assert is_shared(gathered(codes, rng.normal(size=256).astype(np.float32)))


def test_a_shared_weight_that_is_moved_stays_shared() -> None:
    codes = np.asarray([[0, 2, 1], [1, 1, 2]], np.int64)
    model = gathered(codes, np.asarray([0, -1.5, 2], np.float32))
    model.graph.node.insert(1, helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]))
    model.graph.node[2].input[1] = "wt"
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    assert is_shared(model)


# ---- refusals ------------------------------------------------------------------------------------


def test_refuses_what_has_no_form(tmp_path: Path) -> None:
    def refused(body: Callable[..., Any]) -> str:
        with pytest.raises(UnsupportedError) as caught:
            export_onnx(module({"x": (1, 4, 6, 6)}, {}, body))
        return str(caught.value)

    sentence = refused(lambda x: op.cumsum(x, 1))
    assert sentence.startswith("export_onnx: relax.cumsum (bound to ")
    assert ") has no ONNX form here; expected one of abs, acos, acosh, add, " in sentence
    for body, expected in (
        (lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], "circular"), "constant, reflect or"),
        (lambda x: op.nn.avg_pool2d(x, (2, 2), dilation=(2, 2)), "expected a dilation of 1:"),
        (lambda x: op.nn.adaptive_avg_pool2d(x, (2, 2)), "expected an output size of 1, the mean"),
        (lambda x: op.concat([op.reshape(x, (144,))] * 2, axis=None), "expected an axis:"),
    ):
        sentence = refused(body)
        assert sentence.startswith("export_onnx: this form of relax.") and expected in sentence
        assert sentence.endswith(": rewrite the operator in the network.")
    with pytest.raises(OptionError) as caught:
        export_onnx(module({"x": (1, 3)}, {}, op.exp), tmp_path)
    assert str(caught.value) == (
        f"The output {tmp_path} is a folder; expected the name of a file in it."
    )


def test_the_operator_of_our_own_never_reaches_the_file() -> None:
    mod = codebook_network(np.zeros((3, 2), np.uint8), np.zeros(4, np.float32))
    text = onnx.printer.to_text(export_onnx(mod))
    assert CODEBOOK not in text and "Gather" in text
