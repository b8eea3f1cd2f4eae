"""What passes between Python and a firmware: samples, outputs, exit codes, engines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.targets.mcu.tools import RUNTIME, mixed, tiny, tiny_input, trouble
from tvm_compress.errors import CompressError, DataError, OptionError
from tvm_compress.targets.mcu import emulator, harness, qemu
from tvm_compress.targets.mcu.boards import EmulatorName, get_board
from tvm_compress.targets.mcu.engine import Execution
from tvm_compress.targets.mcu.firmware import Firmware, link_firmware

BOARD = get_board("cortex-m4")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    return link_firmware(tiny(), BOARD, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    return link_firmware(mixed(), BOARD, tmp_path_factory.mktemp("mixed"))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "inputs of tiny are x; given were none. Give one array for each"),
        ({"z": tiny_input(1)}, "inputs of tiny are x; given were z"),
        ({"x": tiny_input(1).astype(np.float64)}, "has dtype float64; expected float32"),
        ({"x": tiny_input(1)[0]}, r"has shape \(32,\); expected \(N, 32\)"),
        ({"x": tiny_input(1)[:, :31]}, r"has shape \(1, 31\); expected \(N, 32\)"),
        ({"x": tiny_input(1)[:0]}, "holds no sample. Give at least one"),
    ],
)
def test_wrong_inputs_are_told(small: Firmware, inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        small.run(inputs)


def test_inputs_of_different_lengths_are_told(many: Firmware) -> None:
    inputs: dict[str, Any] = {
        "values": np.zeros((2, 2, 3), np.float32),
        "bytes": np.zeros((3, 5), np.int8),
    }
    with pytest.raises(DataError, match="different numbers of samples: values 2, bytes 3"):
        many.run(inputs)


def test_an_engine_that_the_board_lacks_is_told(tmp_path: Path) -> None:
    built = link_firmware(tiny(), get_board("nucleo_l4r5zi"), tmp_path)
    with pytest.raises(OptionError, match="does not run on the engine 'qemu'; it runs on unicorn"):
        built.run({"x": tiny_input(1)}, "qemu")
    with pytest.raises(OptionError, match="does not run on the engine 'renode'"):
        built.run({"x": tiny_input(1)}, cast(EmulatorName, "renode"))


def test_the_default_engine_is_the_first_that_is_installed(
    small: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small.profile({"x": tiny_input(1)}).engine == "unicorn"
    monkeypatch.setattr(emulator, "available", lambda: False)
    monkeypatch.setattr(qemu, "available", lambda *_: True)
    assert harness.choose_engine(BOARD, None) == "qemu"
    # Where none is, the first one's error tells what to install.
    monkeypatch.setattr(qemu, "available", lambda *_: False)
    assert harness.choose_engine(BOARD, None) == "unicorn"


def test_a_failing_model_is_told_with_its_code_and_sample(tmp_path: Path) -> None:
    built = link_firmware(trouble(), BOARD, tmp_path)
    assert built.run({"request": np.zeros((3, 1), np.float32)})["echo"].tolist() == [[0]] * 3
    x = np.array([[0], [3], [0]], np.float32)
    with pytest.raises(
        CompressError, match=r"returned an error .*trouble_run returned 7 at sam.*1"
    ):
        built.run({"request": x}, "unicorn")


def test_every_exit_code_has_one_sentence() -> None:
    texts = harness.exit_texts()
    source = (RUNTIME / "exit_codes.h").read_text(encoding="utf-8")
    assert list(texts) == [0, 3, 4, 5, 6]
    assert len(texts) == source.count("    X(")
    assert all(text.endswith(".") and len(text) > 20 for text in texts.values())
    for code in (3, 4, 5):
        with pytest.raises(CompressError, match=re.escape(texts[code])):
            harness.unpack_outputs("tiny", tiny().outputs, Execution(code, {}), 1)
    with pytest.raises(CompressError, match="ended with the unknown exit code 99"):
        harness.unpack_outputs("tiny", tiny().outputs, Execution(99, {}), 1)


def test_output_that_is_not_the_harnesss_is_told() -> None:
    with pytest.raises(
        CompressError, match=r"wrote 3 bytes of output; expected 28\. Build it again"
    ):
        harness.unpack_outputs("tiny", tiny().outputs, Execution(0, {"output.bin": b"123"}), 1)
    with pytest.raises(CompressError, match=r"no valid trailer\. Build it again"):
        harness.unpack_outputs("tiny", tiny().outputs, Execution(0, {"output.bin": bytes(28)}), 1)


@settings(max_examples=25)
@given(data=st.data(), count=st.integers(1, 4))
def test_inputs_and_outputs_of_several_types_keep_order_and_shape(
    many: Firmware, data: st.DataObject, count: int
) -> None:
    numbers = st.floats(-1000, 1000, width=32)
    values = data.draw(hnp.arrays(np.float32, (count, 2, 3), elements=numbers))
    small = data.draw(hnp.arrays(np.int8, (count, 5)))
    # Memory order of the arrays must not matter.
    outputs = many.run({"bytes": np.asfortranarray(small), "values": np.asfortranarray(values)})
    total = small.astype(np.int32).sum(1, dtype=np.int32)
    assert list(outputs) == ["total", "scaled"]
    assert outputs["total"].dtype == np.int32
    np.testing.assert_array_equal(outputs["total"], total)
    np.testing.assert_array_equal(
        outputs["scaled"], values * total.astype(np.float32)[:, None, None]
    )
