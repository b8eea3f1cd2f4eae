"""Plan the arena: an offset for every intermediate tensor, as few bytes in all as can be found.

Two tensors may share bytes when no step needs both. Finding the smallest arena is dynamic storage
allocation, which is NP-hard, so the planner takes the best of

1. greedy placements in several orders (by size, by breadth, by size times duration, by time), into
   the lowest gap and into the tightest gap, and by time from both ends of the arena;
2. a branch and bound that stacks tensors in the order of their offsets, complete for a handful of
   tensors, cut off after a fixed amount of work beyond;
3. a local search that moves the tensors at the top of the arena forward in the order.

and stops as soon as the arena equals the live-set bound, below which nothing is possible. All work
is counted, never timed, so that equal lifetimes give equal offsets on every machine.

A step may write its output over an input that dies there, a number of bytes in front of it. The two
then lie in one block, at a fixed distance, and so may the next ones: a block is a staircase over
time, and other tensors lie above and below its steps. A pair is taken where what is live would
otherwise be more than the least peak, and more or fewer pairs where that packs better.

Source of the greedy orders: Pisarchyk, Lee, "Efficient Memory Management for Deep Neural Net
Inference" (arXiv 2001.03288), the part on offset calculation.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from tvm_compress.errors import OptionError

__all__ = ["Lifetime", "MemoryPlan", "live_bytes", "live_set_bound", "plan_memory"]

# Counted work: candidate tensors looked at by the branch and bound, and neighbours looked at by
# the local search and by the choice of pairs. Together about 0.6 s of Python.
_BRANCH_WORK = 100_000
_LOCAL_WORK = 600_000
_PAIRS_WORK = 1_000_000

# The branch and bound recurses once a tensor; beyond this its few branches would tell nothing.
_BRANCH_TENSORS = 300


@dataclass(frozen=True)
class Lifetime:
    """When a tensor is needed.

    Attributes:
        name: Unique name of the tensor.
        size_bytes: Its size in bytes, at least 1.
        first: Index of the step that writes it.
        last: Index of the last step that reads it, not before ``first``. Both ends count: a
            step's inputs and outputs are live together.
    """

    name: str
    size_bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where every tensor lies.

    Attributes:
        offsets: Byte offset in the arena, by name of the tensor.
        arena_bytes: Size of the arena in bytes, a multiple of the alignment.
        bound_bytes: The most that is live at once in bytes, each pair of tensors that may lie over
            each other doing so; no plan is smaller.
        over: The tensor over whose bytes a tensor is written, by name, for each that is.
    """

    offsets: dict[str, int]
    arena_bytes: int
    bound_bytes: int
    over: dict[str, str] = field(default_factory=dict)


def live_set_bound(lifetimes: Sequence[Lifetime], alignment: int = 16) -> int:
    """Return the largest sum, over all steps, of the aligned sizes of the tensors live there.

    Args:
        lifetimes: The tensors, in any order.
        alignment: Power of two in bytes to which sizes are rounded up.

    Raises:
        OptionError: As :func:`plan_memory`.

    >>> live_set_bound([Lifetime("a", 10, 0, 1), Lifetime("b", 20, 1, 2), Lifetime("c", 8, 2, 3)])
    48
    """
    _check(lifetimes, alignment)
    return max(_live(lifetimes, alignment).values(), default=0)


def _live(lifetimes: Sequence[Lifetime], alignment: int) -> dict[int, int]:
    """Sum the aligned sizes of what is live, at each step at which that changes."""
    change: dict[int, int] = {}
    for life in lifetimes:
        size = _aligned(life.size_bytes, alignment)
        change[life.first] = change.get(life.first, 0) + size
        change[life.last + 1] = change.get(life.last + 1, 0) - size
    steps = sorted(change)
    return dict(zip(steps, accumulate(change[step] for step in steps), strict=True))


