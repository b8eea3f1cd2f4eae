"""Between which numbers every integer of a network stays, whatever its inputs are.

Interval arithmetic over the integer form (see :mod:`tvm_compress.passes.to_integers`): inputs take
every number of their dtype, a sum of products lies between the sums of each product's ends,
``requantize`` and all that moves or picks elements keep the order of the ends. The bounds are
sound: no input leaves them. They are exact where a value does not depend on the input, which is
what ``remove-channels`` asks.
Source: Moore, Interval Analysis (1966), chapter 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.ops import LOOKUP, REQUANTIZE
from tvm_compress.ops.layout import axes_between, spatial
from tvm_compress.ops.meaning import MEANING

__all__ = ["Range", "integer_ranges"]

_Ints = NDArray[np.int64]
_DTYPES = ("int8", "uint8", "int16", "uint16", "int32")  # products of two fit int64
_INT32 = 1 << 31
_CONVOLUTIONS = {f"relax.nn.conv{rank}d" for rank in (1, 2, 3)}
# An element that grows makes none of the result's smaller.
_MONOTONE = {
    f"relax.{name}"
    for name in (
        *("clip", "concat", "max", "min", "nn.max_pool1d", "nn.max_pool2d", "nn.max_pool3d"),
        *("nn.pad", "nn.relu", "permute_dims", "reshape", "sum"),
    )
}
# Monotone in either argument while the other stands still, so that the extremes lie at the corners.
_CORNERS = {
    f"relax.{name}"
    for name in (
        *("add", "divide", "floor_divide", "left_shift", "maximum", "minimum", "multiply"),
        *("right_shift", "subtract"),
    )
}


@dataclass(frozen=True)
class Range:
    """Bounds of a tensor's elements, both included.

    Attributes:
        low: int64 of the tensor's rank; of size 1 along an axis on which nothing depends.
        high: likewise, of the same shape.
    """

    low: _Ints
    high: _Ints

    def constants(self, axis: int, size: int) -> NDArray[np.float64]:
        """Give the one value that each element of an axis has everywhere, NaN where it varies."""
        others = tuple(i for i in range(self.low.ndim) if i != axis)
        low, high = self.low.min(others), self.high.max(others)
        return np.asarray(np.broadcast_to(np.where(low == high, low, np.nan), (size,)))


def integer_ranges(mod: tvm.IRModule) -> dict[str, Range]:
    """Give the ranges of the computed tensors by name, where they are integers of at most 32 bits.

    64 bits and uint32 have none. A tensor of an operator without a rule here has the range of its
    dtype, and so has an element whose sum could leave its dtype, where integers wrap.
    """
    return _Ranges(mod).ranges


class _Ranges:
    """Goes through the bindings once."""

    def __init__(self, mod: tvm.IRModule) -> None:
        function = ir.main_function(mod)
        self._parameters = ir.parameters(mod)
        self._bound: dict[Any, Any] = {}
        self._at: dict[Any, Range] = {}
        self.ranges: dict[str, Range] = {}
        for param in function.params:
            self._keep(param, None)
        for binding in ir.bindings(function):
            self._bound[binding.var] = binding.value
            if edge.var_name(binding.var) not in self._parameters:
                self._keep(binding.var, self._of(binding.value))

    def _keep(self, var: Any, found: Range | None) -> None:
        """Note a variable's range: within its dtype, and no larger than it has to be."""
        dtype = edge.dtype_of_or_none(var)
        rank = int(edge.tensor_type(var).ndim) if dtype in _DTYPES else -1
        if rank < 0:
            return
        info = np.iinfo(str(dtype))
        if found is None:
            found = Range(*(np.full((1,) * rank, end, np.int64) for end in (info.min, info.max)))
        wraps = (found.low < info.min) | (found.high > info.max)
        low, high = np.where(wraps, info.min, found.low), np.where(wraps, info.max, found.high)
        for axis in range(rank):
            first = slice(0, 1)
            ends = [np.moveaxis(end, axis, 0) for end in (low, high)]
            if all((end == end[first]).all() for end in ends):
                low, high = (np.moveaxis(end[first], 0, axis) for end in ends)
        self._at[var] = self.ranges[edge.var_name(var)] = Range(low, high)

    def _of(self, value: Any) -> Range | None:
        if isinstance(value, relax.Var | edge.Constant):
            return self._range(value)
        operator = edge.op_name(value) or ""
        if operator in _CONVOLUTIONS:
            return self._convolution(value)
        if operator == "relax.matmul":
            return self._product(value)
        if operator in _CORNERS:
            return self._corners(value)
        if operator == "relax.astype":
            return self._range(value.args[0])
        if operator == REQUANTIZE:
            return self._requantize(value)
        if operator == LOOKUP:
            return self._lookup(value)
        return self._monotone(value) if operator in _MONOTONE else None

    def _range(self, expr: Any) -> Range | None:
        if expr in self._at:
            return self._at[expr]
        number = self._number(expr)
        if number is None:
            return None
        wide = number.astype(np.int64)
        return Range(wide, wide)

    def _number(self, expr: Any) -> NDArray[Any] | None:
        """Give an argument that is a constant of integers."""
        if edge.dtype_of_or_none(expr) not in _DTYPES:
            return None
        if isinstance(expr, edge.Constant):
            return edge.constant_value(expr)
        parameter = self._parameters.get(edge.var_name(expr)) if expr in self._bound else None
        return None if parameter is None else parameter.value

    # -- rules ------------------------------------------------------------------------------------

    def _convolution(self, call: Any) -> Range | None:
        x, weight = self._range(call.args[0]), self._number(call.args[1])
        if x is None or weight is None or not _narrow(call.args[0]):
            return None
        a, letters = call.attrs, spatial(weight.ndim - 2)
        weight = np.transpose(weight, axes_between(str(a.kernel_layout), "OI" + letters))
        groups = int(a.groups)
        axis = str(a.data_layout).index("C")
        low, high = _along(x, axis, weight.shape[1] * groups)
        if any(int(p) for p in a.padding):  # zeros stand beside the data
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        weight = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        ends = _sums(weight, low.reshape(groups, -1), high.reshape(groups, -1))
        along = [1] * x.low.ndim
        along[str(a.out_layout or a.data_layout).index("C")] = -1
        return Range(*(end.reshape(along) for end in ends))

    def _product(self, call: Any) -> Range | None:
        x, weight = self._range(call.args[0]), self._number(call.args[1])
        if x is None or weight is None or weight.ndim != 2 or not _narrow(call.args[0]):
            return None
        low, high = _along(x, x.low.ndim - 1, weight.shape[0])
        ends = _sums(weight.T[None, :, :, None], low[None], high[None])
        return Range(*(end.reshape((1,) * (x.low.ndim - 1) + (-1,)) for end in ends))

    def _corners(self, call: Any) -> Range | None:
        x, y = (self._range(arg) for arg in call.args)
        operator = edge.op_name(call) or ""
        if x is None or y is None:
            return None
        if operator.endswith("_shift") and not ((y.low >= 0) & (y.high < 32)).all():
            return None
        if operator.endswith("divide") and not (y.low > 0).all():
            return None
        corners = [
            MEANING[operator](call.attrs, a, b) for a in (x.low, x.high) for b in (y.low, y.high)
        ]
        return Range(np.minimum.reduce(corners), np.maximum.reduce(corners))

    def _requantize(self, call: Any) -> Range | None:
        x = self._range(call.args[0])
        multiplier, shift = (self._number(arg) for arg in call.args[1:])
        if x is None or multiplier is None or shift is None:
            return None
        a = call.attrs
        low, high = (
            MEANING[REQUANTIZE](a, end, multiplier, shift).astype(np.int64)
            for end in (x.low, x.high)
        )
        if str(a["rounding"]) == "double":
            # The shifted sum wraps where it leaves int32, and the order of the ends with it.
            along = [1] * x.low.ndim
            along[int(a["axis"]) if shift.size > 1 else -1] = -1
            up = np.maximum(shift, 0).astype(np.int64).reshape(along)
            wraps = (x.low << up < -_INT32) | (x.high << up >= _INT32)
            low, high = np.where(wraps, int(a["low"]), low), np.where(wraps, int(a["high"]), high)
        return Range(low, high)

    def _lookup(self, call: Any) -> Range | None:
        x, table = self._range(call.args[0]), self._number(call.args[1])
        if x is None or table is None:
            return None
        pairs = np.stack([x.low.ravel(), x.high.ravel()], 1) + 128
        reached = [table[first : last + 1].astype(np.int64) for first, last in pairs]
        ends = ([part.min() for part in reached], [part.max() for part in reached])
        return Range(*(np.asarray(end, np.int64).reshape(x.low.shape) for end in ends))

    def _monotone(self, call: Any) -> Range | None:
        meaning, ends = MEANING[edge.op_name(call) or ""], []
        for pick in (lambda r: r.low, lambda r: r.high):
            args = [self._argument(arg, pick) for arg in call.args]
            if any(arg is None for arg in args):
                return None
            ends.append(np.asarray(meaning(call.attrs, *args)).astype(np.int64))
        return Range(*ends)

    def _argument(self, arg: Any, pick: Callable[[Range], _Ints]) -> Any:
        """Give what an operator's meaning takes, with one end of each range; None: unknown."""
        if isinstance(arg, relax.Var) and not edge.is_tensor(arg):
            arg = self._bound.get(arg, arg)
        if isinstance(arg, tvm.ir.Tuple):
            fields = [self._argument(field, pick) for field in arg.fields]
            return None if any(field is None for field in fields) else fields
        if isinstance(arg, relax.ShapeExpr):
            return [int(size) for size in arg.values]
        if isinstance(arg, tvm.tirx.IntImm | tvm.tirx.FloatImm):
            return arg.value
        found, shape = self._range(arg), edge.static_shape(arg)
        if found is None or shape is None:
            return None
        return np.broadcast_to(pick(found), shape)


def _narrow(expr: Any) -> bool:
    """Whether the sums of an operand's products with a weight certainly fit int64."""
    return edge.dtype_of_or_none(expr) in _DTYPES[:-1]


def _along(found: Range, axis: int, size: int) -> Iterable[_Ints]:
    """Give the ends of each element of an axis over all others."""
    others = tuple(i for i in range(found.low.ndim) if i != axis)
    ends = (found.low.min(others), found.high.max(others))
    return [np.broadcast_to(end, (size,)) for end in ends]


def _sums(weight: NDArray[Any], low: _Ints, high: _Ints) -> tuple[_Ints, _Ints]:
    """Give the least and the greatest sums of products.

    Args:
        weight: (groups, outputs, inputs, taps).
        low: the least of each input, (groups, inputs).
        high: the greatest.
    """
    rises, falls = (part(weight, 0).sum(3, dtype=np.int64) for part in (np.maximum, np.minimum))
    least, most = low[:, :, None], high[:, :, None]
    return (rises @ least + falls @ most).ravel(), (rises @ most + falls @ least).ravel()
