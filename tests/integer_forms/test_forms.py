"""Every operator with an integer form: reference and C agree, and are a step from the reals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tvm_compress as tc
from tests.quantised_nets import OP, dequantize, f32, floats, net, quantize
from tvm_compress.passes import ToIntegers
from tvm_compress.targets import reference

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
