"""From C sources to a firmware that runs: link, measure, run, profile.

The sources are a model's (see :class:`ModelSources`); start-up code and harness come from
``runtime/``. Every number is read from the linked ELF file or measured on an emulator.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import BudgetError, CompressError, DataError, OptionError
from tvm_compress.targets.mcu import cycles, emulator, qemu
from tvm_compress.targets.mcu.boards import Board, EmulatorName
from tvm_compress.targets.mcu.c_types import C_TYPES
from tvm_compress.targets.mcu.elf import Elf, read_elf
from tvm_compress.targets.mcu.engine import DISPATCH, FIRST_LAYER, CodeMap, Execution, code_map
from tvm_compress.targets.mcu.toolchain import Toolchain, find_toolchain
from tvm_compress.tensors import TensorSpec

__all__ = [
    "Firmware",
    "FlashSize",
    "Layer",
    "LayerProfile",
    "ModelSources",
    "Profile",
    "RamSize",
    "Size",
    "TensorSpec",
    "link_firmware",
]

_RUNTIME = Path(__file__).parent / "runtime"
_RUNTIME_SOURCES = ("startup.c", "semihost.c", "harness.c", "libm.c")
# The linker gets room to spare, so that it is our sentence that says what does not fit.
_LINK_BYTES = 0x1000_0000
_VECTORS_BYTES = 64  # 16 words, for no interrupt is used
_TRAILER = struct.Struct("<IIIi")
_MAGIC = 0x504D4354
Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """One layer: its C function, its name and kind for reports, the symbols of its weights.

    ``live_bytes`` are the bytes of the arena that hold something while the layer runs.
    """

    symbol: str
    name: str
    kind: str
    weight_symbols: tuple[str, ...] = ()
    live_bytes: int = 0


@dataclass(frozen=True)
class ModelSources:
    """A model as generated C99.

    ``files`` maps file names to texts: any number of ``.c`` files, and ``<name>.h``, which
    declares ``int <name>_run(const T *input..., T *output..., void *arena)`` and defines
    ``<NAME>_ARENA_BYTES`` and ``<NAME>_ABI_VERSION``. Every layer is an external function.
    """

    name: str
    files: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arena_bytes: int
    layers: tuple[Layer, ...]

    @property
    def run_symbol(self) -> str:
        """The C function that runs the model once."""
        return f"{self.name}_run"


@dataclass(frozen=True)
class FlashSize:
    """Bytes in flash; the parts sum to the total."""

    code: int
    weights: int
    constants: int


@dataclass(frozen=True)
class RamSize:
    """Bytes in RAM; the parts sum to the total. ``stack`` is the deepest stack of the model."""

    arena: int
    inputs: int
    outputs: int
    static: int
    stack: int


@dataclass(frozen=True)
class Size:
    """What a firmware takes of a board, in bytes, harness and start-up code included."""

    flash: FlashSize
    ram: RamSize

    @property
    def flash_bytes(self) -> int:
        """All bytes that are programmed into flash."""
        return sum(asdict(self.flash).values())

    @property
    def ram_bytes(self) -> int:
        """All bytes of RAM that are ever touched, the model's deepest stack included."""
        return sum(asdict(self.ram).values())


@dataclass(frozen=True)
class LayerProfile:
    """Cost of one layer, libm and memcpy that it calls included.

    ``mix`` are the instructions by class, ``model_cycles`` the cycles by the Cortex-M4's table
    (None on a processor without one); see :mod:`tvm_compress.targets.mcu.cycles`.
    """

    name: str
    kind: str
    symbol: str
    instructions: int
    model_cycles: int | None
    mix: dict[str, int]


@dataclass(frozen=True)
class Profile:
    """Cost of one inference, from entry to return of the model's run function.

    An instruction that an IT block skips counts: the processor fetches it and spends a cycle.
    The first layer is "dispatch": the run function itself. The layers sum to the total.
    """

    layers: tuple[LayerProfile, ...]
    engine: EmulatorName

    @property
    def instructions(self) -> int:
        """Instructions of the whole inference."""
        return sum(layer.instructions for layer in self.layers)

    @property
    def model_cycles(self) -> int | None:
        """Cycles of the whole inference by the Cortex-M4's table, or None; never time."""
        cycles = [layer.model_cycles for layer in self.layers]
        known = [count for count in cycles if count is not None]
        return sum(known) if len(known) == len(cycles) else None


