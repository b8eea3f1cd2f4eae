"""``block-prune``: set whole blocks of neighbouring inputs to zero.

Before::

    fc_weight = const            # dense
    y = R.matmul(x, fc_weight)

After ``BlockPrune(sparsity=0.75)``::

    fc_weight = const            # of the blocks of 4 inputs of an output, 75 % are 0.0
    y = R.matmul(x, fc_weight)

A block of four int8 weights is one word: one position is stored for four weights, and two products
at a time are taken of it. Source: Gray et al., GPU Kernels for Block-Sparse Weights (2017); Narang
et al., Block-Sparse Recurrent Neural Networks (arXiv 1711.02782), section 3, with the L2 norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress import edge, ir
from tvm_compress.errors import OptionError
from tvm_compress.passes.bank_prune import from_rows, to_rows
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import check_sparsity, check_weight, keep_largest, option_by_rule

__all__ = ["BlockPrune", "keep_blocks"]


@dataclass(frozen=True)
class BlockPrune(Pass):
    """Keep the blocks of largest L2 norm of every weight.

    A block is ``block`` inputs of ``outputs`` channels that follow each other, in the order of
    :class:`tvm_compress.passes.BankPrune`; the last block of a channel may be shorter.

    Args:
        sparsity: share of the blocks that are zero afterwards, 0..1.
        block: inputs of a block, 1 or more.
        outputs: output channels of a block, neighbours, 1 or more. The kernels of microcontrollers
            with the DSP extension skip blocks of 4 inputs of 2 outputs, and of 4 in a product with
            one vector.
        layers: sparsity by pattern of the weight's name; the first pattern that fits counts.
        first: sparsity of the weights that meet an input of the network first; 0 keeps them dense.
        last: the same for the weights whose results reach an output through no other weight.

    Raises:
        OptionError: a number outside its range, or a pattern that fits no weight.
        PassError: a weight is shared already, is not float or is not finite.
    """

    name: ClassVar[str] = "block-prune"

    sparsity: float = 0.75
    block: int = 4
    outputs: int = 1
    layers: Mapping[str, float] = field(default_factory=dict)
    first: float | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        check_sparsity(self.name, self.sparsity, *self.layers.values(), self.first, self.last)
        for what, size in (("inputs", self.block), ("outputs", self.outputs)):
            if size < 1:
                raise OptionError(
                    f"block-prune: a block has {size} {what}; expected a whole number from 1 on."
                )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with pruned weights."""
        mod = Canonicalize().apply(mod)
        sparsity = option_by_rule(self.name, mod, self.layers, self.first, self.last)
        new = {}
        for name, weight in ir.weights(mod).items():
            value = check_weight(self.name, weight)
            share = sparsity.get(name, self.sparsity)
            rows = to_rows(value, weight.output_axis)
            rows = keep_blocks(rows, share, self.block, self.outputs)
            new[name] = edge.constant(from_rows(rows, value.shape, weight.output_axis))
        return ir.replace_parameters(mod, new)


def keep_blocks(rows: NDArray[Any], sparsity: float, block: int, height: int = 1) -> NDArray[Any]:
    """Set exactly ``round(sparsity * blocks)`` blocks to zero, those of the smallest L2 norm.

    Args:
        rows: floats (outputs, inputs).
        sparsity: share of the blocks, 0..1.
        block: elements of a block; the last one of a row may be shorter.
        height: rows of a block; the last one of a column may be lower.

    >>> keep_blocks(np.array([[1.0, 1, 0, 2], [3, 0, 0, 1]]), 0.5, 2)
    array([[0., 0., 0., 2.],
           [3., 0., 0., 0.]])
    """
    outputs, inputs = rows.shape
    # float64: a norm must not overflow, or two blocks become equal.
    padded = np.pad(rows.astype(np.float64), [(0, -outputs % height), (0, -inputs % block)])
    squares = np.square(padded).reshape(-(-outputs // height), height, -1, block)
    norms = np.sqrt(squares.sum(axis=(1, 3)))
    # A block of zeros counts as pruned already, whatever its place.
    ranks = keep_largest(norms, sparsity)
    kept = np.repeat(np.repeat(ranks > 0, block, axis=1), height, axis=0)[:outputs, :inputs]
    return np.where(kept, rows, 0).astype(rows.dtype)
