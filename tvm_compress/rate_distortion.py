"""Codes chosen by rate and distortion: what a weight loses against the bits that its code takes.

Of a layer with targets ``w`` (rows: one an output), Gram matrix ``H`` of its inputs and row
importances ``s`` the sum ``J = sum_r s_r (c - w)_r H (c - w)_r^T + lam * bits`` is made small over
the codes and the centroids ``c``. ``bits`` follows the codec's archive profile: whether a code is 0
by the density of its row and column, what it is else by how often each code occurs, and each
centroid in use 16 bits. All that is adaptive, so lengths and codes are found in turns until ``J``
falls no more, as in entropy-constrained quantisation; centroids that are not worth their bits go.

Then codes are chosen once more column by column, and the columns behind take up the error, which
keeps an output's error small and not each weight's.

Sources: Chou, Lookabaugh, Gray, Entropy-Constrained Vector Quantization (IEEE Trans. ASSP 37,
1989), section II; rate and distortion on networks: Wiedemann et al., DeepCABAC (arXiv 1907.11900),
section 3; columns: Frantar et al., GPTQ (arXiv 2210.17323), section 3, here with the rate in the
choice.

Everything here is numpy on arrays; :class:`tvm_compress.passes.ReduceRate` carries it to a module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.reconstruction import upper_factor

__all__ = [
    "Lengths",
    "Shared",
    "ascending",
    "choose",
    "code_lengths",
    "compensate",
    "grid",
    "quantise",
    "reduce_rate",
]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

# What the profile spends on a float32 of 8 significant bits.
CENTROID_BITS = 16.0
# How far from the nearest centroid the best one is looked for, in centroids; 0 is always tried.
_REACH = 3
_MOST_ROUNDS = 20
_LEAST_GAIN = 1e-3
# A row's and a column's density count as much as this many codes of the mean density beside them.
_PRIOR = 2.0
# Steps that are tried, over the best one at a high rate.
_STEPS = (0.7, 1.0, 1.4)
_LARGEST = 127  # levels on either side of 0: codes are one byte


@dataclass(frozen=True)
class Lengths:
    """Bits of codes: ``zero`` and ``other`` (rows, columns) for "is 0" and "is not", and ``code``.

    ``code`` (levels,) is what a code costs beside ``other``: infinite for one that never occurs.
    """

    zero: _Floats
    other: _Floats
    code: _Floats

    def bits(self, codes: NDArray[Any]) -> float:
        """Give the bits of all codes, (rows, columns)."""
        return float(np.where(codes == 0, self.zero, self.other + self.code[codes]).sum())


def code_lengths(codes: NDArray[Any], levels: int) -> Lengths:
    """Give what codes would cost where they are distributed as these are.

    Args:
        codes: integers (rows, columns) below ``levels``.
        levels: number of centroids, the zero among them.

    >>> lengths = code_lengths(np.array([[1, 2], [1, 2]]), 4)
    >>> lengths.code.tolist()
    [0.0, 1.0, 1.0, inf]
    """
    filled = codes != 0
    rows, columns = codes.shape
    mean = (filled.sum() + 0.5) / (filled.size + 1)
    by_row = (filled.sum(1) + _PRIOR * mean) / (columns + _PRIOR)
    by_column = (filled.sum(0) + _PRIOR * mean) / (rows + _PRIOR)
    # Row and column are two independent pieces of evidence, whose logits add.
    logit = _logit(by_row)[:, None] + _logit(by_column) - _logit(np.asarray(mean))
    count = np.bincount(codes.ravel(), minlength=levels).astype(np.float64)
    count[0] = 0
    length = np.full(levels, np.inf)
    used = count > 0
    length[used] = -np.log2(count[used] / max(count.sum(), 1))
    length[0] = 0
    return Lengths(np.logaddexp(0, logit) / np.log(2), np.logaddexp(0, -logit) / np.log(2), length)


def _logit(chance: _Floats) -> _Floats:
    return np.asarray(np.log(chance / (1 - chance)))


@dataclass(frozen=True)
class Shared:
    """Codes (rows, columns) into ``table`` (parts, levels); ``part`` says whose codebook is read.

    A part's centroids ascend from code 1 on. ``part`` broadcasts to the codes.
    """

    codes: _Ints
    table: _Floats
    part: _Ints

    def values(self) -> _Floats:
        """Give the dense values."""
        return np.asarray(self.table[self.part, self.codes])


def ascending(codes: NDArray[Any], table: NDArray[Any], part: NDArray[Any]) -> tuple[Shared, _Ints]:
    """Renumber codes so that 0 is the zero and each part's other centroids ascend.

    Where a part has no zero its code 0 stays.

    Returns:
        What has the same values, and the old code of each new one, (parts, levels).

    >>> shared, old = ascending(np.array([[1, 2]]), np.array([[5.0, 0, -1.0]]), np.array([[0]]))
    >>> shared.codes.tolist(), shared.table.tolist(), old.tolist()
    ([[0, 1]], [[0.0, -1.0, 5.0]], [[1, 2, 0]])
    """
    key = table.astype(np.float64)
    np.put_along_axis(key, np.argmax(table == 0, 1, keepdims=True), -np.inf, 1)
    old = np.argsort(key, axis=1, kind="stable")
    new = np.argsort(old, axis=1)[part, codes]
    return Shared(new, np.take_along_axis(table, old, 1).astype(np.float64), part), old


def choose(
    weight: _Floats,
    importance: _Floats,
    shared: Shared,
    lengths: Lengths,
    lam: float | _Floats,
    held: NDArray[np.bool_],
) -> tuple[_Ints, _Floats, _Floats]:
    """Give the codes of least ``importance * (value - weight)**2 + lam * bits``.

    Args:
        weight: targets (rows, columns).
        importance: of a squared error, positive; broadcasts to the targets.
        shared: the centroids to choose from (its codes are not looked at).
        lengths: bits; a code of infinite length is never chosen.
        lam: what a bit costs; broadcasts to the targets.
        held: where code 0 is the only choice.

    Returns:
        Codes, their costs, and what the second best code would cost (infinite where held).
    """
    live = np.flatnonzero(np.isfinite(lengths.code))[1:]
    part = np.broadcast_to(shared.part, weight.shape)
    best = importance * (weight - shared.table[part, 0]) ** 2 + lam * lengths.zero
    codes = np.zeros(weight.shape, np.int64)
    second = np.full(weight.shape, np.inf)
    nearest = np.zeros(weight.shape, np.int64)
    for number, centroids in enumerate(shared.table[:, live]):
        here = ... if len(shared.table) == 1 else part == number
        nearest[here] = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, weight[here])
    for step in range(-_REACH, _REACH + 1) if live.size else ():
        place = nearest + step
        inside = (place >= 0) & (place < live.size) & ~held
        code = live[np.clip(place, 0, live.size - 1)]
        error = importance * (weight - shared.table[part, code]) ** 2
        cost = np.where(inside, error + lam * (lengths.code[code] + lengths.other), np.inf)
        better = cost < best
        second = np.where(better, best, np.minimum(second, cost))
        best, codes = np.where(better, cost, best), np.where(better, code, codes)
    return codes, best, second


def grid(weight: _Floats, step: float) -> Shared:
    """Round to whole multiples of a step, of at most 127 on either side; wider steps if need be.

    >>> grid(np.array([[0.4, -1.0, 0.6]]), 0.5).values().tolist()
    [[0.5, -1.0, 0.5]]
    """
    step = max(step, float(np.abs(weight).max(initial=0)) / _LARGEST) or 1.0
    numbers = np.rint(weight / step).astype(np.int64)
    low, high = min(int(numbers.min(initial=0)), 0), max(int(numbers.max(initial=0)), 0)
    table = np.array([0, *range(low, 0), *range(1, high + 1)], np.float64) * step
    codes = np.where(numbers < 0, numbers - low + 1, numbers - low)
    return Shared(np.where(numbers == 0, 0, codes), table[None], np.zeros((1, 1), np.int64))


def quantise(
    weight: _Floats, importance: _Floats, lam: float, held: NDArray[np.bool_]
) -> tuple[Shared, float]:
    """Find codes and centroids for dense weights; give them and their cost ``J``.

    They start from grids of several steps around ``sqrt(6 lam / (importance ln 2))``, which is best
    at a high rate: the error of a step ``d`` is ``d**2 / 12`` and its bits fall by ``log2 d``.
    """
    importance = np.broadcast_to(importance, weight.shape)
    step = float(np.sqrt(6 * lam / (max(float(importance.mean()), 1e-300) * np.log(2))))
    found = []
    for factor in _STEPS:
        start = grid(np.where(held, 0.0, weight), factor * step)
        found.append(reduce_rate(weight, importance, start, lam, held))
    return min(found, key=lambda made: made[1])


def reduce_rate(
    weight: _Floats,
    importance: _Floats,
    shared: Shared,
    lam: float,
    held: NDArray[np.bool_],
    *,
    fixed: bool = False,
) -> tuple[Shared, float]:
    """Choose codes and fit centroids in turns; give both and their cost ``J``.

    Args:
        weight: targets (rows, columns).
        importance: of a squared error, positive, broadcasts to the targets.
        shared: where to start.
        lam: what a bit costs.
        held: where the code has to be 0.
        fixed: whether the centroids stay as they are, all of them.
    """
    importance = np.broadcast_to(importance, weight.shape)
    shared, _ = _settle(weight, importance, shared, lam, held, fixed)
    if not fixed:
        shared = _without_dear_centroids(weight, importance, shared, lam, held)
    return _settle(weight, importance, shared, lam, held, fixed)


def _settle(
    weight: _Floats,
    importance: _Floats,
    shared: Shared,
    lam: float,
    held: NDArray[np.bool_],
    fixed: bool,
) -> tuple[Shared, float]:
    levels = shared.table.shape[1]
    last = np.inf
    for _ in range(_MOST_ROUNDS):
        lengths = code_lengths(shared.codes, levels)
        codes, cost, _ = choose(weight, importance, shared, lengths, lam, held)
        entries = np.unique(codes + levels * shared.part).size
        total = float(cost.sum()) + lam * CENTROID_BITS * entries
        shared = _refitted(weight, importance, codes, shared, fixed)
        if last - total < _LEAST_GAIN * abs(total):
            break
        last = total
    return shared, total


def _refitted(
    weight: _Floats, importance: _Floats, codes: _Ints, shared: Shared, fixed: bool
) -> Shared:
    """Give the centroids' weighted means for given codes."""
    table = shared.table.copy()
    if not fixed:
        place = (codes + table.shape[1] * shared.part).ravel()
        trust = np.bincount(place, importance.ravel(), table.size).reshape(table.shape)
        total = np.bincount(place, (importance * weight).ravel(), table.size).reshape(table.shape)
        trust[:, 0] = 0
        table[trust > 0] = total[trust > 0] / trust[trust > 0]
    return Shared(codes, table, shared.part)


