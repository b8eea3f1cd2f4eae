"""The built-in network: its data, its file, and the script that trained it."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from sklearn.datasets import load_digits

from examples.digits import data
from examples.digits.data import DigitsSplit, load_digits_split

REPO = Path(__file__).resolve().parents[2]


def session(model: bytes | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options)


def test_split_is_a_partition_of_all_digits(digits: DigitsSplit) -> None:
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (data.TEST_COUNT, 1, 8, 8) == (360, 1, 8, 8)
    assert digits.train_images.dtype == digits.test_images.dtype == np.float32
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int64
    assert digits.train_images.min() == 0.0 and digits.train_images.max() == 1.0

    def rows(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
        pixels = np.rint(images.reshape(len(images), 64) * 16).astype(np.int64)
        return [row.tobytes() for row in np.concatenate([pixels, labels[:, None]], axis=1)]

    source = load_digits()
    together = rows(digits.train_images, digits.train_labels)
    together += rows(digits.test_images, digits.test_labels)
    assert sorted(together) == sorted(rows(source.data / 16, source.target))


def test_split_is_stratified_and_never_moves(digits: DigitsSplit) -> None:
    assert set(np.bincount(digits.test_labels)) <= {35, 36, 37}
    # The committed network was trained on the other images: another split would test it on them.
    assert zlib.crc32(digits.test_images.tobytes()) == 976538140
    assert zlib.crc32(digits.test_labels.tobytes()) == 3021064937


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        load_digits_split()
    assert str(caught.value) == (
        "The digits come with scikit-learn, which is not installed. "
        "Install it: pip install 'tvm-compress[demo]'."
    )


def test_network_file(digits_onnx: Path) -> None:
    assert digits_onnx.stat().st_size < 200_000
    model = onnx.load(digits_onnx)
    onnx.checker.check_model(model, full_check=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert shapes == {
        "conv1.weight": (16, 1, 3, 3),
        "conv1.bias": (16,),
        "conv2.weight": (32, 16, 3, 3),
        "conv2.bias": (32,),
        "conv3.weight": (32, 32, 3, 3),
        "conv3.bias": (32,),
        "fc1.weight": (64, 128),
        "fc1.bias": (64,),
        "fc2.weight": (10, 64),
        "fc2.bias": (10,),
    }
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 22_954
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT}


def test_network_knows_the_digits(digits_onnx: Path, digits: DigitsSplit) -> None:
    run = session(str(digits_onnx))
    (image,) = run.get_inputs()
    assert (image.name, image.shape) == ("image", ["N", 1, 8, 8])
    (logits,) = run.run(["logits"], {"image": digits.test_images})
    assert logits.shape == (360, 10)
    assert (logits.argmax(1) == digits.test_labels).mean() >= 0.985


def test_onnx_means_what_torch_computed(digits: DigitsSplit) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`).")
    from examples.digits.train import DigitsNet, build_onnx

    torch.manual_seed(7)
    net = DigitsNet().eval()
    tensors = {name: value.numpy() for name, value in net.state_dict().items()}
    model = build_onnx(tensors)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert stored.keys() == tensors.keys()
    assert all(np.array_equal(stored[name], tensors[name]) for name in tensors)

    images = digits.test_images[:32]
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    (actual,) = session(model.SerializeToString()).run(None, {"image": images})
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_training_repeats(digits: DigitsSplit) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`).")
    from examples.digits.train import train

    images, labels = digits.train_images[:512], digits.train_labels[:512]
    threads = torch.get_num_threads()
    try:
        first = train(images, labels, epochs=4)
        second = train(images, labels, epochs=4)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_shifts_move_by_whole_pixels() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`).")
    from examples.digits.train import shifted

    image = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8)
    padded = np.pad(image[0, 0].numpy(), 1)
    allowed = {padded[r : r + 8, c : c + 8].tobytes() for r in range(3) for c in range(3)}
    moved = shifted(image.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0))
    assert moved.shape == (200, 1, 8, 8)
    assert {one.numpy().tobytes() for one in moved[:, 0]} == allowed


@pytest.mark.slow
def test_script_trains_and_writes(tmp_path: Path, digits: DigitsSplit) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `train`).")
    out = tmp_path / "digits.onnx"
    result = subprocess.run(
        [sys.executable, str(REPO / "examples" / "digits" / "train.py"), "--out", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        check=True,
    )
    assert f"wrote {out}, {out.stat().st_size} bytes" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]
    (logits,) = session(str(out)).run(None, {"image": digits.test_images})
    accuracy = (logits.argmax(1) == digits.test_labels).mean()
    assert accuracy >= 0.985
    assert f"test accuracy  {accuracy:.4f}" in result.stdout
