"""Many kernels in one firmware on the emulated Cortex-M55, each called under observation.

An access in front of or behind the inputs faults; bytes written beside output and scratch, and
registers that the procedure-call standard wants kept and were not, are counted. See kernels.c.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.boards import get_board
from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.firmware import Layer, ModelSources, TensorSpec, link_firmware
from tvm_compress.targets.mcu.toolchain import find_toolchain

Array = NDArray[Any]
_HERE = Path(__file__).parent
BOARD = get_board("mps3-an547")


class Kernel(Protocol):
    """What the kernels of all kinds have."""

    scratch_bytes: Any

    def function(self) -> AssemblyFunction: ...


@dataclass(frozen=True)
class Case:
    """A kernel, its inputs, all of as many bytes, and what it is to give.

    ``at_end`` says that inputs lie at the end of the memory, ``over`` that the output is written
    over the first one.
    """

    name: str
    kernel: Kernel
    inputs: Sequence[Array]
    expected: Array
    at_end: bool = True
    over: bool = False


def check(cases: Sequence[Case], tool: str | None = None) -> list[int]:
    """Run all cases; give the instructions of each, which must be those it was said to take."""
    if tool is None:
        tool = "gnu" if shutil.which("arm-none-eabi-gcc") else "zig"
    functions = [case.kernel.function() for case in cases]
    assert all(0 in f.in_place for f, case in zip(functions, cases, strict=True) if case.over)
    x = np.concatenate([np.ravel(i).view(np.uint8) for case in cases for i in case.inputs])
    outputs = sum(case.expected.nbytes for case in cases)
    room = max(case.expected.nbytes + _scratch(case) for case in cases) + 4 * 64
    room += -room % 16
    model = ModelSources(
        "kernels",
        _files(cases, functions, room),
        (TensorSpec("x", (x.size,), "int8"),),
        (TensorSpec("y", (outputs,), "int8"), TensorSpec("problems", (len(cases),), "int32")),
        room,
        tuple(Layer(f"kernels_k{i}", case.name, "kernel") for i, case in enumerate(cases)),
    )
    with tempfile.TemporaryDirectory() as folder:
        firmware = link_firmware(model, BOARD, folder, find_toolchain(tool))
        result = firmware.run({"x": x.view(np.int8)[None]})
        profile = firmware.profile({"x": x.view(np.int8)})
    place = 0
    for case, function, problems, layer in zip(
        cases, functions, result["problems"][0], profile.layers[1:], strict=True
    ):
        got = result["y"][0][place : place + case.expected.nbytes].view(case.expected.dtype)
        place += case.expected.nbytes
        wrong = np.flatnonzero(got != case.expected.reshape(-1))
        assert not wrong.size, f"{case.name}: {wrong.size} of {got.size} differ, {wrong[:8]}"
        assert problems == 0, f"{case.name}: {problems} bytes or registers were changed"
        assert layer.instructions == round(function.instructions), case.name
    return [layer.instructions for layer in profile.layers[1:]]


def _scratch(case: Case) -> int:
    return int(case.kernel.scratch_bytes)


def _files(
    cases: Sequence[Case], functions: Sequence[AssemblyFunction], room: int
) -> dict[str, str]:
    header = (
        "#include <stdint.h>\n"
        f"#define KERNELS_ARENA_BYTES {room}\n"
        "#define KERNELS_ABI_VERSION 1\n"
        "int kernels_run(const int8_t *in, int8_t *out, int32_t *problems, void *arena);\n"
    )
    lines, rows = [], []
    for i, (case, function) in enumerate(zip(cases, functions, strict=True)):
        stream = getattr(case.kernel, "stream", None)
        name = "0" if stream is None else f"kernels_w_{i}"
        if stream is not None:
            words = ", ".join(f"{word}u" for word in stream().tolist())
            lines.append(f"static const uint32_t {name}[] = {{{words}}};")
        lines.append(function.declaration(f"kernels_k{i}"))
        sizes = [len(case.inputs), case.inputs[0].nbytes, case.expected.nbytes, _scratch(case)]
        odd = int(case.expected.itemsize == 1)
        rows.append(
            f"{{(void (*)(void))kernels_k{i}, {name}, {', '.join(map(str, sizes))}, "
            f"{int(case.at_end)}, {odd}, {int(case.over)}}},"
        )
    lines += ["static const struct kernels_case kernels_cases[] = {", *rows, "};", ""]
    texts = [f.definition(f"kernels_k{i}") for i, f in enumerate(functions)]
    return {
        "kernels.h": header,
        "kernels_cases.h": "\n".join(lines),
        "kernels.c": (_HERE / "kernels.c").read_text(encoding="utf-8"),
        "checked_call.s": (_HERE / "checked_call.s").read_text(encoding="utf-8"),
        "kernels_k.s": "\n".join(["    .syntax unified\n    .thumb", *texts]),
    }
