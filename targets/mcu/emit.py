"""One loop nest as one C99 function, by TVM's C code generator and nothing of its runtime.

The lowering passes are those of TVM's own pipeline up to the point where it would wrap a function
into the packed calling convention; there each buffer becomes a plain pointer instead.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.schedule.schedule import ScheduleError

from tvm_compress import edge
from tvm_compress.errors import UnsupportedError
from tvm_compress.targets.mcu.kernels import OPAQUE

__all__ = ["CFunction", "emit_function"]

# An intermediate array of a loop nest larger than this moves from the stack into the arena.
_STACK_BYTES = 128
_FLOAT_CALL = "tc_float_bits"
_DEFINITION = re.compile(r"TVM_DLL void (\w+)\(([^)]*)\) \{\n(.*?)^\}\n", re.M | re.S)


@dataclass(frozen=True)
class CFunction:
    """A C function that has no name yet."""

    parameters: tuple[str, ...]
    body: str

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
    mod = tvm.IRModule({"kernel": _inlined(function).with_attr("global_symbol", "kernel")})
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
    body = re.sub(rf"{_FLOAT_CALL}\((-?\d+)\)", _float_text, match[3])
    return CFunction(tuple(declared), _unused(body, declared) + body), workspaces


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
        # No tensor here has 2**31 elements, whatever the bounds of data-dependent loops look like.
        tirx.transform.ForceNarrowIndexToInt32(),
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
        size = (
            int(np.prod([int(n) for n in ty.shape])) * np.dtype(edge.dtype_of_buffer(ty)).itemsize
        )
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
    return tvm.ir.Var(f"{name}_ptr", tvm.ir.PointerType(tvm.ir.PrimType(edge.dtype_of_buffer(ty))))


def _exact_float(value: Any) -> Any:
    """The generator prints seven digits, which a float32 does not survive; carry the bits."""
    number = float(value.value)
    if edge.dtype_of_prim(value) != "float32" or float(f"{number:.6e}") == number:
        return value
    bits = struct.unpack("<i", struct.pack("<f", number))[0]
    return tirx.call_pure_extern("float32", _FLOAT_CALL, tirx.IntImm("int32", bits))


def _float_text(match: re.Match[str]) -> str:
    number = struct.unpack("<f", struct.pack("<i", int(match[1])))[0]
    if not np.isfinite(number):
        return "NAN" if np.isnan(number) else "(-INFINITY)" if number < 0 else "INFINITY"
    text = f"{number:.9g}"
    text = text if any(c in text for c in ".e") else f"{text}.0"
    return f"({text}f)" if number < 0 else f"{text}f"


def _declare(parameter: str, *, constant: bool) -> str:
    ctype, name = re.fullmatch(r"(.*\*)\s*(?:__restrict__ )?(\w+)", parameter).groups()  # type: ignore[union-attr]
    return f"{'const ' if constant else ''}{ctype}restrict {name}"


def _unused(body: str, declared: list[str]) -> str:
    """Name the parameters that the body does not use, so that -Wextra keeps quiet."""
    names = [d.rsplit(" ", 1)[1] for d in declared]
    return "".join(f"  (void){n};\n" for n in names if not re.search(rf"\b{n}\b", body))
