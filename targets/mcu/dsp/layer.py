"""What a kernel of an integer layer is made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.requantize import Requantize
from tvm_compress.targets.mcu.geometry import Geometry

__all__ = ["IntegerLayer"]

Array = NDArray[Any]


@dataclass(frozen=True)
class IntegerLayer:
    """A convolution or product of int8 with what follows it.

    Attributes:
        geometry: sizes; its padding is filled with ``zero``.
        weights: int16 (outputs, columns), columns in the order (channel, kh, kw).
        bias: int64 (outputs,), the input's zero point folded in.
        zero: the int8 that padding holds.
        requantize: what makes the sum a byte.
    """

    geometry: Geometry
    weights: Array
    bias: Array
    zero: int
    requantize: Requantize

    @cached_property
    def bound(self) -> Array:
        """The largest magnitude of each output channel's sum, for any int8 input."""
        w = self.weights.astype(np.int64)
        high = np.maximum(w * -128, w * 127).sum(axis=1) + self.bias
        low = np.minimum(w * -128, w * 127).sum(axis=1) + self.bias
        return np.asarray(np.maximum(np.abs(high), np.abs(low)))

    @property
    def not_dense(self) -> str | None:
        """Why the kernels of dense convolutions and products, of any core, cannot take it."""
        g = self.geometry
        if g.batch != 1:
            return "the batch is not 1"
        if g.groups != 1:
            return "it is grouped"
        if g.rank and not g.channels_last:
            return "its channels come first"
        if g.kernel == (1, 1):
            last = [(n - 1) * step for n, step in zip(g.out_size, g.strides, strict=True)]
            if g.padding != (0, 0) or last[0] >= g.in_size[0] or last[1] >= g.in_size[1]:
                return "it is padded without a window"
        return None

    @cached_property
    def too_large(self) -> bool:
        """Whether a sum, or what requantization adds to it, could leave a word."""
        return bool((self.bound + self.requantize.most_added).max(initial=0) >= 1 << 31)

    @property
    def pairable(self) -> bool:
        """Whether the weights of two channels fit a halfword, and their sums a word."""
        return self.offset == 0

    @cached_property
    def offset(self) -> int | None:
        """What to take off all weights, so that those of two channels fit a halfword.

        It is the one next to zero; None where no offset does it, or where sums (of the weights as
        they are, for the offset is added again) do not fit a word. A weight of zero, of inputs that
        are none, has to fit as well.
        """
        low, high = int(self.weights.min(initial=0)), int(self.weights.max(initial=0))
        if high - low > 254 or 257 * self.bound.max() >= 1 << 31:
            return None
        return min(low + 127, 0) + max(high - 127, 0)
