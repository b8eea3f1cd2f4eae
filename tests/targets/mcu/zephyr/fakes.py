"""A tree and programs that stand in for Zephyr, CMake, ninja, the compiler and QEMU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

OLD = ("mps2_an385", "mps2_an521", "mps3_an547", "nrf52840dk_nrf52840", "native_posix")
NEW = ("mps2/an385", "mps2/an521/cpu0", "mps3/corstone300/an547", "nrf52840dk/nrf52840")
VARIABLES = (
    "ZEPHYR_BASE",
    "ZEPHYR_TOOLCHAIN_VARIANT",
    "ZEPHYR_SDK_INSTALL_DIR",
    "ZEPHYR_MODULES",
    "GNUARMEMB_TOOLCHAIN_PATH",
    "CROSS_COMPILE",
)


def make_tree(folder: Path, version: tuple[int, int] = (3, 3), boards: Sequence[str] = OLD) -> Path:
    """Make a folder that passes for a Zephyr tree with these boards."""
    (folder / "share" / "zephyr-package").mkdir(parents=True)
    major, minor = version
    (folder / "VERSION").write_text(f"VERSION_MAJOR = {major}\nVERSION_MINOR = {minor}\n")
    for index, board in enumerate(boards):
        place = folder / "boards" / "arm" / f"board{index}"
        place.mkdir(parents=True)
        (place / "board.yaml").write_text(f"identifier: {board}\nname: A board\ntype: mcu\n")
    return folder


def make_program(folder: Path, name: str, body: str) -> Path:
    """Put a program written for the shell into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


class World:
    """An environment without Zephyr and with no program but those that a test puts there."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.programs, self._patch = folder, folder / "bin", patch
        self.programs.mkdir()
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("PATH", str(self.programs))
        patch.setenv("HOME", str(folder / "home"))

    def set(self, name: str, value: object) -> None:
        """Set a variable of the environment."""
        self._patch.setenv(name, str(value))

    def program(self, name: str, body: str = "exit 0") -> Path:
        """Put a program on PATH; it finds the ordinary programs of the shell."""
        return make_program(self.programs, name, f"PATH=/usr/bin:/bin\n{body}")

    def tree(self, version: tuple[int, int] = (3, 3), boards: Sequence[str] = OLD) -> Path:
        """Make a tree and let ZEPHYR_BASE name it."""
        tree = make_tree(self.folder / "workspace" / "zephyr", version, boards)
        self.set("ZEPHYR_BASE", tree)
        return tree
