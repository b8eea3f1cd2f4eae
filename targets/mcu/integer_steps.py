"""Steps between the layers of an integer module: what they compute, and where they are found.

Elementwise trees, such as a residual addition, from int8 over int32 to int8::

    wide = R.astype(x, "int32")                          # of each input
    centred = R.subtract(wide, zero point)
    scaled = tvm_compress.requantize(R.multiply(centred, 2**20), multiplier, shift)
    y = tvm_compress.requantize(R.add(scaled, other), multiplier, shift)

sums over all pixels, or over windows of them::

    y = R.sum(R.astype(x, "int32"), axis=[1, 2])
    y = R.nn.conv2d(x, ones, groups=channels)

and trees over one such sum: the mean that an average pool gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.ops.requantize import REQUANTIZE
from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.geometry import geometry_of

__all__ = [
    "ChannelSums",
    "Elementwise",
    "Mean",
    "Node",
    "Scope",
    "Step",
    "Windows",
    "find_elements",
    "find_mean",
    "find_sums",
]

_INT32 = 1 << 31


@dataclass(frozen=True)
class Node:
    """An int32 of the tree.

    Attributes:
        op: ``input`` (``value`` is its index), or what is done to ``args``: ``add``, ``subtract``;
            or to the one of them and ``value``: ``add_number``, ``multiply``, ``right_shift``,
            ``high`` (the product of a requantization: ``(2 * a * value + 2**31) >> 32``), ``low``
            (the same without the addend), ``halve_up`` (a right shift that rounds halves upwards),
            ``halve_away`` (away from zero), ``at_least``, ``at_most``, ``divide`` (towards zero),
            ``divide_away`` (to the nearest, ties away from zero); or ``sum``, the sum of ``value``
            bytes.
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
        "divide",
        "divide_away",
        "sum",
    ]
    args: tuple[Node, ...] = ()
    value: int = 0

    @cached_property
    def interval(self) -> tuple[int, int]:
        """The least and the greatest number that it can be."""
        if self.op == "input":
            return -128, 127
        if self.op == "sum":
            return -128 * self.value, 127 * self.value
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
        if self.op in ("divide", "divide_away"):
            half = v // 2 if self.op == "divide_away" else 0
            return (a + half) // v if a >= 0 else -((half - a) // v)
        half = (1 << v) >> 1
        if self.op == "halve_up":
            return (a + half) >> v
        return (a + half - (a < 0 < v)) >> v

    def of(self, leaf: int) -> int:
        """Give the tree's number where its one leaf has this one."""
        if not self.args:
            return leaf
        a = self.args[0].of(leaf)
        if self.op in ("at_least", "at_most"):
            return max(a, self.value) if self.op == "at_least" else min(a, self.value)
        return self._of_number(a)

    @property
    def overflow(self) -> str | None:
        """Say why the tree's numbers are not those of int32, or None."""
        for node in self.walk():
            low, high = node.interval
            if node.op == "halve_away":  # one is taken off before
                low = min(low, node.args[0].interval[0] - 1)
            if node.op == "divide_away":
                low = min(low, node.args[0].interval[0] - node.value // 2)
                high = max(high, node.args[0].interval[1] + node.value // 2)
            if low < -_INT32 or high >= _INT32:
                return "a number could leave int32"
            if node.op in ("right_shift", "halve_up", "halve_away") and not 0 <= node.value < 32:
                return "a shift is not between 0 and 31"
            if not -_INT32 <= node.value < _INT32:
                return "a constant is no int32"
        return None

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


@dataclass(frozen=True)
class ChannelSums:
    """Sums int8 (pixels, channels) to int32 (channels,)."""

    pixels: int
    channels: int


@dataclass(frozen=True)
class Windows:
    """Windows of int8 pixels, channels last; what reaches beyond the image is left out.

    Attributes:
        in_size: height and width of the image.
        out_size: windows in both directions.
        kernel: height and width of a window.
        strides: pixels from window to window.
        padding: how far the first window begins above and left of the image.
        channels: of a pixel.
    """

    in_size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int]
    channels: int

    @property
    def inside(self) -> bool:
        """Whether no window reaches beyond the image."""
        ends = (
            (n - 1) * s + k
            for n, s, k in zip(self.out_size, self.strides, self.kernel, strict=True)
        )
        return self.padding == (0, 0) and all(map(int.__le__, ends, self.in_size))


@dataclass(frozen=True)
class Mean:
    """What is made of the sum of each window: an int8 from a tree whose one leaf is a ``sum``."""

    windows: Windows
    root: Node


class _Kernel(Protocol):
    @property
    def layout(self) -> str:
        """The name of how it computes."""

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch that a call takes."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Constants that the function takes behind its inputs."""

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x0, ..., array, ..., void *y, void *scratch)``."""


@dataclass(frozen=True)
class Step:
    """A step and the kernel that computes it from its inputs.

    ``names`` are the variables on the way to the result, which nothing else reads.
    """

    kind: str
    inputs: tuple[Any, ...]
    kernel: _Kernel
    names: tuple[str, ...]
    out_shape: tuple[int, ...]
    out_dtype: str


class Scope:
    """What the variables of a module are bound to, and how often each is used."""

    def __init__(self, mod: tvm.IRModule) -> None:
        function = ir.main_function(mod)
        self.uses: Mapping[Any, int] = edge.use_counts(function)
        self.bound = {binding.var: binding.value for binding in ir.bindings(function)}

    def calls(self) -> Iterator[tuple[Any, Any]]:
        """Give variables and the calls that they are bound to."""
        for var, value in self.bound.items():
            if isinstance(value, tvm.ir.Call):
                yield var, value

    def inner(self, expr: Any, operator: str, uses: int = 1) -> Any:
        """Give the call of an operator that a variable of so many uses is bound to, or None."""
        if not isinstance(expr, relax.Var) or self.uses[expr] != uses:
            return None
        call = self.bound.get(expr)
        return call if edge.op_name(call) == f"relax.{operator}" else None

    def array(self, expr: Any) -> NDArray[Any] | None:
        """Give the numbers of a constant, in place or behind a variable."""
        value = self.bound.get(expr, expr) if isinstance(expr, relax.Var) else expr
        return edge.constant_value(value) if isinstance(value, edge.Constant) else None


def find_sums(call: Any, scope: Scope) -> tuple[Any, ChannelSums, str] | None:
    """Give the int8 tensor whose sums over all pixels a call gives, and the name between."""
    if edge.op_name(call) != "relax.sum" or edge.dtype_of(call) != "int32":
        return None
    source = scope.inner(call.args[0], "astype")
    x = None if source is None else source.args[0]
    shape = None if x is None else edge.static_shape(x)
    if shape is None or edge.dtype_of(x) != "int8":
        return None
    axes = None if call.attrs.axis is None else sorted(int(a) % len(shape) for a in call.attrs.axis)
    if shape[0] != 1 or axes != list(range(1, len(shape) - 1)):
        return None
    sums = ChannelSums(math.prod(shape[1:-1]), shape[-1])
    return x, sums, edge.var_name(call.args[0])


class _NotElementwise(Exception):
    """Something in a tree has no form here."""


def find_elements(
    var: Any, call: Any, scope: Scope
) -> tuple[list[Any], Elementwise, list[str]] | None:
    """Give the inputs, the tree and the names between of an int8 result, or None.

    A lone operator is no tree: there is less to it, or as in a layer's requantization more.
    """
    shape = edge.static_shape(var)
    if edge.dtype_of_or_none(var) != "int8" or shape is None:
        return None
    tree = _Tree(shape, scope)
    try:
        root = tree.node(call)
    except _NotElementwise:
        return None
    if not tree.names:
        return None
    return tree.inputs, Elementwise(root, len(tree.inputs), math.prod(shape)), tree.names


def find_mean(var: Any, call: Any, scope: Scope) -> tuple[Any, Mean, list[str]] | None:
    """Give the input, the mean and the names between of an int8 result, or None."""
    shape = edge.static_shape(var)
    if edge.dtype_of_or_none(var) != "int8" or shape is None:
        return None
    tree = _MeanTree(shape, scope)
    try:
        root = tree.node(call)
    except _NotElementwise:
        return None
    return (tree.x, Mean(tree.windows, root), tree.names) if tree.windows is not None else None


class _Tree:
    """Reads the tree of an expression and collects its inputs and the variables inside."""

    def __init__(self, shape: tuple[int, ...], scope: Scope) -> None:
        self.shape, self.scope = shape, scope
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
        value = self.scope.bound.get(expr)
        if self.scope.uses[expr] != 1 or not isinstance(value, tvm.ir.Call):
            raise _NotElementwise
        self.names.append(edge.var_name(expr))
        return self.node(value)

    def _number(self, expr: Any) -> int | None:
        array = self.scope.array(expr)
        if array is None:
            return None
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


class _MeanTree(_Tree):
    """Reads a tree over the sums of windows."""

    windows: Windows | None = None
    x: Any = None

    def node(self, call: Any) -> Node:
        name = (edge.op_name(call) or "").removeprefix("relax.")
        if name == "sum":
            return self._sum(call)
        if name in ("nn.conv1d", "nn.conv2d"):
            return self._ones(call)
        if name == "divide":
            return self._divide(call)
        return super().node(call)

    def _cast(self, call: Any) -> Node:
        if edge.dtype_of(call) != "int8":  # elements beside the sums
            raise _NotElementwise
        return super()._cast(call)

    def _leaf(self, x: Any, windows: Windows) -> Node:
        if self.windows is not None:
            raise _NotElementwise
        self.x, self.windows = x, windows
        return Node("sum", (), math.prod(windows.kernel))

    def _sum(self, call: Any) -> Node:
        found = find_sums(call, self.scope)
        if found is None:
            raise _NotElementwise
        x, sums, name = found
        self.names.append(name)
        size = (1, sums.pixels)
        return self._leaf(x, Windows(size, (1, 1), size, (1, 1), (0, 0), sums.channels))

    def _ones(self, call: Any) -> Node:
        geometry, weight = geometry_of(call), self.scope.array(call.args[1])
        if geometry is None or weight is None or (weight != 1).any():
            raise _NotElementwise
        g = geometry
        whole = g.groups == g.outputs and g.inputs == g.batch == 1 and g.dilation == (1, 1)
        x = call.args[0]
        if not (whole and g.channels_last) or edge.dtype_of(x) != "int8":
            raise _NotElementwise
        windows = Windows(g.in_size, g.out_size, g.kernel, g.strides, g.padding, g.outputs)
        return self._leaf(x, windows)

    def _divide(self, call: Any) -> Node:
        count = self._number(call.args[1])
        if count is None or count < 1:
            raise _NotElementwise
        if (nearest := self._nearest(call.args[0], count)) is not None:
            return nearest
        return Node("divide", (self._operand(call.args[0]),), count)

    def _nearest(self, expr: Any, count: int) -> Node | None:
        """Read ``(acc + half + (acc >> 31) * 2 * half) / count``, which reads its sum twice."""
        inner, half = self.scope.inner, count // 2
        nudged = inner(expr, "add")
        moved = None if nudged is None else inner(nudged.args[0], "add")
        turned = None if nudged is None else inner(nudged.args[1], "multiply")
        sign = None if turned is None else inner(turned.args[0], "right_shift")
        if moved is None or turned is None or sign is None:
            return None
        acc = moved.args[0]
        value = self.scope.bound.get(acc)
        numbers = [self._number(c.args[1]) for c in (moved, turned, sign)]
        if not sign.args[0].same_as(acc) or numbers != [half, 2 * half, 31]:
            return None
        if self.scope.uses[acc] != 2 or not isinstance(value, tvm.ir.Call):
            return None
        between = (expr, *nudged.args, turned.args[0], acc)
        self.names += [edge.var_name(var) for var in between]
        return Node("divide_away", (self.node(value),), count)


def _clamped(node: Node, low: int, high: int) -> Node:
    """Clamp where the interval asks for it."""
    if node.interval[0] < low:
        node = Node("at_least", (node,), low)
    return Node("at_most", (node,), high) if node.interval[1] > high else node
