"""Put quantize and dequantize into a float module, as a plan says: the QDQ form.

Each group of a product, its bias and its rectifier is rounded once, at its end. A weight becomes
int8 with a scale for each output channel, a bias int32 of the scale of input times weight.

Source: Jacob et al. (arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, fixed_point, ir, qdq
from tvm_compress.ops import codebook
from tvm_compress.quantization import (
    Affine,
    affine,
    least_scale,
    quantize_bias,
    quantize_weight,
    weight_scales,
)
from tvm_compress.quantization_plan import Plan, Product

__all__ = ["quantised"]


def quantised(
    mod: tvm.IRModule,
    plan: Plan,
    how: Mapping[str, Affine],
    *,
    weights: Literal["max", "mse"],
    biases: bool,
) -> tvm.IRModule:
    """Give the QDQ form of a module.

    Args:
        mod: a canonical float module.
        plan: what is rounded, and what shares a scale.
        how: scale and zero point of each tensor that is rounded, by its name.
        weights: ``ranges`` of :func:`tvm_compress.quantization.weight_scales`.
        biases: whether products without a bias get one of zeros, to be corrected.
    """
    return _Quantizer(mod, plan, how, weights, biases).run()


class _Quantizer(ir.Rewriter):
    """Puts quantize and dequantize behind each group, and dequantize behind each parameter."""

    def __init__(
        self,
        mod: tvm.IRModule,
        plan: Plan,
        how: Mapping[str, Affine],
        weight_ranges: Literal["max", "mse"],
        biases: bool,
    ) -> None:
        super().__init__(mod)
        self._plan, self._how = plan, how
        self._named = ir.parameters(mod)
        self._weights = ir.weights(mod)
        self._ranges: Literal["max", "mse"] = weight_ranges
        self._all_biases = biases
        self._real: dict[Any, Any] = {}  # an input: what its integers stand for
        self._held: dict[str, Any] = {}  # a weight or constant: likewise
        self._steps: dict[str, NDArray[np.float32]] = {}  # the scales of a weight's channels
        self._bias: dict[str, NDArray[Any]] = {}  # of each product that has one
        for binding in ir.bindings(ir.main_function(mod)):
            product = plan.biases.get(edge.var_name(binding.var))
            if product is not None and product.end != product.name:
                self._bias[product.name] = self._array(binding.value.args[1])

    def _array(self, expr: Any) -> NDArray[Any]:
        if isinstance(expr, relax.Var):
            return self._named[edge.var_name(expr)].value
        return edge.constant_value(expr)

    def rewrite(self, name: str, value: Any) -> Any:
        if name in self._named:
            return value
        value = self._from_inputs(value)
        product, summed = self._plan.products.get(name), self._plan.biases.get(name)
        if product is not None:
            value = edge.with_args(value, [value.args[0], self._weight(product)])
        if summed is not None and (summed.end != summed.name or self._all_biases):
            value = self._with_bias(value, summed)
        for place in self._plan.constants.get(name, ()):
            args = list(value.args)
            args[place] = self._small(args[place])
            value = edge.with_args(value, args)
        if edge.op_name(value) == "relax.concat" and name in self._plan.rounded:
            value = self._alike(value, self._how[name])
        if isinstance(value, relax.Var) or name not in self._plan.rounded:
            return value
        return self._rounded(value, name)

    def _rounded(self, value: Any, name: str) -> Any:
        real = self.emit(value, name)
        if not edge.is_tensor(real):  # the parts of a split are rounded one by one
            return real
        how = self._how[name]
        whole = self.emit(qdq.quantize(real, how), f"{name}_quantized")
        return self.emit(qdq.dequantize(whole, how), f"{name}_dequantized")

    def _from_inputs(self, value: Any) -> Any:
        inputs = {self._new[p]: edge.var_name(p) for p in ir.main_function(self.mod).params}
        for var in list(edge.variables_in(value)):
            name = inputs.get(var)
            if name in self._plan.rounded and var not in self._real:
                how = self._how[name]
                whole = self.emit(qdq.quantize(var, how), f"{name}_quantized")
                self._real[var] = self.emit(qdq.dequantize(whole, how), f"{name}_dequantized")
        return edge.substitute(value, self._real)

    # -- parameters -------------------------------------------------------------------------------

    def _channel_scales(self, weight: ir.Weight) -> NDArray[np.float32]:
        """Give one scale, or one for each output channel."""
        parameter, axis = weight.parameter, weight.output_axis
        if parameter.centroids is None:
            rows = np.moveaxis(parameter.value, axis, 0).reshape(parameter.shape[axis], -1)
            scales = weight_scales(rows, self._ranges)
        else:
            # One codebook and scale for the weight, or one for each group of output channels.
            groups = parameter.centroids.shape[:-1]
            along = groups[axis] if groups and parameter.parts == groups[axis] else 1
            parts = parameter.centroids.reshape(along, -1)
            steps = [fixed_point.step_of(part) for part in parts]
            if None not in steps:
                scales = np.asarray(steps, np.float32)  # whole multiples stay exact
                return np.repeat(scales, parameter.shape[axis] // along if along > 1 else 1)
            scales = np.repeat(weight_scales(parts), parameter.shape[axis] // along)
            scales = scales if along > 1 else scales[:1]
        least = np.zeros(1)
        for product in self._plan.products.values():
            bias = self._bias.get(product.name)
            if product.weight == weight.name and bias is not None:
                needed = least_scale(bias.ravel(), self._how[product.data].scale)
                # Of a transposed convolution in groups the channels of each group share scales.
                fits = needed.size % scales.size == 0 and scales.size > 1
                needed = needed.reshape(-1, scales.size) if fits else needed[:, None]
                least = np.maximum(least, needed.max(axis=0))
        return np.maximum(scales, least).astype(np.float32)

    def _weight(self, product: Product) -> Any:
        name = product.weight
        if name in self._held:
            return self._held[name]
        weight = self._weights[name]
        parameter, axis = weight.parameter, weight.output_axis
        scales = self._steps[name] = self._channel_scales(weight)
        if parameter.codes is None:
            places = [1] * len(parameter.shape)
            places[axis] = -1
            whole = edge.constant(quantize_weight(parameter.value, scales.reshape(places)))
        else:
            assert parameter.centroids is not None
            table = parameter.centroids
            of_part = scales
            if scales.size > 1:  # those of a group's channels are the same
                groups = table.shape[:-1]
                of_part = scales.reshape(groups[axis], -1)[:, 0].reshape(*groups, 1)
            numbers = quantize_weight(table, of_part)
            parts = np.rint(table / of_part).reshape(-1, table.shape[-1])
            if fixed_point.step_of(parts[0]) is None:  # the -128 of a grid stays
                parts = numbers.reshape(parts.shape)
            if (parts == parts[0]).all():
                numbers = parts[0].astype(np.int8)  # all channels have the same whole numbers
            whole = codebook(edge.constant(parameter.codes), edge.constant(numbers))
        held = qdq.dequantize_channels(self.emit(whole, name), scales, axis)
        self._held[name] = self.emit(held, f"{name}_dequantized")
        return self._held[name]

    def _with_bias(self, value: Any, product: Product) -> Any:
        """Add the bias as int32: ``value`` is the old sum, or a product without a bias."""
        if product.end == product.name:
            total = self.emit(value, f"{product.name}_sum")
        else:
            total = value.args[0]
        shape = edge.static_shape(total) or ()
        count, rank = shape[product.axis], len(shape)
        bias = self._bias.get(product.name, np.zeros(1, np.float32))
        name = f"{product.name}_bias"
        if product.end != product.name and isinstance(value.args[1], relax.Var):
            name = edge.var_name(value.args[1])
        if bias.size != count or bias.ndim == 0:
            bias = np.broadcast_to(bias.ravel(), (count,))
            bias = bias.reshape([-1] + [1] * (rank - 1 - product.axis))
        axis = bias.ndim - (rank - product.axis)
        steps = self._steps[product.weight].astype(np.float64)
        scales = np.tile(steps, count // steps.size) if steps.size > 1 else steps
        scales = (scales * self._how[product.data].scale).astype(np.float32)
        places = [1] * bias.ndim
        places[axis] = -1
        whole = self.emit(edge.constant(quantize_bias(bias, scales.reshape(places))), name)
        held = qdq.dequantize_channels(whole, scales, axis)
        return relax.op.add(total, self.emit(held, f"{name}_dequantized"))

    def _small(self, expr: Any) -> Any:
        """Give the dequantize of a constant operand as int8 with one scale."""
        name = edge.var_name(expr) if isinstance(expr, relax.Var) else ""
        if name in self._held:
            return self._held[name]
        array = edge.constant_value(self.value(expr))
        how = affine(float(array.min(initial=0.0)), float(array.max(initial=0.0)))
        whole = edge.constant(how.quantize(array))
        if name:
            whole = self.emit(whole, name)
        real = self.emit(qdq.dequantize(whole, how), f"{name or 'constant'}_dequantized")
        if name:
            self._held[name] = real
        return real

    def _alike(self, concat: Any, how: Affine) -> Any:
        """Round those parts again whose scale is their operator's own."""
        parts = []
        for part in concat.args[0].fields:
            bound = self.value(part)
            same = edge.op_name(bound) == "relax.dequantize" and qdq.affine_of(bound) == how
            parts.append(part if same else self._again(part, how))
        return edge.with_args(concat, [tvm.ir.Tuple(parts)])

    def _again(self, part: Any, how: Affine) -> Any:
        name = f"{edge.var_name(part).removesuffix('_dequantized')}_rescaled"
        whole = self.emit(qdq.quantize(part, how), f"{name}_quantized")
        return self.emit(qdq.dequantize(whole, how), f"{name}_dequantized")
