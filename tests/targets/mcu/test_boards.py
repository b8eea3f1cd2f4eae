from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.targets.mcu.tools import board_with
from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.boards import Board, Region, get_board, limit_board, list_boards

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
    assert set(names) == {
        *("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33"),
        *("mps2-an385", "mps2-an386", "mps2-an500", "mps2-an505", "mps2-an521", "mps3-an547"),
        *("lm3s6965evb", "riscv32-virt"),
        *("nucleo_l4r5zi", "nrf5340dk", "stm32f746g_disco", "nucleo_h743zi"),
    }
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
        OptionError,
        match=r"The board 'arduino' is not known\. The known boards are cortex-m0, .*\.toml",
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
        ('cpu = "cortex-m4"', 'cpu = "z80"', "cpu: Input should be 'cortex-m0'"),
        ('cpu = "cortex-m4"', 'cpu = "cortex-m3"', 'a cortex-m3 has no FPU; set fpu = "none"'),
        ("fpv4-sp-d16", "fpv5-sp-d16", 'a cortex-m4 has another FPU; set fpu = "fpv4-sp-d16"'),
        ("fpu", "dsp = true\nfpu", "dsp is optional on a cortex-m33 alone"),
        ("[flash]", "[[extra_ram]]\norigin = 0x2000fffc\nlength = 64\n[flash]", "overlap"),
        ("[flash]", "[uart]\nkind = 'z80'\naddress = 0\n[flash]", "uart.kind: Input should be"),
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


KIB = 1024


@pytest.mark.parametrize(
    ("name", "cpu", "flash", "ram"),
    [
        ("nucleo_l4r5zi", "cortex-m4", [2048], [640]),
        ("nrf5340dk", "cortex-m33", [1024], [512]),
        ("stm32f746g_disco", "cortex-m7", [1024], [320]),
        ("nucleo_h743zi", "cortex-m7", [2048], [512, 288, 128, 64]),
        ("lm3s6965evb", "cortex-m3", [256], [64]),
    ],
)
def test_real_boards_have_the_sizes_of_their_data_sheets(
    name: str, cpu: str, flash: list[int], ram: list[int]
) -> None:
    board = get_board(name)
    assert board.cpu == cpu
    assert [region.length for region in board.flash_regions] == [size * KIB for size in flash]
    assert [region.length for region in board.ram_regions] == [size * KIB for size in ram]


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("cortex-m0", ()),
        ("cortex-m3", ()),
        ("cortex-m4", ("fpu", "dsp")),
        ("cortex-m7", ("fpu", "dsp")),
        ("cortex-m33", ("fpu", "dsp")),
        ("mps2-an521", ()),
        ("mps3-an547", ("fpu", "mve")),
        ("riscv32-virt", ("fpu",)),
    ],
)
def test_features_are_what_kernels_may_use(name: str, features: tuple[str, ...]) -> None:
    assert get_board(name).features == features
    assert get_board(name).isa == ("riscv" if name == "riscv32-virt" else "arm")


@pytest.mark.qemu
def test_qemu_has_the_machines_that_the_boards_name() -> None:
    listed = subprocess.run(
        ["qemu-system-arm", "-M", "help"], capture_output=True, text=True, check=True
    ).stdout
    machines = {line.split()[0] for line in listed.splitlines() if line.strip()}
    named = {b.qemu_machine for b in list_boards() if "qemu" in b.emulators and b.isa == "arm"}
    assert len(named) == 7
    assert named <= machines


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("mps2-an368", "mps2-an386"),
        ("mps2/an386", "mps2-an386"),
        ("MPS3_AN547", "mps3-an547"),
        ("cortexm4", "cortex-m4"),
        ("nucleo_l4r5z", "nucleo_l4r5zi"),
    ],
)
def test_a_wrong_name_is_told_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(OptionError) as caught:
        get_board(wrong)
    assert str(caught.value).startswith(
        f"The board {wrong!r} is not known. The nearest names are {near}"
    )
    assert "tvm-compress boards lists all" in str(caught.value)


# ---- limits --------------------------------------------------------------------------------------


def test_without_limits_a_board_is_itself() -> None:
    board = get_board("mps2-an386")
    assert limit_board(board) is board
    assert get_board(board) is board
    assert board.title == "mps2-an386"


