"""Elementwise chains of integers with MVE: from bytes over int32 to bytes, four at a time.

What lies between two layers, a residual addition with its rescaling above all, is a tree of sums,
products and requantizations of int32 with scalar constants. The tree becomes the body of one loop:
constants wait in core registers, a step loads four bytes of each input into the lanes of a vector,
and the loop's own predication (DLSTP, LETP) cuts the last step.

Intervals tell that no sum leaves int32, and which clamps can be left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.mve.assembler import VectorAssembler

__all__ = ["Elementwise", "Node", "VectorElements"]

_INT32 = 1 << 31
_VECTORS = 7  # q7 is for what an instruction needs beside
_CORE = ("r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11")


@dataclass(frozen=True)
class Node:
    """An int32 of the tree.

    Attributes:
        op: ``input`` (``value`` is its index), or what is done to ``args``: ``add``, ``subtract``;
            or to the one of them and ``value``: ``add_number``, ``multiply``, ``right_shift``,
            ``high`` (the product of a requantization: ``(2 * a * value + 2**31) >> 32``), ``low``
            (the same without the addend), ``halve_up`` (a right shift that rounds halves upwards),
            ``halve_away`` (away from zero), ``at_least``, ``at_most``.
        args: the operands.
        value: the number.
    """

    op: Literal[
        "input",
        "add",
        "subtract",
        "add_number",
        "multiply",
        "right_shift",
        "high",
        "low",
        "halve_up",
        "halve_away",
        "at_least",
        "at_most",
    ]
    args: tuple[Node, ...] = ()
    value: int = 0

    @cached_property
    def interval(self) -> tuple[int, int]:
        """The least and the greatest number that it can be."""
        if self.op == "input":
            return -128, 127
        low, high = self.args[0].interval
        v = self.value
        if self.op in ("add", "subtract"):
            other = self.args[1].interval
            if self.op == "subtract":
                other = -other[1], -other[0]
            return low + other[0], high + other[1]
        if self.op == "at_least":
            return max(low, v), max(high, v)
        if self.op == "at_most":
            return min(low, v), min(high, v)
        ends = sorted(map(self._of_number, (low, high)))
        return ends[0], ends[1]

    def _of_number(self, a: int) -> int:
        """Give the result for one operand; all of these rise or fall with it."""
        v = self.value
        if self.op == "add_number":
            return a + v
        if self.op == "multiply":
            return a * v
        if self.op == "right_shift":
            return a >> v
        if self.op == "high":
            return (2 * a * v + _INT32) >> 32
        if self.op == "low":
            return (a * v) >> 31
        half = (1 << v) >> 1
        if self.op == "halve_up":
            return (a + half) >> v
        return (a + half - (a < 0)) >> v

    def walk(self) -> Iterator[Node]:
        """Give the tree's nodes, operands first."""
        for arg in self.args:
            yield from arg.walk()
        yield self


@dataclass(frozen=True)
class Elementwise:
    """A tree whose root is stored as int8.

    Attributes:
        root: an int32 within the limits of int8.
        inputs: how many tensors of int8 there are.
        size: elements of each of them, and of the output.
    """

    root: Node
    inputs: int
    size: int


