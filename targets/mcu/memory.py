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

A step may write its output over an input that dies there: two lifetimes that meet at that step
then become one. Such a pair is taken where it lowers the sum of what is live.

Source of the greedy orders: Pisarchyk, Lee, "Efficient Memory Management for Deep Neural Net
Inference" (arXiv 2001.03288), the part on offset calculation.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tvm_compress.errors import OptionError

__all__ = ["Lifetime", "MemoryPlan", "live_bytes", "live_set_bound", "plan_memory"]

# Counted work: candidate tensors looked at by the branch and bound, and neighbours looked at by
# the local search. Together about 0.3 s of Python.
_BRANCH_WORK = 100_000
_LOCAL_WORK = 600_000

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
        bound_bytes: The live-set bound in bytes; no plan is smaller.
        over: The tensor whose bytes a tensor takes, by name, for each that is written in place.
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
    change: dict[int, int] = {}
    for life in lifetimes:
        size = _aligned(life.size_bytes, alignment)
        change[life.first] = change.get(life.first, 0) + size
        change[life.last + 1] = change.get(life.last + 1, 0) - size
    live = bound = 0
    for step in sorted(change):
        live += change[step]
        bound = max(bound, live)
    return bound


def live_bytes(lifetimes: Sequence[Lifetime], over: Mapping[str, str], steps: int) -> list[int]:
    """Return the bytes that are held at each of ``steps`` steps, those that are shared once.

    Args:
        lifetimes: The tensors, in any order.
        over: Which tensor takes whose bytes, by name, as in :class:`MemoryPlan`.
        steps: Their number.

    >>> live_bytes([Lifetime("a", 8, 0, 1), Lifetime("b", 8, 1, 2)], {}, 3)
    [8, 16, 8]
    >>> live_bytes([Lifetime("a", 8, 0, 1), Lifetime("b", 8, 1, 2)], {"b": "a"}, 3)
    [8, 8, 8]
    """
    blocks = _blocks(lifetimes, over)
    return [
        sum(block.size_bytes for block in blocks if block.first <= step <= block.last)
        for step in range(steps)
    ]


def plan_memory(
    lifetimes: Sequence[Lifetime],
    *,
    alignment: int = 16,
    in_place: Sequence[tuple[str, str]] = (),
) -> MemoryPlan:
    """Give every tensor an offset so that no two that are live together overlap.

    The result depends on the arguments alone.

    Args:
        lifetimes: The tensors, in any order.
        alignment: Power of two in bytes; every offset and the arena are multiples of it.
        in_place: Pairs (tensor, other): the first may begin at the offset of the second, which
            dies at the step that writes the first. Of those that help, a tensor takes one.

    Raises:
        OptionError: ``alignment`` is no power of two, two tensors have one name, a size is below
            1, a tensor ends before it begins, or the tensors of a pair do not meet at one step.

    >>> chain = [Lifetime("a", 32, 0, 1), Lifetime("b", 16, 1, 2), Lifetime("c", 32, 2, 3)]
    >>> plan = plan_memory(chain)
    >>> plan.offsets, plan.arena_bytes, plan.bound_bytes
    ({'a': 0, 'b': 32, 'c': 0}, 48, 48)
    >>> plan = plan_memory(chain[:2], in_place=[("b", "a")])
    >>> plan.offsets, plan.arena_bytes, plan.over
    ({'a': 0, 'b': 0}, 32, {'b': 'a'})
    """
    live_set_bound(lifetimes, alignment)  # checks them
    _check_pairs(lifetimes, in_place)
    over = _share(lifetimes, in_place, alignment)
    plan = _plan(lifetimes, over, alignment)
    if over and plan.arena_bytes > plan.bound_bytes:
        # Longer lifetimes leave fewer ways to pack them.
        plan = min(plan, _plan(lifetimes, {}, alignment), key=lambda one: one.arena_bytes)
    return plan


def _plan(lifetimes: Sequence[Lifetime], over: dict[str, str], alignment: int) -> MemoryPlan:
    blocks = _blocks(lifetimes, over)
    problem = _Problem(blocks, alignment, live_set_bound(blocks, alignment))
    placed = _solve(problem)
    offsets = {block.name: offset for block, offset in zip(blocks, placed, strict=True)}
    owners = _owners(lifetimes, over)
    return MemoryPlan(
        offsets={life.name: offsets[owners[life.name]] for life in lifetimes},
        arena_bytes=problem.height(placed),
        bound_bytes=problem.bound,
        over=over,
    )


def _owners(lifetimes: Sequence[Lifetime], over: Mapping[str, str]) -> dict[str, str]:
    """Give the first tensor of the bytes that each tensor lies in."""
    owners: dict[str, str] = {}
    for life in sorted(lifetimes, key=lambda life: life.first):
        owners[life.name] = owners[over[life.name]] if life.name in over else life.name
    return owners


