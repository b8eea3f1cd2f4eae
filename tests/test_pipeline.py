from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tvm

from examples.digits.data import DigitsSplit
from tvm_compress import ir
from tvm_compress.errors import (
    DataError,
    MissingToolError,
    ModelFormatError,
    OptionError,
    PassError,
)
from tvm_compress.frontends import load
from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.pipeline import compress, save
from tvm_compress.recipe import Finetune, Recipe
from tvm_compress.recipes import deep_compression
from tvm_compress.search import Budget


@pytest.fixture(scope="module")
def network(digits_onnx: Path) -> tvm.IRModule:
    return load(digits_onnx)


@pytest.fixture
def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((8, 1, 8, 8)).astype(np.float32)
    return x, generator.integers(0, 10, 8)


def text(mod: tvm.IRModule) -> str:
    return str(tvm.ir.save_json(mod))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace fine-tuning by a factor of 2 on all biases; give the calls."""
    calls: list[dict[str, Any]] = []

    def finetune(mod: tvm.IRModule, data: Any, **options: Any) -> tvm.IRModule:
        calls.append({"data": data, **options})
        if options["checkpoint"] is not None:
            options["checkpoint"].write_text("half")

        def double(parameter: ir.Parameter) -> Any:
            from tvm_compress import edge

            bias = parameter.name.endswith("_bias")
            return edge.constant(2 * parameter.value) if bias else None

        return ir.replace_parameters(mod, double)

    fake = ModuleType("tvm_compress.training")
    fake.finetune = finetune  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tvm_compress.training", fake)
    return calls


# ---- the steps -----------------------------------------------------------------------------------


def test_the_steps_run_in_order(network: tvm.IRModule) -> None:
    before = text(network)
    small = compress(network, Recipe([Prune(0.7), ShareWeights(3)]), progress=False)
    tvm.ir.assert_structural_equal(small, ShareWeights(3).apply(Prune(0.7).apply(network)))
    assert text(network) == before


def test_an_empty_recipe_gives_the_module_back(network: tvm.IRModule) -> None:
    tvm.ir.assert_structural_equal(compress(network, Recipe(), progress=False), network)


def test_fine_tuning_gets_its_options_and_the_data(
    network: tvm.IRModule, trainings: list[dict[str, Any]], data: Any
) -> None:
    step = Finetune(3, 0.5, 7, "sgd", "mse", 11, 0.25, "cosine")
    recipe = Recipe([step, Prune(0.5), step])
    small = compress(network, recipe, train=data, augment=np.add, progress=False)
    options = {
        "epochs": 3,
        "lr": 0.5,
        "batch_size": 7,
        "optimizer": "sgd",
        "loss": "mse",
        "seed": 11,
        "weight_decay": 0.25,
        "schedule": "cosine",
        "augment": np.add,
        "teacher": None,
        "device": "cpu",
        "checkpoint": None,
        "progress": False,
    }
    assert [{k: v for k, v in call.items() if k != "data"} for call in trainings] == [options] * 2
    assert all(call["data"] is data for call in trainings)
    old, new = ir.parameters(network), ir.parameters(small)
    np.testing.assert_array_equal(new["fc1_bias"].value, 4 * old["fc1_bias"].value)


def test_no_epochs_is_no_training(network: tvm.IRModule, trainings: list[dict[str, Any]]) -> None:
    small = compress(network, Recipe([Finetune(epochs=0)]), progress=False)
    assert trainings == []
    tvm.ir.assert_structural_equal(small, network)


def test_progress_says_the_step_on_stderr(
    network: tvm.IRModule, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = deep_compression(epochs=0)
    compress(network, recipe)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["[1/2] prune", "[2/2] share-weights"]
    compress(network, recipe, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_paper_from_end_to_end(network: tvm.IRModule, digits: DigitsSplit) -> None:
    pytest.importorskip("torch", reason="Fine-tuning needs torch.")
    train = (digits.train_images, digits.train_labels)
    recipe = deep_compression(0.9, 3, epochs=1)
    small = compress(network, recipe, train=train, progress=False)
    one_shot = compress(network, deep_compression(0.9, 3, epochs=0), progress=False)
    for name, weight in ir.weights(small).items():
        assert weight.parameter.shared
        value = weight.parameter.value
        assert np.count_nonzero(value == 0) >= round(0.9 * value.size), name
        assert np.unique(value).size <= 8, name
        assert not np.array_equal(value, ir.weights(one_shot)[name].parameter.value), name


# ---- bad input -----------------------------------------------------------------------------------


def test_fine_tuning_without_data(network: tvm.IRModule) -> None:
    with pytest.raises(OptionError) as caught:
        compress(network, deep_compression(epochs=1))
    assert str(caught.value) == (
        "The recipe fine-tunes, and no training data was given; expected train=(x, y): give data, "
        "or make a recipe with epochs=0."
    )


def test_data_that_is_no_pair(network: tvm.IRModule) -> None:
    train: Any = np.zeros((8, 1, 8, 8), np.float32)
    with pytest.raises(DataError) as caught:
        compress(network, deep_compression(), train=train)
    assert str(caught.value) == (
        "The training data is a ndarray; expected a pair (x, y) of samples and labels."
    )


def test_an_augmentation_that_is_no_function(network: tvm.IRModule, data: Any) -> None:
    flip: Any = "flip"
    with pytest.raises(OptionError) as caught:
        compress(network, deep_compression(), train=data, augment=flip)
    assert str(caught.value) == (
        "augment is a str; expected a function of the inputs of a batch and a "
        "numpy.random.Generator that gives the changed inputs."
    )


@pytest.mark.parametrize("place", ["checkpoint_dir", "trial_log"])
def test_an_augmentation_without_a_name_of_its_own(
    place: str, network: tvm.IRModule, data: Any, tmp_path: Path
) -> None:
    of: Any = Recipe([Finetune(1)])
    given: dict[str, Any] = {"train": data, place: tmp_path / "kept"}
    if place == "trial_log":
        of = None
        given |= {"budget": Budget(max_accuracy_drop=0.1), "validate": data}
    with pytest.raises(OptionError, match=r"^augment is or holds a lambda, whose name does not"):
        compress(network, of, augment=lambda x, random: x, **given)
    assert not (tmp_path / "kept").exists()


def test_the_teacher_of_a_distillation_goes_with_an_augmentation(
    network: tvm.IRModule, trainings: list[dict[str, Any]], data: Any
) -> None:
    said = np.zeros((8, 1, 10), np.float32)
    sys.modules["tvm_compress.training"].teacher_outputs = (  # type: ignore[attr-defined]
        lambda *given, **options: said
    )
    recipe = Recipe([Prune(0.5), Finetune(1, loss="distillation"), Finetune(1)])
    compress(network, recipe, train=data, augment=np.add, progress=False)
    assert [call["teacher"] for call in trainings] == [network, None]
    compress(network, recipe, train=data, progress=False)
    assert [call["teacher"] for call in trainings[2:]] == [None, None]


def test_calibration_data_is_checked_before_the_first_step(
    network: tvm.IRModule, applied: list[str]
) -> None:
    for samples, sentence in (
        (
            np.zeros((8, 1, 9, 8), np.float32),
            "The input image has the shape (8, 1, 9, 8); expected (1, 1, 8, 8).",
        ),
        (
            {"picture": np.zeros((8, 1, 8, 8), np.float32)},
            "There is no input picture; expected image.",
        ),
        (
            np.zeros((8, 1, 8, 8)),
            'The input image is float64; expected float32: convert it with .astype("float32").',
        ),
    ):
        given: Any = samples
        with pytest.raises(DataError) as caught:
            compress(network, Recipe([Prune(0.5)]), calibrate=given, progress=False)
        assert str(caught.value) == sentence
    assert applied == []


def test_the_device_is_checked_where_nothing_trains(
    network: tvm.IRModule, applied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="Other devices need torch.")
    with pytest.raises(OptionError) as caught:
        compress(network, Recipe([Prune(0.5)]), device="gpu", progress=False)
    assert str(caught.value) == (
        "The device is 'gpu'; expected cpu, cuda, or cuda with a number, such as cuda:1."
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingToolError, match=r"install the extra: pip install"):
        compress(network, Recipe([Prune(0.5)]), device="cuda", progress=False)
    assert applied == []


def test_something_else_than_a_module() -> None:
    nothing: Any = "kws.onnx"
    with pytest.raises(PassError, match=r"A str was given; expected an IRModule: use load\(\)"):
        compress(nothing, Recipe())


# ---- saving --------------------------------------------------------------------------------------


def test_load_reads_what_save_wrote(network: tvm.IRModule, tmp_path: Path) -> None:
    small = compress(network, deep_compression(epochs=0), progress=False)
    path = tmp_path / "small.json"
    save(small, str(path))
    tvm.ir.assert_structural_equal(load(path), small)
    assert list(ir.parameters(load(path))) == list(ir.parameters(small))
    assert [p.name for p in tmp_path.iterdir()] == ["small.json"]


def test_save_refuses_what_it_cannot_write(network: tvm.IRModule, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        save(network, tmp_path)
    assert str(caught.value) == (
        f"The output {tmp_path} is a folder; expected the name of a file in it."
    )
    with pytest.raises(OptionError) as caught:
        save(network, tmp_path / "no" / "small.json")
    assert str(caught.value) == (
        f"The folder {tmp_path / 'no'} of the output small.json does not exist; create it or "
        "choose another."
    )
    nothing: Any = None
    with pytest.raises(PassError, match="A NoneType was given"):
        save(nothing, tmp_path / "x.json")


def test_a_write_that_fails_leaves_the_old_file(
    network: tvm.IRModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.json"
    path.write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(network, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["small.json"]


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the names of the passes that ran, in order."""
    names: list[str] = []
    for of in (Prune, ShareWeights):

        def watch(self: Any, mod: Any, apply: Callable[..., Any] = of.apply) -> Any:
            names.append(self.name)
            return apply(self, mod)

        monkeypatch.setattr(of, "apply", watch)
    return names


