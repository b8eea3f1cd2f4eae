"""``to-integers``: what stands in the module, what stays in float, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from tests.quantised_nets import (
    BIAS,
    OP,
    RNG,
    SCALES,
    WEIGHT,
    X,
    convolution,
    dequantize,
    f32,
    floats,
    i32,
    net,
    operators,
    quantize,
)
from tvm_compress import edge, ir
from tvm_compress.errors import OptionError, UnsupportedError
from tvm_compress.ops import codebook, quantize_multiplier, requantize
from tvm_compress.passes import Canonicalize, ToIntegers
from tvm_compress.targets import reference


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


def test_shared_weights_of_float_operators_stay_shared_under_their_names() -> None:
    table = RNG.integers(-127, 128, 16).astype(np.int8)
    codes = edge.constant(RNG.integers(0, 16, (4, 2, 3, 3)).astype(np.uint8))
    weight = codebook(codes, edge.constant(table))
    mod = net(lambda x: OP.nn.conv2d(x, dequantize(weight, 0.02, 3, 0)), (X[0], "float32"))
    (name,) = ir.parameters(mod)
    found = ir.parameters(ToIntegers()(mod))
    assert list(found) == [name]
    assert found[name].shared
    np.testing.assert_allclose(found[name].centroids, (table - 3.0) * 0.02, rtol=1e-6)


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
