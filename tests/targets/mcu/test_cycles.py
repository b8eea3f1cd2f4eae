from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.targets.mcu.tools import (
    DATA,
    ENGINES,
    RUNTIME,
    TOOLCHAINS,
    board_with,
    functions,
    tiny,
    tiny_input,
)
from tvm_compress.errors import CompressError, MissingToolError
from tvm_compress.targets.mcu import cycles, emulator, engine, qemu
from tvm_compress.targets.mcu.boards import Board, Cpu, EmulatorName, get_board
from tvm_compress.targets.mcu.elf import Elf, Section, Segment, Symbol, read_elf
from tvm_compress.targets.mcu.engine import CodeMap, Execution, code_map
from tvm_compress.targets.mcu.firmware import (
    Firmware,
    Layer,
    ModelSources,
    TensorSpec,
    link_firmware,
)
from tvm_compress.targets.mcu.toolchain import ToolchainName, find_toolchain

BOARD = get_board("cortex-m4")

# -- by hand --------------------------------------------------------------------------------------

# Of each layer in data/cycles_layers.c the cost of its instructions, in order, and its mix. The
# numbers are those of the Cortex-M4's manual; a last 3 is the return, 1 and 2 of the pipeline.
BY_HAND: dict[str, tuple[list[int], dict[str, int]]] = {
    "alu": ([1, 1, 1, 1, 1, 3], {"data processing": 5, "branch": 1}),
    "move_pc": ([1, 1 + 2], {"data processing": 2}),
    "multiply": ([1] * 19 + [3], {"multiply": 19, "branch": 1}),
    "extend": ([1] * 5 + [3], {"extend": 5, "branch": 1}),
    "divide": ([7, 7, 3], {"divide": 2, "branch": 1}),
    # Three loads in a row; one alone; two in a row, with registers as offsets.
    "load": (
        [1, 1, 2, 1, 1, 1, 2, 1, 2, 1, 1, 3],
        {"load": 6, "store": 1, "branch": 1, "data processing": 4},
    ),
    # The load of the loop follows a load once, a branch twice.
    "load_loop": (
        [1, 1, 2, *(1, 1, 3), *(2, 1, 3), *(2, 1, 1), 1, 3],
        {"load": 4, "branch": 4, "data processing": 6},
    ),
    "store": (
        [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 3],
        {"store": 6, "branch": 1, "data processing": 4},
    ),
    "doubles": (
        [1, 3, 3, 1, 3],
        {"load double": 1, "store double": 1, "branch": 1, "data processing": 2},
    ),
    "multiples": (
        [4, 4, 1, 1, 4, 3, 3, 3, 3, 3, 1, 3],
        {"load multiple": 4, "store multiple": 4, "branch": 1, "data processing": 3},
    ),
    "pop_pc": ([3, 3 + 2], {"load multiple": 1, "store multiple": 1}),
    "load_pc": ([1, 1, 1, 2 + 2], {"load": 1, "store": 1, "data processing": 2}),
    # A load at the next address, which did not run behind the load of pc but before it.
    "behind_pc": ([1, 3, 2, 3, 2 + 2], {"load": 2, "store": 1, "branch": 2}),
    "branches": ([1, 3, 3, 1, 1, 1, 3, 3], {"branch": 6, "data processing": 2}),
    # r0 is 4, 3, 2, 1 when it is decremented; at 3 the branch is taken, at 2 and 1 it is not.
    "joined": (
        [1, 3, *(1, 1, 1, 3), *(1, 3, 1, 1, 3), *(1, 1, 1, 1, 1, 3), *(1, 1, 1, 1, 1, 1), 3],
        {"branch": 9, "data processing": 15},
    ),
    "call": ([1, 3, 3, 2, 3, 3, 3, 1, 3], {"load": 1, "branch": 6, "data processing": 2}),
    "tables": ([1, 4, 4, 3], {"table branch": 2, "branch": 1, "data processing": 1}),
    "skipped": (
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 3],
        {
            **{"load": 1, "store": 1, "load double": 1, "load multiple": 1, "branch": 1, "it": 1},
            "data processing": 4,
        },
    ),
    "skipped_more": (
        [1, 1, 1, *(1, 1, 1, 1, 1), *(1, 1, 1, 1), 3],
        {
            **{"store": 1, "store double": 1, "store multiple": 1, "branch": 1, "it": 2},
            **{"float load": 1, "float store": 1, "float load multiple": 1},
            **{"float store multiple": 1, "data processing": 3},
        },
    ),
    # A load in the other arm is skipped, and one behind it follows none: the load behind the
    # second block follows the last load of the block; the last one follows a skipped load.
    "arms": (
        [1, 1, 1, *(1, 2, 1), *(1, 2, 1), 1, *(1, 1, 1, 4), *(1, 1, 2), 1, 3],
        {"load": 7, "load multiple": 1, "branch": 1, "it": 4, "data processing": 6},
    ),
    "skipped_returns": (
        [1, 1, *(1, 1), *(1, 1), *(1, 1), *(1, 1), *(1, 1), 3],
        {
            **{"load": 1, "load multiple": 1, "branch": 2, "table branch": 1, "it": 5},
            "data processing": 3,
        },
    ),
    "taken_return": (
        [2, 1, 1, 1, 1, 2 + 2],
        {"load multiple": 1, "store multiple": 1, "it": 1, "data processing": 3},
    ),
    "full_price": (
        [1, 1, 1, 7, 3, 3],
        {"divide": 1, "float multiply-add": 1, "branch": 1, "it": 1, "data processing": 2},
    ),
    "floats": (
        [1, 1, 1, 1, 3, 3, 3, 3, 3, 14, 14, 1, 1, 1, 3],
        {"float": 7, "float multiply-add": 5, "float divide": 2, "branch": 1},
    ),
    "float_memory": (
        [1, 1, 2, 3, 2, 3, 4, 3, 3, 5, 5, 2, 2, 1, 3],
        {
            **{"float load": 2, "float store": 2, "float load multiple": 4},
            **{"float store multiple": 3, "branch": 1, "data processing": 3},
        },
    ),
}


