"""Pack blocks of tensors into an arena: an offset for each, in as few bytes as can be found.

A block lies at one place while it lives. Finding the smallest arena is dynamic storage allocation,
which is NP-hard, so :func:`solve` takes the best of

1. greedy placements in several orders (by size, by breadth, by size times duration, by time), into
   the lowest gap and into the tightest gap, and by time from both ends of the arena;
2. a branch and bound that stacks tensors in the order of their offsets, complete for a handful of
   tensors, cut off after a fixed amount of work beyond;
3. a local search that moves the tensors at the top of the arena forward in the order.

and stops as soon as the arena equals the live-set bound, below which nothing is possible. All work
is counted, never timed, so that equal lifetimes give equal offsets on every machine.

Source of the greedy orders: Pisarchyk, Lee, "Efficient Memory Management for Deep Neural Net
Inference" (arXiv 2001.03288), the part on offset calculation.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["OPEN", "Block", "Part", "Problem", "greedy_placements", "solve"]

# Counted work: candidate tensors looked at by the branch and bound, and neighbours looked at by
# the local search. With the choice of pairs in memory.py about 0.6 s of Python.
_BRANCH_WORK = 100_000
_LOCAL_WORK = 600_000

# The branch and bound recurses once a tensor; beyond this its few branches would tell nothing.
_BRANCH_TENSORS = 300

# The end of the gap above all tensors, and more than any arena.
OPEN = 1 << 62


@dataclass(frozen=True)
class Part:
    """A tensor within a block, whose lowest byte is 0; bytes ``low`` to ``high`` are its own."""

    name: str
    low: int
    high: int
    first: int
    last: int


# Tensors at fixed distances from each other.
Block = list[Part]


class Problem:
    """The blocks as plain lists, and how near to each other they may begin."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.count = len(blocks)
        self.height = [max(part.high for part in block) for block in blocks]
        self.first = [min(part.first for part in block) for block in blocks]
        self.last = [max(part.last for part in block) for block in blocks]
        # What is live is most at a step where a tensor begins; no other step needs a look.
        self.steps = sorted({part.first for block in blocks for part in block})
        # Of each block: its low and high end at each of these steps, from one to another one.
        self.spans = [
            range(bisect_left(self.steps, first), bisect_right(self.steps, last))
            for first, last in zip(self.first, self.last, strict=True)
        ]
        self.lows: list[list[int]] = []
        self.highs: list[list[int]] = []
        for block, span in zip(blocks, self.spans, strict=True):
            live = [[p for p in block if p.first <= self.steps[t] <= p.last] for t in span]
            self.lows.append([min(part.low for part in parts) for parts in live])
            self.highs.append([max(part.high for part in parts) for parts in live])
        self.live = [0] * len(self.steps)
        for span, lows, highs in zip(self.spans, self.lows, self.highs, strict=True):
            for t, low, high in zip(span, lows, highs, strict=True):
                self.live[t] += high - low
        self.bound = max(self.live, default=0)
        # (other, below, above): a block may begin ``below`` before the other one or ``above``
        # behind it, and nowhere between.
        self.conflicts: list[list[tuple[int, int, int]]] = [[] for _ in blocks]
        by_start = sorted(range(self.count), key=lambda i: (self.first[i], i))
        starts = [self.first[i] for i in by_start]
        for at, i in enumerate(by_start):
            for j in by_start[at + 1 : bisect_right(starts, self.last[i])]:
                for below, above in self._between(i, j):
                    self.conflicts[i].append((j, below, above))
                    self.conflicts[j].append((i, above, below))

    @property
    def work_of_placing(self) -> int:
        """The work of a placement in neighbours looked at; a block costs about as much as eight."""
        return sum(8 + len(others) for others in self.conflicts)

    def _between(self, i: int, j: int) -> set[tuple[int, int]]:
        return {
            (a.high - b.low, b.high - a.low)
            for a in self.blocks[i]
            for b in self.blocks[j]
            if a.first <= b.last and b.first <= a.last
        }

    def arena(self, offsets: Sequence[int]) -> int:
        """Give the bytes up to the end of the highest block."""
        return max((o + s for o, s in zip(offsets, self.height, strict=True)), default=0)


