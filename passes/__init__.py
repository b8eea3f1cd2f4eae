"""The passes: this list is the only one."""

from __future__ import annotations

from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import Prune
from tvm_compress.passes.share_weights import ShareWeights

__all__ = ["PASSES", "Canonicalize", "Pass", "Prune", "ShareWeights"]

PASSES: dict[str, type[Pass]] = {p.name: p for p in (Canonicalize, Prune, ShareWeights)}
