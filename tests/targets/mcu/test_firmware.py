from __future__ import annotations

import io
import re
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.targets.mcu.tools import (
    ENGINES,
    TOOLCHAINS,
    board_with,
    heavy,
    tiny,
    tiny_expected,
    tiny_input,
    trouble,
)
from tvm_compress.errors import (
    BudgetError,
    CompressError,
    DataError,
    MissingToolError,
    ModelFormatError,
    OptionError,
)
from tvm_compress.targets.mcu import firmware
from tvm_compress.targets.mcu.boards import EmulatorName, get_board
from tvm_compress.targets.mcu.elf import read_elf
from tvm_compress.targets.mcu.firmware import Firmware, Layer, TensorSpec, link_firmware
from tvm_compress.targets.mcu.toolchain import ToolchainName, find_toolchain

BOARD = get_board("cortex-m4")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    return link_firmware(tiny(), BOARD, tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("board", ["cortex-m4", "mps2-an386", "nucleo_l4r5zi"])
@pytest.mark.parametrize("name", TOOLCHAINS)
def test_a_batch_equals_double_precision(name: ToolchainName, board: str, tmp_path: Path) -> None:
    built = link_firmware(tiny(), get_board(board), tmp_path / "new", find_toolchain(name))
    assert built.elf == tmp_path / "new" / "tiny.elf"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tiny.elf"]
    x = tiny_input(100)
    y = built.run({"x": x})["y"]
    assert y.shape == (100, 3)
    assert y.dtype == np.float32
    assert np.abs(y - tiny_expected(x)).max() < 2e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sample_does_not_depend_on_its_batch(small: Firmware, engine: EmulatorName) -> None:
    x = tiny_input(7)
    together = small.run({"x": x}, engine)["y"]
    alone = [small.run({"x": x[i : i + 1]}, engine)["y"] for i in range(7)]
    assert together.tobytes() == np.concatenate(alone).tobytes()


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_the_parts_of_the_size_are_those_of_the_model(name: ToolchainName, tmp_path: Path) -> None:
    size = link_firmware(tiny(), BOARD, tmp_path, find_toolchain(name)).size
    assert size.flash.weights == 96 * 4
    assert (size.ram.arena, size.ram.inputs, size.ram.outputs) == (48, 32 * 4, 3 * 4)
    assert size.flash_bytes == sum(asdict(size.flash).values())
    assert size.ram_bytes == sum(asdict(size.ram).values())
    assert min(*asdict(size.flash).values(), *asdict(size.ram).values()) > 0


@pytest.mark.gnu
@pytest.mark.parametrize("name", ["zig", "gnu"])
@pytest.mark.parametrize("board", ["cortex-m4", "nucleo_l4r5zi"])
def test_flash_and_ram_are_what_binutils_say(
    name: ToolchainName, board: str, tmp_path: Path
) -> None:
    built = link_firmware(tiny(), get_board(board), tmp_path, find_toolchain(name))
    image = tmp_path / "image.bin"
    subprocess.run(
        ["arm-none-eabi-objcopy", "-O", "binary", str(built.elf), str(image)], check=True
    )
    assert built.size.flash_bytes == image.stat().st_size
    words = subprocess.run(
        ["arm-none-eabi-size", "-A", str(built.elf)], capture_output=True, text=True, check=True
    ).stdout
    sections = {
        row[0]: int(row[1])
        for line in words.splitlines()
        if len(row := line.split()) == 3 and row[1].isdigit()
    }
    ram = asdict(built.size.ram)
    stack = ram.pop("stack")
    assert sections[".arena"] == ram["arena"] == 48
    assert sections[".arena"] + sections[".data"] + sections[".bss"] == sum(ram.values())
    assert 0 < stack < 200
    assert built.size.flash.weights + built.size.flash.constants == sections[".rodata"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TOOLCHAINS)
def test_the_stack_follows_an_array_on_it(
    name: ToolchainName, engine: EmulatorName, tmp_path: Path
) -> None:
    board = board_with(emulators=(engine,))
    tool = find_toolchain(name)
    stacks = {
        count: link_firmware(trouble(count), board, tmp_path, tool).size.ram.stack
        for count in (64, 1064, 5064)
    }
    assert 64 <= stacks[64] < 128
    # To the alignment of a frame and a register or two.
    assert abs(stacks[1064] - stacks[64] - 1000) <= 16
    assert abs(stacks[5064] - stacks[64] - 5000) <= 16


def test_a_board_that_nothing_emulates_keeps_its_reserved_stack(tmp_path: Path) -> None:
    built = link_firmware(tiny(), board_with(emulators=(), stack_bytes=2048), tmp_path)
    assert built.size.ram.stack == 2048
    with pytest.raises(OptionError, match=r"runs on no emulator\. Add emulators"):
        built.run({"x": tiny_input(1)})


def test_a_profile_names_the_layers_and_sums_to_the_whole(small: Firmware) -> None:
    x = tiny_input(1)
    profile = small.profile({"x": x})
    assert [(layer.name, layer.kind, layer.symbol) for layer in profile.layers] == [
        ("dispatch", "dispatch", "tiny_run"),
        ("fc", "dense", "tiny_layer_000_dense"),
        ("prob", "softmax", "tiny_layer_001_softmax"),
    ]
    assert profile.instructions == sum(layer.instructions for layer in profile.layers)
    # 96 multiplications and additions, and three calls of expf that count for the softmax.
    assert 192 < profile.layers[1].instructions < 2000
    assert 90 < profile.layers[2].instructions < 400
    assert small.profile({"x": x[0]}) == profile


def _budget_board(flash: int, ram: int, stack: int = 1024) -> Any:
    return board_with(
        name="small",
        flash={"origin": 0, "length": flash},
        ram={"origin": 0x20000000, "length": ram},
        stack_bytes=stack,
        emulators=("unicorn",),
    )


def test_too_much_flash_is_told_with_the_three_largest_layers(tmp_path: Path) -> None:
    whole = link_firmware(heavy(), BOARD, tmp_path).size.flash_bytes
    enough = -(-whole // 4) * 4
    link_firmware(heavy(), _budget_board(enough, 32768), tmp_path / "fits")
    with pytest.raises(BudgetError) as caught:
        link_firmware(heavy(), _budget_board(enough - 800, 32768), tmp_path / "out")
    message = str(caught.value)
    too_many = whole - (enough - 800)
    assert f"needs {whole} bytes of flash and the board small has {enough - 800}" in message
    assert f": {too_many} too many" in message
    named = re.findall(r"(layer\d) \(table\) (\d+) bytes", message)
    assert [name for name, _ in named] == ["layer1", "layer3", "layer2"]
    for (_, size), weights in zip(named, (4000, 3000, 2000), strict=True):
        assert weights < int(size) < weights + 64
    assert message.endswith("Compress these further or choose a larger board.")
    assert not (tmp_path / "out").exists()


def test_too_much_ram_is_told_with_its_parts(tmp_path: Path) -> None:
    ram = link_firmware(heavy(), BOARD, tmp_path).size.ram
    needed = ram.arena + ram.inputs + ram.outputs + ram.static + 1024
    enough = -(-needed // 8) * 8
    link_firmware(heavy(), _budget_board(65536, enough), tmp_path / "fits")
    with pytest.raises(BudgetError) as caught:
        link_firmware(heavy(), _budget_board(65536, enough - 8), tmp_path / "out")
    message = str(caught.value)
    assert f"needs {needed} bytes of RAM and the board small has {enough - 8}" in message
    assert f": {needed - (enough - 8)} too many. They are 20000 for the arena, 1 for" in message
    assert "1024 kept for the stack. The layers that hold most of the arena are " in message
    assert not (tmp_path / "out").exists()


def test_too_deep_a_stack_is_told(tmp_path: Path) -> None:
    link_firmware(trouble(800), _budget_board(65536, 65536), tmp_path / "fits")
    with pytest.raises(BudgetError, match=r"uses 1\d\d\d bytes of stack and the board small keeps"):
        link_firmware(trouble(1100), _budget_board(65536, 65536), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_build_keeps_the_firmware_of_the_last_one(tmp_path: Path) -> None:
    built = link_firmware(heavy(), BOARD, tmp_path)
    before = built.elf.read_bytes()
    with pytest.raises(BudgetError):
        link_firmware(heavy(), _budget_board(1024, 65536), tmp_path)
    assert built.elf.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["heavy.elf"]


def test_a_profile_of_two_samples_is_told(small: Firmware) -> None:
    with pytest.raises(DataError, match="profile takes one sample; 2 were given"):
        small.profile({"x": tiny_input(2)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "2tiny"}, "model's name '2tiny' is no C identifier"),
        ({"name": "other"}, "hold no other.h, which declares other_run"),
        ({"outputs": ()}, "has 1 inputs and 0 outputs"),
        ({"inputs": (TensorSpec("x", (32,), "float16"),)}, "x of tiny has dtype float16; the har"),
        ({"files": {"tiny.h": "", "../up.c": ""}}, r"hold a file '\.\./up\.c'; expected plain"),
        ({"files": {"tiny.h": "", "notes.txt": ""}}, "hold a file 'notes.txt'; expected plain"),
        ({"layers": (Layer("tiny_layer_9", "x", "y"),)}, "no function tiny_layer_9, so its"),
    ],
)
def test_an_inconsistent_description_is_told(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=words):
        link_firmware(replace(tiny(), **changes), BOARD, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_arena_that_disagrees_with_the_header_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="harness_arena_agrees"):
        link_firmware(replace(tiny(), arena_bytes=44), BOARD, tmp_path / "out")


def test_without_a_compiler_there_is_no_firmware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingToolError("No compiler.")

    monkeypatch.setattr(firmware, "find_toolchain", missing)
    with pytest.raises(MissingToolError):
        link_firmware(tiny(), BOARD, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_elf_is_told(small: Firmware, tmp_path: Path) -> None:
    path = tmp_path / "x.elf"
    with pytest.raises(ModelFormatError, match=r"x\.elf cannot be read .*Build it again"):
        read_elf(path)
    path.write_bytes(b"MZ")
    with pytest.raises(ModelFormatError, match=r"x\.elf is not a 32-bit little-endian ELF"):
        read_elf(path)
    data = small.elf.read_bytes()
    for keep in (21, 60, len(data) // 2):
        path.write_bytes(data[:keep])
        with pytest.raises(ModelFormatError, match=r"x\.elf is damaged .*Build the firmware again"):
            read_elf(path)


def test_the_elf_reader_agrees_with_pyelftools(small: Firmware) -> None:
    elffile = pytest.importorskip("elftools.elf.elffile")
    theirs = elffile.ELFFile(io.BytesIO(small.elf.read_bytes()))
    ours = read_elf(small.elf)
    loads = [part for part in theirs.iter_segments() if part["p_type"] == "PT_LOAD"]
    assert [
        (part.physical, part.virtual, part.data, part.memory_bytes) for part in ours.segments
    ] == [(part["p_paddr"], part["p_vaddr"], part.data(), part["p_memsz"]) for part in loads]
    assert [(part.name, part.address, part.size) for part in ours.sections] == [
        (part.name, part["sh_addr"], part["sh_size"])
        for part in theirs.iter_sections()
        if part["sh_flags"] & 2
    ]
    wanted = {"STT_FUNC": "function", "STT_OBJECT": "object"}
    assert [(part.name, part.address, part.size, part.kind) for part in ours.symbols] == [
        (part.name, part["st_value"] & (~1 if kind == "function" else ~0), part["st_size"], kind)
        for part in theirs.get_section_by_name(".symtab").iter_symbols()
        if (kind := wanted.get(part["st_info"]["type"]))
    ]


def test_functions_are_found_by_address(small: Firmware) -> None:
    elf = read_elf(small.elf)
    symbol = next(symbol for symbol in elf.symbols if symbol.name == "tiny_run")
    assert elf.function_at(symbol.address + symbol.size - 1) == "tiny_run"
    assert elf.function_at(0xE0000000) == "0xe0000000"