@dataclass(frozen=True)
class Firmware:
    """A linked firmware of one model for one board."""

    elf: Path
    size: Size
    model: ModelSources
    board: Board

    def run(
        self,
        inputs: Mapping[str, Array],
        engine: str | None = None,
        timeout_s: float = 600.0,
    ) -> dict[str, Array]:
        """Run a batch of samples on an emulator, in one start of the firmware.

        Args:
            inputs: by input name, the input's dtype and shape, N samples along a new first axis.
            engine: "unicorn" or "qemu"; without it the first of the board's that is installed.
            timeout_s: seconds until a firmware that does not end is stopped.

        Returns:
            By output name, arrays of the output's shape behind a first axis of N.

        Raises:
            DataError: a name, shape or dtype is wrong.
            OptionError: the board does not run on that engine.
            MissingToolError: the engine is not installed.
            CompressError: the firmware faulted, failed or did not end.
        """
        samples, data = _pack_inputs(self.model, inputs)
        execution = _execute(self.elf, self.board, engine, data, None, timeout_s)
        return _unpack_outputs(self.model, execution, samples)[0]

    def profile(
        self,
        inputs: Mapping[str, Array],
        engine: str | None = None,
        timeout_s: float = 600.0,
    ) -> Profile:
        """Count instructions and model cycles of one inference, layer by layer.

        Args:
            inputs: by input name, one sample: the input's shape, or that behind a first axis of 1.
            engine: "unicorn" or "qemu"; without it the first of the board's that is installed.
            timeout_s: seconds until a firmware that does not end is stopped.

        Raises:
            DataError: a name, shape or dtype is wrong, or there is more than one sample.
            OptionError: the board does not run on that engine.
            MissingToolError: the engine or the disassembler is not installed.
            CompressError: the firmware faulted, failed or did not end.
        """
        shapes = {spec.name: spec.shape for spec in self.model.inputs}
        stacked = {
            name: np.asarray(array)[None]
            if np.asarray(array).shape == shapes.get(name)
            else np.asarray(array)
            for name, array in inputs.items()
        }
        samples, data = _pack_inputs(self.model, stacked)
        if samples != 1:
            raise DataError(
                f"profile takes one sample; {samples} were given. Give one, as in x[:1]."
            )
        chosen = _choose_engine(self.board, engine)
        symbols = tuple(layer.symbol for layer in self.model.layers)
        code = cycles.watch(code_map(read_elf(self.elf), self.model.run_symbol, symbols))
        execution = _execute(self.elf, self.board, chosen, data, code, timeout_s)
        _unpack_outputs(self.model, execution, samples)
        if execution.counts is None:
            raise AssertionError("the engine was asked to count and did not")
        costs = cycles.count_costs(code, execution.counts, self.board.cpu, self.model.name)
        rows = (Layer(self.model.run_symbol, "dispatch", "dispatch"), *self.model.layers)
        return Profile(
            tuple(
                LayerProfile(
                    row.name, row.kind, row.symbol, cost.instructions, cost.model_cycles, cost.mix
                )
                for row, cost in zip(rows, costs[DISPATCH:], strict=True)
            ),
            chosen,
        )


assert FIRST_LAYER == DISPATCH + 1


def _pack_inputs(model: ModelSources, inputs: Mapping[str, Array]) -> tuple[int, bytes]:
    known = [spec.name for spec in model.inputs]
    if sorted(inputs) != sorted(known):
        raise DataError(
            f"The inputs of {model.name} are {', '.join(known)}; "
            f"given were {', '.join(sorted(inputs)) or 'none'}. Give one array for each."
        )
    columns = []
    counts = {}
    for spec in model.inputs:
        array = np.asarray(inputs[spec.name])
        if array.dtype != np.dtype(spec.dtype):
            raise DataError(
                f"The input {spec.name} of {model.name} has dtype {array.dtype}; expected "
                f"{spec.dtype}. Convert it, as in x.astype({spec.dtype!r})."
            )
        if array.ndim != len(spec.shape) + 1 or array.shape[1:] != spec.shape:
            raise DataError(
                f"The input {spec.name} of {model.name} has shape {array.shape}; expected "
                f"(N, {', '.join(map(str, spec.shape))}): the samples stacked along a first axis."
            )
        if not len(array):
            raise DataError(
                f"The input {spec.name} of {model.name} holds no sample. Give at least one."
            )
        counts[spec.name] = len(array)
        flat = np.ascontiguousarray(array).reshape(len(array), -1)
        columns.append(flat.view(np.uint8).reshape(len(array), spec.size_bytes))
    if len(set(counts.values())) > 1:
        raise DataError(
            f"The inputs of {model.name} hold different numbers of samples: "
            f"{', '.join(f'{name} {count}' for name, count in counts.items())}. "
            "Give the same number for each."
        )
    samples = len(columns[0])
    return samples, struct.pack("<I", samples) + np.concatenate(columns, axis=1).tobytes()


