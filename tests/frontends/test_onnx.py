"""ONNX: shapes, names, old opsets, and each sentence of refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.frontends import judge_onnx
from tvm_compress import ir
from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.targets import reference
from tvm_compress.tensors import input_specs, output_specs

Array = NDArray[Any]
W = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
B = np.asarray([1, -1], np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any] | None],
    outputs: Mapping[str, Sequence[Any] | None],
    constants: Mapping[str, Array] | None = None,
    opset: int = 18,
    list_constants: bool = False,
) -> onnx.ModelProto:
    made = {n: np.asarray(a) for n, a in (constants or {}).items()}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    if list_constants:
        values += [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in made.items()
        ]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()]
    tensors = [numpy_helper.from_array(a, n) for n, a in made.items()]
    graph = helper.make_graph(list(nodes), "g", values, results, tensors)
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    result.ir_version = 4 if opset < 10 else 8
    return result


def dense(*shape: Any, **options: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "fc.weight"], ["h"]),
        helper.make_node("Add", ["h", "fc.bias"], ["y"]),
    ]
    return model(nodes, {"x": shape}, {"y": None}, {"fc.weight": W, "fc.bias": B}, **options)


def refused(source: Any, kind: type[Exception] = UnsupportedError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(source, **options)
    return str(caught.value)


def same(made: onnx.ModelProto, inputs: Mapping[str, Array], **options: Any) -> None:
    expected = judge_onnx(made.SerializeToString(), list(inputs.values()))
    outputs = reference.run(load(made, **options), inputs)
    assert list(outputs) == [ir.identifier(o.name) for o in made.graph.output]
    for y, wanted in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_parameters_keep_their_names() -> None:
    mod = load(dense(2, 3))
    assert list(ir.parameters(mod)) == ["fc_weight", "fc_bias"]
    np.testing.assert_array_equal(ir.parameters(mod)["fc_weight"].value, W)
    np.testing.assert_array_equal(ir.parameters(mod)["fc_bias"].value, B)
    assert list(ir.weights(mod)) == ["fc_weight"]


@pytest.mark.parametrize("first", ["batch", None, 0, -1])
def test_a_dynamic_batch_is_one(first: Any) -> None:
    made = dense(first, 3)
    assert input_specs(load(made))[0].shape == (1, 3)
    assert output_specs(load(made))[0].shape == (1, 2)
    assert input_specs(load(made, shapes={"x": (5, 3)}))[0].shape == (5, 3)
    if first != 0:  # which onnxruntime takes for a size
        same(made, {"x": np.ones((5, 3), np.float32)}, shapes={"x": (5, 3)})


def test_the_model_that_was_given_stays_as_it_was() -> None:
    made = dense("batch", 3)
    before = made.SerializeToString()
    load(made)
    assert made.SerializeToString() == before


def test_stated_inner_shapes_do_not_keep_the_batch() -> None:
    made = dense("batch", 3)
    made.graph.value_info.append(
        helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 2])
    )
    made.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    )
    assert output_specs(load(made))[0].shape == (1, 2)
    assert output_specs(load(made, shapes={"x": (4, 3)}))[0].shape == (4, 2)


def test_one_symbol_has_one_size() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    made = model(nodes, {"a": ["n", 3], "b": ["n", 3]}, {"y": None})
    mod = load(made, shapes={"a": (4, 3)})
    assert [spec.shape for spec in input_specs(mod)] == [(4, 3), (4, 3)]


def test_a_dynamic_size_that_is_no_batch() -> None:
    assert refused(dense(1, "length")) == (
        "The input x is dynamic on axis 1 (length); expected a static shape: give it to load with "
        'shapes={"x": (...)}.'
    )
    assert refused(dense(1, None)).startswith("The input x is dynamic on axis 1 (unknown size);")
    assert input_specs(load(dense("n", "m"), shapes={"x": (2, 3)}))[0].shape == (2, 3)


def test_wrong_shapes() -> None:
    assert refused(dense(2, 3), shapes={"x": (4, 3)}) == (
        "The input x has the static size 2 on axis 0; 4 was given: give the sizes that the model "
        "leaves open."
    )
    assert refused(dense(2, 3), shapes={"x": (2, 3, 1)}) == (
        "The input x has 2 dimensions; the shape (2, 3, 1) was given: give as many sizes."
    )
    assert refused(dense(2, 3), shapes={"z": (2, 3)}) == "There is no input z; expected x."
    assert refused(dense("n", 3), shapes={"x": (0, 3)}) == (
        "The shape (0, 3) was given for the input x; expected whole numbers from 1."
    )


def test_weights_among_the_inputs_of_an_old_file() -> None:
    made = dense(1, 3, opset=9, list_constants=True)
    mod = load(made)
    assert [spec.name for spec in input_specs(mod)] == ["x"]
    assert list(ir.parameters(mod)) == ["fc_weight", "fc_bias"]
    same(dense(1, 3, opset=9), {"x": np.ones((1, 3), np.float32)})


def test_opset_9_forms() -> None:
    nodes = [
        helper.make_node("Clip", ["x"], ["c"], min=0.0, max=6.0),
        helper.make_node("Pad", ["c"], ["p"], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5),
        helper.make_node("Unsqueeze", ["p"], ["u"], axes=[0]),
        helper.make_node("Squeeze", ["u"], ["s"], axes=[0]),
        helper.make_node("ReduceSum", ["s"], ["r"], axes=[2], keepdims=0),
        helper.make_node("Slice", ["r"], ["y"], starts=[0], ends=[2], axes=[2]),
    ]
    made = model(nodes, {"x": (1, 2, 3, 3)}, {"y": None}, opset=9)
    same(made, {"x": np.random.default_rng(0).standard_normal((1, 2, 3, 3)).astype(np.float32) * 5})


def test_several_inputs_and_outputs_keep_their_names() -> None:
    nodes = [
        helper.make_node("Add", ["left/in", "0"], ["sum.out"]),
        helper.make_node("Relu", ["sum.out"], ["relu:0"]),
    ]
    made = model(nodes, {"left/in": (2,), "0": (2,)}, {"relu:0": None, "sum.out": None})
    mod = load(made)
    assert [spec.name for spec in input_specs(mod)] == ["left_in", "input_0"]
    assert [spec.name for spec in output_specs(mod)] == ["relu_0", "sum_out"]
    outputs = reference.run(mod, {"left_in": B, "input_0": B})
    np.testing.assert_array_equal(outputs["sum_out"], [2, -2])
    np.testing.assert_array_equal(outputs["relu_0"], [2, 0])


def test_shapes_are_given_by_the_names_of_the_file() -> None:
    nodes = [helper.make_node("Relu", ["left/in"], ["y"])]
    made = model(nodes, {"left/in": ("n", "m")}, {"y": None})
    assert input_specs(load(made, shapes={"left/in": (2, 3)}))[0].shape == (2, 3)


def test_outputs_whose_names_collide_stay_two() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y.0"]),
        helper.make_node("Abs", ["x"], ["y/0"]),
    ]
    made = model(nodes, {"x": (2,)}, {"y.0": None, "y/0": None})
    outputs = reference.run(load(made), B)
    assert [list(v) for v in outputs.values()] == [[1, 0], [1, 1]]


def test_one_value_that_is_two_outputs_or_an_input() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", ["x"], ["c"]),
    ]
    made = model(nodes, {"x": (2,)}, {"a": None, "b": None, "c": None})
    outputs = reference.run(load(made), B)
    assert {n: list(v) for n, v in outputs.items()} == {"a": [1, 0], "b": [1, 0], "c": [1, -1]}


def test_external_data(tmp_path: Path) -> None:
    big = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = model(nodes, {"x": (1, 3)}, {"y": None}, {"w": big})
    path = tmp_path / "model.onnx"
    onnx.save(made, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size >= big.nbytes
    np.testing.assert_array_equal(ir.parameters(load(path))["w"].value, big)
    (tmp_path / "weights.bin").unlink()
    sentence = refused(path, ModelFormatError)
    assert sentence.startswith(f"{path} keeps weights in another file, which cannot be read (")
    assert "weights.bin" in sentence
    assert sentence.endswith("); expected it beside the model: copy both files.")


@pytest.mark.parametrize(
    ("operator", "sentence"),
    [
        ("If", "If (node pick)"),
        ("LSTM", "LSTM (node pick)"),
        ("NoSuchThing", "NoSuchThing (node pick)"),
        ("QLinearWhere", "QLinearWhere (node pick)"),
    ],
)
def test_operators_that_no_frontend_takes(operator: str, sentence: str) -> None:
    made = model([helper.make_node(operator, ["x"], ["y"], name="pick")], {"x": (1,)}, {"y": None})
    assert refused(made) == (
        f"No frontend takes the ONNX operator {sentence}; expected operators of TVM's importer "
        "without control flow: export the network without it."
    )


def test_an_operator_with_too_few_inputs() -> None:
    made = model(
        [helper.make_node("QLinearConv", ["x"], ["y"], name="pick")], {"x": (1,)}, {"y": None}
    )
    assert refused(made, ModelFormatError) == (
        "QLinearConv (node pick) has 1 inputs; expected at least 8: export the network again."
    )


def test_a_nameless_node_is_named_by_its_output_and_many_are_counted() -> None:
    nodes = [helper.make_node("Bad", [f"x{i}" if i else "x"], [f"x{i + 1}"]) for i in range(5)]
    made = model(nodes, {"x": (1,)}, {"x5": None})
    assert refused(made).startswith(
        "No frontend takes the ONNX operator Bad (node x1), Bad (node x2), Bad (node x3) and 2 "
        "more; expected"
    )


def test_an_operator_of_another_domain_is_not_taken_for_its_namesake() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="n", domain="com.example")
    made = model([node], {"x": (1,)}, {"y": None})
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    assert "com.example.Relu (node n)" in refused(made)


def test_an_invalid_graph() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = model(nodes, {"x": (1, 4)}, {"y": None}, {"w": W})
    assert refused(made, UnsupportedError).startswith(
        "TVM's ONNX importer cannot take this model: "
    )


def test_nan_weights() -> None:
    spoilt = W.copy()
    spoilt[0] = np.nan
    nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])]
    made = model(nodes, {"x": (1, 3)}, {"y": None}, {"fc.weight": spoilt})
    assert refused(made, ModelFormatError) == (
        "The parameter fc_weight holds 2 NaN of 6 values; expected numbers: train or export the "
        "network again."
    )


def test_an_output_that_is_a_shape() -> None:
    made = model([helper.make_node("Shape", ["x"], ["y"])], {"x": (2, 3)}, {})
    made.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT64, [2]))
    sentence = refused(made)
    assert sentence.startswith("y is ") and "expected a tensor" in sentence


def test_same_padding_with_dilation_by_its_definition() -> None:
    x = np.random.default_rng(1).standard_normal((1, 2, 9, 7)).astype(np.float32)
    w = np.random.default_rng(2).standard_normal((3, 2, 2, 4)).astype(np.float32)

    def conv(**options: Any) -> onnx.ModelProto:
        node = helper.make_node("Conv", ["x", "w"], ["y"], dilations=[3, 2], **options)
        return model([node], {"x": x.shape}, {"y": None}, {"w": w})

    # The spans are 4 and 7, so 3 and 6 elements are added; the odd one goes to the end or front.
    for mode, pads in (("SAME_UPPER", [1, 3, 2, 3]), ("SAME_LOWER", [2, 3, 1, 3])):
        (y,) = reference.run(load(conv(auto_pad=mode)), x).values()
        (expected,) = judge_onnx(conv(pads=pads).SerializeToString(), [x])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_an_output_shape_with_a_fed_kernel() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], output_shape=[4, 5], name="up")
    made = model([node], {"x": (1, 2, 3, 3), "w": (2, 2, 3, 3)}, {"y": None})
    assert output_specs(load(made))[0].shape == (1, 2, 4, 5)
