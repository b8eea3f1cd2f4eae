"""What a search lets an executor do: functions of plain data, which any process can run.

A module travels as its saved text. The jobs of one process run one at a time: torch's settings and
number of threads are the process's own, and the results must not depend on who works beside.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress import clustering, edge, ir
from tvm_compress.errors import BudgetError, DataError
from tvm_compress.inspection import smallest_layout
from tvm_compress.ops import codebook
from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.passes.prune import keep_largest
from tvm_compress.recipe import Recipe
from tvm_compress.search.budget import Budget
from tvm_compress.tensors import check_classes, output_specs

__all__ = [
    "Task",
    "accuracy",
    "check_labels",
    "layer_instructions",
    "layer_scan",
    "one_shot",
    "total_costs",
    "trial",
]

Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, eq=False)
class Task:
    """What the jobs of a search share.

    Attributes:
        network: the uncompressed module, as JSON.
        budget: says what is measured, and on which board.
        threads: of torch.
        validate: samples and labels by which networks are judged.
        train: see :func:`tvm_compress.compress`, and so ``calibrate``, ``augment`` and ``device``.
    """

    network: str
    budget: Budget
    threads: int
    validate: tuple[Inputs, NDArray[Any]]
    train: tuple[Inputs, NDArray[Any] | None] | None = None
    calibrate: Inputs | None = None
    augment: Any = None
    device: str = "cpu"


def one_shot(sparsity: Mapping[str, float], bits: Mapping[str, int]) -> Recipe:
    """Give the recipe that prunes and shares by layer, without data; 0 bits leave floats.

    Layers that are not named stay as they are.
    """
    return Recipe(
        [
            Prune(0.0, layers=dict(sparsity)),
            ShareWeights(layers={**bits, "*": 0}),
        ]
    )


def layer_scan(
    task: Task, layer: str, densities: Sequence[float], bits: Sequence[int]
) -> dict[str, Any]:
    """Compress one layer alone, in one shot, and tell what it costs and how much it harms.

    Returns:
        Lists of lists (densities, bits): under ``damage`` the mean Kullback-Leibler divergence, in
        nats, of the classes' probabilities from those of the uncompressed network; under
        ``weight_bytes`` and ``flash_bytes``, where the budget asks for them, the layer's bytes. And
        ``dense``: these costs of the layer as it is, by name.
    """
    with _alone(task):
        mod, x = _load(task.network), task.validate[0]
        value = ir.parameters(mod)[layer].value
        dense = _log_probabilities(_outputs(mod, x))
        names = [name for name in task.budget.measured if name in _BYTES]
        found: dict[str, Any] = {name: [] for name in ("damage", *names)}
        for density in densities:
            pruned = keep_largest(value, 1.0 - density)
            for row in found.values():
                row.append([])
            for width in bits:
                codes, centroids = clustering.share(pruned, width)
                shared = codebook(edge.constant(codes), edge.constant(centroids))
                small = ir.replace_parameters(mod, {layer: shared})
                change = dense - _log_probabilities(_outputs(small, x))
                found["damage"][-1].append(float((np.exp(dense) * change).sum(-1).mean()))
                for name in names:
                    found[name][-1].append(_BYTES[name](small, layer))
        return {**found, "dense": {name: _BYTES[name](mod, layer) for name in names}}


def layer_instructions(task: Task, densities: Sequence[float], bits: int) -> dict[str, Any]:
    """Build firmware of the network with all layers compressed alike, in one shot.

    Args:
        task: the network and the board.
        densities: those of the layers, one firmware for each.
        bits: of the codes; 0 leaves floats.

    Returns:
        ``instructions``, a list of lists (densities, layers): those of each layer and of what
        follows it up to the next one.
    """
    from tvm_compress.build import build

    with _alone(task):
        mod = _load(task.network)
        names = list(ir.weights(mod))
        owners, found = _owners(mod), []
        for density in densities:
            alike = one_shot(dict.fromkeys(names, 1.0 - density), dict.fromkeys(names, bits))
            firmware = build(_compressed(mod, alike), "c", board=task.budget.board)
            by_layer = dict.fromkeys(names, 0)
            for part in firmware.profile(_first(task)).layers:
                if part.name in owners:
                    by_layer[owners[part.name]] += part.instructions
            found.append(list(by_layer.values()))
        return {"instructions": found}


def total_costs(task: Task, recipe: Recipe) -> dict[str, Any]:
    """Compress by a recipe and measure the whole network; the costs by name."""
    with _alone(task):
        return dict(_totals(task, _compressed(_load(task.network), recipe)))


def trial(task: Task, recipe: Recipe) -> dict[str, Any]:
    """Compress by a recipe, judge and measure.

    Returns:
        ``accuracy`` (0..1), the costs by name (None where the network does not fit the board) and
        ``module``, the compressed module as JSON.
    """
    from tvm_compress.pipeline import compress

    with _alone(task):
        small = compress(
            _load(task.network),
            recipe,
            train=task.train,
            calibrate=task.calibrate,
            augment=task.augment,
            device=task.device,
            progress=False,
        )
        return {**_judged(task, small), **_totals(task, small), "module": tvm.ir.save_json(small)}


def accuracy(task: Task) -> dict[str, Any]:
    """Judge the uncompressed network: ``accuracy``, 0..1."""
    with _alone(task):
        return _judged(task, _load(task.network))


def check_labels(mod: tvm.IRModule, validate: Any) -> tuple[Inputs, NDArray[Any]]:
    """Give validation data after checking that it is a pair of samples and class numbers.

    Raises:
        DataError: it is not.
    """
    if not (isinstance(validate, tuple) and len(validate) == 2 and validate[1] is not None):
        raise DataError(
            f"The validation data is a {type(validate).__name__}; expected a pair (x, y) of "
            "samples and their class numbers."
        )
    labels = np.asarray(validate[1])
    if labels.dtype.kind not in "iu" or not labels.size:
        raise DataError(
            f"The labels of the validation data are {labels.size} of {labels.dtype}; expected "
            "integers, the class of each sample, for networks are judged by accuracy."
        )
    *places, classes = [size for size in output_specs(mod)[0].shape if size != 1] or [1]
    x = validate[0]
    count = len(next(iter(x.values())) if isinstance(x, Mapping) else x)
    if labels.shape != (count, *places):
        raise DataError(
            f"The labels of the validation data have the shape {labels.shape}; expected "
            f"{(count, *places)}: one for each of the {count} samples."
        )
    check_classes("validation data", labels, classes)
    return x, labels


@contextmanager
def _alone(task: Task) -> Iterator[None]:
    with _ONE_AT_A_TIME:
        if find_spec("torch") is None:
            yield
            return
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(task.threads)  # sums in the same order in every process
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _load(network: str) -> tvm.IRModule:
    return tvm.ir.load_json(network)


def _compressed(mod: tvm.IRModule, recipe: Recipe) -> tvm.IRModule:
    for step in recipe.steps:
        mod = step.apply(mod)  # type: ignore[union-attr]
    return mod


def _outputs(mod: tvm.IRModule, x: Inputs) -> Floats:
    """Give what stands before the softmax, or its logarithm: float64 (N, *places, classes)."""
    if find_spec("torch") is not None:
        from tvm_compress.training import teacher_outputs

        found = teacher_outputs(mod, x)
    else:
        from tvm_compress.targets.reference.interpreter import run

        (found,) = run(mod, x).values()
    spec = output_specs(mod)[0]
    places = [size for size in spec.shape if size != 1] or [1]
    return np.asarray(found, np.float64).reshape(-1, *places)


def _log_probabilities(outputs: Floats) -> Floats:
    sums = outputs.sum(-1)
    if (outputs >= 0).all() and np.allclose(sums, 1.0, rtol=0, atol=1e-3):  # a softmax's output
        return np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
    shifted = outputs - outputs.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _judged(task: Task, mod: tvm.IRModule) -> dict[str, float]:
    x, y = task.validate
    return {"accuracy": float((_outputs(mod, x).argmax(-1) == np.asarray(y)).mean())}


def _totals(task: Task, mod: tvm.IRModule) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    names = task.budget.measured
    if "weight_bytes" in names:
        from tvm_compress import codec

        found["weight_bytes"] = len(codec.pack(mod, task.budget.profile))
    if {"flash_bytes", "instructions"} & set(names):
        from tvm_compress.build import build

        try:
            firmware = build(mod, "c", board=task.budget.board)
        except BudgetError:
            return dict.fromkeys(names)
        if "flash_bytes" in names:
            found["flash_bytes"] = firmware.size.flash_bytes
        if "instructions" in names:
            found["instructions"] = firmware.profile(_first(task)).instructions
    return found


def _first(task: Task) -> Inputs:
    x = task.validate[0]
    return {name: value[:1] for name, value in x.items()} if isinstance(x, Mapping) else x[:1]


def _entropy_bytes(mod: tvm.IRModule, layer: str) -> float:
    """Give the bytes of a layer by the entropy of its codes: about what a .tcz file takes."""
    parameter = ir.parameters(mod)[layer]
    codes, centroids = parameter.codes, parameter.centroids
    if codes is None or centroids is None:
        return float(parameter.value.nbytes)
    counts = np.bincount(codes.ravel())
    counts = counts[counts > 0]
    bits = -(counts * np.log2(counts / codes.size)).sum()
    return float(bits) / 8 + centroids.nbytes


def _packed_bytes(mod: tvm.IRModule, layer: str) -> float:
    """Give the bytes of a layer in the smallest layout that fits it."""
    weight = ir.weights(mod)[layer]
    return float(smallest_layout(weight.parameter, weight.output_axis)[1])


def _owners(mod: tvm.IRModule) -> dict[str, str]:
    """Give the weight that a variable is computed with or, if with none, the one before it."""
    weights = ir.weights(mod)
    found: dict[str, str] = {}
    for binding in ir.bindings(ir.main_function(mod)):
        read = [edge.var_name(var) for var in edge.variables_in(binding.value)]
        mine = [name for name in read if name in weights]
        mine += [found[name] for name in read if name in found]
        if mine:
            found[edge.var_name(binding.var)] = mine[0]
    return found


_BYTES = {"weight_bytes": _entropy_bytes, "flash_bytes": _packed_bytes}
