"""The benchmark of a network of VGG-16's size, on a network of a small part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_compress as tc
from benchmarks import vgg_size
from tvm_compress import ir
from tvm_compress.targets import reference


def test_the_layers_are_those_of_vgg_16() -> None:
    inputs, weights, kept = 3, 0, 0.0
    for layer in vgg_size.LAYERS:
        if layer.name == "fc6":
            inputs *= 7 * 7  # 224 pixels, halved five times
        size = layer.outputs * inputs * (9 if layer.name.startswith("conv") else 1)
        weights, kept = weights + size, kept + layer.density * size
        inputs = layer.outputs
    assert weights == 138_344_128  # the 138,357,544 parameters without 13,416 biases
    # The paper says 7.5 % of all, by whole percents of each layer it is a little more.
    assert 7.5 <= 100 * kept / weights < 7.7


def test_the_network_runs_and_is_named() -> None:
    mod = vgg_size.network(width=0.02, image=32)
    assert list(ir.weights(mod)) == [f"{layer.name}_weight" for layer in vgg_size.LAYERS]
    assert {f"{layer.name}_bias" for layer in vgg_size.LAYERS} == ir.biases(mod)
    (logits,) = reference.run(mod, np.ones((1, 3, 32, 32), np.float32)).values()
    assert logits.shape == (1, 20)
    assert logits.std() > 0


def small(path: Path) -> dict[str, Any]:
    return vgg_size.write(path, 0.02, 32)


@pytest.mark.parametrize("name", vgg_size.FILES)
def test_a_file_holds_what_was_written(name: str, tmp_path: Path) -> None:
    written, read = small(tmp_path / name), vgg_size.read(tmp_path / name)
    assert written["digest"] == read["digest"]
    assert written["file_bytes"] == (tmp_path / name).stat().st_size
    assert set(written["seconds"]) >= {"prune", "share", "save"} and "load" in read["seconds"]
    mod = tc.load(tmp_path / name)
    for layer in vgg_size.LAYERS:
        parameter = ir.parameters(mod)[f"{layer.name}_weight"]
        assert parameter.codes is not None and parameter.centroids is not None
        size = parameter.codes.size
        assert np.count_nonzero(parameter.codes) == size - round((1 - layer.density) * size)
        assert parameter.centroids.size == 2**layer.bits


def test_a_digest_tells_any_change() -> None:
    mod = vgg_size.network(width=0.02, image=32)
    before = vgg_size.digest(mod)
    assert vgg_size.digest(vgg_size.network(width=0.02, image=32)) == before
    value = ir.parameters(mod)["fc8_bias"].value.copy()
    value[-1] += 1
    changed = ir.replace_parameters(mod, {"fc8_bias": vgg_size.relax.const(value)})
    assert vgg_size.digest(changed) != before


def test_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "flash.tcz"
    found = vgg_size._apart("--write", str(path), "--width", "0.02", "--image", "32")
    assert found["digest"] == vgg_size.read(path)["digest"]
    # An interpreter with TVM takes more than 100 MB, and the weights here next to nothing.
    assert 100e6 < found["peak_rss_bytes"] < 2e9


def test_every_file_has_its_row_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def apart(action: str, path: str, *rest: str) -> dict[str, Any]:
        if action == "--write":
            assert rest == ("--width", "0.02", "--image", "32")
            return small(Path(path))
        found = vgg_size.read(Path(path))
        return found | ({"digest": "another"} if path.endswith("json") else {})

    monkeypatch.setattr(vgg_size, "_apart", apart)
    path = tmp_path / "record.json"
    arguments = ["--width", "0.02", "--image", "32", "--json", str(path)]
    assert vgg_size.main(arguments) == 0
    assert vgg_size.main([*arguments, "--check"]) == 1  # one file was read as something else
    record = json.loads(path.read_text())
    assert [result["file"] for result in record["results"]] == list(vgg_size.FILES)
    assert [result["equal"] for result in record["results"]] == [True, True, False, True]
    missed = [figure["name"] for figure in record["figures"] if not figure["met"]]
    assert missed == ["parameters of shared.json that differ when read"]
    assert len(record["figures"]) == 4 * len(vgg_size.FILES)
    table = capsys.readouterr().out
    assert all(f"| {name}" in table for name in vgg_size.FILES)
    assert "NO |" in table
