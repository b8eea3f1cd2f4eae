"""Runs a canonical module in numpy, one binding after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.errors import UnsupportedError
from tvm_compress.ops import CODEBOOK, codebook_numpy
from tvm_compress.ops.meaning import MEANING
from tvm_compress.tensors import check_samples, input_specs, join_samples

__all__ = ["evaluate", "run"]


def run(
    mod: tvm.IRModule, inputs: NDArray[Any] | Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run one sample, or several.

    Args:
        mod: a module as :func:`tvm_compress.load` gives it.
        inputs: one array, or arrays by input name, of the shapes and dtypes of ``main``; where the
            batch is 1, N samples along the first axis are taken too.

    Returns:
        The outputs by name.

    Raises:
        DataError: an input is missing, unknown, or of another shape or dtype.
        UnsupportedError: the module holds an operator without a numpy meaning.
    """
    samples = check_samples(input_specs(mod), inputs)
    count = len(next(iter(samples.values()), ()))
    results = [_run_one(mod, {n: v[i] for n, v in samples.items()}) for i in range(count)]
    return join_samples({n: np.stack([r[n] for r in results]) for n in results[0]})


def _run_one(mod: tvm.IRModule, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    function = ir.main_function(mod)
    values: dict[Any, Any] = {param: arrays[edge.var_name(param)] for param in function.params}
    for binding in ir.bindings(function):
        values[binding.var] = evaluate(binding.value, values, edge.var_name(binding.var))
    outputs, _ = edge.outputs_of(function)
    return {name: values[var] for name, var in outputs}


def evaluate(expr: Any, values: Mapping[Any, Any], name: str = "") -> Any:
    """Evaluate one binding's value; ``values`` gives the arrays of variables.

    Raises:
        UnsupportedError: the operator has no numpy meaning here.
    """
    if isinstance(expr, relax.Var):
        return values[expr]
    if isinstance(expr, edge.Constant):
        return edge.constant_value(expr)
    if isinstance(expr, tvm.ir.Tuple):
        return tuple(evaluate(field, values) for field in expr.fields)
    if isinstance(expr, tvm.ir.TupleGetItem):
        return evaluate(expr.tuple_value, values)[expr.index]
    if isinstance(expr, relax.ShapeExpr):
        return tuple(int(size) for size in expr.values)
    if isinstance(expr, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return expr.value
    operator = edge.op_name(expr)
    if operator == CODEBOOK:
        return codebook_numpy(*(evaluate(arg, values) for arg in expr.args))
    if operator not in MEANING:
        what = operator or type(expr).__name__
        raise UnsupportedError(
            f"reference: {what} (bound to {name or 'an expression'}) has no numpy meaning; "
            "expected one of the operators listed in docs/operators.md."
        )
    result = MEANING[operator](expr.attrs, *(evaluate(arg, values) for arg in expr.args))
    return _declared(result, expr.ty)


def _declared(result: Any, ty: Any) -> Any:
    """Round to the dtype and check the shape that the IR declares."""
    if isinstance(ty, relax.TupleType):
        return tuple(_declared(r, t) for r, t in zip(result, ty.fields, strict=True))
    if isinstance(ty, relax.ShapeType):
        return tuple(int(size) for size in result)
    result = np.asarray(result)
    shape = edge.static_shape(ty)
    assert shape is None or result.shape == shape, f"{result.shape} is not the declared {shape}"
    with np.errstate(over="ignore"):
        return result.astype(edge.dtype_of(ty), copy=False)
