"""``share-weights``: replace the weights of a layer by codes into a few shared centroids.

Before::

    fc_weight = const                                            # float32
    y = R.matmul(x, fc_weight)

After ``ShareWeights(bits=4)``::

    fc_weight = tvm_compress.codebook(codes, centroids)          # uint8 codes, 16 centroids
    y = R.matmul(x, fc_weight)

Zeros keep code 0, whose centroid is 0.0. Source: Deep Compression (arXiv 1510.00149), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import tvm

from tvm_compress import clustering, edge, ir
from tvm_compress.errors import OptionError, PassError
from tvm_compress.ops import codebook
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import check_weight, option_by_layer

__all__ = ["ShareWeights"]

_METHODS = ("optimal", "linear", "density", "random")


@dataclass(frozen=True)
class ShareWeights(Pass):
    """Share the weights of every convolution and product by one-dimensional k-means.

    Args:
        bits: bits of a code, 1..8; the codebook has ``2**bits`` entries, one of them the zero.
        method: ``optimal`` clusters with the least squared error; ``linear``, ``density`` and
            ``random`` are the paper's starting points of Lloyd's algorithm.
        seed: of ``random``.
        layers: bits by pattern of the weight's name, in place of ``bits``.

    Raises:
        OptionError: bits outside 1..8, an unknown method, or a pattern that fits no weight.
        PassError: a weight is shared already, is not float32 or is not finite.
    """

    name: ClassVar[str] = "share-weights"

    bits: int = 4
    method: Literal["optimal", "linear", "density", "random"] = "optimal"
    seed: int = 0
    layers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options."""
        for value in (self.bits, *self.layers.values()):
            if value not in range(1, 9):
                raise OptionError(
                    f"share-weights: the codes have {value} bits; expected a whole number from 1 "
                    "to 8."
                )
        if self.method not in _METHODS:
            raise OptionError(
                f"share-weights: the method is {self.method}; expected {', '.join(_METHODS)}."
            )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with shared weights."""
        # A stock pass in front may have put the constants back into the calls, without names.
        mod = Canonicalize().apply(mod)
        weights = ir.weights(mod)
        bits = option_by_layer(self.name, weights, self.layers)
        dense = {name: check_weight(self.name, weight) for name, weight in weights.items()}
        shared = {}
        for name, value in dense.items():
            if value.dtype != np.float32:
                raise PassError(
                    f"{self.name}: the weight {name} is {value.dtype}; expected float32: convert "
                    "the network before it is compressed."
                )
            codes, centroids = clustering.share(
                value, bits.get(name, self.bits), method=self.method, seed=self.seed
            )
            shared[name] = codebook(edge.constant(codes), edge.constant(centroids))
        return ir.replace_parameters(mod, shared)
