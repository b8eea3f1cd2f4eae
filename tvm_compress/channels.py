"""Which channels of a network stand or fall together, and what is known of their values.

Every tensor of a canonical module that has channels gets one *class* an element of its channel
axis. Elements of the same class can only be removed together: a depthwise convolution gives its
output the classes of its input, an addition makes one class of the channels that it adds, a
concatenation puts classes side by side. Convolutions and products end a class on their input side
(they are its *readers*) and begin new ones on their output side. Classes that reach an input, an
output or an operator without a rule here are *held*: they cannot be removed.

Beside the classes goes the value of each channel where it is the same number at every position and
for every input, computed from the inputs' side: a filter of zeros gives a constant, relu of a
constant is a constant. Of integers the values are those whose range is one number (see
:mod:`tvm_compress.integer_ranges`): a sum that is clamped whatever the input is one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.integer_ranges import integer_ranges
from tvm_compress.ops import LOOKUP, REQUANTIZE
from tvm_compress.ops.meaning import MEANING

__all__ = ["BINARY", "Channels", "Layer", "Reader", "conv_axes"]

_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
_POOLS = {f"relax.nn.{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)}
_ADAPTIVE = {f"relax.nn.adaptive_avg_pool{rank}d" for rank in (1, 2, 3)}
_ELEMENTWISE = {
    f"relax.{name}"
    for name in (
        *("abs", "ceil", "clip", "cos", "erf", "exp", "floor", "log", "negative", "round"),
        *("rsqrt", "sigmoid", "sign", "sin", "sqrt", "square", "tanh", "nn.gelu", "nn.gelu_tanh"),
        *("nn.leakyrelu", "nn.relu", "nn.selu", "nn.silu", "nn.softplus"),
    )
}
BINARY = {
    f"relax.{name}"
    for name in (
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "power"),
        *("floor_divide", "left_shift", "right_shift"),
    )
}
_REDUCTIONS = {f"relax.{name}" for name in ("mean", "max", "min", "sum")}

_FLOATS = ("float16", "float32", "float64")

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


def conv_axes(call: Any) -> tuple[int, int, int]:
    """Give the axes of a convolution: channels of the data, outputs and inputs of the weight."""
    kernel = str(call.attrs.kernel_layout)
    return str(call.attrs.data_layout).index("C"), kernel.index("O"), kernel.index("I")


@dataclass
class Layer:
    """The channels of one tensor: their axis, and of each its class and its value (NaN: varies)."""

    axis: int
    classes: _Ints
    values: _Floats


@dataclass
class Reader:
    """A convolution or product that reads channels and gives new ones.

    Attributes:
        name: the binding's name.
        weight: the weight's name.
        matrix: the weight as (outputs, inputs, taps), with zeros for what counts as zero.
        source: the channels that it reads.
        result: the channels that it gives.
        padded: whether it reads zeros beside the data, so that a constant is none at the borders.
    """

    name: str
    weight: str
    matrix: NDArray[Any]
    source: Layer
    result: Layer
    padded: bool

    def absorbs(self) -> NDArray[np.bool_]:
        """Whether an input's value can move into the bias: it is known, and exact at borders."""
        known = ~np.isnan(self.source.values)
        return known & (self.source.values == 0) if self.padded else known


