"""A core with the DSP extension that runs one function and sees what hardware would punish.

Every buffer lies at the end, or at the start, of a mapping of its own, so that an access behind or
in front of it faults. Multiple and double accesses at addresses that are no multiples of four,
which the emulator allows and the hardware does not, are errors here; so are a changed register that
the procedure-call standard wants kept, and a constant buffer that was written.
"""

from __future__ import annotations

import functools
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.targets.mcu.nets import execute
from tvm_compress.targets.mcu.boards import get_board
from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.toolchain import find_toolchain

unicorn = pytest.importorskip("unicorn")
from unicorn import arm_const  # noqa: E402

Array = NDArray[Any]
_PAGE = 4096
_CODE, _STACK, _DATA = 0x10000000, 0x20000000, 0x30000000
_STACK_BYTES = 16 * _PAGE
_BETWEEN = 1 << 24  # from one buffer's mapping to the next
_FILL = 0xA5
_KEPT = tuple(range(arm_const.UC_ARM_REG_R4, arm_const.UC_ARM_REG_R4 + 8))


def command() -> list[str]:
    """Give the assembler for the Cortex-M4: GNU's, which starts quicker, or zig's."""
    toolchain = find_toolchain("gnu" if shutil.which("arm-none-eabi-gcc") else "zig")
    return [*toolchain.command(get_board("cortex-m4")), "-c"]


def assemble(
    functions: Mapping[str, AssemblyFunction], with_command: Sequence[str] | None = None
) -> dict[str, bytes]:
    """Assemble functions into the machine code of each, which holds no open references."""
    head = "    .syntax unified\n    .thumb\n"
    text = head + "\n".join(f.definition(name) for name, f in functions.items())
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "f.s", Path(folder) / "f.o"
        source.write_text(text)
        execute([*(with_command or command()), source, "-o", target])
        sections = _sections(target.read_bytes())
    assert not [name for name in sections if name.startswith(".rel")]
    return {name: sections[f".text.{name}"] for name in functions}


def link(function: AssemblyFunction, source: Path, symbol: str) -> bytes:
    """Assemble a function and link it with what it calls, which a C file has as ``symbol``."""
    with tempfile.TemporaryDirectory() as folder:
        text, script, image = (Path(folder) / name for name in ("f.s", "f.ld", "f.elf"))
        head = "    .syntax unified\n    .thumb\n"
        text.write_text(head + function.definition("f", symbol))
        script.write_text(
            f"ENTRY(f) SECTIONS {{ .text {_CODE:#x} : {{ *(.text.f) *(.text.*) }} "
            "/DISCARD/ : { *(.ARM.*) *(.comment) } }"
        )
        execute([*command()[:-1], "-nostdlib", text, source, "-T", script, "-o", image])
        return _sections(image.read_bytes())[".text"]


def _sections(data: bytes) -> dict[str, bytes]:
    (offset,) = struct.unpack_from("<I", data, 32)
    size, count, names = struct.unpack_from("<3H", data, 46)
    headers = [struct.unpack_from("<10I", data, offset + i * size) for i in range(count)]
    contents = [data[h[4] : h[4] + h[5]] for h in headers]
    table = contents[names]
    return {
        table[h[0] : table.index(b"\0", h[0])].decode(): content
        for h, content in zip(headers, contents, strict=True)
    }


@dataclass(frozen=True)
class Called:
    """What a call left: the buffers, and the instructions and bytes of stack that it took."""

    buffers: list[Array]
    instructions: int
    stack_bytes: int


@functools.cache
def _multiple(code: bytes) -> dict[int, int]:
    """Give the base register of each instruction that accesses several words, by its place."""
    halves = struct.unpack(f"<{len(code) // 2}H", code)
    places, at = {}, 0
    while at < len(halves):
        half = halves[at]
        long = half >> 11 in (0b11101, 0b11110, 0b11111)
        if half >> 9 == 0b1110100:  # LDM, STM, LDRD, STRD
            places[2 * at] = half & 15
        elif half >> 12 == 0b1100:
            places[2 * at] = half >> 8 & 7
        at += 2 if long else 1
    return places


