"""From C sources to a firmware that runs: link, measure, run, profile.

The sources are a model's (see :class:`ModelSources`); start-up code and the harness come from
``runtime/``. Every number is read from the linked ELF file or measured on an emulator.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import BudgetError, CompressError, DataError, FlashError, OptionError
from tvm_compress.targets.mcu import cycles
from tvm_compress.targets.mcu.boards import Board, EmulatorName, Isa, Region
from tvm_compress.targets.mcu.c_types import C_TYPES
from tvm_compress.targets.mcu.elf import Elf, read_elf
from tvm_compress.targets.mcu.engine import DISPATCH, FIRST_LAYER, code_map
from tvm_compress.targets.mcu.harness import (
    choose_engine,
    execute,
    harness_header,
    pack_inputs,
    unpack_outputs,
)
from tvm_compress.targets.mcu.link import Excess, Placement, link_script, place
from tvm_compress.targets.mcu.size import RamSize, Size, measure_elf
from tvm_compress.targets.mcu.toolchain import Toolchain, find_toolchain
from tvm_compress.tensors import TensorSpec

__all__ = [
    "Firmware",
    "Layer",
    "LayerProfile",
    "ModelSources",
    "Profile",
    "TensorSpec",
    "link_firmware",
]

_RUNTIME = Path(__file__).parent / "runtime"
_STARTUP: dict[Isa, str] = {"arm": "startup.c", "riscv": "startup_riscv.c"}
_RUNTIME_SOURCES = ("semihost.c", "harness.c", "libm.c")
# What the linkers of both toolchains say of a region that is too small.
_OVERFLOW = re.compile(r"will not fit in region|overflowed by")
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
        samples, data = pack_inputs(self.model.name, self.model.inputs, inputs)
        execution = execute(self.elf, self.board, engine, data, None, timeout_s)
        return unpack_outputs(self.model.name, self.model.outputs, execution, samples)[0]

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
        samples, data = pack_inputs(self.model.name, self.model.inputs, stacked)
        if samples != 1:
            raise DataError(
                f"profile takes one sample; {samples} were given. Give one, as in x[:1]."
            )
        chosen = choose_engine(self.board, engine)
        symbols = tuple(layer.symbol for layer in self.model.layers)
        code = cycles.watch(code_map(read_elf(self.elf), self.model.run_symbol, symbols))
        execution = execute(self.elf, self.board, chosen, data, code, timeout_s)
        unpack_outputs(self.model.name, self.model.outputs, execution, samples)
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


def _check_layers(elf: Elf, model: ModelSources) -> None:
    functions = {symbol.name for symbol in elf.symbols if symbol.kind == "function"}
    for symbol in (model.run_symbol, *(layer.symbol for layer in model.layers)):
        if symbol not in functions:
            raise OptionError(
                f"The firmware of {model.name} has no function {symbol}, so its instructions "
                "cannot be counted. Make it external, call it, and keep every layer in another "
                f"source file than {model.run_symbol}, or the compiler puts it into its caller."
            )


def _check_budget(elf: Elf, model: ModelSources, board: Board, size: Size, excess: Excess) -> None:
    flash, ram = size.flash_bytes, size.ram_bytes + board.stack_bytes
    if excess.flash:
        owned = {}
        for layer in model.layers:
            symbols = {layer.symbol, *layer.weight_symbols}
            owned[layer] = sum(
                symbol.size for symbol in elf.symbols if symbol.name.split(".", 1)[0] in symbols
            )
        raise FlashError(
            f"{model.name} needs {flash} bytes of flash and the board {board.title} has "
            f"{_lengths(board.flash_regions)}: {excess.flash} too many. The largest layers "
            f"are {_largest(owned)}. Compress these further or choose a larger board."
        )
    if excess.ram:
        raise BudgetError(
            f"{model.name} needs {ram} bytes of RAM and the board {board.title} has "
            f"{_lengths(board.ram_regions)}: {excess.ram} too many. They are {size.ram.arena} "
            f"for the arena, {size.ram.inputs} for inputs, {size.ram.outputs} for outputs, "
            f"{size.ram.static} static and {board.stack_bytes} kept for the stack. The layers "
            f"that hold most of the arena are "
            f"{_largest({layer: layer.live_bytes for layer in model.layers})}. Use a model with "
            "smaller activations or choose a larger board."
        )


def _lengths(regions: Sequence[Region]) -> str:
    """Say how large the regions of one kind are: "65536", or "65536 and 16384"."""
    return " and ".join(str(region.length) for region in regions)


def _largest(sizes: Mapping[Layer, int]) -> str:
    """Name the three largest layers with their bytes."""
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{layer.name} ({layer.kind}) {size} bytes" for layer, size in largest)


def _check_stack(model: ModelSources, board: Board, stack: int) -> None:
    if stack > board.stack_bytes:
        raise BudgetError(
            f"{model.name} uses {stack} bytes of stack and the board {board.title} keeps "
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
        header = harness_header(sources.name, sources.inputs, sources.outputs, sources.arena_bytes)
        (folder / "harness_model.h").write_text(header, encoding="utf-8")
        linked = folder / f"{sources.name}.elf"

        def link(placement: Placement | None) -> Elf:
            (folder / "link.ld").write_text(link_script(board, placement), encoding="utf-8")
            tool.build(
                [
                    *(folder / name for name in sources.files if name.endswith((".c", ".s"))),
                    *(_RUNTIME / name for name in (_STARTUP[board.isa], *_RUNTIME_SOURCES)),
                ],
                [folder, _RUNTIME],
                folder / "link.ld",
                board,
                linked,
            )
            return read_elf(linked)

        try:
            elf = link(Placement())
        except CompressError as error:
            if not _OVERFLOW.search(str(error)):
                raise
            elf = link(None)
            placement, excess = place(elf, board)
            _check_budget(elf, sources, board, measure_elf(elf, sources.name), excess)
            elf = link(placement)
        _check_layers(elf, sources)
        size = measure_elf(elf, sources.name)
        stack = 0
        if board.emulators:
            zeros = {
                spec.name: np.zeros((1, *spec.shape), np.dtype(spec.dtype))
                for spec in sources.inputs
            }
            _, data = pack_inputs(sources.name, sources.inputs, zeros)
            execution = execute(linked, board, None, data, None, 600.0)
            stack = unpack_outputs(sources.name, sources.outputs, execution, 1)[1]
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
