"""``quantize``: int8 activations and weights, by samples without labels.

Before::

    add = R.add(R.nn.conv2d(x, conv_weight), conv_bias)          # float32
    relu = R.nn.relu(add)

After ``Quantize().on(inputs)``, with ``x`` an int8 input::

    x_dequantized = R.dequantize(x, s_x, z_x)
    conv_weight_dequantized = R.dequantize(conv_weight, s_w, 0)  # int8, a scale for each channel
    conv_bias_dequantized = R.dequantize(conv_bias, s_x * s_w, 0)  # int32
    add = R.add(R.nn.conv2d(x_dequantized, conv_weight_dequantized), conv_bias_dequantized)
    relu = R.nn.relu(add)
    relu_quantized = R.quantize(relu, s, -128)
    relu_dequantized = R.dequantize(relu_quantized, s, -128)

That still computes in float (the QDQ form), in numbers that integers stand for; ``to-integers``
makes integers of it. A group of a product, its bias and its rectifier is rounded once, at its end.

Sources: Jacob et al. (arXiv 1712.05877) for the scheme; Nagel et al., Data-Free Quantization (arXiv
1906.04721), section 4.2, for the correction of biases, here by the means on the given samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir, qdq
from tvm_compress.errors import DataError, OptionError, PassError
from tvm_compress.ops import codebook
from tvm_compress.passes.base import InputsPass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.quantization import (
    Affine,
    Histogram,
    Ranges,
    affine,
    check_ranges,
    find_range,
    quantize_bias,
)
from tvm_compress.quantization_plan import PRODUCTS, Plan, channel_axis
from tvm_compress.quantization_rewrite import quantised
from tvm_compress.reconstruction import Stream
from tvm_compress.tensors import check_samples, input_specs

__all__ = ["Quantize"]


@dataclass(frozen=True)
class Quantize(InputsPass):
    """Quantise a float network to int8 by some hundred samples (post-training quantisation).

    Activations have one scale and zero point a tensor. Weights have a scale for each output
    channel; the centroids of shared ones have one for all, or one for each group of channels that
    has a codebook. Zeros and codes stay. Operators without an integer form stay in float, and so
    do sums and rearrangements of what they give.

    Args:
        ranges: of activations: ``mse`` has the least squared error, ``min-max`` clips nothing,
            ``percentile`` clips what lies beyond one (:mod:`tvm_compress.quantization`).
        percentile: of ``percentile``: percent of the values below the range's end, above 50.
        weights: ``max`` clips no weight, ``mse`` has the least squared error of each channel.
        bias_correction: take the mean error of each output channel on the samples off its bias,
            layer after layer.
        io: whether the network takes and gives integers (``int8``) or ``float``;
            :func:`tvm_compress.qdq.input_parameters` and ``output_parameters`` tell their scales.
        input_ranges: (low, high) by the input's name, where it is known: samples have to lie in it,
            and the scale is that of this range.
        layers: bits by pattern of a weight's or an operator's name: 0 leaves what fits in float, 8
            is the default. The first pattern that fits counts.

    Raises:
        OptionError: an option outside its range, or a pattern or name that fits nothing.
        DataError: no samples, wrong ones, an input that never varies, or values that are not
            finite or not in the given range.
        PassError: there are no inputs; the module is quantised already, or has weights of another
            dtype than float32.
    """

    name: ClassVar[str] = "quantize"
    needs_inputs: ClassVar[bool] = True

    ranges: Ranges = "mse"
    percentile: float = 99.99
    weights: Literal["max", "mse"] = "max"
    bias_correction: bool = True
    io: Literal["int8", "float"] = "int8"
    input_ranges: Mapping[str, list[float]] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options."""
        check_ranges(self.name, self.ranges, self.percentile)
        for what, value, known in (
            ("weights are", self.weights, ("max", "mse")),
            ("io is", self.io, ("int8", "float")),
        ):
            if value not in known:
                raise OptionError(f"quantize: the {what} {value!r}; expected {' or '.join(known)}.")
        for name, pair in self.input_ranges.items():
            if len(pair) != 2 or not np.isfinite(pair).all() or not pair[0] < pair[1]:
                raise OptionError(
                    f"quantize: the range of the input {name} is {list(pair)}; expected two "
                    "numbers, the lower one first."
                )
        for pattern, bits in self.layers.items():
            if bits not in (0, 8):
                raise OptionError(
                    f"quantize: {pattern} has {bits} bits; expected 8, or 0 to leave it in float."
                )

    def rewritten(self, mod: tvm.IRModule, inputs: Any) -> tvm.IRModule:
        """Give the module in the QDQ form.

        Raises:
            PassError: there are no inputs, so there are no ranges.
        """
        if inputs is None:
            raise PassError(
                "quantize: there are no inputs; expected some hundred samples without labels: give "
                "compress() calibrate=x, or apply Quantize(...).on(x)."
            )
        mod = Canonicalize().apply(mod)
        if qdq.is_quantised(mod):
            raise PassError(
                "quantize: the module is quantised already; expected a float network: run "
                "dequantize first."
            )
        _check_weights(mod)
        mod = _ScalesInCodebooks(mod).run()
        samples = self._samples(mod, inputs)
        plan = Plan(mod, self._in_float(mod), self.io)
        seen = _observe(mod, plan, samples)
        how = self._scales(plan, seen.histograms)
        new = quantised(mod, plan, how, weights=self.weights, biases=self.bias_correction)
        if self.bias_correction:
            new = _correct_biases(new, seen.means, samples)
        return qdq.with_integers(new) if self.io == "int8" else new

    def _samples(self, mod: tvm.IRModule, inputs: Any) -> dict[str, NDArray[Any]]:
        given = inputs.values() if isinstance(inputs, Mapping) else [inputs]
        if any(np.ndim(array) and not len(array) for array in given):
            raise DataError(
                "quantize: the calibration set is empty; expected some hundred samples."
            )
        samples = check_samples(input_specs(mod), inputs)
        for name in self.input_ranges:
            if name not in samples:
                raise OptionError(
                    f"quantize: a range was given for {name}, and there is no such input; expected "
                    f"{', '.join(samples)}."
                )
        for name, values in samples.items():
            if values.dtype.kind != "f":
                continue
            wrong = values.size - int(np.isfinite(values).sum())
            if wrong:
                raise DataError(
                    f"quantize: {wrong} values of the input {name} are NaN or infinite; expected "
                    "finite numbers: check the samples."
                )
            low, high = float(values.min()), float(values.max())
            if low == high:
                raise DataError(
                    f"quantize: the input {name} is {low:g} in every sample; expected values that "
                    "vary, or there is no range to find: give real samples."
                )
            least, most = self.input_ranges.get(name, (-np.inf, np.inf))
            if low < least or high > most:
                raise DataError(
                    f"quantize: the samples of the input {name} reach from {low:g} to {high:g}; "
                    f"expected values from {least:g} to {most:g}, the range that was given: scale "
                    "the samples as the network's inputs are, or give another range."
                )
        return samples

    def _in_float(self, mod: tvm.IRModule) -> set[str]:
        """Give the names of weights and operators that a pattern leaves in float."""
        named = ir.parameters(mod)
        names = [edge.var_name(b.var) for b in ir.bindings(ir.main_function(mod))]
        names = [n for n in names if n not in named or n in ir.weights(mod)]
        bits: dict[str, int] = {}
        for pattern, given in self.layers.items():
            fits = [name for name in names if fnmatchcase(name, pattern)]
            if not fits:
                raise OptionError(
                    f"quantize: the pattern {pattern} fits no weight and no operator; expected one "
                    f"of {', '.join(names)}."
                )
            for name in fits:
                bits.setdefault(name, given)
        return {name for name, given in bits.items() if given == 0}

    def _scales(self, plan: Plan, seen: Mapping[str, Histogram]) -> dict[str, Affine]:
        """Give each quantised tensor's scale: one for all tensors of a class."""
        members: dict[str, list[str]] = defaultdict(list)
        for name in seen:
            members[plan.scales.find(name)].append(name)
        of_class: dict[str, Affine] = {}
        for root, names in members.items():
            histogram = Histogram.join([seen[name] for name in names])
            low, high = find_range(histogram, self.ranges, self.percentile)
            given = [self.input_ranges[name] for name in names if name in self.input_ranges]
            for least, most in given:
                low, high = min(least, low), max(most, high)
            of_class[root] = affine(low, high)
        found = {
            name: of_class[plan.scales.find(name)] for name in plan.rounded - plan.fixed.keys()
        }
        return found | plan.fixed


