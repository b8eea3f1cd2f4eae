"""Runs a firmware in this process on unicorn; the one module that imports unicorn.

Unicorn executes the instructions; this module is the rest of the board: the memories, the
semihosting calls (files live in memory) and the count of instructions by layer.
Sources of the calls: "Semihosting for AArch32 and AArch64" (Arm, 2.0), "RISC-V Semihosting" (0.4).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import CompressError, MissingToolError
from tvm_compress.targets.mcu.boards import Board
from tvm_compress.targets.mcu.elf import Elf
from tvm_compress.targets.mcu.engine import OUTSIDE, PLANES, CodeMap, Execution, check_blocks
from tvm_compress.targets.mcu.toolchain import host_library

__all__ = ["HOW_TO_GET", "available", "run"]

HOW_TO_GET = "Install it with: pip install 'tvm-compress[boards]'"

_RUNTIME = Path(__file__).parent / "runtime"
_PAGE = 4096
_EXCEPTION_BKPT = 7
_EBREAK = bytes.fromhex("73001000")
# The system control space. Nothing of it acts here; the start-up code only switches the FPU on.
_SYSTEM_CONTROL = (0xE000E000, _PAGE)
_SYS_OPEN, _SYS_CLOSE, _SYS_WRITE, _SYS_READ = 0x01, 0x02, 0x05, 0x06
_SYS_EXIT, _SYS_EXIT_EXTENDED = 0x18, 0x20
_WRITE_MODES = range(4, 8)


def available() -> bool:
    """Whether unicorn is installed."""
    return importlib.util.find_spec("unicorn") is not None


def _unicorn() -> Any:
    try:
        return importlib.import_module("unicorn")
    except ImportError as error:
        raise MissingToolError(f"The emulator unicorn is not installed. {HOW_TO_GET}.") from error


@dataclass
class _Semihost:
    """The host's side of the semihosting calls, with files in memory."""

    files: dict[str, bytes]
    written: dict[str, bytearray] = field(default_factory=dict)
    handles: dict[int, tuple[str, bool]] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)
    exit_code: int | None = None

    def call(self, machine: Any, operation: int, block: int) -> int:
        """Do one call; the result goes to the register that the operation came in."""

        def words(count: int) -> tuple[int, ...]:
            return struct.unpack(f"<{count}I", bytes(machine.mem_read(block, 4 * count)))

        if operation == _SYS_OPEN:
            address, mode, length = words(3)
            return self._open(bytes(machine.mem_read(address, length)).decode(), mode)
        if operation == _SYS_WRITE:
            handle, address, length = words(3)
            if handle not in self.handles or not self.handles[handle][1]:
                return length
            self.written[self.handles[handle][0]] += machine.mem_read(address, length)
            return 0
        if operation == _SYS_READ:
            handle, address, length = words(3)
            if handle not in self.handles or self.handles[handle][1]:
                return length
            start = self.positions[handle]
            piece = self.files[self.handles[handle][0]][start : start + length]
            machine.mem_write(address, piece)
            self.positions[handle] += len(piece)
            return length - len(piece)
        if operation == _SYS_CLOSE:
            return 0 if self.handles.pop(words(1)[0], None) else -1
        if operation == _SYS_EXIT_EXTENDED:
            self.exit_code = words(2)[1]
        elif operation == _SYS_EXIT:
            # The 32-bit call has no code: only "the application ended" or an error.
            self.exit_code = 0 if block == 0x20026 else 1
        else:
            raise CompressError(
                f"The firmware made the semihosting call 0x{operation:02x}, which the emulator "
                "does not have. Use open, close, read, write and exit, or run it on QEMU."
            )
        machine.emu_stop()
        return 0

    def _open(self, name: str, mode: int) -> int:
        writing = mode in _WRITE_MODES
        if not writing and name not in self.files:
            return -1
        handle = max(self.positions, default=0) + 1
        if writing:
            self.written[name] = bytearray()
        self.handles[handle] = (name, writing)
        self.positions[handle] = 0
        return handle


