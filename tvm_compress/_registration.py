"""Registers our operators as soon as TVM is there, without importing TVM itself.

``import tvm`` takes seconds, and ``tvm-compress --help`` needs none of it; but whoever has imported
both packages, in either order, must find ``tvm_compress.codebook`` registered. So the operators are
registered at once where TVM is imported already, and right behind ``import tvm`` where it comes
later. Nobody can see the difference: what is not registered can only be missed through TVM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register_with_tvm"]

_OPERATORS = "tvm_compress.ops"
# edge.py imports TVM and is what registers the operators. Where it is the first to import TVM, it
# is half loaded when TVM is ready, so the operators wait for both.
_AWAITED = ("tvm", "tvm_compress.edge")


def register_with_tvm() -> None:
    """Register the operators now if TVM is imported, else as soon as it has been."""
    if "tvm" in sys.modules:
        import_module(_OPERATORS)
    else:
        sys.meta_path.insert(0, _AfterTvm())


class _AfterTvm(MetaPathFinder):
    """Finds TVM as the other finders do and registers the operators after it was loaded."""

    def __init__(self) -> None:
        self._loading: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the spec of an awaited module with a loader that reports to us."""
        if fullname not in _AWAITED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: object) -> None:
        # The attribute of this one instance hides the method of its class, once: the module's
        # loader stays what everybody expects.
        def exec_module(module: ModuleType) -> None:
            del vars(loader)["exec_module"]
            self._loading.add(module.__name__)
            try:
                loader.exec_module(module)  # type: ignore[attr-defined]
            finally:
                self._loading.discard(module.__name__)
            if "tvm" in sys.modules and not self._loading and self in sys.meta_path:
                sys.meta_path.remove(self)
                import_module(_OPERATORS)

        vars(loader)["exec_module"] = exec_module
