"""The C text of a program: ``<name>.h``, ``<name>.c`` (run) and ``<name>_layers.c``."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.c_types import C_TYPES
from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.dsp.coded import decoder_files
from tvm_compress.targets.mcu.emit import float_literal
from tvm_compress.targets.mcu.firmware import Layer, ModelSources
from tvm_compress.targets.mcu.program import ARENA_ALIGNMENT, Program, Step, Storage
from tvm_compress.tensors import TensorSpec

__all__ = ["ABI_VERSION", "check_name", "write_sources"]

# Goes up when the generated interface changes in a way that a caller must know.
ABI_VERSION = 1

_KEYWORDS = frozenset(
    [
        "auto",
        "break",
        "case",
        "char",
        "const",
        "continue",
        "default",
        "do",
        "double",
        "else",
        "enum",
        "extern",
        "float",
        "for",
        "goto",
        "if",
        "inline",
        "int",
        "long",
        "register",
        "restrict",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "typedef",
        "union",
        "unsigned",
        "void",
        "volatile",
        "while",
        "main",
    ]
)
# A generated <name>.h or <name>.c would take the place of a file that is included or linked.
_FILES_TAKEN = frozenset(
    [
        "assert",
        "complex",
        "ctype",
        "errno",
        "features",
        "fenv",
        "float",
        "inttypes",
        "iso646",
        "limits",
        "locale",
        "math",
        "memory",
        "setjmp",
        "signal",
        "stdarg",
        "stdbool",
        "stddef",
        "stdint",
        "stdio",
        "stdlib",
        "string",
        "strings",
        "tgmath",
        "time",
        "wchar",
        "wctype",
        "libm",
    ]
)
# The firmware's start-up code and harness; their instructions are told from the model's by these.
_PREFIXES_TAKEN = ("harness_", "semihost_", "startup_", "main")
_LINE = 12


def check_name(name: str) -> str:
    """Give the name if it can prefix C symbols and file names.

    Raises:
        OptionError: it is not a C identifier, or it belongs to C or to the firmware's harness.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in _KEYWORDS:
        raise OptionError(
            f"The name {name!r} cannot prefix C symbols; expected letters, digits and "
            "underscores, a letter first, and no keyword of C."
        )
    if name.lower() in _FILES_TAKEN or f"{name}_".startswith(_PREFIXES_TAKEN):
        raise OptionError(
            f"The name {name!r} belongs to C's own headers or to the firmware's start-up code and "
            "harness; expected a name of your own, such as my_model."
        )
    return name


def write_sources(program: Program, name: str) -> ModelSources:
    """Write a program as C99; every symbol begins with ``name``."""
    check_name(name)
    assert program.plan is not None
    _name_constants(program, name)
    layers = tuple(
        Layer(
            _symbol(name, i, step),
            step.name,
            step.kind if step.layer is None else f"{step.layer.kind} ({step.layer.layout})",
            tuple(s.name for s in step.inputs if s.place == "flash" and s.is_weight),
            program.live_bytes[i],
        )
        for i, step in enumerate(program.steps)
    )
    files = {
        f"{name}.h": _header(program, name),
        f"{name}.c": _run(program, name),
        f"{name}_layers.h": _layers_header(program, name),
        f"{name}_layers.c": _layers(program, name),
    }
    assembly = _assembly(program, name)
    if assembly:
        files[f"{name}_kernels.s"] = assembly
    if any(isinstance(f, AssemblyFunction) and f.decodes for f in program.functions):
        files |= decoder_files(name)
    return ModelSources(
        name, files, program.inputs, program.outputs, program.plan.arena_bytes, layers
    )


def _symbol(name: str, index: int, step: Step) -> str:
    return f"{name}_layer_{index:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', step.kind)}"


def _name_constants(program: Program, name: str) -> None:
    owners: dict[int, str] = {}
    for index, step in enumerate(program.steps):
        for position, storage in enumerate(step.inputs):
            if storage.place == "flash":
                owners.setdefault(id(storage), f"{index:03d}_{position}")
    for storage in program.constants:
        group = "w" if storage.is_weight else "c"
        storage.name = f"{name}_{group}_{owners.get(id(storage), 'unused')}"


