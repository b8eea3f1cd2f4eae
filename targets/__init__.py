"""The targets: one folder, one kind of machine; this list is the only one."""

from __future__ import annotations

from tvm_compress.errors import OptionError
from tvm_compress.targets.artifact import Target

__all__ = ["TARGETS", "get_target"]

# Name -> where it lives. The modules are imported when they are asked for: some need tools.
TARGETS = {
    "c": ("tvm_compress.targets.mcu.target", "CTarget"),
    "reference": ("tvm_compress.targets.reference.target", "ReferenceTarget"),
}


def get_target(name: str) -> Target:
    """Give a target by name.

    Raises:
        OptionError: there is none of that name.
    """
    from importlib import import_module

    if name not in TARGETS:
        raise OptionError(f"There is no target {name!r}; expected one of {', '.join(TARGETS)}.")
    module, attribute = TARGETS[name]
    target: Target = getattr(import_module(module), attribute)()
    return target
