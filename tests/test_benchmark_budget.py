"""The search beside uniform settings: how the opponent is chosen, and both on a tiny network."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tvm

import tvm_compress as tc
from benchmarks import budget as benchmark
from benchmarks import lenet
from benchmarks.budget import Case, Found
from benchmarks.common import Figure
from tests.test_benchmark_lenet import some_digits
from tvm_compress import codec, ir
from tvm_compress.recipe import Recipe

NAME = "lenet_300_100"
FLASH, DROP = tc.Budget(flash_bytes=1000), tc.Budget(max_accuracy_drop=0.1)


def some_case(name: str = NAME) -> Case:
    return Case(name, tvm.IRModule(), some_digits(), lambda **_: Recipe([]))


def some_network(accuracy: float, size: int) -> Found:
    return Found(tvm.IRModule(), {"a": 0.5}, {"a": 4}, accuracy, size)


@pytest.fixture
def perfect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The uncompressed network makes no error."""
    monkeypatch.setattr(lenet, "error", lambda mod, images: 0.0)


def fakes(
    monkeypatch: pytest.MonkeyPatch, accuracy: Callable[[float, int], float]
) -> list[tuple[float, int]]:
    """Networks that need not be trained: of a thousand weights and a byte for every bit."""
    asked: list[tuple[float, int]] = []

    def uniform(this: Case, budget: tc.Budget, density: float, bits: int) -> Found:
        asked.append((density, bits))
        return some_network(accuracy(density, bits), round(1000 * density * bits))

    def size_bytes(recipe: Any, budget: tc.Budget) -> int:
        prune, share = recipe.steps
        return round(1000 * (1 - prune.sparsity) * share.bits)

    monkeypatch.setattr(benchmark, "uniform", uniform)
    monkeypatch.setattr(benchmark, "size_bytes", size_bytes)
    monkeypatch.setattr(tc, "compress", lambda mod, recipe, **_: recipe)
    return asked


def test_the_densest_that_fit_are_tried(monkeypatch: pytest.MonkeyPatch, perfect: None) -> None:
    asked = fakes(monkeypatch, lambda density, bits: density)
    monkeypatch.setitem(benchmark.BITS, NAME, (2, 4))
    tried = benchmark.uniforms(some_case(), FLASH)
    assert asked == [(d, 2) for d in (0.49, 0.495, 0.5)] + [(d, 4) for d in (0.24, 0.245, 0.25)]
    assert len(asked) == benchmark.trainings(NAME, FLASH)
    assert max(found.size_bytes for found in tried) == 1000


def test_no_more_are_tried_than_fit(monkeypatch: pytest.MonkeyPatch, perfect: None) -> None:
    asked = fakes(monkeypatch, lambda density, bits: density)
    monkeypatch.setitem(benchmark.BITS, NAME, (2, 4, 8))
    benchmark.uniforms(some_case(), tc.Budget(flash_bytes=25))
    assert asked == [(0.005, 2), (0.01, 2), (0.005, 4)]


@pytest.mark.parametrize("edge", [0, 1, 6, 7, 8, 13, 14])
def test_the_sparsest_that_keeps_the_accuracy_is_found(
    edge: int, monkeypatch: pytest.MonkeyPatch, perfect: None
) -> None:
    # With more bits a step sparser; the drop itself is still allowed.
    def accuracy(density: float, bits: int) -> float:
        kept = density >= benchmark.KEEP_DENSITIES[max(0, edge + 2 - bits)]
        return 0.9 if kept else 0.89

    asked = fakes(monkeypatch, accuracy)
    monkeypatch.setitem(benchmark.BITS, NAME, (2, 3))
    tried = benchmark.uniforms(some_case(), DROP)
    assert len(asked) == len(tried) == benchmark.trainings(NAME, DROP) == 8
    for bits in (2, 3):
        kept = [d for d, b in asked if b == bits and accuracy(d, bits) == 0.9]
        assert min(kept) == benchmark.KEEP_DENSITIES[max(0, edge + 2 - bits)]


