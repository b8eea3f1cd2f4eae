"""``patchwise``: compute the first layers patch by patch, so that no map of theirs is whole.

Before::

    c1 = R.nn.conv2d(x, w1, padding=1)                    # 32 x 32
    c2 = R.nn.conv2d(R.nn.relu(c1), w2, padding=1)        # 32 x 32

After ``patchwise(layers=2, patches=2)``::

    x_0_0 = R.strided_slice(x, rows 0..18, columns 0..18)         # 16 and a halo of 2
    c1_0_0 = R.nn.conv2d(x_0_0, w1, padding=[1, 1, 0, 0])         # pads at the image's border alone
    c2_0_0 = R.nn.conv2d(R.nn.relu(c1_0_0), w2, padding=[1, 1, 0, 0])
    ...                                                           # and three more
    c2 = R.concat((R.concat((c2_0_0, c2_0_1), 3), R.concat((c2_1_0, c2_1_1), 3)), 2)

Every element is computed from the same numbers in the same order, those in the halos more than
once: memory is paid for with work. The stage reaches from the input to the N-th convolution and
what follows it element by element or by windows; it may branch and join, as residual blocks do.

Source: Lin, Chen, Cai, Gan, Han, "MCUNetV2: memory-efficient patch-based inference for tiny deep
learning" (arXiv 2110.15352), section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.channels import BINARY
from tvm_compress.errors import OptionError, PassError
from tvm_compress.ops.layout import split_padding
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize

__all__ = ["Patchwise", "window"]

_CONVOLUTION = "relax.nn.conv2d"
_POOLS = ("relax.nn.max_pool2d", "relax.nn.avg_pool2d")
_PAD, _TRANSPOSE = "relax.nn.pad", "relax.permute_dims"
_ELEMENTWISE = BINARY | {
    *("relax.abs", "relax.astype", "relax.clip", "relax.exp", "relax.negative", "relax.round"),
    *("relax.sigmoid", "relax.sqrt", "relax.square", "relax.tanh", "relax.nn.gelu"),
    *("relax.nn.leakyrelu", "relax.nn.relu", "relax.nn.silu", "relax.nn.softplus"),
    *("relax.quantize", "relax.dequantize", "tvm_compress.requantize", "tvm_compress.lookup"),
}

_Range = tuple[int, int]
_Region = tuple[_Range, _Range]  # rows, columns


@dataclass(frozen=True)
class Patchwise(Pass):
    """Compute the first convolutions for each of ``patches`` x ``patches`` parts of their last map.

    The function stays the same, bit for bit; the peak of memory falls and the work grows. More
    layers push the whole maps to where they are smaller, and make the halos wider. A network
    without 2-D convolutions stays as it is.

    Args:
        layers: number of convolutions, depthwise ones counted, that are computed by patches.
        patches: number of patches along each of the two axes.

    Raises:
        OptionError: fewer than 1 layer or 2 patches.
        PassError: there are 2-D convolutions but fewer of them, a map inside the stage is read
            behind it, or a map is too small for its patches.
    """

    name: ClassVar[str] = "patchwise"

    layers: int = 3
    patches: int = 2

    def __post_init__(self) -> None:
        """Check the options."""
        if self.layers < 1:
            raise OptionError(
                f"patchwise: {self.layers} layers; expected 1 or more convolutions to compute by "
                "patches."
            )
        if self.patches < 2:
            raise OptionError(
                f"patchwise: {self.patches} patches along an axis; expected 2 or more: with one "
                "patch nothing is divided. Leave the pass out."
            )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with its first layers divided."""
        mod = Canonicalize().apply(mod)
        bindings = ir.bindings(ir.main_function(mod))
        if _CONVOLUTION not in {edge.op_name(binding.value) for binding in bindings}:
            return mod
        return _Divider(mod, self.layers, self.patches).run()


def window(
    places: _Range, taps: int, stride: int, dilation: int, pad: int, size: int
) -> tuple[_Range, _Range]:
    """Give what a window over one axis reads for some output places.

    Args:
        places: first output place, and the one behind the last.
        taps: of the window.
        stride: of the window.
        dilation: of the window.
        pad: padding in front of the axis.
        size: length of the axis.

    Returns:
        The range of the input, and how much padding is left in front of and behind it.

    >>> window((0, 8), 3, 1, 1, 1, 16)
    ((0, 9), (1, 0))
    >>> window((8, 16), 3, 1, 1, 1, 16)
    ((7, 16), (0, 1))
    """
    begin = places[0] * stride - pad
    end = (places[1] - 1) * stride - pad + (taps - 1) * dilation + 1
    return (max(begin, 0), min(end, size)), (max(0, -begin), max(0, end - size))


