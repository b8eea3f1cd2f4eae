"""Choose the order of operations that needs the least memory at once.

Any topological order computes the same; where branches meet, which one runs first decides what
has to wait in memory. What is done after some operations is a downset of the graph, and what is
live then depends on that set alone, not on the order that led there. So a search over downsets,
those with the least peak first, finds the least peak of all. Where there are too many downsets it
goes on from the one that came furthest. What lowers the live bytes is run as soon as it can be.
Work is counted, never timed, so that equal networks give equal orders on every machine, and the
given order stays where no other is better.

Source: Liberis, Lane, "Neural networks on microcontrollers: saving memory at inference via operator
reordering" (arXiv 1910.05110), whose dynamic program goes over sets of tensors from the outputs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from typing import Any

from tvm_compress.errors import OptionError

__all__ = ["Operation", "choose_order", "peak_bytes"]

# Operations tried behind downsets until the search goes on from one downset alone, and then again
# and again. The first takes about 0.3 s of Python.
_WORK = 60_000
_MORE_WORK = 1_000


@dataclass(frozen=True)
class Operation:
    """One step of a program, as far as memory is concerned.

    Attributes:
        reads: Tensors that it reads; those that no operation writes are there from the start.
        writes: Tensors that it writes, or parts of them that no other operation writes.
        scratch_bytes: Bytes that it needs while it runs.
        over: (tensor, bytes): its one output may lie over that tensor, which it reads, when that
            dies, if it begins that many bytes before it.
    """

    reads: tuple[Hashable, ...]
    writes: tuple[Hashable, ...]
    scratch_bytes: int = 0
    over: tuple[tuple[Hashable, int], ...] = ()


def peak_bytes(
    operations: Sequence[Operation], order: Sequence[int], sizes: Mapping[Any, int]
) -> int:
    """Return the most bytes that are live at once.

    A tensor lives from the first operation that writes it to its last reader. What an output shares
    with an input that dies there, over which it may lie, counts once.

    Args:
        operations: The program.
        order: The index of each operation once, in the order in which they run.
        sizes: Bytes of the tensors that count; of others 0.

    Raises:
        OptionError: ``order`` is not a topological order of all operations.
    """
    graph = _Graph(operations, sizes)
    done = live = peak = 0
    for index in order:
        if not 0 <= index < len(operations) or done >> index & 1 or graph.needs[index] & ~done:
            raise OptionError(
                f"The order {list(order)} does not run operation {index} once and behind what it "
                "reads; expected a topological order of the operations. Sort them."
            )
        used, live = graph.run(index, done, live)
        peak = max(peak, used)
        done |= 1 << index
    if done != (1 << len(operations)) - 1:
        raise OptionError(
            f"The order {list(order)} leaves out some of the {len(operations)} operations; "
            "expected each once. Add them."
        )
    return peak


def choose_order(operations: Sequence[Operation], sizes: Mapping[Any, int]) -> list[int]:
    """Return an order of the operations with the least peak that was found.

    The result depends on the arguments alone. It is the given order unless another one has a
    lower peak, and the best of all unless the graph has more downsets than are looked at.

    Args:
        operations: The program, in a topological order.
        sizes: Bytes of the tensors that count; of others 0.

    Raises:
        OptionError: the operations are not in a topological order.

    >>> both = [Operation(("x",), ("a",)), Operation(("x",), ("b",)), Operation(("a",), ("c",))]
    >>> operations = [*both, Operation(("b", "c"), ("y",))]
    >>> sizes = {"a": 100, "b": 50, "c": 10, "y": 10}
    >>> order = choose_order(operations, sizes)
    >>> order, peak_bytes(operations, [0, 1, 2, 3], sizes), peak_bytes(operations, order, sizes)
    ([0, 2, 1, 3], 160, 110)
    """
    count = len(operations)
    given = list(range(count))
    limit = peak_bytes(operations, given, sizes)
    graph = _Graph(operations, sizes)
    if limit <= graph.least_peak():
        return given
    everything = (1 << count) - 1
    work = _WORK
    start = graph.settle(0, (0, 0, None))
    # (peak on the way here, operations to go, downset); of equal peaks the furthest comes first.
    queue = [(0, count - start[0].bit_count(), start[0])]
    states: dict[int, _State] = dict([start])
    while queue:
        peak, _, done = heappop(queue)
        _, live, chain = states[done]
        if peak > states[done][0]:
            continue
        if done == everything:
            return _unlinked(chain)
        for index in graph.ready(done):
            work -= 1
            used, left = graph.run(index, done, live)
            # An order that is no better than the given one is not looked for.
            if (used := max(peak, used)) >= limit:
                continue
            after, state = graph.settle(done | 1 << index, (used, left, (index, chain)))
            if after not in states or used < states[after][0]:
                states[after] = state
                heappush(queue, (used, count - after.bit_count(), after))
        if work <= 0 and queue:
            queue = [min(queue, key=lambda item: (item[1], item[0], item[2]))]
            work = _MORE_WORK
    return given


# The order that led to a downset, linked backwards.
_Chain = tuple[int, "_Chain"] | None
# The peak on the way to a downset, the bytes live behind it, and how it was reached.
_State = tuple[int, int, _Chain]


def _unlinked(chain: _Chain) -> list[int]:
    order = []
    while chain is not None:
        order.append(chain[0])
        chain = chain[1]
    return order[::-1]


class _Graph:
    """The operations with sets of them as bits of an integer."""

    def __init__(self, operations: Sequence[Operation], sizes: Mapping[Any, int]) -> None:
        self.operations, self.sizes = operations, sizes
        self.writers: dict[Hashable, int] = {}
        readers: dict[Hashable, int] = {}
        for index, operation in enumerate(operations):
            for tensor in operation.writes:
                self.writers[tensor] = self.writers.get(tensor, 0) | 1 << index
            for tensor in operation.reads:
                readers[tensor] = readers.get(tensor, 0) | 1 << index
        self.needs = []
        for operation in operations:
            needs = 0
            for tensor in operation.reads:
                needs |= self.writers.get(tensor, 0)
            self.needs.append(needs)
        # What no operation writes is there from the start, and is not of this memory.
        self._users = {t: mask | readers.get(t, 0) for t, mask in self.writers.items()}
        # Those that may run, or free a tensor, once an operation is done.
        self._near: list[list[int]] = []
        reach = []
        for operation in operations:
            users = 0
            for tensor in (*operation.reads, *operation.writes):
                users |= self._users.get(tensor, 0)
            self._near.append([i for i in range(users.bit_length()) if users >> i & 1])
            reach.append(users.bit_length() - 1)
        # Operations stand in a topological order: what can be ready lies between the first that is
        # not done and the last user of what is done.
        sources = max((index for index, needs in enumerate(self.needs) if not needs), default=0)
        self._reach = list(accumulate(reach, max, initial=sources))
        self._held = [
            [
                t
                for t in dict.fromkeys((*operation.reads, *operation.writes))
                if t in self.writers and sizes.get(t, 0)
            ]
            for operation in operations
        ]

    def ready(self, done: int) -> list[int]:
        """Give the operations that are not done and whose inputs are there, in order."""
        first = (~done & (done + 1)).bit_length() - 1
        last = min(self._reach[done.bit_length()], len(self.needs) - 1)
        return [
            index
            for index in range(first, last + 1)
            if not done >> index & 1 and not self.needs[index] & ~done
        ]

    def run(self, index: int, done: int, live: int) -> tuple[int, int]:
        """Give the bytes live while an operation runs behind ``done``, and those behind it."""
        operation, sizes = self.operations[index], self.sizes
        after = done | 1 << index
        begun = sum(
            sizes.get(tensor, 0) for tensor in operation.writes if not self.writers[tensor] & done
        )
        ended = [t for t in self._held[index] if not self._users[t] & ~after]
        used = live + begun + operation.scratch_bytes - self._shared(operation, begun, ended)
        return used, live + begun - sum(sizes[tensor] for tensor in ended)

    def _shared(self, operation: Operation, written: int, ended: Sequence[Hashable]) -> int:
        """Give the most bytes that the output has in common with an input that dies."""
        sizes = self.sizes
        return max([0, *(min(written - d, sizes[t]) for t, d in operation.over if t in ended)])

    def settle(self, done: int, state: _State) -> tuple[int, _State]:
        """Run whatever frees at least as much as it writes and does not raise the peak.

        No order that runs it later is better: what is live is less at every step between, for
        an input that dies there dies no later in the new order than in the old one.
        """
        peak, live, chain = state
        pending = self._near[chain[0]] if chain else self.ready(done)
        while pending:
            index, pending = pending[0], pending[1:]
            if done >> index & 1 or self.needs[index] & ~done:
                continue
            used, left = self.run(index, done, live)
            if used <= peak and left <= live:
                done, live, chain = done | 1 << index, left, (index, chain)
                pending = [*pending, *self._near[index]]
        return done, (peak, live, chain)

    def least_peak(self) -> int:
        """Give a bound that no order goes below: the most that one operation needs by itself."""
        peak = 0
        for operation, held in zip(self.operations, self._held, strict=True):
            written = sum(self.sizes.get(tensor, 0) for tensor in operation.writes)
            used = sum(self.sizes[tensor] for tensor in held) + operation.scratch_bytes
            peak = max(peak, used - self._shared(operation, written, held))
        return peak
