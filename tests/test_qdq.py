"""Integers and real numbers at the ends of a quantised network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.nets import conv_net, values
from tests.passes.test_quantize import X, net
from tvm_compress import edge, ir, qdq
from tvm_compress.passes import Quantize, ShareWeights
from tvm_compress.quantization import Affine
from tvm_compress.targets.reference import run

WHOLE = Quantize().on(X)(conv_net())


def test_reals_and_integers_are_one_network() -> None:
    real = qdq.with_reals(WHOLE)
    (param,) = ir.main_function(real).params
    assert edge.dtype_of(param) == "float32" and edge.var_name(param) == "x"
    taken, given = qdq.input_parameters(WHOLE)["x"], qdq.output_parameters(WHOLE)["y"]
    y = run(WHOLE, taken.quantize(X))["y"]
    np.testing.assert_array_equal(given.dequantize(y), run(real, X)["y"])
    tvm.ir.assert_structural_equal(qdq.with_integers(real), WHOLE)
    assert not qdq.input_parameters(real) and not qdq.output_parameters(real)
    assert qdq.with_reals(real) is real
    assert set(values(real)) == set(values(WHOLE))


def test_floats_are_not_quantised() -> None:
    assert not qdq.is_quantised(conv_net()) and qdq.is_quantised(WHOLE)
    mod = conv_net()
    assert qdq.with_reals(mod) is mod
    tvm.ir.assert_structural_equal(qdq.with_integers(mod), mod)


def test_an_input_that_others_use_too_stays_real() -> None:
    how = Affine(0.5, 3)

    def build(b: Any, x: Any) -> Any:
        y = b.emit(qdq.dequantize(b.emit(qdq.quantize(x, how)), how))
        return b.emit(relax.op.add(x, y), "sum")

    (param,) = ir.main_function(qdq.with_integers(net(build, (1, 2)))).params
    assert edge.dtype_of(param) == "float32"


def test_scales_are_found_through_moves() -> None:
    how, other = Affine(0.5, 3, "uint8"), Affine(0.25, -1)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2, 4, 4), "uint8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
            y = builder.emit(relax.op.nn.relu(builder.emit(qdq.dequantize(y, how))))
            y = builder.emit(relax.op.clip(builder.emit(qdq.quantize(y, other)), 0, 50))
            y = builder.emit_output(relax.op.reshape(y, (1, 32)), "y")
        builder.emit_func_output(y)
    mod = builder.get()
    assert qdq.input_parameters(mod) == {"x": how}
    assert qdq.output_parameters(mod) == {"y": other}
    x8 = np.random.default_rng(0).integers(0, 255, (3, 2, 4, 4)).astype(np.uint8)
    want = other.dequantize(run(mod, x8)["y"])
    np.testing.assert_array_equal(run(qdq.with_reals(mod), how.dequantize(x8))["y"], want)


def test_integers_among_inputs_become_what_they_stand_for() -> None:
    how = qdq.input_parameters(WHOLE)["x"]
    whole = how.quantize(X)
    for given in (whole, {"x": whole}):
        found: Any = qdq.real_inputs(WHOLE, given)
        found = found["x"] if isinstance(found, dict) else found
        np.testing.assert_array_equal(found, how.dequantize(whole))
    found = qdq.real_inputs(WHOLE, X)
    assert found is X or np.array_equal(np.asarray(found), X)
    other: Any = qdq.real_inputs(WHOLE, {"x": X, "z": whole})
    assert other["z"] is whole and other["x"] is X


@pytest.mark.parametrize("groups", [1, 2])
def test_numbers_of_parameters(groups: int) -> None:
    mod = ShareWeights(bits=3, groups=groups).apply(WHOLE)
    for of in (WHOLE, mod):
        found = qdq.integer_parameters(of)
        assert set(found) == {"conv_weight", "conv_bias", "fc_weight", "fc_bias"}
        assert found["conv_weight"].scale.shape == (4, 1, 1, 1)
        assert found["fc_weight"].scale.shape == (1, 3)
        assert not found["fc_bias"].zero_point.any()


def test_a_parameter_that_is_read_in_two_ways_has_no_numbers() -> None:
    def build(b: Any, x: Any) -> Any:
        w = b.emit(edge.constant(np.ones((2, 2), np.int8)), "w")
        one, two = (b.emit(qdq.dequantize(w, Affine(scale, 0))) for scale in (1.0, 2.0))
        return b.emit(relax.op.matmul(b.emit(relax.op.matmul(x, one)), two))

    assert not qdq.integer_parameters(net(build, (1, 2)))