def _check_weights(mod: tvm.IRModule) -> None:
    for weight in ir.weights(mod).values():
        parameter = weight.parameter
        values = parameter.centroids if parameter.dense is None else parameter.dense
        assert values is not None
        if values.dtype != np.float32:
            raise PassError(
                f"quantize: the weight {weight.name} is {values.dtype}; expected float32: convert "
                "the network before it is quantised."
            )
        if not np.isfinite(values).all():
            raise PassError(
                f"quantize: the weight {weight.name} holds NaN or infinite values; expected "
                "numbers: load the network again or lower the learning rate."
            )


class _ScalesInCodebooks(ir.Rewriter):
    """Moves the scales behind the sums of weights in fixed point into codebooks by channel.

    There each channel's grid is whole multiples of its step, which becomes the channel's scale.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        named, weights = ir.parameters(mod), ir.weights(mod)
        self._tables: dict[str, Any] = {}
        self._scale_of: dict[str, str] = {}  # by the name of the scale: the weight
        for name, scale in ir.scales(ir.main_function(mod)).items():
            weight, steps = weights[name], named[scale].value.ravel()
            table = weight.parameter.centroids
            assert table is not None and weight.parameter.codes is not None
            if steps.size != weight.parameter.shape[weight.output_axis]:
                continue
            groups = [1] * len(weight.parameter.shape)
            groups[weight.output_axis] = steps.size
            by_channel = (steps[:, None] * table).astype(np.float32).reshape(*groups, -1)
            codes = edge.constant(weight.parameter.codes)
            self._tables[name] = codebook(codes, edge.constant(by_channel))
            self._scale_of[scale] = name

    def rewrite(self, name: str, value: Any) -> Any:
        if name in self._tables:
            return self._tables[name]
        if edge.op_name(value) == "relax.multiply" and isinstance(value.args[1], relax.Var):
            weight = self._scale_of.get(self._wanted.get(value.args[1], ""))
            product = self.value(value.args[0])
            if weight is not None and edge.op_name(product) in PRODUCTS:
                return value.args[0]
        return value


# ---- what values there are -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    histograms: dict[str, Histogram]  # by the name of a variable with a range of its own
    means: list[NDArray[np.float64]]  # of each product's sums by channel, in order


def _observe(mod: tvm.IRModule, plan: Plan, samples: Mapping[str, NDArray[Any]]) -> _Seen:
    """Run the float module and look at its values."""
    stream = Stream(mod, samples)
    seen = _Seen({}, [])
    for name in plan.own & samples.keys():
        seen.histograms[name] = Histogram.of(samples[name])
    for binding in ir.bindings(stream.function):
        name = edge.var_name(binding.var)
        stream.step(binding)
        if name in plan.own:
            try:
                seen.histograms[name] = Histogram.of(np.stack(stream.values[binding.var]))
            except DataError as error:
                raise DataError(f"quantize: {name}. {error}") from error
        if name in plan.biases:
            axis = plan.biases[name].axis
            seen.means.append(_means(stream.values[binding.var], axis))
    return seen


def _means(values: Any, axis: int) -> NDArray[np.float64]:
    stacked = np.stack(values)
    others = tuple(i for i in range(stacked.ndim) if i != axis + 1)
    return np.asarray(stacked.mean(others, dtype=np.float64))


def _correct_biases(
    mod: tvm.IRModule, means: list[NDArray[np.float64]], samples: Mapping[str, NDArray[Any]]
) -> tvm.IRModule:
    """Run the quantised module and move each bias so that the sums' means are those of float."""
    stream = Stream(mod, samples)
    bound = {binding.var: binding.value for binding in ir.bindings(stream.function)}
    named = ir.parameters(mod)
    new: dict[str, Any] = {}
    left = iter(means)
    for binding in ir.bindings(stream.function):
        stream.step(binding)
        bias = _int32_bias(binding.value, bound)
        if bias is None:
            continue
        name, scales, axis = bias
        values = stream.values[binding.var]
        change = next(left) - _means(values, axis)
        old = named[name].value
        moved = quantize_bias(old.ravel() * np.float64(scales) + change, scales)
        new[name] = edge.constant(moved.reshape(old.shape))
        places = [1] * values[0].ndim
        places[axis] = -1
        step = ((moved - old.ravel().astype(np.int64)) * np.float64(scales)).reshape(places)
        stream.values[binding.var] = [(v + step).astype(v.dtype) for v in values]
    return ir.replace_parameters(mod, new)


def _int32_bias(value: Any, bound: Mapping[Any, Any]) -> tuple[str, NDArray[Any], int] | None:
    """Give the name of the bias that is added, its scales and the axis of the channels."""
    if edge.op_name(value) != "relax.add":
        return None
    product, how = (bound.get(arg) for arg in value.args)
    if product is None or how is None:
        return None
    if edge.op_name(product) not in PRODUCTS or edge.op_name(how) != "relax.dequantize":
        return None
    held = how.args[0]
    if edge.dtype_of_or_none(held) != "int32" or not isinstance(bound.get(held), edge.Constant):
        return None
    return edge.var_name(held), edge.constant_value(how.args[1]).ravel(), channel_axis(product)
