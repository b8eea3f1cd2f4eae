"""Parameters, weights and the rewriting of a canonical module."""

# TVMScript's annotations are calls, and a decorated class is a module: no type checker knows.
# mypy: disable-error-code="valid-type,no-untyped-def,index,misc,attr-defined,name-defined,type-arg"

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_compress import edge, ir
from tvm_compress.errors import PassError
from tvm_compress.ops import codebook
from tvm_compress.targets import reference

CODES = np.asarray([[0, 1], [1, 2], [0, 2]], np.uint8)
TABLE = np.asarray([0, 1, -1], np.float32)


def network() -> tvm.IRModule:
    """x(2,4) -> matmul w1(4,3) -> add b -> matmul shared w2(3,2); w0(2,2) from the left."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w1 = builder.emit(edge.constant(np.ones((4, 3), np.float32)), "w1")
            b = builder.emit(edge.constant(np.ones(3, np.float32)), "b")
            w2 = builder.emit(codebook(edge.constant(CODES), edge.constant(TABLE)), "w2")
            w0 = builder.emit(edge.constant(np.eye(2, dtype=np.float32)), "w0")
            y = builder.emit(relax.op.add(builder.emit(relax.op.matmul(x, w1), "y"), b), "z")
            y = builder.emit(relax.op.matmul(y, w2), "u")
            y = builder.emit(relax.op.matmul(w0, y), "v")
            y = builder.emit_output(y, "out")
        builder.emit_func_output(y)
    return builder.get()


def test_parameters_by_name() -> None:
    found = ir.parameters(network())
    assert list(found) == ["w1", "b", "w2", "w0"]
    assert [p.shared for p in found.values()] == [False, False, True, False]
    np.testing.assert_array_equal(found["w2"].value, TABLE[CODES])
    np.testing.assert_array_equal(found["w2"].codes, CODES)
    np.testing.assert_array_equal(found["w2"].centroids, TABLE)
    assert found["b"].codes is None and found["b"].centroids is None


def test_the_value_of_a_shared_weight_is_made_when_it_is_asked_for() -> None:
    made = network()
    shared = ir.parameters(made)["w2"]
    ir.weights(made)
    assert shared.dense is None and shared.shape == (3, 2)
    assert "value" not in vars(shared)
    assert shared.value is shared.value
    np.testing.assert_array_equal(shared.value, [[0, 1], [1, -1], [0, -1]])
    dense = ir.parameters(made)["w1"]
    assert dense.value is dense.dense and dense.shape == (4, 3)


def test_weights_are_what_is_multiplied() -> None:
    found = ir.weights(network())
    assert {n: (w.operator, w.output_axis) for n, w in found.items()} == {
        "w1": ("relax.matmul", 1),
        "w2": ("relax.matmul", 1),
        "w0": ("relax.matmul", 0),
    }


def test_weights_of_convolutions() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 8, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(edge.constant(np.ones((4, 6, 3, 3), np.float32)), "up")
            y = builder.emit(relax.op.nn.conv2d_transpose(x, w))
            v = builder.emit(edge.constant(np.ones((3, 3, 6, 2), np.float32)), "down")
            y = builder.emit(relax.op.nn.conv2d(y, v, kernel_layout="HWIO"))
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    axes = {n: w.output_axis for n, w in ir.weights(builder.get()).items()}
    assert axes == {"up": 1, "down": 3}


def test_replace_by_name_and_by_function() -> None:
    new = np.full((4, 3), 2, np.float32)
    expected = {"w1": new, "b": np.ones(3), "w2": TABLE[CODES], "w0": np.eye(2)}
    by_name = ir.replace_parameters(network(), {"w1": edge.constant(new)})

    def change(parameter: ir.Parameter) -> Any:
        return edge.constant(new) if parameter.name == "w1" else None

    for mod in (by_name, ir.replace_parameters(network(), change)):
        found = ir.parameters(mod)
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name].value, value)
        assert found["w2"].shared
    tvm.ir.assert_structural_equal(by_name, ir.replace_parameters(network(), change))


def test_rewriting_nothing_keeps_names_outputs_and_numbers() -> None:
    mod = network()
    again = ir.Rewriter(mod).run()
    assert [edge.var_name(b.var) for b in ir.bindings(again["main"])] == [
        "w1",
        "y",
        "b",
        "z",
        "w2",
        "u",
        "w0",
        "v",
        "out",
    ]
    tvm.ir.assert_structural_equal(ir.Rewriter(again).run(), again)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(reference.run(again, x)["out"], reference.run(mod, x)["out"])


def test_rewriting_drops_what_nothing_uses() -> None:
    class Shorten(ir.Rewriter):
        def rewrite(self, name: str, value: Any) -> Any:
            return value.args[0] if name == "z" else value

    again = Shorten(network()).run()
    assert list(ir.parameters(again)) == ["w1", "w2", "w0"]
    assert "b" not in [edge.var_name(b.var) for b in ir.bindings(again["main"])]


def test_other_functions_stay_while_they_are_used() -> None:
    @I.ir_module
    class Network:
        @R.function(private=True)
        def helper(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            return R.add(x, x)

        @R.function(private=True)
        def unused(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            return x

        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            cls = Network
            with R.dataflow():
                y: R.Tensor((2,), "float32") = cls.helper(x)
                R.output(y)
            return y

    again = ir.Rewriter(Network).run()
    assert sorted(v.name_hint for v in again.get_global_vars()) == ["helper", "main"]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("block.0/conv:weight", "block_0_conv_weight"),
        ("0.weight", "p0_weight"),
        ("été", "t"),
        ("::", "p"),
        ("", "p"),
        ("__a__", "a"),
        ("a b\tc", "a_b_c"),
    ],
)
def test_identifiers(name: str, clean: str) -> None:
    assert ir.identifier(name) == clean
    assert clean.isidentifier() and clean.isascii()


def test_refuses_what_is_no_module() -> None:
    with pytest.raises(PassError) as caught:
        ir.parameters("model.onnx")
    assert str(caught.value) == "A str was given; expected an IRModule: use load() first."


def test_refuses_a_module_without_main() -> None:
    with pytest.raises(PassError) as caught:
        ir.main_function(tvm.IRModule())
    assert str(caught.value) == (
        "The module has no function main (it has none); rename the entry function to main."
    )


def test_refuses_a_run_time_check() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor("float32", ndim=2)) -> R.Tensor((2, 3), "float32"):
            y = R.match_cast(x, R.Tensor((2, 3), "float32"))
            return y

    with pytest.raises(PassError) as caught:
        list(ir.bindings(Network["main"]))
    assert str(caught.value) == (
        "The binding of y is a MatchCast; expected plain bindings: remove run-time shape checks "
        "from the module."
    )


def test_refuses_control_flow_and_inner_functions() -> None:
    @I.ir_module
    class Branch:
        @R.function
        def main(x: R.Tensor((2,), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(
            (2,), "float32"
        ):
            if c:  # noqa: SIM108 - this is TVMScript
                y = R.add(x, x)
            else:
                y = R.multiply(x, x)
            return y

    @I.ir_module
    class Inner:
        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            @R.function
            def twice(y: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
                return R.add(y, y)

            z = twice(x)
            return z

    for mod, name, kind in ((Branch, "y", "If"), (Inner, "twice", "Function")):
        with pytest.raises(PassError) as caught:
            list(ir.bindings(mod["main"]))
        assert str(caught.value) == (
            f"{name} is bound to a {kind}; expected straight-line code: export the network without "
            "control flow."
        )


def branches() -> tvm.IRModule:
    """Describe y = ((x a + bias) b + (x c)) d on one path and x e on another; three outputs."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))

    def weight(name: str) -> Any:
        return builder.emit(edge.constant(np.ones((3, 3), np.float32)), name)

    with builder.function("main", [x]):
        with builder.dataflow():
            bias = builder.emit(edge.constant(np.ones(3, np.float32)), "bias")
            shift = builder.emit(edge.constant(np.ones(3, np.float32)), "shift")
            moved = builder.emit(relax.op.add(x, shift))  # no bias: it is added to an input
            y = builder.emit(relax.op.matmul(moved, weight("a")))
            y = builder.emit(relax.op.nn.relu(builder.emit(relax.op.add(bias, y))))
            y = builder.emit(relax.op.matmul(y, weight("b")))
            z = builder.emit(relax.op.matmul(x, weight("c")))
            y = builder.emit(relax.op.matmul(builder.emit(relax.op.add(y, z)), weight("d")))
            first = builder.emit_output(builder.emit(relax.op.nn.relu(y)), "first")
            second = builder.emit_output(builder.emit(relax.op.matmul(x, weight("e"))), "second")
            third = builder.emit_output(builder.emit(relax.op.nn.relu(z)), "third")
        builder.emit_func_output(relax.Tuple([first, second, third]))
    return builder.get()


def test_first_and_last_weights_by_the_graph() -> None:
    assert ir.first_weights(branches()) == {"a", "c", "e"}
    assert ir.last_weights(branches()) == {"d", "e", "c"}
    assert ir.first_weights(network()) == {"w1"}
    assert ir.last_weights(network()) == {"w0"}


def test_biases_are_added_to_sums_of_weights() -> None:
    assert ir.biases(branches()) == {"bias"}
    assert ir.biases(network()) == {"b"}


def test_how_many_codebooks_a_parameter_has() -> None:
    parts = {n: p.parts for n, p in ir.parameters(network()).items()}
    assert parts == {"w1": 0, "b": 0, "w2": 1, "w0": 0}
    table = np.stack([TABLE, TABLE * 2])[None]
    mod = ir.replace_parameters(
        network(), {"w2": codebook(edge.constant(CODES), edge.constant(table))}
    )
    found = ir.parameters(mod)["w2"]
    assert found.parts == 2
    np.testing.assert_array_equal(found.value, TABLE[CODES] * [1, 2])
