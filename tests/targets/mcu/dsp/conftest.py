"""What the tests of kernels in assembly share."""

from __future__ import annotations

import shutil

import pytest

from tvm_compress.targets.mcu.boards import get_board
from tvm_compress.targets.mcu.toolchain import find_toolchain


@pytest.fixture(scope="session")
def both() -> list[list[str]]:
    """The commands of the assemblers that are installed: zig's, and GNU's where it is."""
    names = ["zig", "gnu"] if shutil.which("arm-none-eabi-gcc") else ["zig"]
    board = get_board("cortex-m4")
    return [[*find_toolchain(name).command(board), "-c"] for name in names]