@dataclass
class Channels:
    """The channels of a canonical module; see the module's text.

    Attributes:
        layers: by the name of a variable, where it has channels that are followed.
        readers: the convolutions and products, in order.
        depthwise: by the name of a depthwise convolution the name of its weight.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    readers: list[Reader] = field(default_factory=list)
    depthwise: dict[str, str] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=list)
    _held: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, mod: tvm.IRModule, tolerance: float = 0.0) -> Channels:
        """Follow the channels of a canonical module.

        Weights of at most ``tolerance`` times the largest magnitude of their tensor count as zero.
        """
        return _Analysis(mod, tolerance).channels

    # -- classes ----------------------------------------------------------------------------------

    def new(self, count: int) -> _Ints:
        """Make classes of their own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, member: int) -> int:
        """Give the number of the class that ``member`` is in by now."""
        while self._parent[member] != member:
            self._parent[member] = self._parent[self._parent[member]]
            member = self._parent[member]
        return member

    def roots(self, members: _Ints) -> _Ints:
        """Give the classes' numbers, of the same length."""
        return np.asarray([self.root(int(m)) for m in members], np.int64)

    def join(self, first: _Ints, second: _Ints) -> None:
        """Make one class of each pair."""
        for a, b in zip(first, second, strict=True):
            root, other = self.root(int(a)), self.root(int(b))
            self._parent[other] = root
            if other in self._held:
                self._held.add(root)

    def hold(self, members: _Ints) -> None:
        """Say that these classes cannot be removed."""
        self._held.update(self.root(int(m)) for m in members)

    def held(self, members: _Ints) -> NDArray[np.bool_]:
        """Whether each class is held."""
        return np.asarray([self.root(int(m)) in self._held for m in members], bool)

    def stays(self, layer: Layer, gone: Collection[int]) -> NDArray[np.bool_]:
        """Whether each channel of a tensor stays when the classes ``gone`` are removed."""
        return ~np.isin(self.roots(layer.classes), list(gone))

    # -- what can go ------------------------------------------------------------------------------

    def removable(self) -> set[int]:
        """Give the classes whose removal changes no output.

        No reader may notice: an input that is removed has a weight of zeros for every output that
        stays, or a constant value that the bias takes up. Every tensor keeps one channel.
        """
        gone = self._unnoticed(kept=set())
        kept: set[int] = set()
        while empty := {
            int(roots[0])
            for layer in self.layers.values()
            if len(roots := self.roots(layer.classes)) and gone.issuperset(map(int, roots))
        }:
            kept |= empty
            gone = self._unnoticed(kept)
        return gone

    def _unnoticed(self, kept: set[int]) -> set[int]:
        everything = {self.root(m) for m in range(len(self._parent))}
        candidates = everything - {self.root(m) for m in self._held} - kept
        gone: set[int] = set()
        while True:  # what goes takes its own inputs' last reader away, so more may go
            noticed: set[int] = set()
            for reader in self.readers:
                inputs = self.roots(reader.source.classes)
                rows = self.stays(reader.result, gone)
                unread = ~reader.matrix[rows].any(axis=(0, 2))
                noticed.update(map(int, inputs[~(unread | reader.absorbs())]))
            found = candidates - noticed
            if found == gone:
                return gone
            gone = found


