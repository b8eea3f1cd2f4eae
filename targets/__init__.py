"""The targets: one folder, one kind of machine; this list is the only one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tvm_compress.errors import OptionError
from tvm_compress.targets.artifact import Target

__all__ = ["TARGETS", "get_target"]

# Name -> where it lives. The modules are imported when they are asked for: some need tools.
TARGETS = {
    "arduino": ("tvm_compress.targets.mcu.arduino.target", "ArduinoTarget"),
    "c": ("tvm_compress.targets.mcu.target", "CTarget"),
    "reference": ("tvm_compress.targets.reference.target", "ReferenceTarget"),
    "zephyr": ("tvm_compress.targets.mcu.zephyr.target", "ZephyrTarget"),
}


def get_target(name: str, options: Sequence[str] = ()) -> Target:
    """Give a target by name.

    Args:
        name: a key of :data:`TARGETS`.
        options: fields of the target as the command line spells them, ``NAME=VALUE``; the same
            name again adds to a field that takes several values.

    Raises:
        OptionError: there is no target of that name, or it has no such option.
    """
    from importlib import import_module

    if name not in TARGETS:
        raise OptionError(f"There is no target {name!r}; expected one of {', '.join(TARGETS)}.")
    module, attribute = TARGETS[name]
    kind = getattr(import_module(module), attribute)
    target: Target = kind(**_read_options(name, kind, options))
    return target


def _read_options(target: str, kind: Any, options: Sequence[str]) -> dict[str, Any]:
    known = {field.name.replace("_", "-"): field for field in fields(kind)}
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        field = known.get(key.replace("_", "-"))
        if field is None or not equals:
            expected = ", ".join(known) or "none, for it has no options"
            raise OptionError(
                f"The target {target} has no option {option!r}; expected NAME=VALUE with one of "
                f"the names {expected}."
            )
        if isinstance(field.default, tuple):
            values[field.name] = (*values.get(field.name, ()), text)
        elif isinstance(field.default, str):
            values[field.name] = text
        else:
            values[field.name] = _read_number(key, text, switch=isinstance(field.default, bool))
    return values


def _read_number(key: str, text: str, *, switch: bool) -> int:
    values = {"true": True, "false": False}
    if switch and text in values:
        return values[text]
    if not switch and text.isascii() and text.isdigit():
        return int(text)
    expected = "true or false" if switch else "a whole number"
    raise OptionError(
        f"The target's option {key} is {text!r}; expected {expected}. Mend the value."
    )
