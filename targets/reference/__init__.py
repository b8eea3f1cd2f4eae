"""The reference target: numpy, slow, obviously right; every other target is compared with it."""

from __future__ import annotations

from tvm_compress.targets.reference.interpreter import evaluate, run

__all__ = ["evaluate", "run"]