def test_a_run_that_was_killed_goes_on_behind_its_last_step(
    network: tvm.IRModule,
    trainings: list[dict[str, Any]],
    data: Any,
    applied: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = deep_compression(0.5, 3, epochs=1)
    whole = compress(network, recipe, train=data, progress=False)
    applied.clear()
    trainings.clear()

    def kill(self: Any, mod: Any) -> Any:
        raise KeyboardInterrupt

    folder = tmp_path / "a" / "checkpoints"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShareWeights, "apply", kill)
        compress(network, recipe, train=data, checkpoint_dir=folder, progress=False)
    assert applied == ["prune"]
    assert len(trainings) == 1

    again = compress(network, recipe, train=data, checkpoint_dir=folder, progress=False)
    assert applied == ["prune", "share-weights"]
    assert len(trainings) == 2
    tvm.ir.assert_structural_equal(again, whole)
    assert text(again) == text(whole)

    # A finished run is only read.
    last = compress(network, recipe, train=data, checkpoint_dir=str(folder), progress=False)
    assert applied == ["prune", "share-weights"]
    assert len(trainings) == 2
    assert text(last) == text(whole)
    # One file a step; what the fine-tunings wrote meanwhile is gone.
    found = sorted(path.name for path in folder.iterdir())
    assert [name.rpartition("-")[0] for name in found] == [
        "01-prune",
        "02-finetune",
        "03-share-weights",
        "04-finetune",
    ]
    assert all(name.endswith(".json") for name in found)


