"""The benchmark of VGG-16 on CIFAR-10, on the processor, with few channels and made-up images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; these tests need it.")

from benchmarks import vgg16  # noqa: E402
from tvm_compress import edge, ir  # noqa: E402
from tvm_compress.errors import OptionError  # noqa: E402

WIDTH = 0.06


@pytest.fixture(scope="module")
def data() -> vgg16.Data:
    """Images whose class is their brightest channel and its half."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 64)
    images = random.normal(0, 0.1, (64, 3, 32, 32)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        half = slice(0, 16) if label % 2 else slice(16, 32)
        image[label // 2, half] += 1
    return vgg16.Data((images[:48], labels[:48]), (images[48:], labels[48:]))


def test_without_a_gpu_the_table_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "record.json"
    assert vgg16.main(["--json", str(path), "--check"]) == 0
    assert "| not run: torch found no GPU |" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["figures"] == []
    assert record["results"] == {"missing": "not run: torch found no GPU"}


def test_without_torch_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vgg16.sys.modules, "tvm_compress.training.device", None)
    assert vgg16._missing("cuda") == "not run: torch is not installed"


def test_augmented_images_are_the_images_mirrored_and_shifted() -> None:
    random = np.random.default_rng(3)
    images = random.normal(size=(40, 3, 32, 32)).astype(np.float32)
    changed = vgg16.augment(images.copy(), np.random.default_rng(0))
    assert changed.shape == images.shape and changed.dtype == np.float32
    seen = set()
    for image, new in zip(images, changed, strict=True):
        wide = np.zeros((3, 64, 64), np.float32)
        found = []
        for mirrored in (False, True):
            wide[:, 16:48, 16:48] = image
            for row in range(-4, 5):
                for col in range(-4, 5):
                    shifted = wide[:, 16 + row : 48 + row, 16 + col : 48 + col]
                    if np.array_equal(shifted[:, :, ::-1] if mirrored else shifted, new):
                        found.append((mirrored, row, col))
        assert len(found) == 1
        seen.add(found[0])
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert len(seen) > 20


def test_the_images_are_read_and_scaled(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "datasets").mkdir()

    def write(name: str, colours: list[int]) -> None:
        files = []
        for colour in colours:
            stream = io.BytesIO()
            Image.new("RGB", (32, 32), (colour, 0, 255 - colour)).save(stream, "JPEG")
            files.append(np.frombuffer(stream.getvalue(), np.uint8))
        ends = np.cumsum([0, *(f.size for f in files)])
        labels = np.arange(len(files), dtype=np.uint8)
        np.savez(
            tmp_path / "datasets" / name, jpeg=np.concatenate(files), offset=ends, label=labels
        )

    write("cifar10_jpeg_train20000.npz", [0, 100, 200])
    with pytest.raises(
        SystemExit, match=r"CIFAR-10 was not found; expected datasets/cifar10_jpeg_t"
    ):
        vgg16.cifar10(tmp_path)
    write("cifar10_jpeg_test_a5000.npz", [50, 150])
    data = vgg16.cifar10(tmp_path, train=2)
    x, y = data.train
    assert x.shape == (2, 3, 32, 32) and x.dtype == np.float32 and y.tolist() == [0, 1]
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-4)
    red = data.test[0][:, 0].mean((1, 2))
    np.testing.assert_allclose(red, [0, 2], atol=0.1)  # 50 and 150, where 50 is mean and deviation
    assert data.test[1].tolist() == [0, 1]


def test_training_gives_a_network_whose_normalisation_is_in_its_weights(data: vgg16.Data) -> None:
    few = vgg16.Data((data.train[0][:8], data.train[1][:8]), data.test)
    mod = vgg16.train(few, WIDTH, 1, 0, "cpu")
    operators = [edge.op_name(b.value) for b in ir.bindings(ir.main_function(mod))]
    assert operators.count("relax.nn.conv2d") == 13 and operators.count("relax.matmul") == 1
    assert "relax.nn.batch_norm" not in operators and "relax.multiply" not in operators
    assert len(ir.weights(mod)) == 14
    again = vgg16.train(few, WIDTH, 1, 0, "cpu")
    for name, parameter in ir.parameters(mod).items():
        np.testing.assert_array_equal(ir.parameters(again)[name].value, parameter.value)


def test_a_network_that_is_too_narrow_for_the_ratio(data: vgg16.Data) -> None:
    mod = vgg16.train(data, 0.003, 0, 0, "cpu")
    with pytest.raises(
        OptionError, match=r"11\.1 times fewer cannot be kept; expected a wider net"
    ):
        vgg16.recipes(mod, 1, 0)


def test_all_of_it_on_the_processor(
    data: vgg16.Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def read(folder: Path, images: int) -> vgg16.Data:
        asked.update(folder=folder, images=images)
        return data

    monkeypatch.setattr(vgg16, "cifar10", read)
    monkeypatch.setattr(vgg16, "TURNS", 2)
    monkeypatch.setenv("TVM_COMPRESS_SHARED", "/somewhere")
    path = tmp_path / "record.json"
    options = ["--device", "cpu", "--width", str(WIDTH), "--epochs", "2", "--images", "64"]
    assert vgg16.main([*options, "--json", str(path)]) == 0
    assert asked == {"folder": Path("/somewhere"), "images": 64}
    record = json.loads(path.read_text())
    (run,) = record["results"]
    stages = run["stages"]
    assert list(stages) == ["dense", "drop-prune", "magnitude", "magnitude, shared, coded"]
    assert all(0 <= stage["error"] <= 1 for stage in stages.values())
    for name in ("drop-prune", "magnitude", "magnitude, shared, coded"):
        assert vgg16.GOAL <= stages[name]["ratio"] < 1.02 * vgg16.GOAL
    coded = stages["magnitude, shared, coded"]
    assert 0 < coded["weight_bytes"] < coded["file_bytes"] < run["float_bytes"]
    assert [figure["name"] for figure in record["figures"]] == [
        "fewer weights by DropPruning on VGG-16",
        "accuracy lost by DropPruning on VGG-16",
    ]
    assert record["figures"][0]["met"]
    assert "VGG-16, width 0.06" in capsys.readouterr().out
