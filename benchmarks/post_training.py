"""How small do networks get without training, with no data at all or with inputs without labels?

The networks and the data are those of MLPerf Tiny under ``shared/data``. All go through
``recipes.post_training``, whose knob ``lam`` is the only setting. It was chosen on samples that are
not evaluated, as ``--choose`` shows it again: for kws the first 200 of its 500 inputs, for ic the
first 1,000 of its 5,000 pictures, for vww photographs of ImageNet, on which the network is compared
with itself for want of labels. The samples for calibration are a part of those, or training
pictures of ic. The rows without data look at nothing but the network.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tvm
from numpy.typing import NDArray

import tvm_compress as tc
from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser
from tvm_compress import ir
from tvm_compress.errors import DataError, MissingToolError
from tvm_compress.inspection import inspect

__all__ = ["NETWORKS", "Network", "Samples", "accuracy", "coded_bytes", "main", "measure"]

NAME = "post_training"
Array = NDArray[Any]
_CALIBRATION = 128


@dataclass(frozen=True)
class Samples:
    """Inputs and labels to choose settings by, and those to evaluate; inputs to calibrate.

    ``choose`` may have None for labels: then the network's own answers stand for them. No sample
    that is evaluated is in one of the others.
    """

    choose: tuple[Array, Array | None]
    evaluate: tuple[Array, Array]
    calibrate: Array


@dataclass(frozen=True)
class Network:
    """A network with its samples, its settings, and what the first of them is held to.

    ``settings`` are pairs: ``lam``, and whether there are inputs without labels.
    """

    path: str
    data: Callable[[Path], Samples]
    settings: tuple[tuple[float, bool], ...]
    ratio: float
    points: float


def _shared() -> Path:
    folder = os.environ.get("TVM_COMPRESS_SHARED")
    return Path(folder) if folder else ROOT.parent / "shared" / "data"


def split(x: Array, labels: Array, choose: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Cut samples in two: the first ``choose``, and all others.

    Raises:
        DataError: nothing would be left to evaluate.
    """
    if not 0 < choose < len(x):
        raise DataError(
            f"{choose} of {len(x)} samples are to choose settings by; expected at least one there "
            "and one to evaluate."
        )
    return (x[:choose], labels[:choose]), (x[choose:], labels[choose:])


def _keywords(folder: Path) -> Samples:
    data = np.load(folder / "mlperf_tiny" / "kws01_a500.npz")
    x = (data["mfcc_int8"].astype(np.float32) - 83) * np.float32(0.5847029)
    choose, evaluate = split(x[..., None], data["label"], 200)
    return Samples(choose, evaluate, choose[0][:_CALIBRATION])


def _picture(encoded: bytes) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingToolError(
            "The pictures are JPEG, and pillow is not installed: pip install pillow."
        ) from error
    return Image.open(io.BytesIO(encoded))


def _cifar(folder: Path) -> Samples:
    def read(name: str, count: int) -> tuple[Array, Array]:
        data = np.load(folder / "datasets" / f"cifar10_jpeg_{name}.npz")
        ends, jpeg = data["offset"], data["jpeg"]
        pictures = [
            np.asarray(_picture(jpeg[ends[i] : ends[i + 1]].tobytes()), np.float32)
            for i in range(count)
        ]
        return np.stack(pictures), data["label"][:count]

    choose, evaluate = split(*read("test_a5000", 5000), 1000)
    return Samples(choose, evaluate, read("train20000", _CALIBRATION)[0])


