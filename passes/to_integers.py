"""``to-integers``: a quantised network computes in integers what its QDQ form says in float.

Before::

    x = R.dequantize(q, s_x, z_x)
    w = R.dequantize(conv_weight, s_w, 0, axis=0)                # conv_weight is int8
    y = R.add(R.nn.conv2d(x, w, padding=1), R.dequantize(conv_bias, s_x * s_w, 0))
    r = R.quantize(R.nn.relu(y), s_y, z_y)

After::

    p = R.nn.pad(q, pad_value=z_x)
    y = R.add(R.nn.conv2d(p, conv_weight, out_dtype="int32"), conv_bias)  # - z_x * sum(w)
    r = tvm_compress.requantize(y, multiplier, shift, zero_point=z_y, low=z_y)

Source: Jacob et al., arXiv 1712.05877. A module whose function has the attribute
``tvm_compress.rounding`` = ``double`` (TensorFlow Lite's networks) gets the arithmetic of
TensorFlow Lite's reference kernels, bit for bit; any other the cheapest one that rounds once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from tvm_compress import edge, ir, qdq
from tvm_compress.errors import OptionError, UnsupportedError
from tvm_compress.integer_forms import FORMS, MOVES
from tvm_compress.integer_forms.clamps import activation, narrowed
from tvm_compress.integer_forms.quantised import Held, Quantised, Target
from tvm_compress.integer_forms.rescaling import requantized
from tvm_compress.integer_forms.tables import table
from tvm_compress.ops import CODEBOOK, ROUNDING
from tvm_compress.passes.base import Pass

__all__ = ["ToIntegers"]

_FALLBACKS = ("error", "float")
_QDQ = ("relax.quantize", "relax.dequantize")


@dataclass(frozen=True)
class ToIntegers(Pass):
    """Turn quantize and dequantize into integer operators; idempotent.

    ``fallback`` says what becomes of an operator without an integer form: ``error``, or ``float``,
    which leaves it between a dequantize and a quantize. Operators in front of the first quantize
    or behind the last dequantize belong to the float border and stay in any case. A module without
    quantize and dequantize comes back unchanged.

    Raises:
        OptionError: an unknown ``fallback``.
        UnsupportedError: an operator without an integer form; activations of other than 8 bits; a
            scale that is not positive and finite; sums that could leave int32.
    """

    name: ClassVar[str] = "to-integers"
    fallback: str = "error"

    def __post_init__(self) -> None:
        """Check the option."""
        if self.fallback not in _FALLBACKS:
            raise OptionError(
                f"to-integers: fallback is {self.fallback!r}; expected {' or '.join(_FALLBACKS)}."
            )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module in integers."""
        values = [binding.value for binding in ir.bindings(ir.main_function(mod))]
        if not any(edge.op_name(value) in _QDQ for value in values):
            return mod
        return _HeldFloats(_Integers(mod, self.fallback).run()).run()


