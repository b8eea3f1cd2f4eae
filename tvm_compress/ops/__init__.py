"""Relax operators of our own; importing this package registers them."""

from __future__ import annotations

from tvm_compress.ops.codebook import CODEBOOK, codebook, codebook_numpy, flat_codes

__all__ = ["CODEBOOK", "codebook", "codebook_numpy", "flat_codes"]