def _parameter(tensor: str, *, const: bool) -> str:
    """Name a C parameter; with the prefix no tensor's name is a keyword, a type or a macro."""
    return f"{'in' if const else 'out'}_{tensor}"


def _arguments(specs: tuple[TensorSpec, ...], *, const: bool) -> list[str]:
    qualifier = "const " if const else ""
    return [
        f"{qualifier}{C_TYPES[spec.dtype]} *{_parameter(spec.name, const=const)}" for spec in specs
    ]


def _prototype(program: Program, name: str) -> str:
    arguments = [
        *_arguments(program.inputs, const=True),
        *_arguments(program.outputs, const=False),
        "void *arena",
    ]
    return f"int {name}_run({', '.join(arguments)})"


def _header(program: Program, name: str) -> str:
    upper = name.upper()
    assert program.plan is not None
    # The guard keeps the case of the name, or of two names that differ in case alone the second
    # header would say nothing.
    lines = [
        f"/* {name}: generated by tvm-compress. */",
        f"#ifndef {name}_H",
        f"#define {name}_H",
        "",
        f"#ifdef {upper}_ABI_VERSION",
        '#error "Two models have names that differ in case alone; build one under another name."',
        "#endif",
        "",
        "#include <stdint.h>",
        "",
        f"#define {upper}_ABI_VERSION {ABI_VERSION}",
        "/* Scratch memory that the caller owns; it holds nothing between two runs. */",
        f"#define {upper}_ARENA_BYTES {program.plan.arena_bytes}",
        f"#define {upper}_ARENA_ALIGN {ARENA_ALIGNMENT}",
    ]
    for direction, specs in (("INPUT", program.inputs), ("OUTPUT", program.outputs)):
        lines += ["", f"#define {upper}_NUM_{direction}S {len(specs)}"]
        for i, spec in enumerate(specs):
            shape = " x ".join(map(str, spec.shape)) or "scalar"
            lines += [
                f"/* {spec.name}: {spec.dtype}, {shape} */",
                f"#define {upper}_{direction}_{i}_SIZE {spec.size}",
                f"#define {upper}_{direction}_{i}_BYTES {spec.size_bytes}",
                f"#define {upper}_{direction}_{i}_RANK {len(spec.shape)}",
                f"#define {upper}_{direction}_{i}_SHAPE {{{', '.join(map(str, spec.shape)) or 1}}}",
            ]
    lines += [
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        "/* Runs the model once. Inputs, outputs and the arena must not overlap.",
        "   Returns 0, or 1 if a pointer is null or the arena misaligned. */",
        f"{_prototype(program, name)};",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        f"#endif /* {name}_H */",
        "",
    ]
    return "\n".join(lines)


def _step_parameters(step: Step) -> list[tuple[Storage, str, bool]]:
    """Give (storage, parameter name, constant) of what a layer's function takes from outside."""
    outside: list[tuple[Storage, str, bool]] = []
    seen: set[int] = set()
    for i, storage in enumerate(step.inputs):
        if storage.place != "flash" and id(storage) not in seen:
            seen.add(id(storage))
            outside.append((storage, f"x{i}", True))
    outside += [(storage, f"y{i}", False) for i, storage in enumerate(step.outputs)]
    outside += [(storage, f"scratch{i}", False) for i, storage in enumerate(step.workspaces)]
    return outside


def _step_prototype(name: str, index: int, step: Step) -> str:
    arguments = [
        f"{'const ' if constant else ''}void *{parameter}"
        for _, parameter, constant in _step_parameters(step)
    ]
    return f"void {_symbol(name, index, step)}({', '.join(arguments) or 'void'})"


def _layers_header(program: Program, name: str) -> str:
    guard = f"{name}_H_LAYERS"
    lines = [f"#ifndef {guard}", f"#define {guard}", ""]
    lines += [f"{_step_prototype(name, i, step)};" for i, step in enumerate(program.steps)]
    lines += ["", f"#endif /* {guard} */", ""]
    return "\n".join(lines)


