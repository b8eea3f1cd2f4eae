"""``drop-prune``: one step of DropPruning: some unimportant weights go, some pruned ones return.

Before::

    fc_weight = const            # sparsity s
    y = R.matmul(x, fc_weight)

After ``DropPrune(sparsity=0.9, drop=0.9, restore=0.01)``::

    fc_weight = const            # sparsity 0.9 in expectation; exactly, if drop = 1 and restore = 0
    y = R.matmul(x, fc_weight)

What is the paper's (Jia et al., DropPruning for Model Compression, arXiv 1812.02035): pruning goes
in steps with fine-tuning between; in each step "drop out" deletes some of the unimportant weights
stochastically, and "drop in" brings some pruned ones back stochastically, so that the search can
leave a bad choice.

What is our reading: unimportant are the kept weights of smallest magnitude, a fraction c of them.
Each is dropped with probability p, and each pruned weight returns with probability q. The sparsity
s of a layer then becomes ``s' = s (1 - q) + (1 - s) c p`` in expectation, whose fixed point is
``c p / (c p + q)``. Here p and q are given, and c follows from the sparsity that is wanted:
``c = (s' - s (1 - q)) / ((1 - s) p)``; s is read off the weight itself, so what chance did in one
step the next one makes good. A schedule (:func:`tvm_compress.recipes.drop_pruning`) ends with p = 1
and q = 0, a step without chance, and there the sparsity is met to the weight.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress import edge, ir
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import check_sparsity, check_weight, option_by_rule

__all__ = ["DropPrune", "drop_step", "fraction_to_drop"]

# A returned weight starts at this part of the smallest kept magnitude.
_RETURN = 2.0**-6


@dataclass(frozen=True)
class DropPrune(Pass):
    """Drop some of the smallest kept weights at random and let some pruned ones return.

    A returned weight needs a value that is not 0.0, since 0.0 says "pruned"; it gets a random sign
    and 1/64 of the layer's smallest kept magnitude. Its last value would have to be kept beside the
    IR, and would disturb what the others learned without it. So small a value changes nothing by
    itself: fine-tuning makes it large, or the next step finds it among the smallest.

    Args:
        sparsity: share of the weights of each layer that is zero afterwards, in expectation, 0..1.
            A layer with more zeros than that drops nothing.
        drop: p, the probability that one of the smallest weights is dropped, above 0 up to 1.
        restore: q, the probability that a pruned weight returns, 0..1.
        seed: of all chance; the layers draw apart.
        layers: sparsity by pattern of the weight's name; the first pattern that fits counts.
        first: sparsity of the weights that meet an input of the network first; 0 keeps them dense.
        last: the same for the weights whose results reach an output through no other weight.

    Raises:
        OptionError: a number outside its range, or a pattern that fits no weight.
        PassError: the sparsity cannot be reached in one step with p and q (c would be above 1); a
            weight is shared already, is not float or is not finite.
    """

    name: ClassVar[str] = "drop-prune"

    sparsity: float = 0.9
    drop: float = 1.0
    restore: float = 0.0
    seed: int = 0
    layers: Mapping[str, float] = field(default_factory=dict)
    first: float | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        check_sparsity(self.name, self.sparsity, *self.layers.values(), self.first, self.last)
        if not 0.0 < self.drop <= 1.0:
            raise OptionError(
                f"drop-prune: the probability drop is {self.drop}; expected a number above 0 and "
                "up to 1."
            )
        if not 0.0 <= self.restore <= 1.0:
            raise OptionError(
                f"drop-prune: the probability restore is {self.restore}; expected a number from 0 "
                "to 1."
            )
        if self.seed < 0:
            raise OptionError(
                f"drop-prune: the seed is {self.seed}; expected a whole number from 0 on."
            )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module after one step."""
        mod = Canonicalize().apply(mod)
        wanted = option_by_rule(self.name, mod, self.layers, self.first, self.last)
        new = {}
        for name, weight in ir.weights(mod).items():
            value = check_weight(self.name, weight)
            sparsity = wanted.get(name, self.sparsity)
            fraction = fraction_to_drop(value, sparsity, self.drop, self.restore)
            if fraction > 1:
                raise PassError(
                    f"drop-prune: the weight {name} cannot reach the sparsity {sparsity} in one "
                    f"step with drop={self.drop} and restore={self.restore}: even all of its "
                    f"weights are too few by a factor of {fraction:.3g}; expected a smaller step: "
                    "raise drop, lower restore or take more steps."
                )
            # By the name, so that a layer draws the same beside any others.
            generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            new[name] = edge.constant(
                drop_step(value, fraction, self.drop, self.restore, generator)
            )
        return ir.replace_parameters(mod, new)


def fraction_to_drop(weights: NDArray[Any], sparsity: float, drop: float, restore: float) -> float:
    """Give c, the fraction of the kept weights that are candidates; it may be above 1.

    It solves ``s' = s (1 - q) + (1 - s) c p`` for whole numbers of weights.

    >>> fraction_to_drop(np.array([0, 0, 0, 0, 1, 2, 3, 4.0]), 0.75, 0.5, 0.0)
    1.0
    """
    zeros = weights.size - int(np.count_nonzero(weights))
    kept = weights.size - zeros
    missing = round(sparsity * weights.size) - zeros * (1 - restore)
    return max(0.0, missing / (kept * drop)) if kept else 0.0


def drop_step(
    weights: NDArray[Any],
    fraction: float,
    drop: float,
    restore: float,
    generator: np.random.Generator,
) -> NDArray[Any]:
    """Do one step on a weight.

    Args:
        weights: floats of any shape; 0.0 says "pruned".
        fraction: c, the fraction of the kept weights, by smallest magnitude, that may be dropped.
        drop: p, the probability that one of those is dropped.
        restore: q, the probability that a weight that was pruned before returns.
        generator: the source of chance.

    >>> weights = np.array([0, 0.5, -2, 3, -0.25])
    >>> drop_step(weights, 0.5, 1.0, 0.0, np.random.default_rng(0))
    array([ 0.,  0., -2.,  3.,  0.])
    """
    flat = weights.ravel()
    result = flat.copy()
    kept, pruned = np.flatnonzero(flat), np.flatnonzero(flat == 0)
    order = np.argsort(np.abs(flat[kept]), kind="stable")
    candidates = kept[order[: round(fraction * kept.size)]]
    result[candidates[generator.random(candidates.size) < drop]] = 0
    returned = pruned[generator.random(pruned.size) < restore]
    smallest = np.abs(flat[kept]).min() if kept.size else flat.dtype.type(1)
    value = np.maximum(smallest * flat.dtype.type(_RETURN), np.finfo(flat.dtype).tiny)
    result[returned] = np.where(generator.random(returned.size) < 0.5, value, -value)
    return result.reshape(weights.shape)
