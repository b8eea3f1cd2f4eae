"""Steps between the layers of an integer module that a kernel with MVE computes whole.

Elementwise trees, such as a residual addition, from int8 over int32 to int8::

    wide = R.astype(x, "int32")                          # of each input
    centred = R.subtract(wide, zero point)
    scaled = tvm_compress.requantize(R.multiply(centred, 2**20), multiplier, shift)
    y = tvm_compress.requantize(R.add(scaled, other), multiplier, shift)

and the sums over all pixels that an average pool divides::

    y = R.sum(R.astype(x, "int32"), axis=[1, 2])
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import tvm
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.ops.requantize import REQUANTIZE
from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.mve.elementwise import Elementwise, Node, VectorElements
from tvm_compress.targets.mcu.mve.pooling import ChannelSums, VectorSums

__all__ = ["VectorGroup", "find_vector_groups"]


class _Kernel(Protocol):
    @property
    def layout(self) -> str:
        """The name of how it computes."""

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x0, ..., void *y, void *scratch)``."""


@dataclass(frozen=True)
class VectorGroup:
    """A step and the kernel that computes it from its inputs.

    ``names`` are the variables on the way to the result, which nothing else reads.
    """

    kind: str
    inputs: tuple[Any, ...]
    kernel: _Kernel
    names: tuple[str, ...]
    out_shape: tuple[int, ...]
    out_dtype: str


def find_vector_groups(mod: tvm.IRModule) -> dict[str, VectorGroup]:
    """Find the groups by the name of the variable that holds each one's result."""
    function = ir.main_function(mod)
    uses = edge.use_counts(function)
    bound = {binding.var: binding.value for binding in ir.bindings(function)}
    groups = {}
    for var, value in bound.items():
        if isinstance(value, tvm.ir.Call):
            group = _elements(var, value, bound, uses) or _sums(value, bound, uses)
            if group is not None:
                groups[edge.var_name(var)] = group
    return groups


def _sums(call: Any, bound: dict[Any, Any], uses: dict[Any, int]) -> VectorGroup | None:
    if edge.op_name(call) != "relax.sum":
        return None
    wide = call.args[0]
    source = bound.get(wide) if isinstance(wide, relax.Var) else None
    if source is None or edge.op_name(source) != "relax.astype" or uses[wide] != 1:
        return None
    x = source.args[0]
    shape = edge.static_shape(x)
    if edge.dtype_of(x) != "int8" or edge.dtype_of(call) != "int32" or shape is None:
        return None
    axes = None if call.attrs.axis is None else sorted(int(a) % len(shape) for a in call.attrs.axis)
    if shape[0] != 1 or axes != list(range(1, len(shape) - 1)):
        return None
    sums = ChannelSums(math.prod(shape[1:-1]), shape[-1])
    if VectorSums.refuses(sums) is not None:
        return None
    out_shape = edge.static_shape(call) or ()
    return VectorGroup("sum", (x,), VectorSums(sums), (edge.var_name(wide),), out_shape, "int32")


class _NotElementwise(Exception):
    """Something in a tree has no form here."""


def _elements(
    var: Any, call: Any, bound: dict[Any, Any], uses: dict[Any, int]
) -> VectorGroup | None:
    shape = edge.static_shape(var)
    if edge.dtype_of_or_none(var) != "int8" or shape is None:
        return None
    tree = _Tree(shape, bound, uses)
    try:
        root = tree.node(call)
    except _NotElementwise:
        return None
    if not tree.names:  # a layer's own requantization has more to it, and a lone copy less
        return None
    elements = Elementwise(root, len(tree.inputs), math.prod(shape))
    if VectorElements.refuses(elements) is not None:
        return None
    kind = "add" if any(node.op == "add" for node in root.walk()) else "rescale"
    kernel = VectorElements(elements)
    return VectorGroup(kind, tuple(tree.inputs), kernel, tuple(tree.names), shape, "int8")


