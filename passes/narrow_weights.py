"""``narrow-weights``: fewer bits for the output channels of an int8 network that bear it best.

Before::

    conv_weight = const                                        # int8 (64, 64, 3, 3)
    w = R.dequantize(conv_weight, scales)                      # one scale a channel

After ``NarrowWeights(share=0.5).on(inputs)``::

    conv_weight = const                                        # half of the channels in -32..31
    w = R.dequantize(conv_weight, scales)                      # with larger scales

Everything else stays as it was to the bit: activations, their scales, the roundings, the other
channels. Kernels that find such channels multiply several of them by one halfword: with the DSP
extension two channels of 5 bits and one of 6, or four of 4. Sources: :mod:`tvm_compress.narrowing`
and :mod:`tvm_compress.training.output_grams`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir, narrowing, qdq
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes.base import InputsPass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import option_by_layer

if TYPE_CHECKING:
    from tvm_compress.training.output_grams import Rows

__all__ = ["NarrowWeights"]

_Array = NDArray[Any]

# The bits of the channels that share a halfword, by the option.
_HALFWORDS = {4: (4, 4, 4, 4), 5: (5, 5, 6)}
# A layer whose Gram matrices take more memory is left as it is.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class NarrowWeights(InputsPass):
    """Narrow the weights of the output channels that move the network's outputs least.

    Of each layer the channels are ranked by what 5 (4) bits would add to the error of the network's
    outputs, to second order; the first ``share`` of them get levels and a step of their own, and
    their bias takes up what is left over. Convolutions that are not grouped and products with a
    matrix are looked at, where the weight is of int8 with zero point 0 and not shared.

    Args:
        share: of the output channels of a layer, 0..1; whole halfwords are made of them.
        bits: 5, where of three channels the one that needs it most has 6, or 4.
        layers: ``share`` by pattern of the weight's name (``conv2d_8*``); the first pattern that
            fits counts; 0 leaves the weight as it is.
        small: layers with less than this share of all weights stay as they are.
        seed: of the random answers by which the network is judged.

    Raises:
        OptionError: an option outside its range, or a pattern that fits no weight.
        PassError: there are no inputs, or the network is not quantised.
        MissingToolError: torch is not installed.
    """

    name: ClassVar[str] = "narrow-weights"
    needs_inputs: ClassVar[bool] = True

    share: float = 0.5
    bits: int = 5
    layers: Mapping[str, float] = field(default_factory=dict)
    small: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        for share in (self.share, self.small, *self.layers.values()):
            if not 0.0 <= share <= 1.0:
                raise OptionError(
                    f"narrow-weights: a share is {share}; expected a number from 0 to 1."
                )
        if self.bits not in _HALFWORDS:
            raise OptionError(
                f"narrow-weights: the channels have {self.bits} bits; expected 4 or 5."
            )

    def rewritten(self, mod: tvm.IRModule, inputs: Any) -> tvm.IRModule:
        """Give the module with narrow channels."""
        if inputs is None:
            raise PassError(
                "narrow-weights: there are no inputs; expected some thousand samples without "
                "labels: give compress() calibrate=x, or apply NarrowWeights(...).on(x)."
            )
        mod = Canonicalize().apply(mod)
        if not qdq.is_quantised(mod):
            raise PassError(
                "narrow-weights: the network is not quantised; expected int8 weights: run quantize "
                "first."
            )
        shares = self._shares(mod)
        if not shares:
            return mod
        from tvm_compress.training.output_grams import output_grams

        grams = output_grams(mod, inputs, [layer for layer, _ in shares.values()], seed=self.seed)
        integers, named = qdq.integer_parameters(mod), ir.parameters(mod)
        new: dict[str, _Array] = {}
        scales: dict[str, _Array] = {}
        for layer, share in shares.values():
            weight, bias = layer.weight, layer.bias
            value = np.moveaxis(named[weight].value, layer.axis, 0)
            scale = np.broadcast_to(integers[weight].scale.ravel(), len(value)).copy()
            levels = value.reshape(len(value), -1).copy()
            chosen = self._narrow(levels * scale[:, None], grams[weight], share)
            if not chosen:
                continue
            factor = np.ones(len(value))
            shift = np.zeros(len(value))
            for row, (narrowed, at) in chosen.items():
                levels[row] = narrowed.levels[at]
                factor[row] = narrowed.steps[at] / scale[row]
                shift[row] = narrowed.shift[at]
            laid = levels.reshape(value.shape)
            new[weight] = np.ascontiguousarray(np.moveaxis(laid, 0, layer.axis)).astype(np.int8)
            scales[weight] = (scale * factor).astype(np.float32)
            if bias is not None:
                held = named[bias].value
                before = integers[bias].scale.ravel()
                real = held.ravel() * before + shift
                after = np.broadcast_to(before, len(value)) * factor
                # Channels that stay keep their bias to the bit.
                steps = np.where(factor == 1, held.ravel(), np.rint(real / after))
                new[bias] = steps.reshape(held.shape).astype(held.dtype)
                scales[bias] = after.astype(np.float32)
        return _Narrowed(mod, new, scales).run()

    def _shares(self, mod: tvm.IRModule) -> dict[str, tuple[Rows, float]]:
        """Give the layers that have channels to narrow, and what share of them."""
        weights, named = ir.weights(mod), ir.parameters(mod)
        by_pattern = option_by_layer(self.name, weights, self.layers)
        total = sum(weight.parameter.value.size for weight in weights.values())
        found = {}
        for layer in _layers(mod):
            size = named[layer.weight].value.size
            share = by_pattern.get(layer.weight, self.share if size >= self.small * total else 0.0)
            if share:
                found[layer.weight] = layer, share
        return found

    def _narrow(
        self, rows: _Array, grams: _Array, share: float
    ) -> dict[int, tuple[narrowing.Narrowed, int]]:
        """Give the rows that become narrow, each with where it stands in what was found."""
        halfword = _HALFWORDS[self.bits]
        count = int(share * len(rows) / len(halfword) + 0.5) * len(halfword)
        count = min(count, len(rows) // len(halfword) * len(halfword))
        if not count:
            return {}
        narrow = narrowing.narrow_rows(rows, grams, self.bits)
        ranked = np.argsort(narrow.error, kind="stable")[:count]
        found = {int(row): (narrow, int(row)) for row in ranked}
        for bits in sorted(set(halfword) - {self.bits}):
            # The last ones of the chosen need it most.
            wide = np.sort(ranked[count - count // len(halfword) * halfword.count(bits) :])
            wider = narrowing.narrow_rows(rows[wide], grams[wide], bits)
            found |= {int(row): (wider, at) for at, row in enumerate(wide)}
        return found


def _layers(mod: tvm.IRModule) -> list[Rows]:
    """Give the layers whose weights can be narrowed."""
    from tvm_compress.training.output_grams import Rows

    function = ir.main_function(mod)
    integers, uses = qdq.integer_parameters(mod), edge.use_counts(function)
    quantised, weights, named = ir.dequantized(function), ir.weights(mod), ir.parameters(mod)
    found: dict[str, Rows] = {}
    sums: dict[Any, str] = {}  # a layer's sum, by its variable
    for binding in ir.bindings(function):
        call = binding.value
        if edge.op_name(call) in ("relax.nn.conv2d", "relax.matmul"):
            name = quantised.get(call.args[1], "")
            if name in weights and uses[call.args[1]] == 1 and _can(call, weights[name], integers):
                found[name] = Rows(name, weights[name].output_axis, None)
                if uses[binding.var] == 1:
                    sums[binding.var] = name
        elif edge.op_name(call) == "relax.add" and call.args[0] in sums:
            name, bias = sums[call.args[0]], quantised.get(call.args[1], "")
            outputs = weights[name].parameter.shape[weights[name].output_axis]
            alone = bias in integers and uses[call.args[1]] == 1 and not named[bias].shared
            if alone and named[bias].value.size == outputs:
                found[name] = Rows(name, weights[name].output_axis, bias)
    return list(found.values())


def _can(call: Any, weight: ir.Weight, integers: Mapping[str, qdq.IntegerParameter]) -> bool:
    """Whether the weight of a layer can be narrowed, channel by channel."""
    parameter = weight.parameter
    if parameter.shared or parameter.value.dtype != np.int8 or parameter.name not in integers:
        return False
    if edge.op_name(call) == "relax.matmul" and len(parameter.shape) != 2:
        return False
    if edge.op_name(call) == "relax.nn.conv2d" and int(call.attrs.groups) != 1:
        return False
    how, outputs = integers[parameter.name], parameter.shape[weight.output_axis]
    places = how.scale.shape or (1,)
    along = how.scale.size == 1 or places[weight.output_axis] == outputs
    columns = parameter.value.size // outputs
    fits = outputs * (columns + 1) ** 2 * 8 <= _MOST_BYTES
    return bool(along and fits and not how.zero_point.any())


class _Narrowed(ir.Rewriter):
    """Gives parameters other integers, and the scales that they are read with."""

    def __init__(
        self, mod: tvm.IRModule, new: Mapping[str, _Array], scales: Mapping[str, _Array]
    ) -> None:
        super().__init__(mod)
        self._parameters, self._scales = new, scales
        self._quantised = ir.dequantized(ir.main_function(mod))
        self._read_as = {edge.var_name(var): name for var, name in self._quantised.items()}

    def rewrite(self, name: str, value: Any) -> Any:
        if name in self._parameters:
            return edge.constant(self._parameters[name])
        read = self._read_as.get(name, "")
        if read in self._scales and isinstance(value.args[0], relax.Var):
            rank = len(edge.static_shape(value.args[0]) or ())
            axis = int(value.attrs.axis) % rank
            return qdq.dequantize_channels(value.args[0], self._scales[read], axis)
        return value
