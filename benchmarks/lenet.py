"""LeNet-300-100 and LeNet-5 as Deep Compression has them (Caffe's), trained here on MNIST.

``train(name, seed)`` gives the trained network; a network is trained once and kept under
``benchmarks/.cache``. The same seed gives the same network on one machine with one release of
torch. Run as a program, the file trains the networks that are missing and prints their errors.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

import tvm_compress as tc
from benchmarks.common import ROOT

__all__ = ["NETWORKS", "Images", "Mnist", "error", "kept", "mnist", "moved", "train"]

CACHE = ROOT / "benchmarks" / ".cache"
EPOCHS = {"lenet_300_100": 20, "lenet5": 12}
BATCH = 64
PEAK_LR = {"lenet_300_100": 2e-3, "lenet5": 2e-3}
WEIGHT_DECAY = 1e-2
VALIDATION = 5000


# Images, float32 (N, 1, 28, 28) in 0..1, and labels, int64 (N,).
Images = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class Mnist:
    """Images and labels.

    ``validation`` is the last 5,000 of the published training set, for choices; ``test`` is the
    published test set, for the figures that are reported.
    """

    train: Images
    validation: Images
    test: Images


def data_folder() -> Path | None:
    """Give the folder of development data, or None where it is missing."""
    override = os.environ.get("TVM_COMPRESS_SHARED")
    folder = Path(override) if override else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def mnist(folder: Path | None = None) -> Mnist:
    """Read MNIST from the folder of development data (``datasets/mnist_*.gz``, IDX).

    Raises:
        SystemExit: the data is missing; says where it was looked for.
    """
    folder = folder or data_folder()
    if folder is None or not (folder / "datasets" / "mnist_train-images-idx3-ubyte.gz").is_file():
        raise SystemExit(
            "MNIST was not found; expected datasets/mnist_*.gz in the folder of development data: "
            "set TVM_COMPRESS_SHARED to that folder."
        )

    def read(name: str, header: int) -> NDArray[np.uint8]:
        with gzip.open(folder / "datasets" / f"mnist_{name}-ubyte.gz") as stream:
            return np.frombuffer(stream.read(), np.uint8, offset=header)

    def pair(name: str) -> Images:
        images = read(f"{name}-images-idx3", 16).reshape(-1, 1, 28, 28)
        labels = read(f"{name}-labels-idx1", 8)
        return images.astype(np.float32) / np.float32(255), labels.astype(np.int64)

    x, y = pair("train")
    cut = len(x) - VALIDATION
    return Mnist((x[:cut], y[:cut]), (x[cut:], y[cut:]), pair("t10k"))


def moved(images: Images) -> Images:
    """Give the images and the same moved by one pixel up, down, left and right: 5 N of them."""
    x, y = images
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    places = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    height, width = x.shape[2:]
    cut = [padded[:, :, r : r + height, c : c + width] for r, c in places]
    return np.concatenate(cut), np.tile(y, len(places))


def _lenet_300_100() -> Any:
    from torch import nn

    layers = [("flatten", nn.Flatten()), ("ip1", nn.Linear(784, 300)), ("relu1", nn.ReLU())]
    layers += [("ip2", nn.Linear(300, 100)), ("relu2", nn.ReLU()), ("ip3", nn.Linear(100, 10))]
    return nn.Sequential(OrderedDict(layers))


def _lenet5() -> Any:
    from torch import nn

    layers = [("conv1", nn.Conv2d(1, 20, 5)), ("pool1", nn.MaxPool2d(2))]
    layers += [("conv2", nn.Conv2d(20, 50, 5)), ("pool2", nn.MaxPool2d(2))]
    layers += [("flatten", nn.Flatten()), ("ip1", nn.Linear(800, 500)), ("relu1", nn.ReLU())]
    layers += [("ip2", nn.Linear(500, 10))]
    return nn.Sequential(OrderedDict(layers))


NETWORKS: dict[str, Callable[[], Any]] = {"lenet_300_100": _lenet_300_100, "lenet5": _lenet5}


def train(name: str, seed: int = 0, data: Mnist | None = None) -> tvm.IRModule:
    """Give a trained network as a canonical module: input (1, 1, 28, 28), ten logits.

    Args:
        name: ``lenet_300_100`` (266,200 weights: ``p_ip1_weight`` to ``p_ip3_weight``) or
            ``lenet5`` (430,500: ``p_conv1_weight``, ``p_conv2_weight``, ``p_ip1_weight``,
            ``p_ip2_weight``).
        seed: of the initial weights and of the order of the samples.
        data: MNIST, where it is in memory already.
    """
    # What decides a training names the file, so that a change here does not find an old network.
    decides = (EPOCHS[name], BATCH, PEAK_LR[name], WEIGHT_DECAY, VALIDATION, NETWORKS[name]())
    text = f"{decides} torch {importlib.metadata.version('torch')} format 1"
    return kept(f"{name}-{seed}", text, lambda: _train(name, seed, data or mnist()))


def _train(name: str, seed: int, data: Mnist) -> tvm.IRModule:
    """AdamW, one cycle of the learning rate; cross entropy."""
    import torch
    import torch.nn.functional as F

    x, y = (torch.from_numpy(array) for array in data.train)
    steps = -(-len(x) // BATCH)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = NETWORKS[name]()
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, PEAK_LR[name], total_steps=EPOCHS[name] * steps
        )
        for _ in range(EPOCHS[name]):
            order = torch.randperm(len(x))
            for step in range(steps):
                batch = order[step * BATCH : (step + 1) * BATCH]
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
                schedule.step()
    torch.set_num_threads(threads)
    return tc.load(net.eval(), example=x[:1])


def kept(stem: str, decides: str, make: Callable[[], tvm.IRModule]) -> tvm.IRModule:
    """Give what ``make`` computed once for what decides it, so that a killed run goes on."""
    digest = hashlib.sha256(decides.encode()).hexdigest()[:12]
    path = CACHE / f"{stem}-{digest}.json"
    if path.exists():
        return tc.load(path)
    print(f"{stem}: at work", file=sys.stderr, flush=True)
    mod = make()
    CACHE.mkdir(parents=True, exist_ok=True)
    tc.save(mod, path)
    return mod


def error(mod: tvm.IRModule, data: Images) -> float:
    """Give the share of images that a network gets wrong, 0..1."""
    import torch

    from tvm_compress.training import TorchModule

    net, (x, y) = TorchModule(mod), data
    wrong = 0
    with torch.no_grad():
        for start in range(0, len(x), 1000):
            logits = net(torch.from_numpy(x[start : start + 1000, None]))
            guess = logits.reshape(-1, 10).argmax(1).numpy()
            wrong += int((guess != y[start : start + 1000]).sum())
    return wrong / len(x)


def main() -> None:
    """Train what is missing and print errors."""
    parser = argparse.ArgumentParser(prog="lenet", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    data = mnist()
    for name in options.networks:
        for seed in options.seeds:
            mod = train(name, seed, data)
            print(
                f"{name}, seed {seed}: validation error {error(mod, data.validation):.2%}, "
                f"test error {error(mod, data.test):.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
