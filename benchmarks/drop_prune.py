"""Does DropPruning keep more accuracy than magnitude pruning at equal sparsity?

LeNet-5 on MNIST, several seeds: each trains a network, then prunes it both ways by the same
schedule, with the same fine-tuning and to the same number of weights of each layer: densities that
are all scaled by one factor to the ratio wanted. Fine-tuning sees the images and the same moved by
a pixel in four directions, another fifth of them between every two steps; "tuned, not pruned" is
the trained network after the same fine-tuning, so that what the images moved give is not credited
to a pruning. Settings were chosen by validation images; the test set is used once a row.
"""

from __future__ import annotations

from functools import partial
from statistics import fmean, stdev
from typing import Any

import numpy as np
import tvm

import tvm_compress as tc
from benchmarks.common import Figure, Report, finish, markdown_table, option_parser
from benchmarks.lenet import Images, Mnist, error, kept, mnist, moved, train
from tvm_compress import ir
from tvm_compress.recipe import Finetune, Recipe
from tvm_compress.recipes import drop_pruning, gradual_pruning

NAME = "drop_prune"
TUNED = "tuned, not pruned"
# Jia et al. (arXiv 1812.02035): 14.3 times fewer weights without loss of accuracy.
GOAL = 14.3
# Density by layer: the convolutions need more of their weights than the large product does.
DENSITY = {
    "p_conv1_weight": 0.8,
    "p_conv2_weight": 0.35,
    "p_ip1_weight": 0.045,
    "p_ip2_weight": 0.4,
}
STEPS, PARTS = 7, 5
BATCH, LR = 128, 1e-3
LAST = ((1, 3e-4), (1, 5e-5))  # epochs and learning rate of the fine-tunings behind the turns
DROP, RESTORE = 0.9, 0.01


def recipes(mod: tvm.IRModule, ratio: float, seed: int) -> dict[str, Recipe]:
    """Give both recipes: turns of one pruning and one fine-tuning, then the last fine-tunings."""
    parameters = ir.parameters(mod)
    size = {name: parameters[name].value.size for name in DENSITY}
    rest = sum(p.value.size for p in parameters.values()) - sum(size.values())
    # Biases stay, and count.
    kept = (sum(size.values()) + rest) / ratio - rest
    factor = kept / sum(DENSITY[name] * size[name] for name in DENSITY)
    # Rounded down to whole weights, so that the ratio is met and not missed by a weight.
    sparsity = {n: 1 - int(factor * DENSITY[n] * size[n]) / size[n] for n in DENSITY}
    last = [Finetune(epochs, lr, BATCH, seed=seed) for epochs, lr in LAST]
    drop = drop_pruning(
        1 - 1 / ratio,
        STEPS,
        drop=DROP,
        restore=RESTORE,
        lr=LR,
        batch_size=BATCH,
        seed=seed,
        layer_sparsity=sparsity,
    )
    magnitude = gradual_pruning(
        1 - 1 / ratio, STEPS, lr=LR, batch_size=BATCH, seed=seed, layer_sparsity=sparsity
    )
    tuned = [step for step in magnitude.steps if isinstance(step, Finetune)]
    return {
        TUNED: Recipe([*tuned, *last]),
        "magnitude": Recipe([*magnitude.steps, *last]),
        "drop-prune": Recipe([*drop.steps, *last]),
    }


def prune(mod: tvm.IRModule, recipe: Recipe, images: Images, seed: int) -> tvm.IRModule:
    """Run a recipe, each of its turns on another part of the images."""
    x, y = images
    order = np.random.default_rng(seed).permutation(len(x))
    parts = np.array_split(order, PARTS)
    end = len(recipe.steps) - len(LAST)
    turns, last = recipe.steps[:end], recipe.steps[end:]
    size = end // STEPS
    for number in range(STEPS):
        part = parts[number % PARTS]
        turn = Recipe(turns[size * number : size * (number + 1)])
        mod = tc.compress(mod, turn, train=(x[part], y[part]), progress=False)
    return tc.compress(mod, Recipe(last), train=images, progress=False)


def ratio_of(mod: tvm.IRModule) -> float:
    """Give parameters over those that are not zero, biases included."""
    values = [parameter.value for parameter in ir.parameters(mod).values()]
    return sum(v.size for v in values) / sum(int(np.count_nonzero(v)) for v in values)


def measure(seed: int, ratio: float, data: Mnist) -> dict[str, Any]:
    """Give errors (0..1) and ratios of one seed."""
    mod = train("lenet5", seed, data)
    row: dict[str, Any] = {"seed": seed, "wanted": ratio, "dense_error": error(mod, data.test)}
    images = moved(data.train)
    for name, recipe in recipes(mod, ratio, seed).items():
        decides = f"{name} {PARTS} parts {recipe.to_toml()}"
        make = partial(prune, mod, recipe, images, seed)
        pruned = kept(f"drop-prune-{name.split()[0]}-{seed}", decides, make)
        row[name] = {
            "validation_error": error(pruned, data.validation),
            "error": error(pruned, data.test),
            "ratio": ratio_of(pruned),
        }
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    def spread(values: list[float]) -> str:
        more = f" ± {stdev(values):.2%}" if len(values) > 1 else ""
        return f"{fmean(values):.2%}{more}"

    lines = []
    for ratio in sorted({row["wanted"] for row in rows}):
        chosen = [row for row in rows if row["wanted"] == ratio]
        for name in (TUNED, "magnitude", "drop-prune"):
            gain = [row[name]["error"] - row["dense_error"] for row in chosen]
            lines.append(
                [
                    f"{fmean(row[name]['ratio'] for row in chosen):.1f}x",
                    name,
                    str(len(chosen)),
                    spread([row["dense_error"] for row in chosen]),
                    spread([row[name]["error"] for row in chosen]),
                    f"{100 * fmean(gain):+.2f} points",
                ]
            )
    heads = ["fewer weights", "pruning", "seeds", "error before", "error after", "change"]
    return markdown_table(heads, lines)


def main() -> int:
    """Run the comparison."""
    parser = option_parser(NAME, __doc__ or "")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=[GOAL], help="how many times fewer weights"
    )
    options = parser.parse_args()
    data = mnist()
    rows = []
    for ratio in options.ratios:
        for seed in range(options.seeds):
            rows.append(measure(seed, ratio, data))
            print(rows[-1], flush=True)
    goal = [row for row in rows if row["wanted"] >= GOAL]
    figures = []
    if goal:
        dense = fmean(row["dense_error"] for row in goal)
        found = fmean(row["drop-prune"]["error"] for row in goal)
        figures = [
            Figure(
                "fewer weights by DropPruning on LeNet-5",
                min(row["drop-prune"]["ratio"] for row in goal),
                GOAL,
                "times",
                at_least=True,
            ),
            Figure("error after DropPruning, mean", 100 * found, round(100 * dense, 4), "%"),
        ]
    packages = ("tvm-compress", "numpy", "torch", "apache-tvm")
    return finish(Report(NAME, _table(rows), figures, rows, 0, packages), options)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    raise SystemExit(main())
