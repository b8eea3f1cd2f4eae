"""Ranges of integers: what the reference interpreter computes lies in them, and reaches them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax
from tvm.relax import op

from tests.integer_nets import IntegerNet, extremes, random_net
from tvm_compress import edge, ir
from tvm_compress.integer_ranges import integer_ranges
from tvm_compress.ops import softmax
from tvm_compress.targets.reference.interpreter import evaluate

Array = NDArray[Any]
EVERY = np.arange(-128, 128, dtype=np.int8)


def intermediates(mod: tvm.IRModule, x: Array) -> dict[str, Array]:
    """Every computed tensor for one input."""
    function = ir.main_function(mod)
    values: dict[Any, Any] = dict(zip(function.params, [x], strict=True))
    for binding in ir.bindings(function):
        values[binding.var] = evaluate(binding.value, values)
    return {edge.var_name(var): value for var, value in values.items()}


def check(mod: tvm.IRModule, xs: Array) -> None:
    """Every intermediate of every input lies in its range, and every range in its dtype."""
    ranges = integer_ranges(mod)
    for x in xs:
        for name, value in intermediates(mod, x).items():
            if name in ranges:
                low, high = ranges[name].low, ranges[name].high
                assert low.ndim == high.ndim == value.ndim
                assert (low <= value).all() and (value <= high).all(), name
                info = np.iinfo(value.dtype)
                assert low.min() >= info.min and high.max() <= info.max


def ends(mod: tvm.IRModule, name: str) -> tuple[list[int], list[int]]:
    found = integer_ranges(mod)[name]
    return found.low.ravel().tolist(), found.high.ravel().tolist()


@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.integers(0, 1),
    st.sampled_from([-128, 0, 90]),
    *[st.booleans() for _ in range(4)],
)
def test_no_input_leaves_its_ranges(
    seed: int, padding: int, value: int, depthwise: bool, residual: bool, concat: bool, table: bool
) -> None:
    # Where depthwise takes borders away, what it is joined with would not fit.
    padding = padding or int(residual or concat)
    parts = {"depthwise": depthwise, "residual": residual, "concat": concat, "table": table}
    mod = random_net(seed, padding=padding, pad_value=value, **parts)
    check(mod, extremes(seed, (1, 5, 5, 3), 2))


PAIRS = np.stack(np.meshgrid(EVERY, EVERY), -1).reshape(-1, 2)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["single", "double"]), st.sampled_from([-9, 1, 12]))
def test_of_a_layer_the_ranges_are_reached(seed: int, rounding: str, exponent: int) -> None:
    """All 65,536 inputs of a product of two; large factors may make the sums wrap."""
    rng = np.random.default_rng(seed)
    net = IntegerNet((len(PAIRS), 2))
    weight = rng.integers(-128, 128, (2, 5)).astype(np.int8)
    bias = rng.integers(-(2**18), 2**18, 5)
    factor = 2.0 ** (exponent - rng.random(5))
    y = net.layer(net.x, weight, bias, "fc", factor=factor, rounding=rounding, zero_point=-7)
    mod = net.module(y)
    found, values = integer_ranges(mod), intermediates(mod, PAIRS)
    for name in ("fc_sum", "fc_q"):
        low, high = (np.broadcast_to(e, (1, 5))[0] for e in (found[name].low, found[name].high))
        least, most = values[name].min(0), values[name].max(0)
        exact = rounding == "single" or name == "fc_sum" or exponent < 12
        if exact:
            np.testing.assert_array_equal(low, least)
            np.testing.assert_array_equal(high, most)
        assert (low <= least).all() and (most <= high).all()


def test_sums_that_wrap_before_the_rounding_may_be_anything() -> None:
    """Both ends of channel 0, 8 and 2303 times 2**21, wrap to positive numbers; 1160 does not."""
    net = IntegerNet((1, 1))
    weight, bias = np.array([[9, 0]], np.int8), np.array([1160, 40])
    factor = np.array([2.0**20, 0.25])
    mod = net.module(net.layer(net.x, weight, bias, "fc", factor=factor, zero_point=0, low=-50))
    assert ends(mod, "fc_q") == ([-50, 10], [127, 10])
    reached = [intermediates(mod, np.array([[x]], np.int8))["fc_q"][0, 0] for x in (-128, 0, 127)]
    assert reached == [127, -50, 127]


def test_a_convolution_s_own_padding_holds_zeros() -> None:
    """Channel 0 is 5 everywhere and the weight 3: 15 in the middle, less where zeros are read."""
    for padding, low in ((0, 135), (1, 0)):
        net = IntegerNet((1, 4, 4, 1))
        x = net(op.clip(net.x, 5.0, 5.0), "five")
        weight = net.parameter(np.full((1, 1, 3, 3), 3, np.int8), "w")
        call = op.nn.conv2d(
            x, weight, padding=padding, data_layout="NHWC", kernel_layout="OIHW", out_dtype="int32"
        )
        mod = net.module(net(call, "conv"))
        assert ends(mod, "conv") == ([low], [135])
        check(mod, extremes(0, (1, 4, 4, 1), 1))


def test_groups_read_their_own_channels_in_any_layout() -> None:
    """Channels 0, 1 are 0..1 and 2, 3 are -1..0; two groups of two inputs and two outputs."""
    for data, kernel in (("NHWC", "OIHW"), ("NCHW", "OIHW"), ("NCHW", "HWIO")):
        axis = data.index("C")
        net = IntegerNet((1, 3, 3, 4) if data == "NHWC" else (1, 4, 3, 3))
        bounds = np.array([0, 0, -1, -1], np.int8).reshape(
            [4 if i == axis else 1 for i in range(4)]
        )
        x = net(op.clip(net.x, 0.0, 1.0), "bit")
        x = net(op.add(x, relax.const(bounds)), "moved")
        weight = np.array([[1, 2], [-3, 4], [5, 6], [-7, 8]], np.int8).reshape(4, 2, 1, 1)
        if kernel == "HWIO":
            weight = weight.transpose(2, 3, 1, 0)
        call = op.nn.conv2d(
            x,
            net.parameter(weight, "w"),
            groups=2,
            data_layout=data,
            kernel_layout=kernel,
            out_dtype="int32",
        )
        mod = net.module(net(call, "conv"))
        assert ends(mod, "conv") == ([0, -3, -11, -8], [3, 4, 0, 7])
        assert integer_ranges(mod)["conv"].low.shape[axis] == 4
        check(mod, extremes(0, tuple(edge.static_shape(net.x) or ()), 2))


def test_a_table_gives_the_extremes_of_what_is_reached() -> None:
    table = ((np.arange(256) * 37) % 251).astype(np.int32)
    net = IntegerNet((1, 2))
    x = net(op.clip(net.x, -3.0, 4.0), "clipped")
    mod = net.module(net.table(x, table, "looked"))
    part = table[125:133]
    assert ends(mod, "looked") == ([part.min()], [part.max()])


@pytest.mark.parametrize(
    ("build", "low", "high"),
    [
        (lambda x, c: op.add(x, c(7)), -3, 12),
        (lambda x, c: op.subtract(c(7), x), 2, 17),
        (lambda x, c: op.subtract(x, x), -15, 15),
        (lambda x, c: op.multiply(x, x), -50, 100),
        (lambda x, c: op.multiply(x, c(-3)), -15, 30),
        (lambda x, c: op.maximum(x, c(-2)), -2, 5),
        (lambda x, c: op.minimum(x, c(-2)), -10, -2),
        (lambda x, c: op.divide(x, c(3)), -3, 1),
        (lambda x, c: op.floor_divide(x, c(3)), -4, 1),
        (lambda x, c: op.divide(c(100), op.add(x, c(11))), 6, 100),
        (lambda x, c: op.right_shift(x, c(1)), -5, 2),
        (lambda x, c: op.left_shift(x, c(4)), -160, 80),
        (lambda x, c: op.nn.relu(x), 0, 5),
        (lambda x, c: op.sum(x, [1]), -40, 20),
        (lambda x, c: op.max(x, [1]), -10, 5),
        # What is not known, or could wrap, is anything of its dtype.
        (lambda x, c: op.divide(c(100), x), -(2**31), 2**31 - 1),
        (lambda x, c: op.right_shift(c(1), x), -(2**31), 2**31 - 1),
        (lambda x, c: op.left_shift(x, c(29)), -(2**31), 2**31 - 1),
        (lambda x, c: op.multiply(op.multiply(x, c(2**20)), c(2**8)), -(2**31), 2**31 - 1),
        (lambda x, c: op.astype(op.multiply(x, c(13)), "int8"), -128, 127),
        (lambda x, c: op.astype(op.multiply(x, c(12)), "int8"), -120, 60),
        (lambda x, c: op.astype(op.astype(x, "float32"), "int8"), -128, 127),
        (lambda x, c: op.astype(op.astype(x, "int64"), "int8"), -128, 127),
        (lambda x, c: op.multiply(x, c(-(2**28))), -(2**31), 2**31 - 1),
        (lambda x, c: op.negative(x), -(2**31), 2**31 - 1),
        # Products of int32 with a weight could leave int64, so they are not followed.
        (
            lambda x, c: op.matmul(x, relax.const(np.ones((4, 1), np.int32)), out_dtype="int32"),
            -(2**31),
            2**31 - 1,
        ),
    ],
)
def test_of_one_operator(build: Any, low: int, high: int) -> None:
    """Of an int32 between -10 and 5, four of them."""
    net = IntegerNet((1, 4))
    x = net(op.astype(net(op.clip(net.x, -10.0, 5.0), "clipped"), "int32"), "wide")
    y = net(build(x, lambda number: relax.const(number, "int32")), "result")
    mod = net.module(y)
    # Canonical modules bind what stands within another call, and may drop what changes nothing.
    ((name, _),) = edge.outputs_of(ir.main_function(mod))[0]
    assert ends(mod, name) == ([low], [high])


def test_padding_reshapes_and_pools_keep_elements_apart() -> None:
    net = IntegerNet((1, 2, 2, 2))
    x = net(op.minimum(net.x, relax.const(np.array([-100, 50], np.int8))), "low")
    padded = net(op.nn.pad(x, [0, 0, 1, 0, 0, 0, 0, 1], pad_value=-128.0), "padded")
    pooled = net(op.nn.max_pool2d(padded, (2, 2), (1, 1), padding=1, layout="NHWC"), "pooled")
    joined = net(op.concat([padded, padded], axis=3), "joined")
    flat = net(op.reshape(joined, [1, 36]), "flat")
    both = net(op.sum(op.astype(flat, "int32"), [1]), "both")
    turned = net(op.permute_dims(pooled, [0, 3, 1, 2]), "turned")
    least = net(op.min(op.astype(turned, "int32"), [1, 3]), "least")
    mod = net.module(net(op.add(op.sum(least, [1]), both), "end"))
    # In all of this no element falls when an input rises.
    found = integer_ranges(mod)
    lowest, highest = (
        intermediates(mod, np.full((1, 2, 2, 2), end, np.int8)) for end in (-128, 127)
    )
    assert {"padded", "pooled", "joined", "flat", "both", "turned", "least"} <= set(found)
    for name, one in found.items():
        np.testing.assert_array_equal(np.broadcast_to(one.low, lowest[name].shape), lowest[name])
        np.testing.assert_array_equal(np.broadcast_to(one.high, lowest[name].shape), highest[name])
    # A border of -128 in front and on the right; the filter of 9 has 3 of its own.
    assert found["both"].high.item() == 2 * (4 * (-100 + 50 - 128) + 2 * 3 * -128)


def test_other_operators_and_floats() -> None:
    net = IntegerNet((1, 4))
    exps = np.arange(256, dtype=np.int32)
    soft = net(softmax(net(op.clip(net.x, 3.0, 4.0), "clipped"), exps, -1), "soft")
    mod = net.module(net(op.astype(soft, "float32"), "float"))
    assert ends(mod, "soft") == ([-128], [127])
    assert "float" not in integer_ranges(mod)


def test_constants_of_an_axis() -> None:
    net = IntegerNet((1, 2, 2, 3))
    bounds = np.array([-128, 4, -128], np.int8)
    x = net(op.minimum(net.x, relax.const(bounds)), "low")
    mod = net.module(net(op.maximum(x, relax.const(np.int8(-128))), "end"))
    found = next(r for n, r in integer_ranges(mod).items() if n == "low")
    np.testing.assert_array_equal(found.constants(3, 3), [-128, np.nan, -128])
    np.testing.assert_array_equal(found.constants(1, 2), [np.nan, np.nan])
