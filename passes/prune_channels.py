"""``prune-channels``: take out whole channels of small filters; the graph gets smaller.

Before::

    c1 = R.nn.conv2d(x, w1)            # w1: (32, 3, 3, 3)
    c2 = R.nn.conv2d(R.nn.relu(c1), w2)

After ``PruneChannels(sparsity=0.5)``::

    c1 = R.nn.conv2d(x, w1)            # w1: (16, 3, 3, 3), the filters of largest norm
    c2 = R.nn.conv2d(R.nn.relu(c1), w2)    # without the inputs that went

Source: Li et al., Pruning Filters for Efficient ConvNets (arXiv 1608.08710), section 3.1. Channels
that an addition or a depthwise convolution ties together are judged and removed together, and every
layer that reads them takes them for zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import tvm

from tvm_compress import ir
from tvm_compress.channels import Channels
from tvm_compress.errors import OptionError
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import check_sparsity, check_weight, option_by_layer
from tvm_compress.passes.remove_channels import RemoveChannels, without_classes

__all__ = ["PruneChannels"]


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Structured pruning: remove the channels whose filters are smallest.

    Args:
        sparsity: share of a layer's channels to remove, 0..1; rounded down, and every layer keeps
            one channel.
        norm: ``l1`` sums the magnitudes of a channel's filters, ``l2`` takes the root of the sum of
            their squares.
        scope: ``layer`` removes the share from every set of layers whose channels are tied;
            ``global`` ranks all channels together, by the norm over what a filter of that size
            would have with weights of 1.
        layers: sparsity by pattern of the weight's name, in place of ``sparsity``; the first
            pattern that fits counts. With ``global`` scope those layers stand apart.

    Raises:
        OptionError: a sparsity outside 0..1, an unknown norm or scope, or a pattern that fits no
            weight.
        PassError: a weight is shared already, is not float or is not finite.
    """

    name: ClassVar[str] = "prune-channels"

    sparsity: float = 0.5
    norm: Literal["l1", "l2"] = "l1"
    scope: Literal["layer", "global"] = "layer"
    layers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options."""
        check_sparsity(self.name, self.sparsity, *self.layers.values())
        if self.norm not in ("l1", "l2"):
            raise OptionError(f"prune-channels: the norm is {self.norm}; expected l1 or l2.")
        if self.scope not in ("layer", "global"):
            raise OptionError(
                f"prune-channels: the scope is {self.scope}; expected layer or global."
            )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with fewer channels."""
        mod = Canonicalize().apply(mod)
        weights = ir.weights(mod)
        wanted = option_by_layer(self.name, weights, self.layers)
        for weight in weights.values():
            check_weight(self.name, weight)
        channels = Channels.of(mod)
        scores, makers = _scores(channels, self.norm)
        together: dict[Any, list[int]] = defaultdict(list)
        share: dict[Any, float] = {}
        for root in scores:
            own = [wanted[name] for name in sorted(makers[root]) if name in wanted]
            key = frozenset(makers[root]) if own or self.scope == "layer" else "global"
            together[key].append(root)
            share[key] = own[0] if own else self.sparsity
        gone: set[int] = set()
        for key, roots in together.items():
            ranked = sorted(roots, key=lambda root: scores[root])  # stable: earlier channels first
            gone.update(ranked[: int(share[key] * len(roots) + 1e-9)])
        gone -= _last_of_each(channels, scores, gone)
        # What these channels alone read, or were alone to read, goes with them.
        return RemoveChannels().apply(without_classes(mod, channels, gone))


def _scores(channels: Channels, norm: str) -> tuple[dict[int, float], dict[int, set[str]]]:
    """Give each class that may go its norm for weights of unit size, and the weights making it."""
    power = 1 if norm == "l1" else 2
    sums: dict[int, float] = defaultdict(float)
    sizes: dict[int, int] = defaultdict(int)
    makers: dict[int, set[str]] = defaultdict(set)
    for reader in channels.readers:
        free = ~channels.held(reader.result.classes)
        roots = channels.roots(reader.result.classes)
        filters = np.abs(reader.matrix.reshape(len(roots), -1).astype(np.float64)) ** power
        for root, total in zip(roots[free], filters.sum(1)[free], strict=True):
            sums[int(root)] += float(total)
            sizes[int(root)] += filters.shape[1]
            makers[int(root)].add(reader.weight)
    return {root: (sums[root] / sizes[root]) ** (1 / power) for root in sums}, makers


def _last_of_each(channels: Channels, scores: Mapping[int, float], gone: set[int]) -> set[int]:
    """Give the largest channel of every tensor that would lose all of them."""
    spared: set[int] = set()
    for layer in channels.layers.values():
        roots = {int(root) for root in channels.roots(layer.classes)}
        if roots and roots <= gone and not roots & spared:
            spared.add(max(sorted(roots), key=lambda root: scores.get(root, 0.0)))
    return spared
