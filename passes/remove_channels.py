"""``remove-channels``: take out channels that change no output; the graph gets smaller.

Before::

    c1 = R.nn.conv2d(x, w1)            # w1[3] is all zeros, so relu gives relu(b1[3]) everywhere
    r1 = R.nn.relu(R.add(c1, b1))
    c2 = R.add(R.nn.conv2d(r1, w2), b2)

After::

    c1 = R.nn.conv2d(x, w1)            # without output 3; b1 likewise
    r1 = R.nn.relu(R.add(c1, b1))
    c2 = R.add(R.nn.conv2d(r1, w2), b2)    # w2 without input 3, b2 + w2[:, 3].sum() * relu(b1[3])

A channel goes if every layer that reads it either multiplies it with zeros alone or can take its
constant value up in the bias. Where a layer pads, a constant that is not zero ends at the border
and stays. Channels go together with those they are tied to: through depthwise convolutions,
additions, pooling, reshapes and concatenations (see :mod:`tvm_compress.channels`). Outputs change
by rounding alone.

In the integer form, which ``to-integers`` makes, no byte of any output changes: there a channel is
constant where the two ends of its range are one number (see :mod:`tvm_compress.integer_ranges`),
such as the zero point below which a bias holds a whole channel, and a constant goes through padding
with the same number::

    y1 = tvm_compress.requantize(R.add(c1, b1), m1, s1)    # channel 3 is -128 for every input
    c2 = R.add(R.nn.conv2d(R.nn.pad(y1, pad_value=-128), w2), b2)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.channels import BINARY, Channels, Reader, conv_axes
from tvm_compress.errors import OptionError
from tvm_compress.ops import CODEBOOK, REQUANTIZE, codebook
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize

__all__ = ["RemoveChannels", "without_classes"]


@dataclass(frozen=True)
class RemoveChannels(Pass):
    """Remove dead, constant and unread channels; outputs stay the same but for rounding.

    Works on dense and on shared weights (codes go, centroids stay), on floats and, without any
    rounding, on the integer form. Inputs, outputs and channels that an operator without a rule uses
    are left as they are, as are those of quantize and dequantize.

    Args:
        tolerance: weights of at most this share of their tensor's largest magnitude count as zero
            when a channel is judged. Training with weight decay leaves such remains of dead
            filters; the default lies far under float32's resolution of 6e-8. 0 takes exact zeros
            alone, as always of integers.

    Raises:
        OptionError: a tolerance outside 0..1.
    """

    name: ClassVar[str] = "remove-channels"

    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0.0 <= self.tolerance < 1.0:
            raise OptionError(
                f"remove-channels: the tolerance is {self.tolerance}; expected a number from 0 to "
                "below 1, such as 1e-9."
            )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with fewer channels."""
        # A stock pass in front may have put the constants back into the calls.
        mod = Canonicalize().apply(mod)
        channels = Channels.of(mod, self.tolerance)
        return without_classes(mod, channels, channels.removable())


def without_classes(mod: tvm.IRModule, channels: Channels, gone: Collection[int]) -> tvm.IRModule:
    """Give the module without some classes of channels, whose constant values biases take up."""
    if not gone:
        return mod
    return Canonicalize().apply(_Remover(mod, channels, gone).run())