class _Analysis:
    """Goes through the bindings once; rules by operator."""

    def __init__(self, mod: tvm.IRModule, tolerance: float) -> None:
        self.tolerance = tolerance
        self.channels = Channels()
        self.parameters = ir.parameters(mod)
        self.at: dict[Any, Layer] = {}  # by variable
        self.constants: dict[Any, NDArray[Any]] = {}
        function = ir.main_function(mod)
        ranges = integer_ranges(mod)
        for binding in ir.bindings(function):
            name = edge.var_name(binding.var)
            if name in self.parameters:
                self.constants[binding.var] = self.parameters[name].value
                continue
            layer = self._follow(binding.value, name)
            if layer is None:
                self._hold_all(binding.value)
                continue
            if name in ranges:
                layer.values = ranges[name].constants(layer.axis, layer.classes.size)
            self.at[binding.var] = self.channels.layers[name] = layer
        outputs, _ = edge.outputs_of(function)
        for _, var in outputs:
            self._hold_all(var)
        # Outputs are other names of what they are bound to, so its classes are held already.
        for name, _ in outputs:
            self.channels.layers.pop(name, None)

    def _hold_all(self, expr: Any) -> None:
        for var in edge.variables_in(expr):
            if var in self.at:
                self.channels.hold(self.at[var].classes)

    def _follow(self, value: Any, name: str) -> Layer | None:
        if isinstance(value, relax.Var):
            return self.at.get(value)
        operator = edge.op_name(value)
        if operator is None or not edge.is_tensor(value):
            return None
        if operator in _CONVOLUTIONS:
            return self._convolution(value, name)
        if operator == "relax.matmul":
            return self._product(value, name)
        if operator in BINARY:
            return self._binary(value)
        if operator == "relax.concat":
            return self._concat(value)
        source = self.at.get(value.args[0]) if value.args else None
        rule = _PASSING.get(operator)
        return None if source is None or rule is None else rule(value, source)

    def _fresh(self, axis: int, values: _Floats) -> Layer:
        return Layer(axis, self.channels.new(values.size), values)

    def _weight(self, var: Any) -> NDArray[Any] | None:
        value = self.constants.get(var)
        if value is None or not value.size or value.dtype.kind != "f":
            return value
        magnitude = np.abs(value)
        return np.where(magnitude > self.tolerance * magnitude.max(), value, 0)

    def _source(self, var: Any, axis: int, size: int) -> Layer | None:
        """Give the channels of an argument along an axis; held ones where nothing is known."""
        layer = self.at.get(var)
        if layer is not None and layer.axis == axis:
            return layer
        if layer is not None:
            self.channels.hold(layer.classes)
        if not isinstance(var, relax.Var) or var in self.constants:
            return None
        unknown = self._fresh(axis, np.full(size, np.nan))
        self.channels.hold(unknown.classes)
        return unknown

    def _reader(
        self, name: str, weight: Any, matrix: NDArray[Any], source: Layer, axis: int, padded: bool
    ) -> Layer:
        known = np.nan_to_num(source.values)
        taken = ~np.isnan(source.values) & (~np.array(padded) | (known == 0))
        varies = matrix[:, ~taken].any(axis=(1, 2))
        values = np.where(
            varies, np.nan, matrix.sum(2, dtype=np.float64) @ np.where(taken, known, 0.0)
        )
        result = self._fresh(axis, values)
        reader = Reader(name, edge.var_name(weight), matrix, source, result, padded)
        self.channels.readers.append(reader)
        return result

    def _convolution(self, call: Any, name: str) -> Layer | None:
        data, weight = call.args
        value = self._weight(weight)
        if value is None:
            return None
        axis, outputs, inputs = conv_axes(call)
        groups = int(call.attrs.groups)
        matrix = np.moveaxis(value, (outputs, inputs), (0, 1))
        matrix = matrix.reshape(*matrix.shape[:2], -1)
        padded = any(int(p) for p in call.attrs.padding)
        source = self._source(data, axis, matrix.shape[1] * groups)
        if source is None:
            return None
        if groups == 1:
            return self._reader(name, weight, matrix, source, axis, padded)
        multiple = matrix.shape[0] // groups
        if matrix.shape[1] == 1:
            classes = np.repeat(source.classes, multiple)
            known = np.repeat(source.values, multiple)
            products = np.where(matrix.any(axis=(1, 2)), known, 0.0)
            if padded:
                products = np.where(products == 0, products, np.nan)
            self.channels.depthwise[name] = edge.var_name(weight)
            return Layer(axis, classes, products * matrix.sum((1, 2), dtype=np.float64))
        self.channels.hold(source.classes)  # groups of several channels have to stay of one size
        result = self._fresh(axis, np.where(matrix.any(axis=(1, 2)), np.nan, 0.0))
        self.channels.hold(result.classes)
        return result

    def _product(self, call: Any, name: str) -> Layer | None:
        data, weight = call.args
        value = self._weight(weight)
        if value is None or value.ndim != 2:
            return None
        rank = int(edge.tensor_type(data).ndim)
        source = self._source(data, rank - 1, value.shape[0])
        if source is None:
            return None
        matrix = value.T[:, :, None]
        axis = int(edge.tensor_type(call).ndim) - 1
        return self._reader(name, weight, matrix, source, axis, padded=False)

    def _constant(self, expr: Any) -> NDArray[Any] | None:
        return edge.constant_value(expr) if isinstance(expr, edge.Constant) else None

    def _binary(self, call: Any) -> Layer | None:
        shape = edge.static_shape(call)
        if shape is None:
            return None
        sides = []
        for arg in call.args:
            value = self._constant(arg)
            value = self.constants.get(arg) if value is None else value
            layer = self.at.get(arg) if value is None else None
            if value is None and layer is None:
                return None
            rank = value.ndim if value is not None else int(edge.tensor_type(arg).ndim)
            sides.append((value, layer, len(shape) - rank))
        followed = [(layer, layer.axis + shift) for _, layer, shift in sides if layer is not None]
        if not followed or len({axis for _, axis in followed}) > 1:
            return None
        axis = followed[0][1]
        if any(len(layer.classes) != shape[axis] for layer, _ in followed):
            return None
        values = []
        for value, layer, shift in sides:
            if layer is not None:
                values.append(layer.values)
            elif value is not None:
                values.append(_along(value, axis - shift, shape[axis]))
        for layer, _ in followed[1:]:
            self.channels.join(followed[0][0].classes, layer.classes)
        return Layer(axis, followed[0][0].classes, _apply(call, *values))

    def _concat(self, call: Any) -> Layer | None:
        parts = list(call.args[0].fields) if isinstance(call.args[0], tvm.ir.Tuple) else []
        layers = [self.at.get(part) for part in parts]
        rank = int(edge.tensor_type(call).ndim)
        joined = int(call.attrs.axis or 0) % rank
        found = [layer for layer in layers if layer is not None]
        if not found or len({layer.axis for layer in found}) > 1:
            return None
        axis = found[0].axis
        if joined == axis:
            sizes = [(edge.static_shape(part) or ())[axis] for part in parts]
            every = [
                self._source(part, axis, size) for part, size in zip(parts, sizes, strict=True)
            ]
            whole = [layer for layer in every if layer is not None]
            if len(whole) < len(every):  # a constant among the parts
                return None
            return Layer(
                axis,
                np.concatenate([layer.classes for layer in whole]),
                np.concatenate([layer.values for layer in whole]),
            )
        if len(found) < len(layers):
            return None
        values = found[0].values
        for layer in found[1:]:
            self.channels.join(found[0].classes, layer.classes)
            values = np.where(values == layer.values, values, np.nan)
        return Layer(axis, found[0].classes, values)