class VectorElements:
    """The kernel of one tree; see the module's docstring."""

    layout = "mve"
    scratch_bytes = 0

    def __init__(self, tree: Elementwise) -> None:
        self.tree = tree
        self.out = VectorAssembler()

    @staticmethod
    def refuses(tree: Elementwise) -> str | None:
        """Say why the tree cannot be computed this way, or None."""
        if tree.inputs > 3:
            return "it has more than three inputs"
        for node in tree.root.walk():
            low, high = node.interval
            if node.op == "halve_away":  # one is taken off before
                low = min(low, node.args[0].interval[0] - 1)
            if low < -_INT32 or high >= _INT32:
                return "a number could leave int32"
            if node.op in ("right_shift", "halve_up", "halve_away") and not 0 <= node.value < 32:
                return "a shift is not between 0 and 31"
            if not -_INT32 <= node.value < _INT32:
                return "a constant is no int32"
        if tree.root.interval[0] < -128 or tree.root.interval[1] > 127:
            return "its result could leave int8"
        if _depth(tree.root) + tree.inputs > _VECTORS:
            return "it is too deep"
        return None

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x0, ..., void *y, void *scratch)``."""
        self.out = VectorAssembler()
        out, count = self.out, self.tree.inputs
        pointers = [f"r{i}" for i in range(count + 1)]
        out.op("push {r4-r11, lr}", "sub sp, sp, #4", "vpush {d8-d15}")
        self._core: dict[int, str] = {}
        for node in self.tree.root.walk():
            if _in_core(node) and node.value not in self._core and len(self._core) < len(_CORE):
                self._core[node.value] = _CORE[len(self._core)]
                out.move(self._core[node.value], node.value)
        out.move("r12", self.tree.size)
        out.op("dlstp.32 lr, r12")
        with out.repeat(-(-self.tree.size // 4)) as start:
            for i in range(count):
                out.op(f"vldrb.s32 q{i}, [{pointers[i]}], #4")
            # Narrowing saturates, so the outermost clamps to int8 need no instructions.
            root = self.tree.root
            while (root.op, root.value) in (("at_most", 127), ("at_least", -128)):
                root = root.args[0]
            self._evaluate(root, count)
            if root is not self.tree.root:
                out.op(f"vqmovnb.s32 q{count}, q{count}", f"vqmovnb.s16 q{count}, q{count}")
            out.op(f"vstrb.32 q{count}, [{pointers[count]}], #4", f"letp lr, {start}")
        out.op("vpop {d8-d15}", "add sp, sp, #4", "pop {r4-r11, pc}")
        parameters = [*(f"const void *x{i}" for i in range(count)), "void *y", "void *scratch"]
        return replace(out.function(parameters), in_place=tuple(range(count)))

    def _evaluate(self, node: Node, to: int) -> str:
        """Compute a node into the vector register ``to``, or give the input's that it is."""
        out = self.out
        if node.op == "input" and to > self.tree.inputs:
            return f"q{node.value}"
        q = f"q{to}"
        if node.op == "input":
            out.op(f"vmov {q}, q{node.value}")
            return q
        # The result goes to its own register; the operands are computed into it and behind it.
        a = self._operand(node.args[0], to)
        b = self._operand(node.args[1], to + 1) if len(node.args) > 1 else ""
        v = node.value
        if node.op in ("add", "subtract"):
            out.op(f"v{node.op[:3]}.i32 {q}, {a}, {b}")
        elif node.op == "multiply" and v > 0 and v & (v - 1) == 0:
            out.op(f"vshl.i32 {q}, {a}, #{v.bit_length() - 1}")
        elif node.op == "right_shift":
            out.op(f"vshr.s32 {q}, {a}, #{v}" if v else f"vmov {q}, {a}")
        elif node.op in ("halve_up", "halve_away"):
            if node.op == "halve_away" and node.args[0].interval[0] < 0 and v:
                out.op(f"vshr.s32 q7, {a}, #31", f"vadd.i32 {q}, {a}, q7")
                a = q
            out.op(f"vrshr.s32 {q}, {a}, #{v}" if v else f"vmov {q}, {a}")
        else:
            self._with_number(node, q, a)
        return q

    def _operand(self, node: Node, to: int) -> str:
        return f"q{node.value}" if node.op == "input" else self._evaluate(node, to)

    def _with_number(self, node: Node, q: str, a: str) -> None:
        out = self.out
        number = self._core.get(node.value, "r12")
        if number == "r12":
            out.move("r12", node.value)
        if node.op in ("at_least", "at_most"):
            out.op(f"vdup.32 q7, {number}")
            out.op(f"v{'max' if node.op == 'at_least' else 'min'}.s32 {q}, {a}, q7")
            return
        names = {"add_number": "vadd.i32", "multiply": "vmul.i32"}
        names |= {"high": "vqrdmulh.s32", "low": "vqdmulh.s32"}
        out.op(f"{names[node.op]} {q}, {a}, {number}")


def _in_core(node: Node) -> bool:
    """Whether a node's number is an operand in a core register."""
    if node.op == "multiply":
        return not (node.value > 0 and node.value & (node.value - 1) == 0)
    return node.op in ("add_number", "high", "low", "at_least", "at_most")


def _depth(node: Node) -> int:
    """Vector registers that a node takes, with its operands behind one another."""
    return max([1, *(i + _depth(arg) for i, arg in enumerate(node.args))])
