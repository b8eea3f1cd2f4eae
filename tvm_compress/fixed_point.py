"""Weights in n-bit fixed point: the grid of values, its step, and the codes.

A weight is ``step * i`` with a whole number ``i`` from ``-2**(bits-1)`` to ``2**(bits-1) - 1``. As
a codebook (:mod:`tvm_compress.ops`) that is the *grid* of all ``2**bits`` values in the order of
two's complement: code 0 is 0.0 and a code's bits are the number itself. Nothing else orders its
centroids so, hence :func:`step_of` reads off the centroids alone whether a weight is in fixed
point, and fine-tuning needs no second record of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import OptionError

__all__ = ["best_steps", "encode", "grid", "step_of"]

# The best step is looked for on at most this many weights of a row.
_SAMPLE = 1 << 16


def grid(bits: int, step: float = 1.0) -> NDArray[np.float32]:
    """Give all values of a fixed-point weight by code: float32 of shape ``(2**bits,)``.

    >>> grid(2, 0.5)
    array([ 0. ,  0.5, -1. , -0.5], dtype=float32)
    """
    _check_bits(bits)
    half = 1 << (bits - 1)
    numbers = (np.arange(1 << bits) + half) % (1 << bits) - half
    return numbers.astype(np.float32) * np.float32(step)


def step_of(centroids: NDArray[Any]) -> float | None:
    """Give the step of a grid of 2 to 8 bits, or None where the centroids are no grid.

    >>> step_of(grid(3, 0.25))
    0.25
    >>> step_of(np.array([0, -1, 0.5, 1], "float32")) is None
    True
    """
    bits = int(centroids.size).bit_length() - 1
    if centroids.ndim != 1 or centroids.size != 1 << bits or not 2 <= bits <= 8:
        return None
    step = float(centroids[1])
    same = step > 0 and np.array_equal(centroids, grid(bits, step).astype(centroids.dtype))
    return step if same else None


def encode(weights: NDArray[Any], bits: int, steps: NDArray[Any]) -> NDArray[np.uint8]:
    """Round weights to codes into the grid; halves go to the even number, the rest is clipped.

    Args:
        weights: floats of any shape.
        bits: 2..8.
        steps: positive floats that broadcast to the weights.

    >>> encode(np.array([0.0, 0.6, -0.5, 9.0]), 2, np.array(0.5))
    array([0, 1, 3, 1], dtype=uint8)
    """
    _check_bits(bits)
    half = 1 << (bits - 1)
    numbers = np.clip(np.rint(weights / steps), -half, half - 1)
    codes: NDArray[np.uint8] = (numbers.astype(np.int16) & ((1 << bits) - 1)).astype(np.uint8)
    return codes


def best_steps(rows: NDArray[Any], bits: int, *, power_of_two: bool = False) -> NDArray[np.float32]:
    """Give for each row the step of the least squared error.

    It is the best of some 80 steps from the one that reaches the row's largest magnitude to a
    fifth of it or, with ``power_of_two``, the best power of two. Of a long row a sample decides. A
    row of zeros has step 1.

    Args:
        rows: floats (n, m).
        bits: 2..8.
        power_of_two: whether a step is a power of two, as shifts and bare fixed point have it.

    >>> float(best_steps(np.array([[0.26, -0.5, 0.74]]), 3, power_of_two=True)[0])
    0.25
    """
    _check_bits(bits)
    sample = rows[:, :: max(1, -(-rows.shape[1] // _SAMPLE))].astype(np.float64)
    half = 1 << (bits - 1)
    largest = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
    # A step has to be a normal float32 number, or its multiples are not exact.
    widest = np.where(largest > 1e-34, largest, half - 1.0) / (half - 1)
    # Up to half a step beyond the end of the grid (half - 1, or half on the negative side) costs no
    # more than rounding does, so there the steps lie close.
    fractions = np.concatenate(
        [(half - 1) / np.linspace(half - 1, half + 0.5, 25), np.linspace(0.97, 0.2, 57)]
    )
    best, least = np.ones(len(rows), np.float32), np.full(len(rows), np.inf)
    exponents = np.ceil(np.log2(widest))
    for candidate in range(4) if power_of_two else range(fractions.size):
        steps = 2.0 ** (exponents - candidate) if power_of_two else widest * fractions[candidate]
        steps = steps.astype(np.float32)[:, None]
        error = np.square(_round(sample, bits, steps) - sample).sum(axis=1)
        better = error < least
        best, least = np.where(better, steps[:, 0], best), np.where(better, error, least)
    return np.where(np.abs(rows).max(axis=1, initial=0) > 0, best, np.float32(1))


def _round(weights: NDArray[Any], bits: int, steps: NDArray[Any]) -> NDArray[Any]:
    half = 1 << (bits - 1)
    rounded: NDArray[Any] = np.clip(np.rint(weights / steps), -half, half - 1) * steps
    return rounded


def _check_bits(bits: int) -> None:
    if bits not in range(2, 9):
        raise OptionError(
            f"fixed point: the weights have {bits} bits; expected a whole number from 2 to 8."
        )
