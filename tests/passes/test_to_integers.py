"""``to-integers``: what stands in the module, its numbers on all targets, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from tvm_compress import edge, ir
from tvm_compress.errors import OptionError, UnsupportedError
from tvm_compress.ops import codebook, quantize_multiplier, requantize
from tvm_compress.passes import Canonicalize, ToIntegers
from tvm_compress.targets import reference

Array = NDArray[Any]
OP = relax.op
RNG = np.random.default_rng(0)


def f32(value: Any) -> Any:
    return edge.constant(np.asarray(value, np.float32))


def i32(value: Any) -> Any:
    return edge.constant(np.asarray(value, np.int32))


def dequantize(x: Any, scale: Any, zero: Any, axis: int = -1) -> Any:
    return OP.dequantize(x, f32(scale), i32(zero), axis=axis)


def quantize(x: Any, scale: Any, zero: Any, dtype: str = "int8") -> Any:
    return OP.quantize(x, f32(scale), i32(zero), axis=-1, out_dtype=dtype)


def net(
    build: Callable[..., Any],
    *inputs: tuple[tuple[int, ...], str],
    rounding: str | None = None,
) -> tvm.IRModule:
    """A canonical module of the inputs ``x0``, ``x1``..., whose result ``build`` gives."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(*ty)) for i, ty in enumerate(inputs)]
    with builder.function("main", params):
        with builder.dataflow():
            y = builder.emit_output(builder.emit(build(*params)), "y")
        builder.emit_func_output(y)
    mod = builder.get()
    if rounding is not None:
        function = mod["main"].with_attr("tvm_compress.rounding", rounding)
        mod.update_func(mod.get_global_var("main"), function)
    return Canonicalize()(mod)


def operators(mod: tvm.IRModule) -> list[str]:
    """The operators in order, without parameters."""
    names = [edge.op_name(binding.value) for binding in ir.bindings(mod["main"])]
    return [name.removeprefix("relax.") for name in names if name]


def floats(mod: tvm.IRModule) -> list[str]:
    return [
        edge.var_name(b.var)
        for b in ir.bindings(mod["main"])
        if any("float" in edge.dtype_of(ty) for ty in edge.tensor_fields(b.var.ty))
    ]


WEIGHT = RNG.integers(-127, 128, (4, 2, 3, 3)).astype(np.int8)
SCALES = RNG.uniform(0.005, 0.02, 4).astype(np.float32)
BIAS = RNG.integers(-500, 500, 4).astype(np.int32)
X = (1, 2, 5, 5), "int8"


def convolution(x: Any, *, bias: bool = True, weight: Any = None, **options: Any) -> Any:
    held = edge.constant(WEIGHT) if weight is None else weight
    w = dequantize(held, SCALES, 0, axis=0)
    y = OP.nn.conv2d(dequantize(x, 0.05, 7), w, padding=1, **options)
    if bias:
        b = dequantize(i32(BIAS), SCALES * np.float32(0.05), 0, axis=0)
        y = OP.add(y, OP.reshape(b, (1, 4, 1, 1)))
    return y


def test_what_becomes_of_a_convolution() -> None:
    mod = net(lambda x: quantize(OP.nn.relu(convolution(x)), 0.1, -20), X)
    builder = relax.BlockBuilder()
    x = relax.Var("x0", relax.TensorType(*X))
    with builder.function("main", [x]):
        with builder.dataflow():
            p = builder.emit(OP.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], pad_value=7.0), "conv2d_padded")
            w = builder.emit(edge.constant(WEIGHT), "conv2d_weight")
            y = builder.emit(OP.nn.conv2d(p, w, out_dtype="int32"), "conv2d")
            folded = BIAS - 7 * WEIGHT.astype(np.int32).sum((1, 2, 3))
            b = builder.emit(i32(folded.reshape(4, 1, 1)), "conv2d_bias")
            y = builder.emit(OP.add(y, b), "add")
            real = np.float64(np.float32(0.05)) * SCALES.astype(np.float64)
            numbers = quantize_multiplier(real / np.float64(np.float32(0.1)), "single")
            y = builder.emit(requantize(y, *numbers, axis=1, zero_point=-20, low=-20), "quantize")
            y = builder.emit_output(y, "y")
        builder.emit_func_output(y)
    expected = ir.Rewriter(builder.get()).run()
    tvm.ir.assert_structural_equal(ToIntegers()(mod), expected, map_free_vars=True)