class _Remover(ir.Rewriter):
    """Cuts every tensor's weights and constants to the channels that stay."""

    def __init__(self, mod: tvm.IRModule, channels: Channels, gone: Collection[int]) -> None:
        super().__init__(mod)
        self._readers = {reader.name: reader for reader in channels.readers}
        self._depthwise = channels.depthwise
        self._stays = {n: channels.stays(layer, gone) for n, layer in channels.layers.items()}
        self._axes = {n: layer.axis for n, layer in channels.layers.items()}
        self._source_stays = {
            reader.name: channels.stays(reader.source, gone) for reader in channels.readers
        }
        self._cut: dict[Any, Any] = {}
        self._moved: set[Any] = set()  # biases that take up constants

    def rewrite(self, name: str, value: Any) -> Any:
        return self._merged(self._smaller(name, value))

    def _merged(self, value: Any) -> Any:
        """Add what moved out of a layer's inputs to the layer's bias, which keeps its name."""
        if edge.op_name(value) != "relax.add" or not self.used_once(value.args[0]):
            return value
        inner, bias = self.value(value.args[0]), self.value(value.args[1])
        moved = edge.op_name(inner) == "relax.add" and inner.args[1] in self._moved
        if not moved or not isinstance(bias, edge.Constant):
            return value
        shift = edge.constant_value(self.value(inner.args[1]))
        held = edge.constant_value(bias).astype(np.float64)
        total = held + shift
        if total.size == held.size:  # a bias of (C,) stays one
            total = total.reshape(held.shape)
        var = self.emit(edge.constant(total.astype(shift.dtype)), self._wanted[value.args[1]])
        return relax.op.add(inner.args[0], var)

    def _smaller(self, name: str, value: Any) -> Any:
        if name in self._readers:
            return self._read(self._readers[name], value)
        stays = self._stays.get(name)
        if stays is None or stays.all() or not isinstance(value, tvm.ir.Call):
            return value
        if name in self._depthwise:
            _, outputs, _ = conv_axes(value)
            weight = self._without(value.args[1], outputs, stays)
            multiple = _size(value.args[1], outputs) // int(value.attrs.groups)
            layout, groups = str(value.attrs.kernel_layout), int(stays.sum()) // multiple
            return edge.convolution(value, value.args[0], weight, layout, groups)
        if edge.op_name(value) == "relax.reshape":
            shape = [int(size) for size in value.args[1].values]
            shape[self._axes[name]] = int(stays.sum())
            return relax.op.reshape(value.args[0], shape)
        if edge.op_name(value) == REQUANTIZE:
            return self._requantized(value, stays)
        elementwise = edge.op_name(value) in BINARY
        return self._cut_constants(value, self._axes[name], stays) if elementwise else value

    def _read(self, reader: Reader, call: Any) -> Any:
        inputs, outputs = self._source_stays[reader.name], self._stays[reader.name]
        if inputs.all() and outputs.all():
            return call
        weight = call.args[1]
        if edge.op_name(call) == "relax.matmul":
            weight = self._without(self._without(weight, 0, inputs), 1, outputs)
            result = edge.with_args(call, [call.args[0], weight])
        else:
            _, output_axis, input_axis = conv_axes(call)
            weight = self._without(self._without(weight, output_axis, outputs), input_axis, inputs)
            layout = str(call.attrs.kernel_layout)
            result = edge.convolution(call, call.args[0], weight, layout)
        moved = np.where(inputs | ~reader.absorbs(), 0.0, np.nan_to_num(reader.source.values))
        shift = (reader.matrix.sum(2, dtype=np.float64) @ moved)[outputs]
        if not shift.any():
            return result
        along = [-1]
        if edge.op_name(call) != "relax.matmul":
            rank = _rank(call.args[0])
            along = [-1 if axis == reader.result.axis else 1 for axis in range(rank)]
        result = self.emit(result, reader.name)
        shift = shift.reshape(along).astype(edge.dtype_of(result))
        bias = self.emit(edge.constant(shift), f"{reader.name}_bias")
        self._moved.add(bias)
        return relax.op.add(result, bias)

    def _requantized(self, call: Any, stays: NDArray[np.bool_]) -> Any:
        """Cut the factors of single channels; they stand in the call."""
        factors = [edge.constant_value(self.value(arg)) for arg in call.args[1:]]
        factors = [np.compress(stays, f) if f.size == stays.size else f for f in factors]
        return edge.with_args(call, [call.args[0], *map(edge.constant, factors)])

    def _cut_constants(self, call: Any, axis: int, stays: NDArray[np.bool_]) -> Any:
        """Cut the constants that an elementwise operator combines with the channels."""
        rank = max(_rank(arg) for arg in call.args)
        args = []
        for arg in call.args:
            constant = isinstance(self.value(arg), edge.Constant) or (
                edge.op_name(self.value(arg)) == CODEBOOK
            )
            if constant:
                own = axis - (rank - _rank(arg))
                if own >= 0 and _size(arg, own) == stays.size > 1:
                    arg = self._without(arg, own, stays)
            args.append(arg)
        return edge.with_args(call, args)

    def _without(self, arg: Any, axis: int, stays: NDArray[np.bool_]) -> Any:
        """Give a parameter, dense or shared, cut along an axis, bound under its own name."""
        if stays.all():
            return arg
        key = (arg, axis, stays.tobytes())
        if key not in self._cut:
            value = self.value(arg)
            if edge.op_name(value) == CODEBOOK:
                codes, centroids = (edge.constant_value(part) for part in value.args)
                if centroids.ndim > 1 and centroids.shape[axis] > 1:
                    # Blocks of the axis lose channels unevenly, so each channel takes its own copy.
                    centroids = np.repeat(centroids, stays.size // centroids.shape[axis], axis)
                    centroids = np.compress(stays, centroids, axis)
                codes = np.compress(stays, codes, axis)
                cut = codebook(edge.constant(codes), edge.constant(centroids))
            else:
                cut = edge.constant(np.compress(stays, edge.constant_value(value), axis))
            name = self._wanted.get(arg, "constant") if isinstance(arg, relax.Var) else "constant"
            self._cut[key] = self.emit(cut, name)
        return self._cut[key]


def _size(expr: Any, axis: int) -> int:
    return (edge.static_shape(expr) or ())[axis]


def _rank(expr: Any) -> int:
    return int(edge.tensor_type(expr).ndim)
