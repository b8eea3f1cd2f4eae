"""``fixed-point``: what stands in the module, its numbers on all targets, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from tests.passes.nets import BIAS, CONV, FC, conv_net, spoilt_by, values
from tvm_compress import edge, ir
from tvm_compress.errors import OptionError, PassError
from tvm_compress.fixed_point import best_steps, encode, grid, step_of
from tvm_compress.ops import codebook
from tvm_compress.passes import Canonicalize, FixedPoint, Prune, ShareWeights
from tvm_compress.targets import reference

X = np.random.default_rng(7).standard_normal((1, 2, 5, 5)).astype(np.float32)


def expected_net(scales: bool) -> tvm.IRModule:
    """What stands for the network of ``conv_net`` in 4 bits, written down by hand."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2, 5, 5), "float32"))

    def weight(value: Any, axis: int) -> tuple[Any, Any]:
        if not scales:
            step = best_steps(value.reshape(1, -1), 4)[0]
            return codebook(*map(edge.constant, (encode(value, 4, step), grid(4, step)))), None
        # Rows by channel: the convolution's first axis, the product's second.
        rows = value.reshape(4, -1) if axis == 0 else value.T
        steps = best_steps(rows, 4)
        shaped = steps.reshape(4, 1, 1, 1) if axis == 0 else steps
        return codebook(*map(edge.constant, (encode(value, 4, shaped), grid(4)))), steps

    with builder.function("main", [x]):
        with builder.dataflow():
            made, steps = weight(CONV, 0)
            w = builder.emit(made, "conv_weight")
            y = builder.emit(relax.op.nn.conv2d(x, w), "conv_sum" if scales else "conv")
            if scales:
                s = builder.emit(edge.constant(steps.reshape(4, 1, 1)), "conv_weight_scale")
                y = builder.emit(relax.op.multiply(y, s), "conv")
            b = builder.emit(edge.constant(BIAS), "conv_bias")
            y = builder.emit(relax.op.nn.relu(builder.emit(relax.op.add(y, b), "biased")), "relu")
            y = builder.emit(relax.op.mean(y, [2, 3]), "mean")
            made, steps = weight(FC, 1)
            w = builder.emit(made, "fc_weight")
            y = builder.emit(relax.op.matmul(y, w), "fc_sum" if scales else "fc")
            if scales:
                s = builder.emit(edge.constant(steps), "fc_weight_scale")
                y = builder.emit(relax.op.multiply(y, s), "fc")
            y = builder.emit_output(y, "y")
        builder.emit_func_output(y)
    return builder.get()


@pytest.mark.parametrize("scale", ["tensor", "channel"])
def test_the_module(scale: Any) -> None:
    made = FixedPoint(bits=4, scale=scale)(conv_net())
    expected = ir.replace_parameters(expected_net(scale == "channel"), {})
    tvm.ir.assert_structural_equal(made, expected)
    assert list(ir.parameters(made)) == list(ir.parameters(expected))


@pytest.mark.parametrize("scale", ["tensor", "channel"])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_numbers(bits: int, scale: Any, power_of_two: bool) -> None:
    made = FixedPoint(bits, scale, power_of_two)(Prune(0.3)(conv_net()))
    parameters = ir.parameters(made)
    dense = {}
    for name, axis in (("conv_weight", 0), ("fc_weight", 1)):
        parameter = parameters[name]
        step = step_of(parameter.centroids)
        assert step is not None and parameter.centroids.size == 2**bits
        scales = parameters[f"{name}_scale"].value if scale == "channel" else np.float32(step)
        assert scale == "tensor" or step == 1
        if power_of_two:
            assert (np.frexp(scales)[0] == 0.5).all()
        places = [1] * parameter.value.ndim
        places[axis] = -1
        dense[name] = parameter.value * (scales.reshape(places) if scale == "channel" else 1)
    before = values(Prune(0.3)(conv_net()))
    for name, value in dense.items():
        assert not value[before[name] == 0].any()  # zeros stay zeros
        error = np.sqrt(np.square(value - before[name]).mean())
        assert error <= np.abs(before[name]).max() * 2 / 2**bits
    # An independent network of the dense values gives the same results.
    (expected,) = reference.run(conv_net(dense["conv_weight"], dense["fc_weight"]), X).values()
    (y,) = reference.run(made, X).values()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    machine = relax.VirtualMachine(tvm.compile(made, "llvm"), tvm.cpu())
    np.testing.assert_allclose(
        machine["main"](tvm.runtime.tensor(X)).numpy(), expected, rtol=1e-4, atol=1e-5
    )


def test_a_step_for_each_channel_is_nearer() -> None:
    wide = CONV * np.array([0.01, 1, 10, 100], np.float32).reshape(4, 1, 1, 1)
    made = ir.parameters(FixedPoint(4, "channel")(conv_net(wide)))
    rebuilt = made["conv_weight"].value * made["conv_weight_scale"].value.reshape(4, 1, 1, 1)
    assert np.abs(rebuilt - wide)[0].max() < 0.02 * 0.25 * np.abs(CONV[0]).max()
    (tensor,) = [values(FixedPoint(4)(conv_net(wide)))["conv_weight"]]
    assert not tensor[0].any()


def test_canonical_form_keeps_the_step_behind_the_sum() -> None:
    made = FixedPoint(4, "channel")(conv_net())
    tvm.ir.assert_structural_equal(Canonicalize()(made), made)


