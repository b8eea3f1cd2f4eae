"""What each Relax operator means, in torch: as :mod:`tvm_compress.ops.meaning`, with gradients.

``TORCH[name](attrs, *arguments) -> tensor`` (or a tuple of tensors). Every function works on the
shapes that the IR declares and may run under ``torch.func.vmap``, so none writes in place. A
tensor that the IR declares to be of integers may stand as floats of whole value, because a gradient
has to pass through it (quantisation in training); it is exact below 2**24.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tvm_compress.ops.layout import axes_between, spatial, split_padding
from tvm_compress.ops.meaning import MEANING

__all__ = ["TORCH", "Attributes", "as_declared", "straight_through"]

TORCH: dict[str, Callable[..., Any]] = {}


class Attributes:
    """An operator's attributes as plain Python values, each read from TVM once.

    ``declared`` is the dtype (numpy's spelling) that the IR declares for the result, ``shape`` for
    a shape, or a tuple of them.
    """

    def __init__(self, attrs: Any, declared: Any) -> None:
        self._attrs = attrs
        self.declared = declared

    def __getattr__(self, name: str) -> Any:
        # Called for a name that is not stored yet: a call through TVM's FFI would cost as much as
        # a small kernel, in every step of the training.
        value = _plain(getattr(self._attrs, name))
        setattr(self, name, value)
        return value


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "__len__"):
        return [_plain(item) for item in value]
    if hasattr(value, "value"):
        return value.value
    return str(value)


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """Give ``rounded`` with the gradient of ``x``.

    For a rounding to whole numbers ``rounded - x`` is exact in floating point, and so is the sum.
    Source: Bengio et al., Estimating or Propagating Gradients (arXiv 1308.3432).
    """
    return x + (rounded - x).detach()


def as_declared(result: Any, declared: Any) -> Any:
    """Bring a result to the kind of dtype that the IR declares."""
    if isinstance(declared, tuple):
        return tuple(as_declared(r, d) for r, d in zip(result, declared, strict=True))
    if declared == "shape":
        return result
    if declared.startswith("float"):
        return result if result.is_floating_point() else result.to(getattr(torch, declared))
    if declared == "bool":
        return result if result.dtype == torch.bool else result != 0
    if result.is_floating_point():
        return straight_through(result, torch.trunc(result))
    return result


def _means(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            TORCH[f"relax.{name}"] = function
        return function

    return register


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.float32)


def _whole(x: Any) -> Any:
    """Integers that stand as floats become integers again, for indices and bits."""
    return x.to(torch.int64) if isinstance(x, Tensor) and x.is_floating_point() else x


# Elementwise: name -> torch function.
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "acosh": torch.acosh,
    "asin": torch.asin,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "bitwise_not": lambda x: torch.bitwise_not(_whole(x)),
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "isfinite": torch.isfinite,
    "isinf": torch.isinf,
    "isnan": torch.isnan,
    "log": torch.log,
    "logical_not": torch.logical_not,
    "negative": torch.neg,
    "ones_like": torch.ones_like,
    "round": torch.round,
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "trunc": torch.trunc,
    "zeros_like": torch.zeros_like,
    "nn.relu": torch.relu,
    "nn.gelu": F.gelu,
    "nn.gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "nn.silu": F.silu,
    "nn.selu": F.selu,
}
_BINARY: dict[str, Callable[[Any, Any], Tensor]] = {
    "add": torch.add,
    "atan2": torch.atan2,
    "bitwise_and": lambda a, b: torch.bitwise_and(_whole(a), _whole(b)),
    "bitwise_or": lambda a, b: torch.bitwise_or(_whole(a), _whole(b)),
    "bitwise_xor": lambda a, b: torch.bitwise_xor(_whole(a), _whole(b)),
    # as_declared() truncates the quotient of integers.
    "divide": torch.div,
    "equal": torch.eq,
    "floor_divide": torch.floor_divide,
    "floor_mod": torch.remainder,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "left_shift": lambda a, b: torch.bitwise_left_shift(_whole(a), _whole(b)),
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.fmod,
    "multiply": torch.mul,
    "not_equal": torch.ne,
    "power": torch.pow,
    "right_shift": lambda a, b: torch.bitwise_right_shift(_whole(a), _whole(b)),
    "subtract": torch.sub,
}


def _elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(attrs: Any, *args: Tensor) -> Tensor:
        return function(*args)

    return apply


for _name, _function in (_UNARY | _BINARY).items():
    TORCH[f"relax.{_name}"] = _elementwise(_function)


@_means("clip")
def _clip(attrs: Any, x: Tensor, low: float, high: float) -> Tensor:
    if x.is_floating_point():
        return torch.clamp(x, float(low), float(high))
    # A bound outside the dtype (or infinite) bounds nothing.
    info = torch.iinfo(x.dtype)
    return torch.clamp(x, int(max(low, info.min)), int(min(high, info.max)))


@_means("nn.leakyrelu")
def _leaky_relu(attrs: Any, x: Tensor) -> Tensor:
    return F.leaky_relu(x, attrs.alpha)


@_means("nn.prelu")
def _prelu(attrs: Any, x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * _along(alpha, x, attrs.axis))


@_means("nn.softplus")
def _softplus(attrs: Any, x: Tensor) -> Tensor:
    beta = float(attrs.beta)
    scaled = x * beta
    return torch.logaddexp(scaled, torch.zeros_like(scaled)) / beta


@_means("where")
def _where(attrs: Any, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition.to(torch.bool), x, y)


@_means("shape_of")
def _shape_of(attrs: Any, x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


@_means("shape_to_tensor")
def _shape_to_tensor(attrs: Any, shape: Sequence[int]) -> Tensor:
    return torch.tensor(shape, dtype=torch.int64)


@_means("one_hot")
def _one_hot(attrs: Any, indices: Tensor, on_value: float, off_value: float) -> Tensor:
    axis = attrs.axis + (indices.ndim + 1 if attrs.axis < 0 else 0)
    places = torch.arange(attrs.depth, device=indices.device)
    places = places.reshape([-1] + [1] * (indices.ndim - axis))
    return torch.where(indices.unsqueeze(axis) == places, on_value, off_value)


@_means("einsum")
def _einsum(attrs: Any, parts: Sequence[Tensor]) -> Tensor:
    return torch.einsum(attrs.subscripts, *parts)


@_means("astype")
def _astype(attrs: Any, x: Tensor) -> Tensor:
    if x.is_floating_point() and attrs.declared.startswith("float"):
        return x.to(getattr(torch, attrs.declared))
    return x


# Shapes.
@_means("reshape")
def _reshape(attrs: Any, x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.reshape(shape)


@_means("broadcast_to")
def _broadcast_to(attrs: Any, x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.expand(shape)


@_means("full")
def _full(attrs: Any, shape: Sequence[int], value: Tensor) -> Tensor:
    return value.expand(shape)


@_means("zeros")
def _zeros(attrs: Any, shape: Sequence[int]) -> Tensor:
    return torch.zeros(shape, dtype=getattr(torch, attrs.declared))


@_means("ones")
def _ones(attrs: Any, shape: Sequence[int]) -> Tensor:
    return torch.ones(shape, dtype=getattr(torch, attrs.declared))


@_means("squeeze")
def _squeeze(attrs: Any, x: Tensor) -> Tensor:
    return x.squeeze() if attrs.axis is None else x.squeeze(attrs.axis)


@_means("expand_dims")
def _expand_dims(attrs: Any, x: Tensor) -> Tensor:
    rank = x.ndim + len(attrs.axis)
    for axis in sorted(a % rank for a in attrs.axis):
        x = x.unsqueeze(axis)
    return x


@_means("flatten")
def _flatten(attrs: Any, x: Tensor) -> Tensor:
    return x.reshape(-1)


@_means("nn.batch_flatten")
def _batch_flatten(attrs: Any, x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


@_means("permute_dims")
def _permute_dims(attrs: Any, x: Tensor) -> Tensor:
    return x.permute(list(range(x.ndim))[::-1] if attrs.axes is None else attrs.axes)


@_means("concat")
def _concat(attrs: Any, parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=attrs.axis or 0)


@_means("stack")
def _stack(attrs: Any, parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts), dim=attrs.axis or 0)


@_means("split")
def _split(attrs: Any, x: Tensor) -> tuple[Tensor, ...]:
    where = attrs.indices_or_sections
    if isinstance(where, int):
        # A number of sections that does not divide the axis leaves the last one smaller.
        size = -(-x.shape[attrs.axis] // where)
        where = [size * i for i in range(1, where)]
    return tuple(torch.tensor_split(x, where, dim=attrs.axis))


@_means("strided_slice")
def _strided_slice(
    attrs: Any, x: Tensor, axes: Any, begin: Any, end: Any, strides: Any = None
) -> Tensor:
    steps = [1] * len(axes) if strides is None else strides
    for axis, first, last, step in zip(axes, begin, end, steps, strict=True):
        size = x.shape[axis]
        stop = None if step < 0 and last < -size else last
        # torch has no backward slices: those are read by their indices.
        if step > 0:
            start, stop, _ = slice(first, stop, step).indices(size)
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, max(start, stop), step),)]
        else:
            x = _select(x, axis, list(range(size))[first:stop:step])
    return x


def _select(x: Tensor, axis: int, indices: Any) -> Tensor:
    where = torch.as_tensor(indices, dtype=torch.int64, device=x.device)
    return torch.index_select(x, axis, where)


@_means("take")
def _take(attrs: Any, x: Tensor, indices: Any) -> Tensor:
    where = torch.as_tensor(_whole(indices), device=x.device).to(torch.int64)
    if attrs.axis is None:
        return x.reshape(-1)[where]
    return x[(slice(None),) * (attrs.axis % x.ndim) + (where,)]


@_means("gather_elements")
def _gather_elements(attrs: Any, x: Tensor, indices: Tensor) -> Tensor:
    where = indices.to(torch.int64)
    where = torch.where(where < 0, where + x.shape[attrs.axis], where)
    return torch.gather(x, attrs.axis, where)


@_means("flip")
def _flip(attrs: Any, x: Tensor) -> Tensor:
    return torch.flip(x, (attrs.axis,))


@_means("tile")
def _tile(attrs: Any, x: Tensor) -> Tensor:
    return torch.tile(x, attrs.repeats)


@_means("repeat")
def _repeat(attrs: Any, x: Tensor) -> Tensor:
    if attrs.axis is None:
        x = x.reshape(-1)
    axis = attrs.axis or 0
    # repeat_interleave's gradient has no rule under vmap; a broadcast has.
    axis %= x.ndim
    shape = [*x.shape[: axis + 1], attrs.repeats, *x.shape[axis + 1 :]]
    return x.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)


@_means("nn.pad")
def _pad(attrs: Any, x: Tensor) -> Tensor:
    pairs = list(zip(attrs.pad_width[::2], attrs.pad_width[1::2], strict=True))
    if attrs.pad_mode == "constant":
        return _padded(x, pairs, attrs.pad_value)
    mode: Any = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[attrs.pad_mode]
    for axis, pair in enumerate(pairs):
        if any(pair):
            x = _select(x, axis, np.pad(np.arange(x.shape[axis]), pair, mode=mode))
    return x


def _padded(x: Tensor, pairs: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the trailing axes by (before, after) each."""
    if not any(before or after for before, after in pairs):
        return x
    return F.pad(x, [width for pair in reversed(pairs) for width in pair], value=value)


# Reductions.
def _product(x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keepdims)
    return x


_REDUCE: dict[str, Callable[[Tensor, Any, bool], Tensor]] = {
    "sum": lambda x, axes, keep: torch.sum(x, axes, keepdim=keep),
    "mean": lambda x, axes, keep: torch.mean(_floating(x), axes, keepdim=keep),
    "max": lambda x, axes, keep: torch.amax(x, axes, keepdim=keep),
    "min": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep),
    "prod": _product,
    "std": lambda x, axes, keep: torch.std(_floating(x), axes, correction=0, keepdim=keep),
    "variance": lambda x, axes, keep: torch.var(_floating(x), axes, correction=0, keepdim=keep),
}


