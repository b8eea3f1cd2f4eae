"""``remove-channels`` on the integer form: what goes, what stays, and every byte the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm.relax import op

import tvm_compress as tc
from tests.integer_nets import IntegerNet, extremes, random_net
from tests.training.nets import module
from tvm_compress import edge, ir
from tvm_compress.ops import REQUANTIZE
from tvm_compress.passes import RemoveChannels, ToIntegers
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.targets import reference
from tvm_compress.tensors import input_specs

Array = NDArray[Any]


def shapes(mod: tvm.IRModule) -> dict[str, tuple[int, ...]]:
    return {name: p.value.shape for name, p in ir.parameters(mod).items()}


def removed(mod: tvm.IRModule, count: int = 8) -> tvm.IRModule:
    """Remove channels, and check that no byte changed."""
    made = RemoveChannels()(mod)
    (spec,) = input_specs(mod)
    xs = extremes(0, spec.shape[1:], count)
    for before, after in zip(
        reference.run(mod, xs).values(), reference.run(made, xs).values(), strict=True
    ):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(after, before)
        assert len(np.unique(before, axis=0)) > 1, "a network that gives one answer tests nothing"
    tvm.ir.assert_structural_equal(RemoveChannels()(made), made)
    return made


def factors(mod: tvm.IRModule, name: str) -> list[Array]:
    """Multipliers and shifts of one requantize."""
    values = {edge.var_name(b.var): b.value for b in ir.bindings(ir.main_function(mod))}
    assert edge.op_name(values[name]) == REQUANTIZE
    return [edge.constant_value(arg) for arg in values[name].args[1:]]


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


FACTORS = 2.0 ** -np.array([7.0, 7.5, 8.0, 8.5])
BIASES = np.array([100, 6000, -300, 400])


def two_layers(
    *,
    dead: int | None = 1,
    biases: Array = BIASES,
    pad: int | None = None,
    weight: Array | None = None,
    codes: bool = False,
    rounding: str = "double",
) -> tvm.IRModule:
    """Four channels between a pointwise and a 3x3 convolution; one filter is dead."""
    w1, w2 = numbers(0, 4, 2, 1, 1) if weight is None else weight, numbers(1, 3, 4, 3, 3)
    if dead is not None:
        w1[dead] = 0
    net = IntegerNet((1, 5, 5, 2))
    given: Any = w1
    if codes:
        centroids = np.array([0, -128, 9, 100], np.int8)
        given = np.where(w1 == 0, 0, w1.view(np.uint8) % 3 + 1).astype(np.uint8), centroids
    y = net.layer(net.x, given, biases, "first", factor=FACTORS, rounding=rounding)
    if pad is not None:
        y = net.padded(y, 1, pad, "second")
    y = net.layer(
        y, w2, np.array([5, -6, 7]), "second", factor=2.0**-10, zero_point=4, rounding=rounding
    )
    return net.module(y)


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_a_dead_filter_moves_into_the_next_bias(rounding: str) -> None:
    mod = two_layers(rounding=rounding)
    made = removed(mod)
    assert shapes(made) == {
        "first_weight": (3, 2, 1, 1),
        "first_bias": (3,),
        "second_weight": (3, 3, 3, 3),
        "second_bias": (3,),
    }
    before, after = ir.parameters(mod), ir.parameters(made)
    assert {p.value.dtype.name for n, p in after.items() if "bias" in n} == {"int32"}
    np.testing.assert_array_equal(
        after["first_weight"].value, before["first_weight"].value[[0, 2, 3]]
    )
    np.testing.assert_array_equal(after["first_bias"].value, BIASES[[0, 2, 3]])
    # 6000 * 2**-7.5 = 33.1, from the zero point -128
    taps = before["second_weight"].value[:, 1].astype(int).sum((1, 2))
    np.testing.assert_array_equal(after["second_bias"].value, [5, -6, 7] + taps * (33 - 128))
    was, now = factors(mod, "first_q"), factors(made, "first_q")
    assert [f.size for f in was] == ([4, 4] if rounding == "double" else [4, 1])
    for a, b in zip(was, now, strict=True):
        np.testing.assert_array_equal(b, a[[0, 2, 3]] if a.size == 4 else a)


def test_a_sum_that_is_clamped_whatever_the_input_is_a_constant() -> None:
    # |sum| is at most 2 * 128 * 128 = 32768 and the factor 2**-7.5
    for bias, goes in ((-(1 << 30), True), (-32768, True), (-32000, False), (1 << 30, True)):
        weight = numbers(0, 4, 2, 1, 1)
        weight[1] = -128
        biases = BIASES.copy()
        biases[1] = bias
        made = removed(two_layers(dead=None, biases=biases, weight=weight))
        assert shapes(made)["first_weight"][0] == 4 - goes, bias


def test_a_weight_of_minus_128_is_not_zero() -> None:
    """Its magnitude is no int8, so that a careless one is negative, and below any tolerance."""
    weight = np.zeros((4, 2, 1, 1), np.int8)
    weight[:, 0] = -128
    assert shapes(removed(two_layers(dead=None, weight=weight)))["first_weight"][0] == 4


def test_a_constant_ends_at_padding_of_another_value() -> None:
    for pad, goes in ((-128, False), (33 - 128, True), (0, False)):
        assert shapes(removed(two_layers(pad=pad)))["first_weight"][0] == 4 - goes, pad


def test_codes_go_and_centroids_stay() -> None:
    mod = two_layers(codes=True)
    made = removed(mod)
    before, after = ir.parameters(mod)["first_weight"], ir.parameters(made)["first_weight"]
    assert before.codes is not None and after.shared
    np.testing.assert_array_equal(after.codes, before.codes[[0, 2, 3]])
    np.testing.assert_array_equal(after.centroids, before.centroids)


@pytest.mark.parametrize("pad", [-128, 7])
def test_through_depthwise(pad: int) -> None:
    """Channel 0 is dead at the zero point, 1 at another number, 2 is clamped behind depthwise."""
    w1, dw, w2 = numbers(0, 4, 2, 1, 1), numbers(1, 8, 1, 3, 3), numbers(2, 3, 8, 1, 1)
    w1[:2] = 0
    net = IntegerNet((1, 5, 5, 2))
    bias = np.array([-9, 6000, 20, 30])
    y = net.layer(net.x, w1, bias, "first", factor=2.0**-7)
    bias = np.array([3, 1 << 29, 0, 0, -(1 << 29), 1 << 29, 0, 0])
    y = net.layer(net.padded(y, 1, pad, "dw"), dw, bias, "dw", groups=4, factor=2.0**-9)
    y = net.layer(y, w2, np.zeros(3), "last", factor=2.0**-8, zero_point=0)
    made = removed(net.module(y))
    # Where the border is the zero point channel 0 goes; 1 varies near it; 2 always goes.
    left = 2 if pad == -128 else 3
    assert shapes(made)["first_weight"] == (left, 2, 1, 1)
    assert shapes(made)["dw_weight"] == (2 * left, 1, 3, 3)
    assert shapes(made)["dw_bias"] == (2 * left,)
    assert shapes(made)["last_weight"] == (3, 2 * left, 1, 1)


def test_a_residual_lets_go_what_both_sides_let_go() -> None:
    for sides, left in ((("one", "two"), 3), (("one",), 4), (("two",), 4)):
        net = IntegerNet((1, 3, 3, 2))
        w = {"one": numbers(0, 4, 2, 1, 1), "two": numbers(1, 4, 2, 1, 1)}
        for name in sides:
            w[name][2] = 0
        one = net.layer(net.x, w["one"], BIASES, "one", factor=2.0**-7)
        two = net.layer(net.x, w["two"], BIASES, "two", factor=2.0**-8, zero_point=3)
        y = net.residual(one, two, "sum")
        y = net.layer(y, numbers(3, 3, 4, 1, 1), np.zeros(3), "last", factor=2.0**-8)
        made = shapes(removed(net.module(y)))
        assert made["one_weight"][0] == made["two_weight"][0] == made["last_weight"][1] == left


def test_through_a_table_a_concatenation_a_mean_and_a_product() -> None:
    net = IntegerNet((1, 4, 4, 2))
    w1, w2 = numbers(0, 3, 2, 1, 1), numbers(1, 4, 2, 1, 1)
    w1[2], w2[0] = 0, 0
    one = net.layer(net.x, w1, np.array([1, 2, 5000]), "one", factor=2.0**-7)
    table = np.random.default_rng(5).permutation(np.arange(-128, 128)).astype(np.int8)
    two = net.table(net.layer(net.x, w2, BIASES, "two", factor=FACTORS), table, "table")
    y = net.mean(net(op.concat([one, two], axis=3), "joined"), "mean")
    y = net.layer(y, numbers(4, 7, 5), np.arange(5), "last", factor=2.0**-7, zero_point=0)
    mod = net.module(y)
    made = removed(mod)
    assert shapes(made)["one_weight"] == (2, 2, 1, 1)
    assert shapes(made)["two_weight"] == (3, 2, 1, 1)
    assert shapes(made)["last_weight"] == (5, 5)
    # 5000 / 128 = 39.06; 100 / 128 = 0.78, looked up.
    last = ir.parameters(mod)["last_weight"].value.astype(int)
    moved = last[2] * (39 - 128) + last[3] * int(table[1])
    np.testing.assert_array_equal(ir.parameters(made)["last_bias"].value, np.arange(5) + moved)


def test_what_nobody_reads_goes() -> None:
    net = IntegerNet((1, 3, 3, 2))
    w2 = numbers(1, 3, 4, 1, 1)
    w2[:, 3] = 0
    y = net.layer(net.x, numbers(0, 4, 2, 1, 1), BIASES, "first", factor=FACTORS)
    y = net.layer(y, w2, np.zeros(3), "second", factor=2.0**-9, zero_point=0)
    assert shapes(removed(net.module(y)))["first_weight"] == (3, 2, 1, 1)


def test_factors_along_another_axis_hold_the_channels() -> None:
    net = IntegerNet((1, 4, 4, 2))
    w1 = numbers(0, 4, 2, 1, 1)
    w1[1] = 0
    acc = op.nn.conv2d(
        net.x,
        net.parameter(w1, "first_weight"),
        data_layout="NHWC",
        kernel_layout="OIHW",
        out_dtype="int32",
    )
    y = net.steps(net(acc, "first"), "first_q", FACTORS, axis=1, zero_point=0)
    y = net.layer(y, numbers(1, 3, 4, 1, 1), np.zeros(3), "second", factor=2.0**-8, zero_point=0)
    assert shapes(removed(net.module(y)))["first_weight"][0] == 4


def test_inputs_and_outputs_keep_their_channels() -> None:
    net = IntegerNet((1, 3, 3, 2))
    w1 = numbers(0, 4, 2, 1, 1)
    w1[1], w1[:, 0] = 0, 0
    mod = net.module(net.layer(net.x, w1, BIASES, "first", factor=FACTORS))
    tvm.ir.assert_structural_equal(removed(mod), mod)


def test_a_bias_is_made_where_there_is_none() -> None:
    """Int16 weights, as those of uint8 networks with a zero point."""
    net = IntegerNet((1, 2))
    w1 = np.array([[3, 0], [5, 0]], np.int8)
    y = net.layer(net.x, w1, np.array([0, 1 << 20]), "first", factor=2.0**-3)  # 127
    w2 = np.array([[3, -200], [255, 199]], np.int16)
    acc = net(op.matmul(y, net.parameter(w2, "second_weight"), out_dtype="int32"), "second")
    made = [p.value for p in ir.parameters(removed(net.module(acc))).values()]
    assert [value.shape for value in made] == [(2, 1), (1,), (1, 2), (2,)]
    assert [str(value.dtype) for value in made] == ["int8", "int32", "int16", "int32"]
    assert made[-1].tolist() == [127 * 255, 127 * 199]


@settings(max_examples=30)
@given(
    st.integers(0, 10**6),
    st.sampled_from([-128, -128, 33, 0]),
    *[st.booleans() for _ in range(5)],
)
def test_no_byte_changes_whatever_is_planted(
    seed: int, value: int, depthwise: bool, residual: bool, concat: bool, table: bool, shared: bool
) -> None:
    mod = random_net(
        seed,
        padding=1,
        pad_value=value,
        depthwise=depthwise,
        residual=residual,
        concat=concat,
        table=table,
        shared=shared,
    )
    made = RemoveChannels()(mod)
    xs = extremes(seed, (5, 5, 3), 6)
    (before,), (after,) = (reference.run(m, xs).values() for m in (mod, made))
    np.testing.assert_array_equal(after, before)


def test_the_random_networks_lose_channels() -> None:
    """Else the property above would say little."""
    parts = {"depthwise": True, "residual": True, "concat": True, "table": True}
    lost = []
    for seed in range(12):
        mod = random_net(seed, padding=1, **parts)
        made = shapes(RemoveChannels()(mod))
        lost.append({n: w[0] - made[n][0] for n, w in shapes(mod).items() if "weight" in n})
    for name in ("first_weight", "dw_weight", "second_weight", "side_weight", "last_weight"):
        assert sum(one[name] for one in lost) > 0, name


def quantised() -> tvm.IRModule:
    """QDQ of a dead filter and a product."""
    scale, zero = np.float32(0.1), np.int8(0)

    def body(x: Any, w1: Any, w2: Any) -> Any:
        def real(q: Any) -> Any:
            return op.dequantize(
                q, edge.constant(np.asarray(scale)), edge.constant(np.asarray(zero))
            )

        def steps(y: Any) -> Any:
            return op.quantize(
                y,
                edge.constant(np.asarray(scale)),
                edge.constant(np.asarray(zero)),
                out_dtype="int8",
            )

        y = real(steps(op.matmul(real(x), real(w1))))
        return steps(op.matmul(y, real(w2)))

    w1, w2 = numbers(0, 3, 4), numbers(1, 4, 2)
    w1[:, 2] = 0
    return tc.load(module({"x": (1, 3)}, {"w1": w1, "w2": w2}, body, dtype="int8"))


def test_leaves_qdq_and_takes_what_to_integers_makes_of_it() -> None:
    mod = quantised()
    tvm.ir.assert_structural_equal(removed(mod), mod)
    integers = Canonicalize()(ToIntegers()(mod))
    assert shapes(removed(integers))["w1"] == (3, 3)


def test_build_removes_channels_of_integers_alone(tmp_path: Path) -> None:
    built = tc.build(quantised(), target="reference", out_dir=tmp_path)
    (file,) = built.files.values()
    assert shapes(tc.load(file))["w1"] == (3, 3)
    w1 = numbers(0, 3, 4).astype(np.float32)
    w1[:, 2] = 0

    def body(x: Any, w1: Any, w2: Any) -> Any:
        return op.matmul(op.matmul(x, w1), w2)

    w2 = numbers(1, 4, 2).astype(np.float32)
    floats = tc.load(module({"x": (1, 3)}, {"w1": w1, "w2": w2}, body))
    built = tc.build(floats, target="reference", out_dir=tmp_path / "float")
    (file,) = built.files.values()
    assert shapes(tc.load(file))["w1"] == (3, 4)


def integers_of(path: Path) -> tvm.IRModule:
    return Canonicalize()(ToIntegers()(tc.load(path)))


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["vww_96", "kws_dscnn", "ic_resnet8"])
def test_published_networks_give_the_same_bytes(shared_data: Path, name: str) -> None:
    folder = shared_data / "mlperf_tiny"
    mod = integers_of(folder / f"{name}_int8.tflite")
    made = RemoveChannels()(mod)
    (spec,) = input_specs(mod)
    if name == "kws_dscnn":
        real = np.load(folder / "kws01_a500.npz")["mfcc_int8"][:20]
    else:
        images = folder / "vww_coco_96_train128.npz"
        if name == "ic_resnet8":
            images = shared_data / "datasets" / "cifar10_lossless_train_a2000.npz"
        real = (np.load(images)["image"][:20].astype(np.int16) - 128).astype(np.int8)
    real = real.reshape(20, *spec.shape[1:])
    for x in (real, extremes(0, spec.shape[1:], 10)):
        (before,), (after,) = (reference.run(m, x).values() for m in (mod, made))
        assert len(np.unique(before, axis=0)) > 2
        np.testing.assert_array_equal(after, before)


@pytest.mark.shared_data
def test_the_dead_channels_of_a_published_integer_network(shared_data: Path) -> None:
    def pointwise(mod: tvm.IRModule) -> int:
        found = [w.parameter.value.shape for w in ir.weights(mod).values()]
        return sum(s[0] for s in found if len(s) == 4 and s[1] > 1 and s[2:] == (1, 1))

    mod = integers_of(shared_data / "mlperf_tiny" / "vww_96_int8.tflite")
    made = RemoveChannels()(mod)
    assert (pointwise(mod), pointwise(made)) == (1488, 509)
    sizes = [sum(w.parameter.value.size for w in ir.weights(m).values()) for m in (mod, made)]
    assert sizes == [208112, 29066]
