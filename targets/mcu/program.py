"""A lowered module as a list of steps over planned memory.

Each step calls one C function on tensors. A tensor lies in an input or output buffer of the
caller, in the arena, or in flash. A reshape gives a second name to the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from tvm_compress import edge, ir
from tvm_compress.errors import UnsupportedError
from tvm_compress.targets.mcu.c_types import C_TYPES
from tvm_compress.targets.mcu.emit import CFunction, emit_function
from tvm_compress.targets.mcu.lower import OUTPUT_NAMES, LoweredLayer
from tvm_compress.targets.mcu.memory import Lifetime, MemoryPlan, plan_memory
from tvm_compress.tensors import TensorSpec, input_specs, output_specs

__all__ = ["Program", "Step", "Storage", "make_program"]

ARENA_ALIGNMENT = 16


@dataclass(eq=False)
class Storage:
    """Bytes with one place: ``input``, ``output``, ``arena`` or ``flash``."""

    place: str
    name: str
    dtype: str
    size_bytes: int
    value: NDArray[Any] | None = None  # of flash
    is_weight: bool = False


@dataclass(frozen=True)
class Step:
    """One call: a function, or a copy when there is none."""

    name: str
    kind: str
    function: int | None
    inputs: tuple[Storage, ...]
    outputs: tuple[Storage, ...]
    workspaces: tuple[Storage, ...]
    layer: LoweredLayer | None = None


@dataclass
class Program:
    """Everything that the C text of a model is made of."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    functions: list[CFunction] = field(default_factory=list)
    function_names: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    constants: list[Storage] = field(default_factory=list)
    plan: MemoryPlan | None = None
    live_bytes: list[int] = field(default_factory=list)  # of the arena, by step


def make_program(mod: tvm.IRModule, layers: dict[str, LoweredLayer]) -> Program:
    """Make the program of a module that :func:`~tvm_compress.targets.mcu.lower.lower` gave.

    Raises:
        UnsupportedError: a step is not a loop nest, or a tensor's dtype has no type in C99.
    """
    return _Builder(mod, layers).build()


