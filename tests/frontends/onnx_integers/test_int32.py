"""Exact int32 of ConvInteger and MatMulInteger; onnxruntime and numpy are the judges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from onnx import helper

from benchmarks.frontends import judge_onnx
from tests.frontends.onnx_integers.models import CONVOLUTIONS, integers, model, refused, run
from tvm_compress import ir
from tvm_compress.errors import UnsupportedError
from tvm_compress.frontends import load


@pytest.mark.parametrize("zeros", [(0, 0), (255, 0), (17, -128), (0, 127)])
def test_an_integer_product_is_exact_where_float_is_not(zeros: tuple[int, int]) -> None:
    a = np.full((2, 3000), 255, np.uint8)
    a[1] = integers(0, (3000,), np.uint8)
    b = integers(1, (3000, 4), np.int8)
    b[:, 0], b[::2, 1] = 127, -128
    constants = {"b": b, "az": np.asarray(zeros[0], np.uint8), "bz": np.asarray(zeros[1], np.int8)}
    node = helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"], name="mm")
    made = model([node], {"a": a}, ["y"], constants)
    wanted = (a.astype(np.int64) - zeros[0]) @ (b.astype(np.int64) - zeros[1])
    if zeros[0] != 255:
        assert np.abs(wanted).max() > 1 << 24
    (y,) = run(made, {"a": a})
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(judge_onnx(made.SerializeToString(), [a])[0], wanted)
    parameter = ir.parameters(load(made))["b"]
    assert parameter.value.dtype == (np.int8 if zeros[1] == 0 else np.int16)
    np.testing.assert_array_equal(parameter.value, b.astype(np.int64) - zeros[1])


def test_zero_points_by_row_and_column() -> None:
    a, b = integers(0, (5, 9), np.uint8), integers(1, (9, 4), np.uint8)
    rows, columns = integers(2, (5,), np.uint8), integers(3, (4,), np.uint8)
    node = helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])
    made = model([node], {"a": a}, ["y"], {"b": b, "az": rows, "bz": columns})
    wanted = (a.astype(np.int64) - rows[:, None]) @ (b.astype(np.int64) - columns)
    np.testing.assert_array_equal(run(made, {"a": a})[0], wanted)


@pytest.mark.parametrize("options", [*CONVOLUTIONS, {"pads": [2, 1, 0, 3]}])
@pytest.mark.parametrize("w_type", [np.int8, np.uint8])
def test_an_integer_convolution_is_exact(w_type: Any, options: dict[str, Any]) -> None:
    x = integers(0, (1, 4, 9, 8), np.uint8)
    w = integers(1, (6, 4 // options.get("group", 1), 3, 2), w_type)
    constants = {
        "w": w,
        "xz": np.asarray(131, np.uint8),
        "wz": np.asarray(0 if w_type == np.int8 else 100, w_type),
    }
    node = helper.make_node("ConvInteger", ["x", *constants], ["y"], name="conv", **options)
    made = model([node], {"x": x}, ["y"], constants, opset=10)
    (y,) = run(made, {"x": x})
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, judge_onnx(made.SerializeToString(), [x])[0])
    assert ir.parameters(load(made))["w"].value.dtype == (w_type if w_type == np.int8 else np.int16)


def test_an_integer_convolution_of_one_dimension_without_zero_points() -> None:
    x, w = integers(0, (1, 2, 9), np.uint8), integers(1, (3, 2, 4), np.int8)
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], pads=[2, 1])
    made = model([node], {"x": x}, ["y"], {"w": w})
    padded = np.pad(x, [(0, 0), (0, 0), (2, 1)]).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 4, axis=2)
    wanted = np.einsum("nipk,oik->nop", windows, w.astype(np.int64))
    np.testing.assert_array_equal(run(made, {"x": x})[0], wanted)


def test_integer_operators_compile_by_the_stock_pipeline() -> None:
    x, w = integers(0, (1, 4, 6, 6), np.uint8), integers(1, (3, 4, 3, 3), np.int8)
    node = helper.make_node("ConvInteger", ["x", "w", "xz"], ["y"], pads=[1, 1, 1, 1])
    made = model([node], {"x": x}, ["y"], {"w": w, "xz": np.asarray(90, np.uint8)})
    mod = load(made)
    executable = tvm.compile(mod, target="llvm")
    machine = tvm.relax.VirtualMachine(executable, tvm.cpu())
    y = machine["main"](tvm.runtime.tensor(x)).numpy()
    np.testing.assert_array_equal(y, run(made, {"x": x})[0])


def test_an_integer_convolution_of_too_many_dimensions() -> None:
    x, w = integers(0, (1, 2, 2, 2, 2, 2), np.uint8), integers(1, (3, 2, 1, 1, 1, 1), np.int8)
    made = model([helper.make_node("ConvInteger", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": w})
    assert refused(made, UnsupportedError) == (
        "A ConvInteger has a weight of 6 dimensions; expected 3 to 5."
    )