def _reduction(function: Callable[[Tensor, Any, bool], Tensor]) -> Callable[..., Tensor]:
    def apply(attrs: Any, x: Tensor) -> Tensor:
        axes = list(range(x.ndim)) if attrs.axis is None else attrs.axis
        return function(x, axes, bool(attrs.keepdims)) if axes else x

    return apply


for _name, _reduce in _REDUCE.items():
    TORCH[f"relax.{_name}"] = _reduction(_reduce)


def _arg_reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(attrs: Any, x: Tensor) -> Tensor:
        if attrs.axis is not None:
            return function(x, attrs.axis, keepdim=bool(attrs.keepdims))
        index = function(x.reshape(-1), 0)
        return index.reshape([1] * x.ndim) if attrs.keepdims else index

    return apply


TORCH["relax.argmax"] = _arg_reduction(torch.argmax)
TORCH["relax.argmin"] = _arg_reduction(torch.argmin)


@_means("cumsum")
def _cumsum(attrs: Any, x: Tensor) -> Tensor:
    return torch.cumsum(x.reshape(-1) if attrs.axis is None else x, attrs.axis or 0)


@_means("nn.softmax")
def _softmax(attrs: Any, x: Tensor) -> Tensor:
    return torch.softmax(_floating(x), attrs.axis)


