"""``tvm_compress.requantize(acc, multiplier, shift)``: from int32 sums to narrow integers.

The real factor is ``multiplier * 2**(shift - 31)``; then ``zero_point`` is added, the result is
clamped to ``[low, high]`` and cast to ``out_dtype``. Two ways to round, named by ``rounding``:

- ``double``, that of TensorFlow Lite's reference kernels and gemmlowp (Jacob et al., arXiv
  1712.05877, section 2.2): ``x = high_mul(acc * 2**max(shift, 0), multiplier)``, the product's high
  half with ties upwards, then a division by ``2**max(-shift, 0)`` with ties away from zero. The
  shifted sum is an int32: it wraps where it does not fit, which the pass ``to-integers`` excludes.
- ``single``: ``floor((acc * multiplier + 2**(30 - shift)) / 2**(31 - shift))``, ties upwards. One
  rounding is more exact, and takes fewer instructions.

``acc`` is int32 of any shape; ``multiplier`` and ``shift`` are int32 of shape ``()`` or ``(C,)``
along ``axis``; multipliers lie in 0 .. 2**31 - 1, shifts in -31 .. 30, limits in those of the
``out_dtype`` and within +-(2**30 - 1): TVM bounds a shifted int64 wrongly, and drops a wider clamp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, te, tirx

from tvm_compress import edge
from tvm_compress.errors import UnsupportedError
from tvm_compress.ops.meaning import MEANING

__all__ = [
    "REQUANTIZE",
    "ROUNDING",
    "ROUNDINGS",
    "quantize_multiplier",
    "requantize",
    "requantize_element",
    "requantize_numpy",
]

REQUANTIZE = "tvm_compress.requantize"
# The attribute of a function that says how its quantised operators round: "double" or, without it,
# "single".
ROUNDING = "tvm_compress.rounding"
ROUNDINGS = ("double", "single")
_MIN_SHIFT, _MAX_SHIFT = -31, 30


def quantize_multiplier(
    real: NDArray[np.float64] | float, rounding: str
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Give ``(multiplier, shift)`` with ``multiplier * 2**(shift - 31)`` nearest to ``real``.

    Args:
        real: factors of shape ``()`` or ``(C,)``, not negative and finite.
        rounding: with ``double`` each factor has its own shift and ``2**30 <= multiplier < 2**31``
            (QuantizeMultiplier of TensorFlow Lite); with ``single`` the largest one gives the shift
            of all, an int32 of shape ``()``.

    Returns:
        The multipliers, int32 of the shape of ``real``, and the shifts. A factor below ``2**-32``
        becomes 0.

    Raises:
        UnsupportedError: a factor is negative, not finite, or not below ``2**30``.

    >>> quantize_multiplier(np.array([0.25, 0.75]), "double")
    (array([1073741824, 1610612736], dtype=int32), array([-1,  0], dtype=int32))
    >>> quantize_multiplier(np.array([0.25, 0.75]), "single")
    (array([ 536870912, 1610612736], dtype=int32), array(0, dtype=int32))
    """
    real = np.asarray(real, np.float64)
    bad = ~np.isfinite(real) | (real < 0) | (real >= 2.0**_MAX_SHIFT)
    if bad.any():
        raise UnsupportedError(
            f"A factor between two scales is {real[bad].flat[0]:g}; expected a finite number from "
            "0 to below 2**30: scales that are positive and not of quite another size."
        )
    fraction, exponent = np.frexp(real)
    if rounding == "single":
        exponent = np.where(real > 0, exponent, _MIN_SHIFT)  # 0 asks for no bit
        exponent = np.asarray(max(int(exponent.max(initial=_MIN_SHIFT)), _MIN_SHIFT))
        fraction = np.ldexp(real, -exponent)
        if np.floor(fraction * 2.0**31 + 0.5).max(initial=0) >= 2.0**31:
            exponent, fraction = exponent + 1, fraction / 2
    # Ties away from zero, as C's round; the factors are not negative.
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    if rounding == "double":
        carry = multiplier == 1 << 31
        multiplier, exponent = np.where(carry, multiplier >> 1, multiplier), exponent + carry
        tiny = exponent < _MIN_SHIFT
        multiplier, exponent = np.where(tiny, 0, multiplier), np.where(tiny, 0, exponent)
    return multiplier.astype(np.int32), exponent.astype(np.int32)


