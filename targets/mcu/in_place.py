"""Which arguments of a loop nest may lie under its output.

A tensor that dies at a step and the tensor that the step writes may share their bytes where every
element is read for the last time before, or in the moment when, its place is written. So it is
where the last nest alone writes the output, once an element, and reads the argument at the index
that it writes (add, ReLU, the last nest of a softmax), or where nests before it alone read the
argument (whatever is summed into scratch memory first).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx

from tvm_compress import edge

__all__ = ["in_place_arguments"]


def in_place_arguments(function: tirx.PrimFunc, outputs: int) -> tuple[int, ...]:
    """Give the indices of the arguments whose bytes the output may take.

    Args:
        function: a loop nest with blocks, whose intermediate arrays are inlined as far as they
            will be.
        outputs: how many of the last parameters are written; with more than one nothing is given.
    """
    nest = _last_nest(function)
    if nest is None or outputs != 1:
        return ()
    earlier, loops, realize = nest
    block, output = realize.block, function.params[-1]
    store, iters = block.body, block.iter_vars
    if not isinstance(store, tirx.BufferStore) or not store.buffer.same_as(output):
        return ()
    # Every element is stored once, in the order of the loops.
    once = all(var.iter_type == tirx.IterVar.DataPar for var in iters) and (
        len(loops) == len(iters)
        and all(value.same_as(at) for value, at in zip(realize.iter_values, loops, strict=True))
        and isinstance(realize.predicate, tirx.IntImm)
        and int(realize.predicate) == 1
    )
    before = [load for nest_before in earlier for load in _loads(nest_before)]
    loads = _loads(store)
    if not once or any(load.source.same_as(output) for load in (*before, *loads)):
        return ()
    analyzer = tvm.sym.Analyzer()
    for var in iters:
        analyzer.bind(var.var, var.dom)
    place = _flat(output, store.indices)
    in_order = len(store.indices) == len(iters) and all(
        index.same_as(var.var) for index, var in zip(store.indices, iters, strict=True)
    )
    found = []
    for i, param in enumerate(function.params[:-1]):
        mine = [load for load in loads if load.source.same_as(param)]
        used = bool(mine) or any(load.source.same_as(param) for load in before)
        if (
            used
            and _may_lie_under(param, output, in_order)
            and all(analyzer.can_prove_equal(_flat(param, load.indices), place) for load in mine)
        ):
            found.append(i)
    return tuple(found)


def _last_nest(function: tirx.PrimFunc) -> tuple[list[Any], list[Any], Any] | None:
    """Give the statements in front of the last nest, that nest's loop variables and its block."""
    root = function.body
    if not isinstance(root, s_tir.SBlockRealize):
        return None
    body = root.block.body
    statements = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    statement, loops = statements[-1], []
    while isinstance(statement, tirx.For):
        loops.append(statement.loop_var)
        statement = statement.body
    if not isinstance(statement, s_tir.SBlockRealize):
        return None
    return statements[:-1], loops, statement


def _loads(statement: Any) -> list[Any]:
    found: list[Any] = []

    def visit(load: Any) -> None:
        found.append(load)

    tvm_ffi.structural_walk(statement, [(tvm.ir.TensorLoad, visit)])
    return found


def _flat(buffer: Any, indices: Sequence[Any]) -> Any:
    place: Any = tirx.IntImm("int64", 0)
    for size, index in zip(buffer.ty.shape, indices, strict=True):
        place = place * size + index
    return place


def _may_lie_under(argument: Any, output: Any, in_order: bool) -> bool:
    """Whether the dtypes and sizes of two tensors let them share bytes.

    Other types than characters may not alias in C, so that a compiler could move the store of an
    int32 in front of a load of a float. Narrower elements are written behind what is still to be
    read, if they are written in order.
    """
    names = [edge.dtype_of_prim(buffer.ty) for buffer in (argument, output)]
    read, written = (np.dtype(name).itemsize for name in names)
    counts = [math.prod(int(size) for size in buffer.ty.shape) for buffer in (argument, output)]
    if counts[0] * read < counts[1] * written:
        return False
    return names[0] == names[1] or (written == 1 and (read == 1 or in_order))
