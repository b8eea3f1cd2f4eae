"""Every board runs the same networks to the same bytes, on every emulator that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_compress as tc
from tests.integer_nets import extremes, random_net
from tests.targets.mcu.tools import functions, tiny, tiny_expected, tiny_input
from tvm_compress.errors import CompressError, MissingToolError, OptionError
from tvm_compress.targets.mcu import emulator, qemu
from tvm_compress.targets.mcu.boards import get_board, list_boards
from tvm_compress.targets.mcu.engine import CodeMap
from tvm_compress.targets.mcu.firmware import link_firmware
from tvm_compress.targets.mcu.installed import emulators_of
from tvm_compress.targets.mcu.toolchain import GnuToolchain, ZigToolchain, find_toolchain
from tvm_compress.tensors import input_specs

BOARDS = {board.name: board for board in list_boards()}


@pytest.fixture(scope="module")
def kws(shared_data: Path) -> Any:
    """The keyword spotting network, two samples and what the reference makes of them."""
    mod = tc.load(shared_data / "mlperf_tiny" / "kws_dscnn_int8.tflite")
    shape = input_specs(mod)[0].shape[1:]
    x = np.random.default_rng(0).integers(-128, 128, (2, *shape)).astype(np.int8)
    return mod, x, tc.build(mod, "reference").run(x)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", BOARDS)
def test_kws_in_int8_gives_the_same_bytes_everywhere(name: str, kws: Any) -> None:
    mod, x, expected = kws
    engines = [tool.name for tool in emulators_of(BOARDS[name]) if tool.installed]
    if not engines:
        pytest.skip(f"No emulator of the board {name} is installed; install qemu-system-arm.")
    firmware = tc.build(mod, board=name)
    for engine in engines:
        outputs = firmware.run(x, engine=engine)
        assert {k: v.tobytes() for k, v in outputs.items()} == {
            k: v.tobytes() for k, v in expected.items()
        }, engine
    assert firmware.size.ram["stack"] < 1024


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("cortex-m0", "zig"),
        pytest.param("cortex-m0", "gnu", marks=pytest.mark.gnu),
        ("mps2-an521", "zig"),
        pytest.param("mps2-an521", "gnu", marks=pytest.mark.gnu),
        ("riscv32-virt", "zig"),
    ],
)
def test_floats_are_right_on_cores_with_and_without_an_fpu(
    name: str, tool: str, tmp_path: Path
) -> None:
    x = tiny_input(3)
    model = link_firmware(tiny(), get_board(name), tmp_path, find_toolchain(tool))
    assert abs(model.run({"x": x})["y"] - tiny_expected(x)).max() < 1e-5
    # sqrtf, expf and their like, to the bits of the Cortex-M4 of the same toolchain.
    here, there = (
        link_firmware(functions(), get_board(board), tmp_path / board, find_toolchain(tool))
        for board in (name, "cortex-m4")
    )
    pairs = tiny_input(3)[:, :2]
    assert here.run({"x": pairs})["y"].tobytes() == there.run({"x": pairs})["y"].tobytes()


def test_a_profile_on_risc_v_counts_and_gives_no_cycles(tmp_path: Path) -> None:
    firmware = link_firmware(tiny(), get_board("riscv32-virt"), tmp_path)
    profile = firmware.profile({"x": tiny_input(1)}, "unicorn")
    dispatch, dense, softmax = profile.layers
    # At least a load, a multiplication and an addition for each of 32 x 3 products.
    assert dense.instructions > 3 * 32 * 3
    assert dispatch.instructions > 0 and softmax.instructions > 3
    assert profile.model_cycles is None
    for layer in profile.layers:
        assert set(layer.mix) <= {"16-bit", "32-bit"}
        assert sum(layer.mix.values()) == layer.instructions
    if qemu.available("riscv"):
        assert firmware.profile({"x": tiny_input(1)}, "qemu").layers == profile.layers


def test_the_length_of_an_instruction_is_read_from_its_first_halfword() -> None:
    def wide(code: bytes, isa: Any) -> list[bool]:
        owners = np.zeros(len(code) // 2, np.uint16)
        return CodeMap(0, owners, 1, code, owners.astype(bool), isa).wide.tolist()

    # ebreak, c.nop; then bl and nop of Thumb-2.
    assert wide(bytes.fromhex("730010000100"), "riscv")[::2] == [True, False]
    assert wide(bytes.fromhex("00f000f800bf"), "arm")[::2] == [True, False]


@pytest.mark.parametrize("name", ["riscv32-virt", "cortex-m0"])
def test_a_fault_is_told(name: str, tmp_path: Path) -> None:
    model = tiny()
    text = model.files["tiny_layers.c"]
    fault = "int row, column;\n    *(volatile int *)0xE8000000u = 1;"
    model.files["tiny_layers.c"] = text.replace("int row, column;", fault)
    with pytest.raises(CompressError) as caught:
        link_firmware(model, get_board(name), tmp_path)
    message = str(caught.value)
    assert message.startswith("The processor faulted in tiny_layer_000_dense: ")
    assert f"memory that the board {name} does not have" in message


@pytest.mark.parametrize("tool", ["zig", pytest.param("gnu", marks=pytest.mark.gnu)])
def test_a_cortex_m0_is_given_aligned_words_alone(
    tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core would fault; unicorn does not, so every access is looked at."""
    unicorn = pytest.importorskip("unicorn")
    seen: set[tuple[int, int]] = set()
    real = emulator._core

    def watched(module: Any, board: Any) -> Any:
        core = real(module, board)

        def access(_: Any, __: int, address: int, size: int, ___: int, ____: object) -> None:
            seen.add((size, address % size))

        kinds = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE
        core.machine.hook_add(kinds, access)
        return core

    monkeypatch.setattr(emulator, "_core", watched)
    mod = random_net(4)
    artifact = tc.build(mod, board="cortex-m0", toolchain=tool)
    x = extremes(4, (5, 5, 3), 1)
    expected = tc.build(mod, "reference").run(x)
    outputs = artifact.run(x)
    assert {k: v.tobytes() for k, v in outputs.items()} == {
        k: v.tobytes() for k, v in expected.items()
    }
    assert {1, 4} <= {size for size, _ in seen}
    assert {rest for _, rest in seen} == {0}


