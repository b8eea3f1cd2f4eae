"""Does the search for a budget beat one density and one number of bits for all layers?

The digits network within bytes of flash, and LeNet-300-100 within a loss of accuracy. For each
budget the search and its opponent, the best uniform setting, have the same recipe and as many
trainings. The opponent is sought where it is strongest: within bytes of flash the densest networks
that fit for each number of bits, within a loss of accuracy the sparsest one that keeps it, by
bisection. Both choose by the validation images; the test images judge the two networks reported.
What was trained is kept, so that a run that was killed goes on.
"""

from __future__ import annotations

import hashlib
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tvm

import tvm_compress as tc
from benchmarks import lenet
from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser
from examples.digits.data import load_digits_split
from tvm_compress import codec, ir
from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.recipe import Finetune, Recipe

NAME = "budget"
BUDGETS = {
    "digits": tuple(tc.Budget(flash_bytes=limit) for limit in (8_000, 9_000, 10_000)),
    "lenet_300_100": (tc.Budget(max_accuracy_drop=0.005),),
}
BITS = {"digits": (2, 3, 4, 5), "lenet_300_100": (2, 3, 4)}
DIGITS_VALIDATION = 300
# Of the digits network the densest that fit: so many for each number of bits.
FITTING = 3
FIT_DENSITIES = [i / 200 for i in range(1, 129)]
# 15 are bisected by four trainings, from 5 to 20 %; neighbours differ by a tenth.
KEEP_DENSITIES = [0.05 * 4 ** (i / 14) for i in range(15)]
BISECTIONS = 4
# Accuracies are quotients of whole numbers: equal ones must not differ by rounding.
_SAME = 1e-9


@dataclass(frozen=True, eq=False)
class Case:
    """A network, its images and the recipe of every training.

    Attributes:
        name: of the network.
        network: trained, not compressed.
        data: images; those for validation are for choices alone.
        make: the recipe, by ``layer_sparsity`` and ``layer_bits``.
    """

    name: str
    network: tvm.IRModule
    data: lenet.Mnist
    make: Callable[..., Recipe]


@dataclass(frozen=True, eq=False)
class Found:
    """A compressed network.

    Attributes:
        module: the network.
        density: share of the weights that are left, by layer.
        bits: bits of a code by layer, 0 for floats.
        accuracy: on the validation images, 0..1.
        size_bytes: what the budget is about: of flash, or of the whole ``.tcz`` file.
    """

    module: tvm.IRModule
    density: dict[str, float]
    bits: dict[str, int]
    accuracy: float
    size_bytes: int


def lenet_recipe(layer_sparsity: dict[str, float], layer_bits: dict[str, int]) -> Recipe:
    """Prune in three turns, then share; four passes over the images in all."""
    pruning = tc.recipes.gradual_pruning(0.0, 3, layer_sparsity=layer_sparsity, batch_size=128)
    share = ShareWeights(layers=layer_bits)
    return Recipe([*pruning.steps, share, Finetune(1, 3e-4, 128, seed=3)])


def case(name: str) -> Case:
    """Give one of the two networks with its images."""
    if name != "digits":
        data = lenet.mnist()
        return Case(name, lenet.train(name, 0, data), data, lenet_recipe)
    split, cut = load_digits_split(), -DIGITS_VALIDATION
    images = lenet.Mnist(
        (split.train_images[:cut], split.train_labels[:cut]),
        (split.train_images[cut:], split.train_labels[cut:]),
        (split.test_images, split.test_labels),
    )
    network = tc.load(ROOT / "examples" / "digits" / "digits_cnn.onnx")
    return Case(name, network, images, partial(tc.recipes.deep_compression, epochs=10))


def trainings(name: str, budget: tc.Budget) -> int:
    """Give how many networks each side may train."""
    return len(BITS[name]) * (FITTING if budget.flash_bytes else BISECTIONS)


def size_bytes(mod: tvm.IRModule, budget: tc.Budget) -> int:
    """Give the bytes of flash where the budget limits them, else those of the file."""
    if budget.flash_bytes:
        return tc.build(mod, "c", board=budget.board).size.flash_bytes
    return len(codec.pack(mod))


