"""How small are Deep Compression's networks as whole files, and at what error?

LeNet-300-100 and LeNet-5 on MNIST, as in Deep Compression (arXiv 1510.00149, tables 1 to 4): pruned
gradually with fine-tuning between, shared by rate and distortion with fine-tuning behind, coded
with biases rounded. Fine-tuning sees the images and the same moved by a pixel in four directions.
The settings were chosen on the validation images; the test images are used once a row. Every stage
is kept, so that a run that was killed goes on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tvm

import tvm_compress as tc
from benchmarks import lenet
from benchmarks.common import Figure, Report, finish, markdown_table, option_parser
from tvm_compress import ir
from tvm_compress.codec import coded_bytes
from tvm_compress.inspection import inspect


@dataclass(frozen=True)
class Setting:
    """How a network is compressed, and what the paper and we hold it to.

    ``last`` and ``shared`` are (epochs, learning rate) of the fine-tunings behind the pruning and
    behind the sharing. ``paper`` is (error in %, bytes) and ``factors`` how many times smaller its
    three stages are, the first counted in parameters and the others in bytes; ``limits`` is our
    (error in %, bytes).
    """

    sparsity: float
    steps: int
    last: tuple[int, float]
    paper: tuple[float, int]
    factors: tuple[float, float, float]
    limits: tuple[float, int]
    lam: float = 3e-4
    shared: tuple[int, float] = (2, 3e-4)
    bias_bits: int = 8


SETTINGS = {
    "lenet_300_100": Setting(
        sparsity=0.97,
        steps=10,
        last=(6, 1e-3),
        paper=(1.58, 27_000),
        factors=(12, 32, 40),
        limits=(1.64, 13_000),
    ),
    "lenet5": Setting(
        sparsity=0.976,
        steps=6,
        last=(5, 1e-3),
        paper=(0.74, 44_000),
        factors=(12, 33, 39),
        limits=(0.80, 15_000),
    ),
}
STAGES = ("pruned", "pruned + shared", "pruned + shared + coded")
_BATCH = 128


def _tune(epochs: int, lr: float, seed: int, schedule: str = "constant") -> dict[str, Any]:
    return {
        "step": "finetune",
        "epochs": epochs,
        "lr": lr,
        "seed": seed,
        "batch_size": _BATCH,
        "schedule": schedule,
    }


def _recipes(setting: Setting, seed: int) -> dict[str, tc.Recipe]:
    prune: list[Any] = []
    for i in range(setting.steps):
        part = tc.recipes.cubic_sparsity((i + 1) / setting.steps, setting.sparsity)
        prune.append({"step": "prune", "sparsity": part, "scope": "global"})
        prune.append(_tune(1, 1e-3, seed + i))
    prune.append(_tune(*setting.last, seed + setting.steps, "cosine"))
    prune.append({"step": "remove-channels"})
    share: list[Any] = [
        {"step": "reduce-rate", "lam": setting.lam},
        _tune(*setting.shared, seed + setting.steps + 1, "cosine"),
    ]
    code = [{"step": "round-biases", "bits": setting.bias_bits}]
    return {
        name: tc.Recipe(steps) for name, steps in zip(STAGES, (prune, share, code), strict=True)
    }


def stages(name: str, seed: int, data: lenet.Mnist) -> dict[str, tvm.IRModule]:
    """Give the network after each stage; what was computed before is read from the cache."""
    setting = SETTINGS[name]
    mod = lenet.train(name, seed, data)
    found = {"dense": mod}
    images = lenet.moved(data.train)
    history = ""
    for stage, recipe in _recipes(setting, seed).items():
        history += recipe.to_toml()
        decides = f"{name} {seed} moved {history}"

        def run(before: tvm.IRModule = mod, recipe: tc.Recipe = recipe) -> tvm.IRModule:
            return tc.compress(before, recipe, train=images, progress=False)

        mod = lenet.kept(f"deep-compression-{name}-{seed}", decides, run)
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
    """Compress one network and measure every stage: error (0..1), parameters and bytes.

    The bytes of "dense" are those of float32, of the next two stages those of the packed layouts
    that kernels read (positions, codes and centroids, or positions and float32), of the last the
    whole ``.tcz`` file; those of ``weights`` leave out what is not a weight.
    """
    import torch

    torch.set_num_threads(1)  # sums in one order
    found = stages(name, seed, data)
    path = lenet.CACHE / f"deep-compression-{name}-{seed}.tcz"
    tc.save(found[STAGES[-1]], path, profile="archive")
    found[STAGES[-1]] = tc.load(path)
    dense = found["dense"]
    weights = sum(w.parameter.value.size for w in ir.weights(dense).values())
    row: dict[str, Any] = {"network": name, "seed": seed, "stages": {}}
    for stage, mod in found.items():
        row["stages"][stage] = {
            "error": lenet.error(mod, data.test),
            "fewer_weights": weights / _kept(mod),
            "bytes": int(inspect(mod).totals["packed_bytes"]),
        }
    coded = row["stages"][STAGES[-1]]
    coded["bytes"] = path.stat().st_size
    coded["weight_bytes"] = _weight_bytes(found[STAGES[-1]])
    return row


def _rows(name: str, runs: list[dict[str, Any]]) -> tuple[list[list[str]], list[Figure]]:
    """Give the rows of one network, and what it is held to; of several seeds the largest bytes."""
    setting, rows = SETTINGS[name], []
    floats = runs[0]["stages"]["dense"]["bytes"]
    figures = []
    for stage in runs[0]["stages"]:
        found = [run["stages"][stage] for run in runs]
        errors = [100 * run["error"] for run in found]
        size = max(run["bytes"] for run in found)
        fewer = min(run["fewer_weights"] for run in found)
        weights = max(run.get("weight_bytes", 0) for run in found)
        paper = {"dense": "", STAGES[-1]: f"{setting.paper[0]} %, {setting.paper[1]:,} bytes, "}
        factor = 0.0 if stage == "dense" else setting.factors[STAGES.index(stage)]
        rows.append(
            [
                name,
                stage,
                f"{np.mean(errors):.2f} ± {np.std(errors):.2f}",
                f"{fewer:.1f}x" if factor else "",
                f"{size:,}",
                f"{weights:,}" if weights else "",
                f"{floats / size:.0f}x" if factor else "",
                paper.get(stage, "") + (f"{factor:.0f}x" if factor else ""),
            ]
        )
        if stage == STAGES[0]:
            figures.append(Figure(f"{name}, {stage}", fewer, factor, "times", at_least=True))
        elif factor:
            figures.append(Figure(f"{name}, {stage}", floats / size, factor, "times", True))
        if stage == STAGES[-1]:
            mean = float(np.mean(errors))
            figures.append(Figure(f"error of {name}", mean, setting.limits[0], "%"))
            figures.append(Figure(f"file of {name}", size, setting.limits[1], "bytes"))
    return rows, figures


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
        more_rows, more_figures = _rows(name, runs)
        rows += more_rows
        figures += more_figures
    header = [
        "network",
        "stage",
        "test error, %",
        "fewer weights",
        "bytes",
        "of weights",
        "smaller",
        "Deep Compression",
    ]
    packages = ("tvm-compress", "apache-tvm", "torch", "constriction", "numpy")
    report = Report("deep_compression", markdown_table(header, rows), figures, results, 0, packages)
    return finish(report, options)


if __name__ == "__main__":
    raise SystemExit(main())
