"""Elementwise chains of integers with MVE: from bytes over int32 to bytes, four at a time.

What lies between two layers, a residual addition with its rescaling above all, is a tree of sums,
products and requantizations of int32 with scalar constants. The tree becomes the body of one loop:
constants wait in core registers, a step loads four bytes of each input into the lanes of a vector,
and the loop's own predication (DLSTP, LETP) cuts the last step.

Intervals tell that no sum leaves int32, and which clamps can be left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.integer_steps import Elementwise, Node
from tvm_compress.targets.mcu.mve.assembler import VectorAssembler

__all__ = ["VectorElements"]

_VECTORS = 7  # q7 is for what an instruction needs beside
_CORE = ("r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11")


class VectorElements:
    """The kernel of one tree; see the module's docstring."""

    layout = "mve"
    scratch_bytes = 0
    arrays: tuple[NDArray[Any], ...] = ()

    def __init__(self, tree: Elementwise) -> None:
        self.tree = tree
        self.out = VectorAssembler()

    @staticmethod
    def refuses(tree: Elementwise) -> str | None:
        """Say why the tree cannot be computed this way, or None."""
        if tree.inputs > 3:
            return "it has more than three inputs"
        if (why := tree.root.overflow) is not None:
            return why
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