def test_a_fine_tuning_that_was_killed_finds_its_own_checkpoint(
    network: tvm.IRModule, trainings: list[dict[str, Any]], data: Any, tmp_path: Path
) -> None:
    recipe = Recipe([Finetune(1), Finetune(1)])
    compress(network, recipe, train=data, checkpoint_dir=tmp_path, progress=False)
    first = [call["checkpoint"] for call in trainings]
    for path in tmp_path.iterdir():
        path.unlink()
    compress(network, recipe, train=data, checkpoint_dir=tmp_path, progress=False)
    second = [call["checkpoint"] for call in trainings][2:]
    assert first == second
    assert len(set(first)) == 2  # two equal steps are two trainings


def test_only_what_changed_is_done_again(
    network: tvm.IRModule,
    trainings: list[dict[str, Any]],
    data: Any,
    applied: list[str],
    tmp_path: Path,
) -> None:
    def run(mod: tvm.IRModule, recipe: Recipe, train: Any = None, **more: Any) -> list[str]:
        applied.clear()
        trainings.clear()
        compress(mod, recipe, train=train, checkpoint_dir=tmp_path, progress=False, **more)
        return [*applied, *["finetune"] * len(trainings)]

    shot = deep_compression(0.5, 3, epochs=0)
    assert run(network, shot) == ["prune", "share-weights"]
    assert run(network, shot) == []
    # Another later step keeps the earlier ones, another earlier step does not.
    assert run(network, deep_compression(0.5, 4, epochs=0)) == ["share-weights"]
    assert run(network, deep_compression(0.6, 4, epochs=0)) == ["prune", "share-weights"]
    # The order of the patterns decides, so it counts.
    patterns = {"conv*": 0.5, "conv1*": 0.1}
    swapped = dict(reversed(patterns.items()))
    assert run(network, Recipe([Prune(layers=patterns)])) == ["prune"]
    assert run(network, Recipe([Prune(layers=swapped)])) == ["prune"]
    # Another network, other data.
    other = Prune(0.1).apply(network)
    assert run(other, shot) == ["prune", "share-weights"]
    tuned = Recipe([Prune(0.5), Finetune(1)])
    assert run(network, tuned, data) == ["finetune"]
    assert run(network, tuned, data) == []
    x, y = data
    assert run(network, tuned, (x, (y + 1) % 10)) == ["finetune"]
    assert run(network, tuned, (-x, y)) == ["finetune"]
    assert run(network, tuned, ({"image": x}, y)) == ["finetune"]
    # An augmentation is known by its name, and counts where it is used.
    assert run(network, tuned, data, augment=np.add) == ["finetune"]
    assert run(network, tuned, data, augment=np.subtract) == ["finetune"]
    assert run(network, tuned, data, augment=np.add) == []
    assert run(network, shot, augment=np.add) == []
    # Of a partial what it holds counts, arrays by all their values.
    many = np.zeros(5000, np.float32)
    assert run(network, tuned, data, augment=partial(np.roll, shift=1)) == ["finetune"]
    assert run(network, tuned, data, augment=partial(np.roll, shift=2)) == ["finetune"]
    assert run(network, tuned, data, augment=partial(np.roll, many)) == ["finetune"]
    many[2500] = 1  # where repr leaves numbers out
    assert run(network, tuned, data, augment=partial(np.roll, many)) == ["finetune"]
    assert run(network, tuned, data, augment=partial(np.roll, many.copy())) == []


def test_a_checkpoint_that_is_damaged(network: tvm.IRModule, tmp_path: Path) -> None:
    compress(network, Recipe([Prune()]), checkpoint_dir=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    with pytest.raises(ModelFormatError) as caught:
        compress(network, Recipe([Prune()]), checkpoint_dir=tmp_path, progress=False)
    assert str(caught.value) == (
        f"The checkpoint {path} cannot be read; expected a saved module: delete the file and run "
        "again."
    )


def test_a_checkpoint_folder_that_is_a_file(network: tvm.IRModule, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(OptionError) as caught:
        compress(network, Recipe([Prune()]), checkpoint_dir=path)
    assert str(caught.value) == f"The checkpoint folder {path} is a file; choose another."
