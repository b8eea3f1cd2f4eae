from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from tvm import te, topi
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Cast, FloatImm, IntImm
from tvm.tirx.script import builder as T

from tests.targets.mcu.nets import call_c
from tvm_compress.errors import UnsupportedError
from tvm_compress.ops.meaning import MEANING
from tvm_compress.targets.mcu.emit import CFunction, emit_function
from tvm_compress.targets.mcu.kernels import OPAQUE

Array = NDArray[Any]


def loops(*tensors: te.Tensor) -> tvm.tirx.PrimFunc:
    """One loop nest of tensor expressions; the last one is the output."""
    return te.create_prim_func(list(tensors))


def emitted(*tensors: te.Tensor) -> tuple[CFunction, tuple[int, ...]]:
    return emit_function(loops(*tensors), 1)


def stores(values: Sequence[Any], dtype: str) -> tvm.tirx.PrimFunc:
    """A function that writes literals: ``y[i] = values[i]``."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": OPAQUE})
        y = T.arg("y", T.buffer((IntImm("int64", len(values)),), dtype))
        make = FloatImm if dtype.startswith("float") else IntImm
        for i, value in enumerate(values):
            T.buffer_store(y, make(dtype, value), [i])
    return builder.get()


def stored(values: Array) -> Array:
    function, workspaces = emit_function(stores(values.tolist(), str(values.dtype)), 1)
    return call_c(function, workspaces, [], np.zeros(len(values), values.dtype))


# -- literals -------------------------------------------------------------------------------------


def bits_of(values: Array) -> Array:
    return values.view(f"u{values.itemsize}")


@settings(max_examples=25)
@given(hnp.arrays(np.uint32, st.integers(1, 40)))
@example(
    np.array(
        [0, 1 << 31, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000],
        np.uint32,
    )
)
@example(np.array([0.1, 1 / 3, 16777217.0, 1e-45, -1e-38, 123456.79, 1e10], np.float32).view("u4"))
def test_a_float_keeps_its_bits(bits: Array) -> None:
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    if len(values):
        np.testing.assert_array_equal(bits_of(stored(values)), bits_of(values))


def test_not_a_number_stays_one() -> None:
    assert np.isnan(stored(np.array([1.5, np.nan], np.float32))).tolist() == [False, True]


@settings(max_examples=15)
@given(hnp.arrays(np.float64, st.integers(1, 20)))
@example(np.array([0.1, 1 / 3, -0.0, 5e-324, 1.7976931348623157e308, np.inf, -np.inf]))
def test_a_double_keeps_its_bits(values: Array) -> None:
    values = values[~np.isnan(values)]
    if len(values):
        np.testing.assert_array_equal(bits_of(stored(values)), bits_of(values))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_integers_reach_both_ends(dtype: str) -> None:
    limits = np.iinfo(dtype)
    values = np.array([limits.min, limits.min + 1, 0, limits.max - 1, limits.max], dtype)
    np.testing.assert_array_equal(stored(values), values)


def test_a_negative_literal_behind_a_minus() -> None:
    x = te.placeholder((2,), "float32", "x")
    y = te.compute((2,), lambda i: x[i] - FloatImm("float32", -0.1), "y")
    values = np.array([1, 2], np.float32)
    actual = call_c(*emitted(x, y), [values], np.zeros(2, np.float32))
    np.testing.assert_array_equal(actual, values - np.float32(-0.1))


# -- arrays ---------------------------------------------------------------------------------------


def two_sums(size: int) -> tuple[te.Tensor, ...]:
    """The second sum reads the first one's array of ``size`` floats."""
    x = te.placeholder((size, 3), "float32", "x")
    k, j = te.reduce_axis((0, 3), "k"), te.reduce_axis((0, size), "j")
    rows = te.compute((size,), lambda i: te.sum(x[i, k], k), "rows")
    return x, te.compute((2,), lambda i: te.sum(rows[j] * Cast("float32", i + 1), j), "y")


@pytest.mark.parametrize(("size", "expected"), [(32, ()), (33, (132,)), (700, (2800,))])
def test_a_large_array_between_two_loops_becomes_a_workspace(
    size: int, expected: tuple[int, ...]
) -> None:
    function, workspaces = emitted(*two_sums(size))
    assert workspaces == expected
    assert len(function.parameters) == 2 + len(workspaces)
    x = np.random.default_rng(0).integers(-9, 9, (size, 3)).astype(np.float32)
    actual = call_c(function, workspaces, [x], np.zeros(2, np.float32))
    np.testing.assert_array_equal(actual, x.sum() * np.array([1, 2], np.float32))


