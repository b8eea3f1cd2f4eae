from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from tests.targets.mcu.tools import (
    RUNTIME,
    TOOLCHAINS,
    board_with,
    functions,
    tiny,
    tiny_expected,
    tiny_input,
)
from tvm_compress.errors import CompressError, MissingToolError, OptionError
from tvm_compress.targets.mcu import toolchain
from tvm_compress.targets.mcu.boards import Board, get_board
from tvm_compress.targets.mcu.elf import Elf, read_elf
from tvm_compress.targets.mcu.firmware import ModelSources, link_firmware
from tvm_compress.targets.mcu.toolchain import (
    GnuToolchain,
    ToolchainName,
    ZigToolchain,
    find_toolchain,
    host_library,
)


def _without(monkeypatch: pytest.MonkeyPatch, *, zig: bool, path: bool) -> None:
    """Take zig, or everything on PATH, away."""
    if zig:
        real = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "ziglang" else real(name)
        )
    if path:
        monkeypatch.setenv("PATH", "")


def test_zig_is_the_default() -> None:
    assert find_toolchain() == ZigToolchain()
    assert find_toolchain("zig").name == "zig"


def test_gnu_steps_in_where_zig_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "arm-none-eabi-gcc"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    _without(monkeypatch, zig=True, path=False)
    assert find_toolchain() == GnuToolchain()
    assert find_toolchain("gnu").name == "gnu"


def test_an_unknown_toolchain_is_told() -> None:
    with pytest.raises(OptionError, match=r"'llvm' is not known\. Choose one of zig, gnu"):
        find_toolchain(cast(ToolchainName, "llvm"))


def test_a_missing_toolchain_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, zig=True, path=True)
    with pytest.raises(MissingToolError, match=r"compiler zig is not installed.*\[boards\]"):
        find_toolchain("zig")
    with pytest.raises(MissingToolError, match=r"zig is not installed.*\[boards\]"):
        ZigToolchain().command(get_board("cortex-m4"))
    with pytest.raises(MissingToolError, match=r"arm-none-eabi-gcc is not installed.*apt-get"):
        find_toolchain("gnu")
    with pytest.raises(MissingToolError, match=r"No compiler for microcontrollers.*\[boards\]"):
        find_toolchain()
    with pytest.raises(MissingToolError, match=r"No C compiler for this machine.*\[boards\]"):
        host_library(RUNTIME / "count_hook.c")


def _link(model: ModelSources, board: Board, name: ToolchainName, folder: Path) -> Elf:
    return read_elf(link_firmware(model, board, folder, find_toolchain(name)).elf)


def _vfp(elf: Elf, function: str) -> list[str]:
    """The VFP instructions of a function: load, store or arithmetic of single precision.

    Source of the encodings: Armv7-M Architecture Reference Manual, A6.4 (coprocessor 10).
    """
    symbol = next(symbol for symbol in elf.symbols if symbol.name == function)
    segment = next(
        part
        for part in elf.segments
        if part.virtual <= symbol.address < part.virtual + len(part.data)
    )
    start = symbol.address - segment.virtual
    code = segment.data[start : start + symbol.size]
    found = []
    at = 0
    while at + 2 <= len(code):
        first = struct.unpack_from("<H", code, at)[0]
        if first >> 11 < 0b11101 or at + 4 > len(code):
            at += 2
            continue
        second = struct.unpack_from("<H", code, at + 2)[0]
        # Bit 4 would make it a move between a core register and the FPU.
        if second & 0x0F00 == 0x0A00 and not (first >> 8 == 0xEE and second & 0x10):
            if first & 0xFF30 == 0xED10 or first & 0xFF90 == 0xEC90:
                found.append("load")
            elif first & 0xFFB0 == 0xEE20 and not second & 0x40:
                found.append("vmul")
            elif first & 0xFFB0 == 0xEE30:
                found.append("vadd")
            elif first & 0xFFB0 in (0xEE00, 0xEEA0):
                found.append("fused or chained")
            elif first & 0xFFBF == 0xEEB1 and second & 0xC0 == 0xC0:
                found.append("vsqrt")
        at += 4
    return found


