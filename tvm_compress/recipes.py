"""Recipes that are known to work, as functions of the few numbers that matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.recipe import Finetune, Recipe, Step

__all__ = ["deep_compression"]


def deep_compression(
    sparsity: float = 0.9,
    bits: int = 4,
    *,
    epochs: int = 5,
    lr: float = 1e-3,
    batch_size: int = 64,
    optimizer: Literal["adam", "sgd"] = "adam",
    loss: Literal["cross_entropy", "mse"] = "cross_entropy",
    scope: Literal["layer", "global"] = "layer",
    method: Literal["optimal", "linear", "density", "random"] = "optimal",
    seed: int = 0,
    layer_sparsity: Mapping[str, float] | None = None,
    layer_bits: Mapping[str, int] | None = None,
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
        scope: ``layer`` prunes every layer to ``sparsity``, ``global`` all layers together.
        method: how centroids are found, see :class:`tvm_compress.passes.ShareWeights`.
        seed: of everything that is random.
        layer_sparsity: sparsity by pattern of the weight's name.
        layer_bits: bits by pattern of the weight's name.

    Raises:
        OptionError: a value outside its range.

    Source: Han, Mao, Dally, Deep Compression (arXiv 1510.00149).

    >>> [step.name for step in deep_compression(epochs=3).steps]
    ['prune', 'finetune', 'share-weights', 'finetune']
    """
    finetune = Finetune(epochs, lr, batch_size, optimizer, loss, seed)
    steps: list[Step] = []
    compressing = (
        Prune(sparsity, scope, layer_sparsity or {}),
        ShareWeights(bits, method, seed, layer_bits or {}),
    )
    for step in compressing:
        steps += [step, finetune] if epochs else [step]
    return Recipe(steps)
