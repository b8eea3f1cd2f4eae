"""Trees of integers element by element, and sums over pixels, with MVE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.targets.mcu.mve.machine import Case, check
from tests.targets.mcu.mve.test_convolution import TOOLS
from tvm_compress.targets.mcu.integer_steps import ChannelSums, Elementwise, Node
from tvm_compress.targets.mcu.mve.elementwise import VectorElements
from tvm_compress.targets.mcu.mve.pooling import VectorSums

Array = NDArray[Any]
X, Y, Z = (Node("input", (), i) for i in range(3))


def value(node: Node, x: Sequence[Array]) -> Array:
    """The meaning of a tree, int64: every rounding by its definition."""
    v = node.value
    if node.op == "input":
        return x[v].astype(np.int64)
    a, *rest = (value(arg, x) for arg in node.args)
    if node.op == "add":
        return a + rest[0]
    if node.op == "subtract":
        return a - rest[0]
    if node.op == "at_least":
        return np.maximum(a, v)
    if node.op == "at_most":
        return np.minimum(a, v)
    if node.op == "halve_away":  # to the nearest, ties away from zero
        return np.sign(a) * ((2 * np.abs(a) + (1 << v)) // (2 << v))
    if node.op == "halve_up":  # to the nearest, ties upwards
        return (2 * a + (1 << v)) // (2 << v)
    if node.op == "high":  # of the product over 2**31 to the nearest, ties upwards
        return (a * v + (1 << 30)) // (1 << 31)
    if node.op == "low":
        return a * v // (1 << 31)
    if node.op == "right_shift":
        return a // (1 << v)
    return a * v if node.op == "multiply" else a + v


def narrowed(node: Node) -> Node:
    """The same tree, clamped to int8."""
    return Node("at_most", (Node("at_least", (node,), -128),), 127)


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> Node:
    """Trees whose numbers stay in int32."""
    if depth == 0 or draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([X, Y]))
    a = draw(trees(depth - 1))
    op = draw(st.sampled_from(list(_OPS)))
    if op in ("add", "subtract"):
        node = Node(op, (a, draw(trees(depth - 2 if depth > 1 else 0))))
    else:
        node = Node(op, (a,), draw(_OPS[op]))
    within = node.interval[0] >= -(1 << 31) and node.interval[1] < 1 << 31
    return node if within else a


_OPS = {
    "add": st.none(),
    "subtract": st.none(),
    "add_number": st.integers(-70000, 70000),
    "multiply": st.one_of(st.integers(-3000, 3000), st.sampled_from([1, 2, 1 << 20, 1 << 23])),
    "right_shift": st.integers(0, 31),
    "high": st.integers(0, (1 << 31) - 1),
    "low": st.integers(0, (1 << 31) - 1),
    "halve_up": st.integers(0, 20),
    "halve_away": st.integers(0, 20),
    "at_least": st.integers(-200, 50),
    "at_most": st.integers(-50, 200),
}


def inputs_of(node: Node) -> int:
    return 1 + max(n.value for n in node.walk() if n.op == "input")


def case(root: Node, size: int, chance: np.random.Generator) -> Case:
    tree = Elementwise(root, inputs_of(root), size)
    assert VectorElements.refuses(tree) is None
    x = [chance.integers(-128, 128, size).astype(np.int8) for _ in range(tree.inputs)]
    y = value(root, x).astype(np.int8)
    return Case(repr(root), VectorElements(tree), x, y, bool(chance.integers(2)))


@given(trees(), st.lists(st.integers(-128, 127), min_size=2, max_size=2))
def test_a_number_lies_in_its_interval(root: Node, x: list[int]) -> None:
    low, high = root.interval
    assert low <= value(root, np.array(x)) <= high


@pytest.mark.qemu
@given(st.lists(trees(), min_size=16, max_size=16), st.integers(0, 1 << 16))
@settings(max_examples=4, deadline=None)
def test_any_tree_gives_the_exact_bytes(roots: list[Node], seed: int) -> None:
    chance = np.random.default_rng(seed)
    kept = []
    for root in map(narrowed, roots):
        tree = Elementwise(root, inputs_of(root), int(chance.integers(1, 70)))
        if VectorElements.refuses(tree) is None:
            kept.append(case(root, tree.size, chance))
    assert kept
    check(kept)


@pytest.mark.qemu
@pytest.mark.parametrize("tool", TOOLS)
def test_a_residual_addition_of_all_pairs_of_bytes(tool: str) -> None:
    def side(x: Node, zero: int, multiplier: int, places: int) -> Node:
        shifted = Node("multiply", (Node("add_number", (x,), -zero),), 1 << 20)
        return Node("halve_away", (Node("high", (shifted,), multiplier),), places)

    total = Node("add", (side(X, -128, 1623821475, 2), side(Y, 4, 1 << 30, 0)))
    for zero_point, op in ((-128, "halve_up"), (-20, "halve_away")):
        scaled = Node(op, (Node("high", (total,), 1098017566),), 17)  # type: ignore[arg-type]
        root = narrowed(Node("add_number", (scaled,), zero_point))
        grid = np.arange(-128, 128, dtype=np.int8)
        x, y = (a.reshape(-1) for a in np.meshgrid(grid, grid, indexing="ij"))
        result = value(root, (x, y)).astype(np.int8)
        assert len(np.unique(result)) > 50
        check([Case(op, VectorElements(Elementwise(root, 2, x.size)), [x, y], result)], tool)


@pytest.mark.qemu
def test_three_inputs_one_twice_and_more_constants_than_registers() -> None:
    chance = np.random.default_rng(3)
    many = X
    for number in range(12):
        many = Node("add_number", (many,), (-1) ** number * (900 + number))
    three = Node("add", (Node("subtract", (X, Y)), Node("add", (Z, X))))
    check([case(narrowed(root), size, chance) for root in (many, three, X) for size in (1, 6, 64)])


def test_trees_without_a_form_are_refused_with_a_reason() -> None:
    def refusal(root: Node, inputs: int = 2) -> str | None:
        return VectorElements.refuses(Elementwise(root, inputs, 9))

    assert refusal(narrowed(X)) is None
    assert refusal(X, 4) == "it has more than three inputs"
    large = Node("multiply", (X,), 1 << 25)
    assert refusal(narrowed(large)) == "a number could leave int32"
    assert refusal(narrowed(Node("add", (large, X)))) == "a number could leave int32"
    least = Node("multiply", (X,), 1 << 24)  # from -2**31 on
    assert refusal(narrowed(Node("halve_away", (least,), 1))) == "a number could leave int32"
    assert refusal(narrowed(Node("halve_up", (least,), 1))) is None
    assert refusal(Node("halve_up", (X,), 32)) == "a shift is not between 0 and 31"
    assert refusal(Node("at_most", (X,), 1 << 31)) == "a constant is no int32"
    assert refusal(Node("add", (X, Y))) == "its result could leave int8"
    deep = X
    for _ in range(6):
        deep = narrowed(Node("add", (X, deep)))
    assert refusal(deep) == "it is too deep"


@pytest.mark.qemu
def test_sums_over_pixels() -> None:
    chance, cases = np.random.default_rng(4), []
    for pixels, channels in ((125, 64), (64, 5), (1, 4), (3, 130), (6, 7), (1000, 9), (4, 6)):
        x = chance.integers(-128, 128, (pixels, channels)).astype(np.int8)
        kernel = VectorSums(ChannelSums(pixels, channels))
        y = x.sum(axis=0, dtype=np.int32)
        cases.append(Case(f"{pixels} x {channels}", kernel, [x], y, channels % 2 == 0))
    check(cases)


def test_sums_that_are_refused() -> None:
    assert VectorSums.refuses(ChannelSums(9, 3)) == "it has fewer than four channels"
    assert VectorSums.refuses(ChannelSums(9, 4096)) == "it is too large"
    assert VectorSums.refuses(ChannelSums(1 << 24, 4)) == "it is too large"