def _without_dear_centroids(
    weight: _Floats, importance: _Floats, shared: Shared, lam: float, held: NDArray[np.bool_]
) -> Shared:
    """Drop centroids whose weights lose less by the next best code than the centroid costs."""
    levels = shared.table.shape[1]
    while True:
        lengths = code_lengths(shared.codes, levels)
        codes, best, second = choose(weight, importance, shared, lengths, lam, held)
        # Held weights have code 0 alone, and code 0 stays.
        loss = np.where(held, 0.0, second - best)
        loss_of = np.bincount(codes.ravel(), loss.ravel(), levels)
        entries = len(shared.table)
        gain = np.where(np.isfinite(lengths.code), lam * CENTROID_BITS * entries - loss_of, -1.0)
        gain[0] = -1.0
        live = np.flatnonzero(np.isfinite(lengths.code))[1:]
        # Of neighbours one alone goes at a time: the other may be where its weights go.
        beside = np.concatenate([[-1.0], gain[live], [-1.0]])
        peaks = (beside[1:-1] > 0) & (beside[1:-1] >= beside[:-2]) & (beside[1:-1] > beside[2:])
        gone = live[peaks] if peaks.any() else live[gain[live] > 0][:1]
        if not gone.size:
            return shared
        shorter = lengths.code.copy()
        shorter[gone] = np.inf
        lengths = Lengths(lengths.zero, lengths.other, shorter)
        codes, _, _ = choose(weight, importance, shared, lengths, lam, held)
        shared = _refitted(weight, importance, codes, shared, fixed=False)


