"""A lowered module as a list of steps over planned memory.

Each step calls one C function on tensors. A tensor lies in an input or output buffer of the
caller, in the arena, or in flash. A reshape gives a second name to the same bytes; and where a
step may write its output over an input that dies there, the two share bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from tvm_compress import edge, ir
from tvm_compress.errors import UnsupportedError
from tvm_compress.targets.mcu.c_types import C_TYPES
from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.emit import CFunction, emit_function
from tvm_compress.targets.mcu.lower import OUTPUT_NAMES, LoweredLayer
from tvm_compress.targets.mcu.memory import Lifetime, MemoryPlan, live_bytes, plan_memory
from tvm_compress.targets.mcu.order import Operation, choose_order
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
    """One call: a function, or a copy when there is none.

    ``in_place`` are the indices of the inputs whose bytes the output may take, beginning where
    they begin; ``distances`` are (index of an input, bytes): over that one the output may lie
    where it begins at least so many bytes before it.
    """

    name: str
    kind: str
    function: int | None
    inputs: tuple[Storage, ...]
    outputs: tuple[Storage, ...]
    workspaces: tuple[Storage, ...]
    layer: LoweredLayer | None = None
    in_place: tuple[int, ...] = ()
    distances: tuple[tuple[int, int], ...] = ()

    def may_lie_over(self, storage: Storage) -> int | None:
        """Give how many bytes before an input the output may begin, to lie over it, or None."""
        positions = [i for i, other in enumerate(self.inputs) if other is storage]
        known = {**dict(self.distances), **dict.fromkeys(self.in_place, 0)}
        if not all(i in known for i in positions):
            return None
        distance = max(known[i] for i in positions)
        # What has to begin at the same place cannot begin before it too.
        if distance and any(i in self.in_place for i in positions):
            return None
        return distance


@dataclass
class Program:
    """Everything that the C text of a model is made of."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    functions: list[CFunction | AssemblyFunction] = field(default_factory=list)
    function_names: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    constants: list[Storage] = field(default_factory=list)
    plan: MemoryPlan | None = None
    lifetimes: list[Lifetime] = field(default_factory=list)  # of what lies in the arena
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
        if operator == "relax.call_tir_inplace":
            return self._write_part(name, value)
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
        symbol = edge.var_name_of_global(var)
        sizes: tuple[int, ...]
        if layer is not None and layer.assembly is not None:
            index = self._index(symbol, layer.assembly)
            sizes = (layer.scratch_bytes,) if layer.scratch_bytes else ()
        else:
            index, sizes = self._function(symbol, var, len(outputs))
        workspaces = tuple(self._arena(f"{name} workspace", "uint8", size) for size in sizes)
        kind = layer.kind if layer is not None else self.program.function_names[index]
        known = self.program.functions[index] if layer is None else layer
        assembly = None if layer is None else layer.assembly
        distances = () if assembly is None else assembly.distances
        step = Step(
            name, kind, index, inputs, outputs, workspaces, layer, known.in_place, distances
        )
        self.program.steps.append(step)
        return outputs if isinstance(call.ty, relax.TupleType) else outputs[0]

    def _write_part(self, name: str, call: Any) -> Any:
        """Add a step that writes a further part of a tensor: its last argument and its result."""
        var, arguments = call.args[0], [self._lookup(arg) for arg in call.args[1].fields]
        *inputs, target = arguments
        index, sizes = self._function(edge.var_name_of_global(var), var, 1)
        workspaces = tuple(self._arena(f"{name} workspace", "uint8", size) for size in sizes)
        kind = self.program.function_names[index]
        self.program.steps.append(Step(name, kind, index, tuple(inputs), (target,), workspaces))
        return target

    def _function(self, name: str, var: Any, outputs: int) -> tuple[int, tuple[int, ...]]:
        """Give the index of a loop nest's C function, and the bytes of scratch of this one."""
        if name not in self.emitted:
            function = self.mod[var]
            assert isinstance(function, tirx.PrimFunc)
            emitted, workspaces = emit_function(function, outputs)
            self.emitted[name] = self._index(name, emitted), workspaces
        return self.emitted[name]

    def _index(self, name: str, function: CFunction | AssemblyFunction) -> int:
        # Loop nests that differ in the lengths of their arrays alone have the same text.
        if function not in self.program.functions:
            self.program.functions.append(function)
            self.program.function_names.append(name)
        return self.program.functions.index(function)

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
        """Choose the order of the steps and the place of every tensor in the arena."""
        self._compute_in_outputs()
        steps = self.program.steps
        sizes = {
            storage: -(-storage.size_bytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
            for step in steps
            for storage in (*step.inputs, *step.outputs, *step.workspaces)
            if storage.place == "arena"
        }
        operations = [
            Operation(
                step.inputs,
                step.outputs,
                sum(sizes[workspace] for workspace in step.workspaces),
                tuple(_overlaps(step)),
            )
            for step in steps
        ]
        orders = [list(range(len(steps)))]
        if (chosen := choose_order(operations, sizes)) != orders[0]:
            orders.append(chosen)
        plans = [_planned([steps[i] for i in order]) for order in orders]
        # A lower peak nearly always is a smaller arena, but not by necessity.
        at = min(range(len(plans)), key=lambda i: plans[i][1].arena_bytes)
        program = self.program
        program.steps = [steps[i] for i in orders[at]]
        program.lifetimes, program.plan = plans[at]
        program.live_bytes = live_bytes(program.lifetimes, program.plan.offsets, len(steps))
        _check_plan(program.steps, program.plan)
        self._let_functions_share()

    def _compute_in_outputs(self) -> None:
        """Let what the last step writes over be computed in the caller's buffer already."""
        readers: dict[Storage, int] = {}
        for step in self.program.steps:
            for storage in set(step.inputs):
                readers[storage] = readers.get(storage, 0) + 1
        for step in reversed(self.program.steps):
            target = step.outputs[0]
            for storage in _in_place(step):
                fits = storage.size_bytes <= target.size_bytes and storage.dtype == target.dtype
                if target.place == "output" and readers[storage] == 1 and fits:
                    storage.place, storage.name = "output", target.name
                    break

    def _let_functions_share(self) -> None:
        """Take ``restrict`` from the parameters that point to the same bytes in some step."""
        functions, plan = self.program.functions, self.program.plan
        assert plan is not None
        for step in self.program.steps:
            target = step.outputs[0]
            for i, storage in enumerate(step.inputs):
                over = plan.over.get(target.name) if target.place == "arena" else target.name
                if storage.place == target.place and storage.name == over:
                    assert step.function is not None
                    function = functions[step.function]
                    functions[step.function] = function.sharing((i, len(step.inputs)))


def _in_place(step: Step) -> list[Storage]:
    """Give the tensors in the arena whose place, exactly, the output of a step may take."""
    return [
        storage
        for storage in dict.fromkeys(step.inputs)
        if storage.place == "arena"
        and all(i in step.in_place for i, other in enumerate(step.inputs) if other is storage)
    ]


def _overlaps(step: Step) -> list[tuple[Storage, int]]:
    """Give the tensors in the arena over which the output of a step may lie when they die.

    With each stands how many bytes before it the output begins, a multiple of the alignment.
    """
    found = []
    for storage in dict.fromkeys(step.inputs):
        distance = step.may_lie_over(storage)
        if storage.place == "arena" and distance is not None:
            found.append((storage, -(-distance // ARENA_ALIGNMENT) * ARENA_ALIGNMENT))
    return found


def _planned(steps: list[Step]) -> tuple[list[Lifetime], MemoryPlan]:
    """Plan the memory of steps that run in this order."""
    spans: dict[Storage, tuple[int, int]] = {}
    for index, step in enumerate(steps):
        for storage in (*step.inputs, *step.outputs, *step.workspaces):
            if storage.place == "arena":
                first, _ = spans.get(storage, (index, index))
                spans[storage] = (first, index)
    lifetimes = [
        Lifetime(storage.name, storage.size_bytes, first, last)
        for storage, (first, last) in spans.items()
    ]
    pairs = [
        (step.outputs[0].name, storage.name, distance)
        for index, step in enumerate(steps)
        for storage, distance in _overlaps(step)
        if step.outputs[0].place == "arena" and spans[storage][1] == index
    ]
    return lifetimes, plan_memory(lifetimes, alignment=ARENA_ALIGNMENT, pairs=pairs)


def _check_plan(steps: Sequence[Step], plan: MemoryPlan) -> None:
    """Make sure that no step writes over what it, or a later one, still reads."""
    last = {storage: i for i, step in enumerate(steps) for storage in step.inputs}
    live: set[Storage] = set()

    def overlap(a: Storage, b: Storage) -> bool:
        begin, end = plan.offsets[a.name], plan.offsets[b.name]
        return begin < end + b.size_bytes and end < begin + a.size_bytes

    for index, step in enumerate(steps):
        written = [s for s in (*step.outputs, *step.workspaces) if s.place == "arena"]
        for target, other in itertools.product(written, {*live, *written}):
            if target is other or not overlap(target, other):
                continue
            distance = step.may_lie_over(other) if last.get(other) == index else None
            before = plan.offsets[other.name] - plan.offsets[target.name]
            exact = any(step.inputs[i] is other for i in step.in_place)
            assert target in step.outputs, (step.name, target.name, other.name)
            assert distance is not None, (step.name, target.name, other.name)
            assert before == 0 if exact else before >= distance, (step.name, before, distance)
        live = {s for s in (*live, *written) if last.get(s, -1) > index}


def _check_dtype(name: str, dtype: str) -> None:
    if dtype not in C_TYPES:
        raise UnsupportedError(
            f"c: {name} is {dtype}, which has no type in C99; expected one of "
            f"{', '.join(C_TYPES)}: cast the network to float32."
        )