class _Integers(ir.Rewriter):
    """Replaces each ``quantize`` by the integer form of what it quantises.

    What was float stays until the end and falls away where nothing uses it any more.
    """

    def __init__(self, mod: tvm.IRModule, fallback: str) -> None:
        super().__init__(mod)
        self._fallback = fallback
        attrs = ir.main_function(mod).attrs or {}
        self.rounding = str(attrs[ROUNDING]) if ROUNDING in attrs else "single"
        self._quantised: dict[Any, Quantised | None] = {}
        self._moved_down: set[Any] = set()  # int8 variables that stand for uint8 ones, less 128
        self._int8_of: dict[Any, Any] = {}  # of inputs of uint8
        self._float: dict[Any, bool] = {}  # whether a variable depends on an activation

    # -- what a variable is -----------------------------------------------------------------------

    def wanted(self, var: Any) -> str:
        """Give the name that a variable was bound under."""
        if not isinstance(var, relax.Var):
            return "constant"
        return self._wanted.get(var) or edge.var_name(var)

    def quantised(self, expr: Any) -> Quantised | None:
        """Give the integers that a float variable stands for, if it does exactly."""
        if expr not in self._quantised:
            self._quantised[expr] = self._as_quantised(expr)
        return self._quantised[expr]

    def _as_quantised(self, expr: Any) -> Quantised | None:
        value = self.value(expr)
        operator = edge.op_name(value)
        if operator == "relax.dequantize":
            scale, zero_point = (edge.constant_value(arg) for arg in value.args[1:])
            if scale.size > 1 or zero_point.size > 1:
                return None
            q, zero = value.args[0], int(zero_point.reshape(()))
            held = self.held(expr)
            if held is not None:
                q, zero = self._centred(held, zero)
            return None if q is None else Quantised(q, scale.reshape(()), zero)
        if isinstance(value, tvm.ir.TupleGetItem):
            split = self._split(value)
            if split is None:
                return None
            source, parts = split
            item = tvm.ir.TupleGetItem(parts, value.index)
            return source.of(self.emit(item, self.wanted(expr)))
        if operator is None or not isinstance(value, tvm.ir.Call):
            return None
        if operator == "relax.concat":
            parts = self.value(value.args[0])
            sources = [self.quantised(field) for field in getattr(parts, "fields", ())]
            if not sources or any(s is None or not s.same(sources[0]) for s in sources):
                return None
            joined = relax.op.concat([s.q for s in sources if s], axis=value.attrs.axis)
            return sources[0].of(self.emit(joined, self.wanted(expr)))  # type: ignore[union-attr]
        if operator not in MOVES:
            return None
        inner = self.quantised(value.args[0])
        moved = None if inner is None else MOVES[operator](value, inner)
        if inner is None or moved is None:
            return None
        return inner.of(self.emit(moved, self.wanted(expr)))

    def _centred(self, held: Held, zero_point: int) -> tuple[Any, int]:
        """Give a parameter of 8 bits as int8, or None."""
        integers = held.integers.astype(np.int64)
        if held.integers.dtype == np.uint8:
            integers, zero_point = integers - 128, zero_point - 128
        elif held.integers.dtype != np.int8:
            return None, 0
        elif held.centroids is None:
            return held.var, zero_point
        constant = edge.constant(integers.astype(np.int8))
        return self.emit(constant, self.wanted(held.var)), zero_point

    def _split(self, item: Any) -> tuple[Quantised, Any] | None:
        value = self.value(item.tuple_value)
        if edge.op_name(value) != "relax.split":
            return None
        source = self.quantised(value.args[0])
        if source is None:
            return None
        return source, self.emit(edge.with_args(value, [source.q]), self.wanted(item.tuple_value))

    def held(self, expr: Any) -> Held | None:
        """Give the integer parameter that a float variable dequantises."""
        value = self.value(expr)
        if edge.op_name(value) != "relax.dequantize":
            return None
        parameter = self.value(value.args[0])
        scale, zero_point = (edge.constant_value(arg) for arg in value.args[1:])
        axis = int(value.attrs.axis)
        if isinstance(parameter, edge.Constant):
            return Held(
                value.args[0], edge.constant_value(parameter), None, scale, zero_point, axis
            )
        if edge.op_name(parameter) == CODEBOOK:
            parts = [edge.constant_value(arg) for arg in parameter.args]
            return Held(value.args[0], parts[0], parts[1], scale, zero_point, axis)
        return None

    def number(self, expr: Any) -> Any:
        """Give the array of a float constant."""
        value = self.value(expr)
        return edge.constant_value(value) if isinstance(value, edge.Constant) else None

    def _computed(self, expr: Any) -> bool:
        """Whether a float expression depends on a dequantised activation."""
        if not isinstance(expr, relax.Var):
            return False
        if expr not in self._float:
            value = self._bound.get(expr)
            if edge.op_name(value) == "relax.dequantize":
                self._float[expr] = self.held(expr) is None
            else:
                inner = edge.variables_in(value) if value is not None else ()
                self._float[expr] = any([self._computed(var) for var in inner])
        return self._float[expr]

    # -- bindings ---------------------------------------------------------------------------------

    def rewrite(self, name: str, value: Any) -> Any:
        if not isinstance(value, tvm.ir.Call):
            down = isinstance(value, tvm.ir.TupleGetItem) and value.tuple_value in self._moved_down
            return self._as_uint8(value, name) if down else value
        value = self._builder.normalize(value)
        operator = edge.op_name(value)
        if operator in _QDQ:
            self._check(name, value)
        data = value.args[0] if value.args else None
        if self._is_uint8(data):
            value = edge.with_args(value, [self._moved(data), *value.args[1:]])
        if operator == "relax.quantize":
            return self._quantize(name, value)
        if any(arg in self._moved_down for arg in value.args if isinstance(arg, relax.Var)):
            return self._on_uint8(name, value)
        if operator == "relax.clip" and edge.dtype_of_or_none(value) == "int8":
            return self._clip(value)
        if operator == "relax.concat":
            return self._concat(name, value)
        return value

    def _is_uint8(self, data: Any) -> bool:
        return (
            isinstance(data, relax.Var)
            and edge.dtype_of_or_none(data) == "uint8"
            and not self._is_parameter(data)
        )

    def result(self, value: Any) -> Any:
        return self._moved_up(value) if value in self._moved_down else value

    def _check(self, name: str, call: Any) -> None:
        scale = self.number(call.args[1])
        if scale is None or self.number(call.args[2]) is None:
            raise UnsupportedError(
                f"to-integers: {name} takes its scale or zero point from the network; expected "
                "constants: quantise the network statically."
            )
        if not (np.isfinite(scale) & (scale > 0)).all():
            bad = scale[~(np.isfinite(scale) & (scale > 0))].flat[0]
            raise UnsupportedError(
                f"to-integers: a scale of {name} is {bad:g}; expected a positive, finite number: "
                "quantise the network again with data that is not constant."
            )
        inner = call.args[0]
        quantizes = edge.op_name(call) == "relax.quantize"
        if not quantizes and self._is_parameter(inner):
            return
        dtype = str(call.attrs.out_dtype) if quantizes else edge.dtype_of(inner)
        if dtype not in ("int8", "uint8"):
            raise UnsupportedError(
                f"to-integers: {name} has activations of {dtype}; expected int8 or uint8: quantise "
                "the network to 8 bits."
            )
        if scale.size > 1 and not quantizes:
            raise UnsupportedError(
                f"to-integers: {name} has {scale.size} scales; expected one for an activation: "
                "quantise activations per tensor."
            )

    def _is_parameter(self, expr: Any) -> bool:
        value = self.value(expr)
        return isinstance(value, edge.Constant) or edge.op_name(value) == CODEBOOK

    # -- quantize ---------------------------------------------------------------------------------

    def _quantize(self, name: str, call: Any) -> Any:
        scale, zero_point = (self.number(arg) for arg in call.args[1:])
        down = str(call.attrs.out_dtype) == "uint8"
        if scale.size > 1:
            return call
        zero = int(zero_point.reshape(())) - 128 * down
        target = Target(scale.reshape(()), zero, unsigned=down)
        if self._computed(call.args[0]):
            made = self._integer(name, call.args[0], target)
        else:  # the float border
            made = self._to_int8(call.args[0], target)
        return self._as_uint8(made, name) if down else made

    def _to_int8(self, real: Any, target: Target) -> Any:
        zero_point = edge.constant(np.asarray(target.zero_point, np.int32))
        scale = edge.constant(target.scale)
        return relax.op.quantize(real, scale, zero_point, axis=-1, out_dtype="int8")

    def _integer(self, name: str, whole: Any, target: Target) -> Any:
        form = self._form(name, whole, target)
        if form is not None:
            return form
        if self._fallback == "float":
            return self._to_int8(whole, target)
        expr = whole
        while activation(self.value(expr), target) is not None:
            expr = self.value(expr).args[0]
        value = self.value(expr)
        if isinstance(value, tvm.ir.TupleGetItem):
            value = self.value(value.tuple_value)
        operator = edge.op_name(value) or type(value).__name__
        raise UnsupportedError(
            f"to-integers: {operator} (bound to {self.wanted(expr)}) has no integer form here; "
            "expected one of the operators listed in docs/operators.md, of quantised inputs. "
            "Quantise its inputs and its output, or use fallback float to keep it in float."
        )

    def _form(self, name: str, expr: Any, target: Target) -> Any:
        """Give the integer form of what a quantize takes, or None."""
        outer, outer_target = expr, target
        while True:
            value = self.value(expr)
            inner = activation(value, target)
            if inner is None:
                break
            expr, target = value.args[0], inner
        form = requantized(self, name, expr, target)
        operator = edge.op_name(value) or ""
        if form is None and operator in FORMS:
            form = FORMS[operator](self, self.wanted(expr), value, target)
        if form is None:
            form = table(self, outer, outer_target)
        if form is None and operator in MOVES:
            # To quantise what was moved is to move what was quantised.
            moved = self._form(name, value.args[0], target) if value.args else None
            if moved is not None:
                source = Quantised(self.emit(moved, name), target.scale, target.zero_point)
                form = MOVES[operator](value, source)
        return form

    def _clip(self, call: Any) -> Any:
        """Take a clip of integers into what it clips."""
        low, high = (int(float(bound.value)) for bound in call.args[1:])
        if low <= -128 and high >= 127:
            return call.args[0]
        if not self.used_once(call.args[0]):
            return call
        narrower = narrowed(self, self.value(call.args[0]), low, high)
        return call if narrower is None else narrower

    def _concat(self, name: str, call: Any) -> Any:
        """Join uint8 tensors of which all are int8 now."""
        parts = self.value(call.args[0])
        fields = list(getattr(parts, "fields", ()))
        if not any(field in self._moved_down for field in fields):
            return call
        moved = [field if field in self._moved_down else self._moved(field) for field in fields]
        return self._as_uint8(relax.op.concat(moved, axis=call.attrs.axis), name)

    # -- uint8 ------------------------------------------------------------------------------------

    def _moved(self, var: Any) -> Any:
        """Give the int8 form of a uint8 input, less 128."""
        if var not in self._int8_of:
            wide = relax.op.astype(var, "int32")
            less = relax.op.subtract(self.emit(wide, "wide"), relax.const(128, "int32"))
            down = relax.op.astype(self.emit(less, "centred"), "int8")
            self._int8_of[var] = self.emit(down, f"{edge.var_name(var)}_int8")
            self._moved_down.add(self._int8_of[var])
        return self._int8_of[var]

    def _moved_up(self, var: Any) -> Any:
        wide = self.emit(relax.op.astype(var, "int32"), "wide")
        more = self.emit(relax.op.add(wide, relax.const(128, "int32")), "uncentred")
        return self.emit(relax.op.astype(more, "uint8"), "uint8")

    def _as_uint8(self, value: Any, name: str) -> Any:
        var = self.emit(value, name)
        self._moved_down.add(var)
        return var

    def _on_uint8(self, name: str, call: Any) -> Any:
        """Rewrite an operator whose uint8 input is int8 now."""
        operator = edge.op_name(call) or ""
        if operator == "relax.dequantize":
            zero_point = self.number(call.args[2]).astype(np.int32) - 128
            args = [*call.args[:2], edge.constant(zero_point)]
            return edge.with_args(call, args)
        if operator == "relax.clip":
            low, high = (float(bound.value) - 128 for bound in call.args[1:])
            clip = relax.op.clip(call.args[0], low, high)
            return self._as_uint8(self._clip(self._builder.normalize(clip)), name)
        if operator == "relax.nn.pad" and str(call.attrs.pad_mode) == "constant":
            a = call.attrs
            padded = relax.op.nn.pad(call.args[0], list(a.pad_width), pad_value=a.pad_value - 128)
            return self._as_uint8(padded, name)
        if operator in MOVES and operator != "relax.nn.relu":  # which knows what stands for 0
            return self._as_uint8(call, name)
        args = [self._moved_up(arg) if arg in self._moved_down else arg for arg in call.args]
        return edge.with_args(call, args)


class _HeldFloats(ir.Rewriter):
    """Makes floats of the integer parameters that only float operators are left to use."""

    def rewrite(self, name: str, value: Any) -> Any:
        if edge.op_name(value) != "relax.dequantize":
            return value
        scale, zero_point = (edge.constant_value(arg) for arg in value.args[1:])
        held = self.value(value.args[0])
        real = qdq.real_parameter(held, scale, zero_point, int(value.attrs.axis))
        if real is None:
            return value
        # The float takes the name of the integers, which fall away.
        return self.emit(real, self._wanted.get(value.args[0], name))
