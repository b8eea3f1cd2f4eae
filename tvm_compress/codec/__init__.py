"""The ``.tcz`` file: a compressed network in as few bytes as its entropy allows."""

from __future__ import annotations

from tvm_compress.codec.container import (
    MAGIC,
    PROFILES,
    check_profile,
    measure,
    pack,
    read_header,
    read_sections,
    unpack,
)
from tvm_compress.codec.tensors import coded_bytes

__all__ = [
    "MAGIC",
    "PROFILES",
    "check_profile",
    "coded_bytes",
    "measure",
    "pack",
    "read_header",
    "read_sections",
    "unpack",
]
