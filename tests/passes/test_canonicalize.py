"""``canonicalize``: each rule alone, the whole on random networks, and the numbers throughout."""

# TVMScript's annotations are calls, and a decorated class is a module: no type checker knows.
# mypy: disable-error-code="valid-type,no-untyped-def,index,misc,attr-defined,name-defined,type-arg"

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from benchmarks.frontends import judge_onnx
from tvm_compress import edge, ir
from tvm_compress.frontends import load
from tvm_compress.ops import codebook
from tvm_compress.passes import Canonicalize
from tvm_compress.targets import reference
from tvm_compress.tensors import input_specs

Array = NDArray[Any]
OP = relax.op
Emit = Callable[..., Any]


def array(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def build(
    shape: tuple[int, ...], body: Callable[[Emit, Any], Any], dtype: str = "float32"
) -> tvm.IRModule:
    """Make a module of one input ``x``; ``body(emit, x)`` binds by ``emit(value, name)``."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))

    def emit(value: Any, name: str = "lv") -> Any:
        value = edge.constant(value) if isinstance(value, np.ndarray) else value
        return builder.emit(value, name)

    with builder.function("main", [x]):
        with builder.dataflow():
            results = body(emit, x)
            many = isinstance(results, list)
            outputs = [
                builder.emit_output(r, f"y{i}")
                for i, r in enumerate(results if many else [results])
            ]
        builder.emit_func_output(outputs if many else outputs[0])
    return builder.get()


def values_of(mod: tvm.IRModule) -> list[str]:
    """Give what is computed: operators in order, aliases and parameters left out."""
    names = []
    for binding in ir.bindings(mod["main"]):
        operator = edge.op_name(binding.value)
        if operator and operator != "tvm_compress.codebook":
            names.append(operator.removeprefix("relax."))
    return names


def same_numbers(before: tvm.IRModule, after: tvm.IRModule, tolerance: float = 1e-5) -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        inputs: dict[str, Array] = {}
        for spec in input_specs(before):
            draw = rng.standard_normal(spec.shape) * 3
            inputs[spec.name] = draw.astype(spec.dtype)
        expected = list(reference.run(before, inputs).values())
        given_y = list(reference.run(after, inputs).values())
        for a, b in zip(given_y, expected, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            scale = float(np.abs(b).max(initial=0)) or 1.0
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def canonical(mod: tvm.IRModule, operators: list[str]) -> tvm.IRModule:
    """Canonicalise, and hold operators, numbers, well-formedness and idempotence."""
    after = Canonicalize()(mod)
    assert values_of(after) == operators
    relax.analysis.well_formed(after)
    same_numbers(mod, after)
    tvm.ir.assert_structural_equal(Canonicalize()(after), after)
    return after


# -- the rules, one by one -------------------------------------------------------------------------


def test_ways_to_reshape_become_one() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 1, 3), "float32")):
            with R.dataflow():
                a = R.squeeze(x, axis=[1])
                b = R.expand_dims(a, axis=[0])
                c = R.flatten(b)
                d = R.reshape(c, R.shape([3, 2]))
                e = R.nn.batch_flatten(d)
                R.output(e)
            return e

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 1, 3), "float32")) -> R.Tensor((3, 2), "float32"):
            with R.dataflow():
                d = R.reshape(x, R.shape([3, 2]))
                e = d
                R.output(e)
            return e

    tvm.ir.assert_structural_equal(Canonicalize()(Before), Expected)


def test_nothing_is_left_of_what_changes_nothing() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.reshape(x, R.shape([2, 3]))
                b = R.broadcast_to(a, R.shape([2, 3]))
                c = R.astype(b, "float32")
                d = R.concat((c,), axis=0)
                e = R.permute_dims(d, axes=[0, 1])
                f = R.permute_dims(R.permute_dims(e))
                g = R.reshape(R.reshape(f, R.shape([6])), R.shape([2, 3]))
                R.output(g)
            return g

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 3), "float32"):
            with R.dataflow():
                g = x
                R.output(g)
            return g

    tvm.ir.assert_structural_equal(Canonicalize()(Before), Expected)


def test_transposes_merge_and_become_reshapes_where_nothing_moves() -> None:
    mod = build(
        (2, 3, 4), lambda e, x: e(OP.permute_dims(e(OP.permute_dims(x, [1, 2, 0])), [2, 1, 0]))
    )
    after = canonical(mod, ["permute_dims"])
    (call,) = [b.value for b in ir.bindings(after["main"]) if isinstance(b.value, tvm.ir.Call)]
    assert [int(a) for a in call.attrs.axes] == [0, 2, 1]
    canonical(build((2, 1, 4), lambda e, x: e(OP.permute_dims(x, [1, 0, 2]))), ["reshape"])
    canonical(build((2, 1, 4), lambda e, x: e(OP.permute_dims(x))), ["permute_dims"])
    canonical(build((1, 4, 1, 1), lambda e, x: e(OP.permute_dims(x))), ["reshape"])


def scalar(value: float) -> Any:
    return relax.const(value, "float32")


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        (lambda e, x: e(OP.maximum(x, scalar(0))), ["nn.relu"]),
        (lambda e, x: e(OP.maximum(scalar(0), x)), ["nn.relu"]),
        (lambda e, x: e(OP.maximum(x, scalar(1))), ["maximum"]),
        (lambda e, x: e(OP.minimum(e(OP.maximum(x, scalar(0))), scalar(6))), ["clip"]),
        (lambda e, x: e(OP.minimum(e(OP.maximum(x, scalar(-1))), scalar(1))), ["clip"]),
        (lambda e, x: e(OP.minimum(e(OP.maximum(x, scalar(2))), scalar(1))), ["clip"]),
        (lambda e, x: e(OP.minimum(e(OP.nn.relu(x)), scalar(6))), ["clip"]),
        (lambda e, x: e(OP.minimum(x, scalar(6))), ["minimum"]),
        (lambda e, x: e(OP.clip(x, 0, float("inf"))), ["nn.relu"]),
        (lambda e, x: e(OP.clip(x, 0, 6)), ["clip"]),
        (lambda e, x: e(OP.clip(x, -1.0, float("inf"))), ["clip"]),
        (
            lambda e, x: e(OP.minimum(e(OP.maximum(x, e(array(3)))), scalar(6))),
            ["maximum", "minimum"],
        ),
    ],
)
def test_bounds(body: Any, operators: list[str]) -> None:
    canonical(build((2, 3), body), operators)


def test_bounds_of_floats_are_floats() -> None:
    after = canonical(build((2, 3), lambda e, x: e(OP.clip(x, 0, 6))), ["clip"])
    (call,) = [b.value for b in ir.bindings(after["main"]) if isinstance(b.value, tvm.ir.Call)]
    assert all(isinstance(bound, tvm.tirx.FloatImm) for bound in call.args[1:])


def test_a_relu_that_is_used_twice_stays() -> None:
    def body(e: Emit, x: Any) -> Any:
        r = e(OP.nn.relu(x))
        return e(OP.add(r, e(OP.minimum(r, scalar(1)))))

    canonical(build((2, 3), body), ["nn.relu", "minimum", "add"])


def test_a_value_that_is_an_output_too_is_not_folded_away() -> None:
    def body(e: Emit, x: Any) -> Any:
        y = e(OP.matmul(x, e(array(3, 4), "w")))
        return [y, e(OP.multiply(y, e(array(4))))]

    canonical(build((2, 3), body), ["matmul", "multiply"])


def test_integers_keep_their_bounds() -> None:
    def body(e: Emit, x: Any) -> Any:
        low = e(OP.maximum(x, relax.const(0, "int32")))
        return e(OP.minimum(low, relax.const(6, "int32")))

    after = canonical(build((2, 3), body, "int32"), ["clip"])
    x = np.asarray([[-3, 0, 3], [6, 7, 99]], np.int32)
    machine = relax.VirtualMachine(tvm.compile(after, "llvm"), tvm.cpu())
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(x)).numpy(), np.clip(x, 0, 6))


def test_constants_go_right() -> None:
    operator: Any
    for operator in (OP.add, OP.multiply):
        after = canonical(
            build((2, 3), lambda e, x, f=operator: e(f(e(array(3), "c"), x))), [operator.__name__]
        )
        (call,) = [b.value for b in ir.bindings(after["main"]) if isinstance(b.value, tvm.ir.Call)]
        assert edge.var_name(call.args[0]) == "x" and edge.var_name(call.args[1]) == "c"
    canonical(build((2, 3), lambda e, x: e(OP.subtract(e(array(3)), x))), ["subtract"])


def test_constant_expressions_are_computed_and_keep_the_name() -> None:
    def body(e: Emit, x: Any) -> Any:
        w = e(OP.permute_dims(e(array(4, 3), "fc.weight")))
        w = e(OP.multiply(w, scalar(2)))
        return e(OP.matmul(x, w))

    after = canonical(build((2, 3), body), ["matmul"])
    named = ir.parameters(after)
    assert list(named) == ["fc_weight"]
    np.testing.assert_array_equal(named["fc_weight"].value, array(4, 3).T * np.float32(2))


def test_a_constant_that_would_grow_is_not_computed() -> None:
    body = lambda e, x: e(OP.add(x, e(OP.broadcast_to(e(array(1, 1)), (200, 200)))))  # noqa: E731
    after = canonical(build((200, 200), body), ["broadcast_to", "add"])
    assert sum(p.value.size for p in ir.parameters(after).values()) == 1


def test_scalars_stay_scalars() -> None:
    body = lambda e, x: e(OP.multiply(x, e(OP.add(scalar(1), scalar(2)))))  # noqa: E731
    after = canonical(build((2, 3), body), ["multiply"])
    (binding,) = [b for b in ir.bindings(after["main"]) if isinstance(b.value, tvm.ir.Call)]
    assert edge.static_shape(binding.value.args[1]) == ()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "operator", "factor"),
    [
        ((2, 3), lambda e, x: OP.matmul(x, e(array(3, 4), "w")), (4,)),
        ((2, 3), lambda e, x: OP.matmul(x, e(array(3, 4), "w")), (1, 4)),
        ((2, 3), lambda e, x: OP.matmul(x, e(array(3, 4), "w")), ()),
        ((5, 2, 3), lambda e, x: OP.matmul(x, e(array(5, 3, 4), "w")), (4,)),
        ((1, 2, 5, 5), lambda e, x: OP.nn.conv2d(x, e(array(4, 2, 3, 3), "w")), (1, 4, 1, 1)),
        ((1, 2, 5, 5), lambda e, x: OP.nn.conv2d(x, e(array(4, 2, 3, 3), "w")), (4, 1, 1)),
        (
            (1, 4, 5, 5),
            lambda e, x: OP.nn.conv2d(x, e(array(4, 1, 3, 3), "w"), groups=4),
            (4, 1, 1),
        ),
        ((1, 2, 9), lambda e, x: OP.nn.conv1d(x, e(array(4, 2, 3), "w")), (4, 1)),
    ],
)
def test_factors_move_into_the_weight(shape: Any, operator: Any, factor: Any, bias: bool) -> None:
    def body(e: Emit, x: Any) -> Any:
        y = e(operator(e, x))
        spread = factor if len(factor) else (1,)
        if bias:
            y = e(OP.add(y, e(array(*spread, seed=1), "b")))
        scale = np.asarray(array(*factor, seed=2), np.float32)
        return e(OP.multiply(y, edge.constant(scale)))

    kind = "matmul" if len(shape) != 4 and shape != (1, 2, 9) else f"nn.conv{len(shape) - 2}d"
    after = canonical(build(shape, body), [kind, "add"] if bias else [kind])
    assert set(ir.parameters(after)) == ({"w", "b"} if bias else {"w"})


@pytest.mark.parametrize(
    ("shape", "operator", "factor"),
    [
        # Along another axis than the channels.
        ((2, 3), lambda e, x: OP.matmul(x, e(array(3, 4))), (2, 1)),
        ((1, 2, 5, 5), lambda e, x: OP.nn.conv2d(x, e(array(3, 2, 3, 3))), (1, 1, 3, 1)),
        ((3, 1, 5, 5), lambda e, x: OP.nn.conv2d(x, e(array(3, 1, 3, 3))), (3, 1, 1, 1)),
        # The one axis of a vector is summed over, though its length is that of the factor.
        ((4, 4), lambda e, x: OP.matmul(x, e(array(4))), (4,)),
        # The factor gives the result one more axis.
        ((2, 3), lambda e, x: OP.matmul(x, e(array(3, 4))), (3, 1, 1)),
    ],
)
def test_factors_that_must_stay(shape: Any, operator: Any, factor: Any) -> None:
    mod = build(shape, lambda e, x: e(OP.multiply(e(operator(e, x)), e(array(*factor, seed=2)))))
    after = Canonicalize()(mod)
    assert values_of(after)[-1] == "multiply"
    same_numbers(mod, after)


def test_a_weight_that_two_products_use_is_scaled_for_one() -> None:
    def body(e: Emit, x: Any) -> Any:
        w = e(array(3, 3), "w")
        y = e(OP.multiply(e(OP.matmul(x, w)), e(array(3, seed=1))))
        return e(OP.matmul(y, w))

    after = canonical(build((2, 3), body), ["matmul", "matmul"])
    assert list(ir.parameters(after)) == ["w_2", "w"]  # in the order of use
    np.testing.assert_array_equal(ir.parameters(after)["w"].value, array(3, 3))


def test_biases_merge() -> None:
    def body(e: Emit, x: Any) -> Any:
        y = e(OP.matmul(x, e(array(3, 4), "w")))
        return e(OP.add(e(OP.add(y, e(array(4, seed=1), "b"))), e(array(4, seed=2), "c")))

    after = canonical(build((2, 3), body), ["matmul", "add"])
    assert set(ir.parameters(after)) == {"w", "b"}
    np.testing.assert_allclose(
        ir.parameters(after)["b"].value, array(4, seed=1) + array(4, seed=2), rtol=1e-6
    )


def test_a_bias_and_a_plane_do_not_merge() -> None:
    def body(e: Emit, x: Any) -> Any:
        y = e(OP.matmul(x, e(array(3, 4), "w")))
        return e(OP.add(e(OP.add(y, e(array(4, seed=1)))), e(array(2, 4, seed=2))))

    canonical(build((2, 3), body), ["matmul", "add", "add"])


@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((1, 5, 5, 2), (3, 3, 2, 4), {"data_layout": "NHWC", "kernel_layout": "HWIO"}),
        ((1, 2, 5, 5), (3, 3, 2, 4), {"kernel_layout": "HWIO"}),
        ((1, 5, 5, 4), (4, 3, 3, 1), {"data_layout": "NHWC", "kernel_layout": "OHWI", "groups": 4}),
        (
            (1, 7, 2),
            (3, 2, 4),
            {"data_layout": "NWC", "kernel_layout": "WIO", "strides": 2, "padding": 1},
        ),
    ],
)
def test_convolution_weights_are_laid_out_in_rows(shape: Any, weight: Any, options: Any) -> None:
    conv = OP.nn.conv1d if len(shape) == 3 else OP.nn.conv2d
    mod = build(shape, lambda e, x: e(conv(x, e(array(*weight), "w"), **options)))
    after = canonical(mod, [f"nn.conv{len(shape) - 2}d"])
    (found,) = ir.weights(after).values()
    assert found.name == "w" and found.output_axis == 0


def statistics(seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal(4) for _ in range(3)] + [rng.uniform(0.1, 2, 4)]
    return [p.astype(np.float32) for p in parts]


def norm(e: Emit, y: Any, **options: Any) -> Any:
    names = ("gamma", "beta", "mean", "var")
    args = [e(a, n) for a, n in zip(statistics(), names, strict=True)]
    return e(e(OP.nn.batch_norm(y, *args, **{"axis": 1, "training": False} | options))[0])


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.1}, {"scale": False}, {"center": False}])
def test_batch_normalisation_moves_into_the_convolution(options: Any) -> None:
    mod = build(
        (1, 2, 5, 5), lambda e, x: norm(e, e(OP.nn.conv2d(x, e(array(4, 2, 3, 3), "w"))), **options)
    )
    after = canonical(mod, ["nn.conv2d", "add"])
    assert set(ir.parameters(after)) == {"w", "beta"}


def test_batch_normalisation_alone_is_a_factor_and_a_shift() -> None:
    canonical(build((1, 4, 3, 3), lambda e, x: norm(e, x)), ["multiply", "add"])


def test_batch_normalisation_in_training_stays() -> None:
    mod = build((2, 4, 3, 3), lambda e, x: norm(e, x, training=True))
    canonical(mod, ["nn.batch_norm"])


def test_dropout_goes() -> None:
    mod = build((2, 3), lambda e, x: e(e(OP.nn.dropout(e(OP.nn.relu(x)), 0.5))[0]))
    assert values_of(Canonicalize()(mod)) == ["nn.relu"]


def test_codes_move_in_place_of_values() -> None:
    codes = np.random.default_rng(0).integers(0, 4, (4, 3)).astype(np.uint8)
    table = np.asarray([0, 1, -2, 0.5], np.float32)

    def body(e: Emit, x: Any) -> Any:
        w = e(codebook(edge.constant(codes), edge.constant(table)), "fc_weight")
        w = e(OP.reshape(e(OP.permute_dims(w)), (3, 2, 2)))
        return e(OP.matmul(x, e(OP.reshape(w, (3, 4)))))

    after = canonical(build((2, 3), body), ["matmul"])
    (parameter,) = ir.parameters(after).values()
    np.testing.assert_array_equal(parameter.codes, codes.T)


def test_an_output_that_is_constant() -> None:
    def body(e: Emit, x: Any) -> Any:
        c = e(array(3), "c")
        return [e(OP.add(c, c)), e(OP.nn.relu(x)), e(scalar(2))]

    mod = build((2, 3), body)
    after = Canonicalize()(mod)
    relax.analysis.well_formed(after)
    same_numbers(mod, after)


# -- whole networks --------------------------------------------------------------------------------


def test_batch_norm_folding_against_onnxruntime() -> None:
    shapes = {"w": (4, 2, 3, 3), "b": (4,), "w2": (4, 1, 3, 3)}
    weights = {name: array(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    for i in (1, 2):
        weights |= dict(zip([f"{n}{i}" for n in ("g", "h", "m", "v")], statistics(i), strict=True))
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "g1", "h1", "m1", "v1"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], group=4, strides=[2, 2]),
        helper.make_node(
            "BatchNormalization", ["c2", "g2", "h2", "m2", "v2"], ["n2"], epsilon=1e-3
        ),
        helper.make_node("Clip", ["n2", "zero", "six"], ["y"]),
    ]
    constants = {**weights, "zero": np.float32(0), "six": np.float32(6)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 2, 7, 7))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 4, 3, 3))],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    model.ir_version = 8
    mod = load(model)
    assert values_of(mod) == ["nn.conv2d", "add", "nn.relu", "nn.conv2d", "add", "clip"]
    assert list(ir.parameters(mod)) == ["w", "b", "w2", "h2"]
    x = array(1, 2, 7, 7, seed=9)
    (expected,) = judge_onnx(model.SerializeToString(), [x])
    np.testing.assert_allclose(reference.run(mod, x)["y"], expected, rtol=1e-5, atol=1e-5)


def test_names_of_nameless_parameters_tell_their_use() -> None:
    def body(e: Emit, x: Any) -> Any:
        y = e(OP.add(e(OP.matmul(x, edge.constant(array(3, 3)))), edge.constant(array(3))))
        y = e(OP.add(e(OP.matmul(y, edge.constant(array(3, 3)))), edge.constant(array(3))))
        return e(OP.subtract(y, edge.constant(array(3))))

    after = Canonicalize()(build((2, 3), body))
    assert list(ir.parameters(after)) == [
        "matmul_weight",
        "matmul_bias",
        "matmul_2_weight",
        "matmul_2_bias",
        "subtract_constant",
    ]


def test_names_are_identifiers_and_unique() -> None:
    def body(e: Emit, x: Any) -> Any:
        y = e(OP.matmul(x, e(array(3, 3), "0.weight")), "layer/0")
        y = e(OP.matmul(y, e(array(3, 3, seed=1), "0/weight")), "layer.0")
        return e(OP.add(y, e(array(3), "y0")))

    mod = build((2, 3), body)
    after = Canonicalize()(mod)
    names = [edge.var_name(b.var) for b in ir.bindings(after["main"])]
    assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)
    assert names[-1] == edge.outputs_of(mod["main"])[0][0][0]
    same_numbers(mod, after)


CHANNELS = 3


def random_network(draw: Any) -> tvm.IRModule:
    """Make a network of a few layers, each a form that importers emit."""
    seeds = iter(range(1, 1000))
    rank = draw(st.sampled_from([2, 4]))
    shape = (2, CHANNELS) if rank == 2 else (1, CHANNELS, 4, 4)
    channel = (CHANNELS,) if rank == 2 else (1, CHANNELS, 1, 1)

    def weight(e: Emit) -> Any:
        if rank == 2:
            w = e(array(CHANNELS, CHANNELS, seed=next(seeds)), "weight")
            return e(OP.permute_dims(w)) if draw(st.booleans()) else w
        return e(array(CHANNELS, CHANNELS, 3, 3, seed=next(seeds)), "weight")

    def layer(e: Emit, x: Any, earlier: list[Any]) -> Any:
        kind = draw(
            st.sampled_from(
                [
                    "product",
                    "bias",
                    "scale",
                    "relu",
                    "clip",
                    "reshape",
                    "transpose",
                    "norm",
                    "join",
                    "swap",
                ]
            )
        )

        def constant() -> Any:
            return e(array(*channel, seed=next(seeds)))

        if kind == "product":
            return e(
                OP.matmul(x, weight(e)) if rank == 2 else OP.nn.conv2d(x, weight(e), padding=1)
            )
        if kind == "bias":
            return e(OP.add(x, constant()))
        if kind == "swap":
            return e(OP.add(constant(), x))
        if kind == "scale":
            return e(OP.multiply(x, constant()))
        if kind == "relu":
            return e(OP.maximum(x, scalar(0)))
        if kind == "clip":
            return e(OP.minimum(e(OP.maximum(x, scalar(-1))), scalar(4)))
        if kind == "reshape":
            return e(OP.reshape(e(OP.flatten(x)), shape))
        if kind == "transpose":
            order = list(range(rank))[::-1]
            return e(OP.permute_dims(e(OP.permute_dims(x, order)), order))
        if kind == "norm":
            args = [np.abs(array(CHANNELS, seed=next(seeds))) + np.float32(0.1) for _ in range(4)]
            made = e(OP.nn.batch_norm(x, *(e(a) for a in args), axis=1, training=False))
            return e(made[0])
        return e(OP.add(x, draw(st.sampled_from(earlier))))

    def body(e: Emit, x: Any) -> Any:
        steps = [x]
        for _ in range(draw(st.integers(1, 7))):
            steps.append(layer(e, steps[-1], steps))
        return [steps[-1], draw(st.sampled_from(steps))] if draw(st.booleans()) else steps[-1]

    return build(shape, body)


@settings(max_examples=60)
@given(st.data())
def test_numbers_and_names_on_random_networks(data: st.DataObject) -> None:
    mod = random_network(data.draw)
    after = Canonicalize()(mod)
    relax.analysis.well_formed(after)
    same_numbers(mod, after)
    tvm.ir.assert_structural_equal(Canonicalize()(after), after)
    outputs: Mapping[str, Any] = dict(edge.outputs_of(mod["main"])[0])
    assert [n for n, _ in edge.outputs_of(after["main"])[0]] == list(outputs)


def quantised_net(axis: int, move: Any, layout: str) -> tvm.IRModule:
    """A convolution whose int8 weight is moved behind its dequantize."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (3, 3, 2, 4)).astype(np.int8)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2, 5, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            scale = edge.constant(np.arange(1, weight.shape[axis] + 1, dtype=np.float32))
            zero = edge.constant(np.zeros((), np.int32))
            w = builder.emit(relax.op.dequantize(edge.constant(weight), scale, zero, axis=axis))
            w = builder.emit(move(w))
            y = builder.emit(relax.op.nn.conv2d(x, w, kernel_layout=layout))
            y = builder.emit_output(y, "y")
        builder.emit_func_output(y)
    return builder.get()


@pytest.mark.parametrize(
    ("axis", "move", "layout", "expected"),
    [
        (3, lambda w: w, "HWIO", 0),
        (2, lambda w: w, "HWIO", 1),
        (3, lambda w: relax.op.permute_dims(w, [3, 2, 0, 1]), "OIHW", 0),
        (
            3,
            lambda w: relax.op.squeeze(relax.op.expand_dims(w, [0]), [0]),
            "HWIO",
            0,
        ),
    ],
)
def test_a_quantised_weight_moves_with_its_scales(
    axis: int, move: Any, layout: str, expected: int
) -> None:
    mod = quantised_net(axis, move, layout)
    canonical = Canonicalize()(mod)
    weight = ir.parameters(canonical)["conv2d_weight"].value
    assert (weight.dtype, weight.shape) == (np.int8, (4, 2, 3, 3))
    (call,) = (
        b.value
        for b in ir.bindings(canonical["main"])
        if edge.op_name(b.value) == "relax.dequantize"
    )
    scale = edge.constant_value(call.args[1])
    np.testing.assert_array_equal(scale, np.arange(1, scale.size + 1))
    assert (int(call.attrs.axis), edge.static_shape(call.args[2])) == (expected, ())
    x = np.random.default_rng(1).standard_normal((1, 2, 5, 5)).astype(np.float32)
    (given,) = reference.run(canonical, x).values()
    (plain,) = reference.run(relax.transform.Normalize()(mod), x).values()
    np.testing.assert_allclose(given, plain, rtol=1e-6)


def test_scales_that_would_not_lie_along_an_axis_stay() -> None:
    """The scales of two axes' product cannot be moved into the integers."""
    weight = np.arange(24, dtype=np.int8).reshape(6, 4)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            scale = edge.constant(np.arange(1, 7, dtype=np.float32))
            zero = edge.constant(np.zeros((), np.int32))
            w = builder.emit(relax.op.dequantize(edge.constant(weight), scale, zero, axis=0))
            w = builder.emit(relax.op.reshape(w, (2, 3, 4)))
            y = builder.emit(relax.op.multiply(w, x))
            y = builder.emit_output(y, "y")
        builder.emit_func_output(y)
    canonical = Canonicalize()(builder.get())
    operators = [edge.op_name(b.value) for b in ir.bindings(canonical["main"])]
    assert "relax.dequantize" in operators
    assert "relax.reshape" in operators
