"""What every pass is: a frozen dataclass that becomes a ``tvm.transform.Pass``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm

__all__ = ["Pass"]


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a canonical module; the fields of a subclass are its options.

    An instance may be called on a module, and it stands in ``tvm.transform.Sequential`` beside
    TVM's own passes, where TVM's instruments see it under its ``name``.
    """

    name: ClassVar[str]

    @abstractmethod
    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the rewritten module; the argument stays as it was."""

    def __call__(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Run the pass as TVM runs passes."""
        return self.__tvm_ffi_object__()(mod)

    def __tvm_ffi_object__(self) -> Any:
        """Become a ``tvm.transform.Pass``: TVM asks for this wherever it takes one."""

        def transform(mod: tvm.IRModule, context: Any) -> tvm.IRModule:
            return self.apply(mod)

        return tvm.transform.module_pass(transform, opt_level=0, name=self.name)
