from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.targets.mcu.tools import (
    ENGINES,
    TOOLCHAINS,
    functions,
    tiny,
    tiny_input,
    trouble,
)
from tvm_compress.errors import CompressError, MissingToolError
from tvm_compress.targets.mcu import emulator
from tvm_compress.targets.mcu.boards import Board, EmulatorName, get_board
from tvm_compress.targets.mcu.elf import Elf, read_elf
from tvm_compress.targets.mcu.engine import (
    DISPATCH,
    EDGES,
    FIRST_LAYER,
    INHERIT,
    OUTSIDE,
    PLANES,
    code_map,
)
from tvm_compress.targets.mcu.firmware import Firmware, ModelSources, link_firmware
from tvm_compress.targets.mcu.toolchain import ToolchainName, find_toolchain

BOARD = get_board("cortex-m4")


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    return link_firmware(trouble(), BOARD, tmp_path_factory.mktemp("trouble"))


def _request(number: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"request": np.array([[number]], np.float32)}


def test_only_one_module_imports_unicorn() -> None:
    root = Path(__file__).parents[3]
    folders = ("tvm_compress", "passes", "targets")
    users = {
        path.name
        for folder in folders
        for path in (root / folder).rglob("*.py")
        if "import unicorn" in (text := path.read_text(encoding="utf-8"))
        or "from unicorn" in text
        or '"unicorn.' in text
    }
    assert users == {"emulator.py"}


def test_a_missing_unicorn_says_how_to_get_it(
    troubled: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "unicorn", None)
    with pytest.raises(MissingToolError, match=r"unicorn is not installed.*\[boards\]"):
        troubled.run(_request(0), "unicorn")


def test_a_fault_names_the_function(troubled: Firmware) -> None:
    with pytest.raises(CompressError, match=r"faulted in trouble_layer_000_act: .*cortex-m4 does"):
        troubled.run(_request(1), "unicorn")


def test_an_endless_loop_is_stopped(troubled: Firmware) -> None:
    with pytest.raises(
        CompressError, match=r"did not end within 0\.2 s on unicorn; .* in trouble_layer_000_act"
    ):
        troubled.run(_request(2), "unicorn", timeout_s=0.2)


def test_an_unknown_instruction_names_the_function(troubled: Firmware) -> None:
    with pytest.raises(CompressError, match=r"trouble_layer_000_act.*Report the model as a bug"):
        troubled.run(_request(4), "unicorn")


def test_an_unknown_semihosting_call_is_told(troubled: Firmware) -> None:
    with pytest.raises(CompressError, match=r"semihosting call 0x11, which the emulator does not"):
        troubled.run(_request(5), "unicorn")


def test_without_input_the_firmware_says_so(troubled: Firmware) -> None:
    execution = emulator.run(read_elf(troubled.elf), BOARD, {})
    assert execution.exit_code == 4
    short = {"input.bin": b"\x01\x00\x00\x00\x00"}
    assert emulator.run(read_elf(troubled.elf), BOARD, short).exit_code == 4


