"""Integer layers of a module: a sum of int8 products, its bias and its requantization.

::

    pad = R.nn.pad(x, pad_value=zero point)             # where there is padding
    conv = R.nn.conv2d(pad, weight, out_dtype="int32")  # or R.matmul
    add = R.add(conv, bias)
    y = tvm_compress.requantize(add, multiplier, shift)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.tirx import IntImm

from tvm_compress import edge, ir
from tvm_compress.ops.requantize import REQUANTIZE, requantize_element
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.requantize import Requantize
from tvm_compress.targets.mcu.dsp.residual import Addition, Rescaled, Residual, WeightedSum
from tvm_compress.targets.mcu.geometry import Geometry, geometry_of
from tvm_compress.targets.mcu.kernels import Arithmetic, Epilogue

__all__ = ["IntegerGroup", "find_additions", "find_integer_groups", "with_residuals"]

Array = NDArray[Any]


@dataclass(frozen=True)
class IntegerGroup:
    """A sum and what makes int8 of it.

    ``names`` are the variables on the way to the result; ``zero`` is what padding holds.
    """

    call: Any
    x: Any
    geometry: Geometry
    parameter: ir.Parameter
    bias: Array  # int64 (outputs,)
    zero: int
    multiplier: Array  # int32 (outputs,), as the shift
    shift: Array
    attrs: Any
    names: tuple[str, ...]
    residual: Any = None  # a tensor that is added behind the requantization
    sum: Addition | None = None  # and how

    @property
    def out_dtype(self) -> str:
        """The dtype of the result."""
        return str(self.attrs["out_dtype"])

    def layer(self) -> IntegerLayer:
        """Give what kernels in assembly compute."""
        a = self.attrs
        requantize = Requantize(
            self.multiplier,
            self.shift,
            int(a["zero_point"]),
            str(a["rounding"]),  # type: ignore[arg-type]
            int(a["low"]),
            int(a["high"]),
        )
        return IntegerLayer(self.geometry, self._rows(), self.bias, self.zero, requantize)

    def _rows(self) -> Array:
        value = self.parameter.value
        rows = value.T if self.geometry.rank == 0 else value.reshape(value.shape[0], -1)
        return np.ascontiguousarray(rows.astype(np.int16))

    def arithmetic(self) -> Arithmetic:
        """Give the dtypes of the plain kernel, which takes ``zero`` off where there is padding."""
        padded = self.geometry.padding != (0, 0) or _reaches_out(self.geometry)
        return Arithmetic(edge.dtype_of(self.x), self.out_dtype, self.zero if padded else 0)

    def epilogue(self) -> tuple[Epilogue, list[Array]]:
        """Give the plain kernel's epilogue and its operands, one number for each channel."""
        zero = self.arithmetic().zero
        bias = self.bias + zero * self._rows().astype(np.int64).sum(axis=1)
        arrays = [bias.astype(np.int32), self.multiplier, self.shift]
        shape: tuple[int, ...] = (-1,)
        if self.geometry.rank and not self.geometry.channels_last:
            shape = (-1, *[1] * self.geometry.rank)
        # What all channels share stands in the code.
        shared = [int(a[0]) if (a == a[0]).all() else None for a in arrays[1:]]
        operands = [arrays[0], *(a for a, s in zip(arrays[1:], shared, strict=True) if s is None)]
        operands = [np.ascontiguousarray(a.reshape(shape)) for a in operands]

        def apply(total: Any, elements: Any) -> Any:
            rest = list(elements)[1:]
            factors = [
                IntImm("int64", s) if s is not None else rest.pop(0).astype("int64") for s in shared
            ]
            multiplier, shift = factors
            return requantize_element(total + elements[0], multiplier, shift, self.attrs)

        shapes = tuple((a.shape, "int32") for a in operands)
        return Epilogue(apply, shapes), operands


def _reaches_out(g: Geometry) -> bool:
    """Whether some window reaches below or to the right of the input."""
    ends = (
        (out - 1) * step + (taps - 1) * dilation - pad
        for out, step, taps, dilation, pad in zip(
            g.out_size, g.strides, g.kernel, g.dilation, g.padding, strict=True
        )
    )
    return any(end >= size for end, size in zip(ends, g.in_size, strict=True))


