"""Kernels in assembly for Cortex-M with the vector extension MVE, also called Helium (M55)."""

from __future__ import annotations

from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.mve.convolution import VectorConvolution
from tvm_compress.targets.mcu.mve.depthwise import VectorDepthwise

__all__ = ["mve_kernel"]


def mve_kernel(layer: IntegerLayer) -> VectorConvolution | VectorDepthwise | None:
    """Give the kernel in assembly that computes a layer, or None where there is none."""
    for kernel in (VectorConvolution, VectorDepthwise):
        if kernel.refuses(layer) is None:
            return kernel(layer)
    return None