def test_a_board_takes_another_ones_sizes_and_keeps_its_own_places() -> None:
    board = limit_board(get_board("mps2-an386"), "nucleo_l4r5zi")
    assert (board.flash.origin, board.flash.length) == (0, 2048 * KIB)
    assert (board.ram.origin, board.ram.length) == (0x20000000, 640 * KIB)
    assert (board.extra_flash, board.extra_ram) == ((), ())
    assert (board.stack_bytes, board.cpu, board.uart) == (
        get_board("nucleo_l4r5zi").stack_bytes,
        "cortex-m4",
        get_board("mps2-an386").uart,
    )
    assert board.title == "mps2-an386 (as nucleo_l4r5zi)"


def test_several_regions_stay_several() -> None:
    board = limit_board(get_board("mps2-an500"), "nucleo_h743zi")
    assert [region.length // KIB for region in board.ram_regions] == [512, 288, 128, 64]


def test_limits_in_bytes_cut_the_regions_in_their_order() -> None:
    board = get_board("nucleo_h743zi")
    cut = limit_board(board, flash_limit=100_001, ram_limit=600 * KIB)
    assert [region.length for region in cut.flash_regions] == [100_000]
    assert [region.length // KIB for region in cut.ram_regions] == [512, 88]
    assert cut.title == (
        "nucleo_h743zi (limited to 100001 bytes of flash, limited to 614400 bytes of RAM)"
    )
    small = limit_board(get_board("mps2-an386"), ram_limit=16 * KIB)
    assert small.stack_bytes == 2 * KIB


@pytest.mark.parametrize("limit", [0, -4, 1023, True, 4096.0, "4096"])
@pytest.mark.parametrize("kind", ["flash", "ram"])
def test_a_limit_is_a_number_of_bytes(kind: str, limit: Any) -> None:
    with pytest.raises(OptionError) as caught:
        limit_board(get_board("cortex-m4"), **{f"{kind}_limit": limit})
    assert str(caught.value) == (
        f"The {kind} limit is {limit!r}; expected a whole number of bytes from 1024 on. Give the "
        "size of the memory, as 262144 for 256 KB."
    )


LENGTHS = st.lists(st.integers(64, 4096).map(lambda n: 4 * n), min_size=1, max_size=4)


def _board(flash: list[int], ram: list[int]) -> Board:
    starts = {"flash": (0x1000, flash), "ram": (0x2000_0000, ram)}
    changes: dict[str, Any] = {"stack_bytes": 64}
    for kind, (start, lengths) in starts.items():
        regions = [
            {"origin": start + i * 0x1_0000, "length": length} for i, length in enumerate(lengths)
        ]
        changes |= {kind: regions[0], f"extra_{kind}": regions[1:]}
    return board_with(**changes)


def _inside(inner: tuple[Region, ...], outer: tuple[Region, ...]) -> bool:
    return all(any(o.origin <= i.origin and i.end <= o.end for o in outer) for i in inner)


@given(own=st.tuples(LENGTHS, LENGTHS), other=st.tuples(LENGTHS, LENGTHS))
def test_a_limited_board_is_never_larger_than_either(
    own: tuple[list[int], list[int]], other: tuple[list[int], list[int]]
) -> None:
    mine, theirs = _board(*own), _board(*other)
    limited = limit_board(mine, theirs)
    for kind in ("flash_regions", "ram_regions"):
        have, want, got = (getattr(b, kind) for b in (mine, theirs, limited))
        assert _inside(got, have)
        assert got[0].origin == have[0].origin
        assert len(got) <= len(want)
        if len(got) == len(want):
            assert all(g.length <= w.length for g, w in zip(got, want, strict=True))
        if len(have) == 1:
            # One region of ours holds as much of theirs as it is long.
            total = sum(w.length for w in want)
            assert sum(g.length for g in got) == min(total, have[0].length)
    assert limit_board(mine, mine).ram_regions == mine.ram_regions


@given(own=LENGTHS, limit=st.integers(1024, 70_000))
def test_a_limit_in_bytes_is_met_exactly(own: list[int], limit: int) -> None:
    board = limit_board(_board(own, own), flash_limit=limit, ram_limit=limit)
    for regions in (board.flash_regions, board.ram_regions):
        assert sum(region.length for region in regions) == min(limit // 4 * 4, sum(own))
    assert 0 < board.stack_bytes <= max(board.ram.length // 8, 8)
