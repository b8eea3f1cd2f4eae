"""The mathematics of int8: ranges, scales, zero points, biases; numpy alone.

A real number ``x`` stands as the integer ``q`` with ``x = scale * (q - zero_point)``: activations
with one scale and zero point a tensor, weights with a scale for each output channel and the zero
point 0, biases as int32 in units of the product of both scales, so that they are added to the sums
of products as they are. Source of the scheme: Jacob et al., Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference (arXiv 1712.05877), section 2.

Where a range ends is a choice: beyond it values are clipped, and the wider it is the coarser are
the steps. ``min-max`` clips nothing, ``percentile`` a given share of the values, ``mse`` as much as
makes the squared error least (Nagel et al., A White Paper on Neural Network Quantization, arXiv
2106.08295, section 3.1; Banner et al., arXiv 1810.05723, do it by an assumed distribution). Zero
lies in every range, for padding and rectifiers have to be exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError, OptionError

__all__ = [
    "RANGES",
    "Affine",
    "Histogram",
    "Ranges",
    "affine",
    "check_ranges",
    "equalizing_factors",
    "find_range",
    "least_scale",
    "quantize_bias",
    "quantize_weight",
    "weight_scales",
]

Ranges: TypeAlias = Literal["min-max", "percentile", "mse"]
RANGES: tuple[Ranges, ...] = get_args(Ranges)

_Floats: TypeAlias = NDArray[np.float64]

_PIECE = 1 << 18  # values that are counted at once
_BINS = 4096  # 16 a step of the widest range
_FRACTIONS = np.linspace(1.0, 0.2, 81)  # of the widest range, that are tried as its ends
_SAMPLE = 1 << 14  # weights of a channel that its scale is chosen by
_LARGEST_BIAS = 2.0**30  # half of int32: the rest is for the sums of products


@dataclass(frozen=True)
class Affine:
    """How integers stand for real numbers: ``x = scale * (q - zero_point)``.

    ``scale`` is the value of a float32 and ``dtype`` an integer type as numpy spells it.
    """

    scale: float
    zero_point: int
    dtype: str = "int8"

    def quantize(self, x: NDArray[Any]) -> NDArray[Any]:
        """Round real numbers, float of any shape, to ``dtype``; halves to even, the rest clipped.

        >>> Affine(0.5, -1).quantize(np.array([0.0, 0.74, 99], "float32"))
        array([ -1,   0, 127], dtype=int8)
        """
        info = np.iinfo(self.dtype)
        # In float32, as the operator relax.quantize divides.
        steps = np.round(np.asarray(x, np.float32) / np.float32(self.scale)).astype(np.float64)
        return np.clip(steps + self.zero_point, info.min, info.max).astype(self.dtype)

    def dequantize(self, q: NDArray[Any]) -> NDArray[np.float32]:
        """Give the real numbers, float32, that integers stand for.

        >>> Affine(0.5, -1).dequantize(np.array([-1, 0, 127], "int8"))
        array([ 0. ,  0.5, 64. ], dtype=float32)
        """
        steps = np.asarray(q).astype(np.int64) - self.zero_point
        return (steps * np.float64(self.scale)).astype(np.float32)


def affine(low: float, high: float, dtype: str = "int8") -> Affine:
    """Give scale and zero point for the range from ``low`` to ``high``, widened to hold zero.

    A range of nothing but zero gets the scale of 0 to 1. Source: arXiv 1712.05877, section 3.

    >>> affine(0.0, 255.0)
    Affine(scale=1.0, zero_point=-128, dtype='int8')
    >>> affine(-128.0, 127.0).zero_point
    0
    """
    info = np.iinfo(dtype)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    # A scale has to be a normal float32, or quotients by it are not exact.
    if high - low < 1e-30:
        low, high = 0.0, 1.0
    steps = int(info.max) - int(info.min)
    scale = np.float32((high - low) / steps)
    zero_point = int(np.clip(np.rint(info.min - low / float(scale)), info.min, info.max))
    return Affine(float(scale), zero_point, dtype)


@dataclass(frozen=True)
class Histogram:
    """Where the values of a tensor lie: the mean and number of the values in each bin, ascending.

    ``low`` and ``high`` are the least and the largest value.
    """

    means: _Floats
    counts: _Floats
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Histogram:
        """Count values, floats of any shape, at least one.

        Raises:
            DataError: a value is NaN or infinite.

        >>> Histogram.of(np.array([3.0, 0.0, 0.0])).counts.tolist()
        [2.0, 1.0]
        """
        flat = np.asarray(values).reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite([low, high]).all():
            raise DataError(
                f"The values reach from {low} to {high}; expected finite numbers: check the "
                "samples and the network."
            )
        width = (high - low) / _BINS
        counts, sums = np.zeros(_BINS), np.zeros(_BINS)
        for start in range(0, flat.size, _PIECE):  # what is made on the way stays small
            piece = flat[start : start + _PIECE].astype(np.float64)
            bins = np.zeros(piece.size, np.intp)
            if width > 0:
                bins = np.minimum(((piece - low) / width).astype(np.intp), _BINS - 1)
            counts += np.bincount(bins, minlength=_BINS)
            sums += np.bincount(bins, weights=piece, minlength=_BINS)
        used = counts > 0
        return cls(sums[used] / counts[used], counts[used], low, high)

    @classmethod
    def join(cls, parts: Sequence[Histogram]) -> Histogram:
        """Give the histogram of the values of several tensors together."""
        means = np.concatenate([part.means for part in parts])
        order = np.argsort(means, kind="stable")
        counts = np.concatenate([part.counts for part in parts])[order]
        low, high = min(part.low for part in parts), max(part.high for part in parts)
        return cls(means[order], counts, low, high)


def find_range(
    histogram: Histogram, ranges: Ranges, percentile: float = 99.99, dtype: str = "int8"
) -> tuple[float, float]:
    """Give the ends of the range that a tensor's values are clipped to.

    Args:
        histogram: of the tensor's values.
        ranges: ``min-max``, ``percentile`` or ``mse``, see the head of this module.
        percentile: of ``percentile``: as many percent of the values lie below the upper end, and
            as many above the lower one; 50..100.
        dtype: of the integers, which tells how many steps a range has.

    >>> low, high = find_range(Histogram.of(np.arange(1001.0)), "percentile", 90.0)
    >>> low, round(high)
    (0.0, 900)
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if ranges == "percentile":
        share = (np.cumsum(histogram.counts) - histogram.counts / 2) / histogram.counts.sum()
        ends = np.interp([1 - percentile / 100, percentile / 100], share, histogram.means)
        if percentile < 100:
            low, high = min(max(low, float(ends[0])), 0.0), max(min(high, float(ends[1])), 0.0)
    elif ranges == "mse":
        low, high = _least_error(histogram, low, high, dtype)
    return low, high


