"""What each Relax operator means, in numpy: slow, obviously right, the judge of all targets.

``MEANING[name](attrs, *arrays) -> array`` (or a tuple of arrays). Sums are taken in float64 and
rounded once to the dtype that the IR declares for the result; integers are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import UnsupportedError
from tvm_compress.ops.layout import axes_between, spatial, split_padding

__all__ = ["MEANING", "window_counts"]

Array = NDArray[Any]
MEANING: dict[str, Callable[..., Any]] = {}


def _means(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            MEANING[f"relax.{name}"] = function
        return function

    return register


def _wide(x: Array) -> Array:
    """Widen for summing: floats to float64, integers to int64."""
    return x.astype(np.float64 if x.dtype.kind == "f" else np.int64)


def _ints(values: Any) -> list[int]:
    return [int(v) for v in values]


# Elementwise: name -> numpy function.
_erf = np.vectorize(math.erf, otypes=[np.float64])
_UNARY: dict[str, Callable[[Array], Array]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "bitwise_not": np.bitwise_not,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": _erf,
    "exp": np.exp,
    "floor": np.floor,
    "isfinite": np.isfinite,
    "isinf": np.isinf,
    "isnan": np.isnan,
    "log": np.log,
    "logical_not": np.logical_not,
    "negative": np.negative,
    "round": np.round,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sigmoid": lambda x: np.where(
        x >= 0, 1.0 / (1.0 + np.exp(-np.abs(x))), 1.0 - 1.0 / (1.0 + np.exp(-np.abs(x)))
    ),
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
    "trunc": np.trunc,
    "nn.relu": lambda x: np.maximum(x, 0),
    "nn.gelu": lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
    "nn.gelu_tanh": lambda x: (
        0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "nn.silu": lambda x: x / (1.0 + np.exp(-x)),
    "nn.selu": lambda x: (
        1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
    ),
}


def _truncated_quotient(a: Array, b: Array) -> Array:
    quotient = np.floor_divide(a, b)
    rounded_down = (np.mod(a, b) != 0) & ((a < 0) != (b < 0))
    return np.asarray(quotient + rounded_down.astype(quotient.dtype))


_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "atan2": np.arctan2,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "divide": lambda a, b: a / b if a.dtype.kind == "f" else _truncated_quotient(a, b),
    "equal": np.equal,
    "floor_divide": np.floor_divide,
    "floor_mod": np.mod,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "left_shift": np.left_shift,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.fmod,
    "multiply": np.multiply,
    "not_equal": np.not_equal,
    "power": np.power,
    "right_shift": np.right_shift,
    "subtract": np.subtract,
}


def _elementwise(function: Callable[..., Array]) -> Callable[..., Array]:
    def apply(attrs: Any, *args: Array) -> Array:
        # Floats widen so that a transcendental is rounded once; integers keep their wrap-around.
        if any(a.dtype.kind == "f" for a in args):
            args = tuple(a.astype(np.float64) for a in args)
        with np.errstate(all="ignore"):
            return np.asarray(function(*args))

    return apply


for _name, _function in (_UNARY | _BINARY).items():
    MEANING[f"relax.{_name}"] = _elementwise(_function)


@_means("clip")
def _clip(attrs: Any, x: Array, low: Any, high: Any) -> Array:
    return np.minimum(np.maximum(_wide(x), float(low)), float(high))


@_means("nn.leakyrelu")
def _leaky_relu(attrs: Any, x: Array) -> Array:
    return np.where(x > 0, x, _wide(x) * float(attrs.alpha))


@_means("nn.prelu")
def _prelu(attrs: Any, x: Array, alpha: Array) -> Array:
    shape = [1] * x.ndim
    shape[int(attrs.axis)] = -1
    return np.where(x > 0, x, _wide(x) * alpha.reshape(shape))


@_means("nn.softplus")
def _softplus(attrs: Any, x: Array) -> Array:
    beta = float(attrs.beta)
    return np.logaddexp(0.0, _wide(x) * beta) / beta


@_means("where")
def _where(attrs: Any, condition: Array, x: Array, y: Array) -> Array:
    return np.where(condition, x, y)


@_means("shape_of")
def _shape_of(attrs: Any, x: Array) -> tuple[int, ...]:
    return x.shape


@_means("shape_to_tensor")
def _shape_to_tensor(attrs: Any, shape: Sequence[int]) -> Array:
    return np.asarray(shape, np.int64)


@_means("one_hot")
def _one_hot(attrs: Any, indices: Array, on_value: Any, off_value: Any) -> Array:
    depth, axis = int(attrs.depth), int(attrs.axis)
    axis += indices.ndim + 1 if axis < 0 else 0
    places = np.arange(depth).reshape([-1] + [1] * (indices.ndim - axis))
    return np.asarray(np.where(np.expand_dims(indices, axis) == places, on_value, off_value))


@_means("einsum")
def _einsum(attrs: Any, parts: Sequence[Array]) -> Array:
    return np.asarray(np.einsum(str(attrs.subscripts), *(_wide(part) for part in parts)))


@_means("astype")
def _astype(attrs: Any, x: Array) -> Array:
    return x


# Shapes: each gives a view or a copy of the same numbers.
@_means("reshape")
def _reshape(attrs: Any, x: Array, shape: Sequence[int]) -> Array:
    return x.reshape(shape)


@_means("broadcast_to")
def _broadcast_to(attrs: Any, x: Array, shape: Sequence[int]) -> Array:
    return np.broadcast_to(x, shape)


@_means("squeeze")
def _squeeze(attrs: Any, x: Array) -> Array:
    return np.squeeze(x, None if attrs.axis is None else tuple(_ints(attrs.axis)))


@_means("expand_dims")
def _expand_dims(attrs: Any, x: Array) -> Array:
    return np.expand_dims(x, tuple(_ints(attrs.axis)))


@_means("flatten")
def _flatten(attrs: Any, x: Array) -> Array:
    return x.reshape(-1)


@_means("nn.batch_flatten")
def _batch_flatten(attrs: Any, x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


@_means("permute_dims")
def _permute_dims(attrs: Any, x: Array) -> Array:
    return np.transpose(x, None if attrs.axes is None else _ints(attrs.axes))


@_means("concat")
def _concat(attrs: Any, parts: Sequence[Array]) -> Array:
    return np.concatenate(list(parts), axis=0 if attrs.axis is None else int(attrs.axis))


@_means("stack")
def _stack(attrs: Any, parts: Sequence[Array]) -> Array:
    return np.stack(list(parts), axis=0 if attrs.axis is None else int(attrs.axis))


@_means("split")
def _split(attrs: Any, x: Array) -> tuple[Array, ...]:
    where, axis = attrs.indices_or_sections, int(attrs.axis)
    if hasattr(where, "__len__"):
        return tuple(np.split(x, _ints(where), axis))
    # A number of sections that does not divide the axis leaves the last one smaller.
    size = -(-x.shape[axis] // int(where))
    return tuple(np.split(x, [size * i for i in range(1, int(where))], axis))


@_means("strided_slice")
def _strided_slice(
    attrs: Any, x: Array, axes: Any, begin: Any, end: Any, strides: Any = None
) -> Array:
    index: list[slice] = [slice(None)] * x.ndim
    steps = [1] * len(axes) if strides is None else _ints(strides)
    for axis, first, last, step in zip(_ints(axes), _ints(begin), _ints(end), steps, strict=True):
        # A backward slice that ends before element 0 has no number for its end in numpy.
        stop = None if step < 0 and last < -x.shape[axis] else last
        index[axis] = slice(first, stop, step)
    return x[tuple(index)]


@_means("take")
def _take(attrs: Any, x: Array, indices: Any) -> Array:
    return np.take(x, np.asarray(indices), axis=None if attrs.axis is None else int(attrs.axis))


@_means("gather_elements")
def _gather_elements(attrs: Any, x: Array, indices: Array) -> Array:
    return np.take_along_axis(x, indices, axis=int(attrs.axis))


@_means("flip")
def _flip(attrs: Any, x: Array) -> Array:
    return np.flip(x, int(attrs.axis))


@_means("tile")
def _tile(attrs: Any, x: Array) -> Array:
    return np.tile(x, _ints(attrs.repeats))


@_means("repeat")
def _repeat(attrs: Any, x: Array) -> Array:
    return np.repeat(x, int(attrs.repeats), None if attrs.axis is None else int(attrs.axis))


@_means("full")
def _full(attrs: Any, shape: Sequence[int], value: Array) -> Array:
    return np.full(shape, value)


@_means("zeros")
def _zeros(attrs: Any, shape: Sequence[int]) -> Array:
    return np.zeros(shape)


@_means("ones")
def _ones(attrs: Any, shape: Sequence[int]) -> Array:
    return np.ones(shape)


@_means("zeros_like")
def _zeros_like(attrs: Any, x: Array) -> Array:
    return np.zeros_like(x)


@_means("ones_like")
def _ones_like(attrs: Any, x: Array) -> Array:
    return np.ones_like(x)


_PAD_MODES: dict[str, Literal["reflect", "edge", "wrap"]] = {
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


@_means("nn.pad")
def _pad(attrs: Any, x: Array) -> Array:
    widths = _ints(attrs.pad_width)
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    mode = str(attrs.pad_mode)
    if mode == "constant":
        return np.pad(x, pairs, constant_values=float(attrs.pad_value))
    return np.pad(x, pairs, mode=_PAD_MODES[mode])


# Reductions.
_REDUCE: dict[str, Callable[..., Array]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "prod": np.prod,
    "std": np.std,
    "variance": np.var,
}


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def apply(attrs: Any, x: Array) -> Array:
        axis = None if attrs.axis is None else tuple(_ints(attrs.axis))
        return np.asarray(function(_wide(x), axis=axis, keepdims=bool(attrs.keepdims)))

    return apply


for _name, _function in _REDUCE.items():
    MEANING[f"relax.{_name}"] = _reduction(_function)


def _arg_reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def apply(attrs: Any, x: Array) -> Array:
        axis = None if attrs.axis is None else int(attrs.axis)
        return np.asarray(function(x, axis=axis, keepdims=bool(attrs.keepdims)))

    return apply


MEANING["relax.argmax"] = _arg_reduction(np.argmax)
MEANING["relax.argmin"] = _arg_reduction(np.argmin)


@_means("cumsum")
def _cumsum(attrs: Any, x: Array) -> Array:
    # Relax's cumsum has an exclusive form too: each sum without its own element.
    axis = None if attrs.axis is None else int(attrs.axis)
    sums = np.cumsum(_wide(x), axis=axis)
    return np.asarray(sums - _wide(x).reshape(sums.shape) if bool(attrs.exclusive) else sums)


@_means("nn.softmax")
def _softmax(attrs: Any, x: Array) -> Array:
    axis = int(attrs.axis)
    shifted = np.exp(_wide(x) - np.max(x, axis=axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=axis, keepdims=True))


@_means("nn.log_softmax")
def _log_softmax(attrs: Any, x: Array) -> Array:
    axis = int(attrs.axis)
    shifted = _wide(x) - np.max(x, axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


# Products and convolutions.
def _factors(a: Array, b: Array) -> tuple[Array, Array]:
    """Widen two arrays whose products are summed.

    Products of 8 and 16 bits take less than 31, so float64 sums 2**22 of them exactly, and numpy
    has a fast product of matrices for it alone.
    """
    if a.dtype.kind in "iu" and max(a.itemsize, b.itemsize) <= 2:
        return a.astype(np.float64), b.astype(np.float64)
    return _wide(a), _wide(b)


@_means("matmul")
def _matmul(attrs: Any, a: Array, b: Array) -> Array:
    return np.asarray(np.matmul(*_factors(a, b)))


def _windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Array:
    """Give every window of the trailing axes: (..., out..., kernel...)."""
    rank = len(kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(-rank, 0)))
    index: tuple[Any, ...] = tuple(slice(None, None, step) for step in (*strides, *dilation))
    return np.asarray(view[(Ellipsis, *index)])


@_means("nn.conv1d", "nn.conv2d", "nn.conv3d")
def _conv(attrs: Any, x: Array, weight: Array) -> Array:
    rank = x.ndim - 2
    letters = spatial(rank)
    data_layout, groups = str(attrs.data_layout), int(attrs.groups)
    x = np.transpose(x, axes_between(data_layout, "NC" + letters))
    weight = np.transpose(weight, axes_between(str(attrs.kernel_layout), "OI" + letters))
    x, weight = _factors(x, weight)
    x = np.pad(x, [(0, 0), (0, 0), *split_padding(_ints(attrs.padding))])
    outputs, inputs = weight.shape[:2]
    windows = _windows(x, weight.shape[2:], _ints(attrs.strides), _ints(attrs.dilation))
    places = windows.shape[2 : 2 + rank]
    # (N, groups, places, inputs * kernel) times (groups, inputs * kernel, outputs / groups)
    windows = windows.reshape(x.shape[0], groups, inputs, *places, -1)
    columns = np.moveaxis(windows, 2, -2).reshape(x.shape[0], groups, math.prod(places), -1)
    matrix = weight.reshape(groups, outputs // groups, -1).transpose(0, 2, 1)
    result = (columns @ matrix).transpose(0, 1, 3, 2).reshape(x.shape[0], outputs, *places)
    return np.transpose(result, axes_between("NC" + letters, data_layout))


@_means("nn.conv1d_transpose", "nn.conv2d_transpose")
def _conv_transpose(attrs: Any, x: Array, weight: Array) -> Array:
    rank = x.ndim - 2
    letters = spatial(rank)
    data_layout, groups = str(attrs.data_layout), int(attrs.groups)
    x = _wide(np.transpose(x, axes_between(data_layout, "NC" + letters)))
    weight = _wide(np.transpose(weight, axes_between(str(attrs.kernel_layout), "IO" + letters)))
    strides, dilation = _ints(attrs.strides), _ints(attrs.dilation)
    padding, extra = split_padding(_ints(attrs.padding)), _ints(attrs.output_padding)
    kernel = weight.shape[2:]
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(x.shape[2:], strides, kernel, dilation, extra, strict=True)
    ]
    per_group = weight.shape[1]
    result = np.zeros((x.shape[0], groups * per_group, *full), x.dtype)
    for group in range(groups):
        source = x[:, group * (x.shape[1] // groups) : (group + 1) * (x.shape[1] // groups)]
        matrix = weight[group * source.shape[1] : (group + 1) * source.shape[1]]
        target = result[:, group * per_group : (group + 1) * per_group]
        for tap in product(*(range(k) for k in kernel)):
            where = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilation, x.shape[2:], strides, strict=True)
            )
            taps = matrix.reshape(*matrix.shape[:2], -1)[:, :, np.ravel_multi_index(tap, kernel)]
            target[(slice(None), slice(None), *where)] += np.einsum("nc...,co->no...", source, taps)
    crop = tuple(slice(b, n - a) for (b, a), n in zip(padding, full, strict=True))
    return np.transpose(
        result[(slice(None), slice(None), *crop)], axes_between("NC" + letters, data_layout)
    )


# Pooling.
def _pool(attrs: Any, x: Array, rank: int, fill: float) -> tuple[Array, Array]:
    """Give windows (N, C, out..., kernel...) and which of their elements are real."""
    letters = spatial(rank)
    x = np.transpose(x, axes_between(str(attrs.layout), "NC" + letters))
    kernel, strides = _ints(attrs.pool_size), _ints(attrs.strides)
    dilation, padding = _ints(attrs.dilation), split_padding(_ints(attrs.padding))
    extra = [0] * rank
    if bool(attrs.ceil_mode):
        for i in range(rank):
            before, size = padding[i][0], x.shape[2 + i]
            free = size + sum(padding[i]) - ((kernel[i] - 1) * dilation[i] + 1)
            extra[i] = -free % strides[i]
            # A window must start inside the data or the padding in front of it.
            if free + extra[i] >= size + before:
                extra[i] -= strides[i]
    around = [(0, 0), (0, 0), *padding]
    beyond = [(0, 0), (0, 0), *((0, max(e, 0)) for e in extra)]
    crop = (Ellipsis, *(slice(None, e if e < 0 else None) for e in extra))
    real = np.pad(np.pad(np.ones(x.shape, bool), around), beyond)[crop]
    inside = np.pad(np.pad(np.ones(x.shape, bool), around, constant_values=True), beyond)[crop]
    padded = np.pad(x, around, constant_values=fill)
    padded = np.pad(padded, beyond, constant_values=fill)[crop]
    counted = inside if getattr(attrs, "count_include_pad", False) else real
    return (
        _windows(padded, kernel, strides, dilation),
        _windows(counted, kernel, strides, dilation),
    )


def _max_pool(attrs: Any, x: Array) -> Array:
    rank = x.ndim - 2
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    windows, _ = _pool(attrs, x, rank, low)
    result = windows.max(axis=tuple(range(-rank, 0)))
    return np.transpose(result, axes_between("NC" + spatial(rank), str(attrs.layout)))


def _avg_pool(attrs: Any, x: Array) -> Array:
    rank = x.ndim - 2
    windows, counted = _pool(attrs, _wide(x), rank, 0)
    axes = tuple(range(-rank, 0))
    result = windows.sum(axis=axes) / np.maximum(counted.sum(axis=axes), 1)
    return np.transpose(result, axes_between("NC" + spatial(rank), str(attrs.layout)))


def window_counts(attrs: Any, shape: Sequence[int]) -> NDArray[np.int64]:
    """Give how many elements each window of an average pooling counts.

    Args:
        attrs: of ``relax.nn.avg_pool1d`` and its like.
        shape: of the input, in the pooling's layout.

    Returns:
        The counts, of the output's shape with 1 along N and C.
    """
    rank, layout = len(shape) - 2, str(attrs.layout)
    ones = [1 if letter in "NC" else n for n, letter in zip(shape, layout, strict=True)]
    _, counted = _pool(attrs, np.zeros(ones, np.int64), rank, 0)
    counts = np.maximum(counted.sum(axis=tuple(range(-rank, 0))), 1)
    return np.transpose(counts, axes_between("NC" + spatial(rank), layout))


def _adaptive_avg_pool(attrs: Any, x: Array) -> Array:
    rank = x.ndim - 2
    letters = spatial(rank)
    if attrs.output_size is None:  # the output has the size of the input
        return x
    x = _wide(np.transpose(x, axes_between(str(attrs.layout), "NC" + letters)))
    for axis, size in enumerate(_ints(attrs.output_size), start=2):
        n = x.shape[axis]
        parts = [
            x.take(range(i * n // size, -(-(i + 1) * n // size)), axis).mean(axis, keepdims=True)
            for i in range(size)
        ]
        x = np.concatenate(parts, axis)
    return np.transpose(x, axes_between("NC" + letters, str(attrs.layout)))


for _rank in (1, 2, 3):
    MEANING[f"relax.nn.max_pool{_rank}d"] = _max_pool
    MEANING[f"relax.nn.avg_pool{_rank}d"] = _avg_pool
    MEANING[f"relax.nn.adaptive_avg_pool{_rank}d"] = _adaptive_avg_pool


# Normalisation.
@_means("nn.batch_norm")
def _batch_norm(
    attrs: Any, x: Array, gamma: Array, beta: Array, mean: Array, var: Array
) -> tuple[Array, Array, Array]:
    shape = [1] * x.ndim
    shape[int(attrs.axis)] = -1
    if attrs.training:
        axes = tuple(a for a in range(x.ndim) if a != int(attrs.axis))
        momentum, old_mean, old_var = float(attrs.momentum), mean, var
        mean, var = _wide(x).mean(axes), _wide(x).var(axes)
        new_mean = old_mean * (1 - momentum) + mean * momentum
        new_var = old_var * (1 - momentum) + var * momentum
    else:
        new_mean, new_var = mean, var
    y = _wide(x) - mean.reshape(shape)
    y = y / np.sqrt(_wide(var).reshape(shape) + float(attrs.epsilon))
    if attrs.scale:
        y = y * gamma.reshape(shape)
    if attrs.center:
        y = y + beta.reshape(shape)
    return y, new_mean, new_var


@_means("nn.layer_norm")
def _layer_norm(attrs: Any, x: Array, gamma: Array, beta: Array) -> Array:
    axes = tuple(_ints(attrs.axes))
    x = _wide(x)
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(
        x.var(axes, keepdims=True) + float(attrs.epsilon)
    )
    return np.asarray(y * (gamma if attrs.scale else 1.0) + (beta if attrs.center else 0.0))


_ROUND: dict[str, Callable[[Array], Array]] = {
    # Positions a hair beside the middle (or an element) come from rounding, so they count as on it.
    "round": np.round,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5 - 1e-5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5 + 1e-5),
    "floor": lambda x: np.floor(x + 1e-5),
    "ceil": lambda x: np.ceil(x - 1e-5),
}


def _source_positions(size: int, target: int, mode: str) -> Array:
    """Give the position in an axis of ``size`` elements for each of ``target`` elements."""
    place, scale = np.arange(target, dtype=np.float64), size / target
    if mode == "align_corners":
        return place * ((size - 1) / (target - 1) if target > 1 else 0.0)
    if mode == "asymmetric":
        return place * scale
    if mode == "tf_half_pixel_for_nn":
        return (place + 0.5) * scale
    if mode == "pytorch_half_pixel" and target == 1:
        return np.zeros(1)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (place + 0.5) * scale - 0.5
    raise UnsupportedError(
        f"reference: relax.image.resize2d with the coordinates {mode} has no numpy meaning; "
        "expected half_pixel, pytorch_half_pixel, align_corners, asymmetric or "
        "tf_half_pixel_for_nn: export the network with one of them."
    )


@_means("image.resize2d")
def _resize2d(attrs: Any, x: Array, size: Sequence[int]) -> Array:
    layout, method = str(attrs.layout), str(attrs.method)
    if method not in ("nearest_neighbor", "linear"):
        raise UnsupportedError(
            f"reference: relax.image.resize2d by {method} has no numpy meaning; expected "
            "nearest_neighbor or linear: export the network with one of them."
        )
    mode = str(attrs.coordinate_transformation_mode)
    for letter, target in zip("HW", size, strict=True):
        axis = layout.index(letter)
        last = x.shape[axis] - 1
        position = _source_positions(last + 1, int(target), mode)
        if method == "nearest_neighbor":
            rounding = str(attrs.rounding_method)
            rounding = rounding or ("round" if mode == "align_corners" else "floor")
            x = np.take(x, np.clip(_ROUND[rounding](position), 0, last).astype(np.int64), axis)
            continue
        low = np.floor(position)
        share = (position - low).reshape([-1] + [1] * (x.ndim - 1 - axis))
        below, above = (np.clip(low + i, 0, last).astype(np.int64) for i in (0, 1))
        x = np.take(x, below, axis) * (1 - share) + np.take(x, above, axis) * share
    return x


@_means("nn.group_norm")
def _group_norm(attrs: Any, x: Array, gamma: Array, beta: Array) -> Array:
    channel, groups = int(attrs.channel_axis), int(attrs.num_groups)
    # The channels split into (groups, channels of a group); the axes are counted in the data.
    split = [*x.shape[:channel], groups, x.shape[channel] // groups, *x.shape[channel + 1 :]]
    rank = x.ndim
    axes = [a % rank for a in _ints(attrs.axes)]
    summed = tuple(sorted({channel + 1, *(a + (a > channel) for a in axes)}))
    grouped = _wide(x).reshape(split)
    y = grouped - grouped.mean(summed, keepdims=True)
    y = y / np.sqrt(grouped.var(summed, keepdims=True) + float(attrs.epsilon))
    shape = [1] * rank
    shape[channel] = -1
    scale = gamma.reshape(shape) if attrs.scale else 1.0
    shift = beta.reshape(shape) if attrs.center else 0.0
    return np.asarray(y.reshape(x.shape) * scale + shift)


@_means("nn.rms_norm")
def _rms_norm(attrs: Any, x: Array, weight: Array) -> Array:
    axes = tuple(_ints(attrs.axes))
    wide = _wide(x)
    mean = np.mean(np.square(wide), axes, keepdims=True)
    return np.asarray(wide / np.sqrt(mean + float(attrs.epsilon)) * weight)


# Fake quantisation: the float meaning of TFLite's and ONNX's Quantize/DequantizeLinear.
def _along(parameter: Array, x: Array, axis: int) -> Array:
    if parameter.ndim == 0 or parameter.size == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


@_means("quantize")
def _quantize(attrs: Any, x: Array, scale: Array, zero_point: Array) -> Array:
    axis = int(attrs.axis)
    info = np.iinfo(str(attrs.out_dtype))
    # The quotient is float32 before it is rounded, as in ONNX and TFLite: that decides near a half.
    steps = _wide(np.round(x / _along(scale, x, axis)))
    return np.asarray(
        np.clip(steps + _along(zero_point, x, axis).astype(np.int64), info.min, info.max)
    )


@_means("dequantize")
def _dequantize(attrs: Any, x: Array, scale: Array, zero_point: Array) -> Array:
    axis = int(attrs.axis)
    steps = x.astype(np.int64) - _along(zero_point, x, axis).astype(np.int64)
    return steps * _wide(_along(scale, x, axis))
