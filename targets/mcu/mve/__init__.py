"""Kernels in assembly for Cortex-M with the vector extension MVE, also called Helium (M55)."""

from __future__ import annotations

from tvm_compress.targets.mcu.dsp.convolution import BYTE_COST
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.mve.convolution import VectorConvolution
from tvm_compress.targets.mcu.mve.depthwise import VectorDepthwise

__all__ = ["mve_kernel"]


def mve_kernel(
    layer: IntegerLayer, byte_cost: float = BYTE_COST
) -> VectorConvolution | VectorDepthwise | None:
    """Give the kernel in assembly that computes a layer, or None where there is none.

    Of all forms that the layer's weights can have it has the cheapest one; ``byte_cost`` is how
    many instructions of an inference a byte of flash is worth.
    """
    if VectorConvolution.refuses(layer) is None:
        return min(VectorConvolution.forms(layer), key=lambda kernel: kernel.cost(byte_cost))
    return VectorDepthwise(layer) if VectorDepthwise.refuses(layer) is None else None
