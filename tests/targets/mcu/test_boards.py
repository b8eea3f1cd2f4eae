from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.targets.mcu.tools import board_with
from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.boards import get_board, list_boards

VALID = """\
name = "mine"
description = "a board of the user's own"
cpu = "cortex-m4"
fpu = "fpv4-sp-d16"
stack_bytes = 4096
emulators = ["unicorn"]

[flash]
origin = 0x08000000
length = 0x00080000

[ram]
origin = 0x20000000
length = 0x00010000
"""


def test_the_list_is_sorted_and_every_board_is_found_by_its_name() -> None:
    boards = list_boards()
    names = [board.name for board in boards]
    assert names == sorted(names)
    assert {"cortex-m4", "mps2-an386", "nucleo_l4r5zi"} <= set(names)
    assert [get_board(name) for name in names] == list(boards)


def test_a_packaged_file_is_named_as_its_board() -> None:
    folder = Path(__file__).parents[3] / "targets" / "mcu" / "boards"
    assert {path.stem for path in folder.glob("*.toml")} == {board.name for board in list_boards()}


def test_the_nucleo_has_the_sizes_of_its_data_sheet() -> None:
    board = get_board("nucleo_l4r5zi")
    assert (board.flash.origin, board.flash.length) == (0x08000000, 2 * 1024 * 1024)
    assert (board.ram.origin, board.ram.length) == (0x20000000, 640 * 1024)
    assert (board.cpu, board.fpu) == ("cortex-m4", "fpv4-sp-d16")


def test_a_file_of_the_users_own_works(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(VALID, encoding="utf-8")
    board = get_board(path)
    assert board == get_board(str(path))
    assert board.name == "mine"
    assert board.ram.end == 0x20010000
    assert board.emulators == ("unicorn",)
    assert board.clock_hz is None


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        OptionError, match=r"The board 'arduino' is not known.*cortex-m4, mps2-an386.*\.toml"
    ):
        get_board("arduino")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"board file .*none\.toml cannot be read .*Give the"):
        get_board(tmp_path / "none.toml")


def test_a_file_that_is_no_toml_is_told(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(OptionError, match=r"broken\.toml is not TOML .*Mend that line"):
        get_board(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "mine"\n', "", "name: Field required"),
        ('cpu = "cortex-m4"', 'cpu = "z80"', "cpu: Input should be 'cortex-m3'"),
        ('cpu = "cortex-m4"', 'cpu = "cortex-m3"', 'a cortex-m3 has no FPU; set fpu = "none"'),
        ("fpv4-sp-d16", "fpv5-sp-d16", 'the FPU of a cortex-m4 is "fpv4-sp-d16"'),
        ("stack_bytes = 4096", "stack_bytes = -8", "stack_bytes: Input should be greater than 0"),
        ("stack_bytes = 4096", 'stack_bytes = "4k"', "stack_bytes: Input should be a valid int"),
        ("stack_bytes = 4096", "stack_bytes = 65536", "stack_bytes is not smaller than ram.length"),
        ("stack_bytes = 4096", "stack_bytes = 4096\nheap = 1", "heap: Extra inputs are not perm"),
        ('["unicorn"]', '["renode"]', "emulators.0: Input should be 'unicorn' or 'qemu'"),
        ('["unicorn"]', '["qemu"]', 'emulators names "qemu"; add qemu_machine'),
        ("origin = 0x08000000", "origin = 0x20008000", "flash and ram overlap"),
        ("origin = 0x20000000", "origin = 0xFFFFFFF0", "a region ends above 4 GiB"),
        ("length = 0x00010000", "length = 0", "ram.length: Input should be greater than 0"),
        ("length = 0x00010000", "length = 4098", "ram.length: Input should be a multiple of 4"),
    ],
)
def test_a_fault_in_a_file_is_told_with_its_place(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in VALID
    path = tmp_path / "mine.toml"
    path.write_text(VALID.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(OptionError, match=re.escape(words)) as caught:
        get_board(path)
    assert str(caught.value).startswith(f"The board file {path} does not describe a board: ")
    assert "Mend these entries" in str(caught.value)


def test_boards_are_values() -> None:
    assert board_with() == get_board("cortex-m4")
    assert board_with(stack_bytes=8) != get_board("cortex-m4")