def requantize_numpy(
    acc: NDArray[Any],
    multiplier: NDArray[Any],
    shift: NDArray[Any],
    *,
    axis: int = -1,
    zero_point: int = 0,
    rounding: str = "single",
    low: int = -128,
    high: int = 127,
    out_dtype: str = "int8",
) -> NDArray[Any]:
    """Give the numpy meaning of the operator.

    >>> acc = np.array([[-3, 3, 6]], "int32")  # times 0.5, ties up or away from zero
    >>> multiplier, shift = quantize_multiplier(0.5, "double")
    >>> requantize_numpy(acc, multiplier, shift, rounding="single", zero_point=1)
    array([[0, 3, 4]], dtype=int8)
    >>> requantize_numpy(acc, *quantize_multiplier(0.25, "double"), rounding="double")
    array([[-1,  1,  2]], dtype=int8)
    """
    wide = acc.astype(np.int64)
    m = _along(multiplier, acc.ndim, axis).astype(np.int64)
    s = _along(shift, acc.ndim, axis).astype(np.int64)
    if rounding == "double":
        shifted = (wide << np.maximum(s, 0)).astype(np.int32).astype(np.int64)
        # gemmlowp's nudge and truncating division are, together, this floor.
        scaled = (shifted * m + (1 << 30)) >> 31
        down = np.maximum(-s, 0)
        mask = (np.int64(1) << down) - 1
        result = (scaled >> down) + ((scaled & mask) > (mask >> 1) + (scaled < 0))
    else:
        result = (wide * m + (np.int64(1) << (30 - s))) >> (31 - s)
    return np.asarray(np.clip(result + zero_point, low, high).astype(out_dtype))