def test_it_is_idempotent_and_stands_beside_canonicalize() -> None:
    mod = net(
        lambda x: quantize(OP.nn.softmax(dequantize(x, 0.1, 3)), 1 / 256, -128), ((2, 9), "int8")
    )
    once = ToIntegers()(mod)
    tvm.ir.assert_structural_equal(ToIntegers()(Canonicalize()(once)), once)
    assert operators(once) == ["tvm_compress.softmax".removeprefix("relax.")]


def test_a_float_module_comes_back() -> None:
    mod = net(OP.nn.relu, ((2, 3), "float32"))
    assert ToIntegers().apply(mod).same_as(mod)


# Each: what computes y of x0 (and x1), and the scale of y. Inputs have scales 0.04 and 0.07.
CASES: dict[str, tuple[Callable[..., Any], float, int]] = {
    "add": (OP.add, 0.09, 1),
    "subtract": (OP.subtract, 0.11, 1),
    "multiply": (OP.multiply, 0.2, 1),
    "maximum": (OP.maximum, 0.08, 1),
    "concat": (lambda a, b: OP.concat([a, b], 1), 0.08, 1),
    "matmul": (lambda a, b: OP.matmul(a, OP.permute_dims(b, [0, 1, 3, 2])), 0.3, 1),
    "relu": (lambda a, b: OP.nn.relu(a), 0.03, 1),
    "clip": (lambda a, b: OP.clip(a, -1.0, 2.0), 0.03, 1),
    "requantize": (lambda a, b: a, 0.03, 1),
    "sigmoid": (lambda a, b: OP.sigmoid(a), 1 / 256, 1),
    "hard swish": (
        lambda a, b: OP.multiply(a, OP.divide(OP.clip(OP.add(a, f32(3.0)), 0.0, 6.0), f32(6.0))),
        0.03,
        1,
    ),
    "average": (lambda a, b: OP.nn.avg_pool2d(a, (3, 3), (2, 2), (1, 1)), 0.03, 1),
    "counted average": (
        lambda a, b: OP.nn.avg_pool2d(a, (3, 3), (2, 2), (1, 1), count_include_pad=True),
        0.03,
        1,
    ),
    "ceiled average": (
        lambda a, b: OP.nn.avg_pool2d(a, (2, 2), (2, 2), ceil_mode=True),
        0.04,
        1,
    ),
    "global average": (lambda a, b: OP.nn.adaptive_avg_pool2d(a, (1, 1)), 0.02, 1),
    "mean": (lambda a, b: OP.mean(a, [2, 3]), 0.02, 1),
    "sum": (lambda a, b: OP.sum(a, [1], keepdims=True), 0.09, 1),
    "softmax": (lambda a, b: OP.nn.softmax(a, 1), 1 / 256, 1),
    "softmax of another scale": (lambda a, b: OP.nn.softmax(a, 1), 0.006, 1),
    "max pool behind an add": (lambda a, b: OP.nn.max_pool2d(OP.add(a, b), (2, 2)), 0.09, 1),
    "reshape behind an add": (lambda a, b: OP.squeeze(OP.nn.relu(OP.add(a, b)), [0]), 0.09, 1),
    "moves": (
        lambda a, b: OP.nn.pad(
            OP.permute_dims(OP.nn.relu(a), [0, 2, 3, 1]), [0, 0, 1, 0, 0, 2, 0, 0]
        ),
        0.04,
        0,
    ),
    "linear resize": (
        lambda a, b: OP.image.resize2d(a, (9, 12), layout="NCHW", method="linear"),
        0.04,
        1,
    ),
    "nearest resize": (
        lambda a, b: OP.image.resize2d(
            a,
            (10, 12),
            layout="NCHW",
            method="nearest_neighbor",
            coordinate_transformation_mode="asymmetric",
        ),
        0.04,
        0,
    ),
    "split": (lambda a, b: OP.split(a, 2, 1)[1], 0.04, 0),
}
PAIR = (((1, 4, 5, 6), "int8"), ((1, 4, 5, 6), "int8"))