def _along(value: NDArray[Any], axis: int, size: int) -> _Floats:
    """Give a constant's value for each channel, NaN where it varies beside the channels."""
    if axis < 0 or value.ndim == 0:
        flat = value.reshape(-1)
        same = bool((flat == flat[:1]).all())
        return np.full(size, float(flat[0]) if same else np.nan)
    rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1).astype(np.float64)
    values = np.where((rows == rows[:, :1]).all(axis=1), rows[:, 0], np.nan)
    return np.asarray(np.broadcast_to(values, (size,)))


def _apply(call: Any, *values: _Floats) -> _Floats:
    """Apply an elementwise operator to the channels' values; NaN stays NaN."""
    if edge.dtype_of(call) not in _FLOATS:  # known by their ranges
        return np.full(max(v.size for v in values), np.nan)
    with np.errstate(all="ignore"):
        result = MEANING[edge.op_name(call) or ""](call.attrs, *values)
    unknown = np.any([np.isnan(v) for v in values], axis=0)
    # An infinite or undefined value is no constant that a bias could take up.
    return np.where(unknown | ~np.isfinite(result), np.nan, result)


# ---- operators that pass channels on: (call, source) -> result ----------------------------------


def _elementwise(call: Any, source: Layer) -> Layer:
    if edge.op_name(call) == "relax.clip":
        low, high = (float(bound.value) for bound in call.args[1:])
        return Layer(source.axis, source.classes, np.clip(source.values, low, high))
    return Layer(source.axis, source.classes, _apply(call, source.values))