@pytest.mark.parametrize("scale", ["tensor", "channel"])
def test_c_gives_the_numbers_from_packed_codes(scale: Any) -> None:
    made = FixedPoint(3, scale)(conv_net())
    built = tc.build(made, target="c")
    (expected,) = reference.run(made, X).values()
    (y,) = built.run(X).values()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_grouped_and_transposed_convolutions_have_a_step_for_each_channel() -> None:
    rng = np.random.default_rng(2)
    depthwise = rng.standard_normal((4, 1, 3, 3)).astype(np.float32)
    back = rng.standard_normal((4, 3, 2, 2)).astype(np.float32)  # two groups: 6 output channels
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 6, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(edge.constant(depthwise), "depthwise")
            y = builder.emit(relax.op.nn.conv2d(x, w, groups=4), "conv")
            w = builder.emit(edge.constant(back), "back")
            y = builder.emit(relax.op.nn.conv2d_transpose(y, w, groups=2), "transposed")
            y = builder.emit_output(y, "y")
        builder.emit_func_output(y)
    mod = builder.get()
    made = FixedPoint(8, "channel")(mod)
    assert ir.parameters(made)["back_scale"].value.shape == (6, 1, 1)
    sample = rng.standard_normal((1, 4, 6, 6)).astype(np.float32)
    (before,), (after,) = (reference.run(m, sample).values() for m in (mod, made))
    np.testing.assert_allclose(after, before, atol=0.03 * np.abs(before).max())


def test_biases_by_their_place() -> None:
    after = values(FixedPoint(4, biases=3)(conv_net()))["conv_bias"]
    step = best_steps(BIAS.reshape(1, -1), 3)[0]
    np.testing.assert_array_equal(after, grid(3, step)[encode(BIAS, 3, step)])
    np.testing.assert_array_equal(values(FixedPoint(4)(conv_net()))["conv_bias"], BIAS)


def test_first_last_and_patterns() -> None:
    made = ir.parameters(FixedPoint(4, first=0, last=6)(conv_net()))
    np.testing.assert_array_equal(made["conv_weight"].value, CONV)
    assert not made["conv_weight"].shared and made["fc_weight"].centroids.size == 64
    made = ir.parameters(FixedPoint(4, last=6, layers={"fc*": 0, "conv*": 2})(conv_net()))
    assert not made["fc_weight"].shared and made["conv_weight"].centroids.size == 4


def test_refuses_options_outside_their_range() -> None:
    for options, message in (
        ({"bits": 1}, "the weights have 1 bits; expected a whole number from 2 to 8."),
        ({"biases": 9}, "the biases have 9 bits; expected a whole number from 2 to 8."),
        ({"scale": "row"}, "the scale is row; expected tensor or channel."),
        *(
            (
                own,
                "a layer's weights have 1 bits; expected a whole number from 2 to 8, or 0 to leave "
                "them dense.",
            )
            for own in ({"first": 1}, {"last": 1}, {"layers": {"a": 1}})
        ),
    ):
        with pytest.raises(OptionError) as caught:
            FixedPoint(**options)  # type: ignore[arg-type]
        assert str(caught.value) == f"fixed-point: {message}"


def test_refuses_weights_that_it_cannot_round() -> None:
    with pytest.raises(PassError, match=r"^fixed-point: the weight conv_weight is already shared;"):
        FixedPoint()(ShareWeights()(conv_net()))
    with pytest.raises(PassError, match=r"^fixed-point: .* holds 1 NaN;"):
        FixedPoint()(conv_net(fc=spoilt_by(np.nan)))
    with pytest.raises(OptionError, match=r"^fixed-point: the pattern lstm\* fits no weight;"):
        FixedPoint(layers={"lstm*": 4})(conv_net())


def _product(left: bool, twice: bool, dtype: str = "float32") -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((3, 3), dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(edge.constant(np.eye(3, dtype=dtype)), "w")
            y = builder.emit(relax.op.matmul(w, x) if left else relax.op.matmul(x, w), "y")
            y = builder.emit(relax.op.matmul(y, w), "z") if twice else y
            y = builder.emit_output(y, "out")
        builder.emit_func_output(y)
    return builder.get()


def test_refuses_a_step_for_each_channel_where_there_is_no_place_for_it() -> None:
    with pytest.raises(PassError) as caught:
        FixedPoint(scale="channel")(_product(left=False, twice=True))
    assert str(caught.value) == (
        "fixed-point: the weight w is used 2 times; expected one use for a step for each channel: "
        'give scale="tensor", or 0 bits for it in layers.'
    )
    with pytest.raises(PassError) as caught:
        FixedPoint(scale="channel")(_product(left=True, twice=False))
    assert str(caught.value) == (
        "fixed-point: the weight w is the left side of a product; expected the right side for a "
        'step for each channel: give scale="tensor", or 0 bits for it in layers.'
    )
    for mod in (_product(left=False, twice=True), _product(left=True, twice=False)):
        assert ir.parameters(FixedPoint(4)(mod))["w"].shared
    with pytest.raises(PassError) as caught:
        FixedPoint()(_product(left=False, twice=False, dtype="float64"))
    assert str(caught.value) == (
        "fixed-point: the weight w is float64; expected float32: convert the network before it is "
        "compressed."
    )
