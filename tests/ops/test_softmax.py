"""``softmax`` and ``lookup``: their numbers on all targets, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from tvm_compress.ops import lookup, lookup_numpy, softmax, softmax_numpy
from tvm_compress.tflite_arithmetic import exp_table


def net(shape: tuple[int, ...], build: Callable[[Any], Any], dtype: str = "int8") -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(builder.emit(build(x)), "y")
        builder.emit_func_output(y)
    return builder.get()


def on_all(mod: tvm.IRModule, x: Any) -> list[Any]:
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    built = [next(iter(tc.build(mod, target=t).run(x).values())) for t in ("reference", "c")]
    return [*built, machine["main"](tvm.runtime.tensor(x)).numpy()]


@pytest.mark.parametrize(
    ("shape", "axis", "scale"),
    [((3, 12), 1, 0.05), ((2, 5, 7), 1, 0.3), ((1, 4000), -1, 1.5), ((6, 1), 1, 0.01)],
)
def test_softmax(shape: tuple[int, ...], axis: int, scale: float) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, shape).astype(np.int8)
    table = exp_table(scale, 1.0)
    real = np.exp((x.astype(np.float64) - x.max(axis, keepdims=True)) * scale)
    steps = np.clip(np.round(real / real.sum(axis, keepdims=True) * 256) - 128, -128, 127)
    expected = softmax_numpy(x, table, axis)
    assert np.abs(expected - steps).max() <= 1
    for result in on_all(net(shape, lambda x: softmax(x, table, axis)), x):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", ["int8", "int32"])
def test_lookup(dtype: str) -> None:
    rng = np.random.default_rng(2)
    table = rng.integers(-128, 128, 256).astype(dtype)
    x = np.arange(-128, 128).reshape(4, 64).astype(np.int8)
    expected = table.reshape(4, 64)
    np.testing.assert_array_equal(lookup_numpy(x, table), expected)
    for result in on_all(net((4, 64), lambda x: lookup(x, table)), x):
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, expected)


TABLE = np.zeros(256, np.int32)


@pytest.mark.parametrize(
    ("build", "dtype", "sentence"),
    [
        (
            lambda x: softmax(x, TABLE, 1),
            "int32",
            "tvm_compress.softmax: the input is int32; expected int8.",
        ),
        (
            lambda x: softmax(x, TABLE[:9], 1),
            "int8",
            "tvm_compress.softmax: the table is int32 of shape (9,); expected 256 entries of "
            "int32.",
        ),
        (
            lambda x: softmax(x, TABLE, 2),
            "int8",
            "tvm_compress.softmax: the axis 2 of shape (2, 4096) has no or more than 4095 "
            "elements; expected an axis of the input, whose sum has 12 integer bits.",
        ),
        (
            lambda x: softmax(x, TABLE, 1),
            "int8",
            "tvm_compress.softmax: the axis 1 of shape (2, 4096) has no or more than 4095 "
            "elements; expected an axis of the input, whose sum has 12 integer bits.",
        ),
        (
            lambda x: lookup(x, TABLE),
            "uint8",
            "tvm_compress.lookup: the input is uint8; expected int8.",
        ),
        (
            lambda x: lookup(x, TABLE.astype(np.int16)),
            "int8",
            "tvm_compress.lookup: the table is int16 of shape (256,); expected 256 entries of int8 "
            "or int32.",
        ),
    ],
)
def test_what_they_refuse(build: Callable[[Any], Any], dtype: str, sentence: str) -> None:
    with pytest.raises(TypeError) as caught:
        net((2, 4096), build, dtype)
    assert str(caught.value) == sentence
