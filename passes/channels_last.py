"""``channels-last``: the layers of an integer network take tensors whose channels lie last.

Before::

    p = R.nn.pad(x, pad_width=[0, 0, 0, 0, 1, 1, 1, 1])        # N, C, H, W
    c = R.nn.conv2d(p, w, data_layout="NCHW", out_dtype="int32")
    y = tvm_compress.requantize(R.add(c, b), multiplier, shift, axis=1)    # b is (C, 1, 1)

After::

    t = R.permute_dims(x, [0, 2, 3, 1])
    p = R.nn.pad(t, pad_width=[0, 0, 1, 1, 1, 1, 0, 0])
    c = R.nn.conv2d(p, w, data_layout="NHWC", out_dtype="int32")
    r = tvm_compress.requantize(R.add(c, b), multiplier, shift, axis=3)    # b is (C,)
    y = R.permute_dims(r, [0, 3, 1, 2])                        # where something needs it

A convolution gives its result through a transpose, and every transpose sinks: an operator of
transposed tensors becomes the transpose of the operator, until two of them cancel out, or one moves
no axis of more than one element and is a reshape, or a product of a flattened map takes the rows of
its weight in the other order. No byte of any output changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.channels import BINARY
from tvm_compress.ops import CODEBOOK, LOOKUP, REQUANTIZE, SOFTMAX, codebook
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize

__all__ = ["ChannelsLast"]

_TRANSPOSE, _RESHAPE, _PAD = "relax.permute_dims", "relax.reshape", "relax.nn.pad"
# By the layout of a convolution's data: what takes its place.
_LAST = {"NCW": "NWC", "NCHW": "NHWC"}
# Layouts that pooling and resizing are written in.
_LAYOUTS = ("NCW", "NWC", "NCHW", "NHWC")

_Axes = tuple[int, ...]


@dataclass(frozen=True)
class ChannelsLast(Pass):
    """Lay out the tensors of integer convolutions with the channels last; idempotent.

    Takes the integer form (see ``to-integers``): 1-D and 2-D convolutions of integers, and what
    stands between them. Convolutions of floats stay as they are, inputs and outputs keep their
    shapes, weights their layout.
    """

    name: ClassVar[str] = "channels-last"

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with the channels last."""
        if not any(_takes(binding.value) for binding in ir.bindings(ir.main_function(mod))):
            return mod
        return Canonicalize().apply(_Sinker(mod).run())


def _takes(call: Any) -> bool:
    """Whether a call is a convolution of integers with the channels first."""
    if edge.op_name(call) not in ("relax.nn.conv1d", "relax.nn.conv2d"):
        return False
    a = call.attrs
    same = str(a.out_layout) in ("", str(a.data_layout))
    return same and str(a.data_layout) in _LAST and edge.dtype_of(call.args[0]) in ("int8", "uint8")


def _is_one_number(expr: Any) -> bool:
    shape = edge.static_shape(expr)
    return shape is not None and math.prod(shape) == 1


def _inverse(axes: _Axes) -> _Axes:
    return tuple(int(axis) for axis in np.argsort(axes))


def blocks_of(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]] | None:
    """Divide a reshape into the smallest blocks of axes that it turns into each other.

    Axes of one element are left out: they may stand anywhere.

    Returns:
        Pairs of axes before and axes after, in order; None of tensors without elements.

    >>> blocks_of((1, 8, 5, 5), (1, 2, 4, 25))
    [([1], [1, 2]), ([2, 3], [3])]
    """
    if math.prod(before) == 0:
        return None
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    blocks = []
    while left:
        block = [left.pop(0)], [right.pop(0)]
        sizes = [before[block[0][0]], after[block[1][0]]]
        while sizes[0] != sizes[1]:
            side = int(sizes[1] < sizes[0])
            axis = (left, right)[side].pop(0)
            block[side].append(axis)
            sizes[side] *= (before, after)[side][axis]
        blocks.append(block)
    return blocks