def _unpack_outputs(
    model: ModelSources, execution: Execution, samples: int
) -> tuple[dict[str, Array], int]:
    """Outputs by name, samples along the first axis, and the deepest stack in bytes."""
    texts = _exit_texts()
    if execution.exit_code:
        text = texts.get(
            execution.exit_code,
            f"The firmware ended with the unknown exit code {execution.exit_code}. "
            "Report the model as a bug.",
        )
        data = execution.files.get("output.bin", b"")
        if execution.exit_code == 6 and len(data) >= _TRAILER.size:
            status = _TRAILER.unpack(data[-_TRAILER.size :])[3]
            done = (len(data) - _TRAILER.size) // sum(spec.size_bytes for spec in model.outputs)
            text += f" ({model.run_symbol} returned {status} at sample {done - 1}.)"
        raise CompressError(f"{model.name}: {text}")
    data = execution.files.get("output.bin", b"")
    row = sum(spec.size_bytes for spec in model.outputs)
    if len(data) != samples * row + _TRAILER.size:
        raise CompressError(
            f"The firmware of {model.name} wrote {len(data)} bytes of output; expected "
            f"{samples * row + _TRAILER.size}. Build it again from matching sources."
        )
    magic, _, stack, _ = _TRAILER.unpack(data[-_TRAILER.size :])
    if magic != _MAGIC:
        raise CompressError(
            f"The output of the firmware of {model.name} has no valid trailer. "
            "Build it again from matching sources."
        )
    rows = np.frombuffer(data, np.uint8, samples * row).reshape(samples, row)
    outputs = {}
    start = 0
    for spec in model.outputs:
        column = np.ascontiguousarray(rows[:, start : start + spec.size_bytes])
        outputs[spec.name] = column.view(np.dtype(spec.dtype)).reshape(samples, *spec.shape)
        start += spec.size_bytes
    return outputs, int(stack)


def _exit_texts() -> dict[int, str]:
    """The sentences of runtime/exit_codes.h, by exit code."""
    text = (_RUNTIME / "exit_codes.h").read_text(encoding="utf-8")
    return {int(code): words for code, words in re.findall(r'X\(\w+, (\d+), "([^"]*)"\)', text)}


def _choose_engine(board: Board, engine: str | None) -> EmulatorName:
    if engine is not None:
        for name in board.emulators:
            if name == engine:
                return name
        raise OptionError(
            f"The board {board.name} does not run on the engine {engine!r}; it runs on "
            f"{', '.join(board.emulators) or 'none'}. Choose one of them or another board."
        )
    if not board.emulators:
        raise OptionError(
            f"The board {board.name} runs on no emulator. "
            'Add emulators = ["unicorn"] to its file, or build for the board cortex-m4.'
        )
    for name in board.emulators:
        if {"unicorn": emulator, "qemu": qemu}[name].available():
            return name
    # None is installed: the first one's own error says how to get it.
    return board.emulators[0]


def _execute(
    elf: Path,
    board: Board,
    engine: str | None,
    data: bytes,
    code: CodeMap | None,
    timeout_s: float,
) -> Execution:
    if _choose_engine(board, engine) == "qemu":
        return qemu.run(elf, board, {"input.bin": data}, code, timeout_s)
    return emulator.run(read_elf(elf), board, {"input.bin": data}, code, timeout_s)


