"""What a search gives: the networks it tried, the best of them, and the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

import tvm

from tvm_compress.search.budget import Budget

__all__ = ["SearchResult", "Trial"]


@dataclass(frozen=True, eq=False)
class Trial:
    """A whole network that was compressed, judged and measured.

    Attributes:
        sparsity: share of zeros by layer.
        bits: bits of a code by layer; 0 where the weights stay floats.
        accuracy: on the validation data, 0..1.
        costs: what the budget limits, by name, else ``weight_bytes``; None where the network does
            not fit the board.
    """

    sparsity: Mapping[str, float]
    bits: Mapping[str, int]
    accuracy: float
    costs: Mapping[str, int | None]
    _saved: Callable[[], str] = field(repr=False)

    @property
    def module(self) -> tvm.IRModule:
        """The compressed module."""
        return tvm.ir.load_json(self._saved())

    def cost(self, name: str) -> float:
        """Give a cost; infinity where the network does not fit the board."""
        cost = self.costs[name]
        return inf if cost is None else float(cost)

    def misses(self, budget: Budget, accuracy: float) -> dict[str, float]:
        """Give by how much the trial misses each limit that it does not meet.

        Args:
            budget: the limits.
            accuracy: that of the uncompressed network.

        Returns:
            By the limit's name its excess as a share of the limit, above 0; of the accuracy drop
            the excess in points of 0.01.
        """
        found = {}
        drop = budget.max_accuracy_drop
        # Accuracies are quotients of whole numbers; a drop that equals its limit is met.
        if drop is not None and accuracy - self.accuracy > drop + 1e-9:
            found["max_accuracy_drop"] = 100 * (accuracy - self.accuracy - drop)
        for name, limit in budget.costs.items():
            if self.cost(name) > limit:
                found[name] = self.cost(name) / limit - 1
        return found

    def beats(self, other: Trial) -> bool:
        """Whether this one is nowhere worse and somewhere better."""
        mine = (-self.accuracy, *(self.cost(name) for name in self.costs))
        theirs = (-other.accuracy, *(other.cost(name) for name in other.costs))
        return mine != theirs and all(m <= t for m, t in zip(mine, theirs, strict=True))


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found.

    Attributes:
        best: the trial that meets the budget best: the most accurate where bytes or instructions
            are limited, else the smallest.
        trials: all, in the order of their plan.
        accuracy: that of the uncompressed network on the validation data, 0..1.
    """

    best: Trial
    trials: tuple[Trial, ...]
    accuracy: float

    @property
    def module(self) -> tvm.IRModule:
        """The best module."""
        return self.best.module

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that no other beats in accuracy and all costs, the most accurate last."""
        kept = [t for t in self.trials if not any(other.beats(t) for other in self.trials)]
        return tuple(sorted(kept, key=lambda trial: trial.accuracy))