def compensate(
    weight: _Floats,
    grams: _Floats,
    scale: _Floats,
    shared: Shared,
    lam: float,
    held: NDArray[np.bool_],
) -> Shared:
    """Choose codes column by column; the columns behind take up the error of the row's output.

    Args:
        weight: targets (groups, rows, columns).
        grams: (groups, columns, columns), positive definite.
        scale: importance of a row's squared output error, (groups, rows).
        shared: centroids, and codes of (groups * rows, columns) whose lengths count.
        lam: what a bit costs.
        held: where code 0 is the only choice, of the codes' shape.
    """
    groups, rows, columns = weight.shape
    factors = upper_factor(grams)
    lengths = code_lengths(shared.codes, shared.table.shape[1])
    flat = (groups * rows, 1)
    # The length of a row's bit counts by the row's own scale, hence one lam a row.
    price = (lam / scale).reshape(flat)
    part = np.broadcast_to(shared.part, shared.codes.shape)
    codes = np.zeros(shared.codes.shape, np.int64)
    weight = weight.copy()
    for column in range(columns):
        at = slice(column, column + 1)
        diagonal = factors[:, column, column]
        here = Lengths(lengths.zero[:, at], lengths.other[:, at], lengths.code)
        table = Shared(codes[:, at], shared.table, part[:, at])
        target = weight[:, :, column].reshape(flat)
        importance = np.repeat(1 / diagonal**2, rows).reshape(flat)
        codes[:, at], _, _ = choose(target, importance, table, here, price, held[:, at])
        error = target - Shared(codes[:, at], shared.table, part[:, at]).values()
        error = error.reshape(groups, rows) / diagonal[:, None]
        weight[:, :, column:] -= error[:, :, None] * factors[:, None, column, column:]
    return Shared(codes, shared.table, shared.part)