def _harness_header(model: ModelSources) -> str:
    """The text of harness_model.h: it binds the harness to the model's names and types."""
    macro = model.name.upper()
    lines = ["#include <stdint.h>", f'#include "{model.name}.h"', ""]
    lines += [
        f"#define HARNESS_MODEL_ABI_VERSION {macro}_ABI_VERSION",
        f"#define HARNESS_INPUT_COUNT {len(model.inputs)}",
        f"#define HARNESS_OUTPUT_COUNT {len(model.outputs)}",
        "/* A compile error here: the header and the description of the model disagree. */",
        f"typedef char harness_arena_agrees[{macro}_ARENA_BYTES == {model.arena_bytes} ? 1 : -1];",
        "",
    ]
    arguments = []
    for kind, specs in (("input", model.inputs), ("output", model.outputs)):
        for index, spec in enumerate(specs):
            symbol = f"harness_{kind}_{index}"
            lines.append(
                f"static {C_TYPES[spec.dtype]} {symbol}[{spec.size}] __attribute__((aligned(16)));"
            )
            arguments.append(symbol)
    if model.arena_bytes:
        lines.append(
            f"static unsigned char harness_arena[{model.arena_bytes}] __attribute__((aligned(16)));"
        )
    arguments.append("harness_arena" if model.arena_bytes else "(void *)0")
    for kind, specs in (("input", model.inputs), ("output", model.outputs)):
        items = ", ".join(
            f"{{harness_{kind}_{index}, sizeof harness_{kind}_{index}}}"
            for index in range(len(specs))
        )
        lines.append(f"static const struct harness_buffer harness_{kind}s[] = {{{items}}};")
    call = f"{model.run_symbol}({', '.join(arguments)})"
    lines += ["", f"static int harness_model_run(void) {{ return {call}; }}", ""]
    return "\n".join(lines)


def _link_script(board: Board) -> str:
    alias = vectors = ""
    if board.vectors is None:
        alias = 'REGION_ALIAS("VECTORS", FLASH)\n'
    else:
        vectors = f"    VECTORS (rx) : ORIGIN = {board.vectors:#x}, LENGTH = {_VECTORS_BYTES:#x}\n"
    memory = (
        f"MEMORY\n{{\n{vectors}"
        f"    FLASH (rx) : ORIGIN = {board.flash.origin:#x}, LENGTH = {_LINK_BYTES:#x}\n"
        f"    RAM (rwx) : ORIGIN = {board.ram.origin:#x}, LENGTH = {_LINK_BYTES:#x}\n"
        f"}}\n{alias}"
        f"link_stack_top = {board.ram.end // 8 * 8:#x};\n"
        f"link_stack_bytes = {board.stack_bytes:#x};\n"
    )
    return memory + (_RUNTIME / "firmware.ld").read_text(encoding="utf-8")


def _check_model(model: ModelSources) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", model.name):
        raise OptionError(
            f"The model's name {model.name!r} is no C identifier. "
            "Use letters, digits and underscores, beginning with a letter."
        )
    if f"{model.name}.h" not in model.files:
        raise OptionError(
            f"The sources of {model.name} hold no {model.name}.h, which declares "
            f"{model.run_symbol}. Generate the sources again."
        )
    for name in model.files:
        if Path(name).name != name or not name.endswith((".c", ".h", ".s")):
            raise OptionError(
                f"The sources of {model.name} hold a file {name!r}; expected plain names that "
                "end in .c or .h. Rename it."
            )
    for spec in (*model.inputs, *model.outputs):
        if spec.dtype not in C_TYPES:
            raise OptionError(
                f"The tensor {spec.name} of {model.name} has dtype {spec.dtype}; the harness "
                f"passes {', '.join(C_TYPES)}. Cast it to one of these in the model."
            )
    if not model.inputs or not model.outputs:
        raise OptionError(
            f"The model {model.name} has {len(model.inputs)} inputs and {len(model.outputs)} "
            "outputs; the harness needs at least one of each."
        )


def _measure_elf(elf: Elf, model: ModelSources) -> Size:
    """Sizes from the ELF alone; the stack is still 0."""
    flash_bytes = sum(len(segment.data) for segment in elf.segments)
    weights = sum(
        symbol.size
        for symbol in elf.symbols
        if symbol.kind == "object" and symbol.name.startswith(f"{model.name}_w_")
    )
    constants = elf.section_bytes(".rodata") - weights
    ram = {"harness_arena": 0, "harness_input_": 0, "harness_output_": 0}
    for symbol in elf.symbols:
        for prefix in ram:
            if symbol.kind == "object" and symbol.name.startswith(prefix):
                ram[prefix] += symbol.size
    arena, inputs, outputs = ram.values()
    total = elf.section_bytes(".data") + elf.section_bytes(".bss")
    return Size(
        FlashSize(flash_bytes - weights - constants, weights, constants),
        RamSize(arena, inputs, outputs, total - arena - inputs - outputs, 0),
    )


def _check_layers(elf: Elf, model: ModelSources) -> None:
    functions = {symbol.name for symbol in elf.symbols if symbol.kind == "function"}
    for symbol in (model.run_symbol, *(layer.symbol for layer in model.layers)):
        if symbol not in functions:
            raise OptionError(
                f"The firmware of {model.name} has no function {symbol}, so its instructions "
                "cannot be counted. Make it external, call it, and keep every layer in another "
                f"source file than {model.run_symbol}, or the compiler puts it into its caller."
            )


