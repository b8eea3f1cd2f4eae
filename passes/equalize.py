"""``equalize``: scale the channels between two layers so that both weights reach equally far.

Before and after, of a network that computes the same::

    relu = R.nn.relu(R.add(R.nn.conv2d(x, a_weight), a_bias))
    y = R.nn.conv2d(relu, b_weight)

The weights and the bias that give channel ``i`` of ``relu`` are divided by a factor and the weights
that take it are multiplied by it; a rectifier lets a positive factor through. Where few numbers
have to serve many channels (a scale or a codebook for the whole weight, a scale for a tensor of
activations), none of them is so much smaller than the others that little of it is left.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (arXiv
1906.04721), section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir, qdq
from tvm_compress.errors import OptionError, PassError
from tvm_compress.ops.layout import axes_between, spatial
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.quantization import equalizing_factors

__all__ = ["Equalize"]

_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
# f(c * x) = c * f(x) for c > 0, channel by channel.
_HOMOGENEOUS = (
    "relax.nn.relu",
    "relax.nn.leakyrelu",
    *(f"relax.nn.{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)),
    *(f"relax.nn.adaptive_avg_pool{n}d" for n in (1, 2, 3)),
)
_CLOSE = 1e-3  # factors this near to 1 change nothing any more


@dataclass(frozen=True)
class Equalize(Pass):
    """Equalise the weights of layers that follow each other, without a change of the function.

    A pair is two convolutions (depthwise too) or two products with nothing but a bias, a rectifier
    without an upper bound and pooling between them, each used by the next alone. Shared weights
    stay as they are; zeros stay zero.

    Args:
        rounds: how often all pairs are gone through at most: a layer in the middle of three
            changes with both neighbours.
        limit: the largest factor of a channel in all, and one over the smallest, 1 or more: a
            channel whose weights are tiny and whose bias is not would drown the others.

    Raises:
        OptionError: an option outside its range.
        PassError: the module is quantised already.
    """

    name: ClassVar[str] = "equalize"

    rounds: int = 20
    limit: float = 16.0

    def __post_init__(self) -> None:
        """Check the options."""
        if self.rounds < 1:
            raise OptionError(
                f"equalize: there are {self.rounds} rounds; expected a whole number from 1 on."
            )
        if not 1.0 <= self.limit < np.inf:
            raise OptionError(
                f"equalize: the limit is {self.limit}; expected a finite number of at least 1."
            )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the equalised module."""
        mod = Canonicalize().apply(mod)
        if qdq.is_quantised(mod):
            raise PassError(
                "equalize: the module is quantised already; expected a float network: run equalize "
                "before quantize, or dequantize first."
            )
        pairs = _pairs(mod)
        named = ir.parameters(mod)
        used = {name for pair in pairs for name in (pair.first, pair.bias, pair.second) if name}
        values = {name: named[name].value.astype(np.float64) for name in used}
        totals = [np.ones(pair.channels) for pair in pairs]
        for _ in range(self.rounds):
            moved = 0.0
            for number, pair in enumerate(pairs):
                wanted = totals[number] * equalizing_factors(*pair.reaches(values))
                wanted = np.clip(wanted, 1 / self.limit, self.limit)
                factors = wanted / totals[number]
                pair.scale(values, factors)
                totals[number] = wanted
                moved = max(moved, float(np.abs(factors - 1).max(initial=0.0)))
            if moved < _CLOSE:
                break
        new = {n: edge.constant(v.astype(named[n].value.dtype)) for n, v in values.items()}
        return ir.replace_parameters(mod, new)


