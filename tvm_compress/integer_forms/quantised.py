"""What integer forms speak of: quantised tensors, held parameters, and what a quantize asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tvm_compress import qdq
from tvm_compress.ops import codebook_numpy

__all__ = ["Array", "Expr", "Form", "Held", "Move", "Quantised", "Target", "Walk"]

Array = NDArray[Any]
Expr = Any


@dataclass(frozen=True)
class Target:
    """What a quantize asks for: scale, zero point and the limits of the int8.

    Averages of a uint8 round ties up, those of an int8 away from zero.
    """

    scale: NDArray[np.float32]
    zero_point: int
    low: int = -128
    high: int = 127
    unsigned: bool = False  # the int8 stands for a uint8, less 128

    @property
    def limited(self) -> bool:
        """Whether the limits are narrower than those of int8."""
        return (self.low, self.high) != (-128, 127)

    def within(self, low: int, high: int) -> Target:
        """Give the target of what is clipped to ``low .. high`` and then to these limits."""
        low, high = (min(max(bound, self.low), self.high) for bound in (low, high))
        return Target(self.scale, self.zero_point, low, high, self.unsigned)


@dataclass(frozen=True)
class Quantised:
    """An int8 expression that stands for the real ``(q - zero_point) * scale``."""

    q: Expr
    scale: NDArray[np.float32]
    zero_point: int

    def of(self, q: Expr) -> Quantised:
        """Give another expression of the same scale."""
        return Quantised(q, self.scale, self.zero_point)

    def same(self, other: Quantised | Target | None) -> bool:
        """Whether another one has the same scale and zero point."""
        return (
            other is not None
            and bool(self.scale == other.scale)
            and self.zero_point == other.zero_point
        )


@dataclass(frozen=True)
class Held:
    """An integer parameter that is dequantised: dense, or codes and integer centroids."""

    var: Expr
    array: Array
    centroids: Array | None
    scale: Array
    zero_point: Array
    axis: int

    @property
    def integers(self) -> Array:
        """The dense integers."""
        return self.array if self.centroids is None else codebook_numpy(self.array, self.centroids)

    @property
    def real(self) -> Array:
        """The numbers that it stands for, float32."""
        return qdq.dequantized(self.integers, self.scale, self.zero_point, self.axis)


class Walk(Protocol):
    """What a form asks of the pass that walks over the bindings."""

    rounding: str

    def emit(self, value: Expr, name: str) -> Expr: ...  # noqa: D102
    def value(self, expr: Expr) -> Expr: ...  # noqa: D102
    def wanted(self, var: Expr) -> str: ...  # noqa: D102
    def quantised(self, expr: Expr) -> Quantised | None: ...  # noqa: D102
    def held(self, expr: Expr) -> Held | None: ...  # noqa: D102
    def number(self, expr: Expr) -> Array | None: ...  # noqa: D102


# (walk, name of what is computed, the operator's call, target) -> the int8 expression
Form = Callable[[Walk, str, Any, Target], Expr | None]
# (the operator's call, its quantised argument) -> the same of integers
Move = Callable[[Any, Quantised], Expr | None]