def test_the_best_is_what_the_search_looks_for(perfect: None) -> None:
    best = benchmark.best_uniform
    over, good, small, alike = (
        some_network(*pair) for pair in ((0.97, 1001), (0.95, 1000), (0.91, 400), (0.95, 999))
    )
    poor = some_network(0.8, 300)
    tried = [over, good, small, alike, poor]
    assert best(tried, some_case(), FLASH) is alike
    assert best(tried, some_case(), DROP) is small
    assert best([poor, over, good], some_case(), DROP) is good
    both = replace(FLASH, max_accuracy_drop=0.04)
    assert not benchmark.meets(good, some_case(), both)
    assert benchmark.meets(some_network(0.96, 1000), some_case(), both)


def test_without_an_opponent_it_stops(perfect: None) -> None:
    with pytest.raises(SystemExit) as raised:
        benchmark.best_uniform([some_network(0.97, 1001)], some_case(), FLASH)
    assert str(raised.value) == (
        "None of the 1 uniform settings tried on lenet_300_100 meets Budget(max_accuracy_drop=None,"
        " weight_bytes=None, flash_bytes=1000, instructions=None, board='cortex-m4', "
        "profile='archive'); expected one to compare the search with. Set a limit that "
        "is easier to meet."
    )


def result_of(**changes: Any) -> dict[str, Any]:
    row = {"density": {"a": 0.1, "b": 0.5}, "bits": {"a": 3, "b": 3}, "test_accuracy": 0.9375}
    return {
        "network": "net",
        "limit": "0.5 points",
        "flash_limit": None,
        "drop_limit": 0.005,
        "uncompressed": {"validation_accuracy": 0.99, "test_accuracy": 0.98, "bytes": 9000},
        "uniform": {**row, "validation_accuracy": 0.985, "bytes": 1200, "trainings": 15},
        "search": {**row, "validation_accuracy": 0.985, "bytes": 1200, "trainings": 14},
        "search_at_no_more_bytes": 0.985,
    } | changes


def missed(figures: list[Figure]) -> list[str]:
    return [figure.name.split(": ")[1] for figure in figures if not figure.met]


def test_a_search_that_is_worse_misses_its_figures() -> None:
    result = result_of()
    assert missed(benchmark.figures_of(result)) == []
    accuracy = "accuracy that the search gains at no more bytes"
    assert missed(benchmark.figures_of(result_of(search_at_no_more_bytes=0.9849))) == [accuracy]
    worse = result["search"] | {"validation_accuracy": 0.9849}
    assert missed(benchmark.figures_of(result_of(search=worse))) == ["accuracy lost"]
    larger = result["search"] | {"bytes": 1201}
    assert missed(benchmark.figures_of(result_of(search=larger))) == ["file beside the uniform one"]
    assert missed(benchmark.figures_of(result_of(flash_limit=1200))) == []
    assert missed(benchmark.figures_of(result_of(flash_limit=1199))) == ["flash"]