@dataclass(frozen=True)
class _Pair:
    """Two layers with the channels between them; weights in their layouts, biases by channel."""

    first: str
    first_axis: int
    bias: str | None
    second: str
    second_axes: tuple[int, ...]  # of the second weight in the order O I + spatial
    groups: int
    channels: int

    def _taking(self, values: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Give a view (groups, outputs of a group, channels of a group, taps) where it may be."""
        moved = np.transpose(values[self.second], self.second_axes)
        return moved.reshape(self.groups, -1, self.channels // self.groups, *moved.shape[2:])

    def reaches(
        self, values: dict[str, NDArray[np.float64]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give the largest magnitude of each channel's weights in both layers."""
        first = np.moveaxis(np.abs(values[self.first]), self.first_axis, 0)
        second = np.abs(self._taking(values))
        others = tuple(i for i in range(second.ndim) if i not in (0, 2))
        return first.reshape(self.channels, -1).max(axis=1), second.max(axis=others).ravel()

    def scale(self, values: dict[str, NDArray[np.float64]], factors: NDArray[np.float64]) -> None:
        """Divide what gives the channels by the factors and multiply what takes them."""
        places = [1] * values[self.first].ndim
        places[self.first_axis] = -1
        values[self.first] = values[self.first] / factors.reshape(places)
        if self.bias is not None:
            bias = values[self.bias]
            values[self.bias] = (bias.ravel() / factors).reshape(bias.shape)
        taking = self._taking(values)
        rank = taking.ndim - 3
        taking = taking * factors.reshape(self.groups, 1, -1, *[1] * rank)
        shape = [values[self.second].shape[axis] for axis in self.second_axes]
        values[self.second] = np.transpose(taking.reshape(shape), np.argsort(self.second_axes))


def _pairs(mod: tvm.IRModule) -> list[_Pair]:
    function = ir.main_function(mod)
    bindings = list(ir.bindings(function))
    bound = {binding.var: binding.value for binding in bindings}
    uses = edge.use_counts(function)
    users: dict[Any, Any] = {}
    for binding in bindings:
        for var in edge.variables_in(binding.value):
            users[var] = binding
    dense = {
        name: weight
        for name, weight in ir.weights(mod).items()
        if not weight.parameter.shared
        and weight.parameter.value.dtype.kind == "f"
        and np.isfinite(weight.parameter.value).all()
    }
    once = {edge.var_name(var) for var, count in uses.items() if count == 1}
    found = []
    for binding in bindings:
        first = _weight(binding.value, dense.keys() & once)
        if first is None:
            continue
        axis, var, bias = dense[first].output_axis, binding.var, None
        channels = dense[first].parameter.shape[axis]
        place = _channels_in(binding.value)
        while uses[var] == 1 and var in users:
            user = users[var]
            value = user.value
            second = _weight(value, dense.keys() & once)
            if second is not None and value.args[0].same_as(var):
                if _channels_in(value) == place:
                    groups = int(value.attrs.groups) if hasattr(value.attrs, "groups") else 1
                    axes = _axes(value, len(dense[second].parameter.shape))
                    found.append(_Pair(first, axis, bias, second, axes, groups, channels))
                break
            if edge.op_name(value) == "relax.add" and bias is None and var.same_as(value.args[0]):
                held = bound.get(value.args[1])
                if not isinstance(held, edge.Constant) or edge.var_name(value.args[1]) not in once:
                    break
                rank = len(edge.static_shape(var) or ())
                shape = edge.static_shape(held) or ()
                full = (1,) * (rank - len(shape)) + shape
                if [i for i, n in enumerate(full) if n > 1 or i == place] != [place]:
                    break
                if full[place] != channels or edge.static_shape(user.var) != edge.static_shape(var):
                    break
                bias = edge.var_name(value.args[1])
            elif not _lets_through(value, place):
                break
            var = user.var
    return found


def _weight(call: Any, names: Any) -> str | None:
    """Give the weight of a convolution, or of a product with a matrix at its right."""
    if edge.op_name(call) not in (*_CONVOLUTIONS, "relax.matmul"):
        return None
    name = edge.var_name(call.args[1]) if isinstance(call.args[1], relax.Var) else ""
    if edge.op_name(call) == "relax.matmul" and len(edge.static_shape(call.args[1]) or ()) != 2:
        return None
    return name if name in names and isinstance(call.args[0], relax.Var) else None


def _channels_in(call: Any) -> int:
    """Give the axis of the channels in what a layer takes and gives."""
    if edge.op_name(call) == "relax.matmul":
        return len(edge.static_shape(call.args[0]) or ()) - 1
    return str(call.attrs.data_layout).index("C")


def _axes(call: Any, rank: int) -> tuple[int, ...]:
    if edge.op_name(call) == "relax.matmul":
        return (1, 0)
    return axes_between(str(call.attrs.kernel_layout), "OI" + spatial(rank - 2))


def _lets_through(call: Any, place: int) -> bool:
    """Whether an operator lets a factor of each channel through."""
    operator = edge.op_name(call) or ""
    if operator == "relax.nn.pad":
        zero = str(call.attrs.pad_mode) != "constant" or float(call.attrs.pad_value) == 0
        widths = [int(w) for w in call.attrs.pad_width]
        return zero and not any(widths[2 * place : 2 * place + 2])
    if operator not in _HOMOGENEOUS:
        return False
    return "_pool" not in operator or str(call.attrs.layout).index("C") == place
