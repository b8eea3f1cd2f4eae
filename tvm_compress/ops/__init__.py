"""Relax operators of our own; importing this package registers them."""

from __future__ import annotations

from tvm_compress.ops.codebook import CODEBOOK, codebook, codebook_numpy, flat_codes
from tvm_compress.ops.lookup import LOOKUP, lookup, lookup_numpy
from tvm_compress.ops.requantize import (
    REQUANTIZE,
    ROUNDING,
    quantize_multiplier,
    requantize,
    requantize_numpy,
)
from tvm_compress.ops.softmax import SOFTMAX, softmax, softmax_numpy

__all__ = [
    "CODEBOOK",
    "LOOKUP",
    "REQUANTIZE",
    "ROUNDING",
    "SOFTMAX",
    "codebook",
    "codebook_numpy",
    "flat_codes",
    "lookup",
    "lookup_numpy",
    "quantize_multiplier",
    "requantize",
    "requantize_numpy",
    "softmax",
    "softmax_numpy",
]
