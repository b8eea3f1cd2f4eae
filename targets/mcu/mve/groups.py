"""Steps between the layers of an integer module that a kernel with MVE computes whole.

What they are: :mod:`tvm_compress.targets.mcu.integer_steps`.
"""

from __future__ import annotations

from typing import Any

import tvm

from tvm_compress import edge
from tvm_compress.targets.mcu.integer_steps import Scope, Step, find_elements, find_sums
from tvm_compress.targets.mcu.mve.elementwise import VectorElements
from tvm_compress.targets.mcu.mve.pooling import VectorSums

__all__ = ["find_vector_groups"]


def find_vector_groups(mod: tvm.IRModule) -> dict[str, Step]:
    """Find the steps by the name of the variable that holds each one's result."""
    scope = Scope(mod)
    steps = {}
    for var, call in scope.calls():
        step = _elements(var, call, scope) or _sums(call, scope)
        if step is not None:
            steps[edge.var_name(var)] = step
    return steps


def _sums(call: Any, scope: Scope) -> Step | None:
    found = find_sums(call, scope)
    if found is None or VectorSums.refuses(found[1]) is not None:
        return None
    x, sums, wide = found
    return Step("sum", (x,), VectorSums(sums), (wide,), edge.static_shape(call) or (), "int32")


def _elements(var: Any, call: Any, scope: Scope) -> Step | None:
    found = find_elements(var, call, scope)
    if found is None or VectorElements.refuses(found[1]) is not None:
        return None
    inputs, tree, names = found
    kind = "add" if any(node.op == "add" for node in tree.root.walk()) else "rescale"
    shape = edge.static_shape(var) or ()
    return Step(kind, tuple(inputs), VectorElements(tree), tuple(names), shape, "int8")