def _along(parameter: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
    if parameter.size == 1:
        return parameter.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return parameter.reshape(shape)


def requantize(
    acc: tvm.ir.Expr,
    multiplier: NDArray[Any],
    shift: NDArray[Any],
    *,
    axis: int = -1,
    zero_point: int = 0,
    rounding: str = "single",
    low: int = -128,
    high: int = 127,
    out_dtype: str = "int8",
) -> tvm.ir.Expr:
    """Build the call; ``multiplier`` and ``shift`` as :func:`quantize_multiplier` gives them."""
    attrs = {
        "axis": int(axis),
        "zero_point": int(zero_point),
        "rounding": rounding,
        "low": int(low),
        "high": int(high),
        "out_dtype": out_dtype,
    }
    parts = [edge.constant(np.asarray(p, np.int32)) for p in (multiplier, shift)]
    return edge.call_op(REQUANTIZE, [acc, *parts], attrs)


def _infer_type(call: tvm.ir.Expr, builder: relax.BlockBuilder) -> relax.TensorType:
    acc = edge.tensor_type(call.args[0])
    for what, arg in zip(("sums", "multipliers", "shifts"), call.args, strict=True):
        if edge.dtype_of(arg) != "int32":
            raise TypeError(f"{REQUANTIZE}: the {what} are {edge.dtype_of(arg)}; expected int32.")
    if str(call.attrs["rounding"]) not in ROUNDINGS:
        raise TypeError(
            f"{REQUANTIZE}: the rounding is {call.attrs['rounding']}; expected double or single."
        )
    dtype = str(call.attrs["out_dtype"])
    least, most = _limits(dtype)
    low, high = (int(call.attrs[key]) for key in ("low", "high"))
    if not least <= low <= high <= most:
        raise TypeError(
            f"{REQUANTIZE}: the limits are {low} .. {high}; expected them in {least} .. {most}, "
            f"the numbers of {dtype}."
        )
    shape = edge.static_shape(acc)
    for what, arg in zip(("multipliers", "shifts"), call.args[1:], strict=True):
        size = edge.static_shape(arg)
        if shape is None or size is None or size in ((), (1,)):
            continue
        axis = int(call.attrs["axis"])
        if not -len(shape) <= axis < len(shape) or size != (shape[axis],):
            raise TypeError(
                f"{REQUANTIZE}: the {what} have the shape {size}; expected one number, or one for "
                f"each of the sums {shape} along axis {axis}."
            )
    if acc.shape is None:
        return relax.TensorType(dtype=dtype, ndim=acc.ndim)
    return relax.TensorType(acc.shape, dtype)


def _limits(dtype: str) -> tuple[int, int]:
    """Give the least and the greatest number that the operator can be asked for."""
    info = np.iinfo(dtype)
    return max(int(info.min), 1 - (1 << 30)), min(int(info.max), (1 << 30) - 1)


def _legalize(builder: relax.BlockBuilder, call: tvm.ir.Expr) -> tvm.ir.Expr:
    a = call.attrs
    axis = int(a["axis"])

    # One shift is written into the code. TVM bounds what is shifted by a loaded number as if that
    # were 31, and would drop the clamp of a sum that it knows to be small.
    given = call.args[2]
    one = isinstance(given, edge.Constant) and edge.constant_value(given).size == 1
    literal = int(edge.constant_value(given).reshape(())) if one else None

    def build(acc: te.Tensor, multiplier: te.Tensor, *shifts: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            def at(parameter: te.Tensor) -> Any:
                if len(parameter.shape) == 0:
                    return parameter().astype("int64")
                place = 0 if int(parameter.shape[0]) == 1 else index[axis]
                return parameter(place).astype("int64")

            shift = at(shifts[0]) if literal is None else tirx.IntImm("int64", literal)
            return requantize_element(acc(*index), at(multiplier), shift, a)

        return te.compute(acc.shape, element, name="requantize")

    args = call.args if literal is None else call.args[:2]
    return builder.call_te(build, *args, primfunc_name_hint="requantize")


def requantize_element(acc: Any, multiplier: Any, shift: Any, attrs: Any) -> Any:
    """Give the TIR expression of one element; ``multiplier`` and ``shift`` are int64."""
    zero_point, low, high = (int(attrs[key]) for key in ("zero_point", "low", "high"))
    x, m, s = acc.astype("int64"), multiplier, shift
    zero, one = tirx.IntImm("int64", 0), tirx.IntImm("int64", 1)
    if str(attrs["rounding"]) == "double":
        # As a product, because C leaves the left shift of a negative number undefined.
        x = (x * (one << tirx.max(s, zero))).astype("int32").astype("int64")
        x = (x * m + tirx.IntImm("int64", 1 << 30)) >> tirx.IntImm("int64", 31)
        down = tirx.max(zero - s, zero)
        # -1 of a negative x that is divided. The lowering to C would compute a comparison of these
        # products in int32.
        tie = (x >> tirx.IntImm("int64", 63)) * tirx.min(down, one)
        x = _halve_up(((x + tie) * tirx.IntImm("int64", 2)) >> down)
    else:
        x = _halve_up((x * m) >> (tirx.IntImm("int64", 30) - s))
    x = x + tirx.IntImm("int64", zero_point)
    x = tirx.min(x, tirx.IntImm("int64", high))
    return tirx.max(x, tirx.IntImm("int64", low)).astype(str(attrs["out_dtype"]))


def _halve_up(doubled: Any) -> Any:
    """Round half of an int64 upwards: ``floor((x + 2**(n - 1)) / 2**n)`` of ``x >> (n - 1)``.

    TVM's lowering to C bounds the distance of a shifted constant by 31, even of int64, so that
    2**(n - 1) cannot be made by a shift.
    """
    one = tirx.IntImm("int64", 1)
    return (doubled + one) >> one


def _meaning(attrs: Any, acc: NDArray[Any], m: NDArray[Any], s: NDArray[Any]) -> NDArray[Any]:
    return requantize_numpy(
        acc,
        m,
        s,
        axis=int(attrs["axis"]),
        zero_point=int(attrs["zero_point"]),
        rounding=str(attrs["rounding"]),
        low=int(attrs["low"]),
        high=int(attrs["high"]),
        out_dtype=str(attrs["out_dtype"]),
    )


MEANING[REQUANTIZE] = _meaning

edge.register_op(
    REQUANTIZE,
    "Integer sums times a fixed-point factor, rounded, moved to a zero point and clamped.",
    arguments=[
        ("acc", "int32 tensor"),
        ("multiplier", "int32 scalar or vector"),
        ("shift", "int32 scalar or vector"),
    ],
    infer_type=_infer_type,
    legalize=_legalize,
)
