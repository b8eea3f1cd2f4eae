"""``dequantize``: a float network with the rectifiers that integers imply, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from tests.passes.nets import conv_net, values
from tests.passes.test_quantize import X, net, operators
from tvm_compress import edge, ir, qdq
from tvm_compress.errors import PassError
from tvm_compress.ops import codebook
from tvm_compress.passes import Dequantize, Prune, Quantize, ShareWeights
from tvm_compress.quantization import Affine
from tvm_compress.targets.reference import run


@pytest.mark.parametrize("io", ["int8", "float"])
def test_a_quantised_network_becomes_float_again(io: Any) -> None:
    small = Quantize(io=io, bias_correction=False).on(X)(conv_net())
    back = Dequantize().apply(small)
    assert operators(back) == operators(conv_net())
    assert list(ir.parameters(back)) == list(ir.parameters(conv_net()))
    for name, value in values(back).items():
        how, whole = qdq.integer_parameters(small)[name], values(small)[name]
        np.testing.assert_array_equal(value, (whole * how.scale).astype(np.float32))
    (param,) = ir.main_function(back).params
    assert edge.dtype_of(param) == "float32" and edge.var_name(param) == "x"
    want = run(conv_net(), X)["y"]
    np.testing.assert_allclose(run(back, X)["y"], want, atol=0.03 * np.abs(want).max())


def test_may_be_pruned_and_quantised_again() -> None:
    small = Quantize().on(X)(conv_net())
    again = Quantize().on(X)(Prune(sparsity=0.5).apply(Dequantize().apply(small)))
    assert (values(again)["conv_weight"] == 0).mean() >= 0.5
    assert set(values(again)) == set(values(small))


def rounded(how: Affine, inner: Any = None, low: float = -128, high: float = 127) -> tvm.IRModule:
    """Sum -> quantize -> clip of the integers -> dequantize."""

    def build(b: Any, x: Any) -> Any:
        y = b.emit(relax.op.add(x, x), "double")
        y = y if inner is None else b.emit(inner(y))
        q = b.emit(qdq.quantize(y, how), "q")
        q = b.emit(relax.op.clip(q, low, high), "clipped")
        return b.emit(relax.op.nn.max_pool2d(b.emit(qdq.dequantize(q, how)), (2, 2)))

    return net(build, (1, 2, 5, 5))


@pytest.mark.parametrize(
    ("how", "low", "high", "wanted"),
    [
        (Affine(0.1, 3), -128, 127, []),
        (Affine(0.1, -128), -128, 127, ["relu"]),
        (Affine(0.1, 3), 3, 127, ["relu"]),
        (Affine(0.1, 0, "uint8"), 0, 255, ["relu"]),
        (Affine(6 / 255, -128), -128, 127, ["clip"]),
        (Affine(0.1, -8), -8, 52, ["clip"]),  # from 0 to 6
        (Affine(0.1, 0), -20, 50, ["clip"]),
        (Affine(0.025, -128), -128, 127, ["relu"]),  # to 6.375
    ],
)
def test_where_integers_end_there_is_a_rectifier(
    how: Affine, low: float, high: float, wanted: list[str]
) -> None:
    mod = rounded(how, None, low, high)
    back = Dequantize().apply(mod)
    assert operators(back) == ["add", *wanted, "max_pool2d"]
    np.testing.assert_allclose(
        run(back, X / 4)["out"], run(mod, X / 4)["out"], atol=how.scale * 0.51
    )


def test_a_rectifier_is_not_written_twice() -> None:
    for inner in (relax.op.nn.relu, relax.op.sigmoid, lambda y: relax.op.clip(y, 0, 2)):
        back = Dequantize().apply(rounded(Affine(0.1, -128), inner))
        assert len(operators(back)) == 3


def test_shared_weights_stay_shared_where_one_scale_serves_them() -> None:
    one = Quantize(bias_correction=False).on(X)(ShareWeights(bits=3).apply(conv_net()))
    assert ir.parameters(Dequantize().apply(one))["conv_weight"].shared
    many = ShareWeights(bits=6).apply(Quantize(bias_correction=False).on(X)(conv_net()))
    back = ir.parameters(Dequantize().apply(many))["conv_weight"]
    assert not back.shared
    how = qdq.integer_parameters(many)["conv_weight"]
    np.testing.assert_array_equal(
        back.value, (values(many)["conv_weight"] * how.scale).astype(np.float32)
    )


def test_zero_points_of_parameters() -> None:
    weight = np.arange(8, dtype=np.uint8).reshape(2, 4)
    zero, scale = np.array([1, 2, 3, 4], np.uint8), np.array([1, 2, 4, 8], np.float32)

    def build(b: Any, x: Any) -> Any:
        w = b.emit(edge.constant(weight), "w")
        w = b.emit(
            relax.op.dequantize(
                w, edge.constant(scale), edge.constant(zero.astype("int32")), axis=1
            )
        )
        return b.emit(relax.op.matmul(x, w))

    back = Dequantize().apply(net(build, (1, 2)))
    np.testing.assert_array_equal(values(back)["w"], (weight.astype(int) - zero) * scale)


def test_a_float_network_stays_as_it_is() -> None:
    mod = net(lambda b, x: b.emit(relax.op.nn.relu(x)), (1, 2))
    tvm.ir.assert_structural_equal(Dequantize().apply(mod), mod)


def test_the_rounding_of_integers_is_forgotten() -> None:
    mod = Quantize().on(X)(conv_net())
    function = mod["main"].with_attr("tvm_compress.rounding", "double")
    mod.update_func(mod.get_global_var("main"), function)
    assert "tvm_compress.rounding" not in Dequantize().apply(mod)["main"].attrs


def test_real_networks_say_the_same(shared_data: Path) -> None:
    folder = shared_data / "mlperf_tiny"
    mod = tc.load(folder / "kws_dscnn_int8.tflite")
    back = Dequantize().apply(mod)
    assert operators(back).count("relu") == 9 and "clip" not in operators(back)
    x = np.load(folder / "kws01_a500.npz")["mfcc_int8"][:60].reshape(-1, 49, 10, 1)
    real = qdq.input_parameters(mod)["input_1"].dequantize(x)
    want, got = (next(iter(run(m, v).values())) for m, v in ((mod, x), (back, real)))
    assert (want.argmax(1) == got.argmax(1)).mean() >= 0.95
    relu6 = Dequantize().apply(tc.load(shared_data / "models/mobilenet_v1_0.25_128_quant.tflite"))
    assert operators(relu6).count("clip") == 27 and "relu" not in operators(relu6)


def test_refuses_integers_that_nothing_quantises() -> None:
    how = Affine(1.0, 0)

    def build(b: Any, x: Any) -> Any:
        q = b.emit(relax.op.astype(x, "int8"))
        return b.emit(qdq.dequantize(q, how), "real")

    with pytest.raises(PassError) as error:
        Dequantize().apply(net(build, (1, 2)))
    assert str(error.value) == (
        "dequantize: real is made of integers that no quantize gives; expected the QDQ form: run "
        "dequantize before to-integers."
    )


def test_codebooks_of_a_centroid_each() -> None:
    codes, table = np.array([[0, 1], [1, 0]], np.uint8), np.array([0, -7], np.int8)

    def build(b: Any, x: Any) -> Any:
        w = b.emit(codebook(edge.constant(codes), edge.constant(table)), "w")
        return b.emit(relax.op.matmul(x, b.emit(qdq.dequantize(w, Affine(0.5, 0)))))

    back = ir.parameters(Dequantize().apply(net(build, (1, 2))))["w"]
    assert back.centroids is not None and back.centroids.tolist() == [0, -3.5]
