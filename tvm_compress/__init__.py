"""Compress networks on Apache TVM's IR and keep the weights compressed down to the kernel.

>>> import tvm_compress as tc
>>> tc.recipes.deep_compression(sparsity=0.9, bits=4, epochs=0).steps
(Prune(sparsity=0.9, ...), ShareWeights(bits=4, ...))

Names are imported when they are first used, for ``import tvm`` takes seconds and the command line's
help needs none of it. The operators are registered as soon as TVM is imported.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tvm_compress._registration import register_with_tvm

if TYPE_CHECKING:
    from tvm_compress import errors, passes, recipes
    from tvm_compress.build import build
    from tvm_compress.export_onnx import export_onnx
    from tvm_compress.frontends.deep_compression import import_deep_compression
    from tvm_compress.frontends.load import load
    from tvm_compress.pipeline import compress, quantize, save
    from tvm_compress.recipe import Recipe
    from tvm_compress.search import Budget, search

    __version__: str

__all__ = [
    "Budget",
    "Recipe",
    "__version__",
    "build",
    "compress",
    "errors",
    "export_onnx",
    "import_deep_compression",
    "load",
    "passes",
    "quantize",
    "recipes",
    "save",
    "search",
]

_MODULES = frozenset({"errors", "passes", "recipes"})
_HOME = {
    "Budget": "tvm_compress.search",
    "Recipe": "tvm_compress.recipe",
    "build": "tvm_compress.build",
    "compress": "tvm_compress.pipeline",
    "export_onnx": "tvm_compress.export_onnx",
    "import_deep_compression": "tvm_compress.frontends.deep_compression",
    "load": "tvm_compress.frontends",
    "quantize": "tvm_compress.pipeline",
    "save": "tvm_compress.pipeline",
    "search": "tvm_compress.search",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tvm-compress")
    except PackageNotFoundError:  # a checkout on the path that nobody installed
        return "unknown"


class _Package(ModuleType):
    """Keeps functions visible that are named as their modules are, such as ``build``."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system would put the submodule in the place of the function.
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

register_with_tvm()
