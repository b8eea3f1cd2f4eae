"""Fine-tuning: the IR as a torch network, and a training loop that keeps what was compressed.

The package can be imported without torch; its names need it, and say so.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tvm_compress.errors import MissingToolError

if TYPE_CHECKING:
    from tvm_compress.training.distillation import teacher_outputs
    from tvm_compress.training.interpreter import TorchModule
    from tvm_compress.training.loop import TrainingStep, finetune

__all__ = ["TorchModule", "TrainingStep", "finetune", "teacher_outputs"]

# torch takes seconds to import and is an extra, so a name is imported when it is asked for.
_HOME = {
    "TorchModule": "tvm_compress.training.interpreter",
    "TrainingStep": "tvm_compress.training.loop",
    "finetune": "tvm_compress.training.loop",
    "teacher_outputs": "tvm_compress.training.distillation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingToolError(
            "Fine-tuning needs torch, and torch is not installed; install the extra: "
            "pip install 'tvm-compress[train]'."
        ) from error
    return getattr(importlib.import_module(_HOME[name]), name)
