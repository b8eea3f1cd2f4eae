"""``fixed-point``: round weights to whole multiples of a step, in a few bits.

Before::

    fc_weight = const                                        # float32
    y = R.matmul(x, fc_weight)

After ``FixedPoint(bits=4)``::

    fc_weight = tvm_compress.codebook(codes, centroids)      # centroids: step * (0 .. 7, -8 .. -1)
    y = R.matmul(x, fc_weight)

After ``FixedPoint(bits=4, scale="channel")``::

    fc_weight = tvm_compress.codebook(codes, centroids)      # centroids: 0 .. 7, -8 .. -1
    y_sum = R.matmul(x, fc_weight)
    y = R.multiply(y_sum, fc_weight_scale)                   # a step for each output channel

A step for each channel stands behind the sum, where it is the same by algebra, takes one product an
output, and leaves one codebook a weight: every layout, kernel and target for shared weights takes a
weight in fixed point, and sees that the codes are the numbers in two's complement.

Source: Courbariaux et al., Training Deep Neural Networks with Low Precision Multiplications (arXiv
1412.7024), section 5; scales by channel: Krishnamoorthi, Quantizing Deep Convolutional Networks
(arXiv 1806.08342), section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, fixed_point, ir
from tvm_compress.errors import OptionError, PassError
from tvm_compress.ops import codebook
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import check_weight, option_by_rule

__all__ = ["FixedPoint"]


@dataclass(frozen=True)
class FixedPoint(Pass):
    """Round the weights of every convolution and product to fixed point.

    The step is the one of the least squared error (:func:`tvm_compress.fixed_point.best_steps`).
    Zeros stay zero. Fine-tuning behind this pass trains a weight behind the rounding, with the
    straight-through gradient; steps and zeros stay.

    Args:
        bits: bits of a weight, 2..8.
        scale: ``tensor`` has one step a weight tensor, ``channel`` one for each output channel.
        power_of_two: whether steps are powers of two.
        biases: bits of the biases, 2..8, each bias tensor with a step of its own; they stay dense
            constants. None leaves them as they are.
        layers: bits by pattern of the weight's name, in place of ``bits``; 0 leaves a weight dense.
        first: bits of the weights that meet an input of the network first; 0 leaves them dense.
        last: the same for the weights whose results reach an output through no other weight.

    Raises:
        OptionError: a number outside its range, or a pattern that fits no weight.
        PassError: a weight is shared already, is not float32 or is not finite; with ``channel``, a
            weight is used twice or as the left side of a product.
    """

    name: ClassVar[str] = "fixed-point"

    bits: int = 8
    scale: Literal["tensor", "channel"] = "tensor"
    power_of_two: bool = False
    biases: int | None = None
    layers: Mapping[str, int] = field(default_factory=dict)
    first: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        for what, value in (("weights", self.bits), ("biases", self.biases)):
            if value is not None and value not in range(2, 9):
                raise OptionError(
                    f"fixed-point: the {what} have {value} bits; expected a whole number from 2 "
                    "to 8."
                )
        for value in (*self.layers.values(), self.first, self.last):
            if value is not None and value not in (0, *range(2, 9)):
                raise OptionError(
                    f"fixed-point: a layer's weights have {value} bits; expected a whole number "
                    "from 2 to 8, or 0 to leave them dense."
                )
        if self.scale not in ("tensor", "channel"):
            raise OptionError(
                f"fixed-point: the scale is {self.scale}; expected tensor or channel."
            )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with weights in fixed point."""
        mod = Canonicalize().apply(mod)
        own = option_by_rule(self.name, mod, self.layers, self.first, self.last)
        new: dict[str, Any] = {}
        steps: dict[str, NDArray[np.float32]] = {}
        for name, weight in ir.weights(mod).items():
            bits = own.get(name, self.bits)
            if bits == 0:
                continue
            value = check_weight(self.name, weight, float32=True)
            if self.scale == "tensor":
                step = float(self._steps(value.reshape(1, -1), bits)[0])
                codes, centroids = self._codes(value, bits, step), fixed_point.grid(bits, step)
            else:
                rows = np.moveaxis(value, weight.output_axis, -1)
                found = self._steps(rows.reshape(-1, rows.shape[-1]).T, bits)
                places = [1] * value.ndim
                places[weight.output_axis] = -1
                codes = self._codes(value, bits, found.reshape(places))
                centroids, steps[name] = fixed_point.grid(bits), found
            new[name] = codebook(edge.constant(codes), edge.constant(centroids))
        if self.biases is not None:
            for name in sorted(ir.biases(mod)):
                value = ir.parameters(mod)[name].value
                step = float(self._steps(value.reshape(1, -1), self.biases)[0])
                codes = self._codes(value, self.biases, step)
                new[name] = edge.constant(fixed_point.grid(self.biases, step)[codes])
        return _Scaled(mod, new, steps).run()

    def _steps(self, rows: NDArray[Any], bits: int) -> NDArray[np.float32]:
        return fixed_point.best_steps(rows, bits, power_of_two=self.power_of_two)

    def _codes(self, value: NDArray[Any], bits: int, steps: Any) -> NDArray[np.uint8]:
        return fixed_point.encode(value, bits, np.asarray(steps, np.float32))


class _Scaled(ir.Rewriter):
    """Rebinds parameters, and multiplies the sums of those that have steps by them."""

    def __init__(
        self, mod: tvm.IRModule, new: Mapping[str, Any], steps: Mapping[str, NDArray[np.float32]]
    ) -> None:
        super().__init__(mod)
        self._replaced = new
        self._steps = steps
        self._weights = ir.weights(mod)
        uses = edge.use_counts(ir.main_function(mod))
        for var, count in uses.items():
            name = edge.var_name(var)
            if name in steps and count > 1:
                raise PassError(
                    f"fixed-point: the weight {name} is used {count} times; expected one use for a "
                    'step for each channel: give scale="tensor", or 0 bits for it in layers.'
                )
        for binding in ir.bindings(ir.main_function(mod)):
            if edge.op_name(binding.value) == "relax.matmul":
                left = binding.value.args[0]
                if isinstance(left, relax.Var) and edge.var_name(left) in steps:
                    raise PassError(
                        f"fixed-point: the weight {edge.var_name(left)} is the left side of a "
                        "product; expected the right side for a step for each channel: give "
                        'scale="tensor", or 0 bits for it in layers.'
                    )
        self._of_call = {
            edge.var_name(binding.var): edge.var_name(arg)
            for binding in ir.bindings(ir.main_function(mod))
            if isinstance(binding.value, tvm.ir.Call)
            for arg in binding.value.args
            if isinstance(arg, relax.Var) and edge.var_name(arg) in steps
        }

    def rewrite(self, name: str, value: Any) -> Any:
        if name in self._replaced:
            return self._replaced[name]
        weight = self._of_call.get(name)
        if weight is None:
            return value
        total = self.emit(value, f"{name}_sum")
        rank = len(edge.static_shape(total) or ())
        axis = rank - 1
        if (edge.op_name(value) or "").startswith("relax.nn.conv"):
            axis = str(value.attrs.out_layout or value.attrs.data_layout).index("C")
        steps = self._steps[weight]
        # A transposed convolution in groups lists the output channels of one group alone.
        steps = np.tile(steps, (edge.static_shape(total) or ())[axis] // steps.size)
        steps = steps.reshape([-1] + [1] * (rank - 1 - axis))
        return relax.op.multiply(total, self.emit(edge.constant(steps), f"{weight}_scale"))