def _run(program: Program, name: str) -> str:
    assert program.plan is not None
    offsets = program.plan.offsets

    def place(storage: Storage) -> str:
        if storage.place == "arena":
            return f"base + {offsets[storage.name]}"
        return _parameter(storage.name, const=storage.place == "input")

    pointers = [_parameter(spec.name, const=True) for spec in program.inputs]
    pointers += [_parameter(spec.name, const=False) for spec in program.outputs]
    lines = [
        f'#include "{name}.h"',
        "",
        "#include <stddef.h>",
        "",
        f'#include "{name}_layers.h"',
        "",
        _prototype(program, name),
        "{",
    ]
    checks = [f"{pointer} == NULL" for pointer in pointers]
    if program.plan.arena_bytes:
        checks += ["arena == NULL", f"(uintptr_t)arena % {name.upper()}_ARENA_ALIGN != 0"]
        lines.append("    uint8_t *base = arena;")
    else:
        lines.append("    (void)arena;")
    lines += [f"    if ({' || '.join(checks)}) {{", "        return 1;", "    }"]
    for i, step in enumerate(program.steps):
        arguments = [place(storage) for storage, _, _ in _step_parameters(step)]
        lines.append(f"    {_symbol(name, i, step)}({', '.join(arguments)});")
    lines += ["    return 0;", "}", ""]
    return "\n".join(lines)


def _layers(program: Program, name: str) -> str:
    lines = [
        f'#include "{name}_layers.h"',
        "",
        "#include <math.h>",
        "#include <stdbool.h>",
        "#include <stdint.h>",
        "#include <string.h>",
        "",
    ]
    lines += [_array(storage) for storage in program.constants if _is_used(program, storage)]
    names = _function_symbols(program, name)
    for function, symbol in zip(program.functions, names, strict=True):
        if isinstance(function, AssemblyFunction):
            lines.append(function.declaration(symbol))
        else:
            lines.append(function.definition(symbol))
    for i, step in enumerate(program.steps):
        parameter = {id(s): p for s, p, _ in _step_parameters(step)}

        def argument(storage: Storage, known: dict[int, str] = parameter) -> str:
            return storage.name if storage.place == "flash" else known[id(storage)]

        lines += [_step_prototype(name, i, step), "{"]
        if step.function is None:
            (source,), (target,) = step.inputs, step.outputs
            lines.append(f"    memcpy(y0, {argument(source)}, {target.size_bytes});")
        else:
            values = [argument(s) for s in (*step.inputs, *step.outputs, *step.workspaces)]
            # A kernel in assembly that needs no scratch memory has its parameter nevertheless.
            missing = len(program.functions[step.function].parameters) - len(values)
            values += ["NULL"] * missing
            lines.append(f"    {names[step.function]}({', '.join(values)});")
        lines += ["}", ""]
    return "\n".join(lines)


def _function_symbols(program: Program, name: str) -> list[str]:
    return [f"{name}_k{i:03d}_{n}" for i, n in enumerate(program.function_names)]


def _assembly(program: Program, name: str) -> str:
    symbols = zip(program.functions, _function_symbols(program, name), strict=True)
    decoder = f"{name}_decoder_read"
    texts = [f.definition(s, decoder) for f, s in symbols if isinstance(f, AssemblyFunction)]
    head = "@ Generated by tvm-compress.\n    .syntax unified\n    .thumb\n"
    return "\n".join([head, *texts]) if texts else ""


def _is_used(program: Program, storage: Storage) -> bool:
    return any(storage is used for step in program.steps for used in step.inputs)


def _array(storage: Storage) -> str:
    assert storage.value is not None
    ctype = C_TYPES[storage.dtype]
    texts = _literals(storage.value)
    rows = [", ".join(texts[i : i + _LINE]) for i in range(0, len(texts), _LINE)]
    body = ",\n    ".join(rows) or "0"
    count = max(len(texts), 1)
    return f"static const {ctype} {storage.name}[{count}] = {{\n    {body}\n}};\n"


def _literals(value: NDArray[Any]) -> list[str]:
    """Write numbers so that they are read back exactly."""
    if value.dtype.kind == "f":
        return [float_literal(float(v), str(value.dtype)) for v in value]
    if value.dtype.kind == "b":
        return [str(int(v)) for v in value]
    if value.dtype == np.int64:
        return [f"INT64_C({v})" if v > -(2**63) else "INT64_MIN" for v in value.tolist()]
    if value.dtype == np.int32:
        return [str(v) if v > -(2**31) else "INT32_MIN" for v in value.tolist()]
    return [str(v) for v in value.tolist()]
