"""The int8 networks of MLPerf Tiny and their inputs, in halves for tuning and for scoring."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import ROOT

__all__ = ["NETWORKS", "Samples", "model_path", "samples"]

NETWORKS = ("kws_dscnn_int8", "vww_96_int8", "ic_resnet8_int8", "ad01_int8")
_FRAMES = 5  # of a clip in one input of the autoencoder


@dataclass(frozen=True)
class Samples:
    """int8 inputs (N, ...): ``tuning`` may be looked at, ``scoring`` judges alone.

    ``reconstructs`` says that the network's output is held against its input; ``labels`` are the
    classes of the scoring inputs, where they are known.
    """

    tuning: NDArray[np.int8]
    scoring: NDArray[np.int8]
    reconstructs: bool = False
    labels: NDArray[Any] | None = None


def _shared() -> Path:
    return Path(os.environ.get("TVM_COMPRESS_SHARED", ROOT.parent / "shared" / "data"))


def model_path(name: str) -> Path:
    """Give where a network's file lies."""
    return _shared() / "mlperf_tiny" / f"{name}.tflite"


def _halves(inputs: NDArray[np.int8], reconstructs: bool = False) -> Samples:
    middle = len(inputs) // 2
    return Samples(inputs[:middle], inputs[middle:], reconstructs)


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.int8]:
    return (images.astype(np.int16) - 128).astype(np.int8)


def _jpeg(path: Path, count: int) -> NDArray[np.uint8]:
    from PIL import Image

    data = np.load(path)
    ends = data["offset"]
    files = [data["jpeg"][ends[i] : ends[i + 1]].tobytes() for i in range(count)]
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


def samples(name: str) -> Samples:
    """Read the inputs of a network."""
    folder = _shared()
    if name.startswith("kws"):
        features: NDArray[Any] = np.load(folder / "mlperf_tiny" / "kws01_a500.npz")["mfcc_int8"]
        return _halves(features.reshape(-1, 49, 10, 1).astype(np.int8))
    if name.startswith("vww"):
        images = np.load(folder / "mlperf_tiny" / "vww_coco_96_train128.npz")["image"]
        return _halves(_pixels(images))
    if name.startswith("ic"):
        train = _jpeg(folder / "datasets" / "cifar10_jpeg_train20000.npz", 10000)
        path = folder / "datasets" / "cifar10_jpeg_test_a5000.npz"
        labels = np.load(path)["label"]
        return Samples(_pixels(train), _pixels(_jpeg(path, len(labels))), labels=labels)
    clip = folder / "mlperf_tiny" / "ad01_normal_id_01_00000000_logmel.bin"
    frames = np.fromfile(clip, "<f4").reshape(-1, 128)
    windows = np.stack([frames[i : i + _FRAMES].ravel() for i in range(len(frames) - _FRAMES + 1)])
    # Scale and zero point of the network's input.
    quantised = np.clip(np.round(windows / np.float32(0.3910152316093445)) + 89, -128, 127)
    return _halves(quantised.astype(np.int8), reconstructs=True)
