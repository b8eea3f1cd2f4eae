from __future__ import annotations

import pytest

from tests.targets.mcu.zephyr.fakes import NEW, OLD
from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.boards import list_boards
from tvm_compress.targets.mcu.zephyr.boards import (
    BOARDS,
    ZephyrBoard,
    board_in_tree,
    get_zephyr_board,
    plain,
)


def test_no_name_means_two_boards() -> None:
    names = [plain(name) for board in BOARDS for name in board.names]
    assert len(names) == len(set(names))


def test_a_board_that_the_target_c_knows_has_the_same_kernels_here() -> None:
    known = {board.name: board for board in list_boards()}
    shared = [(known[n], b) for b in BOARDS for n in b.names if n in known]
    assert {ours.name for ours, _ in shared} >= {"mps2-an386", "mps3-an547", "nucleo_l4r5zi"}
    for ours, board in shared:
        assert board.kernels == ("mve" if ours.has_mve else "dsp" if ours.has_dsp else "c")
        assert board.machine == ours.qemu_machine


@pytest.mark.parametrize(
    ("name", "machine", "kernels"),
    [
        ("mps2_an385", "mps2-an385", "c"),
        ("mps2/an385", "mps2-an385", "c"),
        ("mps2-an385", "mps2-an385", "c"),
        ("mps2_an521", "mps2-an521", "c"),
        ("mps2/an521/cpu0", "mps2-an521", "c"),
        ("mps3_an547", "mps3-an547", "mve"),
        ("mps3/an547", "mps3-an547", "mve"),
        ("mps3/corstone300/an547", "mps3-an547", "mve"),
        ("mps2/an386", "mps2-an386", "dsp"),
        ("nrf5340dk@2.0.0/nrf5340/cpuapp", None, "dsp"),
        ("some_board/of/mine", None, "c"),
    ],
)
def test_a_board_is_known_by_all_its_names(name: str, machine: str | None, kernels: str) -> None:
    board = get_zephyr_board(name)
    assert (board.machine, board.kernels) == (machine, kernels)


@pytest.mark.parametrize("name", ["", "a board", "x;y", "board.toml", "../x", "a//b", "-Dx", "é"])
def test_what_cannot_be_a_board_is_refused(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        get_zephyr_board(name)
    assert str(caught.value) == (
        f"{name!r} is no name of a board of Zephyr's; expected one such as mps2_an385 or "
        "mps2/an385. List those of your tree with: west boards."
    )


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("mps2_an385", "mps2_an385", "mps2/an385"),
        ("mps2/an385", "mps2_an385", "mps2/an385"),
        ("mps2-an385", "mps2_an385", "mps2/an385"),
        ("mps2_an521", "mps2_an521", "mps2/an521/cpu0"),
        ("mps2/an521/cpu0", "mps2_an521", "mps2/an521/cpu0"),
        ("mps3_an547", "mps3_an547", "mps3/corstone300/an547"),
        ("mps3-an547", "mps3_an547", "mps3/corstone300/an547"),
        ("nrf52840dk/nrf52840", "nrf52840dk_nrf52840", "nrf52840dk/nrf52840"),
        ("nrf52840dk_nrf52840", "nrf52840dk_nrf52840", "nrf52840dk/nrf52840"),
    ],
)
def test_each_tree_gets_its_own_spelling(name: str, old: str, new: str) -> None:
    board = get_zephyr_board(name)
    assert board_in_tree(name, board, OLD) == old
    assert board_in_tree(name, board, NEW) == new


def test_a_revision_stays_as_it_was_given() -> None:
    name = "nrf52840dk@1.2.0/nrf52840"
    assert board_in_tree(name, get_zephyr_board(name), NEW) == name


def test_a_board_that_the_tree_lacks_is_told_the_nearest() -> None:
    with pytest.raises(OptionError) as caught:
        board_in_tree("mps2_an386", get_zephyr_board("mps2_an386"), OLD)
    message = str(caught.value)
    assert message.startswith("The Zephyr tree has no board mps2_an386. The nearest are mps2_an385")
    assert message.endswith(
        "Choose one that `west boards` lists, or set ZEPHYR_BASE to a tree that has it."
    )
    with pytest.raises(OptionError) as caught:
        board_in_tree("qqq", ZephyrBoard(("qqq",)), OLD)
    assert str(caught.value).startswith("The Zephyr tree has no board qqq. Choose one that")