def _people(folder: Path) -> Samples:
    data = np.load(folder / "mlperf_tiny" / "vww_coco_96_train128.npz")
    size = data["largest_person_box_fraction"]
    clear = ~((size > 0) & (size <= 0.005))  # as the benchmark leaves out tiny people
    (images,) = (data[key] for key in data if data[key].ndim == 4)
    x = images.astype(np.float32) / 255
    with zipfile.ZipFile(folder / "datasets" / "imagenet_samples_a500.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith(".jpg"))
        others = [_picture(archive.read(name)).convert("RGB").resize((96, 96)) for name in names]
    photographs = np.stack([np.asarray(other, np.float32) / 255 for other in others])
    evaluate = (x[clear], (size[clear] > 0.005).astype(np.int64))
    return Samples((photographs, None), evaluate, photographs[:_CALIBRATION])


NETWORKS = {
    "kws_dscnn": Network(
        "mlperf_tiny/kws_dscnn_float.onnx",
        _keywords,
        ((0.00675, False), (0.005, False), (0.005, True), (0.01, True)),
        8,
        1,
    ),
    "ic_resnet8": Network(
        "mlperf_tiny/ic_resnet8_float.onnx",
        _cifar,
        ((0.0026, False), (0.005, False), (0.0026, True), (0.005, True)),
        8,
        1,
    ),
    "vww_96": Network(
        "mlperf_tiny/vww_96_float.onnx",
        _people,
        ((0.001, False), (0.005, False), (0.001, True)),
        20,
        2,
    ),
}


def _answers(mod: tvm.IRModule, x: Array) -> Array:
    import torch

    from tvm_compress.training import TorchModule

    net, found = TorchModule(mod), []
    with torch.no_grad():
        for start in range(0, len(x), 250):
            batch = torch.from_numpy(np.ascontiguousarray(x[start : start + 250, None]))
            found.append(net(batch).reshape(len(batch), -1).argmax(1).numpy())
    return np.concatenate(found)


def accuracy(mod: tvm.IRModule, x: Array, labels: Array) -> float:
    """Give the share of samples, in percent, whose largest output is their label."""
    return 100 * float((_answers(mod, x) == labels).mean())


def coded_bytes(mod: tvm.IRModule) -> tuple[int, int]:
    """Give the bytes of the weights in a ``.tcz`` file, codebooks included, and of the whole file.

    Weights that are not shared count as float32.
    """
    found, names = inspect(mod, profile="archive"), ir.weights(mod)
    weights = sum(
        (p.coded_bytes or 0) if names[p.name].parameter.shared else p.dense_bytes
        for p in found.parameters
        if p.name in names
    )
    assert found.file is not None, "what load gives can be packed"
    return weights, found.file.file_bytes


def measure(
    name: str, mod: tvm.IRModule, network: Network, samples: Samples, *, choosing: bool = False
) -> list[dict[str, Any]]:
    """Compress a network by each setting; the first result is that of the network as it is."""
    x, labels = samples.choose if choosing else samples.evaluate
    if labels is None:
        labels = _answers(mod, x)
    dense = sum(weight.parameter.value.nbytes for weight in ir.weights(mod).values())

    def result(made: tvm.IRModule, setting: str, size: int, file: int | None) -> dict[str, Any]:
        print(f"{name}: {setting}", file=sys.stderr, flush=True)
        return {
            "network": name,
            "setting": setting,
            "accuracy_percent": accuracy(made, x, labels),
            "weight_bytes": size,
            "smaller": dense / size,
            "file_bytes": file,
        }

    results = [result(mod, "float32", dense, None)]
    for lam, inputs in network.settings:
        recipe = tc.recipes.post_training(lam)
        calibrate = samples.calibrate if inputs else None
        made = tc.compress(mod, recipe, calibrate=calibrate, progress=False)
        setting = f"{'inputs' if inputs else 'no data'}, {lam}"
        results.append(result(made, setting, *coded_bytes(made)))
    for row in results:
        row["points_lost"] = results[0]["accuracy_percent"] - row["accuracy_percent"]
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """Lay the results out for people."""
    header = ["network", "data, lam", "accuracy", "weight bytes", "smaller", "file", "points lost"]
    rows = [
        [
            r["network"],
            r["setting"],
            f"{r['accuracy_percent']:.2f} %",
            f"{r['weight_bytes']:,}",
            f"{r['smaller']:.1f}x",
            "" if r["file_bytes"] is None else f"{r['file_bytes']:,}",
            "" if r["file_bytes"] is None else f"{r['points_lost']:.2f}",
        ]
        for r in results
    ]
    return markdown_table(header, rows)


def main(arguments: list[str] | None = None) -> int:
    """Measure every network and give the exit code."""
    parser = option_parser(NAME, "Compression without training, with and without inputs.")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument(
        "--choose",
        action="store_true",
        help="count on the samples by which the settings are chosen; only prints",
    )
    options = parser.parse_args(arguments)
    folder = _shared()
    if not folder.is_dir():
        raise DataError(
            f"The development data is not at {folder}; set TVM_COMPRESS_SHARED to its folder."
        )
    results, figures = [], []
    for name in options.networks:
        network = NETWORKS[name]
        mod = tc.load(folder / network.path)
        found = measure(name, mod, network, network.data(folder), choosing=options.choose)
        results += found
        held, lost = found[1], max(0.0, found[1]["points_lost"])
        what = f"{name}, {held['setting']}"
        figures += [
            Figure(f"weights of {what}", held["smaller"], network.ratio, "x", at_least=True),
            Figure(f"accuracy lost by {what}", lost, network.points, "points"),
        ]
    if options.choose:
        print(table(results))
        return 0
    return finish(Report(NAME, table(results), figures, results, seed=0), options)


if __name__ == "__main__":
    raise SystemExit(main())