class _Sinker(ir.Rewriter):
    """Writes convolutions with the channels last and lets transposes sink."""

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._moved: dict[Any, Any] = {}
        self._split: dict[Any, Any] = {}

    def rewrite(self, name: str, value: Any) -> Any:
        if isinstance(value, tvm.ir.TupleGetItem):
            return self._item(name, value)
        if not isinstance(value, tvm.ir.Call):
            return value
        value = self._builder.normalize(value)
        operator = edge.op_name(value) or ""
        if _takes(value):
            return self._convolution(name, value)
        rule = _RULES.get(operator)
        new = rule(self, name, value) if rule is not None else None
        return value if new is None else new

    # -- transposes -------------------------------------------------------------------------------

    def under(self, expr: Any) -> tuple[Any, _Axes] | None:
        """Give the tensor that an expression is a transpose of, and the axes; or None."""
        value = self.value(expr)
        if edge.op_name(value) != _TRANSPOSE:
            return None
        given = value.attrs.axes
        rank = int(edge.tensor_type(value).ndim)
        axes = range(rank)[::-1] if given is None else [int(a) % rank for a in given]
        return value.args[0], tuple(axes)

    def transposed(self, expr: Any, axes: _Axes, name: str) -> Any:
        """Give the transpose of a tensor, behind what it may stand in front of."""
        key = (expr, axes)
        if key not in self._moved:
            self._moved[key] = self._transpose(expr, axes, name)
        return self._moved[key]

    def _transpose(self, expr: Any, axes: _Axes, name: str) -> Any:
        source = self.under(expr)
        if source is not None:
            expr, axes = source[0], tuple(source[1][axis] for axis in axes)
        if axes == tuple(range(len(axes))):
            return expr
        value = self.value(expr)
        if edge.op_name(value) == _PAD:  # a layer takes in the padding right in front of it
            inner = self.transposed(value.args[0], axes, name)
            padded = edge.with_attrs(value, [inner], pad_width=_widths(value, _inverse(axes)))
            return self.emit(padded, self._wanted.get(expr, name))
        if self._widens(value):  # of int8 there is less to move
            inner = self.transposed(value.args[0], axes, name)
            made = edge.with_args(value, [inner, *value.args[1:]])
            return self.emit(made, self._wanted.get(expr, name))
        return self.emit(relax.op.permute_dims(expr, list(axes)), f"{name}_last")

    def _widens(self, value: Any) -> bool:
        """Whether a value is int32 and computed element by element from one tensor."""
        if edge.dtype_of_or_none(value) != "int32":
            return False
        if edge.op_name(value) in BINARY:
            return _is_one_number(value.args[1])
        return edge.op_name(value) == "relax.astype"

    def sunk(self, name: str, value: Any, axes: _Axes) -> Any:
        """Give the transpose of a new value."""
        return relax.op.permute_dims(self.emit(value, name), list(axes))

    # -- operators --------------------------------------------------------------------------------

    def _convolution(self, name: str, call: Any) -> Any:
        first = str(call.attrs.data_layout)
        last = _LAST[first]
        to_last = tuple(first.index(letter) for letter in last)
        data = self.transposed(call.args[0], to_last, f"{name}_input")
        made = edge.with_attrs(call, [data, call.args[1]], data_layout=last, out_layout=last)
        return self.sunk(name, made, _inverse(to_last))

    def _item(self, name: str, item: Any) -> Any:
        """Sink through a split and the choice of one of its parts."""
        call = self.value(item.tuple_value)
        source = self.under(call.args[0]) if edge.op_name(call) == "relax.split" else None
        if source is None:
            return item
        if item.tuple_value not in self._split:
            axis = source[1][int(call.attrs.axis) % len(source[1])]
            split = edge.with_attrs(call, [source[0]], axis=axis)
            wanted = self._wanted.get(item.tuple_value, name)
            self._split[item.tuple_value] = self.emit(split, wanted)
        part = tvm.ir.TupleGetItem(self._split[item.tuple_value], item.index)
        return self.sunk(name, part, source[1])

    def beside(self, arg: Any, axes: _Axes, name: str) -> Any:
        """Give what a transposed tensor is combined with in the order of its source, or None."""
        if not edge.is_tensor(arg) or _is_one_number(arg):
            return arg
        value = self.value(arg)
        rank = len(axes)
        if isinstance(value, edge.Constant):
            array = edge.constant_value(value)
            array = array.reshape((1,) * (rank - array.ndim) + array.shape)
            array = np.transpose(array, _inverse(axes))
            while array.ndim > 1 and array.shape[0] == 1:
                array = array[0]
            return self.emit(edge.constant(array), self._wanted.get(arg, f"{name}_constant"))
        if edge.op_name(value) == CODEBOOK or edge.tensor_type(arg).ndim != rank:
            return None
        return self.transposed(arg, _inverse(axes), f"{name}_input")


def _widths(pad: Any, axes: _Axes) -> list[int]:
    """Give the widths of a pad on the tensor that its input is the transpose of."""
    widths = np.reshape([int(w) for w in pad.attrs.pad_width], (-1, 2))
    return [int(w) for w in widths[list(_inverse(axes))].reshape(-1)]


# ---- rules: (sinker, name, call) -> the new value, or None where it stays ------------------------

_Rule = Callable[[_Sinker, str, Any], Any]
_RULES: dict[str, _Rule] = {}