def test_gnu_does_not_compile_for_risc_v() -> None:
    with pytest.raises(OptionError) as caught:
        GnuToolchain().command(get_board("riscv32-virt"))
    assert str(caught.value) == (
        "The toolchain gnu compiles for Arm alone, and the board riscv32-virt has a rv32imac. Use "
        "the toolchain zig. Install it with: pip install 'tvm-compress[boards]'."
    )


def test_a_missing_qemu_for_risc_v_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware = link_firmware(tiny(), get_board("riscv32-virt"), tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        MissingToolError, match=r"qemu-system-riscv32 is not inst.*apt-get install qemu-system-misc"
    ):
        firmware.run({"x": tiny_input(1)}, "qemu")


def test_compilers_are_told_what_a_core_lacks() -> None:
    def flags(name: str) -> tuple[str, str]:
        board = get_board(name)
        zig = next(f for f in ZigToolchain().command(board) if f.startswith("-mcpu="))
        return zig, GnuToolchain().command(board)[1]

    # A Cortex-M0 faults at words that are not aligned; the others may be given them.
    assert flags("cortex-m0") == ("-mcpu=cortex_m0", "-mcpu=cortex-m0")
    assert flags("mps2-an521") == ("-mcpu=cortex_m33-dsp-strict_align", "-mcpu=cortex-m33+nodsp")
    assert flags("mps2-an505")[0] == "-mcpu=cortex_m33+fp_armv8d16sp+dsp-strict_align"