def test_inputs_are_constant_and_outputs_are_not() -> None:
    function, _ = emitted(*two_sums(40))
    constant = [p.startswith("const float*") for p in function.parameters]
    assert constant == [True, False, False]
    assert all("restrict" in p for p in function.parameters)


def test_a_parameter_that_nothing_reads_is_no_warning() -> None:
    x = te.placeholder((4,), "float32", "x")
    unread = te.placeholder((4,), "float32", "unread")
    y = te.compute((4,), lambda i: x[i] * FloatImm("float32", 2.0), "y")
    # call_c compiles with -Wall -Wextra -Werror -pedantic.
    values = np.arange(4, dtype=np.float32)
    actual = call_c(*emitted(x, unread, y), [values, values], np.zeros(4, np.float32))
    np.testing.assert_array_equal(actual, values * 2)


def test_element_by_element_steps_need_no_array() -> None:
    x = te.placeholder((100, 100), "float32", "x")
    y = x
    for _ in range(4):
        y = topi.nn.relu(topi.add(y, 1.0))
    function, workspaces = emitted(x, y)
    assert workspaces == ()
    assert "[1" not in function.body.split("for", 1)[0]
    values = np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32)
    expected = values
    for _ in range(4):
        expected = np.maximum(expected + np.float32(1), 0)
    actual = call_c(function, workspaces, [values], np.zeros((100, 100), np.float32))
    np.testing.assert_array_equal(actual, expected)


# -- what operators mean --------------------------------------------------------------------------


def test_softmax_computes_each_exponential_once() -> None:
    x = te.placeholder((3, 50), "float32", "x")
    function, workspaces = emitted(x, topi.nn.softmax(x, axis=1))
    assert len(re.findall(r"\bexpf\(", function.body)) == 1
    # It is in two loops at most: rows and columns. A third would compute it again and again.
    before = function.body.split("expf(")[0]
    assert before.count("for (") - before.count("\n    }\n") - before.count("\n  }\n") <= 3
    values = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32) * 30
    actual = call_c(function, workspaces, [values], np.zeros((3, 50), np.float32))
    wide = np.exp(values.astype(np.float64) - values.max(1, keepdims=True))
    np.testing.assert_allclose(actual, wide / wide.sum(1, keepdims=True), rtol=1e-5, atol=1e-30)


def test_relu_and_clip_take_not_a_number_for_their_lower_bound() -> None:
    """C compares, and a comparison with NaN is false; the reference carries NaN on."""
    x = te.placeholder((3,), "float32", "x")
    relu = te.compute((3,), lambda i: tvm.tirx.max(x[i], FloatImm("float32", 0.0)), "y")
    low, high = FloatImm("float32", -1.0), FloatImm("float32", 2.0)
    clip = te.compute((3,), lambda i: tvm.tirx.min(tvm.tirx.max(x[i], low), high), "y")
    values = np.array([np.nan, -3, 5], np.float32)
    out = np.zeros(3, np.float32)
    np.testing.assert_array_equal(call_c(*emitted(x, relu), [values], out), [0, 0, 5])
    np.testing.assert_array_equal(call_c(*emitted(x, clip), [values], out), [-1, -1, 2])
    assert np.isnan(MEANING["relax.nn.relu"](None, values)[0])


def test_the_body_is_a_function_of_the_given_name() -> None:
    x = te.placeholder((4,), "float32", "x")
    function, _ = emitted(x, topi.nn.relu(x))
    text = function.definition("name_it")
    assert text.startswith("static void name_it(const float*restrict x")
    assert text.endswith("}\n")
    assert "TVM" not in text
    assert "tvm" not in text


def test_equal_loop_nests_have_equal_text() -> None:
    def one(name: str) -> CFunction:
        x = te.placeholder((4,), "float32", name)
        return emitted(x, topi.nn.relu(x))[0]

    assert one("x") == one("x")


def test_a_loop_nest_that_has_no_c_form() -> None:
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": OPAQUE})
        y = T.arg("y", T.buffer((IntImm("int64", 1),), "float32"))
        call = tvm.tirx.call_intrin("float32", "tirx.tvm_access_ptr", FloatImm("float32", 1.0))
        T.buffer_store(y, call, [0])
    with pytest.raises(UnsupportedError) as caught:
        emit_function(builder.get(), 1)
    message = str(caught.value)
    assert message.startswith("TVM's C code generator cannot emit a loop nest: ")
    assert "Expected operators that lower to plain loops and libm calls" in message