def find_integer_groups(
    mod: tvm.IRModule, named: dict[str, ir.Parameter]
) -> dict[str, IntegerGroup]:
    """Find the integer layers by the name of the variable that holds each one's result."""
    function = ir.main_function(mod)
    uses = edge.use_counts(function)
    bound = {binding.var: binding.value for binding in ir.bindings(function)}
    groups = {}
    for var, value in bound.items():
        if edge.op_name(value) == REQUANTIZE:
            group = _match(value, bound, uses, named)
            if group is not None:
                groups[edge.var_name(var)] = group
    return groups


def _match(
    call: Any, bound: dict[Any, Any], uses: dict[Any, int], named: dict[str, ir.Parameter]
) -> IntegerGroup | None:
    names: list[str] = []

    def producer(var: Any) -> Any:
        """Give what a variable is bound to, if nothing else uses it."""
        if not isinstance(var, relax.Var) or uses[var] != 1:
            return None
        return bound.get(var)

    def constant(expr: Any) -> Array | None:
        value = bound.get(expr, expr) if isinstance(expr, relax.Var) else expr
        return edge.constant_value(value) if isinstance(value, edge.Constant) else None

    total, source = call.args[0], producer(call.args[0])
    bias = None
    if edge.op_name(source) == "relax.add" and (bias := constant(source.args[1])) is not None:
        names.append(edge.var_name(total))
        total, source = source.args[0], producer(source.args[0])
    if source is None or edge.dtype_of_or_none(total) != "int32":
        return None
    geometry = geometry_of(source)
    weight = source.args[1] if geometry is not None else None
    if geometry is None or not isinstance(weight, relax.Var):
        return None
    if edge.var_name(weight) not in named:
        return None
    names.append(edge.var_name(total))
    x = source.args[0]
    if edge.dtype_of(x) not in ("int8", "uint8") or str(call.attrs["out_dtype"]) != "int8":
        return None
    parameter = named[edge.var_name(weight)]
    dtype = str((parameter.centroids if parameter.dense is None else parameter.dense).dtype)  # type: ignore[union-attr]
    if dtype not in ("int8", "int16"):
        return None
    outputs = geometry.outputs
    channel_axis = len(geometry.out_shape) - 1
    if geometry.rank and not geometry.channels_last:
        channel_axis = 1
    flat = np.zeros(outputs, np.int64) if bias is None else bias.reshape(-1).astype(np.int64)
    if flat.size > 1 and bias is not None:
        # One number a channel, and not one a row or column of as many.
        sizes = (1,) * (len(geometry.out_shape) - bias.ndim) + bias.shape
        if flat.size != outputs or sizes[channel_axis] != outputs:
            return None
    factors = [constant(arg) for arg in call.args[1:]]
    if any(f is None or f.size not in (1, outputs) for f in factors):
        return None
    if any(f is not None and f.size > 1 for f in factors):
        axis = int(call.attrs["axis"]) % len(geometry.out_shape)
        if axis != channel_axis:
            return None
    zero = 0
    padded = _absorb(x, producer(x), geometry)
    if padded is not None:
        names.append(edge.var_name(x))
        x, geometry, zero = padded
    multiplier, shift = (
        np.ascontiguousarray(np.broadcast_to(f.reshape(-1), (outputs,)))  # type: ignore[union-attr]
        for f in factors
    )
    return IntegerGroup(
        source,
        x,
        geometry,
        parameter,
        np.broadcast_to(flat, (outputs,)),
        zero,
        multiplier,
        shift,
        call.attrs,
        tuple(names),
    )