def uniform(this: Case, budget: tc.Budget, density: float, bits: int) -> Found:
    """Compress all layers alike, by the recipe."""
    names = list(ir.weights(this.network))
    recipe = this.make(
        layer_sparsity=dict.fromkeys(names, 1 - density), layer_bits=dict.fromkeys(names, bits)
    )
    small = lenet.kept(
        f"{NAME}-{this.name}-{bits}-bits",
        f"{tvm.ir.save_json(this.network)} {recipe.to_toml()}",
        lambda: tc.compress(this.network, recipe, train=this.data.train, progress=False),
    )
    found = dict.fromkeys(names, density), dict.fromkeys(names, bits)
    accuracy = 1 - lenet.error(small, this.data.validation)
    return Found(small, *found, accuracy, size_bytes(small, budget))


def uniforms(this: Case, budget: tc.Budget) -> list[Found]:
    """Compress by the uniform settings that are likely to be the best ones for a budget."""
    tried: list[Found] = []

    def fitted(density: float, bits: int) -> int:
        alike = Recipe([Prune(1 - density), ShareWeights(bits)])
        return size_bytes(tc.compress(this.network, alike, progress=False), budget)

    def keeps(density: float, bits: int) -> bool:
        tried.append(uniform(this, budget, density, bits))
        return meets(tried[-1], this, budget)

    for bits in BITS[this.name]:
        if budget.flash_bytes:
            # Training moves the bytes a little, so the densest may not fit and the next ones do.
            end = bisect_right(FIT_DENSITIES, budget.flash_bytes, key=partial(fitted, bits=bits))
            for density in FIT_DENSITIES[max(0, end - FITTING) : end]:
                tried.append(uniform(this, budget, density, bits))
        else:
            bisect_left(KEEP_DENSITIES, True, key=partial(keeps, bits=bits))
    return tried


def meets(found: Found, this: Case, budget: tc.Budget) -> bool:
    """Whether a network is within all limits."""
    drop = 1 - lenet.error(this.network, this.data.validation) - found.accuracy
    fits = budget.flash_bytes is None or found.size_bytes <= budget.flash_bytes
    return fits and (budget.max_accuracy_drop is None or drop <= budget.max_accuracy_drop + _SAME)


def best_uniform(tried: Sequence[Found], this: Case, budget: tc.Budget) -> Found:
    """Give the most accurate network within bytes of flash, else the smallest.

    Raises:
        SystemExit: none meets the budget, so there is nothing to compare with.
    """
    good = [found for found in tried if meets(found, this, budget)]
    if not good:
        raise SystemExit(
            f"None of the {len(tried)} uniform settings tried on {this.name} meets {budget}; "
            "expected one to compare the search with. Set a limit that is easier to meet."
        )
    if budget.flash_bytes:
        return min(good, key=lambda found: (-found.accuracy, found.size_bytes))
    return min(good, key=lambda found: (found.size_bytes, -found.accuracy))


def measure(this: Case, budget: tc.Budget) -> dict[str, Any]:
    """Search for a budget and try uniform settings; accuracies 0..1, sizes in bytes."""
    count = trainings(this.name, budget)
    tried = uniforms(this, budget)
    alike = best_uniform(tried, this, budget)
    names = list(alike.density)
    sample = this.make(layer_sparsity=dict.fromkeys(names, 0.5), layer_bits=dict.fromkeys(names, 4))
    decides = f"{tvm.ir.save_json(this.network)} {sample.to_toml()} {budget} {tc.__version__}"
    digest = hashlib.sha256(decides.encode()).hexdigest()[:12]
    result = tc.search(
        this.network,
        budget,
        validate=this.data.validation,
        train=this.data.train,
        recipe=this.make,
        trials=count,
        trial_log=lenet.CACHE / f"{NAME}-{this.name}-{digest}",
    )
    best, mod = result.best, result.module
    searched = Found(
        mod,
        {name: 1 - best.sparsity[name] for name in names},
        dict(best.bits),
        1 - lenet.error(mod, this.data.validation),
        size_bytes(mod, budget),
    )
    (kind,) = best.costs
    most = budget.flash_bytes or alike.size_bytes
    return {
        "network": this.name,
        "limit": _limit(budget),
        "flash_limit": budget.flash_bytes,
        "drop_limit": budget.max_accuracy_drop,
        "uncompressed": {
            "validation_accuracy": 1 - lenet.error(this.network, this.data.validation),
            "test_accuracy": 1 - lenet.error(this.network, this.data.test),
            "bytes": size_bytes(this.network, budget),
        },
        "uniform": {**_row(alike, this), "trainings": len(tried)},
        "search": {**_row(searched, this), "trainings": len(result.trials)},
        # Of all networks that were searched, at no more bytes than the opponent may have.
        "search_at_no_more_bytes": max(
            (trial.accuracy for trial in result.trials if trial.cost(kind) <= most), default=0.0
        ),
        "uniforms": [
            {
                "density": max(found.density.values()),
                "bits": max(found.bits.values()),
                "validation_accuracy": found.accuracy,
                "bytes": found.size_bytes,
            }
            for found in tried
        ],
        "front": [
            {"validation_accuracy": trial.accuracy, "bytes": trial.costs[kind]}
            for trial in result.front
        ],
    }


