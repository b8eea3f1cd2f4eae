"""The user's own Zephyr tree: found by ``ZEPHYR_BASE``, asked for its boards, and built with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tvm_compress.errors import BudgetError, CompressError, MissingToolError, OptionError

__all__ = ["TOOLCHAINS", "Tree", "build_application", "find_tree", "toolchain_settings"]

TOOLCHAINS = ("zephyr", "gnuarmemb", "cross-compile")
_OLDEST = (3, 2)
_PROGRAMS = {"cmake": "cmake", "ninja": "ninja-build"}  # program: package of Debian and Ubuntu
_LOG = "configure.log"
_GCC = "arm-none-eabi-gcc"


@dataclass(frozen=True)
class Tree:
    """A Zephyr tree: its folder, and its version as (major, minor)."""

    base: Path
    version: tuple[int, int]

    @cached_property
    def boards(self) -> frozenset[str]:
        """The names of all boards, as this version spells them."""
        found = set()
        for path in self.base.glob("boards/**/*.yaml"):
            match = re.search(
                r"^identifier: *([\w@./-]+) *$", path.read_text("utf-8"), re.MULTILINE
            )
            if match:
                found.add(match[1])
        return frozenset(found)


def find_tree() -> Tree | None:
    """The tree that ``ZEPHYR_BASE`` names; None where it is not set.

    Raises:
        OptionError: it is no Zephyr tree, or one older than 3.2.
    """
    base = os.environ.get("ZEPHYR_BASE")
    if not base:
        return None
    folder = Path(base)
    try:
        text = (folder / "VERSION").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    numbers = dict(re.findall(r"^VERSION_(MAJOR|MINOR) *= *(\d+) *$", text, re.MULTILINE))
    if len(numbers) < 2 or not (folder / "share" / "zephyr-package").is_dir():
        raise OptionError(
            f"ZEPHYR_BASE is {base}, which is no Zephyr tree; expected the folder that holds "
            "VERSION, Kconfig.zephyr and share/zephyr-package. Set it to the folder zephyr of your "
            "workspace, or unset it to write the application without building it."
        )
    version = int(numbers["MAJOR"]), int(numbers["MINOR"])
    if version < _OLDEST:
        raise OptionError(
            f"ZEPHYR_BASE is {base}, which is Zephyr {version[0]}.{version[1]}; expected 3.2 or "
            "newer. Update the tree, or set ZEPHYR_BASE to another one."
        )
    return Tree(folder, version)


def toolchain_settings(preferred: str | None) -> dict[str, str]:
    """The variables of the environment by which Zephyr finds the toolchain.

    Args:
        preferred: one of :data:`TOOLCHAINS`; without it ``ZEPHYR_TOOLCHAIN_VARIANT`` where it is
            set, else Zephyr's own SDK where it is installed, else ``arm-none-eabi-gcc``.

    Raises:
        OptionError: the name is none of them.
        MissingToolError: it is not installed.
    """
    set_by_user = os.environ.get("ZEPHYR_TOOLCHAIN_VARIANT")
    chosen = preferred or set_by_user or ("zephyr" if _has_sdk() else "gnuarmemb")
    if preferred is not None and preferred not in TOOLCHAINS:
        raise OptionError(
            f"Zephyr's toolchain {preferred!r} is not known; expected one of "
            f"{', '.join(TOOLCHAINS)}. Another one is yours to choose by ZEPHYR_TOOLCHAIN_VARIANT."
        )
    settings = {"ZEPHYR_TOOLCHAIN_VARIANT": chosen}
    if chosen == "zephyr" and not _has_sdk():
        raise MissingToolError(
            "The toolchain zephyr needs Zephyr's SDK, which was not found. Set "
            "ZEPHYR_SDK_INSTALL_DIR to its folder, or use toolchain='gnuarmemb'."
        )
    if chosen == "gnuarmemb":
        folder = os.environ.get("GNUARMEMB_TOOLCHAIN_PATH")
        compiler = shutil.which(_GCC) if folder is None else str(Path(folder) / "bin" / _GCC)
        if compiler is None or not Path(compiler).exists():
            raise MissingToolError(_no_gcc("gnuarmemb", compiler or f"{_GCC} on PATH"))
        settings["GNUARMEMB_TOOLCHAIN_PATH"] = str(Path(compiler).parents[1])
    if chosen == "cross-compile":
        prefix = os.environ.get("CROSS_COMPILE")
        compiler = shutil.which(_GCC) if prefix is None else shutil.which(f"{prefix}gcc")
        if compiler is None:
            raise MissingToolError(_no_gcc("cross-compile", f"{prefix or 'arm-none-eabi-'}gcc"))
        settings["CROSS_COMPILE"] = compiler.removesuffix("gcc")
    return settings


def _has_sdk() -> bool:
    if os.environ.get("ZEPHYR_SDK_INSTALL_DIR"):
        return True
    # Where Zephyr's own search looks: CMake's registry of packages, and the usual folders.
    home = Path.home()
    return (home / ".cmake/packages/Zephyr-sdk").is_dir() or any(
        next(place.glob("zephyr-sdk-*"), None)
        for place in (home, home / ".local", home / ".local/opt", home / "bin", Path("/opt"))
    )


def _no_gcc(toolchain: str, what: str) -> str:
    return (
        f"The toolchain {toolchain} needs {what}, which was not found. Install it with: "
        "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi, or use another toolchain."
    )


def build_application(
    tree: Tree,
    application: Path,
    board: str,
    settings: Mapping[str, str],
    cmake_args: Sequence[str] = (),
) -> Path:
    """Configure and build an application in its folder ``build``; gives the ELF file.

    Args:
        tree: with what.
        application: the folder that holds its CMakeLists.txt.
        board: as the tree spells it.
        settings: what :func:`toolchain_settings` gives.
        cmake_args: further arguments of CMake's, such as ``-DPython3_EXECUTABLE=...``.

    Raises:
        MissingToolError: CMake, ninja or a Python package of Zephyr's is not installed, or the
            toolchain's newlib does not do.
        OptionError: the folder ``build`` holds something else.
        BudgetError: the application does not fit the board.
        CompressError: CMake or the compiler refused; the message has their own words.
    """
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise MissingToolError(
                f"{program} is not installed, and Zephyr is built with it. Install it with: "
                f"apt-get install {package}"
            )
    build = application / "build"
    if build.exists():
        if not (build / _LOG).exists() and any(build.iterdir()):
            raise OptionError(
                f"{build} is not a build folder of tvm-compress; expected none, or one that it "
                "made. Name another out_dir, or move the folder away."
            )
        # Configured from nothing each time: a folder of another board or tree is refused by Zephyr.
        shutil.rmtree(build)
    environment = os.environ | settings | {"ZEPHYR_BASE": str(tree.base)}
    configure = ["cmake", "-GNinja", "-S", str(application), "-B", str(build), f"-DBOARD={board}"]
    configure += [*_modules(tree, environment), *cmake_args]
    _step("Configuring", configure, environment, build / _LOG)
    _step("Building", ["ninja", "-C", str(build)], environment, build / "build.log")
    return build / "zephyr" / "zephyr.elf"


def _modules(tree: Tree, environment: Mapping[str, str]) -> list[str]:
    """Name the modules that Zephyr finds by west where there is no west.

    Arm cores need the headers of CMSIS, and without west Zephyr takes no module that it is not
    told of, the model neither.
    """
    if shutil.which("west") or environment.get("ZEPHYR_MODULES"):
        return []
    beside = tree.base.parent / "modules" / "hal"
    found = [beside / name for name in ("cmsis", "cmsis_6") if (beside / name).is_dir()]
    return [f"-DZEPHYR_MODULES={';'.join(map(str, found))}"] if found else []


def _step(what: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    log.write_text(done.stdout, encoding="utf-8")
    if not done.returncode:
        return
    over = re.findall(r"region [`'](\w+)' overflowed by (\d+) bytes", done.stdout)
    if over:
        regions = ", ".join(f"{region} by {count} bytes" for region, count in over)
        raise BudgetError(
            f"The application does not fit the board: it overflows {regions}. Compress the network "
            "further, choose a larger board, or lower stack_bytes where RAM is short."
        )
    package = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", done.stdout)
    if package:
        raise MissingToolError(
            f"Zephyr's scripts need the Python package {package[1]}, which is not installed for "
            f"the first python on PATH. Install it with: pip install -r "
            f"{environment['ZEPHYR_BASE']}/scripts/requirements-base.txt"
        )
    if "etargetable locking" in done.stdout:
        raise MissingToolError(
            "The toolchain's newlib was built without retargetable locking, which Zephyr needs. "
            "Use libc='minimal', or a toolchain with another newlib, such as Zephyr's SDK."
        )
    raise CompressError(
        f"{what} the Zephyr application failed with exit code {done.returncode}. Read the tool's "
        f"own words (all of them are in {log}) and mend the tree or the options:\n"
        f"{_complaint(done.stdout)}"
    )


def _complaint(output: str) -> str:
    """Give 20 lines from the first error on, without what tells of progress."""
    progress = re.compile(r"-- |\[\d+/\d+\] |: && ")
    lines = [line for line in output.splitlines() if line and not progress.match(line)]
    error = re.compile(r"\b[Ee]rror\b|undefined reference")
    first = next((i for i, line in enumerate(lines) if error.search(line)), max(len(lines) - 20, 0))
    return "\n".join(lines[first : first + 20])
