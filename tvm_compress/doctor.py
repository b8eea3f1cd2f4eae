"""What is installed, what is missing and how to get it; nothing is imported to find out."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

__all__ = ["Finding", "State", "diagnose", "satisfies"]

State = Literal["ok", "missing", "wrong version"]


@dataclass(frozen=True)
class Finding:
    """One thing that the package uses.

    Attributes:
        name: the package on the package index or the program.
        purpose: what it is used for.
        required: whether nothing works without it.
        version: the installed version, or None.
        wanted: the versions that are asked for (``==1.2``), or an empty string for any.
        state: whether it can be used.
        remedy: what to do where it cannot, else an empty string.
    """

    name: str
    purpose: str
    required: bool
    version: str | None
    wanted: str
    state: State
    remedy: str


@dataclass(frozen=True)
class _Package:
    names: Sequence[str]  # the first that is installed counts: they are the same module
    purpose: str
    extra: str = ""  # of tvm-compress; empty for what is always needed
    pip: str = ""  # where no extra brings it


_PACKAGES = (
    _Package(("apache-tvm",), "compiler"),
    _Package(("apache-tvm-ffi",), "compiler"),
    _Package(("numpy",), "arrays"),
    _Package(("onnx",), "ONNX models"),
    _Package(("tflite",), ".tflite models"),
    _Package(("torch",), "fine-tuning, torch.export models", "train"),
    _Package(("ziglang",), "cross compiler", "boards"),
    _Package(("unicorn",), "in-process emulator", "boards"),
    _Package(("capstone",), "disassembler of profiles", "boards"),
    _Package(("xgboost", "xgboost-cpu"), "cost model of tuning", "tune-cpu"),
    _Package(("onnxruntime",), "judge in the tests", pip="onnxruntime"),
)


@dataclass(frozen=True)
class _Program:
    name: str
    purpose: str
    package: str  # of Debian and Ubuntu
    brew: str


_PROGRAMS = (
    _Program("qemu-system-arm", "emulator of whole boards", "qemu-system-arm", "qemu"),
    _Program("qemu-system-riscv32", "emulator of RISC-V boards", "qemu-system-misc", "qemu"),
    _Program(
        "arm-none-eabi-gcc",
        "cross compiler",
        "gcc-arm-none-eabi libnewlib-arm-none-eabi",
        "--cask gcc-arm-embedded",
    ),
)


def diagnose() -> tuple[Finding, ...]:
    """Look at Python, the packages and the programs; programs are asked for their version."""
    wanted = _wanted()
    return (
        _python(),
        *(_package(package, wanted) for package in _PACKAGES),
        *(_program(program) for program in _PROGRAMS),
    )


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version fits ``==``, ``>=`` and ``<`` clauses, by its numbers.

    >>> satisfies("0.27.0.post1", "==0.27.0.post1"), satisfies("1.26.4", ">=2.0,<3")
    (True, False)
    """

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(n) for n in re.findall(r"\d+", text.partition("+")[0]))

    have = numbers(version)
    for operator, clause in re.findall(r"(==|>=|<)\s*([\w.]+)", wanted):
        bound = numbers(clause)
        length = max(len(have), len(bound))
        left, right = (n + (0,) * (length - len(n)) for n in (have, bound))
        if not {"==": left == right, ">=": left >= right, "<": left < right}[operator]:
            return False
    return True


def _wanted() -> dict[str, str]:
    """Give the versions that our own metadata asks for, by package: the pins are kept there."""
    try:
        requirements = metadata.requires("tvm-compress") or []
    except metadata.PackageNotFoundError:  # a checkout on the path that nobody installed
        return {}
    found: dict[str, str] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[[^]]*])?\s*([^;]*)", requirement)
        if match:
            found.setdefault(match[1].lower(), match[2].strip(" ()"))
    return found


def _python() -> Finding:
    try:
        wanted = metadata.metadata("tvm-compress")["Requires-Python"]
    except metadata.PackageNotFoundError:
        wanted = ""
    version = platform.python_version()
    fits = satisfies(version, wanted)
    remedy = "" if fits else f"install Python {wanted} and make a new environment with it"
    state: State = "ok" if fits else "wrong version"
    return Finding("python", "everything", True, version, wanted, state, remedy)


def _package(package: _Package, wanted_by_name: dict[str, str]) -> Finding:
    name, version = package.names[0], None
    for candidate in package.names:
        try:
            name, version = candidate, metadata.version(candidate)
            break
        except metadata.PackageNotFoundError:
            continue
    wanted = wanted_by_name.get(name, "")
    required = not (package.extra or package.pip)
    what = package.pip or (f"tvm-compress[{package.extra}]" if package.extra else f"{name}{wanted}")
    state: State = "ok"
    if version is None:
        state, name = "missing", package.names[0]
    elif not satisfies(version, wanted):
        state = "wrong version"
        what = f"{name}{wanted}"
    remedy = "" if state == "ok" else f"pip install '{what}'"
    return Finding(name, package.purpose, required, version, wanted, state, remedy)


def _program(program: _Program) -> Finding:
    path = shutil.which(program.name)
    if path is None:
        remedy = f"apt-get install {program.package}, or brew install {program.brew}"
        return Finding(program.name, program.purpose, False, None, "", "missing", remedy)
    version = _asked_version(path)
    if version is None:
        remedy = f"{path} --version fails: install {program.package} again"
        return Finding(program.name, program.purpose, False, None, "", "missing", remedy)
    return Finding(program.name, program.purpose, False, version, "", "ok", "")


def _asked_version(path: str) -> str | None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # The number behind the last parenthesis: gcc names its package and that one's version first.
    first = next(iter(done.stdout.splitlines()), "")
    numbers = re.findall(r"\d+(?:\.\d+)+", re.sub(r"\([^)]*\)", "", first))
    return numbers[0] if numbers and done.returncode == 0 else None
