from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tvm_compress.targets.mcu.boards import get_board
from tvm_compress.targets.mcu.installed import Tool, compilers_of, emulators_of

PIP = "Install it with: pip install 'tvm-compress[boards]'"


def test_where_nothing_is_installed_each_tool_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    gnu = "Install it with: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"
    arm = get_board("mps2-an386")
    assert compilers_of(arm) == (Tool("zig", False, PIP), Tool("gnu", False, gnu))
    assert emulators_of(arm) == (
        Tool("unicorn", False, PIP),
        Tool("qemu", False, "Install it with: apt-get install qemu-system-arm"),
    )
    riscv = get_board("riscv32-virt")
    assert compilers_of(riscv) == (Tool("zig", False, PIP),)
    assert emulators_of(riscv)[1].remedy == "Install it with: apt-get install qemu-system-misc"
    assert [tool.name for tool in emulators_of(get_board("mps3-an547"))] == ["qemu"]


def test_what_is_on_the_path_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("qemu-system-riscv32", "arm-none-eabi-gcc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert emulators_of(get_board("riscv32-virt"))[1] == Tool("qemu", True, "")
    # Another program of QEMU has the machines of Arm.
    assert not emulators_of(get_board("mps2-an386"))[1].installed
    assert compilers_of(get_board("mps2-an386"))[1] == Tool("gnu", True, "")