class _Divider(ir.Rewriter):
    def __init__(self, mod: tvm.IRModule, layers: int, patches: int) -> None:
        super().__init__(mod)
        function = ir.main_function(mod)
        self._all = list(ir.bindings(function))
        self._old: dict[Any, Any] = {b.var: b.value for b in self._all}
        self._patches = patches
        self._readers: dict[Any, list[Any]] = {}
        for binding in self._all:
            for var in edge.variables_in(binding.value):
                self._readers.setdefault(var, []).append(binding.var)
        for _, value in edge.outputs_of(function)[0]:
            for var in edge.variables_in(value):
                self._readers.setdefault(var, []).append(None)
        self._end, self._axes_of_end = self._find_end(layers)
        self._axes: dict[Any, tuple[int, int]] = {self._end: self._axes_of_end}
        self._stage = self._find_stage()
        self._check()

    # -- the stage ------------------------------------------------------------------------------

    def _find_end(self, layers: int) -> tuple[Any, tuple[int, int]]:
        """Find the last map: that of the N-th convolution and what follows it alone."""
        found = [b.var for b in self._all if edge.op_name(b.value) == _CONVOLUTION]
        if len(found) < layers:
            raise PassError(
                f"patchwise: the network has {len(found)} 2-D convolutions; expected at least the "
                f"{layers} that are to be computed by patches. Choose fewer layers."
            )
        end = found[layers - 1]
        axes = _layout_axes(self._old[end])
        later = set(found[layers:])
        while len(readers := set(self._readers.get(end, ()))) == 1 and None not in readers:
            reader = readers.pop()
            call = self._old[reader]
            others = [
                arg
                for arg in edge.variables_in(call)
                if arg != end and self._varies(arg, call, axes)
            ]
            if (
                edge.op_name(call) not in (*_ELEMENTWISE, *_POOLS)
                or not _takes(call)
                or any({other, *self._behind(other)} & later for other in others)
                or min(_sizes(reader, axes)) < self._patches
            ):
                break
            end = reader
        return end, axes

    def _behind(self, var: Any) -> set[Any]:
        """Give all that a variable is computed from."""
        seen: set[Any] = set()
        waiting = [var]
        while waiting:
            for arg in edge.variables_in(self._old.get(waiting.pop(), None)):
                if arg not in seen:
                    seen.add(arg)
                    waiting.append(arg)
        return seen

    def _varies(self, arg: Any, call: Any, axes: tuple[int, int]) -> bool:
        """Whether an argument of an elementwise call is a map, and not one value for all pixels."""
        shape, rank = edge.static_shape(arg), len(edge.static_shape(call) or ())
        if shape is None:
            return False
        aligned = [1] * (rank - len(shape)) + list(shape)
        return any(aligned[axis] != 1 for axis in axes)

    def _find_stage(self) -> list[Any]:
        """Give the variables that are computed by patches, in order; find the axes of all maps."""
        wanted, stage = {self._end}, []
        for binding in reversed(self._all):
            var, call = binding.var, binding.value
            if var not in wanted or not (var == self._end or _takes(call)):
                continue
            stage.append(var)
            for arg, axes in self._maps(var):
                wanted.add(arg)
                self._axes[arg] = axes
        return stage[::-1]

    def _maps(self, var: Any) -> list[tuple[Any, tuple[int, int]]]:
        """Give the maps that a variable of the stage reads, and which of their axes are spatial."""
        call, axes = self._old[var], self._axes[var]
        name = edge.op_name(call)
        if name == _TRANSPOSE:
            order = _order(call)
            return [(call.args[0], (order[axes[0]], order[axes[1]]))]
        if name not in _ELEMENTWISE:
            return [(call.args[0], axes)]
        args = [arg for arg in call.args if isinstance(arg, relax.Var)]
        return [(arg, axes) for arg in dict.fromkeys(args) if self._varies(arg, call, axes)]

    def _check(self) -> None:
        inside = set(self._stage)
        for var in self._stage:
            for reader in self._readers.get(var, ()) if var != self._end else ():
                if reader not in inside:
                    where = "an output" if reader is None else edge.var_name(reader)
                    raise PassError(
                        f"patchwise: the map {edge.var_name(var)} inside the stage is read behind "
                        f"it, by {where}; expected one map at the end of the stage, "
                        f"{edge.var_name(self._end)}. Choose more or fewer layers, so that the "
                        "stage ends where branches have met."
                    )
        sizes = _sizes(self._end, self._axes_of_end)
        if min(sizes) < self._patches:
            raise PassError(
                f"patchwise: the last map {edge.var_name(self._end)} has {sizes[0]} x {sizes[1]} "
                f"pixels; expected at least {self._patches} x {self._patches} for as many patches. "
                "Choose fewer layers or patches."
            )

    # -- the rewrite ----------------------------------------------------------------------------

    def rewrite(self, name: str, value: Any) -> Any:
        if name != edge.var_name(self._end):
            return value
        rows, columns = (
            [
                (size * i // self._patches, size * (i + 1) // self._patches)
                for i in range(self._patches)
            ]
            for size in _sizes(self._end, self._axes_of_end)
        )
        across, down = self._axes_of_end[1], self._axes_of_end[0]
        strips = []
        for i, part in enumerate(rows):
            parts = [self._patch((part, other), f"_{i}_{j}") for j, other in enumerate(columns)]
            strips.append(self.emit(relax.op.concat(parts, axis=across), f"{name}_{i}"))
        return relax.op.concat(strips, axis=down)

    def _patch(self, region: _Region, suffix: str) -> Any:
        """Emit everything that one patch of the last map takes."""
        needed = self._needed(region)
        done: dict[Any, Any] = {}
        for var in self._stage:
            if var in needed:
                done[var] = self._tile(var, needed, done, suffix)
        return done[self._end]

    def _needed(self, region: _Region) -> dict[Any, _Region]:
        """Give the region of every map of the stage that a region of the last one is made from."""
        needed = {self._end: region}
        for var in reversed(self._stage):
            if var not in needed:
                continue
            for arg, part in self._reads(var, needed[var])[0]:
                known = needed.get(arg, part)
                (a, b), (c, d) = known, part
                needed[arg] = (
                    (min(a[0], c[0]), max(a[1], c[1])),
                    (min(b[0], d[0]), max(b[1], d[1])),
                )
        return needed

    def _reads(self, var: Any, region: _Region) -> tuple[list[tuple[Any, _Region]], list[_Range]]:
        """Give the maps and regions that a region is computed from, and the padding that is left.

        The padding is (before, behind) of rows and of columns.
        """
        call, maps = self._old[var], self._maps(var)
        name = edge.op_name(call)
        none: list[_Range] = [(0, 0), (0, 0)]
        if name in (_CONVOLUTION, *_POOLS):
            arg, axes = maps[0]
            windows = [
                window(places, taps, stride, dilation, pad[0], size)
                for places, (taps, stride, dilation, pad), size in zip(
                    region, _windows(call), _sizes(arg, axes), strict=True
                )
            ]
        elif name == _PAD:
            arg, axes = maps[0]
            widths = _pad_widths(call)
            windows = [
                window(places, 1, 1, 1, widths[axis][0], size)
                for places, axis, size in zip(region, axes, _sizes(arg, axes), strict=True)
            ]
        else:
            return [(arg, region) for arg, _ in maps], none
        if any(begin >= end for (begin, end), _ in windows):
            raise PassError(
                f"patchwise: a patch of {edge.var_name(var)} lies in padding alone; expected "
                "patches that see some of the image. Choose fewer patches."
            )
        return [(arg, (windows[0][0], windows[1][0]))], [windows[0][1], windows[1][1]]

    def _tile(
        self, var: Any, needed: Mapping[Any, _Region], done: Mapping[Any, Any], suffix: str
    ) -> Any:
        """Emit the region of one variable that is needed."""
        call = self._old[var]
        reads, padding = self._reads(var, needed[var])
        new = dict(self._new)
        for arg, region in reads:
            new[arg] = self._part(arg, region, needed, done, suffix)
        name = f"{edge.var_name(var)}{suffix}"
        if edge.op_name(call) == _PAD:
            return self.emit(_padded(call, new[call.args[0]], self._axes[var], padding), name)
        args = [edge.substitute(arg, new) for arg in call.args]
        if edge.op_name(call) in (_CONVOLUTION, *_POOLS):
            (top, bottom), (left, right) = padding
            return self.emit(_windowed(call, args, [top, left, bottom, right]), name)
        return self.emit(edge.with_args(call, args), name)

    def _part(
        self,
        arg: Any,
        region: _Region,
        needed: Mapping[Any, _Region],
        done: Mapping[Any, Any],
        suffix: str,
    ) -> Any:
        """Give a region of a map: of its tile, or of what is whole in front of the stage."""
        axes = self._axes[arg]
        whole = done.get(arg, self._new.get(arg, arg))
        have = needed[arg] if arg in done else tuple((0, size) for size in _sizes(arg, axes))
        if region == have:
            return whole
        begin = [part[0] - all_of[0] for part, all_of in zip(region, have, strict=True)]
        end = [part[1] - all_of[0] for part, all_of in zip(region, have, strict=True)]
        sliced = relax.op.strided_slice(whole, list(axes), begin, end)
        return self.emit(sliced, f"{edge.var_name(arg)}{suffix}")


def _takes(call: Any) -> bool:
    """Whether a call can be computed by patches."""
    name = edge.op_name(call)
    if name == _PAD:
        return str(call.attrs.pad_mode) == "constant"
    if name in _POOLS:
        return not call.attrs.ceil_mode
    return name in (_CONVOLUTION, _TRANSPOSE) or name in _ELEMENTWISE


def _layout_axes(call: Any) -> tuple[int, int]:
    layout = str(call.attrs.data_layout)
    return layout.index("H"), layout.index("W")


def _sizes(var: Any, axes: Sequence[int]) -> tuple[int, int]:
    shape = edge.static_shape(var)
    assert shape is not None
    return shape[axes[0]], shape[axes[1]]


def _order(call: Any) -> list[int]:
    rank = len(edge.static_shape(call) or ())
    if call.attrs.axes is None:
        return list(range(rank))[::-1]
    return [int(axis) % rank for axis in call.attrs.axes]


def _windows(call: Any) -> list[tuple[int, int, int, _Range]]:
    """Give (taps, stride, dilation, padding) along rows and columns."""
    a = call.attrs
    if edge.op_name(call) == _CONVOLUTION:
        kernel, shape = str(a.kernel_layout), edge.static_shape(call.args[1]) or ()
        taps = [shape[kernel.index(axis)] for axis in "HW"]
    else:
        taps = [int(size) for size in a.pool_size]
    pads = split_padding([int(p) for p in a.padding])
    return [(taps[i], int(a.strides[i]), int(a.dilation[i]), pads[i]) for i in range(2)]


def _pad_widths(call: Any) -> list[_Range]:
    widths = [int(width) for width in call.attrs.pad_width]
    return list(zip(widths[::2], widths[1::2], strict=True))


def _padded(call: Any, data: Any, axes: tuple[int, int], padding: Sequence[_Range]) -> Any:
    widths = _pad_widths(call)
    for axis, width in zip(axes, padding, strict=True):
        widths[axis] = width
    flat = [size for pair in widths for size in pair]
    if not any(flat):
        return data
    return relax.op.nn.pad(data, flat, pad_value=call.attrs.pad_value)


def _windowed(call: Any, args: Sequence[Any], padding: list[int]) -> Any:
    """Give a convolution or pool with other arguments and padding."""
    a, name = call.attrs, edge.op_name(call)
    common: dict[str, Any] = {
        "strides": list(a.strides),
        "padding": padding,
        "dilation": list(a.dilation),
        "out_layout": a.out_layout,
    }
    if name == _CONVOLUTION:
        return relax.op.nn.conv2d(
            *args,
            groups=a.groups,
            data_layout=a.data_layout,
            kernel_layout=a.kernel_layout,
            out_dtype=a.out_dtype,
            **common,
        )
    build = getattr(relax.op.nn, str(name).rsplit(".", 1)[1])
    common.update(layout=a.layout, count_include_pad=a.count_include_pad)
    return build(args[0], list(a.pool_size), **common)
