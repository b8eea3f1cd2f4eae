"""``dequantize``: a float network of a quantised one, to compress it and quantise it again.

Before, the QDQ form of an int8 model::

    x_dequantized = R.dequantize(x, s_x, z_x)                    # x is int8
    conv_weight_dequantized = R.dequantize(conv_weight, s_w, 0)  # int8
    conv = R.nn.conv2d(x_dequantized, conv_weight_dequantized)
    conv_quantized = R.quantize(conv, s, -128)
    y = R.nn.softmax(R.dequantize(conv_quantized, s, -128))

After::

    conv = R.nn.conv2d(x, conv_weight)                           # x and conv_weight are float32
    y = R.nn.softmax(R.nn.relu(conv))

An int8 model tells its rectifiers by where its integers end alone, hence the ``relu`` above: what
rounds to integers that begin at zero is cut there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from tvm_compress import edge, ir, qdq
from tvm_compress.errors import PassError
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.quantization import Affine

__all__ = ["Dequantize"]

_SIX = 6.0  # the bound of the rectifier that networks for integers are trained with
_FROM_ZERO = ("relax.nn.relu", "relax.nn.softmax", "relax.sigmoid")
# What these give is not negative where what they take is not.
_KEEP_SIGN = (
    "relax.mean",
    "relax.reshape",
    "relax.permute_dims",
    "relax.strided_slice",
    *(f"relax.nn.{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)),
    *(f"relax.nn.adaptive_avg_pool{n}d" for n in (1, 2, 3)),
)


@dataclass(frozen=True)
class Dequantize(Pass):
    """Make a float32 network of one in the QDQ form (int8 TensorFlow Lite, ONNX QDQ).

    Integer weights and biases become float32 parameters of the same name, inputs and outputs
    float32, and what rounds activations disappears; where their integers begin at zero a ``relu``
    stays, and where they end at 6 too, a ``clip``. Shared weights stay shared where one scale
    serves all their centroids. A float network stays as it is.

    Raises:
        PassError: the module holds integers that are not of the QDQ form.
    """

    name: ClassVar[str] = "dequantize"

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the float network."""
        mod = Canonicalize().apply(mod)
        if not qdq.is_quantised(mod):
            return mod
        mod = _Dequantizer(qdq.with_reals(mod)).run()
        function = ir.main_function(mod)
        if function.attrs and "tvm_compress.rounding" in function.attrs:
            function = function.without_attr("tvm_compress.rounding")
            mod.update_func(mod.get_global_var("main"), function)
        return Canonicalize().apply(mod)


class _Dequantizer(ir.Rewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._how: dict[Any, Affine | None] = {}  # a float that stood for integers: their scale
        self._floats: dict[Any, Any] = {}  # an integer parameter: the float one

    def rewrite(self, name: str, value: Any) -> Any:
        operator = edge.op_name(value)
        source = value.args[0] if operator and value.args else None
        if operator == "relax.quantize":
            real = self._cut(source, qdq.affine_of(value), name)
            self._how[real] = qdq.affine_of(value)
            return real
        if operator == "relax.dequantize":
            return source if source in self._how else self._parameter(value, name)
        if source in self._how:
            how = self._how[source]
            if operator == "relax.clip":
                real = source if how is None else self._clipped(value, how, name)
            elif operator == "relax.astype":  # wider integers, for sums
                real = source
            else:  # a move: the same of what the integers stand for
                real = self.emit(value, name)
            self._how[real] = how
            return real
        return value

    def _parameter(self, call: Any, name: str) -> Any:
        scale, zero_point = (edge.constant_value(self.value(arg)) for arg in call.args[1:])
        held = self.value(call.args[0])
        real = qdq.real_parameter(held, scale, zero_point, int(call.attrs.axis))
        if real is None:
            raise PassError(
                f"dequantize: {name} is made of integers that no quantize gives; expected the QDQ "
                "form: run dequantize before to-integers."
            )
        source = call.args[0]
        if not isinstance(source, relax.Var):
            return real
        # The float parameter takes the name of the integer one, which nothing uses any more.
        return self.emit(real, self._wanted[source])

    def _cut(self, x: Any, how: Affine | None, name: str) -> Any:
        """Give ``x`` with the rectifier that rounding to these integers is."""
        if how is None or x not in self._bound:  # an input is what it is given
            return x
        info = np.iinfo(how.dtype)
        return self._bounded(x, how, info.min, info.max, name)

    def _clipped(self, call: Any, how: Affine, name: str) -> Any:
        info = np.iinfo(how.dtype)
        low, high = (float(bound.value) for bound in call.args[1:])
        low, high = max(low, info.min), min(high, info.max)
        real = self._bounded(call.args[0], how, low, high, name)
        top = (high - how.zero_point) * how.scale
        if high < info.max and abs(top - _SIX) >= how.scale / 16:
            bottom = (low - how.zero_point) * how.scale if low > info.min else -np.inf
            real = self.emit(relax.op.clip(real, float(bottom), float(top)), name)
        return real

    def _bounded(self, x: Any, how: Affine, low: float, high: float, name: str) -> Any:
        if low != how.zero_point:
            return x
        six = abs((high - how.zero_point) * how.scale - _SIX) < how.scale / 16
        source = self.value(x)
        while edge.op_name(source) in _KEEP_SIGN:
            source = self.value(source.args[0])
        operator = edge.op_name(source)
        if operator == "relax.clip" and float(source.args[1].value) >= 0:
            return x
        if six:
            return self.emit(relax.op.clip(x, 0.0, _SIX), name)
        if operator in _FROM_ZERO:
            return x
        return self.emit(relax.op.nn.relu(x), name)