def live_bytes(lifetimes: Sequence[Lifetime], offsets: Mapping[str, int], steps: int) -> list[int]:
    """Return the bytes that are held at each of ``steps`` steps, those that are shared once.

    Args:
        lifetimes: The tensors, in any order.
        offsets: Where they lie, by name, as in :class:`MemoryPlan`.
        steps: Their number.

    >>> lifetimes = [Lifetime("a", 8, 0, 1), Lifetime("b", 8, 1, 2)]
    >>> live_bytes(lifetimes, {"a": 0, "b": 8}, 3)
    [8, 16, 8]
    >>> live_bytes(lifetimes, {"a": 4, "b": 0}, 3)
    [8, 12, 8]
    """
    held = []
    for step in range(steps):
        live = [life for life in lifetimes if life.first <= step <= life.last]
        total = end = 0
        for life in sorted(live, key=lambda life: offsets[life.name]):
            begin = max(end, offsets[life.name])
            end = max(end, offsets[life.name] + life.size_bytes)
            total += end - begin
        held.append(total)
    return held


# (tensor, other, bytes): the first may be written over the second.
_Pair = tuple[str, str, int]


def plan_memory(
    lifetimes: Sequence[Lifetime], *, alignment: int = 16, pairs: Sequence[_Pair] = ()
) -> MemoryPlan:
    """Give every tensor an offset so that no two that are live together overlap, but for pairs.

    The result depends on the arguments alone.

    Args:
        lifetimes: The tensors, in any order.
        alignment: Power of two in bytes; every offset and the arena are multiples of it.
        pairs: (tensor, other, bytes): the first may lie over the second, which dies at the step
            that writes the first, if it begins that many bytes before it (0: where it begins),
            rounded up to the alignment. A tensor takes one of its pairs, or none.

    Raises:
        OptionError: ``alignment`` is no power of two, two tensors have one name, a size is below
            1, a tensor ends before it begins, or the tensors of a pair do not meet at one step or
            are a negative number of bytes apart.

    >>> chain = [Lifetime("a", 32, 0, 1), Lifetime("b", 16, 1, 2), Lifetime("c", 32, 2, 3)]
    >>> plan = plan_memory(chain)
    >>> plan.offsets, plan.arena_bytes, plan.bound_bytes
    ({'a': 0, 'b': 32, 'c': 0}, 48, 48)
    >>> plan = plan_memory(chain[:2], pairs=[("b", "a", 0)])
    >>> plan.offsets, plan.arena_bytes, plan.over
    ({'a': 0, 'b': 0}, 32, {'b': 'a'})
    >>> plan = plan_memory(chain[1:], pairs=[("c", "b", 16)])
    >>> plan.offsets, plan.arena_bytes, plan.over
    ({'b': 16, 'c': 0}, 32, {'c': 'b'})
    """
    live_set_bound(lifetimes, alignment)  # checks them
    _check_pairs(lifetimes, pairs)
    best = _best_pairs(lifetimes, pairs, alignment)
    plain = _live(lifetimes, alignment)
    least = dict(plain)
    for pair in best:
        least[pair.step] -= pair.saved
    bound = max(least.values(), default=0)
    taken = _pairs_that_pack(lifetimes, best, plain, bound, alignment)
    plan = _plan(lifetimes, taken, alignment, bound)
    if best and plan.arena_bytes > max(plain.values()):
        plain_plan = _plan(lifetimes, [], alignment, bound)
        plan = min(plan, plain_plan, key=lambda one: one.arena_bytes)
    return plan


@dataclass(frozen=True)
class _Over:
    """A pair that may be taken: at its step it saves bytes, all of them aligned."""

    tensor: str
    other: str
    distance: int
    step: int
    saved: int


def _best_pairs(
    lifetimes: Sequence[Lifetime], pairs: Sequence[_Pair], alignment: int
) -> list[_Over]:
    """Choose for each tensor, in the order of time, the pair that saves most."""
    by_name = {life.name: life for life in lifetimes}
    found: dict[str, _Over] = {}
    for tensor, other, distance in sorted(pairs, key=lambda pair: by_name[pair[0]].first):
        # Of two tensors that a step writes, one alone is written over an input.
        if any(pair.other == other and pair.tensor != tensor for pair in found.values()):
            continue
        distance = _aligned(distance, alignment)
        sizes = [_aligned(by_name[name].size_bytes, alignment) for name in (tensor, other)]
        saved = min(sizes[0] - distance, sizes[1])
        if saved > (found[tensor].saved if tensor in found else 0):
            found[tensor] = _Over(tensor, other, distance, by_name[tensor].first, saved)
    return list(found.values())


