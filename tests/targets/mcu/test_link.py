"""Linker scripts with real sizes, and firmware whose constants or arena go to another region."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.targets.mcu.tools import TOOLCHAINS, board_with, heavy
from tvm_compress.errors import BudgetError, CompressError
from tvm_compress.targets.mcu import link
from tvm_compress.targets.mcu.boards import Region, get_board
from tvm_compress.targets.mcu.elf import read_elf
from tvm_compress.targets.mcu.firmware import link_firmware
from tvm_compress.targets.mcu.link import Placement, link_script
from tvm_compress.targets.mcu.toolchain import ToolchainName, find_toolchain


def _memory(script: str) -> dict[str, tuple[int, int]]:
    found = re.findall(r"(\w+) \(r\w*\) : ORIGIN = (\w+), LENGTH = (\w+)", script)
    return {name: (int(origin, 16), int(length, 16)) for name, origin, length in found}


def test_a_script_has_the_boards_sizes_and_keeps_the_stack_free() -> None:
    board = get_board("nucleo_l4r5zi")
    script = link_script(board, Placement())
    assert _memory(script) == {
        "FLASH": (0x08000000, 0x200000),
        "RAM": (0x20000000, 0xA0000 - board.stack_bytes),
    }
    assert "link_stack_top = 0x200a0000;" in script
    for alias in ("VECTORS", "CONSTANTS"):
        assert f'REGION_ALIAS("{alias}", FLASH)' in script
    assert 'REGION_ALIAS("ARENA", RAM)' in script
    assert _memory(link_script(board, None))["RAM"][1] > 0xA0000


def test_a_script_names_all_regions() -> None:
    script = link_script(get_board("nucleo_h743zi"), Placement(arena=2))
    assert set(_memory(script)) == {"FLASH", "RAM", "RAM_1", "RAM_2", "RAM_3"}
    assert 'REGION_ALIAS("ARENA", RAM_2)' in script


REGIONS = st.lists(st.integers(16, 4000).map(lambda n: 4 * n), min_size=1, max_size=4)


@given(total=st.integers(1, 20000), share=st.floats(0, 1), lengths=REGIONS)
def test_what_can_move_goes_where_the_least_is_too_much(
    total: int, share: float, lengths: list[int]
) -> None:
    movable = int(total * share)
    regions = [Region(origin=0x10000 * i, length=length) for i, length in enumerate(lengths)]
    best, excess = link._place(total, movable, regions)
    assert 0 <= best < len(lengths)
    rest = total - movable + 16
    fits_elsewhere = [i for i, n in enumerate(lengths) if i and movable <= n and rest <= lengths[0]]
    if total <= lengths[0]:
        assert (best, excess) == (0, 0)  # nothing moves without need
    elif fits_elsewhere:
        assert (best, excess) == (fits_elsewhere[0], 0)
    else:
        # So many bytes more in every region are enough, and one less is not.
        grown = [
            Region(origin=0x20000 * i, length=n + excess + 3 & ~3) for i, n in enumerate(lengths)
        ]
        assert excess > 0
        assert link._place(total, movable, grown)[1] == 0


def _board(**changes: Any) -> Any:
    regions = {
        "flash": {"origin": 0, "length": 65536},
        "ram": {"origin": 0x20000000, "length": 65536},
        "stack_bytes": 1024,
        "emulators": ("unicorn",),
    }
    return board_with(name="split", **(regions | changes))


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_an_arena_and_constants_go_where_there_is_room(name: ToolchainName, tmp_path: Path) -> None:
    # The arena has 20,000 bytes and the weights 10,000; both first regions are too small for them.
    board = _board(
        flash={"origin": 0, "length": 8192},
        extra_flash=[
            {"origin": 0x08000000, "length": 4096},
            {"origin": 0x10000000, "length": 16384},
        ],
        ram={"origin": 0x20000000, "length": 8192},
        extra_ram=[{"origin": 0x24000000, "length": 20480}],
    )
    tool = find_toolchain(name)
    there = link_firmware(heavy(), board, tmp_path / "there", tool)
    here = link_firmware(heavy(), _board(), tmp_path / "here", tool)
    at = {symbol.name: symbol.address for symbol in read_elf(there.elf).symbols}
    assert at["harness_arena"] == 0x24000000
    assert at["heavy_w_001"] >> 16 == 0x1000
    assert at["heavy_run"] < 8192
    assert there.size == here.size
    inputs = {"x": np.array([[3]], np.uint8)}
    assert there.run(inputs)["y"] == here.run(inputs)["y"]


def test_an_arena_that_fits_no_region_is_told(tmp_path: Path) -> None:
    board = _board(
        ram={"origin": 0x20000000, "length": 8192},
        extra_ram=[{"origin": 0x24000000, "length": 16384}],
    )
    with pytest.raises(BudgetError) as caught:
        link_firmware(heavy(), board, tmp_path)
    assert " bytes of RAM and the board split has 8192 and 16384: 3616 too many." in str(
        caught.value
    )


def test_other_words_of_a_linker_are_passed_on(tmp_path: Path) -> None:
    model = heavy()
    del model.files["heavy_layers.c"]
    with pytest.raises(CompressError, match="heavy_layer_000"):
        link_firmware(model, _board(), tmp_path)


@pytest.mark.qemu
@pytest.mark.parametrize("name", ["mps2-an385", "mps2-an386", "mps2-an500", "mps3-an547"])
def test_the_extra_ram_of_a_board_is_there(name: str, tmp_path: Path) -> None:
    board = get_board(name)
    changes = {"ram": {"origin": board.ram.origin, "length": 8192}, "stack_bytes": 1024}
    small = board.model_validate(board.model_dump() | changes)
    firmware = link_firmware(heavy(), small, tmp_path)
    at = {symbol.name: symbol.address for symbol in read_elf(firmware.elf).symbols}
    assert at["harness_arena"] == board.extra_ram[0].origin
    x = {"x": np.array([[3]], np.uint8)}
    expected = link_firmware(heavy(), board, tmp_path / "whole").run(x, "qemu")["y"]
    assert firmware.run(x, "qemu")["y"] == expected
