"""One loop nest as one C99 function, by TVM's C code generator and nothing of its runtime.

The lowering passes are those of TVM's own pipeline up to the point where it would wrap a function
into the packed calling convention; there each buffer becomes a plain pointer instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.schedule.schedule import ScheduleError

from tvm_compress import edge
from tvm_compress.errors import UnsupportedError
from tvm_compress.targets.mcu.in_place import in_place_arguments
from tvm_compress.targets.mcu.kernels import OPAQUE

__all__ = ["CFunction", "emit_function", "float_literal"]

# An intermediate array of a loop nest larger than this moves from the stack into the arena.
_STACK_BYTES = 128
_FLOAT_CALL = "tc_float_literal_"
_LOCAL = re.compile(r"^ +\w+ (\w+)\[\d+\];\n", re.M)
_DEFINITION = re.compile(r"TVM_DLL void (\w+)\(([^)]*)\) \{\n(.*?)^\}\n", re.M | re.S)


@dataclass(frozen=True)
class CFunction:
    """A C function that has no name yet.

    ``in_place`` are the indices of the parameters whose bytes the output may take.
    """

    parameters: tuple[str, ...]
    body: str
    in_place: tuple[int, ...] = ()

    def sharing(self, parameters: Collection[int]) -> CFunction:
        """Give the function for calls in which some parameters point to the same bytes.

        What is written through one ``restrict`` pointer may not be reached through another.
        """
        declared = tuple(
            text.replace("restrict ", "") if i in parameters else text
            for i, text in enumerate(self.parameters)
        )
        return replace(self, parameters=declared)

    def definition(self, name: str) -> str:
        """Give the definition as a static function called ``name``."""
        return f"static void {name}({', '.join(self.parameters)}) {{\n{self.body}}}\n"


def emit_function(function: tirx.PrimFunc, outputs: int) -> tuple[CFunction, tuple[int, ...]]:
    """Emit a PrimFunc whose last ``outputs`` parameters are written.

    Returns:
        The function, and the bytes of the scratch buffers that are its last parameters.

    Raises:
        UnsupportedError: the C code generator has no form for the loop nest.
    """
    target = tvm.target.Target("c")
    inlined = _inlined(function)
    mod = tvm.IRModule({"kernel": inlined.with_attr("global_symbol", "kernel")})
    try:
        mod = tvm.transform.Sequential([tirx.transform.BindTarget(target), *_passes(function)])(mod)
        plain, workspaces = _with_pointers(mod["kernel"])
        mod = tirx.transform.LowerIntrin()(tvm.IRModule({"kernel": plain}))
        text = tvm.get_global_func("target.build.c")(mod, target).inspect_source()
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(
            f"TVM's C code generator cannot emit a loop nest: {lines[-1]} Expected operators that "
            "lower to plain loops and libm calls."
        ) from error
    match = list(_DEFINITION.finditer(text))[-1]
    parameters = [p.strip() for p in match[2].split(",")]
    inputs = len(parameters) - outputs - len(workspaces)
    declared = [_declare(p, constant=i < inputs) for i, p in enumerate(parameters)]
    body = _without_unused(re.sub(rf"{_FLOAT_CALL}([0-9a-f]+)\(\)", _float_text, match[3]))
    if not _is_kernel(function):
        # The first step of a reduction's loop sets them, which not every compiler can tell.
        body = _LOCAL.sub(lambda local: local[0].replace(";", " = {0};"), body)
    body = _unused(body, declared) + body
    return CFunction(tuple(declared), body, in_place_arguments(inlined, outputs)), workspaces


def _is_kernel(function: tirx.PrimFunc) -> bool:
    """Whether it is one of our kernels: plain loops without blocks."""
    return int((function.attrs or {}).get("op_pattern", 0)) == OPAQUE


def _passes(function: tirx.PrimFunc) -> list[Any]:
    # It shrinks arrays to the region that it sees used, and takes an index that is itself loaded
    # for a constant; our kernels size their arrays exactly.
    compact = [] if _is_kernel(function) else [s_tir.transform.CompactBufferAllocation()]
    return [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerCrossThreadReduction(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        *compact,
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        _narrow_indices(function),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(False),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
    ]


def _narrow_indices(function: tirx.PrimFunc) -> Any:
    dtypes = [edge.dtype_of_prim(param.ty) for param in function.params]

    def visit(block: Any) -> None:
        dtypes.extend(edge.dtype_of_prim(buffer.ty) for buffer in block.alloc_buffers)

    tvm_ffi.structural_walk(function.body, [(s_tir.SBlock, visit)])
    if "int64" in dtypes:
        # The forced pass would make its elements int32 too; this one narrows what it can prove.
        return tirx.transform.NarrowDataType(32)
    # No tensor here has 2**31 elements, whatever the bounds of data-dependent loops look like.
    return tirx.transform.ForceNarrowIndexToInt32()


def _inlined(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Inline what is computed element by element, so that no array is made for it."""
    if _is_kernel(function):
        return function
    schedule = s_tir.Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        # With two readers an element would be computed twice (softmax's exponentials).
        if len(schedule.get_consumers(block)) == 1:
            try:
                schedule.compute_inline(block)
            except ScheduleError:
                continue  # a reduction, or what writes the output
    for block in reversed(schedule.get_child_blocks(schedule.get_sblock("root"))):
        producers = schedule.get_producers(block)
        if len(producers) == 1 and not schedule.get_consumers(block):
            try:
                schedule.reverse_compute_inline(block)
            except ScheduleError:
                continue
    return schedule.mod["main"]


