"""Kernels in assembly for Cortex-M with the DSP extension (M4, M7, M33)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm_compress.targets.artifact import Goal, Optimize
from tvm_compress.targets.mcu.dsp.coded import DECODER_BYTES, share_codes
from tvm_compress.targets.mcu.dsp.convolution import BYTE_COST, SCARCE, Convolution
from tvm_compress.targets.mcu.dsp.depthwise import Depthwise
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.residual import Addition

__all__ = [
    "PREFERENCES",
    "SCARCE",
    "Preference",
    "dsp_kernel",
    "dsp_kernels",
    "dsp_takes_sum",
    "preference",
]

Kernel = Convolution | Depthwise


@dataclass(frozen=True)
class Preference:
    """What kernels are chosen by.

    Attributes:
        byte_cost: how many instructions of an inference a byte of flash is worth.
        coded: whether weights may be coded in flash and decoded while they are multiplied.
    """

    byte_cost: float = BYTE_COST
    coded: bool = False


# At four times the last price flash falls by less than 0.5 % in the four networks of MLPerf Tiny,
# and instructions rise by up to 14 %.
PREFERENCES: dict[Goal, Preference] = {
    "speed": Preference(1.0),
    "balanced": Preference(),
    "size": Preference(1024.0, coded=True),
}


def preference(optimize: Optimize) -> Preference:
    """Give what ``build(optimize=)`` asks for; a number is the price of a byte itself."""
    if isinstance(optimize, str):
        return PREFERENCES[optimize]
    return Preference(float(optimize), coded=True)


def dsp_kernel(
    layer: IntegerLayer, residual: Addition | None = None, byte_cost: float = BYTE_COST
) -> Kernel | None:
    """Give the kernel in assembly that computes a layer, or None where there is none.

    With a ``residual`` the layer is one of those that :func:`dsp_takes_sum` admits. ``byte_cost``
    is how many instructions of an inference a byte of flash is worth.
    """
    if Convolution.refuses(layer) is None:
        return Convolution(layer, residual, byte_cost)
    if Depthwise.refuses(layer) is None:
        return Depthwise(layer, unroll=1) if byte_cost >= SCARCE else Depthwise(layer)
    return None


def dsp_kernels(
    layers: Sequence[tuple[IntegerLayer, Addition | None]], preference: Preference
) -> list[Kernel | None]:
    """Give the kernels of all layers of a network; see :func:`dsp_kernel`.

    Weights are coded where that costs less, and where all layers together save what the decoder
    takes.
    """
    price = preference.byte_cost
    kernels = [dsp_kernel(layer, residual, price) for layer, residual in layers]
    if not preference.coded:
        return kernels
    coded: dict[int, Convolution] = {}
    saved = -price * DECODER_BYTES
    for i, (plain, (layer, residual)) in enumerate(zip(kernels, layers, strict=True)):
        if isinstance(plain, Convolution):
            kernel = Convolution(layer, residual, price, coded=True)
            gain = plain.cost(price) - kernel.cost(price)
            if gain > 0:
                coded[i] = kernel
                saved += gain
    if saved <= 0:
        return kernels
    codes = share_codes([kernel.counts for kernel in coded.values()])
    for (i, kernel), code in zip(coded.items(), codes, strict=True):
        kernel.code = code
        kernels[i] = kernel
    return kernels


def dsp_takes_sum(layer: IntegerLayer) -> bool:
    """Whether the layer's kernel can add a residual to its output."""
    return Convolution.refuses(layer) is None
