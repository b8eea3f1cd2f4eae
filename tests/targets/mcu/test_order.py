from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.order import Operation, choose_order, peak_bytes

Graph = tuple[list[Operation], dict[object, int]]


def peak_by_definition(operations: Sequence[Operation], order: Sequence[int], sizes: dict) -> int:  # type: ignore[type-arg]
    """Who is live at each step, from the first write to the last read, one by one."""
    written: dict[object, int] = {}
    last: dict[object, int] = {}
    for at, i in enumerate(order):
        for t in operations[i].writes:
            written.setdefault(t, at)
            last[t] = at
    for at, i in enumerate(order):
        for t in operations[i].reads:
            if t in written:
                last[t] = max(last[t], at)
    peak = 0
    for at, i in enumerate(order):
        used = sum(sizes.get(t, 0) for t in written if written[t] <= at <= last[t])
        used += operations[i].scratch_bytes
        size = sum(sizes.get(t, 0) for t in operations[i].writes)
        # The output begins d bytes before what dies: what both hold is held once.
        common = [0]
        for t, d in operations[i].over:
            if t in written and last[t] == at:
                common.append(len(set(range(0, size)) & set(range(d, d + sizes.get(t, 0)))))
        peak = max(peak, used - max(common))
    return peak


def topological_orders(operations: Sequence[Operation]) -> Iterator[tuple[int, ...]]:
    before = [
        {j for j, other in enumerate(operations) if set(other.writes) & set(operation.reads)}
        for operation in operations
    ]
    for order in itertools.permutations(range(len(operations))):
        place = {i: at for at, i in enumerate(order)}
        if all(place[j] < place[i] for i in range(len(operations)) for j in before[i]):
            yield order


@st.composite
def graphs(draw: st.DrawFn, most: int = 7) -> Graph:
    """Random graphs: several inputs and outputs of an operation, scratch, sharing, dead ends."""
    operations: list[Operation] = []
    tensors: list[str] = ["x"]
    sizes: dict[object, int] = {}
    for i in range(draw(st.integers(0, most))):
        reads = tuple(draw(st.lists(st.sampled_from(tensors), max_size=3)))
        writes = tuple(f"t{i}{letter}" for letter in "ab"[: draw(st.sampled_from([1, 1, 1, 2]))])
        if operations and not draw(st.integers(0, 3)):
            # A further part of a tensor that nothing reads yet.
            last = operations[-1]
            if len(last.writes) == 1 and not last.over and last.writes[0] not in reads:
                writes = last.writes
        over = [
            (tensor, draw(st.sampled_from([0, 0, 16, 64])))
            for tensor in (reads[: draw(st.integers(0, 2))] if len(writes) == 1 else ())
        ]
        if operations and writes == operations[-1].writes:
            over = []
        scratch = draw(st.sampled_from([0, 0, 0, 40]))
        operations.append(Operation(reads, writes, scratch, tuple(over)))
        for tensor in writes:
            if tensor not in sizes and draw(st.integers(0, 9)):  # the others lie elsewhere
                sizes[tensor] = draw(st.sampled_from([16, 16, 32, 48, 96, 112]))
        tensors += writes
    return operations, sizes


@given(graphs())
def test_small_graphs_get_the_least_peak(graph: Graph) -> None:
    operations, sizes = graph
    order = choose_order(operations, sizes)
    peaks = {o: peak_by_definition(operations, o, sizes) for o in topological_orders(operations)}
    assert peaks[tuple(order)] == min(peaks.values())
    # The given order stays where no other is better.
    given_order = tuple(range(len(operations)))
    if peaks[given_order] == min(peaks.values()):
        assert tuple(order) == given_order
    assert choose_order(operations, sizes) == order


@given(graphs(most=12), st.randoms(use_true_random=False))
def test_the_peak_is_the_definition(graph: Graph, chance: random.Random) -> None:
    operations, sizes = graph
    left, order = set(range(len(operations))), []
    while left:
        missing = {t for i in left for t in operations[i].writes}
        ready = [i for i in left if not missing & set(operations[i].reads)]
        order.append(chance.choice(ready))
        left.discard(order[-1])
    assert peak_bytes(operations, order, sizes) == peak_by_definition(operations, order, sizes)


def wide(branches: int, length: int) -> Graph:
    """Branches that swell, shrink and are joined, given one level after the other."""
    chance = random.Random(branches)
    operations, sizes = [], {}
    for step in range(length):
        for branch in range(branches):
            reads = ("x",) if step == 0 else ((branch, step - 1),)
            operations.append(Operation(reads, ((branch, step),)))
            sizes[branch, step] = 16 if step == length - 1 else 16 * chance.randrange(20, 40)
    last = tuple((branch, length - 1) for branch in range(branches))
    return [*operations, Operation(last, ("y",))], sizes


def test_one_branch_after_the_other() -> None:
    operations, sizes = wide(12, 3)
    order = choose_order(operations, sizes)
    # The widest two neighbours, beside what is done.
    rows = [[sizes[branch, step] for step in range(3)] for branch in range(12)]
    widest = max(a + b for row in rows for a, b in itertools.pairwise(row))
    assert widest <= peak_bytes(operations, order, sizes) <= widest + 16 * 12


def test_more_downsets_than_are_looked_at() -> None:
    operations, sizes = wide(40, 4)
    order = choose_order(operations, sizes)  # peak_bytes refuses what is no topological order
    assert peak_bytes(operations, order, sizes) < peak_bytes(operations, range(161), sizes) / 3
    assert choose_order(operations, sizes) == order


def test_long_graphs_take_little_work() -> None:
    operations = [Operation(("x",), (0,)), Operation(("x",), (1,))]
    for i in range(2, 400):
        operations.append(Operation((i - 1, i - 2), (i,)))
    sizes = {i: 16 + 16 * (i * 7 % 5) for i in range(400)}
    assert choose_order(operations, sizes) == list(range(400))


def test_the_order_counts_what_lies_over_an_input() -> None:
    """Of two branches the one whose output grows over the shared input runs last."""
    operations = [
        Operation(("x",), ("a",)),
        Operation(("a",), ("b",), 0, (("a", 16),)),
        Operation(("a",), ("c",)),
        Operation(("b", "c"), ("y",)),
    ]
    sizes = {"a": 64, "b": 80, "c": 16}
    assert peak_bytes(operations, [0, 1, 2, 3], sizes) == 64 + 80 + 16
    assert peak_bytes(operations, [0, 2, 1, 3], sizes) == 80 + 16
    assert choose_order(operations, sizes) == [0, 2, 1, 3]


def test_no_operations() -> None:
    assert choose_order([], {}) == []
    assert peak_bytes([], [], {}) == 0


# --- errors

CHAIN = [Operation(("x",), ("a",)), Operation(("a",), ("b",))]


@pytest.mark.parametrize("order", [[1, 0], [0, 0], [0, 2], [-1, 0]])
def test_an_order_that_does_not_run(order: list[int]) -> None:
    with pytest.raises(
        OptionError,
        match=r"^The order \[.*\] does not run operation -?\d once and behind what it reads; "
        r"expected a topological order of the operations\. Sort them\.$",
    ):
        peak_bytes(CHAIN, order, {})


def test_operations_that_are_not_in_order() -> None:
    with pytest.raises(OptionError, match=r"^The order \[0, 1\] does not run operation 0 once"):
        choose_order(CHAIN[::-1], {})


def test_an_order_that_leaves_operations_out() -> None:
    with pytest.raises(
        OptionError,
        match=r"^The order \[0\] leaves out some of the 2 operations; expected each once\. Add ",
    ):
        peak_bytes(CHAIN, [0], {})
