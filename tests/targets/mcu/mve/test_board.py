"""The board with a Cortex-M55: its description, both compilers, the emulator and its counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.targets.mcu.mve.test_convolution import TOOLS
from tests.targets.mcu.tools import board_with, functions, tiny, tiny_input
from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.boards import get_board
from tvm_compress.targets.mcu.firmware import link_firmware
from tvm_compress.targets.mcu.toolchain import find_toolchain

BOARD = get_board("mps3-an547")
BOARD_FILE = Path(__file__).parents[4] / "targets" / "mcu" / "boards" / "mps3-an547.toml"


def test_extensions_go_with_the_core() -> None:
    assert (BOARD.has_mve, BOARD.has_dsp) == (True, False)
    m4 = get_board("cortex-m4")
    assert (m4.has_mve, m4.has_dsp) == (False, True)
    assert not board_with(cpu="cortex-m3", fpu="none").has_dsp


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fpv5-d16", "fpv5-sp-d16", 'a cortex-m55 has another FPU; set fpu = "fpv5-d16"'),
        ("cortex-m55", "cortex-m33", 'a cortex-m33 has another FPU; set fpu = "fpv5-sp-d16"'),
        ("stack_bytes", "vectors = 0\nstack_bytes", "vectors lies in flash or ram; leave it out"),
        ('["qemu"]', '["unicorn"]', 'unicorn knows no cortex-m55; set emulators = \\["qemu"\\]'),
    ],
)
def test_a_core_that_does_not_exist_is_told(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = BOARD_FILE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(OptionError, match=words):
        get_board(path)


@pytest.mark.qemu
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("make", [tiny, functions])
def test_floats_are_those_of_the_cortex_m4(make: type, tool: str, tmp_path: Path) -> None:
    model, toolchain = make(), find_toolchain(tool)
    x = tiny_input(20)[:, : model.inputs[0].shape[0]]
    outputs = [
        link_firmware(model, get_board(name), tmp_path / name, toolchain).run({"x": x}, "qemu")["y"]
        for name in ("mps3-an547", "mps2-an386")
    ]
    assert outputs[0].tobytes() == outputs[1].tobytes()


@pytest.mark.qemu
@pytest.mark.parametrize("tool", TOOLS)
def test_a_firmware_may_lie_elsewhere_than_its_vectors(tool: str, tmp_path: Path) -> None:
    text = BOARD_FILE.read_text(encoding="utf-8")
    for old, new in (
        ("stack_bytes", "vectors = 0\nstack_bytes"),
        ("origin = 0x00000000", "origin = 0x60000000"),
        ("origin = 0x20000000", "origin = 0x21000000"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = tmp_path / "elsewhere.toml"
    path.write_text(text, encoding="utf-8")
    x = {"x": tiny_input(3)}
    outputs = [
        link_firmware(tiny(), get_board(board), tmp_path, find_toolchain(tool)).run(x)["y"]
        for board in (path, "mps3-an547")
    ]
    assert outputs[0].tobytes() == outputs[1].tobytes()


@pytest.mark.qemu
@pytest.mark.parametrize("tool", TOOLS)
def test_instructions_are_counted_and_repeat(tool: str, tmp_path: Path) -> None:
    firmware = link_firmware(tiny(), BOARD, tmp_path, find_toolchain(tool))
    x = {"x": tiny_input(1)}
    first, again = firmware.profile(x), firmware.profile(x)
    assert first == again
    # The table of model cycles is the Cortex-M4's.
    assert first.model_cycles is None
    # 96 products, four at a time in vectors or one by one.
    assert 24 < first.layers[1].instructions < 3000
    for layer in first.layers:
        assert sum(layer.mix.values()) == layer.instructions
