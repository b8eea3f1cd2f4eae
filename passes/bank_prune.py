"""``bank-prune``: keep the k largest of every bank of inputs.

Before::

    fc_weight = const            # dense
    y = R.matmul(x, fc_weight)

After ``BankPrune(keep=2, bank=16)``::

    fc_weight = const            # of every 16 inputs of an output, 2 are not 0.0
    y = R.matmul(x, fc_weight)

All banks have equally many weights, so lanes that multiply one bank each end together, and a
weight's place in its bank is 4 bits. N:M sparsity is the same with ``keep=N, bank=M``.

Source: Cao et al., Efficient and Effective Sparse LSTM on FPGA with Bank-Balanced Sparsity (FPGA
2019), section 3; N:M: Mishra et al., Accelerating Sparse Deep Neural Networks (arXiv 2104.08378).
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
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import check_weight, option_by_rule

__all__ = ["BankPrune", "from_rows", "keep_in_banks", "to_rows"]


@dataclass(frozen=True)
class BankPrune(Pass):
    """Keep the weights of largest magnitude of every bank, in each output channel apart.

    A bank is ``bank`` inputs that follow each other: of a convolution first the channels at one
    place of the window, then the next place. Where the inputs are no multiple of ``bank``, the last
    bank is shorter and keeps ``keep`` too, or all it has.

    Args:
        keep: weights that are kept of a bank, 1..``bank``.
        bank: inputs of a bank, 2 or more; 16 is the bank of the layout, 4 with ``keep=2`` is 2:4.
        layers: ``keep`` by pattern of the weight's name; the first pattern that fits counts.
        first: ``keep`` of the weights that meet an input of the network first; ``bank`` keeps all.
        last: the same for the weights whose results reach an output through no other weight.

    Raises:
        OptionError: a number outside its range, or a pattern that fits no weight.
        PassError: a weight is shared already, is not float or is not finite.
    """

    name: ClassVar[str] = "bank-prune"

    keep: int = 2
    bank: int = 16
    layers: Mapping[str, int] = field(default_factory=dict)
    first: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.bank < 2:
            raise OptionError(
                f"bank-prune: a bank has {self.bank} inputs; expected a whole number from 2 on."
            )
        for keep in (self.keep, *self.layers.values(), self.first, self.last):
            if keep is not None and not 1 <= keep <= self.bank:
                raise OptionError(
                    f"bank-prune: {keep} weights of a bank are kept; expected a whole number from "
                    f"1 to the {self.bank} of the bank."
                )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with pruned weights."""
        mod = Canonicalize().apply(mod)
        keep = option_by_rule(self.name, mod, self.layers, self.first, self.last)
        new = {}
        for name, weight in ir.weights(mod).items():
            value = check_weight(self.name, weight)
            rows = keep_in_banks(
                to_rows(value, weight.output_axis), keep.get(name, self.keep), self.bank
            )
            new[name] = edge.constant(from_rows(rows, value.shape, weight.output_axis))
        return ir.replace_parameters(mod, new)


def keep_in_banks(rows: NDArray[Any], keep: int, bank: int) -> NDArray[Any]:
    """Set all but the ``keep`` largest magnitudes of every bank of a row to zero.

    Among equal magnitudes the later element goes first.

    Args:
        rows: floats (outputs, inputs).
        keep: elements that stay, of each bank.
        bank: elements of a bank; the last one of a row may be shorter.

    >>> keep_in_banks(np.array([[1.0, -4, 2, 3, 5]]), 1, 4)
    array([[ 0., -4.,  0.,  0.,  5.]])
    """
    outputs, inputs = rows.shape
    magnitude = np.abs(rows)
    # Padding is smaller than any magnitude, so it never takes the place of a weight.
    padded = np.pad(magnitude, [(0, 0), (0, -inputs % bank)], constant_values=-1)
    banks = padded.reshape(outputs, -1, bank)
    order = np.argsort(-banks, axis=2, kind="stable")
    kept = np.zeros(banks.shape, bool)
    np.put_along_axis(kept, order[..., :keep], True, axis=2)
    return np.where(kept.reshape(outputs, -1)[:, :inputs], rows, 0).astype(rows.dtype)


def to_rows(weight: NDArray[Any], output_axis: int) -> NDArray[Any]:
    """Give a weight as (outputs, inputs), of a convolution with the channels innermost.

    >>> to_rows(np.arange(8).reshape(1, 2, 1, 4), 0)
    array([[0, 4, 1, 5, 2, 6, 3, 7]])
    """
    moved = np.moveaxis(weight, output_axis, 0)
    # The order in which the kernels walk: window's last axis, ..., window's first axis, channel.
    moved = moved.transpose(0, *range(moved.ndim - 1, 0, -1))
    return np.ascontiguousarray(moved.reshape(moved.shape[0], -1))


def from_rows(rows: NDArray[Any], shape: tuple[int, ...], output_axis: int) -> NDArray[Any]:
    """Undo :func:`to_rows` for a weight of a shape."""
    places = to_rows(np.arange(rows.size).reshape(shape), output_axis)
    weight = np.empty(rows.size, rows.dtype)
    weight[places.ravel()] = rows.ravel()
    return weight.reshape(shape)
