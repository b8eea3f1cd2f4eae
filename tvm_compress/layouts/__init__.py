"""Packed weight layouts: how compressed weights lie in flash, one pure pack/unpack pair each.

Every layout has a numpy form (the classes here), a C99 form (``reference.c``) and the kernels of
the targets that multiply from it. Nothing in this package needs TVM.
"""

from __future__ import annotations

from tvm_compress.layouts.bank import BANK_CODE_BITS, Bank
from tvm_compress.layouts.bits import WEIGHT_DTYPES, pack_bits, unpack_bits
from tvm_compress.layouts.block import Block
from tvm_compress.layouts.dense_codes import DenseCodes
from tvm_compress.layouts.gap_codes import GapCodes, best_gap_bits

__all__ = [
    "BANK_CODE_BITS",
    "WEIGHT_DTYPES",
    "Bank",
    "Block",
    "DenseCodes",
    "GapCodes",
    "best_gap_bits",
    "pack_bits",
    "unpack_bits",
]