def _row(found: Found, this: Case) -> dict[str, Any]:
    return {
        "density": found.density,
        "bits": found.bits,
        "validation_accuracy": found.accuracy,
        "test_accuracy": 1 - lenet.error(found.module, this.data.test),
        "bytes": found.size_bytes,
    }


def _limit(budget: tc.Budget) -> str:
    if budget.flash_bytes:
        return f"{budget.flash_bytes:,} bytes of flash"
    return f"{100 * (budget.max_accuracy_drop or 0.0):g} points"


def figures_of(result: dict[str, Any]) -> list[Figure]:
    """Give what a budget's result is held to: the limit, and what the opponent reached."""
    name = f"{result['network']} within {result['limit']}"
    alike, searched = result["uniform"], result["search"]
    gain = result["search_at_no_more_bytes"] - alike["validation_accuracy"]
    figures = [
        Figure(
            f"{name}: accuracy that the search gains at no more bytes",
            round(100 * gain, 6),
            0,
            "points",
            at_least=True,
        )
    ]
    if result["flash_limit"]:
        limit = result["flash_limit"]
        return [*figures, Figure(f"{name}: flash", searched["bytes"], limit, "bytes")]
    drop = result["uncompressed"]["validation_accuracy"] - searched["validation_accuracy"]
    return [
        *figures,
        Figure(f"{name}: file beside the uniform one", searched["bytes"], alike["bytes"], "bytes"),
        Figure(
            f"{name}: accuracy lost", round(100 * drop, 6), 100 * result["drop_limit"], "points"
        ),
    ]


def table_of(results: Sequence[dict[str, Any]]) -> str:
    """Lay out three rows a budget."""

    def spread(values: Sequence[float], unit: str) -> str:
        low, high = (f"{value:.3g}" for value in (min(values), max(values)))
        return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"

    rows = []
    for result in results:
        for which in ("uncompressed", "uniform", "search"):
            found = result[which]
            density, bits = found.get("density"), found.get("bits")
            rows.append(
                [
                    f"{result['network']}, {result['limit']}",
                    which,
                    spread([100 * d for d in density.values()], " %") if density else "",
                    spread(list(bits.values()), "") if bits else "",
                    f"{found['bytes']:,}",
                    f"{found['validation_accuracy']:.2%}",
                    f"{found['test_accuracy']:.2%}",
                    found.get("trainings", ""),
                ]
            )
    header = ["network, limit", "setting", "density", "bits", "bytes", "validation", "test"]
    return markdown_table([*header, "trainings"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare for every budget."""
    parser = option_parser(NAME, __doc__ or "")
    parser.add_argument("--networks", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    options = parser.parse_args(argv)
    results, figures = [], []
    for name in options.networks:
        this = case(name)
        for budget in BUDGETS[name]:
            results.append(measure(this, budget))
            figures += figures_of(results[-1])
    packages = ("tvm-compress", "apache-tvm", "torch", "constriction", "numpy", "scikit-learn")
    return finish(Report(NAME, table_of(results), figures, results, 0, packages), options)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)  # sums in one order
    raise SystemExit(main())