def _of_integers(call: Any, source: Layer) -> Layer | None:
    """Give the channels of an operator whose result is integers; its range tells their values."""
    if edge.dtype_of(call) in _FLOATS:
        return None
    return Layer(source.axis, source.classes, np.full(source.values.size, np.nan))


def _requantize(call: Any, source: Layer) -> Layer | None:
    single = all(edge.static_shape(arg) in ((), (1,)) for arg in call.args[1:])
    axis = int(call.attrs["axis"]) % int(edge.tensor_type(call).ndim)
    return _of_integers(call, source) if single or axis == source.axis else None


def _pool(call: Any, source: Layer) -> Layer | None:
    if str(call.attrs.layout).index("C") != source.axis:
        return None
    values = source.values
    counted = (
        getattr(call.attrs, "count_include_pad", False) and "avg" in str(call.op.name)
    ) and any(int(p) for p in call.attrs.padding)
    if counted:  # zeros of the padding are averaged in
        values = np.where(values == 0, values, np.nan)
    return Layer(source.axis, source.classes, values)


def _adaptive(call: Any, source: Layer) -> Layer | None:
    same = str(call.attrs.layout).index("C") == source.axis
    return Layer(source.axis, source.classes, source.values) if same else None


def _reduce(call: Any, source: Layer) -> Layer | None:
    shape = edge.static_shape(call.args[0])
    if shape is None or call.attrs.axis is None:
        return None
    axes = {int(a) % len(shape) for a in call.attrs.axis}
    if source.axis in axes:
        return None
    values = source.values
    if edge.op_name(call) == "relax.sum":
        values = values * math.prod(shape[a] for a in axes)
    lost = 0 if call.attrs.keepdims else sum(a < source.axis for a in axes)
    return Layer(source.axis - lost, source.classes, values)


def _transpose(call: Any, source: Layer) -> Layer | None:
    rank = int(edge.tensor_type(call).ndim)
    given = call.attrs.axes
    axes = list(range(rank))[::-1] if given is None else [int(a) % rank for a in given]
    return Layer(axes.index(source.axis), source.classes, source.values)


def _reshape(call: Any, source: Layer) -> Layer | None:
    before, after = edge.static_shape(call.args[0]), edge.static_shape(call)
    if before is None or after is None or len(source.classes) == 1:
        return None
    place = np.arange(before[source.axis]).reshape(
        [-1 if i == source.axis else 1 for i in range(len(before))]
    )
    moved = np.broadcast_to(place, before).reshape(after)
    for axis in range(len(after)):
        rows = np.moveaxis(moved, axis, 0).reshape(after[axis], -1)
        if after[axis] > 1 and (rows == rows[:, :1]).all():
            order = rows[:, 0]
            return Layer(axis, source.classes[order], source.values[order])
    return None


def _pad(call: Any, source: Layer) -> Layer | None:
    widths = [int(w) for w in call.attrs.pad_width]
    if any(widths[2 * source.axis : 2 * source.axis + 2]):
        return None
    values = source.values
    if any(widths) and str(call.attrs.pad_mode) == "constant":
        values = np.where(values == float(call.attrs.pad_value), values, np.nan)
    return Layer(source.axis, source.classes, values)


_PASSING: dict[str, Callable[[Any, Layer], Layer | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_ADAPTIVE, _adaptive),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    LOOKUP: _of_integers,
    REQUANTIZE: _requantize,
    "relax.astype": _of_integers,
    "relax.permute_dims": _transpose,
    "relax.reshape": _reshape,
    "relax.nn.pad": _pad,
}