def test_every_budget_has_three_rows() -> None:
    lines = benchmark.table_of([result_of(), result_of(limit="9,000 bytes of flash")]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert len(cells) == 2 + 2 * 3
    assert cells[2] == ["net, 0.5 points", "uncompressed", "", "", "9,000", "99.00%", "98.00%", ""]
    assert cells[4] == [
        *("net, 0.5 points", "search", "10 to 50 %", "3"),
        *("1,200", "98.50%", "93.75%", "14"),
    ]
    assert cells[7][0] == "net, 9,000 bytes of flash"


def test_the_digits_for_validation_are_not_trained_on() -> None:
    this = benchmark.case("digits")
    seen = {image.tobytes() for image in this.data.train[0]}
    assert len(this.data.train[0]) == 1437 - benchmark.DIGITS_VALIDATION
    assert len(this.data.validation[0]) == len(this.data.validation[1])
    assert len(this.data.validation[0]) == benchmark.DIGITS_VALIDATION
    assert len(this.data.test[0]) == 360
    assert not any(image.tobytes() in seen for image in this.data.validation[0])
    recipe = this.make(layer_sparsity={"conv1_weight": 0.25}, layer_bits={"conv1_weight": 3})
    names = [step.name for step in recipe.steps]
    assert names == ["prune", "finetune", "share-weights", "finetune"]


def test_the_recipe_ends_at_what_it_is_given() -> None:
    recipe = benchmark.lenet_recipe({"a": 0.75}, {"a": 3})
    prunings = [step.layers for step in recipe.steps if isinstance(step, tc.passes.Prune)]
    assert [set(layers) for layers in prunings] == [{"a"}] * 3
    assert prunings[-1]["a"] == 0.75 > prunings[0]["a"]
    (share,) = [step for step in recipe.steps if isinstance(step, tc.passes.ShareWeights)]
    assert dict(share.layers) == {"a": 3}


def test_flash_is_that_of_the_firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Firmware:
        class size:
            flash_bytes = 1234

    def build(mod: Any, target: str, board: str) -> Any:
        asked.append((mod, target, board))
        return Firmware

    monkeypatch.setattr(tc, "build", build)
    mod = tvm.IRModule()
    assert benchmark.size_bytes(mod, replace(FLASH, board="cortex-m7")) == 1234
    assert asked == [(mod, "c", "cortex-m7")]


def test_a_comparison_that_was_killed_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed; this test trains.")

    def network() -> Any:
        layers = [("flatten", torch.nn.Flatten()), ("ip1", torch.nn.Linear(784, 5))]
        layers += [("relu", torch.nn.ReLU()), ("ip2", torch.nn.Linear(5, 10))]
        return torch.nn.Sequential(OrderedDict(layers))

    monkeypatch.setattr(lenet, "CACHE", tmp_path / "cache")
    monkeypatch.setitem(lenet.NETWORKS, NAME, network)
    monkeypatch.setitem(lenet.EPOCHS, NAME, 20)
    monkeypatch.setattr(lenet, "mnist", some_digits)
    monkeypatch.setitem(benchmark.BUDGETS, NAME, (tc.Budget(max_accuracy_drop=0.5),))
    monkeypatch.setitem(benchmark.BITS, NAME, (4,))
    path = tmp_path / "record.json"
    arguments = ["--networks", NAME, "--json", str(path)]
    benchmark.main(arguments)
    assert f"| {NAME}, 50 points | " in capsys.readouterr().out
    record = json.loads(path.read_text())
    (result,) = record["results"]
    assert result["uniform"]["trainings"] == 4 and 1 <= result["search"]["trainings"] <= 4
    assert len(record["figures"]) == 3
    assert set(result["search"]["density"]) == {"p_ip1_weight", "p_ip2_weight"}
    for row in (result["uniform"], result["search"]):
        lost = result["uncompressed"]["validation_accuracy"] - row["validation_accuracy"]
        assert lost <= 0.5 + 1e-9
    # The network that the table tells of is one of the front, and its file is as long as it says.
    files = {}
    for file in (tmp_path / "cache").rglob("trial-*.json"):
        mod = tc.load(file)
        files[len(codec.pack(mod))] = mod
    found = files[result["search"]["bytes"]]
    for name, weight in ir.weights(found).items():
        zeros = float((weight.parameter.value == 0).mean())
        assert zeros == pytest.approx(1 - result["search"]["density"][name], abs=0.01)
    mine = {
        "validation_accuracy": result["search"]["validation_accuracy"],
        "bytes": result["search"]["bytes"],
    }
    assert mine in result["front"]

    monkeypatch.setattr(tc, "compress", lambda *_, **__: pytest.fail("it is in the cache"))
    monkeypatch.setattr(
        "tvm_compress.pipeline.compress", lambda *_, **__: pytest.fail("it is in the log")
    )
    benchmark.main(arguments)
    assert json.loads(path.read_text())["results"] == [result]