# Where to put a block: (gaps of the offsets that it may have, as (lowest, highest), the open top
# last) -> offset.
_Fit = Callable[[list[tuple[int, int]]], int]


def _lowest(gaps: list[tuple[int, int]]) -> int:
    return gaps[0][0]


def _tightest(gaps: list[tuple[int, int]]) -> int:
    return min(gaps, key=lambda gap: (gap[1] - gap[0], gap[0]))[0]


def _place(problem: Problem, order: Sequence[int], fit: _Fit) -> list[int]:
    """Place the blocks one after the other, each into a gap that ``fit`` chooses."""
    offsets = [-1] * problem.count
    for i in order:
        offsets[i] = fit(_gaps(problem, i, offsets))
    return offsets


def _gaps(problem: Problem, i: int, offsets: list[int]) -> list[tuple[int, int]]:
    """The offsets, lowest first, that block ``i`` may have beside the conflicts placed so far."""
    taken = sorted(
        (offsets[j] - below, offsets[j] + above)
        for j, below, above in problem.conflicts[i]
        if offsets[j] >= 0
    )
    gaps = []
    free = 0
    for begin, end in taken:
        if begin >= free:
            gaps.append((free, begin))
        free = max(free, end)
    gaps.append((free, OPEN))
    return gaps


def _place_from_both_ends(problem: Problem, order: Sequence[int], start_high: bool) -> list[int]:
    """Place at the bottom and under the ceiling of the bound in turns.

    A chain of layers, whose neighbours alone conflict, meets the bound this way.
    """
    offsets = [-1] * problem.count
    high = start_high
    for i in order:
        gaps = _gaps(problem, i, offsets)
        if high and problem.bound - problem.height[i] >= gaps[-1][0]:
            offsets[i] = problem.bound - problem.height[i]
        elif high and len(gaps) > 1:
            offsets[i] = gaps[-2][1]
        else:
            offsets[i] = gaps[0][0]
        high = not high
    return offsets


def solve(problem: Problem) -> list[int]:
    """Run the searches, cheapest first, until one meets the bound; return the best offsets."""
    best: list[int] = []
    best_height = OPEN
    best_order: list[int] = []
    for order, offsets in greedy_placements(problem):
        height = problem.arena(offsets)
        if height < best_height:
            best, best_height, best_order = offsets, height, order
        if best_height == problem.bound:
            return best
    if problem.count <= _BRANCH_TENSORS:
        search = _BranchAndBound(problem, best)
        best = search.run()
        if search.complete or problem.arena(best) == problem.bound:
            return best
        best_order = sorted(range(problem.count), key=lambda i: (best[i], i))
    return _local_search(problem, best_order, best)


