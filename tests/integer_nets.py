"""Small networks in the integer form, for the tests of ranges and of removed channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.relax import op

import tvm_compress as tc
from tvm_compress import edge
from tvm_compress.ops import codebook, lookup, quantize_multiplier, requantize

Array = NDArray[Any]


class IntegerNet:
    """Builds ``main(x)`` layer by layer; ``x`` is int8 unless told otherwise."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "int8") -> None:
        self.x = relax.Var("x", relax.TensorType(shape, dtype))
        self._bindings: list[relax.VarBinding] = []
        self._builder = relax.BlockBuilder()

    def __call__(self, value: Any, name: str) -> Any:
        """Bind a value, and the calls within it."""
        if isinstance(value, tvm.ir.Call):
            args = [
                self(arg, f"{name}_inner") if isinstance(arg, tvm.ir.Call) else arg
                for arg in value.args
            ]
            value = edge.with_args(value, args)
        value = self._builder.normalize(value)
        var = relax.DataflowVar(name, value.ty)
        self._bindings.append(relax.VarBinding(var, value))
        return var

    def parameter(self, value: Array | tuple[Array, Array], name: str) -> Any:
        """Bind an array, or codes and centroids."""
        if isinstance(value, tuple):
            return self(codebook(*map(edge.constant, value)), name)
        return self(edge.constant(value), name)

    def padded(self, x: Any, by: int, value: int, name: str) -> Any:
        """Pad height and width of NHWC."""
        widths = [0, 0, by, by, by, by, 0, 0]
        return self(op.nn.pad(x, widths, pad_value=float(value)), f"{name}_pad") if by else x

    def layer(
        self,
        x: Any,
        weight: Array | tuple[Array, Array],
        bias: Array,
        name: str,
        *,
        factor: Array | float = 1 / 64,
        zero_point: int = -128,
        low: int = -128,
        rounding: str = "double",
        groups: int = 1,
    ) -> Any:
        """A convolution (NHWC, OIHW) or a product, its bias and its requantization."""
        w = self.parameter(weight, f"{name}_weight")
        if len(edge.static_shape(w) or ()) == 2:
            acc = op.matmul(x, w, out_dtype="int32")
        else:
            acc = op.nn.conv2d(
                x, w, data_layout="NHWC", kernel_layout="OIHW", groups=groups, out_dtype="int32"
            )
        acc = self(acc, name)
        acc = self(
            op.add(acc, self.parameter(bias.astype(np.int32), f"{name}_bias")), f"{name}_sum"
        )
        return self.steps(
            acc, f"{name}_q", factor, zero_point=zero_point, low=low, rounding=rounding
        )

    def steps(self, acc: Any, name: str, factor: Array | float, **options: Any) -> Any:
        """Requantize int32."""
        parts = quantize_multiplier(np.asarray(factor), options.get("rounding", "single"))
        return self(requantize(acc, *parts, **options), name)

    def residual(self, x: Any, y: Any, name: str) -> Any:
        """Add two int8 tensors by stock operators around requantize."""
        sides = []
        for side, zero in ((x, -128), (y, 3)):
            wide = self(op.astype(side, "int32"), f"{name}_wide")
            wide = self(op.subtract(wide, relax.const(zero, "int32")), f"{name}_centred")
            wide = self(op.multiply(wide, relax.const(1 << 10, "int32")), f"{name}_up")
            limits = {"low": -(1 << 29), "high": 1 << 29, "out_dtype": "int32"}
            sides.append(self.steps(wide, f"{name}_side", 0.7, rounding="double", **limits))
        total = self(op.add(*sides), f"{name}_total")
        return self.steps(total, name, 1 / 1500, zero_point=-128, rounding="double")

    def mean(self, x: Any, name: str) -> Any:
        """The mean over height and width of NHWC, ties away from zero; then (N, C)."""
        n, height, width, channels = edge.static_shape(x) or ()
        count = height * width
        acc = self(op.sum(self(op.astype(x, "int32"), f"{name}_wide"), [1, 2], True), f"{name}_all")
        sign = self(op.right_shift(acc, relax.const(31, "int32")), f"{name}_sign")
        turn = self(op.multiply(sign, relax.const(count // 2 * 2, "int32")), f"{name}_turn")
        acc = self(op.add(acc, relax.const(count // 2, "int32")), f"{name}_moved")
        acc = self(
            op.divide(self(op.add(acc, turn), f"{name}_nudged"), relax.const(count, "int32")),
            f"{name}_mean",
        )
        clipped = self(op.clip(acc, -128.0, 127.0), f"{name}_clipped")
        return self(
            op.reshape(self(op.astype(clipped, "int8"), name), [n, channels]), f"{name}_flat"
        )

    def table(self, x: Any, table: Array, name: str) -> Any:
        """Look each element up."""
        return self(lookup(x, table), name)

    def module(self, output: Any) -> tvm.IRModule:
        """Give the canonical module of this output."""
        body = relax.SeqExpr([relax.DataflowBlock(self._bindings)], output)
        function = relax.Function([self.x], relax.BlockBuilder().normalize(body))
        return tc.load(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))


def planted(
    rng: np.random.Generator, outputs: int, inputs: int, kernel: int, zero: int = -128
) -> tuple[Array, Array]:
    """A weight (O, I, k, k) and a bias, with filters that are dead, saturated or unread.

    ``zero`` is the zero point of the input, folded into the bias.
    """
    weight = rng.integers(-128, 128, (outputs, inputs, kernel, kernel)).astype(np.int8)
    kind = rng.random(outputs)
    weight[kind < 0.2] = 0
    weight[:, rng.random(inputs) < 0.2] = 0
    bias = rng.integers(-5000, 5000, outputs) - zero * weight.sum((1, 2, 3), dtype=np.int64)
    saturated = kind > 0.8
    bias[saturated] = rng.choice([-(1 << 30), 1 << 29, -(10**6), 10**6], int(saturated.sum()))
    return weight, bias


def random_net(
    seed: int, *, padding: int = 0, pad_value: int = -128, **shape: bool
) -> tvm.IRModule:
    """Convolution, depthwise, residual, concatenation, pooling and product, with planted channels.

    ``shape`` switches parts: ``depthwise``, ``residual``, ``concat``, ``table``, ``shared``.
    """
    rng = np.random.default_rng(seed)
    net = IntegerNet((1, 5, 5, 3))
    rounding = ("single", "double")[seed % 2]

    def factors(count: int) -> Array:
        return 2.0 ** rng.uniform(-10, -7, count)

    def convolve(x: Any, outputs: int, kernel: int, name: str) -> Any:
        zero = 0 if name == "first" else -128
        weight, bias = planted(rng, outputs, (edge.static_shape(x) or ())[3], kernel, zero)
        given: Any = weight
        if shape.get("shared"):
            given = weight.view(np.uint8) % 4, np.array([0, -128, 5, 127], np.int8)
        low = int(rng.choice([-128, -100]))
        return net.layer(x, given, bias, name, factor=factors(outputs), rounding=rounding, low=low)

    y = convolve(net.x, 6, 1, "first")
    if shape.get("depthwise"):
        weight, bias = planted(rng, 12, 1, 3)
        around = net.padded(y, padding, pad_value, "dw")
        y = net.layer(around, weight, bias, "dw", factor=factors(12), groups=6, rounding=rounding)
    if shape.get("table"):
        y = net.table(y, rng.integers(-128, 128, 256).astype(np.int8), "table")
    z = convolve(net.padded(y, 1, pad_value, "second"), 5, 3, "second")
    channels = int((edge.static_shape(y) or ())[3])
    if shape.get("residual"):
        z = net.residual(z, convolve(y, 5, 1, "side"), "residual")
    if shape.get("concat"):
        z = net(op.concat([z, y], axis=3), "joined")
        assert edge.static_shape(z) is None or (edge.static_shape(z) or ())[3] == 5 + channels
    z = net(op.nn.max_pool2d(z, (2, 2), (1, 1), layout="NHWC"), "pooled")
    z = net.mean(z, "mean")
    inputs = int((edge.static_shape(z) or ())[1])
    weight = rng.integers(-128, 128, (inputs, 4)).astype(np.int8)
    weight[rng.random(inputs) < 0.2] = 0
    bias = rng.integers(-1000, 1000, 4) + 128 * weight.sum(0, dtype=np.int64)
    z = net.layer(z, weight, bias, "last", factor=2.0**-8, zero_point=5)
    return net.module(z)


def extremes(seed: int, shape: tuple[int, ...], count: int) -> Array:
    """Inputs of int8: random ones, and ones of nothing but the two ends."""
    rng = np.random.default_rng(seed)
    anything = rng.integers(-128, 128, (count, *shape))
    ends = rng.choice([-128, 127], (count, *shape))
    return np.concatenate([anything, ends]).astype(np.int8)