def _absorb(x: Any, pad: Any, geometry: Geometry) -> tuple[Any, Geometry, int] | None:
    """Take constant padding of the spatial axes into the geometry."""
    if edge.op_name(pad) != "relax.nn.pad" or geometry.rank == 0:
        return None
    # The operator's own padding holds 0, whatever this one holds.
    if geometry.padding != (0, 0) or _reaches_out(geometry):
        return None
    if str(pad.attrs.pad_mode) != "constant":
        return None
    inner = edge.static_shape(pad.args[0])
    widths = [int(w) for w in pad.attrs.pad_width]
    before, after = widths[0::2], widths[1::2]
    spatial = list(range(1, 1 + geometry.rank))
    if not geometry.channels_last:
        spatial = [axis + 1 for axis in spatial]
    outside = [a for a in range(len(before)) if a not in spatial]
    if inner is None or any(before[a] or after[a] for a in outside) or min(widths) < 0:
        return None
    top, left = [0, *(before[a] for a in spatial)][-2:]
    height, width = [1, *(inner[a] for a in spatial)][-2:]
    grown = replace(geometry, padding=(top, left), in_size=(height, width), in_shape=inner)
    return pad.args[0], grown, int(pad.attrs.pad_value)


def with_residuals(
    mod: tvm.IRModule, groups: dict[str, IntegerGroup], takes: Callable[[IntegerGroup], bool]
) -> dict[str, IntegerGroup]:
    """Let integer layers take in the addition behind them.

    Where sums are rounded twice, that is TensorFlow Lite's arithmetic::

        a = tvm_compress.requantize((q - zero) * 2**20, multiplier, shift)  # int32; b likewise
        y = tvm_compress.requantize(a + b, multiplier, shift)

    and else ``y = clip((q * factor + r * factor + constant) >> shift)``. ``takes`` says whether
    the kernel of a group can. Of two layers the later one takes the sum.
    """
    function = ir.main_function(mod)
    uses = edge.use_counts(function)
    bound = {binding.var: binding.value for binding in ir.bindings(function)}
    order = {edge.var_name(var): i for i, var in enumerate(bound)}
    fused = dict(groups)
    for var, value in bound.items():
        for own, other, how, names in _match_sum(value, _Chain(bound, uses)):
            name = edge.var_name(own)
            if name not in fused or uses[own] != 1 or not isinstance(other, relax.Var):
                continue
            group = fused[name]
            # The other tensor has to be there before this layer; an input of the network is.
            there = order.get(edge.var_name(other), -1) < order[name]
            same = edge.static_shape(other) == group.geometry.out_shape and group.sum is None
            if not (there and same and takes(group)) or how.refuses():
                continue
            del fused[name]
            inside = (*group.names, name, *names)
            fused[edge.var_name(var)] = replace(group, names=inside, residual=other, sum=how)
            break
    return fused


def find_additions(mod: tvm.IRModule) -> Iterator[tuple[Any, list[Any], Addition, list[str]]]:
    """Give the additions of two int8 tensors: result, tensors, arithmetic, names between.

    The arithmetics are those of :func:`with_residuals`.
    """
    function = ir.main_function(mod)
    uses = edge.use_counts(function)
    bound = {binding.var: binding.value for binding in ir.bindings(function)}
    for var, value in bound.items():
        for own, other, how, names in _match_sum(value, _Chain(bound, uses)):
            if edge.static_shape(own) == edge.static_shape(other) and how.refuses() is None:
                yield var, [own, other], how, names
                break


@dataclass
class _Chain:
    """What variables are bound to, where nothing else uses them."""

    bound: dict[Any, Any]
    uses: dict[Any, int]

    def of(self, user: Any, index: int, operator: str, names: list[str]) -> Any:
        """Give the call of an operator that is an argument of a call, and note its name; or None.

        ``user`` may be None too.
        """
        var = None if user is None else user.args[index]
        if not isinstance(var, relax.Var) or self.uses[var] != 1:
            return None
        call = self.bound.get(var)
        if edge.op_name(call) != operator:
            return None
        names.append(edge.var_name(var))
        return call


def _integer(expr: Any) -> int | None:
    if not isinstance(expr, edge.Constant) or edge.constant_value(expr).size != 1:
        return None
    return int(edge.constant_value(expr).flat[0])


