"""Convolutions and products in integers; numpy's int64 is the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantised_nets import OP, RNG, X, convolution, dequantize, i32, net, quantize
from tvm_compress import edge, ir
from tvm_compress.errors import UnsupportedError
from tvm_compress.ops import codebook
from tvm_compress.passes import ToIntegers
from tvm_compress.targets import reference


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
