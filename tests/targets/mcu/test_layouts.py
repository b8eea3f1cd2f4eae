"""Whole networks pruned by a pattern: the layout, its size, and the bytes of the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

import tvm_compress as tc
from examples.digits.data import DigitsSplit
from tests.targets.mcu.integer_nets import Layer, differing, module_of, samples_of
from tests.targets.mcu.nets import assert_close
from tests.targets.mcu.test_integer_kernels import _LAYERS
from tvm_compress.passes import BankPrune, BlockPrune, ShareWeights
from tvm_compress.targets.mcu import lower
from tvm_compress.targets.mcu.target import FirmwareArtifact, HostArtifact


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board whose core has neither the DSP extension nor an FPU: its kernels are plain C."""
    folder = Path(__file__).parents[3] / "targets" / "mcu" / "boards"
    text = (folder / "cortex-m4.toml").read_text()
    for old, new in (
        ('cpu = "cortex-m4"', 'cpu = "cortex-m3"'),
        ('fpu = "fpv4-sp-d16"', 'fpu = "none"'),
        ('emulators = ["unicorn", "qemu"]', 'emulators = ["unicorn"]'),
    ):
        assert old in text
        text = text.replace(old, new)
    path = tmp_path_factory.mktemp("boards") / "m3.toml"
    path.write_text(text)
    return path


def _firmware(mod: tvm.IRModule, board: Any) -> FirmwareArtifact:
    built = tc.build(mod, target="c", board=board)
    assert isinstance(built, FirmwareArtifact)
    return built


def _kinds(built: HostArtifact | FirmwareArtifact) -> list[str]:
    model = built.firmware.model if isinstance(built, FirmwareArtifact) else built.model
    return [layer.kind for layer in model.layers]


def _layouts(built: HostArtifact | FirmwareArtifact) -> set[str]:
    kinds = _kinds(built)
    return {kind.split("(")[1].rstrip(")") for kind in kinds if "(" in kind}


def test_float_networks_give_the_bytes_of_this_machine(
    digits_onnx: Path, digits: DigitsSplit
) -> None:
    mod, x = tc.load(digits_onnx), digits.test_images[:3]
    for layout, pruned in (
        ("bank", ShareWeights(4)(BankPrune(keep=2)(mod))),
        ("block", BlockPrune(sparsity=0.75)(mod)),
    ):
        here, board = tc.build(pruned, target="c"), _firmware(pruned, "cortex-m4")
        assert isinstance(here, HostArtifact)
        assert _layouts(here) == _layouts(board) == {layout}
        logits, right = here.run(x)["logits"], tc.build(pruned, target="reference").run(x)
        assert logits.tobytes() == board.run(x)["logits"].tobytes()
        assert_close(logits, right["logits"])


def test_a_network_in_banks_is_smaller_than_in_gaps(
    digits_onnx: Path, digits: DigitsSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    mod = ShareWeights(4)(BankPrune(keep=2)(tc.load(digits_onnx)))
    x = digits.test_images[:1]
    banks = _firmware(mod, "cortex-m4")
    assert _layouts(banks) == {"bank"}
    # No codes are narrow enough for banks now.
    monkeypatch.setattr(lower, "BANK_CODE_BITS", 0)
    gaps = _firmware(mod, "cortex-m4")
    assert _layouts(gaps) == {"gap_codes"}
    assert_close(banks.run(x)["logits"], gaps.run(x)["logits"])
    assert banks.size.flash["weights"] < 0.9 * gaps.size.flash["weights"]
    assert banks.size.flash_bytes < gaps.size.flash_bytes
    assert banks.profile(x).instructions < gaps.profile(x).instructions


def test_a_core_without_the_extension_runs_integers_from_every_layout(m3: Path) -> None:
    names = [n for n in _LAYERS if n.split()[0].strip(",") in ("bank", "block", "values")]
    layers: dict[str, Layer] = {name: _LAYERS[name] for name in names}
    mod = module_of(layers)
    built = _firmware(mod, m3)
    assert _layouts(built) == {"bank", "block", "gap_codes"}
    assert _kinds(built) == [one.kind for one in layers.values()]
    judge = tc.build(mod, target="reference")
    right = [judge.run(sample) for sample in samples_of(layers)]
    assert differing(layers, built.run, right) == []


def test_a_quantised_network_in_banks_gives_the_bytes_of_the_reference(
    digits_onnx: Path, digits: DigitsSplit, m3: Path
) -> None:
    mod = ShareWeights(4)(BankPrune(keep=2)(tc.load(digits_onnx)))
    mod = tc.quantize(mod, digits.train_images[:64])
    x = np.round(255 * digits.test_images[:4] - 128).astype(np.int8)
    right = tc.build(mod, target="reference").run(x)["logits"]
    assert len(np.unique(right)) > 8
    board = _firmware(mod, m3)
    # Dead channels are taken out of a network in integers, and what is left of banks is none.
    assert _layouts(board) == {"bank", "gap_codes"}
    assert board.run(x)["logits"].tobytes() == right.tobytes()
    assert tc.build(mod, target="c").run(x)["logits"].tobytes() == right.tobytes()
