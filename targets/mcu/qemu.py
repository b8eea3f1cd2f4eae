"""Runs a firmware on QEMU's emulated board, as a process of its own that always ends."""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tvm_compress.errors import CompressError, MissingToolError, OptionError
from tvm_compress.targets.mcu.boards import Board, Isa
from tvm_compress.targets.mcu.engine import PLANES, CodeMap, Execution, check_blocks
from tvm_compress.targets.mcu.toolchain import host_library

__all__ = ["PROGRAMS", "available", "how_to_get", "run"]

# The program of QEMU that has the machines of a family, and Debian's package that brings it.
PROGRAMS: dict[Isa, tuple[str, str]] = {
    "arm": ("qemu-system-arm", "qemu-system-arm"),
    "riscv": ("qemu-system-riscv32", "qemu-system-misc"),
}
_RUNTIME = Path(__file__).parent / "runtime"


def available(isa: Isa = "arm") -> bool:
    """Whether QEMU for boards of that family is installed."""
    return shutil.which(PROGRAMS[isa][0]) is not None


def how_to_get(isa: Isa) -> str:
    """What to do where QEMU for boards of that family is missing: "Install it with: ..."."""
    return f"Install it with: apt-get install {PROGRAMS[isa][1]}"


@functools.cache
def _plugin(program: str) -> Path:
    """The counting plugin, compiled for the version of QEMU that is installed."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    major = re.search(r"version (\d+)", done.stdout)
    # From QEMU 9 on, plugins of interface version 1 are refused; earlier ones know no other.
    version = 2 if major and int(major[1]) >= 9 else 1
    return host_library(
        _RUNTIME / "count_plugin.c",
        (_RUNTIME / "layer_counter.h",),
        (f"QEMU_PLUGIN_VERSION={version}",),
    )


def run(
    elf: Path,
    board: Board,
    files: dict[str, bytes],
    code: CodeMap | None = None,
    timeout_s: float = 600.0,
) -> Execution:
    """Run a firmware from reset to its exit call.

    Args:
        elf: the linked firmware.
        board: must name a machine of QEMU.
        files: what the firmware can open for reading; they lie in a temporary folder.
        code: counts what runs by the owners of this map; without it nothing is counted.
        timeout_s: seconds until a firmware that does not end is stopped.

    Raises:
        MissingToolError: QEMU is not installed.
        OptionError: QEMU has no such board.
        CompressError: QEMU could not run the firmware, or it did not end in time.
    """
    program = PROGRAMS[board.isa][0]
    if not available(board.isa):
        raise MissingToolError(
            f"The emulator {program} is not installed. "
            f'{how_to_get(board.isa)}, or use engine="unicorn".'
        )
    if "qemu" not in board.emulators or board.qemu_machine is None:
        raise OptionError(
            f"QEMU has no machine for the board {board.name}. "
            'Build for mps2-an386, or use engine="unicorn".'
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "files"
        folder.mkdir()
        map_file, count_file = Path(scratch) / "map", Path(scratch) / "counts"
        for name, data in files.items():
            (folder / name).write_bytes(data)
        command = [
            program,
            "-M",
            board.qemu_machine,
            # Or QEMU puts a supervisor of its own in front, which starts elsewhere.
            *(["-bios", "none"] if board.isa == "riscv" else []),
            "-nographic",
            "-monitor",
            "none",
            "-serial",
            "none",
            "-semihosting-config",
            "enable=on,target=native",
            "-kernel",
            str(elf.resolve()),
        ]
        if code is not None:
            head = struct.pack("<3Q", code.base, len(code.owners), code.owner_count)
            flags = code.watched.astype(np.uint8) + 2 * code.wide.astype(np.uint8)
            map_file.write_bytes(head + code.owners.astype("<u2").tobytes() + flags.tobytes())
            command += ["-plugin", f"{_plugin(program)},map={map_file},out={count_file}"]
        try:
            # subprocess.run kills and awaits the process when the time is over or on Ctrl-C.
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CompressError(
                f"The firmware did not end within {timeout_s:g} s on QEMU and was stopped. "
                "Give fewer samples at a time or a longer timeout."
            ) from error
        if done.returncode < 0 or done.returncode == 1:
            words = done.stderr.decode("utf-8", "replace").strip()[:500]
            raise CompressError(
                f"QEMU ended with {done.returncode} before the firmware did: {words!r}. "
                "Check the installation of QEMU."
            )
        written = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.name not in files
        }
        counts = None
        if code is not None:
            if not count_file.exists():
                raise CompressError(
                    "QEMU ran the firmware and its plugin counted nothing. Install a QEMU that is "
                    'built with TCG plugins (Debian\'s is), or use engine="unicorn".'
                )
            pairs = np.frombuffer(count_file.read_bytes(), np.int64).reshape(-1, 2)
            check_blocks(int(pairs[0, 0]))
            counts = np.zeros((PLANES, code.owner_count, len(code.owners) + 1), np.int64)
            counts.flat[pairs[1:, 0]] = pairs[1:, 1]
    return Execution(done.returncode, written, counts)
