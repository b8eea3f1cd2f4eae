"""Cross compilers: zig from the Python package index, or arm-none-eabi-gcc for Cortex-M.

Both get the same C dialect and the same floating-point rules. ``-ffp-contract=off`` keeps a
multiplication and an addition apart, so that the host's C and the board agree bit for bit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tvm_compress.errors import CompressError, MissingToolError, OptionError
from tvm_compress.targets.mcu.boards import Board, Cpu, Fpu

__all__ = [
    "COMMON_FLAGS",
    "GnuToolchain",
    "Toolchain",
    "ToolchainName",
    "ZigToolchain",
    "available",
    "find_toolchain",
    "host_library",
    "how_to_get",
    "toolchains_of",
]

ToolchainName = Literal["zig", "gnu"]

COMMON_FLAGS = (
    "-std=c99",
    "-O2",
    "-fno-unroll-loops",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffunction-sections",
    "-fdata-sections",
    "-ffp-contract=off",
    # Without it sqrtf is VSQRT and a call that only sets errno, which nobody reads.
    "-fno-math-errno",
    "-fomit-frame-pointer",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-g0",
)

# LLVM's names of the FPUs; those of Arm with 16 double registers.
_ZIG_FPU: dict[Fpu, str] = {
    "none": "",
    "fpv4-sp-d16": "+vfp4d16sp",
    "fpv5-sp-d16": "+fp_armv8d16sp",
    "fpv5-d16": "+fp_armv8d16",
    "riscv-f": "+f",
}
_ZIG_CPU: dict[Cpu, str] = {
    "cortex-m0": "cortex_m0",
    "cortex-m3": "cortex_m3",
    "cortex-m4": "cortex_m4",
    "cortex-m7": "cortex_m7",
    "cortex-m33": "cortex_m33",
    "cortex-m55": "cortex_m55",
    "rv32imac": "generic_rv32+m+a+c",
}

_INSTALL_ZIG = "Install it with: pip install 'tvm-compress[boards]'"
_INSTALL_GNU = "Install it with: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"


class Toolchain(Protocol):
    """What builds a firmware out of C sources."""

    @property
    def name(self) -> ToolchainName:
        """The name that :func:`find_toolchain` knows it by."""

    def command(self, board: Board) -> list[str]:
        """The compiler and all flags that the board and the C dialect ask for."""

    def build(
        self,
        sources: Sequence[Path],
        include: Sequence[Path],
        script: Path,
        board: Board,
        out: Path,
    ) -> None:
        """Compile and link ``sources`` into the ELF file ``out``.

        Raises:
            CompressError: the compiler or the linker refused; its own words are in the message.
        """


def _execute(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        words = "\n".join(lines[:20])
        raise CompressError(
            f"{what} failed with exit code {done.returncode}. "
            f"Read the tool's own words and mend the C source or report it as a bug:\n{words}"
        )


def _build(
    command: list[str],
    sources: Sequence[Path],
    include: Sequence[Path],
    script: Path,
    out: Path,
    libraries: Sequence[str],
) -> None:
    _execute(
        [
            *command,
            *(f"-I{folder}" for folder in include),
            "-Wl,--gc-sections",
            "-Wl,-e,startup_reset",
            "-T",
            str(script),
            *(str(source) for source in sources),
            *libraries,
            "-o",
            str(out),
        ],
        f"Building {out.name} with {command[0] if '-m' not in command else 'zig'}",
    )


@dataclass(frozen=True)
class ZigToolchain:
    """Clang and lld from the package ``ziglang``.

    The target is "freestanding", so that nothing of an operating system is linked: compiler-rt
    brings memcpy and most of libm, ``runtime/libm.c`` the rest, and only the headers of musl are
    taken. (The target "linux-musl" brings all of libm, but compiles the whole C library first:
    half a minute for every CPU.)
    """

    @property
    def name(self) -> ToolchainName:
        """The name that :func:`find_toolchain` knows it by."""
        return "zig"

    def command(self, board: Board) -> list[str]:
        """The compiler and all flags that the board and the C dialect ask for."""
        headers = _zig_folder() / "lib" / "libc" / "include"
        family = "arm" if board.isa == "arm" else "riscv32"
        return [
            *_ZIG,
            "cc",
            *self._machine(board),
            "-isystem",
            str(headers / f"{family}-linux-musl"),
            "-isystem",
            str(headers / "generic-musl"),
            # zig adds -ffreestanding to this target, which makes a call of every four-byte memcpy
            # and of sqrtf; this takes it back.
            "-fhosted",
            *COMMON_FLAGS,
            # Gathering loads that clang makes of loops over channels-first maps read outside their
            # arrays (on QEMU 7.2).
            *(["-mllvm", "-enable-arm-maskedgatscat=false"] if board.has_mve else []),
            # Most flags say nothing to a file in assembly.
            "-Wno-unused-command-line-argument",
        ]

    def _machine(self, board: Board) -> list[str]:
        cpu = f"-mcpu={_ZIG_CPU[board.cpu]}{_ZIG_FPU[board.fpu]}"
        if board.isa == "riscv":
            # The ABI that passes floats in registers follows from the extension F.
            return ["-target", "riscv32-freestanding-none", cpu]
        abi = "eabi" if board.fpu == "none" else "eabihf"
        if board.has_mve:
            cpu += "+mve_fp+lob"
        if board.cpu == "cortex-m33":
            # Optional there, and LLVM's name of the core leaves it open to others.
            cpu += "+dsp" if board.has_dsp else "-dsp"
        if board.cpu != "cortex-m0":
            # This core alone faults at words and halfwords that are not aligned.
            cpu += "-strict_align"
        return ["-target", f"thumb-freestanding-{abi}", cpu]

    def build(
        self,
        sources: Sequence[Path],
        include: Sequence[Path],
        script: Path,
        board: Board,
        out: Path,
    ) -> None:
        """Compile and link ``sources`` into the ELF file ``out``.

        Raises:
            CompressError: the compiler or the linker refused; its own words are in the message.
        """
        _build(self.command(board), sources, include, script, out, ())


_ZIG = (sys.executable, "-m", "ziglang")


def _zig_folder() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise MissingToolError(f"The compiler zig is not installed. {_INSTALL_ZIG}.")
    return Path(spec.submodule_search_locations[0])


@dataclass(frozen=True)
class GnuToolchain:
    """arm-none-eabi-gcc with newlib, as distributions and Arm ship it."""

    @property
    def name(self) -> ToolchainName:
        """The name that :func:`find_toolchain` knows it by."""
        return "gnu"

    def command(self, board: Board) -> list[str]:
        """The compiler and all flags that the board and the C dialect ask for.

        Raises:
            OptionError: the board's core is none of Arm's.
        """
        if board.isa != "arm":
            raise OptionError(
                f"The toolchain gnu compiles for Arm alone, and the board {board.name} has a "
                f"{board.cpu}. Use the toolchain zig. {_INSTALL_ZIG}."
            )
        cpu = f"{board.cpu}+nodsp" if board.dsp is False else board.cpu
        fpu = ["-mfloat-abi=soft"]
        if board.fpu != "none":
            fpu = [f"-mfpu={board.fpu}", "-mfloat-abi=hard"]
        if board.has_mve:
            fpu = ["-mfloat-abi=hard"]  # -mcpu says which; -mfpu would take MVE away
        return ["arm-none-eabi-gcc", f"-mcpu={cpu}", "-mthumb", *fpu, *COMMON_FLAGS]

    def build(
        self,
        sources: Sequence[Path],
        include: Sequence[Path],
        script: Path,
        board: Board,
        out: Path,
    ) -> None:
        """Compile and link ``sources`` into the ELF file ``out``.

        Raises:
            CompressError: the compiler or the linker refused; its own words are in the message.
        """
        command = [*self.command(board), "-nostartfiles", "--specs=nano.specs"]
        _build(command, sources, include, script, out, ("-lm",))


def toolchains_of(board: Board) -> tuple[ToolchainName, ...]:
    """The toolchains that compile for a board, the default one first."""
    return ("zig", "gnu") if board.isa == "arm" else ("zig",)


def available(name: ToolchainName) -> bool:
    """Whether a toolchain is installed."""
    if name == "zig":
        return importlib.util.find_spec("ziglang") is not None
    return shutil.which("arm-none-eabi-gcc") is not None


def find_toolchain(preferred: str | None = None) -> Toolchain:
    """The toolchain of that name; without a name zig where it is installed, else GNU.

    Raises:
        OptionError: the name is neither "zig" nor "gnu".
        MissingToolError: it is not installed; the message says how to get it.
    """
    toolchains: dict[str, Toolchain] = {"zig": ZigToolchain(), "gnu": GnuToolchain()}
    if preferred is None:
        for toolchain in toolchains.values():
            if available(toolchain.name):
                return toolchain
        raise MissingToolError(
            "No compiler for microcontrollers is installed; zig or arm-none-eabi-gcc is needed. "
            f"{_INSTALL_ZIG}."
        )
    if preferred not in toolchains:
        raise OptionError(
            f"The toolchain {preferred!r} is not known. Choose one of {', '.join(toolchains)}."
        )
    chosen = toolchains[preferred]
    if not available(chosen.name):
        what = {"zig": "The compiler zig", "gnu": "The compiler arm-none-eabi-gcc"}[chosen.name]
        raise MissingToolError(f"{what} is not installed. {how_to_get(chosen.name)}.")
    return chosen


def how_to_get(name: ToolchainName) -> str:
    """What to do where a toolchain is missing: "Install it with: ..."."""
    return {"zig": _INSTALL_ZIG, "gnu": _INSTALL_GNU}[name]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tvm-compress"


def host_library(source: Path, headers: Sequence[Path] = (), defines: Sequence[str] = ()) -> Path:
    """Compile one C file into a shared library of this machine; cached by content.

    Args:
        source: the C file. Its own folder is on the include path.
        headers: the files that it includes; they are part of the cache's key.
        defines: macros, as "NAME=value".

    Raises:
        MissingToolError: neither zig nor a C compiler ``cc`` is installed.
        CompressError: the compiler refused.
    """
    if available("zig"):
        compiler: tuple[str, ...] = (*_ZIG, "cc")
    elif shutil.which("cc"):
        compiler = ("cc",)
    else:
        raise MissingToolError(f"No C compiler for this machine is installed. {_INSTALL_ZIG}.")
    flags = (
        *("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-g0", "-shared"),
        "-ffp-contract=off",
        *(f"-D{define}" for define in defines),
    )
    # A plugin takes the emulator's functions when it is loaded; macOS wants to be told so.
    link = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
    key = hashlib.sha256(repr((compiler, flags, link)).encode())
    for path in (source, *headers):
        key.update(path.read_bytes())
    folder = _cache_folder()
    library = folder / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # Written aside, then renamed: another process never sees half a library.
        aside = Path(scratch) / library.name
        _execute(
            [*compiler, *flags, *link, str(source), "-o", str(aside)],
            f"Compiling {source.name} for this machine",
        )
        os.replace(aside, library)
    return library
