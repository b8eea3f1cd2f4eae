"""``tvm_compress.softmax(x, table)``: softmax of int8 in fixed point.

``table[d + 255]`` is exp of the difference ``d`` to the greatest input along ``axis``, an int32
that stands for ``table * 2**-31``; the result is int8 of scale 1/256 and zero point -128. The sum
has 12 integer bits, its reciprocal comes by three steps of Newton's method: the arithmetic of
TensorFlow Lite's reference kernel (gemmlowp; Jacob et al., arXiv 1712.05877, appendix A), bit for
bit. At most 4095 elements lie along the axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from tvm_compress import edge
from tvm_compress.ops.meaning import MEANING

__all__ = ["SOFTMAX", "softmax", "softmax_numpy"]

SOFTMAX = "tvm_compress.softmax"
_OPAQUE = 8  # TVM fuses nothing into it
_MOST = 4095  # sums below 2**12
_LINE = (1515870810, -1010580540)


def softmax_numpy(x: NDArray[Any], table: NDArray[Any], axis: int) -> NDArray[Any]:
    """Give the numpy meaning of the operator.

    >>> from tvm_compress.tflite_arithmetic import exp_table
    >>> softmax_numpy(np.array([[0, 0]], "int8"), exp_table(0.1, 1.0), 1)
    array([[0, 0]], dtype=int8)
    """
    from tvm_compress.tflite_arithmetic import divide_by_power, high_mul, reciprocal

    difference = x.astype(np.int64) - x.max(axis, keepdims=True)
    e = np.take(table, difference + 255).astype(np.int64)
    total = divide_by_power(e, 12).sum(axis, keepdims=True)
    over = sum((total >= 1 << bit).astype(np.int64) for bit in range(20, 31))
    inverse = reciprocal((total << (12 - over)) - (1 << 31))
    steps = divide_by_power(high_mul(inverse, e), over + 23)
    return np.clip(steps - 128, -128, 127).astype(np.int8)


def softmax(x: tvm.ir.Expr, table: NDArray[Any], axis: int) -> tvm.ir.Expr:
    """Build the call: ``x`` int8 of any shape, ``table`` 256 int32."""
    return edge.call_op(SOFTMAX, [x, edge.constant(table)], {"axis": int(axis)})


def _infer_type(call: tvm.ir.Expr, builder: relax.BlockBuilder) -> relax.TensorType:
    x, table = (edge.tensor_type(arg) for arg in call.args)
    if edge.dtype_of(x) != "int8":
        raise TypeError(f"{SOFTMAX}: the input is {edge.dtype_of(x)}; expected int8.")
    if edge.static_shape(table) != (256,) or edge.dtype_of(table) != "int32":
        raise TypeError(
            f"{SOFTMAX}: the table is {edge.dtype_of(table)} of shape {edge.static_shape(table)}; "
            "expected 256 entries of int32."
        )
    shape, axis = edge.static_shape(x), int(call.attrs["axis"])
    if shape is None or not -len(shape) <= axis < len(shape) or shape[axis] > _MOST:
        raise TypeError(
            f"{SOFTMAX}: the axis {axis} of shape {shape} has no or more than {_MOST} elements; "
            "expected an axis of the input, whose sum has 12 integer bits."
        )
    return relax.TensorType(x.shape, "int8")


def _legalize(builder: relax.BlockBuilder, call: tvm.ir.Expr) -> tvm.ir.Expr:
    shape = edge.static_shape(call.args[0]) or ()
    function = builder.add_func(_kernel(shape, int(call.attrs["axis"]) % len(shape)), "softmax")
    return relax.call_tir(function, list(call.args), relax.TensorType(shape, "int8"))


def _kernel(shape: tuple[int, ...], axis: int) -> tirx.PrimFunc:
    """Build the loop nest ``(x, table, y)``, three passes along each row.

    By hand, because fused expressions would compute each step of Newton's method twice in the next.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    from tvm_compress.targets.mcu.tir import loop, register

    wide = [tirx.IntImm("int64", size) for size in shape]

    with IRBuilder() as script, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        x = T.arg("x", T.buffer(wide, "int8"))
        table = T.arg("table", T.buffer([tirx.IntImm("int64", 256)], "int32"))
        y = T.arg("y", T.buffer(wide, "int8"))

        def row(index: list[Any]) -> None:
            def place(k: Any) -> list[Any]:
                return [*index[:axis], k, *index[axis:]]

            greatest = register("greatest", "int32", start=-128)
            with loop("k", 0, shape[axis]) as k:
                greatest.set(tirx.max(greatest.get(), x[tuple(place(k))].astype("int32")))

            def exp_of(k: Any) -> Any:
                return table[x[tuple(place(k))].astype("int32") - greatest.get() + 255]

            total = register("total", "int32", start=0)
            with loop("k", 0, shape[axis]) as k:
                # All are positive: ties away from zero are ties upwards.
                total.set(total.get() + _half_up(exp_of(k), 12))
            over = register("over", "int32")
            one = tirx.IntImm("int32", 1)
            bits = [tirx.min(total.get() >> bit, one) for bit in range(20, 31)]
            over.set(sum(bits[1:], bits[0]))
            inverse = _inverse(total, over, register)
            with loop("k", 0, shape[axis]) as k:
                steps = _half_up(_high_mul(inverse.get(), exp_of(k)), over.get() + 23)
                result = tirx.min(steps - 128, tirx.IntImm("int32", 127)).astype("int8")
                T.buffer_store(y, result, place(k))

        def nest(index: list[Any], rest: list[int]) -> None:
            if not rest:
                return row(index)
            with loop(f"i{len(index)}", 0, rest[0]) as i:
                nest([*index, i], rest[1:])
            return None

        nest([], [size for i, size in enumerate(shape) if i != axis])
    return script.get()


def _half_up(x: Any, exponent: Any) -> Any:
    return ((x >> (exponent - 1)) + 1) >> 1


def _high_mul(a: Any, b: Any) -> Any:
    product = a.astype("int64") * b.astype("int64") + tirx.IntImm("int64", 1 << 30)
    return (product >> tirx.IntImm("int64", 31)).astype("int32")


def _inverse(total: Any, over: Any, register: Any) -> Any:
    """Emit the reciprocal of a sum, see :func:`tvm_compress.tflite_arithmetic.reciprocal`."""
    half, x = register("half", "int32"), register("inverse", "int32")
    half.set(total.get() << (tirx.IntImm("int32", 11) - over.get()))  # (1 + a) / 2
    x.set(_high_mul(half.get(), tirx.IntImm("int32", _LINE[1])) + _LINE[0])
    error = register("error", "int32")
    for _ in range(3):
        error.set(tirx.IntImm("int32", 1 << 29) - _high_mul(half.get(), x.get()))
        x.set(x.get() + _high_mul(x.get(), error.get()) * 4)
    # Twice, saturated, in int32 alone.
    top = tirx.IntImm("int32", (1 << 30) - 1)
    x.set(tirx.min(x.get(), top) * 2 + (x.get() >> 30))
    return x


def _meaning(attrs: Any, x: NDArray[Any], table: NDArray[Any]) -> NDArray[Any]:
    return softmax_numpy(x, table, int(attrs["axis"]))


MEANING[SOFTMAX] = _meaning

edge.register_op(
    SOFTMAX,
    "Softmax of int8 in fixed point, with a table of exponentials.",
    arguments=[("x", "int8 tensor"), ("table", "256 int32: exp of -255 .. 0 steps")],
    infer_type=_infer_type,
    legalize=_legalize,
)