@pytest.mark.parametrize("rounding", ["single", "double"])
@pytest.mark.parametrize("name", CASES)
def test_operators(name: str, rounding: str) -> None:
    """In integers, the same in C, and at most a step beside the float meaning of the QDQ form."""
    build, scale, steps = CASES[name]

    def made(a: Any, b: Any) -> Any:
        if name in ("nearest resize", "split", "moves"):
            return quantize(build(dequantize(a, 0.04, 5), dequantize(b, 0.07, -9)), scale, 5)
        return quantize(build(dequantize(a, 0.04, 5), dequantize(b, 0.07, -9)), scale, -11)

    mod = net(made, *PAIR, rounding="double" if rounding == "double" else None)
    integers = ToIntegers()(mod)
    assert floats(integers) == []
    rng = np.random.default_rng(3)
    x = {f"x{i}": rng.integers(-128, 128, (20, 4, 5, 6)).astype(np.int8) for i in range(2)}
    (given,) = reference.run(integers, x).values()
    (real,) = reference.run(mod, x).values()
    assert np.abs(given.astype(int) - real.astype(int)).max() <= steps
    assert given.std() > 3  # it is not all clamped
    (c,) = tc.build(mod, target="c").run(x).values()
    np.testing.assert_array_equal(c, given)


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(-128, 127),
    st.floats(0.02, 2.0),
    st.booleans(),
    st.sampled_from(["NCHW", "NHWC"]),
    st.integers(0, 2**32 - 1),
)
def test_convolutions_equal_exact_arithmetic(
    groups: int, zero: int, out: float, int16: bool, layout: str, seed: int
) -> None:
    """Rounded once: the nearest integer of the exact sum, which numpy's integers give."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 256, (2 * groups, 2, 3, 2)).astype(np.uint8)
    if not int16:
        weight = weight // 2 + 70
    scales, zeros = rng.uniform(0.001, 0.02, 2 * groups).astype(np.float32), 3 if int16 else 130
    shape = (1, 2 * groups, 4, 5) if layout == "NCHW" else (1, 4, 5, 2 * groups)

    def build(x: Any) -> Any:
        w = dequantize(edge.constant(weight), scales, zeros, axis=0)
        y = OP.nn.conv2d(
            dequantize(x, 0.05, zero),
            w,
            padding=[1, 0, 0, 1],
            groups=groups,
            data_layout=layout,
            kernel_layout="OIHW",
        )
        return quantize(y, out, 3)

    mod = net(build, (shape, "int8"))
    x = rng.integers(-128, 128, shape).astype(np.int8)
    (given,) = reference.run(ToIntegers()(mod), x).values()
    (real,) = reference.run(mod, x).values()
    assert np.abs(given.astype(int) - real).max() <= 1
    data = x if layout == "NCHW" else x.transpose(0, 3, 1, 2)
    padded = np.pad(data.astype(np.int64) - zero, ((0, 0), (0, 0), (1, 0), (0, 1)))
    result = given if layout == "NCHW" else given.transpose(0, 3, 1, 2)
    o, i, j = (int(rng.integers(n)) for n in result.shape[1:])
    first = o // 2 * 2
    window = padded[0, first : first + 2, i : i + 3, j : j + 2]
    total = int((window * (weight[o].astype(np.int64) - zeros)).sum())
    exact = total * float(np.float32(0.05)) * float(scales[o]) / float(np.float32(out)) + 3
    assert abs(int(result[0, o, i, j]) - min(max(exact, -128), 127)) <= 0.5 + 1e-3


def test_shared_weights_stay_shared() -> None:
    codes = RNG.integers(0, 16, (4, 2, 3, 3)).astype(np.uint8)
    table = RNG.integers(-127, 128, 16).astype(np.int8)
    weight = codebook(edge.constant(codes), edge.constant(table))
    mod = net(lambda x: quantize(convolution(x, weight=weight), 0.1, 3), X)
    integers = ToIntegers()(mod)
    (parameter,) = (p for p in ir.parameters(integers).values() if p.shared)
    assert parameter.centroids is not None
    np.testing.assert_array_equal(parameter.centroids, table)
    dense = net(lambda x: quantize(convolution(x, weight=edge.constant(table[codes])), 0.1, 3), X)
    x = RNG.integers(-128, 128, X[0]).astype(np.int8)
    (given,) = reference.run(integers, x).values()
    (expected,) = reference.run(ToIntegers()(dense), x).values()
    np.testing.assert_array_equal(given, expected)


def test_a_second_user_of_a_value() -> None:
    def build(x: Any) -> Any:
        q = quantize(convolution(x), 0.1, 3)
        again = dequantize(q, 0.1, 3)
        return quantize(OP.add(again, OP.nn.relu(again)), 0.15, -5)

    mod = net(build, X)
    integers = ToIntegers()(mod)
    assert floats(integers) == []
    assert operators(integers).count("nn.conv2d") == 1
    x = RNG.integers(-128, 128, X[0]).astype(np.int8)
    (given,) = reference.run(integers, x).values()
    (real,) = reference.run(mod, x).values()
    assert np.abs(given.astype(int) - real).max() <= 1


def test_the_float_border_stays() -> None:
    def build(x: Any) -> Any:
        q = quantize(OP.multiply(x, f32(2.0)), 0.05, 7)
        return OP.exp(dequantize(quantize(convolution(q), 0.1, 3), 0.1, 3))

    integers = ToIntegers()(net(build, (X[0], "float32")))
    names = operators(integers)
    assert names[:2] == ["multiply", "quantize"] and names[-2:] == ["dequantize", "exp"]
    assert "tvm_compress.requantize" in names


def test_weights_of_float_operators_become_float() -> None:
    mod = net(
        lambda x: OP.nn.conv2d(x, dequantize(edge.constant(WEIGHT), SCALES, 0, 0)),
        (X[0], "float32"),
    )
    assert ir.parameters(mod)["conv2d_weight"].value.dtype == np.int8
    value = ir.parameters(ToIntegers()(mod))["conv2d_weight"].value
    np.testing.assert_array_equal(value, WEIGHT * SCALES.reshape(4, 1, 1, 1))


def layer_norm_between(x: Any) -> Any:
    y = OP.nn.layer_norm(
        dequantize(x, 0.05, 7), f32(np.ones(5)), f32(np.zeros(5)), axes=[3], epsilon=1e-5
    )
    return quantize(y, 0.1, 3)


def test_an_operator_without_an_integer_form() -> None:
    mod = net(layer_norm_between, X)
    with pytest.raises(UnsupportedError) as caught:
        ToIntegers()(mod)
    assert str(caught.value) == (
        "to-integers: relax.nn.layer_norm (bound to layer_norm) has no integer form here; "
        "expected one of the operators listed in docs/operators.md, of quantised inputs. "
        "Quantise its inputs and its output, or use fallback float to keep it in float."
    )
    kept = ToIntegers(fallback="float")(mod)
    assert operators(kept) == ["dequantize", "nn.layer_norm", "quantize"]
    x = RNG.integers(-128, 128, X[0]).astype(np.int8)
    (given,) = tc.build(mod, target="reference", fallback="float").run(x).values()
    np.testing.assert_array_equal(given, next(iter(reference.run(mod, x).values())))


def test_the_error_names_the_operator_of_a_part() -> None:
    def build(x: Any) -> Any:
        ones = f32(np.ones(2))
        normed = OP.nn.batch_norm(dequantize(x, 0.05, 7), *[ones] * 4, axis=1, training=True)
        return quantize(tvm.ir.TupleGetItem(normed, 0), 0.1, 3)

    with pytest.raises(UnsupportedError, match=r"^to-integers: relax\.nn\.batch_norm \(bound to "):
        ToIntegers()(net(build, X))


def test_the_fallback_of_uint8() -> None:
    def build(x: Any) -> Any:
        y = OP.nn.layer_norm(
            dequantize(x, 0.05, 130), f32(np.ones(5)), f32(np.zeros(5)), axes=[3], epsilon=1e-5
        )
        return quantize(y, 0.05, 140, "uint8")

    mod = net(build, (X[0], "uint8"))
    x = RNG.integers(0, 256, X[0]).astype(np.uint8)
    (given,) = tc.build(mod, target="reference", fallback="float").run(x).values()
    assert given.dtype == np.uint8
    np.testing.assert_array_equal(given, next(iter(reference.run(mod, x).values())))


def test_an_unknown_fallback() -> None:
    with pytest.raises(OptionError) as caught:
        ToIntegers(fallback="double")
    assert str(caught.value) == "to-integers: fallback is 'double'; expected error or float."


@pytest.mark.parametrize("scale", [0.0, -0.5, float("nan"), float("inf")])
def test_scales_that_are_none(scale: float) -> None:
    mod = net(lambda x: quantize(dequantize(x, scale, 3), 0.1, 3), X)
    with pytest.raises(UnsupportedError) as caught:
        ToIntegers()(mod)
    assert str(caught.value) == (
        f"to-integers: a scale of dequantize is {scale:g}; expected a positive, finite number: "
        "quantise the network again with data that is not constant."
    )


def test_activations_of_16_bits() -> None:
    mod = net(lambda x: quantize(dequantize(x, 0.1, 0), 0.2, 0, "int16"), (X[0], "int8"))
    with pytest.raises(UnsupportedError) as caught:
        ToIntegers()(mod)
    assert str(caught.value) == (
        "to-integers: quantize has activations of int16; expected int8 or uint8: quantise the "
        "network to 8 bits."
    )


def test_activations_of_many_scales() -> None:
    mod = net(lambda x: quantize(dequantize(x, [0.1, 0.2], [0, 0], axis=1), 0.2, 0), X)
    with pytest.raises(UnsupportedError) as caught:
        ToIntegers()(mod)
    assert str(caught.value) == (
        "to-integers: dequantize has 2 scales; expected one for an activation: quantise "
        "activations per tensor."
    )


def test_scales_that_the_network_computes() -> None:
    mod = net(
        lambda x, s: OP.quantize(OP.dequantize(x, s, i32(0)), f32(0.1), i32(0), out_dtype="int8"),
        X,
        ((), "float32"),
    )
    with pytest.raises(UnsupportedError) as caught:
        ToIntegers()(mod)
    assert str(caught.value) == (
        "to-integers: dequantize takes its scale or zero point from the network; expected "
        "constants: quantise the network statically."
    )


def test_sums_that_could_leave_int32() -> None:
    weight = np.full((70000, 2), 127, np.int8)
    bias = np.full(2, 2**30, np.int32)

    def build(x: Any) -> Any:
        w = dequantize(edge.constant(weight), 0.01, 0)
        b = dequantize(i32(bias), np.float32(0.1) * np.float32(0.01), 0)
        return quantize(OP.add(OP.matmul(dequantize(x, 0.1, 0), w), b), 50.0, 0)

    with pytest.raises(UnsupportedError) as caught:
        ToIntegers()(net(build, ((1, 70000), "int8")))
    most = 70000 * 127 * 128 + 2**30
    assert str(caught.value) == (
        f"to-integers: the sums of matmul reach {most}; expected them below 2**31, which an int32 "
        "holds: split the layer, or quantise its weights with smaller numbers."
    )


def test_scales_of_quite_another_size() -> None:
    mod = net(lambda x: quantize(OP.add(dequantize(x, 1e6, 0), dequantize(x, 1.0, 0)), 1e-6, 0), X)
    with pytest.raises(UnsupportedError) as caught:
        ToIntegers()(mod)
    assert str(caught.value) == (
        "to-integers: the inputs of add have scales 1e+06 and 1, its output 1e-06; expected scales "
        "of less different size: quantise the network again."
    )