@_means("nn.log_softmax")
def _log_softmax(attrs: Any, x: Tensor) -> Tensor:
    return torch.log_softmax(_floating(x), attrs.axis)


# Products and convolutions.
@_means("matmul")
def _matmul(attrs: Any, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b) if a.dtype == b.dtype else torch.matmul(_floating(a), _floating(b))


_CONV: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d)


def _moved(x: Tensor, source: str, target: str) -> Tensor:
    return x if source == target else x.permute(axes_between(source, target))


@_means("nn.conv1d", "nn.conv2d", "nn.conv3d")
def _conv(attrs: Any, x: Tensor, weight: Tensor) -> Tensor:
    rank = x.ndim - 2
    order = spatial(rank)
    x = _moved(x, attrs.data_layout, "NC" + order)
    weight = _moved(weight, attrs.kernel_layout, "OI" + order)
    pairs = split_padding(attrs.padding)
    even = all(before == after for before, after in pairs)
    y = _CONV[rank - 1](
        _floating(x if even else _padded(x, pairs)),
        _floating(weight),
        stride=attrs.strides,
        padding=[before for before, _ in pairs] if even else 0,
        dilation=attrs.dilation,
        groups=attrs.groups,
    )
    return _moved(y, "NC" + order, attrs.data_layout)


