"""How small are Deep Compression's networks as whole files, and at what error?

LeNet-300-100 and LeNet-5 on MNIST, as in Deep Compression (arXiv 1510.00149, tables 1 to 4): pruned
gradually with fine-tuning between, shared with fine-tuning behind, coded. The settings were chosen
on the validation images; the test images are used once a row. LeNet-300-100 is fine-tuned on its
images and on the same moved by a pixel in four directions. Every stage is kept, so that a run that
was killed goes on.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tvm
from numpy.typing import NDArray

import tvm_compress as tc
from benchmarks import lenet
from benchmarks.common import Figure, Report, finish, markdown_table, option_parser
from tvm_compress import ir
from tvm_compress.codec import coded_bytes


@dataclass(frozen=True)
class Setting:
    """How a network is compressed, and what the paper and we hold it to.

    ``paper`` is (error in %, bytes, factors of its three stages); ``limits`` our (error, bytes).
    """

    sparsity: float
    bits: int
    moved: bool
    steps: int
    epochs: int
    last: tuple[tuple[int, float], ...]
    paper: tuple[float, int, str]
    limits: tuple[float, int]


SETTINGS = {
    "lenet_300_100": Setting(
        0.965, 3, True, 6, 1, ((2, 1e-3), (2, 3e-4), (1, 1e-4)), (1.58, 27_000, "12x / 32x / 40x"),
        (1.64, 13_000),
    ),
    "lenet5": Setting(
        0.965, 3, False, 6, 1, ((4, 1e-3), (3, 3e-4), (2, 1e-4)), (0.74, 44_000, "12x / 33x / 39x"),
        (0.80, 15_000),
    ),
}  # fmt: skip
_BATCH = 128


def _moved(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the images and the same moved by one pixel up, down, left and right."""
    padded = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1)])
    places = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    return np.concatenate([padded[:, :, r : r + 28, c : c + 28] for r, c in places])


def _tune(epochs: int, lr: float, seed: int) -> dict[str, Any]:
    return {"step": "finetune", "epochs": epochs, "lr": lr, "seed": seed, "batch_size": _BATCH}


def _recipes(setting: Setting, seed: int) -> dict[str, tc.Recipe]:
    prune: list[Any] = []
    for i in range(setting.steps):
        part = tc.recipes.cubic_sparsity((i + 1) / setting.steps, setting.sparsity)
        prune.append({"step": "prune", "sparsity": part, "scope": "global"})
        prune.append(_tune(setting.epochs, 1e-3, seed))
    prune += [_tune(epochs, lr, seed + 1) for epochs, lr in setting.last]
    share = [{"step": "share-weights", "bits": setting.bits}]
    share += [_tune(1, 3e-4, seed + 2), _tune(1, 5e-5, seed + 3)]
    return {"pruned": tc.Recipe(prune), "pruned + shared": tc.Recipe(share)}


def stages(name: str, seed: int, data: lenet.Mnist) -> dict[str, tvm.IRModule]:
    """Give the network after each stage; what was computed before is read from the cache."""
    setting = SETTINGS[name]
    mod = lenet.train(name, seed, data)
    found = {"dense": mod}
    x, y = data.train
    if setting.moved:
        x, y = _moved(x), np.tile(y, 5)
    history = ""
    for stage, recipe in _recipes(setting, seed).items():
        history += recipe.to_toml()
        digest = hashlib.sha256(f"{name} {seed} {setting.moved} {history}".encode()).hexdigest()
        path = lenet.CACHE / f"deep-compression-{name}-{seed}-{digest[:12]}.json"
        if path.exists():
            mod = tc.load(path)
        else:
            print(f"{name}, seed {seed}: {stage}", file=sys.stderr, flush=True)
            mod = tc.compress(mod, recipe, train=(x, y), progress=False)
            tc.save(mod, path)
        found[stage] = mod
    return found


def _kept(mod: tvm.IRModule) -> int:
    return sum(int((w.parameter.value != 0).sum()) for w in ir.weights(mod).values())


def _weight_bytes(mod: tvm.IRModule) -> int:
    total = 0
    for weight in ir.weights(mod).values():
        parameter = weight.parameter
        assert parameter.codes is not None and parameter.centroids is not None
        total += coded_bytes(parameter.codes, parameter.centroids) + parameter.centroids.nbytes
    return total


def measure(name: str, seed: int, data: lenet.Mnist) -> dict[str, Any]:
    """Compress one network and measure every stage."""
    import torch

    torch.set_num_threads(1)  # sums in one order
    found = stages(name, seed, data)
    path = lenet.CACHE / f"deep-compression-{name}-{seed}.tcz"
    tc.save(found["pruned + shared"], path, profile="archive")
    dense = sum(w.parameter.value.size for w in ir.weights(found["dense"]).values())
    floats = sum(p.value.nbytes for p in ir.parameters(found["dense"]).values())
    again = tc.load(path)
    return {
        "network": name,
        "seed": seed,
        "errors": {stage: lenet.error(mod, data.test) for stage, mod in found.items()}
        | {"pruned + shared + coded": lenet.error(again, data.test)},
        "fewer_weights": dense / _kept(found["pruned"]),
        "float_bytes": floats,
        "weight_bytes": _weight_bytes(again),
        "file_bytes": path.stat().st_size,
    }


def main() -> int:
    """Compress the networks for several seeds."""
    parser = option_parser("deep_compression", __doc__ or "")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--networks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args()
    data = lenet.mnist()
    rows, figures, results = [], [], []
    for name in options.networks:
        runs = [measure(name, seed, data) for seed in range(options.seeds)]
        results += runs
        paper_error, paper_bytes, factors = SETTINGS[name].paper
        error_limit, bytes_limit = SETTINGS[name].limits
        for stage in runs[0]["errors"]:
            errors = [100 * run["errors"][stage] for run in runs]
            coded = stage.endswith("coded")
            size = max(run["file_bytes"] for run in runs)
            weights = max(run["weight_bytes"] for run in runs)
            fewer = np.mean([run["fewer_weights"] for run in runs])
            rows.append(
                [
                    name,
                    stage,
                    f"{np.mean(errors):.2f} ± {np.std(errors):.2f}",
                    "" if stage == "dense" else f"{fewer:.1f}x",
                    f"{weights:,}" if coded else "",
                    f"{size:,}" if coded else "",
                    f"{runs[0]['float_bytes'] / size:.0f}x" if coded else "",
                    f"{paper_error} %, {paper_bytes:,} bytes, {factors}" if coded else "",
                ]
            )
            if coded:
                mean = float(np.mean(errors))
                figures.append(Figure(f"error of {name}", mean, error_limit, "%"))
                figures.append(Figure(f"file of {name}", size, bytes_limit, "bytes"))
    header = [
        "network",
        "stage",
        "test error, %",
        "fewer weights",
        "weight bytes",
        "file bytes",
        "smaller",
        "Deep Compression",
    ]
    packages = ("tvm-compress", "apache-tvm", "torch", "constriction", "numpy")
    report = Report("deep_compression", markdown_table(header, rows), figures, results, 0, packages)
    return finish(report, options)


if __name__ == "__main__":
    raise SystemExit(main())
