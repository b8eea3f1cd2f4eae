"""The parts of TVM that may change: each test names what broke when another release is tried."""

# TVMScript's annotations are calls, and a decorated class is a module: no type checker knows.
# mypy: disable-error-code="valid-type,no-untyped-def,index,misc,attr-defined,name-defined,type-arg"

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_compress import edge, errors


@I.ir_module
class Network:
    @R.function
    def main(x: R.Tensor((1, 2, 5, 5), "float32"), w: R.Tensor((4, 1, 3, 3), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.nn.conv2d(x, w, strides=[2, 1], padding=[1, 0, 1, 0], groups=2)
            z = R.split(y, 2, axis=1)
            a = z[0]
            b = R.add(a, a)
            R.output(a, b)
        return (a, b)


def call() -> tvm.ir.Expr:
    return Network["main"].body.blocks[0].bindings[0].value


def test_names_and_types() -> None:
    conv = call()
    assert edge.op_name(conv) == "relax.nn.conv2d"
    assert edge.op_name(conv.args[0]) is None
    assert edge.var_name(conv.args[0]) == "x"
    assert edge.dtype_of(conv) == edge.dtype_of(conv.ty) == "float32"
    assert edge.static_shape(conv) == edge.static_shape(conv.ty) == (1, 4, 3, 3)
    assert edge.is_tensor(conv) and not edge.is_tensor(relax.ShapeExpr([1, 2]))
    n = tvm.tirx.Var("n", "int64")
    assert edge.static_shape(relax.TensorType((n, 2), "float32")) is None
    assert edge.static_shape(relax.TensorType(dtype="float32", ndim=2)) is None


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "bool"]
)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 0)])
def test_constants_keep_shape_dtype_and_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    value = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    made = edge.constant(value)
    assert isinstance(made, edge.Constant)
    back = edge.constant_value(made)
    assert (back.dtype, back.shape) == (value.dtype, shape)
    np.testing.assert_array_equal(back, value)
    # A view of the IR's memory, which nobody may write.
    assert not back.flags.writeable
    assert np.shares_memory(back, edge.constant_value(made)) == bool(value.size)


def test_a_view_keeps_its_constant_alive() -> None:
    views = [edge.constant_value(edge.constant(np.full(1000, i, np.int32))) for i in range(50)]
    assert [set(view.tolist()) for view in views] == [{i} for i in range(50)]


def test_a_constant_of_a_dtype_that_numpy_lacks_is_copied() -> None:
    half = np.asarray([1, -2], np.float32).astype(ml_dtypes.bfloat16)
    back = edge.constant_value(relax.const(half, "bfloat16"))
    assert back.dtype == ml_dtypes.bfloat16
    assert back.astype(np.float32).tolist() == [1, -2]


def test_a_transposed_constant_is_laid_out_anew() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(edge.constant_value(edge.constant(value)), value)


def test_substitute_reaches_into_calls_tuples_and_items() -> None:
    x, y = (relax.Var(n, relax.TensorType((2,), "float32")) for n in "xy")
    pair = tvm.ir.Tuple([x, relax.op.add(x, y)])
    made = edge.substitute(pair, {x: y})
    assert list(edge.variables_in(made)) == [y, y, y]
    assert list(edge.variables_in(pair)) == [x, x, y]
    both = relax.Var("t", relax.TupleType([x.ty, x.ty]))
    item = edge.substitute(tvm.ir.TupleGetItem(both, 1), {both: pair})
    assert item.index == 1 and item.tuple_value.same_as(pair)
    assert edge.substitute(edge.constant(np.ones(2, np.float32)), {x: y}).value.numpy().sum() == 2


def test_calls_keep_their_attributes() -> None:
    conv = call()
    w = relax.Var("v", relax.TensorType((3, 3, 1, 4), "float32"))
    made = relax.BlockBuilder().normalize(edge.convolution(conv, conv.args[0], w, "HWIO"))
    assert edge.static_shape(made) == edge.static_shape(conv)
    for field in ("strides", "padding", "dilation"):
        assert list(getattr(made.attrs, field)) == list(getattr(conv.attrs, field))
    assert made.attrs.groups == 2 and made.attrs.kernel_layout == "HWIO"
    other = relax.Var("u", conv.args[0].ty)
    again = edge.with_args(conv, [other, conv.args[1]])
    assert again.attrs.same_as(conv.attrs) and again.args[0].same_as(other)


def test_uses_count_the_result_too() -> None:
    counts = {edge.var_name(v): n for v, n in edge.use_counts(Network["main"]).items()}
    assert counts == {"x": 1, "w": 1, "y": 1, "z": 1, "a": 3, "b": 1}


def test_outputs() -> None:
    names, is_tuple = edge.outputs_of(Network["main"])
    assert [name for name, _ in names] == ["a", "b"] and is_tuple


def test_straight_line_keeps_attributes_and_names() -> None:
    function = Network["main"]
    bindings = list(function.body.blocks[0].bindings)
    outputs, _ = edge.outputs_of(function)
    made = edge.straight_line(
        function, function.params, bindings, [(f"{n}_new", v) for n, v in outputs], True
    )
    assert made.attrs["num_input"] == 1
    assert [name for name, _ in edge.outputs_of(made)[0]] == ["a_new", "b_new"]
    relax.analysis.well_formed(tvm.IRModule({"main": made}))


def test_tensor_fields() -> None:
    x = relax.TensorType((2,), "float32")
    assert edge.tensor_fields(relax.TupleType([x, relax.TupleType([x])])) == [x, x]
    assert edge.tensor_fields(relax.ShapeType(ndim=1)) == []


def test_call_op_builds_any_registered_operator() -> None:
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    made = relax.BlockBuilder().normalize(edge.call_op("relax.nn.relu", [x]))
    assert edge.op_name(made) == "relax.nn.relu" and edge.static_shape(made) == (2,)


def test_the_importer_knows_its_operators() -> None:
    assert all(map(edge.onnx_importer_takes, ("Conv", "Gemm", "Constant", "QuantizeLinear")))
    assert not any(map(edge.onnx_importer_takes, ("LSTM", "QLinearConv", "NoSuchOperator")))


def test_converters_go_before_those_of_the_onnx_importer() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]))

    def operators(mod: tvm.IRModule) -> list[str | None]:
        return [edge.op_name(b.value) for block in mod["main"].body.blocks for b in block.bindings]

    converters = {"Relu": lambda bb, inputs, attrs: relax.op.negative(inputs[0])}
    assert "relax.negative" in operators(edge.import_onnx(model, converters)[0])
    assert "relax.nn.relu" in operators(edge.import_onnx(model)[0])


def test_importers_emit_operators_only_within_the_context() -> None:
    original = relax.BlockBuilder.emit_te
    with pytest.raises(KeyError), edge.relax_operators_for_te():
        assert relax.BlockBuilder.emit_te is not original
        raise KeyError
    assert relax.BlockBuilder.emit_te is original


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_keep_their_class_on_the_way_through_tvm(name: str) -> None:
    cls = getattr(errors, name)

    def transform(mod: tvm.IRModule, context: object) -> tvm.IRModule:
        raise cls("What, expected, next.")

    with pytest.raises(cls) as caught:
        tvm.transform.module_pass(transform, opt_level=0)(Network)
    assert type(caught.value) is cls and str(caught.value) == "What, expected, next."
