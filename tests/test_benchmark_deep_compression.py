"""The parts of the benchmark that need no data set, and its stages on a network that is tiny."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

import tvm_compress as tc
from benchmarks import lenet
from benchmarks.deep_compression import SETTINGS, STAGES, _recipes, _rows, measure, stages
from tests.test_benchmark_lenet import some_digits
from tvm_compress import ir
from tvm_compress.passes.round_biases import round_to_bits

NAME = "lenet_300_100"
WEIGHTS = 784 * 16 + 16 * 10


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two layers stand for LeNet-300-100, and its folder is empty."""
    torch = pytest.importorskip("torch", reason="torch is not installed; this test trains.")

    def network() -> Any:
        layers = [("flatten", torch.nn.Flatten()), ("ip1", torch.nn.Linear(784, 16))]
        layers += [("relu", torch.nn.ReLU()), ("ip2", torch.nn.Linear(16, 10))]
        return torch.nn.Sequential(OrderedDict(layers))

    monkeypatch.setattr(lenet, "CACHE", tmp_path / "cache")
    monkeypatch.setitem(lenet.NETWORKS, NAME, network)
    monkeypatch.setitem(lenet.EPOCHS, NAME, 3)
    setting = replace(
        SETTINGS[NAME], sparsity=0.75, steps=2, last=(1, 1e-3), lam=1e-3, shared=(1, 3e-4)
    )
    monkeypatch.setitem(SETTINGS, NAME, setting)
    return tmp_path / "cache"


def zeros(mod: tvm.IRModule) -> int:
    return sum(int((w.parameter.value == 0).sum()) for w in ir.weights(mod).values())


@pytest.mark.parametrize("name", SETTINGS)
def test_the_last_pruning_is_to_the_sparsity_of_the_setting(name: str) -> None:
    setting = SETTINGS[name]
    pruning = [s for s in _recipes(setting, 0)["pruned"].steps if s.name == "prune"]
    sparsities = [getattr(step, "sparsity", None) for step in pruning]
    assert len(sparsities) == setting.steps
    assert sparsities == sorted(sparsities)  # type: ignore[type-var]
    assert sparsities[-1] == setting.sparsity


@pytest.mark.parametrize("name", SETTINGS)
def test_biases_are_rounded_when_nothing_moves_them_any_more(name: str) -> None:
    recipes = _recipes(SETTINGS[name], 0)
    assert list(recipes) == list(STAGES)
    steps = [step.name for recipe in recipes.values() for step in recipe.steps]
    assert steps.index("round-biases") == len(steps) - 1


def test_every_stage_is_what_its_name_says(tiny: Path) -> None:
    found = stages(NAME, 0, some_digits())
    assert list(found) == ["dense", *STAGES]
    assert zeros(found["dense"]) == 0
    sizes = [p.value.size for p in ir.parameters(found["dense"]).values()]
    assert sum(sizes) == WEIGHTS + 26
    pruned = found[STAGES[0]]
    kept = sum(int((w.parameter.value != 0).sum()) for w in ir.weights(pruned).values())
    # Channels that nothing reads may have gone with the weights that were left in them.
    assert 0 < kept <= round(0.25 * WEIGHTS)
    for stage in STAGES[1:]:
        for name, weight in ir.weights(found[stage]).items():
            assert weight.parameter.shared
            value, dense = weight.parameter.value, ir.parameters(pruned)[name].value
            assert 2 < np.unique(value).size < np.unique(dense).size / 2
            assert (value[dense == 0] == 0).all()
    rounded = found[STAGES[-1]]
    for name in ir.biases(rounded):
        value = ir.parameters(rounded)[name].value
        np.testing.assert_array_equal(value, round_to_bits(value, SETTINGS[NAME].bias_bits))


def test_stages_are_computed_once_for_a_seed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = some_digits()
    first = stages(NAME, 0, data)
    files = sorted(path.name for path in tiny.iterdir())
    assert len(files) == 4
    with monkeypatch.context() as patch:
        patch.setattr(tc, "compress", lambda *_, **__: pytest.fail("it is in the cache"))
        again = stages(NAME, 0, data)
    for stage, mod in first.items():
        tvm.ir.assert_structural_equal(mod, again[stage])
    # Another setting of a later stage keeps the earlier ones; another seed keeps none.
    monkeypatch.setitem(SETTINGS, NAME, replace(SETTINGS[NAME], bias_bits=4))
    stages(NAME, 0, data)
    assert len(list(tiny.iterdir())) == 5
    stages(NAME, 1, data)
    assert len(list(tiny.iterdir())) == 9


def test_bytes_are_those_of_the_file(tiny: Path) -> None:
    data = some_digits()
    row = measure(NAME, 0, data)
    (file,) = tiny.glob("*.tcz")
    coded = row["stages"][STAGES[-1]]
    assert coded["bytes"] == file.stat().st_size
    assert 0 < coded["weight_bytes"] < coded["bytes"]
    dense = row["stages"]["dense"]
    assert dense["bytes"] == 4 * (WEIGHTS + 26)
    assert dense["fewer_weights"] == 1
    sizes = [row["stages"][stage]["bytes"] for stage in ("dense", *STAGES)]
    assert sizes == sorted(sizes, reverse=True)
    for stage in STAGES:
        assert row["stages"][stage]["fewer_weights"] >= 4
    # What was measured is what the file holds, on the images of the test.
    assert coded["error"] == lenet.error(tc.load(file), data.test)


def run(error: float, size: int, fewer: float) -> dict[str, Any]:
    """What measure() gives, of numbers that can be told apart."""
    dense = {"error": 0.01, "fewer_weights": 1.0, "bytes": 1_200_000}
    found: dict[str, dict[str, Any]] = {"dense": dense}
    for number, stage in enumerate(STAGES):
        found[stage] = {"error": error, "fewer_weights": fewer, "bytes": size * (3 - number)}
    found[STAGES[-1]]["weight_bytes"] = size - 1000
    return {"network": NAME, "seed": 0, "stages": found}


def test_a_row_holds_the_mean_error_and_the_worst_size() -> None:
    rows, figures = _rows(NAME, [run(0.0120, 10_000, 20.0), run(0.0160, 12_000, 25.0)])
    assert [row[1] for row in rows] == ["dense", *STAGES]
    error, fewer, size, weights, smaller = rows[-1][2:7]
    assert (error, fewer, size, weights) == ("1.40 ± 0.20", "20.0x", "12,000", "11,000")
    assert smaller == "100x"
    by_name = {figure.name: figure for figure in figures}
    setting = SETTINGS[NAME]
    assert by_name[f"error of {NAME}"].value == pytest.approx(1.4)
    assert by_name[f"error of {NAME}"].limit == setting.limits[0]
    assert by_name[f"file of {NAME}"].value == 12_000
    assert by_name[f"file of {NAME}"].limit == setting.limits[1]
    # The paper counts parameters in its first stage and bytes in the others.
    factors = [by_name[f"{NAME}, {stage}"] for stage in STAGES]
    assert [f.limit for f in factors] == list(setting.factors)
    assert [f.value for f in factors] == pytest.approx([20.0, 1.2e6 / 24_000, 100.0])
    assert all(f.at_least for f in factors)
