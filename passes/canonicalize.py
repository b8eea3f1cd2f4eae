"""``canonicalize``: one way to write each network, whatever it was imported from.

Before::

    lv = R.nn.conv2d(x, const_w, kernel_layout="HWIO", ...)     # a nameless constant
    lv1 = R.nn.batch_norm(lv, gamma, beta, mean, var)
    lv2 = R.nn.relu(lv1[0])

After::

    conv2d_weight = const                                       # scaled by gamma / sqrt(var)
    conv2d_bias = const
    conv2d = R.nn.conv2d(x, conv2d_weight, kernel_layout="OIHW", ...)
    add = R.add(conv2d, conv2d_bias)
    relu = R.nn.relu(add)

Constants are bound to variables that name them, expressions of constants are computed (in the
reference's numpy), batch normalisation and per-channel factors move into the weights in front of
them, convolution weights become OI + spatial, and the many ways to reshape become one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge
from tvm_compress.errors import UnsupportedError
from tvm_compress.ir import Rewriter, main_function
from tvm_compress.ops import CODEBOOK, LOOKUP, REQUANTIZE, SOFTMAX, codebook
from tvm_compress.ops.layout import axes_between, spatial
from tvm_compress.ops.meaning import MEANING
from tvm_compress.passes.base import Pass

__all__ = ["Canonicalize"]

# The constants of these stand in the call itself, but for the first argument.
_WITH_NUMBERS = ("relax.quantize", "relax.dequantize", REQUANTIZE, LOOKUP, SOFTMAX)
_IMPORTED_NAME = re.compile(r"(lv|gv)\d*$")
# A folded constant may be this much larger than what it is made of, or this many bytes.
_FOLD_GROWTH, _FOLD_BYTES = 4, 1 << 16


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Bring a module of one straight-line function to the canonical form; idempotent."""

    name: ClassVar[str] = "canonicalize"

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the canonical module."""
        # Nested calls (a call as the argument of a call) get bindings of their own first.
        return _Canonicalizer(relax.transform.Normalize()(_without_bounds(mod))).run()


def _without_bounds(mod: tvm.IRModule) -> tvm.IRModule:
    """Drop what torch.export says of symbolic sizes; a canonical module has none."""
    function = main_function(mod)
    for name in ("tir_var_lower_bound", "tir_var_upper_bound"):
        if function.attrs and name in function.attrs:
            function = function.without_attr(name)
    if function.same_as(mod["main"]):
        return mod
    mod = mod.clone()
    mod.update_func(mod.get_global_var("main"), function)
    return mod


class _Canonicalizer(Rewriter):
    """Applies the rules to each binding until none changes it."""

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._pending: dict[Any, str] = {}  # constants that nothing uses yet, and their names
        self._placed: dict[Any, Any] = {}

    # -- constants get a binding when something that stays uses them ------------------------------

    def emit(self, value: Any, name: str) -> Any:
        if isinstance(value, relax.Var | relax.ShapeExpr):
            return value
        if isinstance(value, edge.Constant) and edge.tensor_type(value).ndim > 0:
            var = relax.DataflowVar(name, value.ty)
            self._bound[var] = value
            self._pending[var] = name
            return var
        if _IMPORTED_NAME.match(name):
            name = _short_name(value)
        consumer = self._reserve(name)
        value = self._place(value, consumer)
        self._name_quantised(value, consumer)
        return super().emit(value, name)

    def result(self, value: Any) -> Any:
        return self._place_one(value, "output", "_constant")

    def _reserve(self, name: str) -> str:
        unique = self._unique(name)
        self._names.discard(unique)
        return unique

    def _place(self, value: Any, consumer: str) -> Any:
        """Bind the constants among the arguments of ``value``."""
        if isinstance(value, tvm.ir.Tuple):
            return tvm.ir.Tuple([self._place_one(f, consumer, "_part") for f in value.fields])
        if not isinstance(value, tvm.ir.Call):
            return value
        if edge.op_name(value) == CODEBOOK:  # codes and centroids stand in the call itself
            inner = [self.value(arg) for arg in value.args]
            constants = all(isinstance(arg, edge.Constant) for arg in inner)
            return edge.with_args(value, inner) if constants else value
        numbers = edge.op_name(value) in _WITH_NUMBERS
        args = []
        for index, arg in enumerate(value.args):
            if numbers and index and isinstance(self.value(arg), edge.Constant):
                args.append(self.value(arg))
            elif isinstance(arg, tvm.ir.Tuple):
                args.append(self._place(arg, consumer))
            else:
                args.append(self._place_one(arg, *self._role(value, index, consumer)))
        return edge.with_args(value, args)

    def _place_one(self, arg: Any, owner: str, suffix: str) -> Any:
        if isinstance(arg, edge.Constant) and edge.tensor_type(arg).ndim > 0:
            return self._owned(arg, owner, suffix)
        if arg not in self._pending:
            return arg
        if arg not in self._placed:
            name = self._pending[arg]
            if not name or _IMPORTED_NAME.match(name):
                self._placed[arg] = self._owned(self._bound[arg], owner, suffix)
            else:
                self._placed[arg] = super().emit(self._bound[arg], name)
        return self._placed[arg]

    def _owned(self, value: Any, owner: str, suffix: str) -> Any:
        var = super().emit(value, owner + suffix)
        self._owners[var] = (owner, suffix)
        return var

    def _name_quantised(self, value: Any, consumer: str) -> None:
        """Name an integer parameter by what its dequantised form is to the operator."""
        for index, arg in enumerate(value.args if isinstance(value, tvm.ir.Call) else ()):
            inner = self.value(arg)
            if edge.op_name(inner) == "relax.dequantize" and inner.args[0] in self._owners:
                self._owners[inner.args[0]] = self._role(value, index, consumer)

    def _role(self, call: Any, index: int, consumer: str) -> tuple[str, str]:
        """Name a nameless constant by what it is to the operator that uses it."""
        operator = edge.op_name(call) or ""
        if operator.startswith("relax.nn.conv") or operator == "relax.matmul":
            return consumer, "_weight"
        if operator == "relax.add" and index == 1:
            source = call.args[0]
            inner = edge.op_name(self.value(source)) or ""
            if inner.startswith(("relax.nn.conv", "relax.matmul")):
                return edge.var_name(source), "_bias"
        return consumer, "_constant"

    # -- rules ------------------------------------------------------------------------------------

    def rewrite(self, name: str, value: Any) -> Any:
        while True:
            new = self._step(value, name)
            if new is None:
                return value
            value = new

    def _step(self, value: Any, name: str) -> Any:
        if isinstance(value, tvm.ir.TupleGetItem):
            return self._item(value, name)
        if not isinstance(value, tvm.ir.Call):
            return None
        operator = edge.op_name(value)
        if operator is None or operator == CODEBOOK:
            return None
        value = self._builder.normalize(value)
        shared = self._shared(value) if operator == "relax.take" else None
        folded = self._fold(value, name) if shared is None else shared
        if folded is not None:
            return folded
        for rule in _RULES.get(operator, ()):
            new = rule(self, value, name)
            if new is not None:
                return new
        return None

    def constant(self, expr: Any) -> NDArray[Any] | None:
        """Give the array of a constant or of a variable that is bound to one."""
        value = self.value(expr)
        return edge.constant_value(value) if isinstance(value, edge.Constant) else None

    def named(self, array: NDArray[Any], source: Any) -> Any:
        """Make a constant that takes the name of the variable ``source``."""
        name = ""  # nameless or named by its use: it will be named by its use again
        if isinstance(source, relax.Var) and source not in self._owners:
            name = self._pending.get(source) or self._wanted.get(source, "")
        return self.emit(edge.constant(array), name)

    def _fold(self, call: Any, name: str) -> Any:
        """Compute a call of constants; a result takes the name of its largest argument."""
        operator = edge.op_name(call)
        # A dequantised weight keeps its integers: they are what is multiplied in the end.
        if operator not in MEANING or not call.args or operator == "relax.dequantize":
            return None
        tensors = [a for a in call.args if not isinstance(a, relax.ShapeExpr | tvm.tirx.IntImm)]
        tensors = [a for a in tensors if not isinstance(a, tvm.tirx.FloatImm)]
        if any(isinstance(a, tvm.ir.Tuple) for a in tensors):
            return None
        values = {a: self.constant(a) for a in tensors}
        if not values or any(v is None for v in values.values()):
            return None
        if isinstance(call.ty, relax.TupleType) or edge.static_shape(call) is None:
            return None
        arrays = {a: v for a, v in values.items() if v is not None}
        size = int(np.prod(edge.static_shape(call) or ()))
        largest = max(arrays, key=lambda a: arrays[a].size)
        if size > max(_FOLD_BYTES // 4, _FOLD_GROWTH * arrays[largest].size):
            return None
        from tvm_compress.targets.reference import evaluate

        try:
            result = evaluate(call, arrays, name)
        except UnsupportedError:  # a form of an operator that has no numpy meaning
            return None
        return self.named(result, largest) if result.ndim else edge.constant(result)

    def _shared(self, take: Any) -> Any:
        """Make a codebook of constant codes that are taken out of a constant vector."""
        centroids, codes = (self.constant(arg) for arg in take.args)
        if centroids is None or codes is None or codes.ndim < 2:  # a weight has an output axis
            return None
        if centroids.ndim != 1 or centroids.dtype.kind != "f" or not 1 <= centroids.size <= 256:
            return None
        if not codes.size or codes.min() < 0 or codes.max() >= centroids.size:
            return None
        shared = codebook(edge.constant(codes.astype(np.uint8)), edge.constant(centroids))
        # export_onnx calls the parts after the weight; others' weights take the codebook's name.
        source = take.args[0]
        name = self._pending.get(source, "") if isinstance(source, relax.Var) else ""
        return self.emit(shared, name.removesuffix("_centroids")) if name else shared

    def _item(self, item: Any, name: str) -> Any:
        source = self.value(item.tuple_value)
        if isinstance(source, tvm.ir.Tuple):
            return source.fields[item.index]
        operator = edge.op_name(source)
        if operator == "relax.nn.dropout" and item.index == 0:
            return source.args[0]
        if operator == "relax.nn.batch_norm" and item.index == 0:
            return self._affine(source, name)
        return None

    def _affine(self, call: Any, name: str) -> Any:
        """Write batch normalisation as x * scale + shift."""
        statistics = [self.constant(arg) for arg in call.args[1:]]
        # In training mode the statistics are those of the batch.
        if call.attrs.training or any(s is None for s in statistics):
            return None
        gamma, beta, mean, var = (s.astype(np.float64) for s in statistics if s is not None)
        a = call.attrs
        scale = (gamma if a.scale else 1.0) / np.sqrt(var + float(a.epsilon))
        shift = (beta if a.center else 0.0) - mean * scale
        dtype = edge.dtype_of(call.args[0])
        shape = [1] * edge.tensor_type(call.args[0]).ndim
        shape[int(a.axis)] = -1
        factors = [v.reshape(shape).astype(dtype) for v in (scale, shift)]
        scaled = relax.op.multiply(call.args[0], self.named(factors[0], call.args[1]))
        scaled = self.emit(self.rewrite(name, scaled), "scaled")
        return relax.op.add(scaled, self.named(factors[1], call.args[2]))


def _short_name(value: Any) -> str:
    operator = edge.op_name(value)
    if operator is not None:
        return operator.rsplit(".", 1)[-1]
    return {"Tuple": "parts", "TupleGetItem": "part"}.get(type(value).__name__, "value")


_Rule = Callable[[_Canonicalizer, Any, str], Any]
_RULES: dict[str, list[_Rule]] = {}


def _rule(*operators: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        for operator in operators:
            _RULES.setdefault(f"relax.{operator}", []).append(rule)
        return rule

    return register


def _shape(expr: Any) -> tuple[int, ...] | None:
    return edge.static_shape(expr)


@_rule("shape_of")
def _known_shape(self: _Canonicalizer, call: Any, name: str) -> Any:
    shape = _shape(call.args[0])
    return None if shape is None else relax.ShapeExpr(shape)


@_rule("shape_to_tensor")
def _shape_constant(self: _Canonicalizer, call: Any, name: str) -> Any:
    """Make a tensor of a known shape a constant, so that sums with it fold."""
    shape = call.args[0]
    if not isinstance(shape, relax.ShapeExpr):
        return None
    if not all(isinstance(size, tvm.tirx.IntImm) for size in shape.values):
        return None
    return edge.constant(np.asarray([int(size) for size in shape.values], np.int64))


@_rule("flatten", "nn.batch_flatten", "squeeze", "expand_dims")
def _to_reshape(self: _Canonicalizer, call: Any, name: str) -> Any:
    shape = _shape(call)
    return None if shape is None else relax.op.reshape(call.args[0], shape)


@_rule("reshape", "broadcast_to")
def _drop_same_shape(self: _Canonicalizer, call: Any, name: str) -> Any:
    shape = _shape(call)
    return call.args[0] if shape is not None and shape == _shape(call.args[0]) else None


@_rule("reshape")
def _merge_reshapes(self: _Canonicalizer, call: Any, name: str) -> Any:
    inner, shape = self.value(call.args[0]), _shape(call)
    if edge.op_name(inner) == "relax.reshape" and shape is not None:
        return relax.op.reshape(inner.args[0], shape)
    return None


@_rule("reshape", "permute_dims")
def _move_codes(self: _Canonicalizer, call: Any, name: str) -> Any:
    """Move the codes of a shared weight instead of its values."""
    inner = self.value(call.args[0])
    if edge.op_name(inner) != CODEBOOK or not isinstance(inner.args[0], edge.Constant):
        return None
    codes, centroids = edge.constant_value(inner.args[0]), inner.args[1]
    parts = edge.tensor_type(centroids).ndim > 1  # codebooks of parts lie along the codes' axes
    if edge.op_name(call) == "relax.reshape":
        if parts:
            return None
        codes = codes.reshape(_shape(call) or ())
    else:
        axes = range(codes.ndim)[::-1] if call.attrs.axes is None else list(call.attrs.axes)
        codes = np.transpose(codes, axes)
        if parts:
            if not isinstance(centroids, edge.Constant):
                return None
            table = edge.constant_value(centroids)
            centroids = edge.constant(np.transpose(table, [*axes, codes.ndim]))
    moved = codebook(edge.constant(codes), centroids)
    # Like a folded constant it takes the name of the weight, which nothing may use any more.
    source = call.args[0]
    return self.emit(moved, edge.var_name(source)) if isinstance(source, relax.Var) else moved


@_rule("reshape", "permute_dims")
def _move_quantised(self: _Canonicalizer, call: Any, name: str) -> Any:
    """Move the integers of a dequantised weight, and find the axis of its scales again."""
    inner = self.value(call.args[0])
    if edge.op_name(inner) != "relax.dequantize":
        return None
    source = self.value(inner.args[0])
    held = source if edge.op_name(source) != CODEBOOK else source.args[0]
    array = self.constant(held)
    numbers = [self.constant(arg) for arg in inner.args[1:]]
    if array is None or array.ndim == 0 or any(n is None for n in numbers):
        return None
    if held is not source and edge.tensor_type(source.args[1]).ndim > 1:
        return None

    def moved(value: NDArray[Any]) -> NDArray[Any]:
        if edge.op_name(call) == "relax.reshape":
            return value.reshape(_shape(call) or ())
        return np.transpose(value, None if call.attrs.axes is None else list(call.attrs.axes))

    along = [1] * array.ndim
    along[int(inner.attrs.axis)] = -1
    spread = []
    for number in numbers:
        assert number is not None
        shaped = number.reshape(along) if number.size > 1 else number.reshape(())
        spread.append(moved(np.broadcast_to(shaped, array.shape)))
    axes = {axis for value in spread for axis in _varying_axes(value)}
    if len(axes) > 1:  # the scales do not lie along one axis any more
        return None
    axis = axes.pop() if axes else 0
    picked = [
        _along_axis(value, axis if number is not None and number.size > 1 else None)
        for value, number in zip(spread, numbers, strict=True)
    ]
    integers = self.named(moved(array), inner.args[0])
    if held is not source:
        shared = codebook(self.value(integers), self.value(source.args[1]))
        integers = self.emit(shared, edge.var_name(inner.args[0]))
    scale, zero_point = (edge.constant(np.asarray(value)) for value in picked)
    return relax.op.dequantize(
        integers, scale, zero_point, axis=axis, out_dtype=inner.attrs.out_dtype
    )


def _varying_axes(value: NDArray[Any]) -> list[int]:
    """Give the axes along which an array is not constant."""
    return [
        axis
        for axis, size in enumerate(value.shape)
        if size > 1 and (np.take(value, [0], axis) != value).any()
    ]


def _along_axis(value: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """Give the vector along ``axis`` of an array that varies along no other, or its one number."""
    corner = tuple(slice(None) if a == axis else 0 for a in range(value.ndim))
    return value[corner] if value.size else value.reshape(())


@_rule("permute_dims")
def _simplify_transpose(self: _Canonicalizer, call: Any, name: str) -> Any:
    shape = _shape(call.args[0])
    if shape is None:
        return None

    def axes_of(transpose: Any) -> list[int]:
        given = transpose.attrs.axes
        return list(range(len(shape)))[::-1] if given is None else [int(a) for a in given]

    axes = axes_of(call)
    inner = self.value(call.args[0])
    if edge.op_name(inner) == "relax.permute_dims":
        first = axes_of(inner)
        return relax.op.permute_dims(inner.args[0], [first[a] for a in axes])
    moved = [a for a in axes if shape[a] != 1]
    if moved == sorted(moved):  # no axis of more than one element changes its place
        return relax.op.reshape(call.args[0], [shape[a] for a in axes])
    return None


@_rule("astype")
def _drop_cast(self: _Canonicalizer, call: Any, name: str) -> Any:
    same = edge.dtype_of(call) == edge.dtype_of(call.args[0])
    return call.args[0] if same else None


@_rule("concat")
def _drop_concat(self: _Canonicalizer, call: Any, name: str) -> Any:
    parts = self.value(call.args[0])
    return parts.fields[0] if isinstance(parts, tvm.ir.Tuple) and len(parts.fields) == 1 else None


@_rule("maximum")
def _to_relu(self: _Canonicalizer, call: Any, name: str) -> Any:
    for x, bound in ((0, 1), (1, 0)):
        value = self.constant(call.args[bound])
        if value is not None and value.ndim == 0 and value == 0:
            return relax.op.nn.relu(call.args[x])
    return None


@_rule("minimum")
def _to_clip(self: _Canonicalizer, call: Any, name: str) -> Any:
    high = self.constant(call.args[1])
    if high is None or high.ndim:
        return None
    inner = self.value(call.args[0])
    if not self.used_once(call.args[0]):
        return None
    if edge.op_name(inner) == "relax.nn.relu":
        return relax.op.clip(inner.args[0], 0.0, float(high))
    low = self.constant(inner.args[1]) if edge.op_name(inner) == "relax.maximum" else None
    if low is not None and low.ndim == 0:
        return relax.op.clip(inner.args[0], float(low), float(high))
    return None


@_rule("clip")
def _clip_to_relu(self: _Canonicalizer, call: Any, name: str) -> Any:
    low, high = (float(bound.value) for bound in call.args[1:])
    if not edge.dtype_of(call).startswith("float"):
        return None
    if low == 0 and high == np.inf:
        return relax.op.nn.relu(call.args[0])
    whole = any(isinstance(bound, tvm.tirx.IntImm) for bound in call.args[1:])
    return relax.op.clip(call.args[0], low, high) if whole else None


@_rule("nn.conv1d", "nn.conv2d", "nn.conv3d")
def _kernel_layout(self: _Canonicalizer, call: Any, name: str) -> Any:
    """Lay the weight out as OI + spatial, which the packed layouts take as rows."""
    layout, weight = str(call.attrs.kernel_layout), self.constant(call.args[1])
    wanted = "OI" + spatial(len(layout) - 2)
    if layout == wanted:
        return None
    inner = self.value(call.args[1])
    if edge.op_name(inner) == "relax.dequantize" and _held(self, inner):
        moving = relax.op.permute_dims(call.args[1], list(axes_between(layout, wanted)))
        moved = self.emit(self.rewrite("lv", self._builder.normalize(moving)), "lv")
        return edge.convolution(call, call.args[0], moved, wanted)
    if weight is None:
        return None
    moved = np.transpose(weight, axes_between(layout, wanted))
    return edge.convolution(call, call.args[0], self.named(moved, call.args[1]), wanted)


def _held(self: _Canonicalizer, dequantize: Any) -> bool:
    """Whether a dequantize is one of a parameter."""
    source = self.value(dequantize.args[0])
    return isinstance(source, edge.Constant) or edge.op_name(source) == CODEBOOK


@_rule("add", "multiply")
def _constant_right(self: _Canonicalizer, call: Any, name: str) -> Any:
    left, right = call.args
    inner = self.value(left)
    held = edge.op_name(inner) == "relax.dequantize" and _held(self, inner)
    fixed = self.value(right)
    also = edge.op_name(fixed) == "relax.dequantize" and _held(self, fixed)
    if (self.constant(left) is not None or held) and self.constant(right) is None and not also:
        return tvm.ir.Call(call.op, [right, left], call.attrs)
    return None


@_rule("add")
def _merge_additions(self: _Canonicalizer, call: Any, name: str) -> Any:
    inner, second = self.value(call.args[0]), self.constant(call.args[1])
    if second is None or second.dtype.kind != "f" or edge.op_name(inner) != "relax.add":
        return None
    first = self.constant(inner.args[1])
    if first is None or not self.used_once(call.args[0]):
        return None
    if not _per_channel(self, inner.args[0], first + second):
        return None
    total = (first.astype(np.float64) + second).astype(second.dtype)
    return relax.op.add(inner.args[0], self.named(total, inner.args[1]))


@_rule("multiply")
def _scale_weight(self: _Canonicalizer, call: Any, name: str) -> Any:
    """Move a factor per output channel into the weight (and bias) in front of it."""
    factor = self.constant(call.args[1])
    if factor is None or factor.dtype.kind != "f" or not self.used_once(call.args[0]):
        return None
    inner = self.value(call.args[0])
    bias = None
    if edge.op_name(inner) == "relax.add":
        bias, bias_var = self.constant(inner.args[1]), inner.args[1]
        if bias is None or not self.used_once(inner.args[0]):
            return None
        inner = self.value(inner.args[0])
    scaled = _scaled(self, inner, factor)
    if scaled is None:
        return None
    if bias is None:
        return scaled
    product = (bias.astype(np.float64) * factor).astype(bias.dtype)
    return relax.op.add(self.emit(scaled, name), self.named(product, bias_var))


def _per_channel(self: _Canonicalizer, source: Any, value: NDArray[Any]) -> bool:
    """Whether a constant varies along the channels of ``source`` alone (or is smaller still)."""
    inner = self.value(source)
    shape = _shape(source)
    if shape is None:
        return False
    axis = _channel_axis(inner, len(shape))
    full = (1,) * (len(shape) - value.ndim) + value.shape
    return axis is not None and all(n == 1 for i, n in enumerate(full) if i != axis)


def _channel_axis(call: Any, rank: int) -> int | None:
    operator = edge.op_name(call) or ""
    if operator in ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d"):
        return str(call.attrs.data_layout).index("C")
    return rank - 1 if operator == "relax.matmul" else None


def _scaled(self: _Canonicalizer, call: Any, factor: NDArray[Any]) -> Any:
    operator = edge.op_name(call) or ""
    if not isinstance(call, tvm.ir.Call) or len(call.args) < 2:
        return None
    weight, shape = self.constant(call.args[1]), _shape(call)
    # The only axis of a vector is the one that is summed over.
    if weight is None or weight.dtype.kind != "f" or weight.ndim < 2 or shape is None:
        return None
    if operator == "relax.matmul":
        axis, weight_axis = len(shape) - 1, weight.ndim - 1
    elif operator in ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d"):
        axis = str(call.attrs.data_layout).index("C")
        weight_axis = str(call.attrs.kernel_layout).index("O")
    else:
        return None
    full = (1,) * (len(shape) - factor.ndim) + factor.shape
    if any(n != 1 for i, n in enumerate(full) if i != axis) or len(full) != len(shape):
        return None
    along = [1] * weight.ndim
    along[weight_axis] = -1
    new = (weight.astype(np.float64) * factor.reshape(along)).astype(weight.dtype)
    return edge.with_args(call, [call.args[0], self.named(new, call.args[1])])
