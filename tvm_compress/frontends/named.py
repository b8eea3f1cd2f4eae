"""Turning the weight arguments of an imported function into named bindings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tvm
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.errors import UnsupportedError

__all__ = ["bind_parameters", "check_shapes"]


def check_shapes(shapes: Mapping[str, Sequence[int]]) -> None:
    """Check the shapes that a user gives.

    Raises:
        UnsupportedError: a size that is no whole number from 1.
    """
    for name, shape in shapes.items():
        if any(int(size) != size or size < 1 for size in shape):
            raise UnsupportedError(
                f"The shape {tuple(shape)} was given for the input {name}; expected whole numbers "
                "from 1."
            )


def bind_parameters(
    mod: tvm.IRModule, params: Sequence[Any], outputs: Sequence[str] | None = None
) -> tvm.IRModule:
    """Bind the last arguments of ``main`` to ``params``, under their own names.

    Args:
        mod: an imported module; its ``main`` takes the inputs and then the parameters.
        params: the parameters' tensors in order.
        outputs: names of the outputs, where the format gives them.
    """
    function = ir.main_function(mod)
    count = len(function.params) - len(params)
    inputs, weights = list(function.params[:count]), function.params[count:]
    taken = {edge.var_name(param) for param in inputs}
    new: dict[Any, Any] = {}
    bound = []
    for old, tensor in zip(weights, params, strict=True):
        var = relax.DataflowVar(ir.identifier(edge.var_name(old)), old.ty)
        bound.append(relax.VarBinding(var, edge.constant(tensor.numpy())))
        new[old] = var
    for binding in ir.bindings(function):
        value = edge.substitute(binding.value, new)
        var = relax.DataflowVar(edge.var_name(binding.var), binding.var.ty)
        bound.append(relax.VarBinding(var, value))
        new[binding.var] = var
    results, is_tuple = edge.outputs_of(function)
    names = [ir.identifier(n) for n in outputs] if outputs else [name for name, _ in results]
    names = [f"{name}_output" if name in taken else name for name in names]
    values = [edge.substitute(value, new) for _, value in results]
    named = list(zip(names, values, strict=True))
    made = edge.straight_line(
        function.without_attr("params") if "params" in (function.attrs or {}) else function,
        inputs,
        bound,
        named,
        is_tuple,
    )
    result = mod.clone()
    result.update_func(result.get_global_var("main"), made)
    return result
