from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.targets.mcu.tools import TOOLCHAINS, functions, tiny, tiny_input, trouble
from tvm_compress.errors import CompressError, MissingToolError, OptionError
from tvm_compress.targets.mcu import qemu
from tvm_compress.targets.mcu.boards import get_board
from tvm_compress.targets.mcu.engine import Execution
from tvm_compress.targets.mcu.firmware import Firmware, link_firmware
from tvm_compress.targets.mcu.toolchain import ToolchainName, find_toolchain

BOARD = get_board("mps2-an386")


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    return link_firmware(trouble(), BOARD, tmp_path_factory.mktemp("trouble"))


def _request(number: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"request": np.array([[number]], np.float32)}


@pytest.mark.qemu
@pytest.mark.parametrize("board", ["cortex-m4", "mps2-an386"])
@pytest.mark.parametrize("name", TOOLCHAINS)
@pytest.mark.parametrize("make", [tiny, functions])
def test_the_same_elf_gives_the_same_bytes_on_both_emulators(
    make: Any, name: ToolchainName, board: str, tmp_path: Path
) -> None:
    model = make()
    firmware = link_firmware(model, get_board(board), tmp_path, find_toolchain(name))
    x = tiny_input(50)[:, : model.inputs[0].shape[0]]
    outputs = [firmware.run({"x": x}, engine)["y"] for engine in ("unicorn", "qemu")]
    assert outputs[0].tobytes() == outputs[1].tobytes()
    assert len(np.unique(outputs[0], axis=0)) == 50


@pytest.mark.qemu
def test_a_fault_ends_with_its_sentence(troubled: Firmware) -> None:
    for request in (1, 4):
        with pytest.raises(CompressError, match=r"trouble: The processor faulted: the code"):
            troubled.run(_request(request), "qemu")


@pytest.mark.qemu
def test_a_failing_model_is_told_with_its_code_and_sample(troubled: Firmware) -> None:
    x = np.array([[0], [0], [3], [0]], np.float32)
    with pytest.raises(CompressError, match=r"returned an error .*returned 7 at sample 2"):
        troubled.run({"request": x}, "qemu")


@pytest.mark.qemu
def test_an_endless_loop_is_stopped_and_nothing_is_left(
    troubled: Firmware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CompressError, match=r"did not end within 0\.5 s on QEMU and was stopped"):
        troubled.run(_request(2), "qemu", timeout_s=0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.qemu
def test_a_qemu_that_refuses_the_board_is_told(troubled: Firmware) -> None:
    board = BOARD.model_copy(update={"qemu_machine": "none-such"})
    with pytest.raises(
        CompressError, match=r"QEMU ended with 1 before the firmware did.*unsupported machine"
    ):
        qemu.run(troubled.elf, board, {})


@pytest.mark.qemu
def test_files_that_were_given_do_not_come_back(troubled: Firmware) -> None:
    execution = qemu.run(troubled.elf, BOARD, {"input.bin": b"\0\0\0\0"})
    assert isinstance(execution, Execution)
    assert list(execution.files) == ["output.bin"]
    assert execution.counts is None


def test_a_board_without_a_machine_is_told(
    troubled: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "available", lambda *_: True)
    with pytest.raises(
        OptionError, match=r"no machine for the board nucleo_l4r5zi\. Build for mps2"
    ):
        qemu.run(troubled.elf, get_board("nucleo_l4r5zi"), {})


def test_a_missing_qemu_says_how_to_get_it(
    troubled: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert not qemu.available()
    with pytest.raises(MissingToolError, match=r"qemu-system-arm is not installed.*apt-get"):
        troubled.run(_request(0), "qemu")


@pytest.mark.qemu
def test_a_qemu_without_plugins_is_told(
    troubled: Firmware, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A QEMU that runs the firmware and ignores the plugin: the same command without it.
    program = tmp_path / "qemu-system-arm"
    program.write_text(
        "#!/bin/sh\nfor word; do\n  shift\n  case $word in -plugin) shift; break;; esac\n"
        '  set -- "$@" "$word"\ndone\nexec /usr/bin/env -i REAL "$@"\n'.replace(
            "/usr/bin/env -i REAL", str(_which_qemu())
        ),
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CompressError, match=r"its plugin counted nothing. Install a QEMU"):
        troubled.profile(_request(0), "qemu")


def _which_qemu() -> str | None:
    import shutil

    return shutil.which("qemu-system-arm")
