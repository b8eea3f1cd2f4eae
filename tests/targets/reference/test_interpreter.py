"""The reference interpreter: order of evaluation, dtypes, names and what it refuses."""

# TVMScript's annotations are calls, and a decorated class is a module: no type checker knows.
# mypy: disable-error-code="valid-type,no-untyped-def,index,misc,attr-defined,name-defined,type-arg"

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_compress import edge
from tvm_compress.errors import DataError, UnsupportedError
from tvm_compress.ops import codebook
from tvm_compress.targets.reference import evaluate, run

X = np.asarray([[1, -2, 3]], np.float32)


def test_several_inputs_and_outputs_by_name() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(a: R.Tensor((1, 3), "float32"), b: R.Tensor((1, 3), "float32")):
            with R.dataflow():
                total = R.add(a, b)
                parts = R.split(total, 3, axis=1)
                last = parts[2]
                pair = (total, last)
                difference = R.subtract(pair[0], b)
                R.output(difference, last)
            return (difference, last)

    outputs = run(Network, {"b": X * 2, "a": X})
    assert list(outputs) == ["difference", "last"]
    np.testing.assert_array_equal(outputs["difference"], X)
    np.testing.assert_array_equal(outputs["last"], [[9]])


def test_an_output_that_is_an_input() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor((1, 3), "float32")) -> R.Tensor((1, 3), "float32"):
            return x

    np.testing.assert_array_equal(run(Network, X)["x"], X)


def test_sums_are_rounded_once() -> None:
    """In float32 steps the small terms would vanish beside the large one."""
    terms = np.asarray([[2.0**24, 1, 1, 1, 1, -(2.0**24)]], np.float32)

    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1,), "float32"):
            with R.dataflow():
                y = R.sum(x, axis=[1])
                R.output(y)
            return y

    y = run(Network, terms)["y"]
    assert y.dtype == np.float32 and y.tolist() == [4.0]


def test_a_codebook_is_looked_up() -> None:
    codes, table = np.asarray([[1], [0], [2]], np.uint8), np.asarray([0, 0.5, -1], np.float32)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(codebook(edge.constant(codes), edge.constant(table)), "w")
            y = builder.emit_output(builder.emit(relax.op.matmul(x, w)), "y")
        builder.emit_func_output(y)
    assert run(builder.get(), X)["y"].tolist() == [[1 * 0.5 + 3 * -1]]


def test_inputs_are_checked() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor((1, 3), "float32")) -> R.Tensor((1, 3), "float32"):
            return x

    with pytest.raises(DataError, match=r"The input x has the shape \(3,\); expected \(1, 3\)\."):
        run(Network, X[0])


def test_an_operator_without_meaning_is_named() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor((1, 3), "float32")):
            with R.dataflow():
                order = R.argsort(x)
                R.output(order)
            return order

    with pytest.raises(UnsupportedError) as caught:
        run(Network, X)
    assert str(caught.value) == (
        "reference: relax.argsort (bound to order) has no numpy meaning; expected one of the "
        "operators listed in docs/operators.md."
    )


def test_a_call_of_loops_is_named_by_its_kind() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor((1, 3), "float32")) -> R.Tensor((1, 3), "float32"):
            with R.dataflow():
                y = R.nn.relu(x)
                R.output(y)
            return y

    legal = relax.transform.LegalizeOps()(Network)
    with pytest.raises(
        UnsupportedError, match=r"^reference: relax\.call_tir \(bound to y\) has no"
    ):
        run(legal, X)


def test_evaluate_takes_constants_shapes_and_numbers() -> None:
    assert evaluate(relax.ShapeExpr([1, 2]), {}) == (1, 2)
    assert evaluate(tvm.tirx.IntImm("int64", 3), {}) == 3
    assert evaluate(tvm.tirx.FloatImm("float32", 0.5), {}) == 0.5
    assert evaluate(edge.constant(X), {}).tolist() == X.tolist()