def test_an_output_that_cannot_be_opened_or_written_is_told(
    troubled: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = emulator._Semihost._open
    files = {"input.bin": b"\x01\x00\x00\x00\x00\x00\x00\x00"}
    assert emulator.run(read_elf(troubled.elf), BOARD, files).exit_code == 0
    monkeypatch.setattr(
        emulator._Semihost,
        "_open",
        lambda self, name, mode: -1 if name == "output.bin" else real(self, name, mode),
    )
    assert emulator.run(read_elf(troubled.elf), BOARD, files).exit_code == 5
    # Opened for reading instead: every write is refused.
    files["output.bin"] = b""
    monkeypatch.setattr(emulator._Semihost, "_open", lambda self, name, mode: real(self, name, 1))
    assert emulator.run(read_elf(troubled.elf), BOARD, files).exit_code == 5


def _trace(firmware: Firmware, data: bytes, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The address of every executed instruction, by unicorn's own hook for instructions."""
    unicorn: Any = importlib.import_module("unicorn")
    trace: list[int] = []

    real = emulator._map

    # Where the memories are mapped the core is chosen, so hooks are accepted.
    def map_and_trace(machine: Any, board: Board) -> None:
        real(machine, board)
        machine.hook_add(
            unicorn.UC_HOOK_CODE, lambda _uc, address, _size, _data: trace.append(address)
        )

    with monkeypatch.context() as patch:
        patch.setattr(emulator, "_map", map_and_trace)
        emulator.run(read_elf(firmware.elf), firmware.board, {"input.bin": data})
    return trace


def _conditional(elf: Elf, address: int) -> list[int]:
    """The addresses of the instructions that an IT instruction at ``address`` makes conditional.

    Source: Armv7-M Architecture Reference Manual, A7.7.38: 1011 1111 condition mask, where the
    lowest set bit of the mask ends the block.
    """
    segment = next(part for part in elf.segments if 0 <= address - part.virtual < len(part.data))

    def halfword(at: int) -> int:
        return int.from_bytes(segment.data[at - segment.virtual :][:2], "little")

    if halfword(address) >> 8 != 0xBF or not halfword(address) & 15:
        return []
    mask = halfword(address) & 15
    found = []
    at = address + 2
    for _ in range(4 - ((mask & -mask).bit_length() - 1)):
        found.append(at)
        at += 4 if halfword(at) >> 11 >= 0b11101 else 2
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TOOLCHAINS)
@pytest.mark.parametrize("make", [tiny, functions])
def test_counts_equal_a_trace_of_every_instruction(
    make: Any,
    name: ToolchainName,
    engine: EmulatorName,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: ModelSources = make()
    firmware = link_firmware(model, BOARD, tmp_path, find_toolchain(name))
    x = np.abs(tiny_input(1))[:, : model.inputs[0].shape[0]]
    trace = _trace(firmware, b"\x01\x00\x00\x00" + x.tobytes(), monkeypatch)

    # The oracle is a machine with a call stack, where the counter looks at owners of code alone.
    elf = read_elf(firmware.elf)
    ranges = {
        symbol.name: range(symbol.address, symbol.address + symbol.size)
        for symbol in elf.symbols
        if symbol.kind == "function"
    }
    layers = [layer.symbol for layer in model.layers]
    begin = trace.index(ranges[model.run_symbol].start)
    end = next(
        index
        for index, address in enumerate(trace)
        if index > begin and address in ranges["harness_measured_run"]
    )
    expected = dict.fromkeys([model.run_symbol, *layers], 0)
    current = model.run_symbol
    conditional: list[int] = []
    total = 0
    for address in trace[begin:end]:
        if address in ranges[model.run_symbol]:
            current = model.run_symbol
        for layer in layers:
            if address == ranges[layer].start:
                current = layer
        # The hook is not called for an instruction that an IT block skips. The processor fetches
        # it and spends a cycle, and it counts: a block counts with its IT, at once.
        if address in conditional:
            continue
        conditional = _conditional(elf, address)
        expected[current] += 1 + len(conditional)
        total += 1 + len(conditional)

    profile = firmware.profile({"x": x}, engine)
    assert {layer.symbol: layer.instructions for layer in profile.layers} == expected
    assert profile.instructions == total > 100
    assert profile.engine == engine


def test_counting_changes_no_output_and_counts_every_sample(tmp_path: Path) -> None:
    model = tiny()
    firmware = link_firmware(model, BOARD, tmp_path)
    elf = read_elf(firmware.elf)
    code = code_map(elf, model.run_symbol, tuple(layer.symbol for layer in model.layers))
    one = tiny_input(1)
    runs = []
    for samples in (1, 3):
        data = samples.to_bytes(4, "little") + one.tobytes() * samples
        counted = emulator.run(elf, BOARD, {"input.bin": data}, code)
        assert counted.files == emulator.run(elf, BOARD, {"input.bin": data}).files
        assert counted.counts is not None
        runs.append(counted.counts)
    assert runs[0].shape == (PLANES, code.owner_count, len(code.owners) + 1)
    assert runs[0][EDGES, DISPATCH:].any(axis=1).all()
    assert (runs[1][:, DISPATCH:] == 3 * runs[0][:, DISPATCH:]).all()
    assert not runs[0][:, [INHERIT, OUTSIDE]].any()


def test_the_code_map_names_the_owner_of_every_function(tmp_path: Path) -> None:
    model = tiny()
    elf = read_elf(link_firmware(model, BOARD, tmp_path).elf)
    code = code_map(elf, model.run_symbol, tuple(layer.symbol for layer in model.layers))
    expected = {
        "tiny_run": DISPATCH,
        "tiny_layer_000_dense": FIRST_LAYER,
        "tiny_layer_001_softmax": FIRST_LAYER + 1,
        "expf": INHERIT,
        "main": OUTSIDE,
        "harness_measured_run": OUTSIDE,
        "startup_reset": OUTSIDE,
        "semihost_exit": OUTSIDE,
    }
    addresses = {symbol.name: symbol.address for symbol in elf.symbols}
    assert {
        name: int(code.owners[(addresses[name] - code.base) // 2]) for name in expected
    } == expected
    assert code.owner_count == FIRST_LAYER + 2


def test_owners_have_one_numbering() -> None:
    text = (Path(emulator.__file__).parent / "runtime" / "layer_counter.h").read_text("utf-8")
    assert f"#define LAYER_COUNTER_INHERIT {INHERIT}u" in text
    assert f"#define LAYER_COUNTER_OUTSIDE {OUTSIDE}u" in text


def test_code_outside_the_map_is_told(tmp_path: Path) -> None:
    model = tiny()
    elf = read_elf(link_firmware(model, BOARD, tmp_path).elf)
    code = code_map(elf, model.run_symbol, tuple(layer.symbol for layer in model.layers))
    half = len(code.owners) // 2
    less = replace(
        code,
        owners=code.owners[:half],
        code=code.code[: 2 * half],
        watched=code.watched[:half],
    )
    data = b"\x01\x00\x00\x00" + tiny_input(1).tobytes()
    with pytest.raises(CompressError, match=r"outside its section \.text.*Keep functions in"):
        emulator.run(elf, BOARD, {"input.bin": data}, less)