class _Counter(ctypes.Structure):
    """As ``struct layer_counter`` in runtime/layer_counter.h."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("halfwords", ctypes.c_uint64),
        ("owner_count", ctypes.c_uint64),
        ("owners", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("end", ctypes.c_uint64),
        ("unknown", ctypes.c_uint64),
        ("current", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class _Counting:
    """The hooks in C, their arrays and their place in a unicorn engine."""

    def __init__(self, unicorn: Any, machine: Any, code: CodeMap) -> None:
        halfwords = len(code.owners)
        shape = (PLANES, code.owner_count, halfwords + 1)
        self.counts: NDArray[np.int64] = np.zeros(shape, np.int64)
        self._owners = np.ascontiguousarray(code.owners, np.uint16)
        self._state = _Counter(
            base=code.base,
            halfwords=halfwords,
            owner_count=code.owner_count,
            owners=self._owners.ctypes.data,
            counts=self.counts.ctypes.data,
            current=OUTSIDE,
        )
        library = host_library(_RUNTIME / "count_hook.c", (_RUNTIME / "layer_counter.h",))
        self._library = ctypes.CDLL(str(library))
        self._hook(unicorn, machine, unicorn.UC_HOOK_BLOCK, self._library.count_hook_block, 1, 0)
        for index in np.flatnonzero(code.watched):
            at = code.base + 2 * int(index)
            self._hook(
                unicorn, machine, unicorn.UC_HOOK_CODE, self._library.count_hook_pass, at, at
            )

    def _hook(
        self, unicorn: Any, machine: Any, kind: int, function: Any, first: int, last: int
    ) -> None:
        """Have ``function`` called from ``first`` to ``last``; everywhere where last < first."""
        handle = ctypes.c_size_t()
        # Python's own binding would wrap the callback in Python; the C library takes it as it is.
        binding = importlib.import_module("unicorn.unicorn_py3.unicorn")
        status = binding.uclib.uc_hook_add(
            machine._uch,
            ctypes.byref(handle),
            kind,
            ctypes.cast(function, ctypes.c_void_p),
            ctypes.cast(ctypes.pointer(self._state), ctypes.c_void_p),
            ctypes.c_uint64(first),
            ctypes.c_uint64(last),
        )
        if status != unicorn.UC_ERR_OK:
            raise CompressError(
                f"Unicorn refused the counting hook (error {status}). "
                "Install the version of unicorn that tvm-compress pins."
            )

    @property
    def unknown_blocks(self) -> int:
        """Blocks that ran outside the code map."""
        return int(self._state.unknown)


@dataclass(frozen=True)
class _Core:
    """What a board's core is to unicorn, and how its code makes a semihosting call.

    ``operation`` and ``block`` are the registers with the arguments.
    """

    machine: Any
    pc: int
    sp: int
    operation: int
    block: int


def _core(unicorn: Any, board: Board) -> _Core:
    if board.isa == "riscv":
        riscv = importlib.import_module("unicorn.riscv_const")
        machine = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV32)
        machine.ctl_set_cpu_model(riscv.UC_CPU_RISCV32_ANY)
        registers = (riscv.UC_RISCV_REG_PC, riscv.UC_RISCV_REG_SP)
        arguments = (riscv.UC_RISCV_REG_A0, riscv.UC_RISCV_REG_A1)
        return _Core(machine, *registers, *arguments)
    arm = importlib.import_module("unicorn.arm_const")
    machine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
    machine.ctl_set_cpu_model(getattr(arm, f"UC_CPU_ARM_{board.cpu.upper().replace('-', '_')}"))
    registers = (arm.UC_ARM_REG_PC, arm.UC_ARM_REG_SP)
    return _Core(machine, *registers, arm.UC_ARM_REG_R0, arm.UC_ARM_REG_R1)


def _map(machine: Any, board: Board) -> None:
    """Map the board's memories; those that touch or share a page become one."""
    pieces = [(r.origin, r.length) for r in (*board.flash_regions, *board.ram_regions)]
    if board.isa == "arm":
        pieces.append(_SYSTEM_CONTROL)
    mapped: list[list[int]] = []
    for origin, length in sorted(pieces):
        start = origin // _PAGE * _PAGE
        stop = -(-(origin + length) // _PAGE) * _PAGE
        if mapped and start <= mapped[-1][1]:
            mapped[-1][1] = max(mapped[-1][1], stop)
        else:
            mapped.append([start, stop])
    for start, stop in mapped:
        machine.mem_map(start, stop - start)


def run(
    elf: Elf,
    board: Board,
    files: dict[str, bytes],
    code: CodeMap | None = None,
    timeout_s: float = 600.0,
) -> Execution:
    """Run a firmware from reset to its exit call.

    Args:
        elf: the linked firmware.
        board: its memories are mapped, nothing else is.
        files: what the firmware can open for reading.
        code: counts what runs by the owners of this map; without it nothing is counted and the
            code runs at full speed.
        timeout_s: seconds until a firmware that does not end is stopped.

    Raises:
        MissingToolError: unicorn is not installed.
        CompressError: the firmware left its memory or did not end in time.
    """
    unicorn = _unicorn()
    core = _core(unicorn, board)
    machine = core.machine
    _map(machine, board)
    for segment in elf.segments:
        machine.mem_write(segment.physical, segment.data)
    semihost = _Semihost(files)
    failure: list[Exception] = []

    def call(step: int) -> int:
        """Do the call that stands at the program counter; give the address behind it."""
        pc = int(machine.reg_read(core.pc))
        operation, block = machine.reg_read(core.operation), machine.reg_read(core.block)
        result = semihost.call(machine, operation, block)
        machine.reg_write(core.operation, result & 0xFFFFFFFF)
        return pc + step

    def interrupt(_: Any, number: int, __: object) -> None:
        # An exception must not pass through the C code of unicorn: it is kept and raised later.
        try:
            if board.isa != "arm" or number != _EXCEPTION_BKPT:
                raise CompressError(
                    f"The processor took exception {number} in "
                    f"{elf.function_at(machine.reg_read(core.pc))}. Report the model as a bug."
                )
            machine.reg_write(core.pc, call(2) | 1)
        except Exception as error:
            failure.append(error)
            machine.emu_stop()

    machine.hook_add(unicorn.UC_HOOK_INTR, interrupt)
    counting = _Counting(unicorn, machine, code) if code is not None else None
    start = board.flash.origin
    if board.isa == "arm":
        stack, reset = struct.unpack("<II", bytes(machine.mem_read(board.flash.origin, 8)))
        machine.reg_write(core.sp, stack)
        start = reset | 1
    while True:
        try:
            machine.emu_start(start, 0xFFFFFFFE, timeout=int(timeout_s * 1e6))
        except unicorn.UcError as error:
            pc = machine.reg_read(core.pc)
            # Unicorn ends at an EBREAK, as at an instruction that it does not know.
            if error.errno == unicorn.UC_ERR_INSN_INVALID and machine.mem_read(pc, 4) == _EBREAK:
                start = call(4)
                if semihost.exit_code is None:
                    continue
                break
            raise CompressError(
                f"The processor faulted in {elf.function_at(pc)}: {error}. The code touched memory "
                f"that the board {board.name} does not have, or its stack overflowed. Report the "
                "model as a bug."
            ) from error
        break
    if failure:
        raise failure[0]
    if semihost.exit_code is None:
        raise CompressError(
            f"The firmware did not end within {timeout_s:g} s on unicorn; it was stopped in "
            f"{elf.function_at(machine.reg_read(core.pc))}. "
            "Give fewer samples at a time or a longer timeout."
        )
    if counting:
        check_blocks(counting.unknown_blocks)
    written = {name: bytes(data) for name, data in semihost.written.items()}
    return Execution(semihost.exit_code, written, counting.counts if counting else None)