@_means("nn.conv1d_transpose", "nn.conv2d_transpose")
def _conv_transpose(attrs: Any, x: Tensor, weight: Tensor) -> Tensor:
    rank = x.ndim - 2
    order = spatial(rank)
    y = _CONV_TRANSPOSE[rank - 1](
        _floating(_moved(x, attrs.data_layout, "NC" + order)),
        _floating(_moved(weight, attrs.kernel_layout, "IO" + order)),
        stride=attrs.strides,
        dilation=attrs.dilation,
        groups=attrs.groups,
    )
    # Padding crops the full result, output padding extends it at the end by zeros: a negative
    # width crops, which covers uneven padding too.
    widths = zip(split_padding(attrs.padding), attrs.output_padding, strict=True)
    y = _padded(y, [(-before, extra - after) for (before, after), extra in widths])
    return _moved(y, "NC" + order, attrs.data_layout)


# Pooling.
_MAX_POOL: tuple[Callable[..., Tensor], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVG_POOL: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _ceil_extra(attrs: Any, sizes: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Give how many more places at the end of each axis ``ceil_mode`` lets a window cover.

    A window has to start inside the data or the padding in front of it; where the padding behind
    it holds more windows, the number is negative.
    """
    extra = [0] * len(sizes)
    if attrs.ceil_mode:
        for i, (n, (before, after)) in enumerate(zip(sizes, pairs, strict=True)):
            stride = attrs.strides[i]
            free = n + before + after - ((attrs.pool_size[i] - 1) * attrs.dilation[i] + 1)
            extra[i] = -free % stride
            if free + extra[i] >= n + before:
                extra[i] -= stride
    return extra


def _pool(attrs: Any, x: Tensor, average: bool) -> Tensor:
    rank = x.ndim - 2
    order = spatial(rank)
    x = _floating(_moved(x, attrs.layout, "NC" + order))
    pairs = split_padding(attrs.padding)
    extra = _ceil_extra(attrs, x.shape[2:], pairs)
    widths = [(before, after + e) for (before, after), e in zip(pairs, extra, strict=True)]
    if average:
        y = _window_sums(attrs, _padded(x, widths)) / _counts(
            tuple(x.shape[2:]),
            tuple(pairs),
            tuple(extra),
            (tuple(attrs.pool_size), tuple(attrs.strides), tuple(attrs.dilation)),
            bool(attrs.count_include_pad),
        ).to(x)
    else:
        y = _MAX_POOL[rank - 1](
            _padded(x, widths, -math.inf), attrs.pool_size, attrs.strides, dilation=attrs.dilation
        )
    return _moved(y, "NC" + order, attrs.layout)


def _window_sums(attrs: Any, x: Tensor) -> Tensor:
    rank, taps = x.ndim - 2, int(math.prod(attrs.pool_size))
    if all(d == 1 for d in attrs.dilation):
        return _AVG_POOL[rank - 1](x, attrs.pool_size, attrs.strides) * taps
    ones = torch.ones((x.shape[1], 1, *attrs.pool_size), dtype=x.dtype, device=x.device)
    return _CONV[rank - 1](
        x, ones, stride=attrs.strides, dilation=attrs.dilation, groups=x.shape[1]
    )


@lru_cache(maxsize=256)
def _counts(
    sizes: tuple[int, ...],
    pairs: tuple[tuple[int, int], ...],
    extra: tuple[int, ...],
    window: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    include_pad: bool,
) -> Tensor:
    """Give how many elements each window of an average counts: the places of ``extra`` never."""
    kernel, strides, dilation = window
    counts = np.ones((), np.int64)
    for n, (before, after), e, k, s, d in zip(
        sizes, pairs, extra, kernel, strides, dilation, strict=True
    ):
        real = np.pad(np.ones(n, np.int64), (before, after), constant_values=int(include_pad))
        real = np.pad(real, (0, max(e, 0)))[: e if e < 0 else None]
        view = np.lib.stride_tricks.sliding_window_view(real, (k - 1) * d + 1)[::s, ::d]
        counts = np.multiply.outer(counts, view.sum(-1))
    return torch.from_numpy(np.maximum(counts, 1))


def _max_pool(attrs: Any, x: Tensor) -> Tensor:
    return _pool(attrs, x, average=False)


def _avg_pool(attrs: Any, x: Tensor) -> Tensor:
    return _pool(attrs, x, average=True)


_ADAPTIVE: tuple[Callable[..., Tensor], ...] = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)


def _adaptive_avg_pool(attrs: Any, x: Tensor) -> Tensor:
    rank = x.ndim - 2
    order = spatial(rank)
    x = _floating(_moved(x, attrs.layout, "NC" + order))
    return _moved(_ADAPTIVE[rank - 1](x, attrs.output_size), "NC" + order, attrs.layout)


for _rank in (1, 2, 3):
    TORCH[f"relax.nn.max_pool{_rank}d"] = _max_pool
    TORCH[f"relax.nn.avg_pool{_rank}d"] = _avg_pool
    TORCH[f"relax.nn.adaptive_avg_pool{_rank}d"] = _adaptive_avg_pool


# Normalisation.
@_means("nn.batch_norm")
def _batch_norm(
    attrs: Any, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    new_mean, new_var = mean, var
    if attrs.training:
        # The statistics are those of what main is called on: of one sample, in a batch too.
        axes = [axis for axis in range(x.ndim) if axis != attrs.axis % x.ndim]
        kept = 1.0 - attrs.momentum
        old_mean, old_var = mean, var
        mean, var = x.mean(axes), x.var(axes, correction=0)
        new_mean = old_mean * kept + mean * attrs.momentum
        new_var = old_var * kept + var * attrs.momentum
    y = x - _along(mean, x, attrs.axis)
    y = y * torch.rsqrt(_along(var, x, attrs.axis) + attrs.epsilon)
    if attrs.scale:
        y = y * _along(gamma, x, attrs.axis)
    if attrs.center:
        y = y + _along(beta, x, attrs.axis)
    return y, new_mean, new_var


@_means("nn.layer_norm")
def _layer_norm(attrs: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    y = _standardised(x, attrs.axes, attrs.epsilon)
    if attrs.scale:
        y = y * gamma
    return y + beta if attrs.center else y


def _standardised(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)


@_means("nn.group_norm")
def _group_norm(attrs: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    channel, groups, shape = attrs.channel_axis % x.ndim, attrs.num_groups, x.shape
    # The channels split into (groups, channels of a group); the axes are counted in the data.
    split = x.reshape(*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :])
    axes = {channel + 1, *(a + (a > channel) for a in (a % x.ndim for a in attrs.axes))}
    y = _standardised(split, sorted(axes), attrs.epsilon).reshape(shape)
    if attrs.scale:
        y = y * _along(gamma, x, channel)
    return y + _along(beta, x, channel) if attrs.center else y


@_means("nn.rms_norm")
def _rms_norm(attrs: Any, x: Tensor, weight: Tensor) -> Tensor:
    axes: list[int] = attrs.axes
    mean = x.square().mean(axes, keepdim=True)
    return x * torch.rsqrt(mean + float(attrs.epsilon)) * weight


@_means("image.resize2d")
def _resize2d(attrs: Any, x: Tensor, size: Sequence[int]) -> Tensor:
    for letter, target in zip("HW", size, strict=True):
        axis = attrs.layout.index(letter)
        matrix = _resize_matrix(
            x.shape[axis],
            int(target),
            attrs.method,
            attrs.coordinate_transformation_mode,
            attrs.rounding_method,
        ).to(x)
        x = torch.tensordot(x, matrix, dims=([axis], [0])).movedim(-1, axis)
    return x


@lru_cache(maxsize=256)
def _resize_matrix(size: int, target: int, method: str, mode: str, rounding: str) -> Tensor:
    """Give (size, target): what each element of an axis adds to each element of the resized one.

    Resizing is linear, so the numpy meaning of the identity matrix is that matrix; the rules of
    coordinates and rounding are written once.
    """
    attrs = SimpleNamespace(
        layout="HW", method=method, coordinate_transformation_mode=mode, rounding_method=rounding
    )
    resized = MEANING["relax.image.resize2d"](attrs, np.eye(size), (size, target))
    return torch.from_numpy(np.asarray(resized, np.float64))


# Fake quantisation.
def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape a parameter of one value a channel so that it broadcasts along ``axis`` of ``x``."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


@_means("quantize")
def _quantize(attrs: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    info = np.iinfo(attrs.declared)
    scaled = x / _along(scale, x, attrs.axis)
    steps = straight_through(scaled, torch.round(scaled))
    # Outside the range the gradient is zero: a step there changes nothing.
    return torch.clamp(steps + _along(zero_point, x, attrs.axis), int(info.min), int(info.max))


@_means("dequantize")
def _dequantize(attrs: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    steps = x.to(scale.dtype) - _along(zero_point, x, attrs.axis).to(scale.dtype)
    return steps * _along(scale, x, attrs.axis)
