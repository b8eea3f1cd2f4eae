"""``tvm_compress.lookup(x, table)``: any function of one int8, as a table of 256 entries.

``y[...] = table[x[...] + 128]``: ``x`` is int8 of any shape, ``table`` int8 or int32 of shape
``(256,)``. Logistic, tanh and every other function of one quantised tensor take this form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, te

from tvm_compress import edge
from tvm_compress.ops.meaning import MEANING

__all__ = ["LOOKUP", "lookup", "lookup_numpy"]

LOOKUP = "tvm_compress.lookup"


def lookup_numpy(x: NDArray[Any], table: NDArray[Any]) -> NDArray[Any]:
    """Give the numpy meaning of the operator.

    >>> lookup_numpy(np.array([-128, 127], "int8"), np.arange(256, dtype="int32"))
    array([  0, 255], dtype=int32)
    """
    return np.take(table, x.astype(np.int64) + 128)


def lookup(x: tvm.ir.Expr, table: NDArray[Any]) -> tvm.ir.Expr:
    """Build the call: ``x`` int8 of any shape, ``table`` 256 entries of int8 or int32."""
    return edge.call_op(LOOKUP, [x, edge.constant(table)])


def _infer_type(call: tvm.ir.Expr, builder: relax.BlockBuilder) -> relax.TensorType:
    x, table = (edge.tensor_type(arg) for arg in call.args)
    if edge.dtype_of(x) != "int8":
        raise TypeError(f"{LOOKUP}: the input is {edge.dtype_of(x)}; expected int8.")
    if edge.static_shape(table) != (256,) or edge.dtype_of(table) not in ("int8", "int32"):
        raise TypeError(
            f"{LOOKUP}: the table is {edge.dtype_of(table)} of shape {edge.static_shape(table)}; "
            "expected 256 entries of int8 or int32."
        )
    dtype = edge.dtype_of(table)
    if x.shape is None:
        return relax.TensorType(dtype=dtype, ndim=x.ndim)
    return relax.TensorType(x.shape, dtype)


def _legalize(builder: relax.BlockBuilder, call: tvm.ir.Expr) -> tvm.ir.Expr:
    def build(x: te.Tensor, table: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            return table(x(*index).astype("int32") + 128)

        return te.compute(x.shape, element, name="lookup")

    return builder.call_te(build, *call.args, primfunc_name_hint="lookup")


def _meaning(attrs: Any, x: NDArray[Any], table: NDArray[Any]) -> NDArray[Any]:
    return lookup_numpy(x, table)


MEANING[LOOKUP] = _meaning

edge.register_op(
    LOOKUP,
    "A function of one int8, as a table of its 256 values.",
    arguments=[("x", "int8 tensor"), ("table", "256 entries of int8 or int32")],
    infer_type=_infer_type,
    legalize=_legalize,
)
