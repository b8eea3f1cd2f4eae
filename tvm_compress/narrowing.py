"""Rows of weights on few levels, so that the outputs of the whole network change least.

How a network's outputs move when one row ``w`` of a layer moves by ``d`` is, to second order,
``d H d`` with the row's own Gram matrix ``H``: the mean over samples of ``g g^T``, where ``g`` is
the gradient of the outputs by ``w`` (:mod:`tvm_compress.training.output_grams`). Every row gets a
step of its own; its weights are settled one by one with the rest taking up the error, or each at
its nearest level, and are then moved one at a time as long as that helps. What is left over goes to
the row's bias.

Sources: Frantar et al., GPTQ (arXiv 2210.17323), section 3; Kurtic et al., The Optimal BERT Surgeon
(arXiv 2203.07259), section 3.1, for the Gram matrix of gradients in blocks; the moves are
coordinate descent on the same quadratic form.

Everything here is numpy on arrays; :class:`tvm_compress.passes.NarrowWeights` carries it to a
module.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.reconstruction import upper_factor

__all__ = ["Narrowed", "narrow_rows"]

_Floats = NDArray[np.float64]

# Steps that are tried, as shares of the one whose levels reach to the largest weight.
_REACHES = (0.8, 0.9, 1.0)
_DAMPING = 1e-3  # of the Gram matrix, as a share of the mean of its diagonal
_MOST_SWEEPS = 20
# What float32 has rounded off a Gram matrix, as a share of the mean of its diagonal; and matrices
# with a smaller one hold nothing.
_ROUNDING, _FAINTEST = 1e-5, 1e-60


@dataclass(frozen=True)
class Narrowed:
    """Rows on few levels.

    Attributes:
        levels: int64 (rows, columns), of ``bits`` bits, two's complement.
        steps: (rows,), what a level is worth.
        shift: (rows,), what the row's bias grows by.
        error: (rows,), what the change adds to the squared error of the outputs.
    """

    levels: NDArray[np.int64]
    steps: _Floats
    shift: _Floats
    error: _Floats

    def better(self, other: Narrowed) -> Narrowed:
        """Give the better one of each row."""
        take = other.error < self.error

        def chosen(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
            return np.where(take.reshape(-1, *[1] * (a.ndim - 1)), b, a)

        return Narrowed(
            chosen(self.levels, other.levels),
            chosen(self.steps, other.steps),
            chosen(self.shift, other.shift),
            chosen(self.error, other.error),
        )


def narrow_rows(rows: _Floats, grams: _Floats, bits: int) -> Narrowed:
    """Round rows to levels of ``bits`` bits with the least error of the outputs.

    Args:
        rows: (rows, columns), any unit.
        grams: (rows, columns + 1, columns + 1), the last row and column of each for the bias; all
            zero there where the layer has none.
        bits: 2 to 8.

    >>> eye = np.diag([1.0, 1.0, 0.0])[None]
    >>> found = narrow_rows(np.array([[1.0, -0.9]]), eye, 3)
    >>> found.levels.tolist()
    [[3, -3]]
    """
    grams, along, unit = _without_bias(grams)
    order = np.argsort(-np.diagonal(grams, axis1=1, axis2=2), axis=1, kind="stable")
    held = np.stack([gram[np.ix_(o, o)] for gram, o in zip(grams, order, strict=True)])
    sorted_rows = np.take_along_axis(rows, order, 1)
    factors = upper_factor(held)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    full = np.where(largest > 0, largest, 1.0) / (2 ** (bits - 1) - 0.5)
    best: Narrowed | None = None
    back = np.argsort(order, axis=1)
    for reach, compensated in product(_REACHES, (True, False)):
        steps = full * reach
        if compensated:
            levels = _settled(sorted_rows, factors, steps, bits)
        else:
            levels = np.clip(np.rint(sorted_rows / steps[:, None]), *_bounds(bits))
        levels = _moved(sorted_rows, held, levels, steps, bits)
        change = levels * steps[:, None] - sorted_rows
        error = unit * np.einsum("rc,rcd,rd->r", change, held, change, optimize=True)
        change = np.take_along_axis(change, back, 1)
        shift = -np.einsum("rc,rc->r", change, along)
        found = Narrowed(np.take_along_axis(levels, back, 1).astype(np.int64), steps, shift, error)
        best = found if best is None else best.better(found)
    assert best is not None
    return best


def _without_bias(grams: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """Give the matrices of the weights alone with the bias at its best, and how it follows them.

    The matrices are in units of their own, the last result: gradients may be as faint as they like.
    """
    unit = np.trace(grams, axis1=1, axis2=2) / grams.shape[1]
    # A row that no sample reaches may go anywhere; it stays near where it was.
    unit = np.where(unit > _FAINTEST, unit, 0.0)
    grams = grams / np.where(unit > 0, unit, np.inf)[:, None, None]
    bias = grams[:, -1, -1]
    along = grams[:, -1, :-1] / np.where(bias > 0, bias, 1.0)[:, None]
    inner = grams[:, :-1, :-1] - along[:, :, None] * grams[:, -1, None, :-1]
    level = _DAMPING * np.diagonal(inner, axis1=1, axis2=2).mean(axis=1)
    level = np.maximum(level, 0.0) + np.where(unit > 0, _ROUNDING, 1.0)
    return inner + level[:, None, None] * np.eye(inner.shape[1]), along, unit


def _bounds(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _settled(rows: _Floats, factors: _Floats, steps: _Floats, bits: int) -> _Floats:
    """Round column by column; the columns behind take up the error."""
    rest, levels = rows.copy(), np.zeros_like(rows)
    for column in range(rows.shape[1]):
        levels[:, column] = np.clip(np.rint(rest[:, column] / steps), *_bounds(bits))
        error = rest[:, column] - levels[:, column] * steps
        error /= factors[:, column, column]
        rest[:, column + 1 :] -= error[:, None] * factors[:, column, column + 1 :]
    return levels


def _moved(rows: _Floats, grams: _Floats, levels: _Floats, steps: _Floats, bits: int) -> _Floats:
    """Move one weight of each row at a time to its best level, until none moves."""
    levels = levels.copy()
    slope = np.einsum("rcd,rd->rc", grams, levels * steps[:, None] - rows, optimize=True)
    bend = np.diagonal(grams, axis1=1, axis2=2)
    low, high = _bounds(bits)
    for _ in range(_MOST_SWEEPS):
        moved = False
        for column in range(rows.shape[1]):
            wanted = levels[:, column] - slope[:, column] / (bend[:, column] * steps)
            move = np.clip(np.rint(wanted), low, high) - levels[:, column]
            (where,) = np.nonzero(move)
            if where.size:
                moved = True
                levels[where, column] += move[where]
                slope[where] += grams[where, column] * (move[where] * steps[where])[:, None]
        if not moved:
            break
    return levels