class _Tree:
    """Reads the tree of an expression and collects its inputs and the variables inside."""

    def __init__(self, shape: tuple[int, ...], bound: dict[Any, Any], uses: dict[Any, int]) -> None:
        self.shape, self.bound, self.uses = shape, bound, uses
        self.inputs: list[Any] = []
        self.names: list[str] = []

    def node(self, call: Any) -> Node:
        """Give the node of a call.

        Raises:
            _NotElementwise: it is none.
        """
        name = (edge.op_name(call) or "").removeprefix("relax.")
        if name == REQUANTIZE:
            return self._requantize(call)
        if name == "clip":
            low, high = (int(bound.value) for bound in call.args[1:])
            return _clamped(self._operand(call.args[0]), low, high)
        if name == "astype":
            return self._cast(call)
        if name in ("add", "subtract", "multiply", "right_shift"):
            return self._binary(name, call)
        raise _NotElementwise

    def _cast(self, call: Any) -> Node:
        x = call.args[0]
        if edge.dtype_of(x) == "int8" and edge.dtype_of(call) == "int32":
            if edge.static_shape(x) != self.shape or isinstance(x, edge.Constant):
                raise _NotElementwise
            if x not in self.inputs:
                self.inputs.append(x)
            return Node("input", (), self.inputs.index(x))
        if edge.dtype_of(x) == "int32" and edge.dtype_of(call) == "int8":
            return self._operand(x)
        raise _NotElementwise

    def _operand(self, expr: Any) -> Node:
        if not isinstance(expr, relax.Var) or edge.dtype_of(expr) != "int32":
            raise _NotElementwise
        if (
            expr not in self.bound
            or self.uses[expr] != 1
            or not isinstance(self.bound[expr], tvm.ir.Call)
        ):
            raise _NotElementwise
        self.names.append(edge.var_name(expr))
        return self.node(self.bound[expr])

    def _number(self, expr: Any) -> int | None:
        value = self.bound.get(expr, expr) if isinstance(expr, relax.Var) else expr
        if not isinstance(value, edge.Constant):
            return None
        array = edge.constant_value(value)
        if array.size != 1 or array.ndim > len(self.shape):
            raise _NotElementwise
        return int(array.reshape(()))

    def _binary(self, name: str, call: Any) -> Node:
        left, right = call.args
        number = self._number(right)
        if number is None and name in ("add", "multiply"):
            number = self._number(left)
            if number is not None:
                left = right
        if number is not None:
            sign = -1 if name == "subtract" else 1
            op = "add_number" if name in ("add", "subtract") else name
            return Node(op, (self._operand(left),), sign * number)  # type: ignore[arg-type]
        if name not in ("add", "subtract"):
            raise _NotElementwise
        return Node(name, (self._operand(left), self._operand(right)))  # type: ignore[arg-type]

    def _requantize(self, call: Any) -> Node:
        a = call.attrs
        multiplier, shift = (self._number(arg) for arg in call.args[1:])
        if multiplier is None or shift is None or multiplier < 0 or shift > 0:
            raise _NotElementwise
        x, zero_point, low = self._operand(call.args[0]), int(a["zero_point"]), int(a["low"])
        if str(a["rounding"]) == "double":
            product = Node("high", (x,), multiplier)
            # Negative numbers that end at the limit anyway may be rounded upwards.
            rounded = Node("halve_up" if low >= zero_point else "halve_away", (product,), -shift)
        elif shift < 0:
            # What this product cuts off lies below the half.
            rounded = Node("halve_up", (Node("low", (x,), multiplier),), -shift)
        else:
            raise _NotElementwise
        moved = Node("add_number", (rounded,), zero_point) if zero_point else rounded
        return _clamped(moved, low, int(a["high"]))


def _clamped(node: Node, low: int, high: int) -> Node:
    """Clamp where the interval asks for it."""
    if node.interval[0] < low:
        node = Node("at_least", (node,), low)
    return Node("at_most", (node,), high) if node.interval[1] > high else node