def by_hand() -> ModelSources:
    return ModelSources(
        "cycles",
        {n: (DATA / n).read_text("utf-8") for n in ("cycles.c", "cycles.h", "cycles_layers.c")},
        (TensorSpec("x", (1,), "float32"),),
        (TensorSpec("y", (1,), "float32"),),
        0,
        tuple(Layer(f"cycles_layer_{name}", name, "assembly") for name in BY_HAND),
    )


@pytest.mark.parametrize("name", TOOLCHAINS)
@pytest.mark.parametrize("engine_name", ENGINES)
def test_every_row_of_the_table_by_hand(
    name: ToolchainName, engine_name: EmulatorName, tmp_path: Path
) -> None:
    firmware = link_firmware(by_hand(), BOARD, tmp_path, find_toolchain(name))
    profile = firmware.profile({"x": np.zeros((1, 1), np.float32)}, engine_name)
    layers = {layer.name: layer for layer in profile.layers[1:]}
    for layer, (costs, mix) in BY_HAND.items():
        found = layers[layer]
        assert (found.instructions, found.mix) == (len(costs), mix), layer
        assert found.model_cycles == sum(costs), layer
    assert {kind for _, mix in BY_HAND.values() for kind in mix} == {
        row.kind for row in cycles.TABLE
    }
    for part in profile.layers:
        assert sum(part.mix.values()) == part.instructions
    assert profile.instructions == sum(part.instructions for part in profile.layers)
    assert profile.model_cycles == sum(part.model_cycles or 0 for part in profile.layers)
    # The run function calls each layer and returns.
    (dispatch,) = (part for part in profile.layers if part.kind == "dispatch")
    assert dispatch.mix["branch"] >= len(BY_HAND)
    assert dispatch.model_cycles is not None
    assert dispatch.model_cycles >= 3 * len(BY_HAND)


# -- against a trace ------------------------------------------------------------------------------


def trace_of(elf: Elf, board: Board, data: bytes, patch: pytest.MonkeyPatch) -> list[int]:
    """The address of every executed instruction; those that an IT block skips are not seen."""
    unicorn: Any = importlib.import_module("unicorn")
    trace: list[int] = []
    real = emulator._map

    def map_and_trace(machine: Any, board: Board) -> None:
        real(machine, board)
        machine.hook_add(unicorn.UC_HOOK_CODE, lambda _uc, at, _size, _data: trace.append(at))

    with patch.context() as patched:
        patched.setattr(emulator, "_map", map_and_trace)
        emulator.run(elf, board, {"input.bin": data})
    return trace


def _sizes(code: CodeMap) -> np.ndarray[Any, Any]:
    return 1 + (np.frombuffer(code.code, "<u2") >> 11 >= 0b11101)