def _rule(*operators: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


@_rule("relax.astype", "relax.clip", "relax.negative", "relax.abs", "relax.nn.relu", LOOKUP)
def _of_one(sinker: _Sinker, name: str, call: Any) -> Any:
    source = sinker.under(call.args[0])
    if source is None:
        return None
    return sinker.sunk(name, edge.with_args(call, [source[0], *call.args[1:]]), source[1])


@_rule(*sorted(BINARY))
def _of_two(sinker: _Sinker, name: str, call: Any) -> Any:
    sources = [sinker.under(arg) for arg in call.args]
    rank = int(edge.tensor_type(call).ndim)
    axes = next((s[1] for s in sources if s is not None and len(s[1]) == rank), None)
    if axes is None:
        return None
    args = [sinker.beside(arg, axes, name) for arg in call.args]
    if any(arg is None for arg in args):
        return None
    return sinker.sunk(name, edge.with_args(call, args), axes)


@_rule(REQUANTIZE, SOFTMAX)
def _along_axis(sinker: _Sinker, name: str, call: Any) -> Any:
    source = sinker.under(call.args[0])
    if source is None:
        return None
    axis = source[1][int(call.attrs["axis"]) % len(source[1])]
    new = edge.with_attrs(call, [source[0], *call.args[1:]], axis=axis)
    return sinker.sunk(name, new, source[1])


def _one_scale(call: Any) -> bool:
    """Whether a quantize or dequantize has one scale, for which any axis will do."""
    return all(_is_one_number(arg) for arg in call.args[1:])


@_rule("relax.quantize")
def _quantize(sinker: _Sinker, name: str, call: Any) -> Any:
    source = sinker.under(call.args[0])
    if source is None or not _one_scale(call):
        return None
    return sinker.sunk(name, edge.with_attrs(call, [source[0], *call.args[1:]], axis=-1), source[1])


@_rule("relax.concat")
def _concat(sinker: _Sinker, name: str, call: Any) -> Any:
    parts = getattr(sinker.value(call.args[0]), "fields", ())
    axes = next((s[1] for s in map(sinker.under, parts) if s is not None), None)
    if axes is None or call.attrs.axis is None:
        return None
    moved = [sinker.transposed(part, _inverse(axes), f"{name}_input") for part in parts]
    axis = axes[int(call.attrs.axis) % len(axes)]
    return sinker.sunk(name, relax.op.concat(moved, axis=axis), axes)


@_rule(_PAD)
def _pad(sinker: _Sinker, name: str, call: Any) -> Any:
    source = sinker.under(call.args[0])
    if source is None:
        return None
    new = edge.with_attrs(call, [source[0]], pad_width=_widths(call, source[1]))
    return sinker.sunk(name, new, source[1])


@_rule("relax.nn.max_pool1d", "relax.nn.max_pool2d", "relax.image.resize2d")
def _with_layout(sinker: _Sinker, name: str, call: Any) -> Any:
    source = sinker.under(call.args[0])
    if source is None:
        return None
    layout = str(call.attrs.layout)
    moved = "".join(layout[axis] for axis in _inverse(source[1]))
    if moved not in _LAYOUTS:
        return None
    layouts = {"layout": moved}
    if "pool" in (edge.op_name(call) or ""):
        layouts["out_layout"] = moved
    new = edge.with_attrs(call, [source[0], *call.args[1:]], **layouts)
    return sinker.sunk(name, new, source[1])


@_rule("relax.sum", "relax.max", "relax.min")
def _reduce(sinker: _Sinker, name: str, call: Any) -> Any:
    source = sinker.under(call.args[0])
    if source is None or call.attrs.axis is None:
        return None
    rank = len(source[1])
    gone = {int(axis) % rank for axis in call.attrs.axis}
    reduced = sorted(source[1][axis] for axis in gone)
    new = edge.with_attrs(call, [source[0]], axis=reduced)
    if bool(call.attrs.keepdims):
        return sinker.sunk(name, new, source[1])
    kept = [source[1][axis] for axis in range(rank) if axis not in gone]
    return sinker.sunk(name, new, tuple(sorted(kept).index(axis) for axis in kept))


@_rule("relax.take")
def _take(sinker: _Sinker, name: str, call: Any) -> Any:
    source = sinker.under(call.args[0])
    if source is None or call.attrs.axis is None or edge.tensor_type(call.args[1]).ndim != 1:
        return None
    axis = source[1][int(call.attrs.axis) % len(source[1])]
    return sinker.sunk(name, edge.with_attrs(call, [source[0], call.args[1]], axis=axis), source[1])


@_rule("relax.strided_slice")
def _slice(sinker: _Sinker, name: str, call: Any) -> Any:
    source = sinker.under(call.args[0])
    if source is None:
        return None
    rank = len(source[1])
    axes = [tvm.tirx.IntImm("int64", source[1][int(a) % rank]) for a in call.args[1].fields]
    new = edge.with_args(call, [source[0], tvm.ir.Tuple(axes), *call.args[2:]])
    return sinker.sunk(name, new, source[1])


@_rule(_TRANSPOSE)
def _compose(sinker: _Sinker, name: str, call: Any) -> Any:
    own = sinker.under(call)
    assert own is not None, "it is a transpose"
    value = sinker.value(call.args[0])
    if edge.op_name(value) == "relax.dequantize" and _one_scale(value):
        # Of a border, which no transpose sinks through unless another one waits for it.
        source = sinker.under(value.args[0])
        if source is None:
            return None
        real = edge.with_attrs(value, [source[0], *value.args[1:]], axis=-1)
        axes = tuple(source[1][axis] for axis in own[1])
        return real if axes == tuple(range(len(axes))) else sinker.sunk(name, real, axes)
    inner = sinker.under(call.args[0])
    return None if inner is None else sinker.transposed(call.args[0], own[1], name)


@_rule(_RESHAPE)
def _reshape(sinker: _Sinker, name: str, call: Any) -> Any:
    """Sink through a reshape that keeps together, in order, what the transpose moves as one."""
    source = sinker.under(call.args[0])
    before, after = edge.static_shape(call.args[0]), edge.static_shape(call)
    blocks = None
    if source is not None and before is not None and after is not None:
        blocks = blocks_of(before, after)
    if source is None or before is None or after is None or blocks is None:
        return None
    groups = []  # (axes of the source, axes of the result)
    sizes = edge.static_shape(source[0]) or ()
    for old, new in blocks:
        places = [source[1][axis] for axis in old]
        between = sizes[places[0] : places[-1] + 1]
        # What lies between them in the source may be axes of one element.
        count = int(np.prod([before[axis] for axis in old]))
        if places != sorted(places) or math.prod(between) != count:
            return None
        groups.append((places[0], new))
    order = [axis for _, new in sorted(groups) for axis in new]
    if order == sorted(order):  # nothing but axes of one element would move
        return relax.op.reshape(source[0], list(after))
    order = [axis for axis, size in enumerate(after) if size == 1] + order
    flat = relax.op.reshape(source[0], [after[axis] for axis in order])
    return sinker.sunk(name, flat, _inverse(tuple(order)))


@_rule("relax.matmul")
def _matmul(sinker: _Sinker, name: str, call: Any) -> Any:
    rows = _of_rows(sinker, name, call)
    return _of_flattened(sinker, name, call) if rows is None else rows


def _of_rows(sinker: _Sinker, name: str, call: Any) -> Any:
    """Multiply rows that stay rows."""
    source, weight = sinker.under(call.args[0]), call.args[1]
    rank = int(edge.tensor_type(call).ndim)
    if source is None or edge.tensor_type(weight).ndim != 2 or source[1][-1] != rank - 1:
        return None
    return sinker.sunk(name, edge.with_args(call, [source[0], weight]), source[1])


def _of_flattened(sinker: _Sinker, name: str, call: Any) -> Any:
    """Give the rows of the weight the order in which the source of a flattened map lies."""
    flat = sinker.value(call.args[0])
    source = sinker.under(flat.args[0]) if edge.op_name(flat) == _RESHAPE else None
    before = None if source is None else edge.static_shape(flat.args[0])
    after = edge.static_shape(call.args[0])
    if source is None or before is None or not after:
        return None
    first = len(before)
    while first and math.prod(before[first:]) < after[-1]:
        first -= 1
    leading = [axis for axis in range(first) if before[axis] != 1]
    if math.prod(before[first:]) != after[-1]:
        return None
    places = [axis for axis in _inverse(source[1]) if before[axis] != 1]
    if places[: len(leading)] != leading:
        return None
    rows = np.arange(math.prod(before)).reshape(before).transpose(_inverse(source[1]))
    rows = rows.reshape(-1, after[-1])[0]
    weight = _with_rows(sinker, call.args[1], rows)
    if weight is None:
        return None
    data = sinker.emit(relax.op.reshape(source[0], list(after)), f"{name}_input")
    return edge.with_args(call, [data, weight])


def _with_rows(sinker: _Sinker, weight: Any, rows: NDArray[np.int64]) -> Any:
    """Give a weight of (rows, columns) with its rows in another order, or None."""
    value = sinker.value(weight)
    name = sinker._wanted.get(weight, "weight") if isinstance(weight, relax.Var) else "weight"
    if edge.tensor_type(weight).ndim != 2:
        return None
    if isinstance(value, edge.Constant):
        return sinker.emit(edge.constant(edge.constant_value(value)[rows]), name)
    if edge.op_name(value) != CODEBOOK or not all(isinstance(a, edge.Constant) for a in value.args):
        return None
    codes, centroids = (edge.constant_value(arg) for arg in value.args)
    if centroids.ndim > 1 and centroids.shape[0] > 1:  # each block of rows has its own
        return None
    return sinker.emit(codebook(edge.constant(codes[rows]), edge.constant(centroids)), name)
