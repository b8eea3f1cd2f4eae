"""Concatenations as one write for each part, straight into the joined tensor.

Before::

    y = R.concat((a, b), axis=1)

After::

    y_0 = R.call_tir(write, (a,))                       # the first rows of y; the others undefined
    y = R.call_tir_inplace(write_1, (b, y_0), inplace_indices=[1])

A part dies when it is written, so that the joined tensor and one part are live at once and not all
parts; and no element asks which part it is of. A concatenation that is read by another one alone
is written straight into that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import IntImm
from tvm.tirx.script import builder as T

from tvm_compress import edge, ir
from tvm_compress.targets.mcu.kernels import OPAQUE

__all__ = ["write_parts"]

_CONCAT = "relax.concat"


def write_parts(mod: tvm.IRModule) -> tvm.IRModule:
    """Rewrite every concatenation of ``main`` along one axis; shapes are static."""
    found = (edge.op_name(binding.value) for binding in ir.bindings(ir.main_function(mod)))
    return _WriteParts(mod).run() if _CONCAT in found else mod


class _WriteParts(ir.Rewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        function = ir.main_function(mod)
        self._kernels = relax.BlockBuilder()
        self._calls = {binding.var: binding.value for binding in ir.bindings(function)}
        uses = edge.use_counts(function)
        # Concatenations whose parts another one writes.
        self._inner = {
            part
            for call in self._calls.values()
            if edge.op_name(call) == _CONCAT
            for part in _parts(call, self._calls)
            if uses[part] == 1 and edge.op_name(self._calls.get(part)) == _CONCAT
        }
        self._vars = {edge.var_name(var): var for var in self._calls}

    def rewrite(self, name: str, value: Any) -> Any:
        var = self._vars[name]
        if edge.op_name(value) != _CONCAT or var in self._inner:
            return value
        shape = edge.static_shape(var) or ()
        joined: Any = None
        for i, (part, start) in enumerate(self._pieces(var, [0] * len(shape))):
            sizes = edge.static_shape(part) or ()
            if 0 in sizes:
                continue
            if joined is not None:
                joined = self.emit(joined, f"{name}__part{i - 1}")
            kernel = _kernel(sizes, shape, start, edge.dtype_of(var))
            called = self._kernels.add_func(kernel, "write_part")
            out = relax.TensorType(shape, edge.dtype_of(var))
            part = edge.substitute(part, self._new)
            joined = (
                relax.call_tir(called, [part], out)
                if joined is None
                else relax.call_tir_inplace(called, [part, joined], 1, out)
            )
        return value if joined is None else joined

    def _pieces(self, var: Any, start: Sequence[int]) -> list[tuple[Any, list[int]]]:
        """Give the parts of a concatenation, and where each begins in the joined tensor."""
        call = self._calls[var]
        axis = int(call.attrs.axis or 0) % len(start)
        found, place = [], list(start)
        for part in _parts(call, self._calls):
            here = list(place)
            found += self._pieces(part, here) if part in self._inner else [(part, here)]
            place[axis] += (edge.static_shape(part) or ())[axis]
        return found

    def run(self) -> tvm.IRModule:
        mod = super().run()
        for var, function in self._kernels.get().functions_items():
            mod.update_func(var, function)
        return mod


def _parts(call: Any, bound: dict[Any, Any]) -> list[Any]:
    parts = call.args[0]
    return list(bound.get(parts, parts).fields)


def _kernel(part: Sequence[int], joined: Sequence[int], start: Sequence[int], dtype: str) -> Any:
    """Build the PrimFunc ``(part, joined)`` that copies a part to its place."""

    def shape(sizes: Sequence[int]) -> list[Any]:
        return [IntImm("int64", size) for size in sizes]

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        # Opaque: what fuses with it would see a tensor that is not whole.
        T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
        x = T.arg("x", T.buffer(shape(part), dtype))
        y = T.arg("y", T.buffer(shape(joined), dtype))
        # In blocks, for TVM asks functions of one argument whether they are reshapes.
        with T.sblock("root"), T.grid(*shape(part)) as loops, T.sblock("write"):
            # Of one axis both give a variable and no list.
            several = len(part) > 1
            at = T.axis.remap("S" * len(part), list(loops) if several else [loops])
            at = list(at) if several else [at]
            place = [index + first for index, first in zip(at, start, strict=True)]
            T.reads(x[tuple(at)])
            T.writes(y[tuple(place)])
            T.buffer_store(y, x[tuple(at)], place)
    return builder.get()