class _Builder:
    def __init__(self, mod: tvm.IRModule, layers: dict[str, LoweredLayer]) -> None:
        self.mod, self.layers = mod, layers
        names = (ir.main_function(mod).attrs or {}).get(OUTPUT_NAMES)
        outputs = output_specs(mod)
        if names is not None:
            pairs = zip(outputs, names, strict=True)
            outputs = tuple(replace(spec, name=str(name)) for spec, name in pairs)
        self.program = Program(input_specs(mod), outputs)
        for spec in (*self.program.inputs, *outputs):
            _check_dtype(spec.name, spec.dtype)
        self.values: dict[Any, Any] = {}  # variable -> Storage, or a tuple of them
        self.emitted: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.flash: dict[tuple[str, bytes, bool], Storage] = {}
        self.arena = 0

    def build(self) -> Program:
        function = ir.main_function(self.mod)
        for param, spec in zip(function.params, self.program.inputs, strict=True):
            self.values[param] = Storage("input", spec.name, spec.dtype, spec.size_bytes)
        for binding in ir.bindings(function):
            self.values[binding.var] = self._value(binding)
        self._place_outputs(function)
        self._plan()
        return self.program

    # -- values ---------------------------------------------------------------------------------

    def _value(self, binding: relax.VarBinding) -> Any:
        value, name = binding.value, edge.var_name(binding.var)
        if isinstance(value, relax.Var | edge.Constant | tvm.ir.Tuple):
            return self._lookup(value)
        if isinstance(value, tvm.ir.TupleGetItem):
            return self._lookup(value.tuple_value)[value.index]
        operator = edge.op_name(value)
        if operator == "relax.reshape":
            return self._lookup(value.args[0])
        if operator == "relax.call_tir":
            return self._call(name, value)
        raise UnsupportedError(
            f"c: {operator or type(value).__name__} (bound to {name}) has no C form; expected an "
            "operator that TVM legalises to loops."
        )

    def _lookup(self, expr: Any, *, is_weight: bool = False) -> Any:
        if isinstance(expr, tvm.ir.Tuple):
            return tuple(self._lookup(item) for item in expr.fields)
        if isinstance(expr, edge.Constant):
            return self._constant(edge.constant_value(expr), is_weight)
        return self.values[expr]

    def _constant(self, value: NDArray[Any], is_weight: bool) -> Storage:
        key = (str(value.dtype), value.tobytes(), is_weight)
        if key not in self.flash:
            _check_dtype("A constant", key[0])
            storage = Storage("flash", "", key[0], value.nbytes, value.reshape(-1), is_weight)
            self.flash[key] = storage
            self.program.constants.append(storage)
        return self.flash[key]

    def _tensor(self, name: str, ty: Any) -> Storage:
        size = int(np.prod(edge.static_shape(ty) or (), dtype=np.int64))
        dtype = edge.dtype_of(ty)
        _check_dtype(name, dtype)
        return self._arena(name, dtype, size * np.dtype(dtype).itemsize)

    def _arena(self, name: str, dtype: str, size_bytes: int) -> Storage:
        self.arena += 1
        return Storage("arena", f"{name}#{self.arena}", dtype, max(size_bytes, 1))

    # -- steps ----------------------------------------------------------------------------------

    def _call(self, name: str, call: Any) -> Any:
        var, arguments = call.args[0], list(call.args[1].fields)
        if len(call.args) > 2:
            raise UnsupportedError(
                f"c: {edge.var_name_of_global(var)} takes symbolic shapes; expected static ones."
            )
        layer = self.layers.get(name)
        weights = layer.operands if layer is not None else 0
        inputs = tuple(
            self._lookup(arg, is_weight=i >= len(arguments) - weights)
            for i, arg in enumerate(arguments)
        )
        tensors = edge.tensor_fields(call.ty)
        outputs = tuple(self._tensor(name, ty) for ty in tensors)
        index, sizes = self._function(edge.var_name_of_global(var), var, len(outputs))
        workspaces = tuple(self._arena(f"{name} workspace", "uint8", size) for size in sizes)
        kind = layer.kind if layer is not None else self.program.function_names[index]
        self.program.steps.append(Step(name, kind, index, inputs, outputs, workspaces, layer))
        return outputs if isinstance(call.ty, relax.TupleType) else outputs[0]

    def _function(self, name: str, var: Any, outputs: int) -> tuple[int, tuple[int, ...]]:
        """Give the index of a loop nest's C function, and the bytes of scratch of this one."""
        if name not in self.emitted:
            function = self.mod[var]
            assert isinstance(function, tirx.PrimFunc)
            emitted, workspaces = emit_function(function, outputs)
            # Loop nests that differ in the lengths of their arrays alone have the same text.
            if emitted not in self.program.functions:
                self.program.functions.append(emitted)
                self.program.function_names.append(name)
            self.emitted[name] = self.program.functions.index(emitted), workspaces
        return self.emitted[name]

    # -- memory ---------------------------------------------------------------------------------

    def _place_outputs(self, function: relax.Function) -> None:
        """Let results be written straight into the caller's buffers; copy what cannot be."""
        results, _ = edge.outputs_of(function)
        for (_, expr), spec in zip(results, self.program.outputs, strict=True):
            storage = self._lookup(expr)
            if storage.place == "arena":
                storage.place, storage.name = "output", spec.name
                continue
            # An input, a constant or a result that is given out twice.
            target = Storage("output", spec.name, spec.dtype, spec.size_bytes)
            self.program.steps.append(Step(spec.name, "copy", None, (storage,), (target,), ()))

    def _plan(self) -> None:
        spans: dict[Storage, tuple[int, int]] = {}
        for index, step in enumerate(self.program.steps):
            for storage in (*step.inputs, *step.outputs, *step.workspaces):
                if storage.place == "arena":
                    first, _ = spans.get(storage, (index, index))
                    spans[storage] = (first, index)
        lifetimes = [
            Lifetime(storage.name, storage.size_bytes, first, last)
            for storage, (first, last) in spans.items()
        ]
        self.program.plan = plan_memory(lifetimes, alignment=ARENA_ALIGNMENT)
        self.program.live_bytes = [
            sum(t.size_bytes for t in lifetimes if t.first <= index <= t.last)
            for index in range(len(self.program.steps))
        ]


def _check_dtype(name: str, dtype: str) -> None:
    if dtype not in C_TYPES:
        raise UnsupportedError(
            f"c: {name} is {dtype}, which has no type in C99; expected one of "
            f"{', '.join(C_TYPES)}: cast the network to float32."
        )