def _check_budget(elf: Elf, model: ModelSources, board: Board, size: Size) -> None:
    flash, ram = size.flash_bytes, size.ram_bytes + board.stack_bytes
    if flash > board.flash.length:
        owned = {}
        for layer in model.layers:
            symbols = {layer.symbol, *layer.weight_symbols}
            owned[layer] = sum(
                symbol.size for symbol in elf.symbols if symbol.name.split(".", 1)[0] in symbols
            )
        raise BudgetError(
            f"{model.name} needs {flash} bytes of flash and the board {board.name} has "
            f"{board.flash.length}: {flash - board.flash.length} too many. The largest layers "
            f"are {_largest(owned)}. Compress these further or choose a larger board."
        )
    if ram > board.ram.length:
        raise BudgetError(
            f"{model.name} needs {ram} bytes of RAM and the board {board.name} has "
            f"{board.ram.length}: {ram - board.ram.length} too many. They are {size.ram.arena} "
            f"for the arena, {size.ram.inputs} for inputs, {size.ram.outputs} for outputs, "
            f"{size.ram.static} static and {board.stack_bytes} kept for the stack. The layers "
            f"that hold most of the arena are "
            f"{_largest({layer: layer.live_bytes for layer in model.layers})}. Use a model with "
            "smaller activations or choose a larger board."
        )


def _largest(sizes: Mapping[Layer, int]) -> str:
    """Name the three largest layers with their bytes."""
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{layer.name} ({layer.kind}) {size} bytes" for layer, size in largest)


def _check_stack(model: ModelSources, board: Board, stack: int) -> None:
    if stack > board.stack_bytes:
        raise BudgetError(
            f"{model.name} uses {stack} bytes of stack and the board {board.name} keeps "
            f"{board.stack_bytes}: {stack - board.stack_bytes} too many. "
            "Raise stack_bytes in the board's file or choose a larger board."
        )


def link_firmware(
    sources: ModelSources,
    board: Board,
    out_dir: Path | str,
    toolchain: Toolchain | None = None,
) -> Firmware:
    """Compile a model with start-up code and harness, link it, and measure it.

    The ELF file ``<out_dir>/<name>.elf`` appears when all is well, or not at all.

    Args:
        sources: the model.
        board: where it is to run.
        out_dir: a folder; it is made where it is missing.
        toolchain: what :func:`find_toolchain` gives; without it the default one.

    Raises:
        OptionError: the description of the model is not consistent.
        BudgetError: it does not fit the board's flash, RAM or stack.
        MissingToolError: no compiler or no emulator is installed.
        CompressError: the compiler refused the sources, or the firmware did not run.
    """
    _check_model(sources)
    tool = toolchain or find_toolchain()
    out = Path(out_dir)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, text in sources.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "harness_model.h").write_text(_harness_header(sources), encoding="utf-8")
        (folder / "link.ld").write_text(_link_script(board), encoding="utf-8")
        linked = folder / f"{sources.name}.elf"
        tool.build(
            [
                *(folder / name for name in sources.files if name.endswith((".c", ".s"))),
                *(_RUNTIME / name for name in _RUNTIME_SOURCES),
            ],
            [folder, _RUNTIME],
            folder / "link.ld",
            board,
            linked,
        )
        elf = read_elf(linked)
        _check_layers(elf, sources)
        size = _measure_elf(elf, sources)
        _check_budget(elf, sources, board, size)
        stack = 0
        if board.emulators:
            zeros = {
                spec.name: np.zeros((1, *spec.shape), np.dtype(spec.dtype))
                for spec in sources.inputs
            }
            _, data = _pack_inputs(sources, zeros)
            execution = _execute(linked, board, None, data, None, 600.0)
            stack = _unpack_outputs(sources, execution, 1)[1]
            _check_stack(sources, board, stack)
        else:
            stack = board.stack_bytes
        ram = RamSize(**{**asdict(size.ram), "stack": stack})
        # Copied aside, then renamed: a reader never sees half a file.
        out.mkdir(parents=True, exist_ok=True)
        target = out / linked.name
        aside = out / f".{linked.name}.{os.getpid()}"
        try:
            shutil.copyfile(linked, aside)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    return Firmware(target, Size(size.flash, ram), sources, board)
