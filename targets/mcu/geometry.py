"""One geometry for all multiplications: convolutions and products as a 2-D convolution.

A product ``(..., M, K) x (K, N)`` is a 1x1 convolution of ``M`` pixels from ``K`` to ``N``
channels with the channels last; a 1-D convolution is a 2-D one of height 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm_compress import edge
from tvm_compress.ops.layout import split_padding

__all__ = ["Geometry", "geometry_of"]


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution; ``inputs`` counts the input channels of one group.

    ``rank`` is the number of spatial axes of the tensors in the IR: 2, 1, or 0 for a product.
    """

    rank: int
    channels_last: bool
    batch: int
    groups: int
    inputs: int
    outputs: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]  # in front: top, left
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        """Weights of one output channel."""
        return self.inputs * self.kernel[0] * self.kernel[1]

    @property
    def pointwise(self) -> bool:
        """Whether every output pixel sees exactly the input pixel of the same index."""
        return (
            self.kernel == (1, 1)
            and self.strides == (1, 1)
            and self.padding == (0, 0)
            and self.in_size == self.out_size
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense operator, padding counted."""
        return self.batch * prod(self.out_size) * self.outputs * self.columns

    def flattened(self) -> Geometry:
        """Give a pointwise geometry with its pixels in one row."""
        pixels = (1, prod(self.out_size))
        return Geometry(**{**self.__dict__, "in_size": pixels, "out_size": pixels})


def geometry_of(call: Any) -> Geometry | None:
    """Give the geometry of a convolution or product with static shapes, else None."""
    name = edge.op_name(call)
    if name in ("relax.nn.conv1d", "relax.nn.conv2d"):
        return _convolution(call)
    if name == "relax.matmul":
        return _product(call)
    return None


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    """Give (height, width) of one or two numbers; ``fill`` stands for the missing height."""
    numbers = [int(v) for v in values]
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _convolution(call: Any) -> Geometry | None:
    a = call.attrs
    x, w, y = (edge.static_shape(e) for e in (call.args[0], call.args[1], call))
    layout, rank = str(a.data_layout), len(str(a.data_layout)) - 2
    letters = "HW"[2 - rank :]
    if x is None or w is None or y is None or str(a.kernel_layout) != "OI" + letters:
        return None
    if layout not in ("NC" + letters, "N" + letters + "C") or str(a.out_layout) != layout:
        return None

    def sizes(shape: tuple[int, ...]) -> tuple[int, int]:
        return _pair([shape[layout.index(letter)] for letter in letters])

    pads = split_padding([int(p) for p in a.padding])
    return Geometry(
        rank=rank,
        channels_last=layout.endswith("C"),
        batch=x[0],
        groups=int(a.groups),
        inputs=w[1],
        outputs=w[0],
        in_size=sizes(x),
        out_size=sizes(y),
        kernel=_pair(w[2:]),
        strides=_pair(a.strides),
        dilation=_pair(a.dilation),
        padding=(pads[0][0], pads[1][0]) if rank == 2 else (0, pads[0][0]),
        in_shape=x,
        out_shape=y,
    )


def _product(call: Any) -> Geometry | None:
    x, w, y = (edge.static_shape(e) for e in (call.args[0], call.args[1], call))
    if x is None or w is None or y is None or len(w) != 2 or len(x) < 1:
        return None
    pixels = (1, prod(x[:-1]))
    return Geometry(
        rank=0,
        channels_last=True,
        batch=1,
        groups=1,
        inputs=w[0],
        outputs=w[1],
        in_size=pixels,
        out_size=pixels,
        kernel=(1, 1),
        strides=(1, 1),
        dilation=(1, 1),
        padding=(0, 0),
        in_shape=x,
        out_shape=y,
    )
