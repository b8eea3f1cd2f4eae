"""``quantize``: what stands in the module, what its numbers are, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from tests.passes.nets import BIAS, CONV, FC, conv_net, spoilt_by, values
from tvm_compress import edge, ir, qdq
from tvm_compress.errors import DataError, OptionError, PassError
from tvm_compress.passes import Canonicalize, FixedPoint, Prune, Quantize, ShareWeights
from tvm_compress.quantization import Affine, affine
from tvm_compress.targets.reference import run

RNG = np.random.default_rng(5)
X = RNG.standard_normal((40, 2, 5, 5)).astype(np.float32)
MIN_MAX = Quantize(ranges="min-max", bias_correction=False, io="float")


def net(build: Callable[..., Any], *shapes: tuple[int, ...], names: str = "xyz") -> tvm.IRModule:
    """A network of what ``build`` makes of (builder, inputs)."""
    builder = relax.BlockBuilder()
    inputs = [
        relax.Var(name, relax.TensorType(shape, "float32"))
        for name, shape in zip(names, shapes, strict=False)
    ]
    with builder.function("main", inputs):
        with builder.dataflow():
            result = build(builder, *inputs)
            if isinstance(result, tuple):
                result = tvm.ir.Tuple([builder.emit_output(r) for r in result])
            else:
                result = builder.emit_output(result, "out")
        builder.emit_func_output(result)
    return Canonicalize().apply(builder.get())


def bound(mod: tvm.IRModule) -> dict[str, Any]:
    """What each variable is bound to, by its name."""
    return {edge.var_name(b.var): b.value for b in ir.bindings(ir.main_function(mod))}


def scales(mod: tvm.IRModule) -> dict[str, Affine]:
    """How each quantize of one scale rounds, by its name."""
    return {
        name.removesuffix("_quantized"): qdq.affine_of(value)
        for name, value in bound(mod).items()
        if edge.op_name(value) == "relax.quantize"
    }


def operators(mod: tvm.IRModule) -> list[str]:
    """The operators in order, without those of parameters."""
    held = ir.dequantized(ir.main_function(mod))
    names = [edge.op_name(b.value) for b in ir.bindings(ir.main_function(mod)) if b.var not in held]
    return [str(name).rsplit(".", 1)[-1] for name in names if name]


# ---- what stands in the module -------------------------------------------------------------------


def expected_net(integers: bool) -> tvm.IRModule:
    """What stands for ``conv_net`` by min-max ranges, its numbers from plain numpy."""
    relu = run_to_relu(X)
    mean = relu.mean(axis=(2, 3))
    how = {
        "x": affine(X.min(), X.max()),
        "relu": affine(0, relu.max()),
        "mean": affine(0, mean.max()),
        "fc": affine((mean @ FC).min(), (mean @ FC).max()),
    }
    builder = relax.BlockBuilder()
    dtype = "int8" if integers else "float32"
    x = relax.Var("x", relax.TensorType((1, 2, 5, 5), dtype))

    def pair(value: Any, name: str, of: str) -> Any:
        real = value if name == "x" else builder.emit(value, name)
        whole = real
        if name != "x" or not integers:
            whole = builder.emit(qdq.quantize(real, how[of]), f"{name}_quantized")
        return builder.emit(qdq.dequantize(whole, how[of]), f"{name}_dequantized")

    def held(whole: NDArray[Any], scale: Any, axis: int, name: str) -> Any:
        w = builder.emit(edge.constant(whole), name)
        zero = edge.constant(np.zeros((), np.int8))
        made = relax.op.dequantize(w, edge.constant(scale), zero, axis=axis)
        return builder.emit(made, f"{name}_dequantized")

    with builder.function("main", [x]):
        with builder.dataflow():
            d = pair(x, "x", "x")
            s = (np.abs(CONV).max(axis=(1, 2, 3)) / 127).astype(np.float32)
            w = held(np.round(CONV / s[:, None, None, None]).astype(np.int8), s, 0, "conv_weight")
            y = builder.emit(relax.op.nn.conv2d(d, w), "conv")
            t = (s * np.float64(how["x"].scale)).astype(np.float32)
            b = held(np.round(BIAS / t.reshape(1, 4, 1, 1)).astype(np.int32), t, 1, "conv_bias")
            y = builder.emit(relax.op.add(y, b), "biased")
            y = pair(relax.op.nn.relu(y), "relu", "relu")
            y = pair(relax.op.mean(y, [2, 3]), "mean", "mean")
            s = (np.abs(FC).max(axis=0) / 127).astype(np.float32)
            w = held(np.round(FC / s).astype(np.int8), s, 1, "fc_weight")
            y = pair(relax.op.matmul(y, w), "fc", "fc")
            if integers:
                y = builder.emit(qdq.quantize(builder.emit(relax.op.matmul(y, w)), how["fc"]))
            y = builder.emit_output(y, "y")
        builder.emit_func_output(y)
    return builder.get()


def run_to_relu(x: NDArray[Any]) -> NDArray[Any]:
    view = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    total = np.einsum("nihwkl,oikl->nohw", view.astype(float), CONV.astype(float))
    return np.asarray(np.maximum(total + BIAS, 0))


def test_a_group_is_rounded_once_and_every_number_is_as_by_hand() -> None:
    mod = MIN_MAX.on(X)(conv_net())
    found, wanted = bound(mod), bound(expected_net(False))
    wanted.pop("y"), found.pop("y")
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        if isinstance(value, edge.Constant):
            np.testing.assert_array_equal(
                edge.constant_value(found[name]), edge.constant_value(value), err_msg=name
            )
            continue
        assert edge.op_name(found[name]) == edge.op_name(value), name
        for arg, other in zip(found[name].args, value.args, strict=True):
            if isinstance(other, edge.Constant):
                one, two = edge.constant_value(arg), edge.constant_value(other)
                assert one.dtype == two.dtype
                np.testing.assert_allclose(one, two, rtol=1e-6, err_msg=name)
            elif isinstance(other, relax.Var):
                assert edge.var_name(arg) == edge.var_name(other), name


def test_integers_at_both_ends() -> None:
    real = MIN_MAX.on(X)(conv_net())
    whole = Quantize(ranges="min-max", bias_correction=False).on(X)(conv_net())
    ends = (qdq.input_parameters(whole), qdq.output_parameters(whole))
    assert ends == ({"x": scales(real)["x"]}, {"y": scales(real)["fc"]})
    taken = ends[0]["x"].quantize(X)
    given = run(whole, taken)["y"]
    assert given.dtype == np.int8
    np.testing.assert_array_equal(ends[1]["y"].dequantize(given), run(real, X)["y"])


def test_a_product_without_a_bias_gets_one_where_biases_are_corrected() -> None:
    mod = Quantize().on(X)(conv_net())
    found = ir.parameters(mod)
    assert found["fc_bias"].value.dtype == np.int32 and found["fc_bias"].shape == (3,)
    assert "fc_bias" not in ir.parameters(MIN_MAX.on(X)(conv_net()))


def test_what_only_moves_values_keeps_the_scale() -> None:
    def build(b: Any, x: Any) -> Any:
        y = b.emit(relax.op.nn.max_pool2d(x, (2, 2), (2, 2)), "pool")
        y = b.emit(relax.op.nn.avg_pool2d(y, (2, 2), (2, 2)), "average")
        y = b.emit(relax.op.permute_dims(y, [0, 2, 3, 1]), "turned")
        return b.emit(relax.op.reshape(y, (1, 2)), "flat")

    mod = net(build, (1, 2, 5, 5))
    found = scales(MIN_MAX.on(X)(mod))
    assert len(found) > 3 and set(found.values()) == {affine(X.min(), X.max())}


def test_all_parts_of_a_concatenation_have_the_scale_of_all() -> None:
    def build(b: Any, x: Any, y: Any) -> Any:
        pool = b.emit(relax.op.nn.max_pool2d(y, (1, 1)), "pool")
        return b.emit(relax.op.concat([x, pool], 1), "joined")

    mod = net(build, (1, 2, 5, 5), (1, 2, 5, 5))
    given = {"x": X, "y": 5 * X[::-1]}
    found = scales(MIN_MAX.on(given)(mod))
    assert set(found) == {"x", "y", "pool", "joined"}
    assert set(found.values()) == {affine(5 * X.min(), 5 * X.max())}


def test_a_part_with_a_scale_of_its_own_is_rounded_again() -> None:
    def build(b: Any, x: Any, y: Any) -> Any:
        return b.emit(relax.op.concat([b.emit(relax.op.sigmoid(x), "gate"), y], 1), "joined")

    mod = MIN_MAX.on({"x": X, "y": 5 * X})(net(build, (1, 2, 5, 5), (1, 2, 5, 5)))
    found = scales(mod)
    assert found["gate"] == Affine(1 / 256, -128)
    assert found["joined"] == found["y"] == found["gate_rescaled"]
    parts = bound(mod)["joined"].args[0].fields
    assert [edge.var_name(p) for p in parts] == ["gate_rescaled_dequantized", "y_dequantized"]


def test_known_functions_have_their_scales() -> None:
    def build(b: Any, x: Any, y: Any) -> Any:
        gates = [b.emit(relax.op.sigmoid(x), "sigmoid"), b.emit(relax.op.tanh(y), "tanh")]
        y = b.emit(relax.op.multiply(*gates), "product")
        return b.emit(relax.op.nn.softmax(y, axis=1), "soft")

    mod = net(build, (1, 2, 5, 5), (1, 2, 5, 5))
    found = scales(MIN_MAX.on({"x": X, "y": X})(mod))
    assert (found["sigmoid"], found["tanh"], found["soft"]) == (
        Affine(1 / 256, -128),
        Affine(1 / 128, 0),
        Affine(1 / 256, -128),
    )


def test_a_function_of_one_tensor_is_rounded_once() -> None:
    def build(b: Any, x: Any) -> Any:  # x * clip(x + 3, 0, 6) / 6
        y = b.emit(relax.op.add(x, relax.const(3.0, "float32")))
        y = b.emit(relax.op.multiply(x, b.emit(relax.op.clip(y, 0, 6))))
        y = b.emit(relax.op.divide(y, relax.const(6.0, "float32")), "swish")
        return b.emit(relax.op.nn.max_pool2d(y, (2, 2)), "pool")

    found = scales(MIN_MAX.on(X)(net(build, (1, 2, 5, 5))))
    swish = X * np.clip(X + 3, 0, 6) / 6
    assert set(found) == {"x", "swish", "pool"}
    assert found["swish"].scale == pytest.approx(affine(swish.min(), swish.max()).scale, rel=1e-6)


def test_a_residual_sum_and_its_rectifier_are_one_group() -> None:
    def build(b: Any, x: Any, y: Any) -> Any:
        return b.emit(relax.op.nn.relu(b.emit(relax.op.add(x, y), "sum")), "relu")

    mod = MIN_MAX.on({"x": X, "y": X[::-1].copy()})(net(build, (1, 2, 5, 5), (1, 2, 5, 5)))
    assert set(scales(mod)) == {"x", "y", "relu"}
    assert scales(mod)["relu"].zero_point == -128


def test_a_constant_beside_an_activation_becomes_int8() -> None:
    constant = RNG.standard_normal((1, 2, 5, 5)).astype(np.float32)

    def build(b: Any, x: Any) -> Any:
        c = b.emit(edge.constant(constant), "table")
        return b.emit(relax.op.multiply(x, c), "product")

    mod = MIN_MAX.on(X)(net(build, (1, 2, 5, 5)))
    how = affine(constant.min(), constant.max())
    np.testing.assert_array_equal(ir.parameters(mod)["table"].value, how.quantize(constant))
    assert qdq.affine_of(bound(mod)["table_dequantized"]) == how


def test_the_parts_of_a_split() -> None:
    def build(b: Any, x: Any) -> Any:
        parts = b.emit(relax.op.split(b.emit(relax.op.nn.relu(x), "relu"), 2, axis=1))
        left, right = (b.emit(tvm.ir.TupleGetItem(parts, i)) for i in range(2))
        return b.emit(relax.op.add(left, right), "sum")

    mod = MIN_MAX.on(X)(net(build, (1, 2, 5, 5)))
    y = np.maximum(X, 0)
    np.testing.assert_allclose(run(mod, X)["out"], y[:, :1] + y[:, 1:], atol=0.03)
    assert len(set(scales(mod).values())) == 3  # x, relu with its parts, sum


def test_an_unknown_operator_and_what_follows_stay_float_up_to_a_product() -> None:
    def build(b: Any, x: Any) -> Any:
        y = b.emit(relax.op.cumsum(x, axis=3), "running")
        y = b.emit(relax.op.multiply(y, x), "scaled")
        w = b.emit(edge.constant(CONV), "w")
        return b.emit(relax.op.nn.conv2d(y, w), "conv")

    mod = MIN_MAX.on(X)(net(build, (1, 2, 5, 5)))
    assert set(scales(mod)) == {"x", "scaled", "conv"}
    whole = Quantize(bias_correction=False).on(X)(
        net(lambda b, x: b.emit(relax.op.cumsum(x, axis=3)), (1, 2, 5, 5))
    )
    assert list(qdq.output_parameters(whole)) == ["out"]  # at the end, where integers are asked for


def test_layers_stay_in_float() -> None:
    for pattern in ("conv_weight", "conv"):
        mod = Quantize(layers={pattern: 0, "*": 8}, bias_correction=False).on(X)(conv_net())
        assert ir.parameters(mod)["conv_weight"].value.dtype == np.float32
        assert ir.parameters(mod)["fc_weight"].value.dtype == np.int8
        assert edge.op_name(bound(mod)["relu"]) == "relax.nn.relu"
        assert "relu" not in scales(mod)


def test_a_weight_at_the_left_stays_float() -> None:
    def build(b: Any, x: Any) -> Any:
        return b.emit(relax.op.matmul(b.emit(edge.constant(FC), "w"), x), "product")

    mod = Quantize(io="float").on(RNG.random((9, 3, 2), np.float32))(net(build, (1, 3, 2)))
    assert ir.parameters(mod)["w"].value.dtype == np.float32


def test_other_weights_have_scales_along_their_channels() -> None:
    weight = RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)  # I O H W, two groups

    def build(b: Any, x: Any) -> Any:
        w = b.emit(edge.constant(weight), "w")
        y = b.emit(relax.op.nn.conv2d_transpose(x, w, groups=2), "conv")
        bias = b.emit(edge.constant(np.arange(4, dtype=np.float32).reshape(4, 1, 1)), "b")
        return b.emit(relax.op.add(y, bias), "sum")

    x = RNG.standard_normal((20, 4, 5, 5)).astype(np.float32)
    mod = net(build, (1, 4, 5, 5))
    small = MIN_MAX.on(x)(mod)
    how = qdq.integer_parameters(small)
    assert how["w"].scale.shape == (1, 2, 1, 1) and how["b"].scale.shape == (4, 1, 1)
    want = run(mod, x)["out"]
    np.testing.assert_allclose(run(small, x)["out"], want, atol=0.03 * np.abs(want).max())


def test_a_large_bias_of_small_weights_stands_in_int32() -> None:
    def build(b: Any, x: Any) -> Any:
        w = b.emit(edge.constant(np.full((2, 2), 1e-9, np.float32)), "w")
        bias = b.emit(edge.constant(np.array([3.0, -1e3], np.float32)), "b")
        return b.emit(relax.op.add(b.emit(relax.op.matmul(x, w), "product"), bias), "sum")

    x = RNG.random((30, 2), np.float32)
    mod = MIN_MAX.on(x)(net(build, (1, 2)))
    np.testing.assert_allclose(
        run(mod, x)["out"], np.tile([[[3.0, -1e3]]], (30, 1, 1)).reshape(30, 2), rtol=0.01, atol=4
    )
    assert np.abs(ir.parameters(mod)["b"].value.astype(np.int64)).max() <= 2**30


# ---- composition ---------------------------------------------------------------------------------


def test_zeros_stay_zero() -> None:
    pruned = Prune(sparsity=0.5).apply(conv_net())
    found = values(Quantize().on(X)(pruned))
    for name in ("conv_weight", "fc_weight"):
        assert (found[name][values(pruned)[name] == 0] == 0).all() and (found[name] == 0).any()


@pytest.mark.parametrize("groups", [1, 2])
def test_shared_weights_have_int8_centroids(groups: int) -> None:
    shared = ShareWeights(bits=3, groups=groups).apply(Prune(sparsity=0.4).apply(conv_net()))
    mod = MIN_MAX.on(X)(shared)
    for name, old in ir.parameters(shared).items():
        if not old.shared:
            continue
        new, how = ir.parameters(mod)[name], qdq.integer_parameters(mod)[name]
        assert new.centroids is not None and old.centroids is not None
        np.testing.assert_array_equal(new.codes, old.codes)
        assert new.centroids.dtype == np.int8 and new.centroids.shape == old.centroids.shape
        assert (new.centroids[..., 0] == 0).all()
        assert (np.abs(new.value * how.scale - old.value) <= how.scale * 0.51).all()
        parts = np.unique(how.scale).size
        assert parts <= max(groups, 1) and np.abs(new.centroids).max() == 127


@pytest.mark.parametrize("scale", ["tensor", "channel"])
def test_weights_in_fixed_point_stay_what_they_are(scale: Any) -> None:
    fixed = FixedPoint(bits=4, scale=scale).apply(conv_net())
    mod = MIN_MAX.on(X)(fixed)
    table = ir.parameters(mod)["conv_weight"].centroids
    assert table is not None
    np.testing.assert_array_equal(table, [*range(8), *range(-8, 0)])
    # The integers times their scales are the very weights that the float network multiplies with.
    steps = qdq.integer_parameters(mod)["conv_weight"].scale
    dense = values(fixed)["conv_weight"]
    if scale == "channel":
        dense = dense * values(fixed)["conv_weight_scale"].reshape(4, 1, 1, 1)
    np.testing.assert_allclose(values(mod)["conv_weight"] * steps, dense, rtol=1e-6)
    assert operators(mod).count("multiply") == 0


def test_is_a_step_of_a_recipe() -> None:
    by_recipe = tc.compress(
        conv_net(), tc.Recipe([Prune(sparsity=0.5), Quantize()]), calibrate=X, progress=False
    )
    by_hand = tc.quantize(Prune(sparsity=0.5).apply(conv_net()), X)
    tvm.ir.assert_structural_equal(by_recipe, by_hand)


def test_the_function_has_the_options_of_the_pass_and_equalises_first() -> None:
    options: dict[str, Any] = {"ranges": "percentile", "percentile": 99.0, "weights": "mse"}
    options |= {"bias_correction": False, "io": "float", "layers": {"fc": 0}}
    one = tc.quantize(conv_net(), X, input_ranges={"x": (-9, 9)}, **options)
    two = Quantize(input_ranges={"x": [-9, 9]}, **options).on(X)(conv_net())
    tvm.ir.assert_structural_equal(one, two)
    deep = net(two_products, (1, 4))
    x = RNG.random((30, 4), np.float32)
    plain, even = (tc.quantize(deep, x, equalize=e) for e in (False, True))
    a, b = (qdq.integer_parameters(m)["w1"].scale for m in (plain, even))
    assert np.ptp(np.log(b)) < np.ptp(np.log(a)) - 1


def two_products(b: Any, x: Any) -> Any:
    w = b.emit(edge.constant(np.diag([1, 10, 100, 0.1]).astype(np.float32)), "w1")
    y = b.emit(relax.op.nn.relu(b.emit(relax.op.matmul(x, w))))
    w = b.emit(edge.constant(np.eye(4, dtype=np.float32)), "w2")
    return b.emit(relax.op.matmul(y, w))


# ---- accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", ["min-max", "percentile", "mse"])
def test_each_way_is_close_to_float(ranges: Any) -> None:
    want = run(conv_net(), X)["y"]
    got = run(Quantize(ranges=ranges, io="float").on(X)(conv_net()), X)["y"]
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_bias_correction_takes_the_mean_error_away() -> None:
    # One weight a channel sets the scale and the others are lost in half of a step.
    weight = np.full((8, 3), 0.4, np.float32)
    weight[0] = [127, -127, 127]

    def build(b: Any, x: Any) -> Any:
        return b.emit(relax.op.matmul(x, b.emit(edge.constant(weight), "w")), "product")

    x = np.random.default_rng(0).uniform(0, 1, (200, 8)).astype(np.float32)
    mod = net(build, (1, 8))
    off, on = (
        Quantize(ranges="min-max", bias_correction=wanted).on(x)(mod) for wanted in (False, True)
    )
    # All of the lost weights' part: 7 of them, 0.4 each, times the mean input of 0.5.
    lost = 0.4 * x[:, 1:].sum(1).mean()
    for small, error in ((off, lost), (on, 0.0)):
        taken = qdq.input_parameters(small)["x"].quantize(x)
        got = qdq.output_parameters(small)["out"].dequantize(run(small, taken)["out"])
        change = run(mod, x)["out"].mean(0) - got.mean(0)
        np.testing.assert_allclose(change, [error] * 3, atol=0.12)
    bias, how = ir.parameters(on)["product_bias"].value, qdq.integer_parameters(on)["product_bias"]
    np.testing.assert_allclose(bias * how.scale, [lost] * 3, atol=0.02)


@pytest.mark.parametrize("name", ["kws_dscnn_float", "ic_resnet8_float", "vww_96_float"])
def test_real_networks_say_the_same(shared_data: Path, name: str) -> None:
    folder = shared_data / "mlperf_tiny"
    if name.startswith("kws"):
        whole = np.load(folder / "kws01_a500.npz")["mfcc_int8"].astype(np.float32)
        x = ((whole - 83) * np.float32(0.5847029)).reshape(-1, 49, 10, 1)
    elif name.startswith("ic"):
        file = shared_data / "datasets" / "cifar10_lossless_train_a2000.npz"
        x = np.load(file)["image"].astype(np.float32)
    else:
        x = np.load(folder / "vww_coco_96_train128.npz")["image"].astype(np.float32) / 255
    mod = tc.load(folder / f"{name}.onnx")
    small = tc.quantize(mod, x[:40])
    judged = x[64:128]
    taken = next(iter(qdq.input_parameters(small).values())).quantize(judged)
    want, got = (next(iter(run(m, v).values())) for m, v in ((mod, judged), (small, taken)))
    assert (want.argmax(1) == got.argmax(1)).mean() >= 0.95
    assert {
        edge.dtype_of(b.var)
        for b in ir.bindings(ir.main_function(small))
        if edge.op_name(b.value) == "relax.quantize"
    } == {"int8"}


def test_the_face_detector(shared_data: Path) -> None:
    mod = tc.load(shared_data / "models" / "ultraface_rfb320.onnx")
    x = np.clip(RNG.normal(0, 0.5, (3, 3, 240, 320)), -1, 1).astype(np.float32)
    small = tc.quantize(mod, x, io="float", bias_correction=False)
    want, got = run(mod, x[:1]), run(small, x[:1])
    assert np.abs(want["scores"] - got["scores"]).mean() < 0.01
    assert np.abs(want["boxes"] - got["boxes"]).mean() < 0.01


# ---- what it refuses -----------------------------------------------------------------------------


def refused(step: Quantize, inputs: Any, mod: tvm.IRModule | None = None) -> str:
    with pytest.raises((DataError, OptionError, PassError)) as error:
        step.rewritten(conv_net() if mod is None else mod, inputs)
    return str(error.value)


def test_refuses_samples() -> None:
    one = Quantize()
    assert refused(one, None) == (
        "quantize: there are no inputs; expected some hundred samples without labels: give "
        "compress() calibrate=x, or apply Quantize(...).on(x)."
    )
    empty = "quantize: the calibration set is empty; expected some hundred samples."
    assert refused(one, X[:0]) == empty
    assert refused(one, {"x": X[:0]}) == empty
    assert refused(one, np.full_like(X, 0.5)) == (
        "quantize: the input x is 0.5 in every sample; expected values that vary, or there is no "
        "range to find: give real samples."
    )
    for wrong in (np.nan, np.inf):
        spoilt = X.copy()
        spoilt[3, 0, 0, :2] = wrong
        assert refused(one, spoilt) == (
            "quantize: 2 values of the input x are NaN or infinite; expected finite numbers: check "
            "the samples."
        )
    assert refused(Quantize(input_ranges={"x": [-1, 2]}), np.clip(X, -1, 3)) == (
        f"quantize: the samples of the input x reach from -1 to {np.clip(X, -1, 3).max():g}; "
        "expected values from -1 to 2, the range that was given: scale the samples as the "
        "network's inputs are, or give another range."
    )
    assert refused(one, X[:, :1]) == (
        "The input x has the shape (40, 1, 5, 5); expected (1, 2, 5, 5)."
    )
    assert refused(one, X.astype(np.int16)).startswith("The input x is int16; expected float32")


def test_refuses_values_that_overflow_inside() -> None:
    mod = net(lambda b, x: b.emit(relax.op.exp(x), "powers"), (1, 2, 5, 5))
    assert refused(Quantize(), 1e4 * X, mod) == (
        "quantize: powers. The values reach from 0.0 to inf; expected finite numbers: check the "
        "samples and the network."
    )


def test_refuses_modules() -> None:
    once = Quantize().on(X)(conv_net())
    assert refused(Quantize(), X, once) == (
        "quantize: the module is quantised already; expected a float network: run dequantize first."
    )
    how = Affine(1.0, 0, "int16")
    wide = net(lambda b, x: b.emit(qdq.dequantize(b.emit(qdq.quantize(x, how)), how)), (1, 2))
    assert "is quantised already" in refused(Quantize(), np.ones((2, 2), np.float32), wide)
    for dtype in ("float16", "float64"):
        assert refused(Quantize(), X, halved(dtype)) == (
            f"quantize: the weight w is {dtype}; expected float32: convert the network before it "
            "is quantised."
        )
    assert refused(Quantize(), X, conv_net(fc=spoilt_by(np.nan))) == (
        "quantize: the weight fc_weight holds NaN or infinite values; expected numbers: load the "
        "network again or lower the learning rate."
    )


def halved(dtype: str) -> tvm.IRModule:
    def build(b: Any, x: Any) -> Any:
        w = b.emit(edge.constant(CONV.astype(dtype)), "w")
        return b.emit(relax.op.nn.conv2d(b.emit(relax.op.astype(x, dtype)), w))

    return net(build, (1, 2, 5, 5))


def test_refuses_options() -> None:
    for options, sentence in (
        ({"ranges": "kl"}, "the ranges are 'kl'; expected min-max, percentile or mse."),
        ({"percentile": 50}, "the percentile is 50; expected a number above 50, 100 at most."),
        ({"weights": "mean"}, "the weights are 'mean'; expected max or mse."),
        ({"io": "uint8"}, "the io is 'uint8'; expected int8 or float."),
        (
            {"input_ranges": {"x": [1.0, 1.0]}},
            "the range of the input x is [1.0, 1.0]; expected two numbers, the lower one first.",
        ),
        ({"layers": {"fc*": 16}}, "fc* has 16 bits; expected 8, or 0 to leave it in float."),
    ):
        with pytest.raises(OptionError) as error:
            Quantize(**options)  # type: ignore[arg-type]
        assert str(error.value) == f"quantize: {sentence}"
    assert refused(Quantize(input_ranges={"image": [0, 1]}), X) == (
        "quantize: a range was given for image, and there is no such input; expected x."
    )
    assert refused(Quantize(layers={"dense*": 0}), X) == (
        "quantize: the pattern dense* fits no weight and no operator; expected one of conv_weight, "
        "conv, biased, relu, mean, fc_weight, fc, y."
    )
