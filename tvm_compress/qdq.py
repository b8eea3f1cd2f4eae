"""A quantised network seen from outside: how its inputs and outputs stand for real numbers.

In the QDQ form every activation passes through ``relax.quantize`` and ``relax.dequantize``, so a
module computes in float what it will compute in integers. Its inputs and outputs are integers
(:func:`input_parameters` tells of which scale) or floats; both are one network:
:func:`with_integers` and :func:`with_reals` turn one into the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.ops import CODEBOOK, codebook, codebook_numpy
from tvm_compress.quantization import Affine

__all__ = [
    "IntegerParameter",
    "affine_of",
    "along_axis",
    "dequantize",
    "dequantize_channels",
    "dequantized",
    "input_parameters",
    "integer_parameters",
    "is_quantised",
    "output_parameters",
    "quantize",
    "real_inputs",
    "real_parameter",
    "with_integers",
    "with_reals",
]

_OPERATORS = ("relax.quantize", "relax.dequantize")
# What moves the integers of a tensor, clips them or takes means of them leaves their scale.
_MOVES = (
    "relax.astype",
    "relax.clip",
    "relax.reshape",
    "relax.permute_dims",
    "relax.strided_slice",
    *(f"relax.nn.{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)),
)


def is_quantised(mod: tvm.IRModule) -> bool:
    """Whether a module holds a quantize or dequantize."""
    values = (binding.value for binding in ir.bindings(ir.main_function(mod)))
    return any(edge.op_name(value) in _OPERATORS for value in values)


def input_parameters(mod: tvm.IRModule) -> dict[str, Affine]:
    """Give how the integers of each quantised input stand for real numbers, by the input's name.

    ``input_parameters(mod)["x"].quantize(x)`` makes of real numbers what the network takes.
    """
    found: dict[str, Affine] = {}
    function = ir.main_function(mod)
    moved = {param: edge.var_name(param) for param in function.params if _whole(param)}
    for binding in ir.bindings(function):
        value = binding.value
        name = moved.get(value.args[0]) if edge.op_name(value) else None
        if name is None:
            continue
        how = affine_of(value) if edge.op_name(value) == "relax.dequantize" else None
        if how is not None:
            found.setdefault(name, how)
        elif edge.op_name(value) in _MOVES:
            moved[binding.var] = name
    return found


def output_parameters(mod: tvm.IRModule) -> dict[str, Affine]:
    """Give how the integers of each quantised output stand for real numbers, by its name.

    ``output_parameters(mod)["y"].dequantize(y)`` makes real numbers of what the network gives.
    """
    function = ir.main_function(mod)
    bound = {binding.var: binding.value for binding in ir.bindings(function)}
    inputs = input_parameters(mod)
    found: dict[str, Affine] = {}
    for name, var in edge.outputs_of(function)[0]:
        how = _traced(var, bound, inputs)
        if how is not None:
            found[name] = how
    return found


def _traced(value: Any, bound: Mapping[Any, Any], inputs: Mapping[str, Affine]) -> Affine | None:
    """Follow integers back to the ``quantize`` that made them, or to an input."""
    while True:
        while isinstance(value, relax.Var):
            if value not in bound:
                return inputs.get(edge.var_name(value)) if _whole(value) else None
            value = bound[value]
        if edge.op_name(value) == "relax.quantize":
            return affine_of(value)
        if edge.op_name(value) not in _MOVES or not _whole(value):
            return None
        value = value.args[0]


def _whole(expr: Any) -> bool:
    return (edge.dtype_of_or_none(expr) or "").startswith(("int", "uint"))


def _affine(call: Any, dtype: str) -> Affine | None:
    """Read scale and zero point off a quantize or dequantize of one scale."""
    if edge.op_name(call) not in _OPERATORS or not dtype.startswith(("int", "uint")):
        return None
    parts = [edge.constant_value(a) for a in call.args[1:] if isinstance(a, edge.Constant)]
    if len(parts) != 2 or any(part.size != 1 for part in parts):
        return None
    return Affine(float(parts[0].ravel()[0]), int(parts[1].ravel()[0]), dtype)


def affine_of(call: Any) -> Affine | None:
    """Give what a quantize or dequantize does, or None where it has several scales."""
    quantizes = edge.op_name(call) == "relax.quantize"
    dtype = str(call.attrs.out_dtype) if quantizes else edge.dtype_of(call.args[0])
    return _affine(call, dtype)


def quantize(x: Any, how: Affine) -> Any:
    """Build ``relax.quantize`` of a tensor with one scale."""
    scale, zero_point = _constants(how)
    return relax.op.quantize(x, scale, zero_point, axis=-1, out_dtype=how.dtype)


def dequantize(q: Any, how: Affine) -> Any:
    """Build ``relax.dequantize`` of a tensor with one scale."""
    return relax.op.dequantize(q, *_constants(how), axis=-1)


def dequantize_channels(q: Any, scales: NDArray[Any], axis: int) -> Any:
    """Build ``relax.dequantize`` with a scale for each channel along ``axis``, zero point 0."""
    zero_point = edge.constant(np.zeros((), np.int8))
    scale = edge.constant(scales if scales.size > 1 else scales.reshape(()))
    return relax.op.dequantize(q, scale, zero_point, axis=axis)


def _constants(how: Affine) -> tuple[Any, Any]:
    dtype = how.dtype if how.dtype in ("int8", "uint8") else "int32"
    zero_point = np.asarray(how.zero_point, dtype)
    return edge.constant(np.asarray(how.scale, np.float32)), edge.constant(zero_point)


@dataclass(frozen=True)
class IntegerParameter:
    """How the integers of a parameter stand for real numbers: both broadcast to it."""

    scale: NDArray[np.float64]
    zero_point: NDArray[np.int64]


def integer_parameters(mod: tvm.IRModule) -> dict[str, IntegerParameter]:
    """Give the parameters that nothing uses but ``dequantize``, each time with the same numbers.

    Of a shared weight the numbers are those of the dense tensor.
    """
    function = ir.main_function(mod)
    named, uses = ir.parameters(mod), edge.use_counts(function)
    quantised = ir.dequantized(function)
    calls: dict[str, list[Any]] = {}
    for binding in ir.bindings(function):
        if binding.var in quantised:
            calls.setdefault(quantised[binding.var], []).append(binding.value)
    found: dict[str, IntegerParameter] = {}
    for name, of_name in calls.items():
        numbers = [
            [edge.constant_value(arg) for arg in call.args[1:] if isinstance(arg, edge.Constant)]
            for call in of_name
        ]
        alike = all(
            len(pair) == 2 and all(map(np.array_equal, pair, numbers[0])) for pair in numbers
        )
        if alike and uses[of_name[0].args[0]] == len(of_name):
            shape, axis = named[name].shape, int(of_name[0].attrs.axis)
            scale, zero_point = (along_axis(part, len(shape), axis) for part in numbers[0])
            found[name] = IntegerParameter(scale.astype(np.float64), zero_point.astype(np.int64))
    return found


def along_axis(part: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
    """Shape one number, or one a channel, so that it broadcasts along ``axis``."""
    if part.size == 1:
        return part.reshape(())
    places = [1] * rank
    places[axis] = -1
    return part.reshape(places)


def dequantized(
    values: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any], axis: int
) -> NDArray[np.float32]:
    """Give the float32 that integers stand for, with one scale or one a channel along ``axis``."""
    steps = values.astype(np.int64) - along_axis(zero_point, values.ndim, axis).astype(np.int64)
    return (steps * along_axis(scale, values.ndim, axis).astype(np.float64)).astype(np.float32)


def real_parameter(held: Any, scale: NDArray[Any], zero_point: NDArray[Any], axis: int) -> Any:
    """Give the float32 parameter of an integer one, or None where ``held`` is no parameter.

    A codebook stays one where one scale serves all its centroids.
    """
    if isinstance(held, edge.Constant):
        return edge.constant(dequantized(edge.constant_value(held), scale, zero_point, axis))
    if edge.op_name(held) != CODEBOOK:
        return None
    codes, table = (edge.constant_value(arg) for arg in held.args)
    if scale.size == zero_point.size == 1:
        centroids = edge.constant(dequantized(table, scale, zero_point, axis))
        return codebook(edge.constant(codes), centroids)
    return edge.constant(dequantized(codebook_numpy(codes, table), scale, zero_point, axis))


# ---- integers and reals at the network's ends ----------------------------------------------------


def with_integers(mod: tvm.IRModule) -> tvm.IRModule:
    """Give the module that takes integers and gives them, wherever it quantises at once.

    An input that only ``quantize`` of one scale uses becomes of integers, and so does an output
    that is a ``dequantize`` of one scale.
    """
    function = ir.main_function(mod)
    uses: dict[Any, list[Affine | None]] = {param: [] for param in function.params}
    for binding in ir.bindings(function):
        value = binding.value
        for var in edge.variables_in(value):
            if var in uses:
                quantizes = edge.op_name(value) == "relax.quantize"
                uses[var].append(affine_of(value) if quantizes else None)
    types = {
        edge.var_name(param): found[0].dtype
        for param, found in uses.items()
        if found and found[0] is not None and set(found) == {found[0]}
    }
    return _Integers(mod, types).run()


class _Ends(ir.Rewriter):
    """Changes the dtype of inputs."""

    def __init__(self, mod: tvm.IRModule, types: Mapping[str, str]) -> None:
        super().__init__(mod)
        self._types = types

    def input_type(self, param: Any) -> Any:
        dtype = self._types.get(edge.var_name(param))
        return param.ty if dtype is None else relax.TensorType(edge.static_shape(param), dtype)

    @cached_property
    def changed(self) -> dict[Any, str]:
        """The new inputs whose dtype is another, and their old names."""
        params = ir.main_function(self.mod).params
        names = {self._new[param]: edge.var_name(param) for param in params}
        return {var: name for var, name in names.items() if name in self._types}


class _Integers(_Ends):
    def rewrite(self, name: str, value: Any) -> Any:
        if edge.op_name(value) == "relax.quantize" and value.args[0] in self.changed:
            return value.args[0]
        return value

    def result(self, value: Any) -> Any:
        bound = self.value(value)
        if edge.op_name(bound) == "relax.dequantize" and affine_of(bound) is not None:
            return bound.args[0]
        return value


def with_reals(mod: tvm.IRModule) -> tvm.IRModule:
    """Give the module that takes and gives float32: what it rounds, it rounds inside."""
    inputs = input_parameters(mod)
    if not inputs and not output_parameters(mod):
        return mod
    return _Reals(mod, inputs).run()


class _Reals(_Ends):
    def __init__(self, mod: tvm.IRModule, inputs: Mapping[str, Affine]) -> None:
        super().__init__(mod, dict.fromkeys(inputs, "float32"))
        self._inputs = inputs
        self._whole: dict[Any, Any] = {}  # new input -> its integers

    def rewrite(self, name: str, value: Any) -> Any:
        for var in list(edge.variables_in(value)):
            if var in self.changed and var not in self._whole:
                old = self.changed[var]
                self._whole[var] = self.emit(quantize(var, self._inputs[old]), f"{old}_quantized")
        return edge.substitute(value, self._whole)

    def result(self, value: Any) -> Any:
        how = _traced(value, self._bound, {})
        return value if how is None else self.emit(dequantize(value, how), "dequantize")


def real_inputs(
    mod: tvm.IRModule, inputs: NDArray[Any] | Mapping[str, NDArray[Any]]
) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Give inputs for :func:`with_reals` of the module: integers become what they stand for."""
    how = input_parameters(mod)
    if not isinstance(inputs, Mapping):
        array = np.asarray(inputs)
        one = next(iter(how.values())) if len(how) == 1 else None
        return one.dequantize(array) if one is not None and array.dtype == one.dtype else array
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    return {
        name: how[name].dequantize(value)
        if name in how and value.dtype == how[name].dtype
        else value
        for name, value in arrays.items()
    }
