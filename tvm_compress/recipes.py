"""Recipes that are known to work, as functions of the few numbers that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from tvm_compress.errors import OptionError
from tvm_compress.passes import (
    DropPrune,
    Prune,
    ReduceRate,
    RemoveChannels,
    RoundBiases,
    ShareWeights,
)
from tvm_compress.recipe import Finetune, Recipe, Step

__all__ = [
    "cubic_sparsity",
    "deep_compression",
    "drop_pruning",
    "geometric_sparsity",
    "gradual_pruning",
    "post_training",
]


def deep_compression(
    sparsity: float = 0.9,
    bits: int = 4,
    *,
    epochs: int = 5,
    lr: float = 1e-3,
    batch_size: int = 64,
    optimizer: Literal["adam", "sgd"] = "adam",
    loss: Literal["cross_entropy", "mse"] = "cross_entropy",
    weight_decay: float = 0.0,
    lr_schedule: Literal["constant", "cosine"] = "constant",
    scope: Literal["layer", "global"] = "layer",
    method: Literal["optimal", "linear", "density", "random"] = "optimal",
    seed: int = 0,
    layer_sparsity: Mapping[str, float] | None = None,
    layer_bits: Mapping[str, int] | None = None,
    first: float | None = None,
    last: float | None = None,
) -> Recipe:
    """Prune, fine-tune, share weights, fine-tune.

    Args:
        sparsity: share of the weights that become zero, 0..1.
        bits: bits of a shared weight's code, 1..8.
        epochs: passes over the training data, for each of the two fine-tunings; 0 leaves both out
            and needs no data (one shot).
        lr: learning rate of the first fine-tuning and of the second.
        batch_size: samples a step.
        optimizer: ``adam`` or ``sgd``.
        loss: ``cross_entropy`` or ``mse``.
        weight_decay: of both fine-tunings, see :class:`tvm_compress.recipe.Finetune`.
        lr_schedule: of the learning rate in each fine-tuning, ``constant`` or ``cosine``.
        scope: ``layer`` prunes every layer to ``sparsity``, ``global`` all layers together.
        method: how centroids are found, see :class:`tvm_compress.passes.ShareWeights`.
        seed: of everything that is random.
        layer_sparsity: sparsity by pattern of the weight's name.
        layer_bits: bits by pattern of the weight's name.
        first: sparsity of the weights that meet an input first.
        last: sparsity of the weights whose results reach an output.

    Raises:
        OptionError: a value outside its range.

    Source: Han, Mao, Dally, Deep Compression (arXiv 1510.00149).

    >>> [step.name for step in deep_compression(epochs=3).steps]
    ['prune', 'finetune', 'share-weights', 'finetune']
    """
    finetune = Finetune(epochs, lr, batch_size, optimizer, loss, seed, weight_decay, lr_schedule)
    steps: list[Step] = []
    compressing = (
        Prune(sparsity, scope, layer_sparsity or {}, first, last),
        ShareWeights(bits, method, seed, layer_bits or {}),
    )
    for step in compressing:
        steps += [step, finetune] if epochs else [step]
    return Recipe(steps)


def post_training(
    lam: float = 0.005,
    *,
    damping: float = 0.05,
    bias_bits: int = 10,
    layer_lam: Mapping[str, float] | None = None,
) -> Recipe:
    """Remove dead channels, then quantise for the smallest file, in one shot and without training.

    ``compress(mod, post_training())`` needs no data at all; ``calibrate=x`` with some hundred
    samples without labels makes it lose less at the same size. Neither needs torch.

    Args:
        lam: what a bit is worth, above 0: more of it makes the file smaller and the network worse,
            see :class:`tvm_compress.passes.ReduceRate`.
        damping: how little the samples are trusted, above 0.
        bias_bits: bits of the biases, 2..16, see :class:`tvm_compress.passes.RoundBiases`.
        layer_lam: ``lam`` by pattern of the weight's name; 0 leaves a weight as it is.

    Raises:
        OptionError: a value outside its range.

    Source: see :mod:`tvm_compress.rate_distortion`.

    >>> [step.name for step in post_training().steps]
    ['remove-channels', 'reduce-rate', 'round-biases']
    """
    reduce = ReduceRate(lam, damping, layers=layer_lam or {})
    return Recipe([RemoveChannels(), reduce, RoundBiases(bias_bits)])


def cubic_sparsity(part: float, final: float, initial: float = 0.0) -> float:
    """Give the sparsity when a part (0..1) of a gradual pruning is done.

    Source: Zhu, Gupta, To prune, or not to prune (arXiv 1710.01878), section 3, equation 1, with
    ``part = (t - t0) / (n dt)``: many weights go first, while many are superfluous.

    >>> [round(cubic_sparsity(t / 4, 0.9), 3) for t in range(5)]
    [0.0, 0.52, 0.787, 0.886, 0.9]
    """
    return final + (initial - final) * (1 - part) ** 3


def geometric_sparsity(part: float, final: float, initial: float = 0.0) -> float:
    """Give the sparsity when a part (0..1) is done and each step drops the same share of the kept.

    So Han et al. prune and retrain in turns (Learning both Weights and Connections, arXiv
    1506.02626, section 3.3). A final sparsity of 1 is reached with the last step alone.

    >>> [round(geometric_sparsity(t / 2, 0.96), 3) for t in range(3)]
    [0.0, 0.8, 0.96]
    """
    if part == 1:
        return final
    return 1 - (1 - initial) * ((1 - final) / (1 - initial)) ** part if initial < 1 else initial


def gradual_pruning(
    sparsity: float = 0.9,
    steps: int = 8,
    *,
    initial: float = 0.0,
    schedule: Literal["cubic", "geometric"] = "cubic",
    epochs: int = 1,
    last_epochs: int | None = None,
    lr: float = 1e-3,
    batch_size: int = 64,
    optimizer: Literal["adam", "sgd"] = "adam",
    loss: Literal["cross_entropy", "mse"] = "cross_entropy",
    weight_decay: float = 0.0,
    lr_schedule: Literal["constant", "cosine"] = "constant",
    scope: Literal["layer", "global"] = "layer",
    seed: int = 0,
    layer_sparsity: Mapping[str, float] | None = None,
    first: float | None = None,
    last: float | None = None,
) -> Recipe:
    """Prune a little and fine-tune, several times; the last step prunes to the sparsity wanted.

    Args:
        sparsity: share of the weights that is zero in the end, 0..1.
        steps: how often to prune and fine-tune, 1 or more.
        initial: sparsity that the network is said to have before.
        schedule: ``cubic`` (:func:`cubic_sparsity`) or ``geometric`` (:func:`geometric_sparsity`).
        epochs: passes over the training data after each pruning.
        last_epochs: the same after the last one; as ``epochs`` if left out.
        lr: learning rate.
        batch_size: samples a step of the optimizer.
        optimizer: ``adam`` or ``sgd``.
        loss: ``cross_entropy`` or ``mse``.
        weight_decay: of each fine-tuning, see :class:`tvm_compress.recipe.Finetune`.
        lr_schedule: of the learning rate in each fine-tuning, ``constant`` or ``cosine``.
        scope: ``layer`` prunes every layer to the sparsity, ``global`` all layers together.
        seed: of the order of the samples.
        layer_sparsity: sparsity in the end by pattern of the weight's name.
        first: sparsity in the end of the weights that meet an input first.
        last: sparsity in the end of the weights whose results reach an output.

    Raises:
        OptionError: a value outside its range.

    >>> for step in gradual_pruning(0.9, 2).steps:
    ...     print(step.name, getattr(step, "sparsity", ""))
    prune 0.7875
    finetune
    prune 0.9
    finetune
    """
    curve = _curve(schedule, initial)

    def prune(number: int, part: float) -> Prune:
        wanted = _wanted(curve, part, sparsity, layer_sparsity, first, last)
        return Prune(scope=scope, **wanted)

    tune = Finetune(epochs, lr, batch_size, optimizer, loss, seed, weight_decay, lr_schedule)
    return _in_turns("gradual_pruning", steps, prune, tune, last_epochs)


def drop_pruning(
    sparsity: float = 0.9,
    steps: int = 8,
    *,
    drop: float = 0.9,
    restore: float = 0.02,
    initial: float = 0.0,
    schedule: Literal["cubic", "geometric"] = "cubic",
    epochs: int = 1,
    last_epochs: int | None = None,
    lr: float = 1e-3,
    batch_size: int = 64,
    optimizer: Literal["adam", "sgd"] = "adam",
    loss: Literal["cross_entropy", "mse"] = "cross_entropy",
    weight_decay: float = 0.0,
    lr_schedule: Literal["constant", "cosine"] = "constant",
    seed: int = 0,
    layer_sparsity: Mapping[str, float] | None = None,
    first: float | None = None,
    last: float | None = None,
) -> Recipe:
    """Drop weights and bring some back by chance and fine-tune, several times.

    The probability of a drop goes from ``drop`` up to 1 and that of a return from ``restore`` down
    to 0, both in equal steps, so the last step is without chance and meets the sparsity exactly.

    Args:
        sparsity: share of the weights of each layer that is zero in the end, 0..1.
        steps: how often to drop and fine-tune, 1 or more.
        drop: probability before the first step that one of the smallest weights is dropped.
        restore: probability before the first step that a pruned weight returns.
        initial: sparsity that the network is said to have before.
        schedule: ``cubic`` (:func:`cubic_sparsity`) or ``geometric`` (:func:`geometric_sparsity`).
        epochs: passes over the training data after each step.
        last_epochs: the same after the last one; as ``epochs`` if left out.
        lr: learning rate.
        batch_size: samples a step of the optimizer.
        optimizer: ``adam`` or ``sgd``.
        loss: ``cross_entropy`` or ``mse``.
        weight_decay: of each fine-tuning, see :class:`tvm_compress.recipe.Finetune`.
        lr_schedule: of the learning rate in each fine-tuning, ``constant`` or ``cosine``.
        seed: of all chance.
        layer_sparsity: sparsity in the end by pattern of the weight's name.
        first: sparsity in the end of the weights that meet an input first.
        last: sparsity in the end of the weights whose results reach an output.

    Raises:
        OptionError: a value outside its range.

    Source: Jia et al., DropPruning for Model Compression (arXiv 1812.02035); what of it is our
    reading says :mod:`tvm_compress.passes.drop_prune`.

    >>> for step in drop_pruning(0.9, 2, drop=0.5, restore=0.1).steps[::2]:
    ...     print(step.sparsity, step.drop, step.restore)
    0.7875 0.75 0.05
    0.9 1.0 0.0
    """
    curve = _curve(schedule, initial)

    def prune(number: int, part: float) -> DropPrune:
        wanted = _wanted(curve, part, sparsity, layer_sparsity, first, last)
        p, q = drop + (1 - drop) * part, restore * (1 - part)
        return DropPrune(drop=p, restore=q, seed=seed + number, **wanted)

    tune = Finetune(epochs, lr, batch_size, optimizer, loss, seed, weight_decay, lr_schedule)
    return _in_turns("drop_pruning", steps, prune, tune, last_epochs)


_Curve = Callable[[float, float], float]


def _curve(schedule: str, initial: float) -> _Curve:
    curves = {"cubic": cubic_sparsity, "geometric": geometric_sparsity}
    if schedule not in curves:
        raise OptionError(f"The schedule is {schedule}; expected {' or '.join(curves)}.")
    if not 0.0 <= initial < 1.0:
        raise OptionError(
            f"The initial sparsity is {initial}; expected a number from 0 to below 1."
        )

    def sparsity(part: float, final: float) -> float:
        # A layer that stays denser than the start never overshoots; nor does rounding.
        value = curves[schedule](part, final, min(initial, final))
        return final if part == 1 else min(max(0.0, value), final)

    return sparsity


def _wanted(
    curve: _Curve,
    part: float,
    sparsity: float,
    layers: Mapping[str, float] | None,
    first: float | None,
    last: float | None,
) -> dict[str, Any]:
    """Give the options of a pruning when a part (0..1) is done, from those of the last one."""

    def now(final: float | None) -> Any:
        return None if final is None else curve(part, final)

    return {
        "sparsity": now(sparsity),
        "layers": {pattern: now(final) for pattern, final in (layers or {}).items()},
        "first": now(first),
        "last": now(last),
    }


def _in_turns(
    name: str,
    steps: int,
    prune: Callable[[int, float], Step],
    tune: Finetune,
    last_epochs: int | None,
) -> Recipe:
    """Give turns of ``prune(number from 0 on, part done)`` and fine-tuning, a seed for each."""
    if steps < 1:
        raise OptionError(f"{name}: there are {steps} steps; expected a whole number from 1 on.")
    made: list[Step] = []
    for number in range(steps):
        epochs = tune.epochs if number < steps - 1 or last_epochs is None else last_epochs
        tuned = replace(tune, epochs=epochs, seed=tune.seed + number)
        made += [prune(number, (number + 1) / steps), tuned]
    return Recipe(made)