def _match_sum(call: Any, chain: _Chain) -> Iterator[tuple[Any, Any, Addition, list[str]]]:
    """Give (own, other, addition, names between), in both ways round."""
    for match in (_match_twice, _match_once):
        names: list[str] = []
        found = match(call, chain, names)
        if found is not None:
            tensors, additions = found
            for i in (0, 1):
                yield tensors[i], tensors[1 - i], additions[i], names


def _match_twice(
    call: Any, chain: _Chain, names: list[str]
) -> tuple[list[Any], list[Addition]] | None:
    factors = _factors(call, "int8")
    added = chain.of(call, 0, "relax.add", names) if factors is not None else None
    if factors is None or added is None:
        return None
    first, second = (_match_term(added, index, chain, names) for index in (0, 1))
    if first is None or second is None:
        return None
    a = call.attrs
    multiplier, shift = (np.asarray([f], np.int32) for f in factors)
    total = Requantize(
        multiplier,
        shift,
        int(a["zero_point"]),
        str(a["rounding"]),  # type: ignore[arg-type]
        int(a["low"]),
        int(a["high"]),
    )
    sums: list[Addition] = [
        Residual(first[1], second[1], total),
        Residual(second[1], first[1], total),
    ]
    return [first[0], second[0]], sums


def _match_once(
    call: Any, chain: _Chain, names: list[str]
) -> tuple[list[Any], list[Addition]] | None:
    if edge.op_name(call) != "relax.astype" or edge.dtype_of(call) != "int8":
        return None
    clip = chain.of(call, 0, "relax.clip", names)
    shifted = chain.of(clip, 0, "relax.right_shift", names)
    rounded = chain.of(shifted, 0, "relax.add", names)
    added = chain.of(rounded, 0, "relax.add", names)
    if added is None:
        return None
    tensors, weights = [], []
    for index in (0, 1):
        product = chain.of(added, index, "relax.multiply", names)
        wide = chain.of(product, 0, "relax.astype", names)
        if wide is None or edge.dtype_of(wide.args[0]) != "int8":
            return None
        weight = _integer(product.args[1])
        if weight is None:
            return None
        tensors.append(wide.args[0])
        weights.append(weight)
    constant, shift = _integer(rounded.args[1]), _integer(shifted.args[1])
    low, high = (float(bound.value) for bound in clip.args[1:])
    if constant is None or shift is None or not -128 <= low <= high <= 127:
        return None
    first, second = weights
    limits = (constant, shift, int(low), int(high))
    return tensors, [WeightedSum(first, second, *limits), WeightedSum(second, first, *limits)]


def _match_term(
    added: Any, index: int, chain: _Chain, names: list[str]
) -> tuple[Any, Rescaled] | None:
    call = chain.of(added, index, REQUANTIZE, names)
    factors = _factors(call, "int32")
    if factors is None or int(call.attrs["zero_point"]) or str(call.attrs["rounding"]) != "double":
        return None
    product = chain.of(call, 0, "relax.multiply", names)
    centred = chain.of(product, 0, "relax.subtract", names)
    wide = chain.of(centred, 0, "relax.astype", names)
    if wide is None or edge.dtype_of(wide.args[0]) != "int8":
        return None
    scale, zero = _integer(product.args[1]), _integer(centred.args[1])
    if scale is None or zero is None or scale < 1 or scale & (scale - 1):
        return None
    # The difference, the sum of two and what rounds the sum stay within a word.
    if abs(zero) > 128 or scale.bit_length() > 22:
        return None
    return wide.args[0], Rescaled(zero, scale.bit_length() - 1, *factors)


def _factors(call: Any, dtype: str) -> tuple[int, int] | None:
    """Give multiplier and shift of a requantization with one factor, to a dtype."""
    if edge.op_name(call) != REQUANTIZE or str(call.attrs["out_dtype"]) != dtype:
        return None
    parts = [edge.constant_value(a) for a in call.args[1:] if isinstance(a, edge.Constant)]
    if len(parts) != 2 or any(part.size != 1 for part in parts):
        return None
    return int(parts[0].flat[0]), int(parts[1].flat[0])