def _blocks(lifetimes: Sequence[Lifetime], over: Mapping[str, str]) -> list[Lifetime]:
    """Make one lifetime of those that share their bytes, under the name of the first."""
    owners = _owners(lifetimes, over)
    blocks: dict[str, Lifetime] = {}
    for life in lifetimes:
        owner = owners[life.name]
        block = blocks.get(owner, life)
        blocks[owner] = Lifetime(
            owner,
            max(block.size_bytes, life.size_bytes),
            min(block.first, life.first),
            max(block.last, life.last),
        )
    return list(blocks.values())


def _share(
    lifetimes: Sequence[Lifetime], pairs: Sequence[tuple[str, str]], alignment: int
) -> dict[str, str]:
    """Choose the pairs that share their bytes, in the order of time.

    A pair is taken if it lowers the largest sum of what is live at a step, or else the second
    largest, and so on. A smaller tensor holds all bytes of the block that it lies in, which may
    cost more at later steps than it saves at its first: it is looked at where the sum is largest.
    """
    by_name = {life.name: life for life in lifetimes}
    choices: dict[str, list[str]] = {}
    for tensor, other in pairs:
        choices.setdefault(tensor, []).append(other)
    last = max((life.last for life in lifetimes), default=-1)
    first = min((life.first for life in lifetimes), default=0)
    live = [0] * (last - first + 1)
    blocks = {life.name: life for life in lifetimes}  # by the name of their first tensor
    owner = {life.name: life.name for life in lifetimes}
    for life in lifetimes:
        _add(live, life, first, _aligned(life.size_bytes, alignment))
    over: dict[str, str] = {}
    for tensor in sorted(choices, key=lambda name: by_name[name].first):
        best, best_live = None, live
        for other in choices[tensor]:
            # Of two tensors that a step writes, one alone takes the bytes of an input.
            if other in over.values():
                continue
            block, life = blocks[owner[other]], by_name[tensor]
            joined = _joined(block, life)
            sizes = [_aligned(part.size_bytes, alignment) for part in (block, life, joined)]
            if sizes[0] != sizes[1] and live[life.first - first] < max(live):
                continue
            trial = list(live)
            _add(trial, block, first, -sizes[0])
            _add(trial, life, first, -sizes[1])
            _add(trial, joined, first, sizes[2])
            if sorted(trial, reverse=True) < sorted(best_live, reverse=True):
                best, best_live = other, trial
        if best is not None:
            over[tensor], live = best, best_live
            owner[tensor] = owner[best]
            blocks[owner[best]] = _joined(blocks[owner[best]], by_name[tensor])
    return over


def _joined(block: Lifetime, life: Lifetime) -> Lifetime:
    size = max(block.size_bytes, life.size_bytes)
    return Lifetime(block.name, size, block.first, life.last)


def _add(live: list[int], life: Lifetime, start: int, size: int) -> None:
    for step in range(life.first - start, life.last - start + 1):
        live[step] += size


def _check_pairs(lifetimes: Sequence[Lifetime], pairs: Sequence[tuple[str, str]]) -> None:
    by_name = {life.name: life for life in lifetimes}
    for tensor, other in pairs:
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
    """The lifetimes as plain lists, and who conflicts with whom."""

    def __init__(self, lifetimes: Sequence[Lifetime], alignment: int, bound: int) -> None:
        self.count = len(lifetimes)
        self.bound = bound
        self.size = [_aligned(life.size_bytes, alignment) for life in lifetimes]
        self.first = [life.first for life in lifetimes]
        self.last = [life.last for life in lifetimes]
        self.conflicts: list[list[int]] = [[] for _ in lifetimes]
        by_start = sorted(range(self.count), key=lambda i: (self.first[i], i))
        starts = [self.first[i] for i in by_start]
        for at, i in enumerate(by_start):
            for j in by_start[at + 1 : bisect_right(starts, self.last[i])]:
                self.conflicts[i].append(j)
                self.conflicts[j].append(i)

    def height(self, offsets: Sequence[int]) -> int:
        return max((o + s for o, s in zip(offsets, self.size, strict=True)), default=0)


# Where to put a tensor: (free gaps of at least its size, as (begin, end), the open top last) and
# its size -> offset.
_Fit = Callable[[list[tuple[int, int]], int], int]

_OPEN = 1 << 62


def _lowest(gaps: list[tuple[int, int]], size: int) -> int:
    return gaps[0][0]


def _tightest(gaps: list[tuple[int, int]], size: int) -> int:
    return min(gaps, key=lambda gap: (gap[1] - gap[0], gap[0]))[0]


def _place(problem: _Problem, order: Sequence[int], fit: _Fit) -> list[int]:
    """Place the tensors one after the other, each into a gap that ``fit`` chooses."""
    offsets = [-1] * problem.count
    for i in order:
        offsets[i] = fit(_gaps(problem, i, offsets), problem.size[i])
    return offsets


