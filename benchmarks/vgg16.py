"""Does VGG-16 on CIFAR-10 keep its accuracy with 11.1 times fewer weights?

DropPruning (Jia et al., arXiv 1812.02035) reports that ratio without loss. Beside it stand pruning
by magnitude at the same ratio, and that pruning with shared and coded weights, which is Deep
Compression's way (arXiv 1510.00149). The network is VGG-16 as it is used for small pictures: 13
convolutions with batch normalisation, one product. It is trained here, in plain torch; ``load``
moves the normalisation into the weights, and all that follows works on that network.

The data is what there is of CIFAR-10 in the folder of development data: 20,000 training images and
5,000 test images as JPEG of quality 75, which costs some points of accuracy. The test images are
used once a row.

All of it runs where torch finds a GPU; elsewhere the table says that it did not run. With
``--device cpu`` and a small ``--width`` it runs anywhere, for a try.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

import tvm_compress as tc
from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser
from tvm_compress import ir
from tvm_compress.codec import coded_bytes
from tvm_compress.errors import OptionError
from tvm_compress.passes import ShareWeights
from tvm_compress.recipe import Finetune, Recipe, Step
from tvm_compress.recipes import drop_pruning, gradual_pruning

__all__ = ["GOAL", "Data", "augment", "cifar10", "error", "main", "measure", "recipes", "train"]

NAME = "vgg16"
GOAL = 11.1
OUTPUTS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: pool
CLASSES = 10
EPOCHS = 60
BATCH, PEAK_LR, WEIGHT_DECAY = 128, 0.1, 5e-4  # of the training; the rest is of the compression
TURNS, LR, LAST_LR = 10, 3e-4, 1e-4
DROP, RESTORE = 0.9, 0.01
# The layers at the ends have few weights and bear little pruning.
END_DENSITY = 0.5
BITS = 5
SHIFT = 4

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Data:
    """Pairs of images, float32 (N, 3, 32, 32) of mean 0 and deviation 1, and labels, int64 (N,)."""

    train: tuple[Images, Labels]
    test: tuple[Images, Labels]


def cifar10(folder: Path, train: int = 20_000, test: int = 5_000) -> Data:
    """Read images and labels from the folder of development data.

    Raises:
        SystemExit: the data or pillow is missing; says what to do.
    """
    try:
        from PIL import Image
    except ImportError:
        raise SystemExit(
            "The images are JPEG, and pillow is not installed: pip install pillow."
        ) from None

    def pair(name: str, count: int) -> tuple[Images, Labels]:
        path = folder / "datasets" / name
        if not path.is_file():
            raise SystemExit(
                f"CIFAR-10 was not found; expected datasets/{name} in the folder of development "
                "data: set TVM_COMPRESS_SHARED to that folder."
            )
        data = np.load(path)
        ends, jpeg = data["offset"], data["jpeg"]
        count = min(count, len(ends) - 1)
        images = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(jpeg[ends[i] : ends[i + 1]].tobytes())))
                for i in range(count)
            ]
        )
        channels_first = images.transpose(0, 3, 1, 2).astype(np.float32)
        return channels_first / np.float32(255), data["label"][:count].astype(np.int64)

    x, y = pair("cifar10_jpeg_train20000.npz", train)
    judged, labels = pair("cifar10_jpeg_test_a5000.npz", test)
    wide: dict[str, Any] = {"axis": (0, 2, 3), "keepdims": True, "dtype": np.float64}
    mean, deviation = (f(x, **wide).astype(np.float32) for f in (np.mean, np.std))
    return Data(((x - mean) / deviation, y), ((judged - mean) / deviation, labels))


def augment(images: Any, random: np.random.Generator) -> Any:
    """Mirror half of the images (N, 3, H, W), and shift all by up to four pixels."""
    count, _, height, width = images.shape
    padded = np.pad(images, [(0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)])
    places = random.integers(0, 2 * SHIFT + 1, (count, 2))
    mirrored = random.random(count) < 0.5
    for i, (row, col) in enumerate(places):
        image = padded[i, :, row : row + height, col : col + width]
        images[i] = image[:, :, ::-1] if mirrored[i] else image
    return images


def _torch_network(width: float) -> Any:
    from torch import nn

    layers: list[Any] = []
    channels = 3
    for outputs in OUTPUTS:
        if not outputs:
            layers.append(nn.MaxPool2d(2))
            continue
        outputs = max(1, round(outputs * width))
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
        channels = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, CLASSES))


def train(data: Data, width: float, epochs: int, seed: int, device: str) -> tvm.IRModule:
    """Train the network and give it as a canonical module: input (1, 3, 32, 32), ten logits.

    SGD with one cycle of the learning rate; cross entropy.
    """
    import torch
    from torch.nn import functional as F

    x, y = data.train
    random = np.random.default_rng(seed)
    steps = -(-len(x) // BATCH)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = _torch_network(width).to(device)
        optimizer = torch.optim.SGD(
            net.parameters(), PEAK_LR, 0.9, weight_decay=WEIGHT_DECAY, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, PEAK_LR, total_steps=max(1, epochs * steps)
        )
        for _ in range(epochs):
            order = random.permutation(len(x))
            for step in range(steps):
                where = order[step * BATCH : (step + 1) * BATCH]
                images = torch.from_numpy(augment(x[where], random)).to(device)
                labels = torch.from_numpy(y[where]).to(device)
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(net(images), labels).backward()
                optimizer.step()
                schedule.step()
    return tc.load(net.cpu().eval(), example=torch.zeros(1, *x.shape[1:]))


def recipes(mod: tvm.IRModule, epochs: int, seed: int, ratio: float = GOAL) -> dict[str, Recipe]:
    """Give both prunings, and what Deep Compression does behind the one by magnitude.

    Half of the epochs go to the turns of pruning and fine-tuning, half to the fine-tuning behind
    them.
    """
    size = {name: weight.parameter.value.size for name, weight in ir.weights(mod).items()}
    ends = ir.first_weights(mod) | ir.last_weights(mod)
    rest = sum(p.value.size for p in ir.parameters(mod).values()) - sum(size.values())
    # Biases stay, and count.
    kept = (sum(size.values()) + rest) / ratio - rest
    kept -= END_DENSITY * sum(size[name] for name in ends)
    density = kept / sum(n for name, n in size.items() if name not in ends)
    if not 0 < density < 1:
        raise OptionError(
            f"The network has {sum(size.values())} weights and {rest} other parameters, of which "
            f"{ratio} times fewer cannot be kept; expected a wider network."
        )
    # Rounded down to whole weights, so that the ratio is met and not missed by a weight.
    sparsity = {
        name: 1 - int((END_DENSITY if name in ends else density) * n) / n
        for name, n in size.items()
    }
    turns: dict[str, Any] = {
        "epochs": max(1, epochs // (2 * TURNS)),
        "lr": LR,
        "batch_size": BATCH,
        "seed": seed,
        "layer_sparsity": sparsity,
    }
    behind: list[Step] = [
        Finetune(max(1, epochs // 2), LR, BATCH, seed=seed + TURNS, schedule="cosine")
    ]
    drop = drop_pruning(1 - 1 / ratio, TURNS, drop=DROP, restore=RESTORE, **turns)
    magnitude = gradual_pruning(1 - 1 / ratio, TURNS, **turns)
    tune = Finetune(max(1, epochs // 6), LAST_LR, BATCH, seed=seed + TURNS + 1, schedule="cosine")
    return {
        "drop-prune": Recipe([*drop.steps, *behind]),
        "magnitude": Recipe([*magnitude.steps, *behind]),
        "magnitude, shared, coded": Recipe([ShareWeights(BITS), tune]),
    }


def error(mod: tvm.IRModule, data: tuple[Images, Labels], device: str) -> float:
    """Give the share of images that a network gets wrong, 0..1."""
    import torch

    from tvm_compress.training import TorchModule

    net, (x, y), wrong = TorchModule(mod).to(device), data, 0
    with torch.no_grad():
        for start in range(0, len(x), 250):
            logits = net(torch.from_numpy(x[start : start + 250, None]).to(device))
            guess = logits.reshape(-1, CLASSES).argmax(1).cpu().numpy()
            wrong += int((guess != y[start : start + 250]).sum())
    return wrong / len(x)


def _ratio(mod: tvm.IRModule) -> float:
    values = [parameter.value for parameter in ir.parameters(mod).values()]
    return sum(v.size for v in values) / sum(int(np.count_nonzero(v)) for v in values)


def _bytes(mod: tvm.IRModule) -> dict[str, int]:
    """Give the bytes of all coded weights with their codebooks, and of the whole file."""
    from tvm_compress import codec

    weights = 0
    for weight in ir.weights(mod).values():
        codes, centroids = weight.parameter.codes, weight.parameter.centroids
        assert codes is not None and centroids is not None
        weights += coded_bytes(codes, centroids) + centroids.nbytes
    return {"weight_bytes": weights, "file_bytes": len(codec.pack(mod))}


def measure(data: Data, width: float, epochs: int, seed: int, device: str) -> dict[str, Any]:
    """Train and compress one network; give errors (0..1), ratios and bytes."""
    dense = train(data, width, epochs, seed, device)
    floats = sum(p.value.nbytes for p in ir.parameters(dense).values())
    stages: dict[str, Any] = {"dense": {"error": error(dense, data.test, device)}}
    mod = dense
    for name, recipe in recipes(dense, epochs, seed).items():
        print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
        start = mod if name.endswith("coded") else dense
        mod = tc.compress(
            start, recipe, train=data.train, augment=augment, device=device, progress=False
        )
        stages[name] = {"error": error(mod, data.test, device), "ratio": _ratio(mod)}
    stages[name] |= _bytes(mod)
    return {"seed": seed, "float_bytes": floats, "stages": stages}


def _report(runs: list[dict[str, Any]], width: float) -> Report:
    rows, figures = [], []
    for stage in runs[0]["stages"]:
        found = [run["stages"][stage] for run in runs]
        errors = [100 * one["error"] for one in found]
        lost = fmean(
            100 * (run["stages"][stage]["error"] - run["stages"]["dense"]["error"]) for run in runs
        )
        sizes = [one["file_bytes"] for one in found if "file_bytes" in one]
        rows.append(
            [
                stage,
                f"{fmean(errors):.2f} ± {np.std(errors):.2f}",
                "" if stage == "dense" else f"{lost:+.2f}",
                f"{fmean(one['ratio'] for one in found):.1f}x" if "ratio" in found[0] else "",
                f"{max(one['weight_bytes'] for one in found):,}" if sizes else "",
                f"{max(sizes):,}" if sizes else "",
                f"{runs[0]['float_bytes'] / max(sizes):.0f}x" if sizes else "",
            ]
        )
        if stage == "drop-prune":
            ratio = min(one["ratio"] for one in found)
            figures = [
                Figure("fewer weights by DropPruning on VGG-16", ratio, GOAL, "times", True),
                Figure("accuracy lost by DropPruning on VGG-16", lost, 0.0, "points"),
            ]
    header = [
        "VGG-16" if width == 1 else f"VGG-16, width {width:g}",
        "test error, %",
        "change, points",
        "fewer weights",
        "weight bytes",
        "file bytes",
        "smaller",
    ]
    packages = ("tvm-compress", "apache-tvm", "torch", "constriction", "numpy")
    return Report(NAME, markdown_table(header, rows), figures, runs, 0, packages)


def _missing(device: str) -> str | None:
    """Say why nothing can run on the device."""
    try:
        from tvm_compress.training.device import find_device
    except ImportError:
        return "not run: torch is not installed"
    try:
        find_device(device)
    except OptionError:
        return "not run: torch found no GPU"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Train, compress and measure, or say why not."""
    parser = option_parser(NAME, "VGG-16 on CIFAR-10, pruned, shared and coded.")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the training")
    parser.add_argument("--width", type=float, default=1.0, help="factor of all layers' outputs")
    parser.add_argument("--images", type=int, default=20_000, help="training images to use")
    options = parser.parse_args(arguments)
    missing = _missing(options.device)
    if missing:
        table = markdown_table(["VGG-16", "test error, %", "fewer weights"], [[missing, "", ""]])
        return finish(Report(NAME, table, [], {"missing": missing}, 0, ("torch",)), options)
    folder = os.environ.get("TVM_COMPRESS_SHARED")
    data = cifar10(Path(folder) if folder else ROOT.parent / "shared" / "data", options.images)
    runs = [
        measure(data, options.width, options.epochs, seed, options.device)
        for seed in range(options.seeds)
    ]
    return finish(_report(runs, options.width), options)


if __name__ == "__main__":
    raise SystemExit(main())
