"""How much to compress each layer: the mathematics, in numpy alone.

A scan tells for each layer what each of its *choices* (a density and bits of a code) costs and how
much it harms the network. Both are taken to add up over the layers. So least harm within limits is
a knapsack with one choice a layer; its Lagrangian relaxation falls apart into layers: each takes
the choice of least ``damage + price * cost``, and one number, the price, is searched. Source:
Shoham, Gersho, Efficient bit allocation for an arbitrary set of quantizers (IEEE Transactions on
Acoustics, Speech, and Signal Processing 36, 1988), sections II and III.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Choices", "Scan", "allocate", "finer", "monotone", "recovered"]

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_BISECTIONS = 60
_REWEIGHTINGS = 20
_STEPS_BETWEEN = 4
_NOTHING = 1e-30


@dataclass(frozen=True, eq=False)
class Choices:
    """What each of L layers may take, C choices.

    Attributes:
        density: (C,) share of the weights that is not zero.
        bits: (C,) bits of a code, 0 for weights as they are.
        damage: (L, C) harm of a choice in one layer alone.
        costs: (K, L, C) costs of K kinds.
    """

    density: Floats
    bits: NDArray[np.int64]
    damage: Floats
    costs: Floats

    def cost(self, chosen: Indices) -> Floats:
        """Give the costs (K,) of a choice for each layer (L,)."""
        return np.asarray(_picked(self.costs, chosen).sum(-1))


@dataclass(frozen=True, eq=False)
class Scan:
    """What was measured of L layers at D densities and B numbers of bits.

    Attributes:
        densities: (D,) falling from 1.
        bits: (B,) falling.
        damage: (L, D, B).
        costs: (K, L, D, B) costs of K kinds.
        dense: (K, L) costs of the layers as they are; their damage is 0.
    """

    densities: tuple[float, ...]
    bits: tuple[int, ...]
    damage: Floats
    costs: Floats
    dense: Floats

    def choices(self, recovery: float = 1.0) -> Choices:
        """Give the choices, with densities between those that were measured.

        Args:
            recovery: what remains of the damage by pruning, see :func:`recovered`.
        """
        damage = np.stack([recovered(monotone(grid), recovery) for grid in self.damage])
        densities = finer(np.array(self.densities)[:, None])[:, 0]
        damage, costs = finer(damage), finer(self.costs)
        grid = np.meshgrid(densities, np.array(self.bits, np.int64), indexing="ij")
        layers = len(damage)
        return Choices(
            np.append(grid[0].ravel(), 1.0),
            np.append(grid[1].ravel(), 0),
            np.append(damage.reshape(layers, -1), np.zeros((layers, 1)), 1),
            np.append(costs.reshape(len(costs), layers, -1), self.dense[..., None], 2),
        )


def monotone(damage: Floats) -> Floats:
    """Let more compression never harm less: noise must not make a choice look better than it is.

    Args:
        damage: (D, B), densities and bits falling.

    >>> monotone(np.array([[0.0, 0.2], [0.3, 0.1]]))
    array([[0. , 0.2],
           [0.3, 0.3]])
    """
    grown = np.maximum.accumulate(np.maximum(damage, 0.0), 0)
    return np.asarray(np.maximum.accumulate(grown, 1))


def recovered(damage: Floats, recovery: float) -> Floats:
    """Give the damage that is left when training or reconstruction follows.

    Both make good most of what pruning harms and little of what sharing harms, for the codes stay.
    The damage at the most bits is taken for that of pruning alone.

    Args:
        damage: (D, B), densities and bits falling, monotone.
        recovery: what remains of the damage by pruning, 0..1.

    >>> recovered(np.array([[0.0, 0.1], [1.0, 1.2]]), 0.1).round(3)
    array([[0. , 0.1],
           [0.1, 0.3]])
    """
    pruning = damage[:, :1]
    return damage - (1.0 - recovery) * pruning


def finer(values: Floats, steps: int = _STEPS_BETWEEN) -> Floats:
    """Put values between those of neighbouring densities, evenly.

    Args:
        values: (..., D, B).
        steps: how many each step becomes.

    >>> finer(np.array([[0.0], [1.0]]), 2).ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    last = values.shape[-2] - 1
    at = np.arange(steps * last + 1) / steps
    low = np.minimum(at.astype(np.intp), max(last - 1, 0))
    part = (at - low)[:, None]
    mixed: Floats = (1 - part) * values[..., low, :] + part * values[
        ..., np.minimum(low + 1, last), :
    ]
    return mixed


