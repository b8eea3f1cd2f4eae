"""What every pass is: a frozen dataclass that becomes a ``tvm.transform.Pass``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm

__all__ = ["InputsPass", "OnInputs", "Pass"]


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


@dataclass(frozen=True)
class InputsPass(Pass):
    """A pass that looks at samples without labels; they are no option of it.

    ``SomePass(...).on(inputs)`` is the pass with its inputs, and :func:`tvm_compress.compress`
    gives it those of ``calibrate=``. ``needs_inputs`` says whether it cannot do without.
    """

    needs_inputs: ClassVar[bool]

    def on(self, inputs: Any) -> OnInputs:
        """Give the pass that runs on a network with these inputs.

        Args:
            inputs: N samples: an array (N, ...) or arrays by input name. A few hundred do.
        """
        return OnInputs(self, inputs)

    @abstractmethod
    def rewritten(self, mod: tvm.IRModule, inputs: Any) -> tvm.IRModule:
        """Give the rewritten module; ``inputs`` are None where there are none."""

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Rewrite without inputs."""
        return self.rewritten(mod, None)


@dataclass(frozen=True, eq=False)
class OnInputs(Pass):
    """A pass with its inputs; two are equal only if they are the same object."""

    options: InputsPass
    inputs: Any

    # Not those of Pass, which would compare no field at all.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def name(self) -> str:  # type: ignore[override]  # of a class elsewhere, here of the options
        """Name of the pass."""
        return self.options.name

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the rewritten module.

        Raises:
            DataError: inputs of a wrong name, shape or dtype, or values that are not finite.
            UnsupportedError: an operator without a numpy meaning.
        """
        return self.options.rewritten(mod, self.inputs)