def _least_error(h: Histogram, low: float, high: float, dtype: str) -> tuple[float, float]:
    """Try ends in turn, the other one held, until none gets better."""
    lows, highs = low * _FRACTIONS, high * _FRACTIONS
    best = _errors(h, [low], [high], dtype)[0]
    for _ in range(4):
        before = best
        for ends in ("both", "high", "low"):
            some_low = np.full(highs.size, low) if ends == "high" else lows
            some_high = np.full(lows.size, high) if ends == "low" else highs
            errors = _errors(h, some_low, some_high, dtype)
            least = int(np.argmin(errors))
            if errors[least] < best:
                best, low, high = errors[least], float(some_low[least]), float(some_high[least])
        if best == before:
            break
    return low, high


def _errors(h: Histogram, lows: Any, highs: Any, dtype: str) -> _Floats:
    """Give the squared error of each range."""
    info = np.iinfo(dtype)
    found = np.empty(len(lows))
    for i, (low, high) in enumerate(zip(lows, highs, strict=True)):
        how = affine(low, high, dtype)
        q = np.clip(np.rint(h.means / how.scale) + how.zero_point, info.min, info.max)
        found[i] = h.counts @ np.square((q - how.zero_point) * how.scale - h.means)
    return found


def weight_scales(rows: NDArray[Any], ranges: Literal["max", "mse"] = "max") -> NDArray[np.float32]:
    """Give the scale of each row of weights, so that they lie in -127..127.

    Args:
        rows: floats (n, m): the weights of each output channel, or all of them in one row.
        ranges: ``max`` clips nothing; ``mse`` has the least squared error, by a sample of a long
            row.

    Returns:
        (n,); a row of zeros gets the largest scale of the others.

    >>> weight_scales(np.array([[1.0, -254.0], [0.0, 0.0]]))
    array([2., 2.], dtype=float32)
    """
    rows = np.asarray(rows, np.float64)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    used = largest > 1e-30
    widest = np.where(used, largest, largest.max(initial=0.0))
    widest = np.where(widest > 1e-30, widest, 127.0) / 127
    scales = widest.astype(np.float32)
    if ranges == "mse":
        sample = rows[:, :: max(1, -(-rows.shape[1] // _SAMPLE))]
        least = np.full(len(rows), np.inf)
        for fraction in _FRACTIONS:
            tried = (widest * fraction).astype(np.float32)
            steps = tried.astype(np.float64)[:, None]
            error = np.square(np.clip(np.rint(sample / steps), -127, 127) * steps - sample).sum(1)
            better = used & (error < least)
            scales, least = np.where(better, tried, scales), np.where(better, error, least)
    return scales


def quantize_weight(values: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.int8]:
    """Round weights to -127..127 by scales that broadcast to them; zero stays zero.

    -128 is not used: the sums of two products then fit in int16, and signs can be turned.

    >>> quantize_weight(np.array([[0.0, -300.0], [1.0, 3.0]]), np.array([[2.0], [1.0]]))
    array([[   0, -127],
           [   1,    3]], dtype=int8)
    """
    steps = np.rint(np.asarray(values, np.float64) / np.asarray(scales, np.float64))
    return np.clip(steps, -127, 127).astype(np.int8)


def quantize_bias(values: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.int32]:
    """Round biases to int32 by the scales of the sums that they are added to.

    >>> quantize_bias(np.array([0.5, -0.26]), np.array([0.25, 0.1]))
    array([ 2, -3], dtype=int32)
    """
    steps = np.rint(np.asarray(values, np.float64) / np.asarray(scales, np.float64))
    info = np.iinfo(np.int32)
    return np.clip(steps, info.min, info.max).astype(np.int32)


def least_scale(bias: NDArray[Any], input_scale: float) -> _Floats:
    """Give the least scale of each channel's weights that lets its bias stand in int32.

    Args:
        bias: (channels,).
        input_scale: of the layer's input.

    >>> float(least_scale(np.array([2.0**31]), 2.0)[0])
    1.0
    """
    return np.asarray(np.abs(np.asarray(bias, np.float64)) / (input_scale * _LARGEST_BIAS))


def equalizing_factors(first: NDArray[Any], second: NDArray[Any]) -> _Floats:
    """Give the factors by which the channels between two layers are divided.

    Divide what the first layer gives of channel ``i`` by factor ``i`` and multiply the weights of
    the second that take it: behind a rectifier nothing changes, and both weights of a channel
    reach equally far, ``sqrt(first * second)``. Source: Nagel et al., Data-Free Quantization
    Through Weight Equalization and Bias Correction (arXiv 1906.04721), equation 11. A channel that
    one of both layers does not use has the factor 1.

    Args:
        first: (channels,) largest magnitude of the first layer's weights of each output channel.
        second: (channels,) the same of the second layer's input channels.

    >>> equalizing_factors(np.array([8.0, 0.0]), np.array([2.0, 1.0]))
    array([2., 1.])
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    used = (first > 0) & (second > 0)
    return np.sqrt(np.where(used, first, 1.0) / np.where(used, second, 1.0))


def check_ranges(name: str, ranges: str, percentile: float) -> None:
    """Check the options of :func:`find_range`.

    Raises:
        OptionError: an unknown method, or a percentile outside 50..100.
    """
    if ranges not in RANGES:
        raise OptionError(
            f"{name}: the ranges are {ranges!r}; expected {', '.join(RANGES[:-1])} or {RANGES[-1]}."
        )
    if not 50.0 < percentile <= 100.0:
        raise OptionError(
            f"{name}: the percentile is {percentile}; expected a number above 50, 100 at most."
        )