def _soft_calls(elf: Elf) -> set[str]:
    return {
        symbol.name
        for symbol in elf.symbols
        if symbol.name.startswith(("__aeabi_f", "__aeabi_i2f", "__addsf3", "__mulsf3"))
    }


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_float_code_uses_the_fpu_and_never_contracts(name: ToolchainName, tmp_path: Path) -> None:
    elf = _link(tiny(), get_board("cortex-m4"), name, tmp_path)
    assert _soft_calls(elf) == set()
    for function in ("tiny_layer_000_dense", "expf"):
        assert {"load", "vmul", "vadd"} <= set(_vfp(elf, function)), function
        assert "fused or chained" not in _vfp(elf, function), function


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_sqrtf_is_one_instruction(name: ToolchainName, tmp_path: Path) -> None:
    elf = _link(functions(), get_board("cortex-m4"), name, tmp_path)
    assert "vsqrt" in _vfp(elf, "functions_layer_000_all")
    assert not [symbol for symbol in elf.symbols if symbol.name in ("sqrtf", "__errno")]


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_without_an_fpu_the_code_is_soft_and_right(name: ToolchainName, tmp_path: Path) -> None:
    board = board_with(cpu="cortex-m3", fpu="none", emulators=("unicorn",))
    firmware = link_firmware(tiny(), board, tmp_path, find_toolchain(name))
    elf = read_elf(firmware.elf)
    assert _soft_calls(elf)
    assert _vfp(elf, "tiny_layer_000_dense") == []
    x = tiny_input(3)
    expected = tiny_expected(x)
    assert abs(firmware.run({"x": x})["y"] - expected).max() < 1e-5


@pytest.mark.parametrize("name", TOOLCHAINS)
@pytest.mark.parametrize(
    ("cpu", "fpu"), [("cortex-m7", "fpv5-sp-d16"), ("cortex-m33", "fpv5-sp-d16")]
)
def test_other_cores_give_the_bits_of_the_cortex_m4(
    name: ToolchainName, cpu: str, fpu: str, tmp_path: Path
) -> None:
    x = tiny_input(3)
    tool = find_toolchain(name)
    board = board_with(cpu=cpu, fpu=fpu, emulators=("unicorn",))
    there = link_firmware(tiny(), board, tmp_path / cpu, tool).run({"x": x})["y"]
    here = link_firmware(tiny(), get_board("cortex-m4"), tmp_path, tool).run({"x": x})["y"]
    assert there.tobytes() == here.tobytes()


@pytest.mark.parametrize("name", TOOLCHAINS)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("int tiny_extra(void) { return nothing; }", "nothing"),
        ("static int tiny_unused(void) { return 0; }", "tiny_unused"),
        ("int tiny_gone(void);\nint tiny_calls(void) { int a; return a; }", "uninitialized"),
    ],
)
def test_a_refused_source_is_told_in_the_compilers_words(
    name: ToolchainName, line: str, words: str, tmp_path: Path
) -> None:
    model = tiny()
    model.files["tiny_layers.c"] += line + "\n"
    with pytest.raises(CompressError, match=r"Building tiny.elf with \S+ failed.*") as caught:
        _link(model, get_board("cortex-m4"), name, tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_a_missing_layer_is_told_in_the_linkers_words(name: ToolchainName, tmp_path: Path) -> None:
    model = tiny()
    del model.files["tiny_layers.c"]
    with pytest.raises(CompressError, match="tiny_layer_000_dense"):
        _link(model, get_board("cortex-m4"), name, tmp_path / "out")


def test_a_host_library_is_compiled_once_and_again_when_a_header_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by the environment: zig's own cache would move too, and be filled again.
    monkeypatch.setattr(toolchain, "_cache_folder", lambda: tmp_path / "cache")
    source, header = tmp_path / "one.c", tmp_path / "one.h"
    header.write_text("int one(void);\n", encoding="utf-8")
    source.write_text('#include "one.h"\nint one(void) { return ONE; }\n', encoding="utf-8")
    calls = []
    real = toolchain._execute

    def count(command: Sequence[str], what: str) -> None:
        calls.append(what)
        real(command, what)

    monkeypatch.setattr(toolchain, "_execute", count)
    first = host_library(source, (header,), ("ONE=1",))
    assert host_library(source, (header,), ("ONE=1",)) == first
    assert len(calls) == 1
    assert host_library(source, (header,), ("ONE=2",)) != first
    header.write_text("int one(void); /* changed */\n", encoding="utf-8")
    assert host_library(source, (header,), ("ONE=1",)) != first
    assert len(calls) == 3
    assert first.parent == tmp_path / "cache"


def test_a_host_library_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by the environment: zig's own cache would move too, and be filled again.
    monkeypatch.setattr(toolchain, "_cache_folder", lambda: tmp_path / "cache")
    source = tmp_path / "wrong.c"
    source.write_text("int wrong(void) { return nothing; }\n", encoding="utf-8")
    with pytest.raises(CompressError, match=r"Compiling wrong\.c for this machine failed"):
        host_library(source)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_compiler_is_run_by_this_python() -> None:
    assert ZigToolchain().command(get_board("cortex-m4"))[:3] == [sys.executable, "-m", "ziglang"]


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert toolchain._cache_folder() == Path("/elsewhere/tvm-compress")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert toolchain._cache_folder() == Path.home() / ".cache" / "tvm-compress"


def test_clang_makes_no_gathering_loads() -> None:
    flag = "-enable-arm-maskedgatscat=false"
    assert flag in ZigToolchain().command(get_board("mps3-an547"))
    assert flag not in ZigToolchain().command(get_board("mps2-an386"))