def _with_pointers(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, tuple[int, ...]]:
    """Make the buffers plain pointers, and large intermediate arrays arguments."""
    spaces: list[tuple[Any, int]] = []

    def allocate(statement: Any) -> Any:
        buffer = statement.buffer
        ty = buffer.ty
        size = int(np.prod([int(n) for n in ty.shape])) * np.dtype(edge.dtype_of_prim(ty)).itemsize
        if size <= _STACK_BYTES:
            return statement
        pointer = _pointer(f"workspace{len(spaces)}", ty)
        spaces.append((pointer, size))
        return tirx.DeclBuffer(buffer, data=pointer)

    def literal(value: Any) -> Any:
        return _exact_float(value)

    body = tvm_ffi.structural_map(
        function.body, [(tirx.AllocBuffer, allocate), (tirx.FloatImm, literal)]
    )
    pointers = [_pointer(str(param.name), param.ty) for param in function.params]
    declared = [
        tirx.DeclBuffer(param, data=pointer)
        for param, pointer in zip(function.params, pointers, strict=True)
    ]
    statements = [*declared, *(body.seq if isinstance(body, tirx.SeqStmt) else [body])]
    new = tirx.PrimFunc(
        [*pointers, *(pointer for pointer, _ in spaces)],
        tirx.SeqStmt(statements),
        None,
        function.attrs,
    )
    return new, tuple(size for _, size in spaces)


def _pointer(name: str, ty: Any) -> Any:
    return tvm.ir.Var(f"{name}_ptr", tvm.ir.PointerType(tvm.ir.PrimType(edge.dtype_of_prim(ty))))


def _exact_float(value: Any) -> Any:
    """The generator prints seven digits; carry a number that needs more in a function's name."""
    dtype = edge.dtype_of_prim(value)
    number = float(value.value)
    if dtype not in ("float32", "float64") or _prints_exactly(number):
        return value
    with np.errstate(over="ignore"):
        carried = np.dtype(dtype).type(number).tobytes().hex()
    return tirx.call_pure_extern(dtype, _FLOAT_CALL + carried)


def _float_text(match: re.Match[str]) -> str:
    dtype = "float32" if len(match[1]) == 8 else "float64"
    number = float(np.frombuffer(bytes.fromhex(match[1]), dtype)[0])
    literal = float_literal(number, dtype)
    return f"({literal})" if number < 0 else literal


def _prints_exactly(number: float) -> bool:
    return math.isfinite(number) and float(f"{number:.6e}") == number


def float_literal(number: float, dtype: str) -> str:
    """Write a float32 or float64 so that C reads the same number.

    >>> float_literal(0.1, "float32"), float_literal(2.0, "float64")
    ('0.100000001f', '2.0')
    """
    with np.errstate(over="ignore"):
        number = float(np.dtype(dtype).type(number))
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "-INFINITY" if number < 0 else "INFINITY"
    digits, suffix = (9, "f") if dtype == "float32" else (17, "")
    text = f"{number:.{digits}g}"
    return (text if any(c in text for c in ".e") else f"{text}.0") + suffix


def _declare(parameter: str, *, constant: bool) -> str:
    ctype, name = re.fullmatch(r"(.*\*)\s*(?:__restrict__ )?(\w+)", parameter).groups()  # type: ignore[union-attr]
    return f"{'const ' if constant else ''}{ctype}restrict {name}"


def _without_unused(body: str) -> str:
    """Leave nothing of local arrays whose uses were simplified away that a compiler warns of."""
    lines = body.split("\n")

    def keep(match: re.Match[str]) -> str:
        name = re.compile(rf"\b{match[1]}\b")
        uses = [line for line in lines if name.search(line)][1:]
        if not uses:
            return ""
        stored = [line.lstrip().startswith(f"{match[1]}[") for line in uses]
        read = not all(stored) or any(len(name.findall(line)) > 1 for line in uses)
        return match[0] if read else f"{match[0]}  (void){match[1]};\n"

    return _LOCAL.sub(keep, body)


def _unused(body: str, declared: list[str]) -> str:
    """Name the parameters that the body does not use, so that -Wextra keeps quiet."""
    names = [d.rsplit(" ", 1)[1] for d in declared]
    return "".join(f"  (void){n};\n" for n in names if not re.search(rf"\b{n}\b", body))