def allocate(damage: Floats, costs: Floats, limits: Floats) -> Indices:
    """Choose for each layer, so that the damage is least and no sum of costs is above its limit.

    With one kind of cost the damage is at most that of the best allocation and one step of one
    layer along its convex hull: so far is the relaxation from whole choices. Where no allocation
    fits, the result is the cheapest that was found.

    Args:
        damage: (L, C) of each layer's choices.
        costs: (K, L, C) of K kinds.
        limits: (K,); one that is not above 0 cannot be met.

    Returns:
        The index of the choice for each layer, (L,).

    >>> damage = np.array([[0.0, 1.0, 9.0], [0.0, 4.0, 9.0]])
    >>> costs = np.array([[[8.0, 4.0, 2.0], [8.0, 4.0, 2.0]]])
    >>> allocate(damage, costs, np.array([12.0])).tolist()
    [1, 0]
    """
    shares = costs / np.maximum(limits, _NOTHING)[:, None, None]
    weights = np.ones(len(limits))
    best: tuple[tuple[float, float], Indices] | None = None
    # What is scarce becomes dear until all limits bind alike or no longer matter.
    for number in range(_REWEIGHTINGS if len(limits) > 1 else 1):
        chosen = _by_price(damage, np.tensordot(weights, shares, 1), shares)
        used = _picked(shares, chosen).sum(-1)
        rank = max(used.max(), 1.0), float(_picked(damage, chosen).sum())
        if best is None or rank < best[0]:
            best = rank, chosen
        weights *= np.maximum(used, _NOTHING) ** (1.0 / (number + 1))
        weights /= weights.max()
    assert best is not None, "there is at least one round"
    return _improved(damage, shares, best[1])


def _picked(table: Floats, chosen: Indices) -> Floats:
    return np.asarray(table[..., np.arange(len(chosen)), chosen])


def _by_price(damage: Floats, price: Floats, shares: Floats) -> Indices:
    """Bisect the factor of the prices (L, C) to the least damage that fits."""

    def at(factor: float) -> Indices:
        total = damage + factor * price
        # Of equal totals the cheaper one: else a layer without damage would stay as it is.
        tied = np.where(total <= total.min(1, keepdims=True), price, np.inf)
        return np.asarray(tied.argmin(1))

    def fits(chosen: Indices) -> bool:
        return bool((_picked(shares, chosen).sum(-1) <= 1.0).all())

    if fits(at(0.0)):
        return at(0.0)
    cheapest = np.where(price <= price.min(1, keepdims=True), damage, np.inf).argmin(1)
    high = 1.0
    while not fits(at(high)):
        if (at(high) == cheapest).all() or high > 1e200:
            return np.asarray(cheapest)
        high *= 4.0
    low = 0.0
    for _ in range(_BISECTIONS):
        # A price may be anything from far below 1 to far above.
        middle = np.sqrt(low * high) if low else high / 16.0
        low, high = (low, middle) if fits(at(middle)) else (middle, high)
    return at(high)


def _improved(damage: Floats, shares: Floats, chosen: Indices) -> Indices:
    """Use what the limits leave over: the change of most gain for its cost, while one fits."""
    chosen = chosen.copy()
    while True:
        now = _picked(shares, chosen)
        more = shares - now[..., None]
        fits = (more <= 1.0 - now.sum(-1)[:, None, None]).all(0)
        gain = _picked(damage, chosen)[:, None] - damage
        worth = np.where(fits & (gain > 0.0), gain / np.maximum(more.sum(0), _NOTHING), 0.0)
        layer, choice = np.unravel_index(int(worth.argmax()), worth.shape)
        if worth[layer, choice] <= 0.0:
            return chosen
        chosen[layer] = choice
