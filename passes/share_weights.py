"""``share-weights``: replace the weights of a layer by codes into a few shared centroids.

Before::

    fc_weight = const                                            # float32
    y = R.matmul(x, fc_weight)

After ``ShareWeights(bits=4)``::

    fc_weight = tvm_compress.codebook(codes, centroids)          # uint8 codes, 16 centroids
    y = R.matmul(x, fc_weight)

After ``ShareWeights(bits=4, groups=2)`` the centroids are of shape (1, 2, 16): the outputs of
either half have a codebook of their own. Zeros keep code 0, whose centroid is 0.0.

An int8 weight of the QDQ form gets int8 centroids, with the error of each channel counted in its
own unit; the ``dequantize`` behind it stays.

Source: Deep Compression (arXiv 1510.00149), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress import clustering, edge, ir, qdq
from tvm_compress.errors import OptionError
from tvm_compress.ops import codebook
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import check_weight, option_by_rule

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
        layers: bits by pattern of the weight's name, in place of ``bits``; 0 leaves a weight dense.
        first: bits of the weights that meet an input of the network first; 0 leaves them dense.
        last: the same for the weights whose results reach an output through no other weight.
        groups: codebooks of a weight, 1 or more: each is that of equally many output channels that
            follow each other. Where the channels cannot be divided so, there are fewer groups, as
            many as can be.

    Raises:
        OptionError: bits or groups outside their range, an unknown method, or a pattern that fits
            no weight.
        PassError: a weight is shared already, is neither float32 nor int8 with the zero point 0, or
            is not finite.
    """

    name: ClassVar[str] = "share-weights"

    bits: int = 4
    method: Literal["optimal", "linear", "density", "random"] = "optimal"
    seed: int = 0
    layers: Mapping[str, int] = field(default_factory=dict)
    first: int | None = None
    last: int | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        """Check the options."""
        if self.bits not in range(1, 9):
            raise OptionError(
                f"share-weights: the codes have {self.bits} bits; expected a whole number from 1 "
                "to 8."
            )
        for value in (*self.layers.values(), self.first, self.last):
            if value is not None and value not in range(9):
                raise OptionError(
                    f"share-weights: a layer's codes have {value} bits; expected a whole number "
                    "from 1 to 8, or 0 to leave the weight dense."
                )
        if self.groups < 1:
            raise OptionError(
                f"share-weights: there are {self.groups} groups; expected a whole number from 1 on."
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
        own = option_by_rule(self.name, mod, self.layers, self.first, self.last)
        bits = {name: own.get(name, self.bits) for name in weights}
        weights = {name: weight for name, weight in weights.items() if bits[name]}
        integers = qdq.integer_parameters(mod)
        scales: dict[str, NDArray[np.float64]] = {}
        for name, weight in weights.items():
            dense = weight.parameter.dense
            how = integers.get(name)
            if dense is not None and dense.dtype == np.int8 and how and not how.zero_point.any():
                scales[name] = np.broadcast_to(how.scale, dense.shape)
            else:
                check_weight(self.name, weight, float32=True)
        shared = {}
        for name, weight in weights.items():
            value, axis = weight.parameter.value, weight.output_axis
            codes, centroids = self._share(value, bits[name], axis, scales.get(name))
            shared[name] = codebook(edge.constant(codes), edge.constant(centroids))
        return ir.replace_parameters(mod, shared)

    def _share(
        self, value: NDArray[Any], bits: int, axis: int, scales: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        groups = max(n for n in range(1, self.groups + 1) if value.shape[axis] % n == 0)
        how: dict[str, Any] = {"method": self.method, "seed": self.seed}
        parts: list[tuple[NDArray[np.uint8], NDArray[Any]]]
        if scales is None:
            parts = [
                clustering.share(np.ascontiguousarray(part), bits, **how)
                for part in np.split(value, groups, axis)
            ]
        else:
            split = (np.split(array, groups, axis) for array in (value, scales))
            parts = [
                clustering.share_integers(part, scale, bits, **how)
                for part, scale in zip(*split, strict=True)
            ]
        if groups == 1:
            return parts[0]
        # Of a part with few values the codebook is short; what is never read repeats the last.
        size = max(centroids.size for _, centroids in parts)
        places = [1] * value.ndim
        places[axis] = groups
        table = np.stack([np.pad(c, (0, size - c.size), mode="edge") for _, c in parts])
        return np.concatenate([codes for codes, _ in parts], axis), table.reshape(*places, size)
