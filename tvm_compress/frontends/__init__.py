"""From a trained network to a canonical module."""

from __future__ import annotations

from tvm_compress.frontends.load import load

__all__ = ["load"]