def _pairs_that_pack(
    lifetimes: Sequence[Lifetime],
    pairs: Sequence[_Over],
    live: Mapping[int, int],
    bound: int,
    alignment: int,
) -> Sequence[_Over]:
    """Choose those of the pairs that greedy placements pack best.

    The least peak needs the pairs of all steps at which more would be live without them. But
    blocks are harder to pack than single tensors, and one long block may be harder than its parts:
    so pairs of further steps are tried too, those with the most bytes live first, and then single
    ones are given up or taken.
    """
    levels = {live[pair.step] - 1 for pair in pairs if live[pair.step] <= bound}
    tried = [bound, *sorted(levels, reverse=True)]
    chosen: Sequence[_Over] = ()
    least, at, work = _OPEN, 0, _PAIRS_WORK

    def arena_of(taken: Sequence[_Over]) -> int:
        nonlocal work
        problem = _Problem(_blocks(lifetimes, taken, alignment))
        arenas = [problem.arena(offsets) for _, offsets in _greedy(problem)]
        work -= len(arenas) * problem.work_of_placing
        return min(arenas)

    while at < len(tried) and least > bound:
        before = work
        taken = [pair for pair in pairs if live[pair.step] > tried[at]]
        if (arena := arena_of(taken)) < least:
            chosen, least = taken, arena
        # Of many levels some are left out, so that the work stays within bounds.
        at += 1 + 2 * len(tried) * (before - work) // _PAIRS_WORK
    chance = random.Random(0)
    while pairs and work > 0 and least > bound:
        flipped = chance.sample(pairs, min(len(pairs), chance.choice((1, 1, 2))))
        taken = [pair for pair in pairs if (pair in chosen) != (pair in flipped)]
        if (arena := arena_of(taken)) <= least:
            chosen, least = taken, arena
    return chosen


def _plan(
    lifetimes: Sequence[Lifetime], taken: Sequence[_Over], alignment: int, bound: int
) -> MemoryPlan:
    blocks = _blocks(lifetimes, taken, alignment)
    problem = _Problem(blocks)
    placed = _solve(problem)
    offsets = {
        part.name: offset + part.low
        for block, offset in zip(blocks, placed, strict=True)
        for part in block
    }
    return MemoryPlan(
        offsets={life.name: offsets[life.name] for life in lifetimes},
        arena_bytes=problem.arena(placed),
        bound_bytes=bound,
        over={pair.tensor: pair.other for pair in taken},
    )


@dataclass(frozen=True)
class _Part:
    """A tensor within a block, whose lowest byte is 0; bytes ``low`` to ``high`` are its own."""

    name: str
    low: int
    high: int
    first: int
    last: int


# Tensors at fixed distances from each other.
_Block = list[_Part]


def _blocks(lifetimes: Sequence[Lifetime], taken: Sequence[_Over], alignment: int) -> list[_Block]:
    """Join the tensors that are written over each other."""
    over = {pair.tensor: pair for pair in taken}
    blocks: dict[str, _Block] = {}  # by the name of each of their tensors
    places: dict[str, int] = {}
    for life in sorted(lifetimes, key=lambda life: life.first):
        pair = over.get(life.name)
        block = blocks[life.name] = [] if pair is None else blocks[pair.other]
        low = places[life.name] = 0 if pair is None else places[pair.other] - pair.distance
        high = low + _aligned(life.size_bytes, alignment)
        block.append(_Part(life.name, low, high, life.first, life.last))
    result = []
    for block in {id(block): block for block in (blocks[life.name] for life in lifetimes)}.values():
        lowest = min(part.low for part in block)
        result.append([replace(p, low=p.low - lowest, high=p.high - lowest) for p in block])
    return result


