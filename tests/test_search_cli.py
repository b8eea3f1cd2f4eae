"""``tvm-compress compress --budget-...``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from typer.testing import CliRunner

import tvm_compress as tc
from examples.digits.data import DigitsSplit
from tvm_compress.cli import app
from tvm_compress.recipes import deep_compression
from tvm_compress.search import Budget, SearchResult, Trial

DROP = ("--budget-accuracy-drop", "0.01")


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the search by one that gives the network back; give its calls."""
    calls: list[dict[str, Any]] = []

    def search(mod: tvm.IRModule, budget: Budget, **options: Any) -> SearchResult:
        calls.append({"budget": budget, **options})
        saved = str(tvm.ir.save_json(mod))
        costs = dict.fromkeys(budget.measured, 1234), dict.fromkeys(budget.measured, 777)
        best = Trial({"a": 0.5}, {"a": 3}, 0.975, costs[0], lambda: saved)
        return SearchResult(best, (Trial({"a": 0.9}, {"a": 2}, 0.9, costs[1], str), best), 0.98)

    # The package's attribute of this name is the function, so the module is taken by its full name.
    monkeypatch.setattr(sys.modules["tvm_compress.search"], "search", search)
    return calls


@pytest.fixture
def data(digits: DigitsSplit, tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=digits.train_images[:50], y=digits.train_labels[:50])
    return path


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["compress", *(str(a) for a in arguments)])


def mistake(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 1 and result.stdout == "", result
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


def test_options_reach_the_search(
    searches: list[dict[str, Any]], data: Path, digits_onnx: Path, tmp_path: Path
) -> None:
    output = tmp_path / "small.tcz"
    limits = ("--budget-weight-bytes", 9000, "--budget-flash-bytes", 20000)
    limits += ("--budget-instructions", 700000, "--board", "mps2-an386", "--profile", "flash")
    tuning = ("--train", data, "--epochs", 3, "--lr", 0.01, "--seed", 7, "--trials", 5)
    others = ("--validate", data, "--trial-log", tmp_path / "log", "--quiet", "--json")
    others += ("--device", "cuda:1")
    result = call(digits_onnx, "-o", output, *DROP, *limits, *tuning, *others)
    assert result.exit_code == 0, result.stderr
    (got,) = searches
    assert got["device"] == "cuda:1"
    assert got["budget"] == Budget(0.01, 9000, 20000, 700000, "mps2-an386", "flash")
    for name in ("train", "validate"):
        x, y = got[name]
        assert x.shape == (50, 1, 8, 8) and y.shape == (50,)
    options = {"layer_sparsity": {"fc1_weight": 0.5}, "layer_bits": {"fc1_weight": 3}}
    assert got["recipe"](**options) == deep_compression(epochs=3, lr=0.01, seed=7, **options)
    assert got["trials"] == 5 and got["progress"] is False
    assert got["trial_log"] == tmp_path / "log" and got["calibrate"] is None
    document = json.loads(result.stdout)
    assert document["search"]["best"] == {
        "accuracy": 0.975,
        "weight_bytes": 1234,
        "flash_bytes": 1234,
        "instructions": 1234,
        "sparsity": {"a": 0.5},
        "bits": {"a": 3},
    }
    assert [trial["accuracy"] for trial in document["search"]["front"]] == [0.9, 0.975]
    assert document["search"]["accuracy"] == 0.98 and document["search"]["trials"] == 2
    assert "recipe" not in document
    tvm.ir.assert_structural_equal(tc.load(output), tc.load(digits_onnx))


def test_the_front_is_shown(
    searches: list[dict[str, Any]], data: Path, digits_onnx: Path, tmp_path: Path
) -> None:
    samples = tmp_path / "x.npy"
    np.save(samples, np.zeros((3, 1, 8, 8), np.float32))
    options = ("--calibrate", samples, "--validate", data)
    result = call(digits_onnx, "-o", tmp_path / "small.json", *DROP, *options)
    assert result.exit_code == 0, result.stderr
    (got,) = searches
    assert got["recipe"] is None and got["train"] is None and got["trials"] == 16
    assert got["calibrate"].shape == (3, 1, 8, 8) and got["progress"] is True
    assert got["budget"] == Budget(0.01)
    _, told, table = result.stdout.partition("\nPareto front")
    assert told and "2 trials; accuracy of the uncompressed network 98.00%\n" in result.stdout
    rows = [row.replace("│", " ").split() for row in table.splitlines()]
    assert ["90.00%", "777"] in rows and ["best", "97.50%", "1,234"] in rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--validate", "v.npz", "--trial-log", "log"],
            "--validate and --trial-log was given without a budget; expected one of "
            "--budget-accuracy-drop, --budget-weight-bytes, --budget-flash-bytes and "
            "--budget-instructions with it.",
        ),
        (
            [*DROP, "--validate", "v.npz", "--bits", "4", "--checkpoint-dir", "c"],
            "--checkpoint-dir and --bits was given with a budget, which searches that itself; "
            "expected one or the other.",
        ),
        (
            [*DROP, "--validate", "v.npz", "--recipe", "r.toml"],
            "--recipe was given with a budget, which searches that itself; expected one or the "
            "other.",
        ),
        (
            [*DROP],
            "A budget was given and no validation data; expected --validate data.npz with samples "
            "x and their classes y: the accuracy of every trial is measured on it.",
        ),
        (
            [*DROP, "--validate", "v.npz", "--epochs", "3"],
            "--epochs was given and no training data; expected --train data.npz with it.",
        ),
        (
            ["--budget-weight-bytes", "0", "--validate", "v.npz"],
            "The budget's weight_bytes is 0; expected a whole number from 1 on.",
        ),
        (
            ["--budget-weight-bytes", "9", "--board", "cortex-m4", "--validate", "v.npz"],
            "The budget names the board cortex-m4 and limits neither flash_bytes nor instructions; "
            "expected one of them with it: limit it, or leave the board out.",
        ),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, digits_onnx: Path, tmp_path: Path
) -> None:
    assert mistake(digits_onnx, "-o", tmp_path / "small.json", *options) == message
    assert list(tmp_path.iterdir()) == []
