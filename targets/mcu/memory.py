"""Plan the arena: an offset for every intermediate tensor, as few bytes in all as can be found.

Two tensors may share bytes when no step needs both; the offsets are searched for by
:mod:`tvm_compress.targets.mcu.packing`.

A step may write its output over an input that dies there, a number of bytes in front of it. The two
then lie in one block, at a fixed distance, and so may the next ones: a block is a staircase over
time, and other tensors lie above and below its steps. A pair is taken where what is live would
otherwise be more than the least peak, and more or fewer pairs where that packs better.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.packing import (
    OPEN,
    Block,
    Part,
    Problem,
    greedy_placements,
    solve,
)

__all__ = ["Lifetime", "MemoryPlan", "live_bytes", "live_set_bound", "plan_memory"]

# Neighbours looked at by the choice of pairs: counted work, as in packing.py.
_PAIRS_WORK = 1_000_000


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
    least, at, work = OPEN, 0, _PAIRS_WORK

    def arena_of(taken: Sequence[_Over]) -> int:
        nonlocal work
        problem = Problem(_blocks(lifetimes, taken, alignment))
        arenas = [problem.arena(offsets) for _, offsets in greedy_placements(problem)]
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
    problem = Problem(blocks)
    placed = solve(problem)
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


def _blocks(lifetimes: Sequence[Lifetime], taken: Sequence[_Over], alignment: int) -> list[Block]:
    """Join the tensors that are written over each other."""
    over = {pair.tensor: pair for pair in taken}
    blocks: dict[str, Block] = {}  # by the name of each of their tensors
    places: dict[str, int] = {}
    for life in sorted(lifetimes, key=lambda life: life.first):
        pair = over.get(life.name)
        block = blocks[life.name] = [] if pair is None else blocks[pair.other]
        low = places[life.name] = 0 if pair is None else places[pair.other] - pair.distance
        high = low + _aligned(life.size_bytes, alignment)
        block.append(Part(life.name, low, high, life.first, life.last))
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