def call(
    code: bytes,
    buffers: Sequence[Array],
    written: Sequence[int],
    *,
    at_end: bool = True,
    offset: int = 0,
    over: Mapping[int, tuple[int, int]] | None = None,
) -> Called:
    """Call a function with pointers to buffers.

    Args:
        code: what :func:`assemble` gave.
        buffers: their bytes before the call; the last one is scratch memory.
        written: the indices of those that may be written.
        at_end: whether buffers end where their mapping ends, or begin where it begins.
        offset: bytes in front of the first buffer, at the start of its mapping.
        over: buffers that lie over another one, by index: its index, and how many bytes before it
            they begin. They hold what the other one holds.
    """
    over = over or {}
    machine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
    machine.ctl_set_cpu_model(arm_const.UC_CPU_ARM_CORTEX_M4)
    end = _CODE + (len(code) + 3 & ~3)
    machine.mem_map(_CODE, -(-(len(code) + 8) // _PAGE) * _PAGE)
    machine.mem_write(_CODE, code)
    machine.mem_map(_STACK, _STACK_BYTES)
    machine.mem_write(_STACK, bytes([_FILL]) * _STACK_BYTES)
    places = [0] * len(buffers)
    maps: list[tuple[int, Array, Array]] = []  # address, bytes before, which may be written
    for i, buffer in enumerate(buffers):
        if i in over:
            continue
        spans = {i: (0, buffer.nbytes)}
        for j, (other, before_it) in over.items():
            if other == i:
                spans[j] = -before_it, buffers[j].nbytes - before_it
        first, last = min(a for a, _ in spans.values()), max(b for _, b in spans.values())
        start, length = _DATA + i * _BETWEEN, -(-(last - first + 8) // _PAGE) * _PAGE
        place = length - last if at_end else (offset if i == 0 else 0) - first
        if buffer.itemsize > 1 or i == len(buffers) - 1:  # words and scratch are aligned
            place &= ~3
        content, free = np.full(length, _FILL, np.uint8), np.zeros(length, bool)
        content[place : place + buffer.nbytes] = np.frombuffer(buffer.tobytes(), np.uint8)
        for j, (a, b) in spans.items():
            places[j] = start + place + a
            free[place + a : place + b] |= j in written
        machine.mem_map(start, length)
        machine.mem_write(start, content.tobytes())
        maps.append((start, content, free))
    for i, address in enumerate(places[:4]):
        machine.reg_write(arm_const.UC_ARM_REG_R0 + i, address)
    for register in _KEPT:
        machine.reg_write(register, 0x5EED0000 + register)
    top = _STACK + _STACK_BYTES - 16
    for i, address in enumerate(places[4:]):
        machine.mem_write(top + 4 * i, struct.pack("<I", address))
    machine.reg_write(arm_const.UC_ARM_REG_SP, top)
    machine.reg_write(arm_const.UC_ARM_REG_LR, end | 1)
    multiple = _multiple(code)
    problems: list[str] = []
    count = 0

    def step(uc: Any, address: int, size: int, _: Any) -> None:
        nonlocal count
        count += 1
        base = multiple.get(address - _CODE)
        if base is not None:
            register = arm_const.UC_ARM_REG_R0 + base if base < 13 else arm_const.UC_ARM_REG_SP
            if uc.reg_read(register) & 3:
                problems.append(f"a multiple access at {address - _CODE:#x} is not aligned")
                uc.emu_stop()

    machine.hook_add(unicorn.UC_HOOK_CODE, step, begin=_CODE, end=end - 1)
    machine.emu_start(_CODE | 1, end, count=20_000_000)
    assert not problems, problems
    assert machine.reg_read(arm_const.UC_ARM_REG_PC) & ~1 == end, "the function did not return"
    assert machine.reg_read(arm_const.UC_ARM_REG_SP) == top, "the stack pointer was moved"
    for register in _KEPT:
        assert machine.reg_read(register) == 0x5EED0000 + register, "a register was not kept"
    for start, content, free in maps:
        after = np.frombuffer(bytes(machine.mem_read(start, len(content))), np.uint8)
        assert (after == content)[~free].all(), "bytes outside of the output were written"
    results = [
        np.frombuffer(bytes(machine.mem_read(place, b.nbytes)), b.dtype).reshape(b.shape).copy()
        for place, b in zip(places, buffers, strict=True)
    ]
    stack = bytes(machine.mem_read(_STACK, top - _STACK))
    untouched = len(stack) - len(stack.lstrip(bytes([_FILL])))
    return Called(results, count, len(stack) - untouched)