def _check_pairs(lifetimes: Sequence[Lifetime], pairs: Sequence[_Pair]) -> None:
    by_name = {life.name: life for life in lifetimes}
    for tensor, other, distance in pairs:
        for name in (tensor, other):
            if name not in by_name:
                raise OptionError(
                    f"The pair ({tensor!r}, {other!r}) of tensors that may share their bytes names "
                    f"{name!r}, which is not in the plan; expected names of its tensors. Leave "
                    "tensors outside the arena out."
                )
        life, dying = by_name[tensor], by_name[other]
        if not dying.first < life.first == dying.last:
            raise OptionError(
                f"Tensor {tensor!r} of step {life.first} may take the bytes of {other!r}, which "
                f"lives from step {dying.first} to step {dying.last}; expected one that was "
                f"written before and is read last in step {life.first}. Leave the pair out."
            )
        if distance < 0:
            raise OptionError(
                f"Tensor {tensor!r} may begin {distance} bytes before {other!r}, over which it is "
                "written; expected at least 0. Leave the pair out."
            )


def _check(lifetimes: Sequence[Lifetime], alignment: int) -> None:
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise OptionError(
            f"The alignment of the arena is {alignment!r}; expected a power of two in bytes, such "
            "as 16. Choose one."
        )
    seen: set[str] = set()
    for life in lifetimes:
        if life.name in seen:
            raise OptionError(
                f"Two tensors of the arena are called {life.name!r}; expected unique names. "
                "Rename one of them."
            )
        seen.add(life.name)
        if life.size_bytes < 1:
            raise OptionError(
                f"Tensor {life.name!r} has {life.size_bytes} bytes; expected at least 1. Leave "
                "tensors without elements out of the plan."
            )
        if life.last < life.first:
            raise OptionError(
                f"Tensor {life.name!r} lives from step {life.first} to step {life.last}; expected "
                "the last step not before the first. Give its last reader, or its own step where "
                "nothing reads it."
            )


def _aligned(size_bytes: int, alignment: int) -> int:
    return -(-size_bytes // alignment) * alignment


class _Problem:
    """The blocks as plain lists, and how near to each other they may begin."""

    def __init__(self, blocks: Sequence[_Block]) -> None:
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
        return max((o + s for o, s in zip(offsets, self.height, strict=True)), default=0)


# Where to put a block: (gaps of the offsets that it may have, as (lowest, highest), the open top
# last) -> offset.
_Fit = Callable[[list[tuple[int, int]]], int]

_OPEN = 1 << 62


def _lowest(gaps: list[tuple[int, int]]) -> int:
    return gaps[0][0]


def _tightest(gaps: list[tuple[int, int]]) -> int:
    return min(gaps, key=lambda gap: (gap[1] - gap[0], gap[0]))[0]


def _place(problem: _Problem, order: Sequence[int], fit: _Fit) -> list[int]:
    """Place the blocks one after the other, each into a gap that ``fit`` chooses."""
    offsets = [-1] * problem.count
    for i in order:
        offsets[i] = fit(_gaps(problem, i, offsets))
    return offsets


def _gaps(problem: _Problem, i: int, offsets: list[int]) -> list[tuple[int, int]]:
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
    gaps.append((free, _OPEN))
    return gaps


def _place_from_both_ends(problem: _Problem, order: Sequence[int], start_high: bool) -> list[int]:
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


def _solve(problem: _Problem) -> list[int]:
    """Run the searches, cheapest first, until one meets the bound; return the best offsets."""
    best: list[int] = []
    best_height = _OPEN
    best_order: list[int] = []
    for order, offsets in _greedy(problem):
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


def _greedy(problem: _Problem) -> Iterator[tuple[list[int], list[int]]]:
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

    def __init__(self, problem: _Problem, best: list[int]) -> None:
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


def _local_search(problem: _Problem, order: list[int], best: list[int]) -> list[int]:
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