def _gaps(problem: _Problem, i: int, offsets: list[int]) -> list[tuple[int, int]]:
    """Free intervals, lowest first, that hold tensor ``i`` beside the conflicts placed so far."""
    size = problem.size
    taken = sorted(
        (offsets[j], offsets[j] + size[j]) for j in problem.conflicts[i] if offsets[j] >= 0
    )
    gaps = []
    free = 0
    for begin, end in taken:
        if begin - free >= size[i]:
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
        if high and min(gaps[-1][1], problem.bound) - gaps[-1][0] >= problem.size[i]:
            offsets[i] = problem.bound - problem.size[i]
        elif high and len(gaps) > 1:
            offsets[i] = gaps[-2][1] - problem.size[i]
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
        height = problem.height(offsets)
        if height < best_height:
            best, best_height, best_order = offsets, height, order
        if best_height == problem.bound:
            return best
    if problem.count <= _BRANCH_TENSORS:
        search = _BranchAndBound(problem, best)
        best = search.run()
        if search.complete or problem.height(best) == problem.bound:
            return best
        best_order = sorted(range(problem.count), key=lambda i: (best[i], i))
    return _local_search(problem, best_order, best)


def _greedy(problem: _Problem) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (order, offsets) of every greedy placement."""
    size, first, last = problem.size, problem.first, problem.last
    everyone = range(problem.count)

    # The breadth of a step is the sum of the sizes live there; a tensor counts its broadest step.
    starts = {
        t: sum(s for s, f, e in zip(size, first, last, strict=True) if f <= t <= e)
        for t in set(first)
    }
    steps = sorted(starts)
    breadth = [
        max(starts[t] for t in steps[bisect_left(steps, first[i]) : bisect_right(steps, last[i])])
        for i in everyone
    ]
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
    """Stack the tensors in the order of their offsets, depth first.

    Push every tensor of an optimal plan down as far as it goes, sort by offset, and each one lies
    on the highest of the conflicting tensors before it. So an optimal plan is among the stackings
    whose offsets never fall, and those alone are tried. A stacking is given up when, at some step,
    what is stacked and what is still to be stacked there is no better than the best plan known.
    """

    def __init__(self, problem: _Problem, best: list[int]) -> None:
        # Ties go to the large and long-lived: its first descent is then a good greedy placement.
        order = sorted(
            range(problem.count),
            key=lambda i: (-problem.size[i] * (problem.last[i] - problem.first[i] + 1), i),
        )
        # The live set is largest at a step where a tensor begins; no other step needs a look.
        steps = sorted(set(problem.first))
        self.order = order
        self.size = [problem.size[i] for i in order]
        self.spans = [
            range(bisect_left(steps, problem.first[i]), bisect_right(steps, problem.last[i]))
            for i in order
        ]
        self.top = [0] * len(steps)
        self.waiting = [0] * len(steps)
        for size, span in zip(self.size, self.spans, strict=True):
            for t in span:
                self.waiting[t] += size
        self.bound = problem.bound
        self.offsets = [0] * problem.count
        self.best = best
        self.best_height = problem.height(best)
        self.work = _BRANCH_WORK

    def run(self) -> list[int]:
        self._descend(list(range(len(self.order))), (0, -1))
        return self.best

    @property
    def complete(self) -> bool:
        """Whether all was tried, so that the best is optimal."""
        return self.work >= 0

    def _descend(self, remaining: list[int], floor: tuple[int, int]) -> None:
        if not remaining:
            # Every step was kept below the best height on the way here.
            self.best_height = max(self.top)
            self.best = [0] * len(self.order)
            for at, i in enumerate(self.order):
                self.best[i] = self.offsets[at]
            return
        self.work -= len(remaining)
        candidates = sorted(
            (max(self.top[self.spans[at].start : self.spans[at].stop]), at) for at in remaining
        )
        for offset, at in candidates:
            if self.work < 0 or self.best_height == self.bound:
                return
            # Tensors at one offset don't conflict: their order is free, so one order is enough.
            if (offset, at) <= floor:
                continue
            size, span = self.size[at], self.spans[at]
            end = offset + size
            if any(end + self.waiting[t] - size >= self.best_height for t in span):
                continue
            tops = [self.top[t] for t in span]
            for t in span:
                self.top[t] = end
                self.waiting[t] -= size
            self.offsets[at] = offset
            self._descend([other for other in remaining if other != at], (offset, at))
            for t, top in zip(span, tops, strict=True):
                self.top[t] = top
                self.waiting[t] += size


def _local_search(problem: _Problem, order: list[int], best: list[int]) -> list[int]:
    """Move a tensor at the top of the arena forward in the order, keep what is no worse."""
    chance = random.Random(0)
    best_height = current_height = problem.height(best)
    current = best
    # A tensor costs about as much as eight neighbours.
    work_of_placing = sum(8 + len(others) for others in problem.conflicts)
    for _ in range(_LOCAL_WORK // work_of_placing):
        if best_height == problem.bound:
            break
        at_top = [i for i in order if current[i] + problem.size[i] == current_height]
        moved = chance.choice(at_top)
        to = chance.randrange(problem.count)
        trial_order = [i for i in order if i != moved]
        trial_order.insert(to, moved)
        trial = _place(problem, trial_order, _lowest)
        height = problem.height(trial)
        if height <= current_height:
            order, current, current_height = trial_order, trial, height
        if height < best_height:
            best, best_height = trial, height
    return best
