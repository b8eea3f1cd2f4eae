"""The harness around a model in a firmware: samples in, outputs and the deepest stack back.

``runtime/harness.c`` reads the samples from ``input.bin``, runs the model once for each, and writes
the outputs and a trailer to ``output.bin``, by semihosting on an emulator.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import CompressError, DataError, OptionError
from tvm_compress.targets.mcu import emulator, qemu
from tvm_compress.targets.mcu.boards import Board, EmulatorName
from tvm_compress.targets.mcu.c_types import C_TYPES
from tvm_compress.targets.mcu.elf import read_elf
from tvm_compress.targets.mcu.engine import CodeMap, Execution
from tvm_compress.tensors import TensorSpec

__all__ = [
    "choose_engine",
    "execute",
    "exit_texts",
    "harness_header",
    "pack_inputs",
    "unpack_outputs",
]

_RUNTIME = Path(__file__).parent / "runtime"
_TRAILER = struct.Struct("<IIIi")
_MAGIC = 0x504D4354
Array = NDArray[Any]


def pack_inputs(
    name: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Array]
) -> tuple[int, bytes]:
    """Give the number of samples and the bytes of the harness's ``input.bin``.

    Args:
        name: the model's.
        specs: its inputs.
        inputs: by input name, the input's dtype and shape, N samples along a new first axis.

    Raises:
        DataError: a name, shape or dtype is wrong, or there is no sample.
    """
    known = [spec.name for spec in specs]
    if sorted(inputs) != sorted(known):
        raise DataError(
            f"The inputs of {name} are {', '.join(known)}; "
            f"given were {', '.join(sorted(inputs)) or 'none'}. Give one array for each."
        )
    columns = []
    counts = {}
    for spec in specs:
        array = np.asarray(inputs[spec.name])
        if array.dtype != np.dtype(spec.dtype):
            raise DataError(
                f"The input {spec.name} of {name} has dtype {array.dtype}; expected "
                f"{spec.dtype}. Convert it, as in x.astype({spec.dtype!r})."
            )
        if array.ndim != len(spec.shape) + 1 or array.shape[1:] != spec.shape:
            raise DataError(
                f"The input {spec.name} of {name} has shape {array.shape}; expected "
                f"(N, {', '.join(map(str, spec.shape))}): the samples stacked along a first axis."
            )
        if not len(array):
            raise DataError(f"The input {spec.name} of {name} holds no sample. Give at least one.")
        counts[spec.name] = len(array)
        flat = np.ascontiguousarray(array).reshape(len(array), -1)
        columns.append(flat.view(np.uint8).reshape(len(array), spec.size_bytes))
    if len(set(counts.values())) > 1:
        raise DataError(
            f"The inputs of {name} hold different numbers of samples: "
            f"{', '.join(f'{key} {count}' for key, count in counts.items())}. "
            "Give the same number for each."
        )
    samples = len(columns[0])
    return samples, struct.pack("<I", samples) + np.concatenate(columns, axis=1).tobytes()


def unpack_outputs(
    name: str, specs: Sequence[TensorSpec], execution: Execution, samples: int
) -> tuple[dict[str, Array], int]:
    """Give outputs by name, samples along the first axis, and the deepest stack in bytes.

    Args:
        name: the model's.
        specs: its outputs.
        execution: a run of the firmware on as many samples.
        samples: their number.

    Raises:
        CompressError: the firmware ended with an error, or wrote something else.
    """
    texts = exit_texts()
    if execution.exit_code:
        text = texts.get(
            execution.exit_code,
            f"The firmware ended with the unknown exit code {execution.exit_code}. "
            "Report the model as a bug.",
        )
        data = execution.files.get("output.bin", b"")
        if execution.exit_code == 6 and len(data) >= _TRAILER.size:
            status = _TRAILER.unpack(data[-_TRAILER.size :])[3]
            done = (len(data) - _TRAILER.size) // sum(spec.size_bytes for spec in specs)
            text += f" ({name}_run returned {status} at sample {done - 1}.)"
        raise CompressError(f"{name}: {text}")
    data = execution.files.get("output.bin", b"")
    row = sum(spec.size_bytes for spec in specs)
    if len(data) != samples * row + _TRAILER.size:
        raise CompressError(
            f"The firmware of {name} wrote {len(data)} bytes of output; expected "
            f"{samples * row + _TRAILER.size}. Build it again from matching sources."
        )
    magic, _, stack, _ = _TRAILER.unpack(data[-_TRAILER.size :])
    if magic != _MAGIC:
        raise CompressError(
            f"The output of the firmware of {name} has no valid trailer. "
            "Build it again from matching sources."
        )
    rows = np.frombuffer(data, np.uint8, samples * row).reshape(samples, row)
    outputs = {}
    start = 0
    for spec in specs:
        column = np.ascontiguousarray(rows[:, start : start + spec.size_bytes])
        outputs[spec.name] = column.view(np.dtype(spec.dtype)).reshape(samples, *spec.shape)
        start += spec.size_bytes
    return outputs, int(stack)


def exit_texts() -> dict[int, str]:
    """Give the sentences of runtime/exit_codes.h, by exit code."""
    text = (_RUNTIME / "exit_codes.h").read_text(encoding="utf-8")
    return {int(code): words for code, words in re.findall(r'X\(\w+, (\d+), "([^"]*)"\)', text)}


def choose_engine(board: Board, engine: str | None) -> EmulatorName:
    """Give the engine, or without one the first of the board's that is installed.

    Raises:
        OptionError: the board does not run on it, or on none.
    """
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
        if emulator.available() if name == "unicorn" else qemu.available(board.isa):
            return name
    # None is installed: the first one's own error says how to get it.
    return board.emulators[0]


def execute(
    elf: Path,
    board: Board,
    engine: str | None,
    data: bytes,
    code: CodeMap | None,
    timeout_s: float,
) -> Execution:
    """Run a firmware on ``data``, the bytes of ``input.bin``; count where ``code`` is given.

    Raises:
        OptionError: the board does not run on the engine.
        MissingToolError: the engine is not installed.
        CompressError: the firmware faulted or did not end in time.
    """
    if choose_engine(board, engine) == "qemu":
        return qemu.run(elf, board, {"input.bin": data}, code, timeout_s)
    return emulator.run(read_elf(elf), board, {"input.bin": data}, code, timeout_s)


def harness_header(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], arena_bytes: int
) -> str:
    """Give the text of harness_model.h: it binds the harness to the model's names and types."""
    macro = name.upper()
    lines = ["#include <stdint.h>", f'#include "{name}.h"', ""]
    lines += [
        f"#define HARNESS_MODEL_ABI_VERSION {macro}_ABI_VERSION",
        f"#define HARNESS_INPUT_COUNT {len(inputs)}",
        f"#define HARNESS_OUTPUT_COUNT {len(outputs)}",
        "/* A compile error here: the header and the description of the model disagree. */",
        f"typedef char harness_arena_agrees[{macro}_ARENA_BYTES == {arena_bytes} ? 1 : -1];",
        "",
    ]
    arguments = []
    for kind, specs in (("input", inputs), ("output", outputs)):
        for index, spec in enumerate(specs):
            symbol = f"harness_{kind}_{index}"
            lines.append(
                f"static {C_TYPES[spec.dtype]} {symbol}[{spec.size}] __attribute__((aligned(16)));"
            )
            arguments.append(symbol)
    if arena_bytes:
        lines.append(
            f"static unsigned char harness_arena[{arena_bytes}] __attribute__((aligned(16)));"
        )
    arguments.append("harness_arena" if arena_bytes else "(void *)0")
    for kind, specs in (("input", inputs), ("output", outputs)):
        items = ", ".join(
            f"{{harness_{kind}_{index}, sizeof harness_{kind}_{index}}}"
            for index in range(len(specs))
        )
        lines.append(f"static const struct harness_buffer harness_{kind}s[] = {{{items}}};")
    call = f"{name}_run({', '.join(arguments)})"
    lines += ["", f"static int harness_model_run(void) {{ return {call}; }}", ""]
    return "\n".join(lines)