def _execute(
    firmware: Firmware, code: CodeMap, data: bytes, engine_name: EmulatorName
) -> Execution:
    files = {"input.bin": data}
    if engine_name == "qemu":
        return qemu.run(firmware.elf, firmware.board, files, code)
    return emulator.run(read_elf(firmware.elf), firmware.board, files, code)


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("make", [tiny, functions])
def test_executions_jumps_and_passes_equal_a_trace(
    make: Any, engine_name: EmulatorName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: ModelSources = make()
    firmware = link_firmware(model, BOARD, tmp_path)
    elf = read_elf(firmware.elf)
    plain = code_map(elf, model.run_symbol, tuple(layer.symbol for layer in model.layers))
    code = cycles.watch(plain)
    x = np.abs(tiny_input(1))[:, : model.inputs[0].shape[0]]
    data = b"\x01\x00\x00\x00" + x.tobytes()
    trace = trace_of(elf, BOARD, data, monkeypatch)
    run = next(s.address for s in elf.symbols if s.name == model.run_symbol)
    harness = next(s for s in elf.symbols if s.name == "harness_measured_run")
    begin = trace.index(run)
    end = next(
        i for i in range(begin, len(trace)) if 0 <= trace[i] - harness.address < harness.size
    )
    places = [(at - code.base) // 2 for at in trace[begin : end + 1]]
    sizes = _sizes(code)
    jumps: Counter[int] = Counter()
    executed: Counter[int] = Counter(places[:-1])
    block: list[int] = []
    for place, following in pairwise(places):
        block = _conditional(code, sizes, place) or block
        # What an IT block skips is not in the trace: the processor goes over it and jumps nowhere.
        behind = place + int(sizes[place])
        while behind in block and behind != following:
            executed[behind] += 1
            behind += int(sizes[behind])
        if behind != following:
            jumps[behind] += 1

    counts = _execute(firmware, code, data, engine_name).counts
    assert counts is not None
    ran = np.cumsum(counts[engine.EDGES], axis=1).sum(axis=0)
    starts = sorted(executed)
    assert ran[starts].tolist() == [executed[place] for place in starts]
    found = counts[engine.JUMPS].sum(axis=0)
    assert {int(i): int(found[i]) for i in np.flatnonzero(found)} == dict(jumps)
    passed = counts[engine.PASSED].sum(axis=0)
    assert {int(i): int(passed[i]) for i in np.flatnonzero(passed)} == {
        place: n for place, n in Counter(places[:-1]).items() if code.watched[place]
    }


def _conditional(code: CodeMap, sizes: Any, it: int) -> list[int]:
    """The places that an IT instruction makes conditional: the lowest bit of its mask ends it."""
    word = int(np.frombuffer(code.code, "<u2")[it])
    if word >> 8 != 0xBF or not word & 15:
        return []
    found = [it + 1]
    while len(found) < {8: 1, 4: 2, 2: 3, 1: 4}[word & 15 & -(word & 15)]:
        found.append(found[-1] + int(sizes[found[-1]]))
    return found


# -- random programs ------------------------------------------------------------------------------

# Encodings by Armv7-M Architecture Reference Manual, A7.7: bytes, base cost, is a single load.
_MENU = {
    "adds r0, #3": (b"\x03\x30", 1, False),
    "muls r3, r3": (b"\x5b\x43", 1, False),
    "ldr r1, [sp]": (b"\x00\x99", 2, True),
    "ldr.w r2, [sp, #4]": (b"\xdd\xf8\x04\x20", 2, True),
    "str r1, [sp, #8]": (b"\x02\x91", 1, False),
    "ldm.w sp, {r1, r2, r3}": (b"\x9d\xe8\x0e\x00", 4, False),
    "ldrd r1, r2, [sp]": (b"\xdd\xe9\x00\x12", 3, False),
}
_CONDITIONS = st.integers(0, 13)
_ORIGIN = 0x54


def _start() -> bytes:
    """Vector table; then the program is called, and the emulator ended."""
    vectors = (0x20001000).to_bytes(4, "little") + (0x41).to_bytes(4, "little")
    calls = ("4b02", "4798", "2018", "4902", "beab", "bf00")
    words = ((_ORIGIN | 1).to_bytes(4, "little"), (0x20026).to_bytes(4, "little"))
    code = b"".join(bytes.fromhex(call)[::-1] for call in calls) + b"".join(words)
    return vectors.ljust(0x40, b"\0") + code


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[bytes, int, bool, str]]:
    """Rounds of random code: bytes, cost, is a load, and "", "branch", "it" or "conditional"."""
    rounds = draw(st.integers(1, 4))
    simple = st.sampled_from(sorted(_MENU))
    body: list[tuple[bytes, int, bool, str]] = []

    def add(text: str, kind: str = "") -> None:
        body.append((*_MENU[text], kind))

    for _ in range(draw(st.integers(1, 8))):
        what = draw(st.sampled_from(["simple", "compare", "branch", "it"]))
        if what == "simple":
            add(draw(simple))
        elif what == "compare":
            body.append((bytes([draw(st.integers(0, 12)), 0x28]), 1, False, ""))  # cmp r0, #n
        elif what == "branch":
            over = draw(st.lists(simple, min_size=1, max_size=3))
            offset = sum(len(_MENU[text][0]) for text in over) - 2
            condition = draw(_CONDITIONS)
            body.append((bytes([offset // 2 & 0xFF, 0xD0 | condition]), 1, False, "branch"))
            for text in over:
                add(text)
        else:
            inside = draw(st.lists(simple, min_size=1, max_size=4))
            condition = draw(_CONDITIONS)
            mask = 0b1000 >> (len(inside) - 1)
            for place in range(1, len(inside)):
                lowest = (condition ^ draw(st.integers(0, 1))) & 1
                mask |= lowest << (4 - place)
            body.append((bytes([condition << 4 | mask, 0xBF]), 1, False, "it"))
            for text in inside:
                add(text, "conditional")
    size = sum(len(part[0]) for part in body)
    back = -(size + 2 + 2 + 4) // 2 & 0x7FF
    return [
        (b"\x84\xb0", 1, False, ""),  # sub sp, #16
        (bytes([rounds, 0x26]), 1, False, ""),  # movs r6, #rounds
        *body,
        (b"\x01\x3e", 1, False, ""),  # subs r6, #1
        (b"\x00\xd0", 1, False, "branch"),  # beq over the next
        ((0xE000 | back).to_bytes(2, "little"), 1, False, "branch"),  # b to the body
        (b"\x04\xb0", 1, False, ""),  # add sp, #16
        (b"\x70\x47", 1, False, "branch"),  # bx lr
    ]


@settings(max_examples=60)
@given(program=programs())
def test_random_programs_cost_what_a_walk_along_the_trace_says(
    program: list[tuple[bytes, int, bool, str]],
) -> None:
    data = _start() + b"".join(part[0] for part in program)
    text = Section(".text", 0x40, len(data) - 0x40)
    symbols = (
        Symbol("startup_reset", 0x40, _ORIGIN - 0x40, "function"),
        Symbol("p_run", _ORIGIN, len(data) - _ORIGIN, "function"),
    )
    elf = Elf((Segment(0, 0, data, len(data)),), (text,), symbols)
    with pytest.MonkeyPatch.context() as patch:
        trace = trace_of(elf, BOARD, b"", patch)
    at = _ORIGIN
    parts: dict[int, tuple[bytes, int, bool, str]] = {}
    for part in program:
        parts[at] = part
        at += len(part[0])
    begin = trace.index(_ORIGIN)
    end = next(i for i in range(begin, len(trace)) if trace[i] < _ORIGIN)
    executed, total, before = 0, 0, -1
    for address, following in zip(trace[begin:end], trace[begin + 1 : end + 1], strict=True):
        word, cost, load, kind = parts[address]
        behind = address + len(word)
        # A load behind a load, which is the instruction that ran before it.
        total += cost - (load and before == address)
        before = behind if load else -1
        executed += 1
        while behind != following and parts.get(behind, ("", 0, False, ""))[3] == "conditional":
            if kind not in ("it", "conditional"):
                break
            executed += 1
            total += 1
            behind += len(parts[behind][0])
        if behind != following:
            assert kind == "branch"
            total += 2

    code = cycles.watch(code_map(elf, "p_run", ()))
    counts = emulator.run(elf, BOARD, {}, code).counts
    assert counts is not None
    cost_of_run = cycles.count_costs(code, counts, "cortex-m4")[engine.DISPATCH]
    assert (cost_of_run.instructions, cost_of_run.model_cycles) == (executed, total)
    assert sum(cost_of_run.mix.values()) == executed


# -- processors and mistakes ----------------------------------------------------------------------


def _ran_once(words: bytes) -> tuple[CodeMap, np.ndarray[Any, Any]]:
    """Code that the run function ran once from end to end, as an emulator would have counted it."""
    halfwords = len(words) // 2
    owners = np.full(halfwords, engine.DISPATCH, np.uint16)
    code = CodeMap(0x100, owners, engine.FIRST_LAYER, words, np.zeros(halfwords, np.bool_))
    counts = np.zeros((engine.PLANES, engine.FIRST_LAYER, halfwords + 1), np.int64)
    counts[engine.EDGES, engine.DISPATCH, [0, halfwords]] = 1, -1
    return code, counts


def test_an_instruction_that_cannot_be_decoded_is_told() -> None:
    # adds r0, #3; then VMLADAVA.S8 R0, Q0, Q1 of the vector extension MVE.
    code, counts = _ran_once(b"\x03\x30" + bytes.fromhex("f0ee220f"))
    with pytest.raises(
        CompressError,
        match=r"instruction f0ee 220f at 0x00000102 of kws cannot be decoded, so it has no model "
        r"cycles\. Install the version of capstone that tvm-compress pins, or report the model",
    ):
        cycles.count_costs(code, counts, "cortex-m4", "kws")
    found = cycles.count_costs(code, counts, "cortex-m55")[engine.DISPATCH]
    assert found == cycles.Cost(2, None, {"data processing": 1, "unknown": 1})


def test_processors_without_the_table_get_no_model_cycles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware = link_firmware(tiny(), BOARD, tmp_path)
    x = {"x": tiny_input(1)}
    profile = firmware.profile(x)
    monkeypatch.setattr(cycles, "CORES", frozenset({"cortex-m7"}))
    other = firmware.profile(x)
    assert other.model_cycles is None
    assert [layer.model_cycles for layer in other.layers] == [None, None, None]
    assert [(part.instructions, part.mix) for part in other.layers] == [
        (part.instructions, part.mix) for part in profile.layers
    ]


def test_which_processors_have_the_table() -> None:
    assert frozenset({"cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33"}) == cycles.CORES
    assert set(get_args(Cpu)) >= cycles.CORES


def test_boards_get_the_cycles_of_one_table(tmp_path: Path) -> None:
    firmware = link_firmware(tiny(), BOARD, tmp_path)
    # The code of a Cortex-M4 with its FPU also runs on these; a Cortex-M3 has none.
    profiles = [
        replace(firmware, board=board_with(cpu=cpu, fpu=fpu)).profile(
            {"x": tiny_input(1)}, "unicorn"
        )
        for cpu, fpu in (
            ("cortex-m4", "fpv4-sp-d16"),
            ("cortex-m7", "fpv5-sp-d16"),
            ("cortex-m33", "fpv5-sp-d16"),
        )
    ]
    assert profiles[0] == profiles[1] == profiles[2]
    assert profiles[0].model_cycles is not None
    assert profiles[0].model_cycles > profiles[0].instructions > 100


def test_a_missing_capstone_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware = link_firmware(tiny(), BOARD, tmp_path)
    cycles._decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "capstone", None)
    with pytest.raises(
        MissingToolError, match=r"capstone, which profiles need, is not inst.*\[boards\]"
    ):
        firmware.profile({"x": tiny_input(1)})
    # Only profiles need it.
    assert firmware.run({"x": tiny_input(1)})["y"].shape == (1, 3)


def test_only_one_module_imports_capstone() -> None:
    root = Path(__file__).parents[3]
    users = {
        path.name
        for folder in ("tvm_compress", "passes", "targets", "benchmarks")
        for path in (root / folder).rglob("*.py")
        if re.search(r"(import |from |import_module\(\")capstone", path.read_text("utf-8"))
    }
    assert users == {"cycles.py"}


def test_planes_have_one_numbering() -> None:
    text = (RUNTIME / "layer_counter.h").read_text("utf-8")
    for name in ("EDGES", "JUMPS", "PASSED", "PLANES"):
        assert f"#define LAYER_COUNTER_{name} {getattr(engine, name)}u" in text


@pytest.mark.qemu
def test_code_outside_the_map_is_told_by_qemu_too(tmp_path: Path) -> None:
    model = tiny()
    firmware = link_firmware(model, BOARD, tmp_path)
    code = code_map(read_elf(firmware.elf), model.run_symbol, ())
    half = len(code.owners) // 2
    less = replace(
        code,
        owners=code.owners[:half],
        code=code.code[: 2 * half],
        watched=code.watched[:half],
    )
    data = b"\x01\x00\x00\x00" + tiny_input(1).tobytes()
    with pytest.raises(CompressError, match=r"outside its section \.text.*Keep functions in"):
        qemu.run(firmware.elf, BOARD, {"input.bin": data}, less)
