"""The networks that benchmarks train, and the comparison of two prunings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

import tvm_compress as tc
from benchmarks import drop_prune, lenet
from benchmarks.lenet import Mnist
from tests.passes.nets import conv_net
from tvm_compress import ir
from tvm_compress.passes import DropPrune, Prune
from tvm_compress.recipe import Finetune, Recipe


def some_digits(count: int = 120) -> Mnist:
    """Ten kinds of noisy stripes that stand for digits."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % 10
    x = rng.random((count, 1, 28, 28)).astype(np.float32) * 0.2
    for i, label in enumerate(y):
        x[i, 0, 2 * label : 2 * label + 4] += 0.8
    return Mnist((x, y), (x[:20], y[:20]), (x[:50], y[:50]))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(lenet, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(lenet, "EPOCHS", {"lenet_300_100": 4, "lenet5": 1})
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("name", "weights", "biases"), [("lenet_300_100", 266_200, 410), ("lenet5", 430_500, 580)]
)
def test_networks_of_the_known_size(quick: Path, name: str, weights: int, biases: int) -> None:
    mod = lenet.train(name, 0, some_digits())
    sizes = {n: p.value.size for n, p in ir.parameters(mod).items()}
    assert sum(sizes[n] for n in ir.weights(mod)) == weights
    assert sum(sizes[n] for n in ir.biases(mod)) == biases
    assert sum(sizes.values()) == weights + biases


def test_a_network_is_trained_once_and_the_same_each_time(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = some_digits()
    first = lenet.train("lenet_300_100", 3, data)
    assert lenet.error(first, data.test) < 0.5  # nine in ten by chance
    (file,) = quick.iterdir()
    text = file.read_text()
    monkeypatch.setattr(lenet, "_train", lambda *_: pytest.fail("it is in the cache"))
    again = lenet.train("lenet_300_100", 3, data)
    monkeypatch.undo()
    monkeypatch.setattr(lenet, "CACHE", quick)
    monkeypatch.setattr(lenet, "EPOCHS", {"lenet_300_100": 4, "lenet5": 1})
    file.unlink()
    third = lenet.train("lenet_300_100", 3, data)
    assert file.read_text() == text
    for name, parameter in ir.parameters(first).items():
        for other in (again, third):
            np.testing.assert_array_equal(ir.parameters(other)[name].value, parameter.value)


def test_what_is_kept_is_made_once_for_what_decides_it(quick: Path) -> None:
    made: list[str] = []

    def make(text: str) -> Any:
        def network() -> tvm.IRModule:
            made.append(text)
            return conv_net()

        return lenet.kept("net", text, network)

    for text in ("a", "b", "a"):
        tvm.ir.assert_structural_equal(make(text), conv_net())
    assert made == ["a", "b"]
    assert len(list(quick.iterdir())) == 2


def test_moved_images_are_the_image_and_its_four_neighbours() -> None:
    images = np.zeros((2, 1, 28, 28), np.float32)
    images[0, 0, 5, 7], images[1, 0, 0, 0] = 1, 1
    x, y = lenet.moved((images, np.array([3, 8])))
    assert x.shape == (10, 1, 28, 28) and x.dtype == np.float32
    assert y.tolist() == [3, 8] * 5
    np.testing.assert_array_equal(x[:2], images)
    places = {tuple(int(i) for i in np.argwhere(image[0])[0]) for image in x[::2]}
    assert places == {(5, 7), (6, 7), (4, 7), (5, 8), (5, 6)}
    # What is moved out of the image is gone.
    assert x[1::2].sum() == 3


def test_mnist_as_published(shared_data: Path) -> None:
    data = lenet.mnist(shared_data)
    assert [len(x) for x, _ in (data.train, data.validation, data.test)] == [55_000, 5_000, 10_000]
    for x, y in (data.train, data.validation, data.test):
        assert x.dtype == np.float32 and x.shape[1:] == (1, 28, 28) and y.dtype == np.int64
        assert x.min() == 0 and x.max() == 1
    # The first labels of the published test set, and how often each digit is in it.
    assert data.test[1][:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(data.test[1]).tolist() == counts


def test_missing_data_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        lenet.mnist(tmp_path)
    assert str(caught.value) == (
        "MNIST was not found; expected datasets/mnist_*.gz in the folder of development data: set "
        "TVM_COMPRESS_SHARED to that folder."
    )


@pytest.mark.parametrize("ratio", [14.3, 60.0])
def test_both_prunings_meet_the_ratio_layer_by_layer(quick: Path, ratio: float) -> None:
    mod = lenet.train("lenet5", 0, some_digits())
    counts = []
    made = drop_prune.recipes(mod, ratio, 0)
    # Beside them stands the same fine-tuning without a pruning.
    tuned = made.pop(drop_prune.TUNED).steps
    assert list(made) == ["magnitude", "drop-prune"]
    assert tuned == tuple(s for s in made["magnitude"].steps if isinstance(s, Finetune))
    for recipe in made.values():
        # The prunings alone: fine-tuning moves no zero.
        steps = [step for step in recipe.steps if isinstance(step, Prune | DropPrune)]
        assert len(steps) == drop_prune.STEPS
        pruned = tc.compress(mod, Recipe(steps), progress=False)
        assert ratio <= drop_prune.ratio_of(pruned) < 1.01 * ratio
        counts.append({n: np.count_nonzero(p.value) for n, p in ir.parameters(pruned).items()})
    assert counts[0] == counts[1]