def greedy_placements(problem: Problem) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (order, offsets) of every greedy placement."""
    first, last = problem.first, problem.last
    everyone = range(problem.count)
    # The breadth of a step is the sum of the sizes live there; a block counts its broadest step.
    breadth = [max(problem.live[t] for t in span) for span in problem.spans]
    size = problem.height
    keys: list[Callable[[int], tuple[int, ...]]] = [
        lambda i: (-size[i], first[i], i),
        lambda i: (-breadth[i], -size[i], i),
        lambda i: (-size[i] * (last[i] - first[i] + 1), first[i], i),
        lambda i: (first[i], -size[i], i),
        lambda i: (-last[i], -size[i], i),
        lambda i: (first[i] - last[i], -size[i], i),
    ]
    for key in keys:
        order = sorted(everyone, key=key)
        for fit in (_lowest, _tightest):
            yield order, _place(problem, order, fit)
    by_time = sorted(everyone, key=lambda i: (first[i], -last[i], i))
    for start_high in (False, True):
        yield by_time, _place_from_both_ends(problem, by_time, start_high)


class _BranchAndBound:
    """Stack the blocks in the order of their offsets, depth first.

    Push every tensor of an optimal plan down as far as it goes, sort by offset, and each one lies
    on the highest of the conflicting tensors before it. So an optimal plan is among the stackings
    whose offsets never fall, and those alone are tried. A stacking is given up when, at some step,
    what is stacked and what is still to be stacked there is no better than the best plan known.
    Blocks with steps may interlock, so that with them the best need not be a stacking.
    """

    def __init__(self, problem: Problem, best: list[int]) -> None:
        # Ties go to the large and long-lived: its first descent is then a good greedy placement.
        height = problem.height
        order = sorted(
            range(problem.count),
            key=lambda i: (-height[i] * (problem.last[i] - problem.first[i] + 1), i),
        )
        self.order = order
        self.spans = [problem.spans[i] for i in order]
        # (step, low end, high end) of each block
        self.shapes = [
            list(zip(problem.spans[i], problem.lows[i], problem.highs[i], strict=True))
            for i in order
        ]
        self.stacks = all(len(block) == 1 for block in problem.blocks)
        self.top = [0] * len(problem.steps)
        self.waiting = list(problem.live)
        self.bound = problem.bound
        self.offsets = [0] * problem.count
        self.best = best
        self.best_height = problem.arena(best)
        self.work = _BRANCH_WORK

    def run(self) -> list[int]:
        self._descend(list(range(len(self.order))), (0, -1))
        return self.best

    @property
    def complete(self) -> bool:
        """Whether all was tried, so that the best is optimal."""
        return self.stacks and self.work >= 0

    def _offset(self, at: int) -> int:
        """How far down a block comes to lie."""
        if self.stacks:
            span = self.spans[at]
            return max(self.top[span.start : span.stop])
        return max(self.top[t] - low for t, low, _ in self.shapes[at])

    def _descend(self, remaining: list[int], floor: tuple[int, int]) -> None:
        if not remaining:
            # Every step was kept below the best height on the way here.
            self.best_height = max(self.top)
            self.best = [0] * len(self.order)
            for at, i in enumerate(self.order):
                self.best[i] = self.offsets[at]
            return
        self.work -= len(remaining)
        candidates = sorted((self._offset(at), at) for at in remaining)
        for offset, at in candidates:
            if self.work < 0 or self.best_height == self.bound:
                return
            # Tensors at one offset don't conflict: their order is free, so one order is enough.
            if (offset, at) <= floor:
                continue
            shape, span = self.shapes[at], self.spans[at]
            if any(offset + low + self.waiting[t] >= self.best_height for t, low, _ in shape):
                continue
            tops = self.top[span.start : span.stop]
            for t, low, high in shape:
                self.top[t] = offset + high
                self.waiting[t] -= high - low
            self.offsets[at] = offset
            self._descend([other for other in remaining if other != at], (offset, at))
            self.top[span.start : span.stop] = tops
            for t, low, high in shape:
                self.waiting[t] += high - low


def _local_search(problem: Problem, order: list[int], best: list[int]) -> list[int]:
    """Move a tensor at the top of the arena forward in the order, keep what is no worse."""
    chance = random.Random(0)
    best_height = current_height = problem.arena(best)
    current = best
    for _ in range(_LOCAL_WORK // max(1, problem.work_of_placing)):
        if best_height == problem.bound:
            break
        at_top = [i for i in order if current[i] + problem.height[i] == current_height]
        moved = chance.choice(at_top)
        to = chance.randrange(problem.count)
        trial_order = [i for i in order if i != moved]
        trial_order.insert(to, moved)
        trial = _place(problem, trial_order, _lowest)
        height = problem.arena(trial)
        if height <= current_height:
            order, current, current_height = trial_order, trial, height
        if height < best_height:
            best, best_height = trial, height
    return best
