"""Steps between the layers of an integer module that a kernel for the DSP extension computes whole.

What they are: :mod:`tvm_compress.targets.mcu.integer_steps`; beside those maximum pools, tables,
and the borders of a network of uint8, where 128 is subtracted or added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from tvm_compress import edge
from tvm_compress.ops.layout import split_padding
from tvm_compress.ops.lookup import LOOKUP
from tvm_compress.targets.mcu.dsp.convolution import BYTE_COST
from tvm_compress.targets.mcu.dsp.elements import Flip, Sum, Table
from tvm_compress.targets.mcu.dsp.pooling import Maxima, Means
from tvm_compress.targets.mcu.integer_groups import find_additions
from tvm_compress.targets.mcu.integer_steps import (
    Scope,
    Step,
    Windows,
    find_elements,
    find_mean,
)

__all__ = ["find_dsp_steps"]

# What loops of C take for an element that they read, and for all, about: a kernel has to be worth
# its code.
_LOOP_INSTRUCTIONS = 8
_LOOP_BYTES = 80
_MEAN_BYTES = 160
_SUM_INSTRUCTIONS = 30
_SUM_BYTES = 160


def find_dsp_steps(mod: tvm.IRModule, byte_cost: float = BYTE_COST) -> dict[str, Step]:
    """Find the steps by the name of the variable that holds each one's result.

    ``byte_cost`` is how many instructions of an inference a byte of flash is worth.
    """
    scope = Scope(mod)
    found: dict[str, tuple[Step, float, int]] = {}
    for var, call in scope.calls():
        one = (
            _mean(var, call, scope)
            or _flip(var, call, scope)
            or _table(var, call, scope)
            or _maximum(call)
        )
        if one is not None:
            found[edge.var_name(var)] = one
    for var, tensors, how, names in find_additions(mod):
        shape = edge.static_shape(var) or ()
        kernel = Sum(how, math.prod(shape))
        step = Step("add", tuple(tensors), kernel, tuple(names), shape, "int8")
        found[edge.var_name(var)] = (step, _SUM_INSTRUCTIONS * kernel.size, _SUM_BYTES)
    steps = {}
    for name, (step, instructions, size_bytes) in found.items():
        function = step.kernel.function()
        more = function.code_bytes + sum(a.nbytes for a in step.kernel.arrays) - size_bytes
        if instructions - function.instructions > byte_cost * more:
            steps[name] = step
    return steps


# Each gives the step, and about how many instructions and bytes the loops of C would take.
_Found = tuple[Step, float, int] | None


def _mean(var: Any, call: Any, scope: Scope) -> _Found:
    found = find_mean(var, call, scope)
    if found is None or Means.refuses(found[1]) is not None:
        return None
    x, mean, names = found
    shape = edge.static_shape(var) or ()
    step = Step("mean", (x,), Means(mean), tuple(names), shape, "int8")
    read = math.prod(shape) * (math.prod(mean.windows.kernel) + 2)
    return step, _LOOP_INSTRUCTIONS * read, _MEAN_BYTES


def _flip(var: Any, call: Any, scope: Scope) -> _Found:
    """Match a byte made int32, moved by 128 and made the other byte."""
    if edge.op_name(call) != "relax.astype":
        return None
    sign, moved = 1, scope.inner(call.args[0], "add")
    if moved is None:
        sign, moved = -1, scope.inner(call.args[0], "subtract")
    wide = None if moved is None else scope.inner(moved.args[0], "astype")
    if moved is None or wide is None:
        return None
    x, number = wide.args[0], scope.array(moved.args[1])
    dtypes = (edge.dtype_of_or_none(x), edge.dtype_of(wide), edge.dtype_of(call))
    if dtypes not in (("uint8", "int32", "int8"), ("int8", "int32", "uint8")):
        return None
    if number is None or number.size != 1:
        return None
    if sign * int(number.flat[0]) != (-128 if dtypes[0] == "uint8" else 128):
        return None
    shape = edge.static_shape(x)
    if shape is None or edge.static_shape(var) != shape:
        return None
    names = (edge.var_name(moved.args[0]), edge.var_name(call.args[0]))
    kernel = Flip(math.prod(shape))
    step = Step("flip", (x,), kernel, names, shape, dtypes[2])
    return step, _LOOP_INSTRUCTIONS * kernel.size, _LOOP_BYTES


def _table(var: Any, call: Any, scope: Scope) -> _Found:
    """Match a lookup, or a tree of one input: 256 bytes of flash in place of its arithmetic."""
    entries: Sequence[int] | Any
    names: list[str] = []
    if edge.op_name(call) == LOOKUP and edge.dtype_of(call) == "int8":
        x, entries, kind = call.args[0], scope.array(call.args[1]), "lookup"
    else:
        found = find_elements(var, call, scope)
        if found is None or len(found[0]) != 1 or found[1].root.overflow is not None:
            return None
        (x,), tree, names = found
        if any(len(node.args) > 1 for node in tree.root.walk()):
            return None
        entries, kind = [tree.root.of(value) for value in range(-128, 128)], "rescale"
        if min(entries) < -128 or max(entries) > 127:
            return None
    shape = edge.static_shape(x)
    if entries is None or shape is None or not isinstance(x, relax.Var):
        return None
    kernel = Table(entries, math.prod(shape))
    step = Step(kind, (x,), kernel, tuple(names), shape, "int8")
    # The loops of a lookup have a table too.
    return step, _LOOP_INSTRUCTIONS * kernel.size, _LOOP_BYTES + (256 if kind == "lookup" else 0)


def _maximum(call: Any) -> _Found:
    if edge.op_name(call) not in ("relax.nn.max_pool1d", "relax.nn.max_pool2d"):
        return None
    x, a = call.args[0], call.attrs
    shape, out_shape = edge.static_shape(x), edge.static_shape(call)
    layout = str(a.layout)
    if edge.dtype_of(x) != "int8" or shape is None or out_shape is None or shape[0] != 1:
        return None
    if layout not in ("NHWC", "NWC") or str(a.out_layout) not in ("", layout):
        return None
    if any(int(d) != 1 for d in a.dilation):
        return None

    def pair(values: Any, missing: int) -> tuple[int, int]:
        numbers = [int(v) for v in values]
        return (missing, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])

    before = [first for first, _ in split_padding([int(p) for p in a.padding])]
    windows = Windows(
        pair(shape[1:-1], 1),
        pair(out_shape[1:-1], 1),
        pair(a.pool_size, 1),
        pair(a.strides, 1),
        pair(before, 0),
        shape[-1],
    )
    if Maxima.refuses(windows) is not None:
        return None
    step = Step("max_pool", (x,), Maxima(windows), (), out_shape, "int8")
    read = math.prod(out_shape) * math.prod(windows.kernel)
    return step, _LOOP_INSTRUCTIONS * read, _LOOP_BYTES
