"""How small do networks get in one shot, by inputs without labels, and what accuracy is left?

The networks and the data are those of MLPerf Tiny under ``shared/data``; labels are used for
counting alone. kws is calibrated on 256 of the inputs it is judged by (there are no others), vww on
64 of them, ic on 128 pictures of the training set.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

import tvm_compress as tc
from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser
from tvm_compress import codec, ir
from tvm_compress.errors import DataError, MissingToolError

__all__ = ["NETWORKS", "accuracy", "main", "weight_bytes"]

NAME = "post_training"
Array = NDArray[Any]


@dataclass(frozen=True)
class Network:
    """A network with its data, the settings to show, and what the first of them is held to.

    ``settings`` are pairs of sparsity and bits.
    """

    path: str
    data: Callable[[Path], tuple[Array, Array, Array]]
    settings: tuple[tuple[float, int], ...]
    ratio: float
    points: float


def _shared() -> Path:
    folder = os.environ.get("TVM_COMPRESS_SHARED")
    return Path(folder) if folder else ROOT.parent / "shared" / "data"


def _keywords(folder: Path) -> tuple[Array, Array, Array]:
    data = np.load(folder / "mlperf_tiny" / "kws01_a500.npz")
    x = (data["mfcc_int8"].astype(np.float32) - 83) * np.float32(0.5847029)
    return x[..., None], data["label"], x[:256, ..., None]


def _pictures(path: Path, count: int) -> tuple[Array, Array]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingToolError(
            "The pictures are JPEG, and pillow is not installed: pip install pillow."
        ) from error
    data = np.load(path)
    ends, jpeg = data["offset"], data["jpeg"]
    pictures = [
        np.asarray(Image.open(io.BytesIO(jpeg[ends[i] : ends[i + 1]].tobytes())), np.float32)
        for i in range(count)
    ]
    return np.stack(pictures), data["label"][:count]


def _cifar(folder: Path) -> tuple[Array, Array, Array]:
    x, y = _pictures(folder / "datasets" / "cifar10_jpeg_test_a5000.npz", 5000)
    calibrate, _ = _pictures(folder / "datasets" / "cifar10_jpeg_train20000.npz", 128)
    return x, y, calibrate


def _people(folder: Path) -> tuple[Array, Array, Array]:
    data = np.load(folder / "mlperf_tiny" / "vww_coco_96_train128.npz")
    size = data["largest_person_box_fraction"]
    clear = ~((size > 0) & (size <= 0.005))  # as the benchmark leaves out tiny people
    (images,) = (data[key] for key in data if data[key].ndim == 4)
    x = images.astype(np.float32) / 255
    return x[clear], size[clear] > 0.005, x[:64]


NETWORKS = {
    "kws_dscnn": Network(
        "mlperf_tiny/kws_dscnn_float.onnx",
        _keywords,
        ((0.0, 3), (0.3, 3), (0.0, 4), (0.5, 3)),
        8,
        1,
    ),
    "ic_resnet8": Network(
        "mlperf_tiny/ic_resnet8_float.onnx", _cifar, ((0.4, 4), (0.0, 3), (0.5, 3)), 8, 1
    ),
    "vww_96": Network(
        "mlperf_tiny/vww_96_float.onnx", _people, ((0.0, 4), (0.3, 4), (0.0, 3)), 20, 2
    ),
}


def accuracy(mod: tvm.IRModule, x: Array, labels: Array) -> float:
    """Give the share of samples, in percent, whose largest output is their label."""
    import torch

    from tvm_compress.training import TorchModule

    net, right = TorchModule(mod), 0
    with torch.no_grad():
        for start in range(0, len(x), 250):
            batch = torch.from_numpy(np.ascontiguousarray(x[start : start + 250, None]))
            scores = net(batch).reshape(len(batch), -1)
            right += int((scores.argmax(1).numpy() == labels[start : start + 250]).sum())
    return 100 * right / len(x)


def weight_bytes(mod: tvm.IRModule) -> int:
    """Give the bytes of all weights: coded codes and the codebooks' entries in use, or float32."""
    total = 0
    for weight in ir.weights(mod).values():
        codes, centroids = weight.parameter.codes, weight.parameter.centroids
        if codes is None or centroids is None:
            total += weight.parameter.value.nbytes
        else:
            entries = np.unique(codes).size * centroids.itemsize
            total += codec.coded_bytes(codes, centroids) + entries
    return total


def main(arguments: list[str] | None = None) -> int:
    """Measure every network and give the exit code."""
    options = option_parser(NAME, "One-shot compression by inputs without labels.").parse_args(
        arguments
    )
    folder = _shared()
    if not folder.is_dir():
        raise DataError(
            f"The development data is not at {folder}; set TVM_COMPRESS_SHARED to its folder."
        )
    rows, figures, results = [], [], []
    for name, network in NETWORKS.items():
        mod = tc.load(folder / network.path)
        x, labels, calibrate = network.data(folder)
        before, dense = accuracy(mod, x, labels), weight_bytes(mod)
        rows.append([name, "float32", f"{before:.2f} %", f"{dense:,}", "1.0x", "", ""])
        for number, (sparsity, bits) in enumerate(network.settings):
            recipe = tc.recipes.post_training(sparsity, bits)
            made = tc.compress(mod, recipe, calibrate=calibrate, progress=False)
            after, small, file = (
                accuracy(made, x, labels),
                weight_bytes(made),
                len(codec.pack(made)),
            )
            setting = f"{100 * sparsity:.0f} %, {bits} bits"
            ratio = f"{dense / small:.1f}x"
            rows.append(
                [
                    name,
                    setting,
                    f"{after:.2f} %",
                    f"{small:,}",
                    ratio,
                    f"{file:,}",
                    f"{before - after:.2f}",
                ]
            )
            results.append(
                {
                    "network": name,
                    "sparsity": sparsity,
                    "bits": bits,
                    "accuracy_percent": after,
                    "float_accuracy_percent": before,
                    "weight_bytes": small,
                    "float_weight_bytes": dense,
                    "file_bytes": file,
                }
            )
            if number == 0:
                what = f"{name}, {setting}"
                figures.append(
                    Figure(f"weights of {what}", dense / small, network.ratio, "x", at_least=True)
                )
                lost = max(0.0, before - after)
                figures.append(Figure(f"accuracy lost by {what}", lost, network.points, "points"))
    header = [
        "network",
        "pruned, codes",
        "accuracy",
        "weight bytes",
        "smaller",
        "file",
        "points lost",
    ]
    report = Report(NAME, markdown_table(header, rows), figures, results, seed=0)
    return finish(report, options)


if __name__ == "__main__":
    raise SystemExit(main())
