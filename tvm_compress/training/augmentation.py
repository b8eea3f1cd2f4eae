"""Augmentation: a function of the user's that changes each batch of inputs before it is seen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError, OptionError

__all__ = ["Augment", "augmented", "check_augment", "check_named", "function_name"]

# The inputs of a batch: one array where the network has one input, else arrays by input name.
Augment = Callable[[Any, np.random.Generator], Any]


def function_name(function: Callable[..., Any]) -> str:
    """Give the name by which a checkpoint knows a function: that of its module and its own.

    A ``functools.partial`` has the name of its function and the values that it holds: arrays by a
    digest, for their repr leaves numbers out.

    >>> function_name(np.linalg.norm)
    'numpy.linalg.norm'
    >>> function_name(partial(np.linalg.norm, ord=1))
    'numpy.linalg.norm(ord=1)'
    """
    if isinstance(function, partial):
        held = [_told(value) for value in function.args]
        held += [f"{key}={_told(value)}" for key, value in function.keywords.items()]
        return f"{function_name(function.func)}({', '.join(held)})"
    return f"{getattr(function, '__module__', '')}.{_own_name(function)}"


def _own_name(function: Callable[..., Any]) -> str:
    # Not every release of numpy gives its ufuncs a __qualname__.
    found = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return str(found or type(function).__qualname__)


def _told(value: Any) -> str:
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype.str}{value.shape} {digest}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_told(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_told(v) for v in value)}]"
    return function_name(value) if callable(value) else repr(value)


def check_named(augment: Any) -> None:
    """Check that a name tells a function from others, so that a run may be taken up by it.

    Raises:
        OptionError: it, or a function that a ``functools.partial`` holds, is a lambda, a function
            made inside another, a method of an object, or an object that is called.
    """
    for function in _functions(augment):
        name, owner = _own_name(function), getattr(function, "__self__", None)
        if "<lambda>" in name:
            what = "a lambda"
        elif "<locals>" in name:
            what = f"the function {name}, made inside another"
        elif not (hasattr(function, "__qualname__") or hasattr(function, "__name__")):
            what = f"an object of the class {name}"
        elif owner is not None and not isinstance(owner, type | ModuleType):
            what = f"the method {name} of an object"
        else:
            continue
        raise OptionError(
            f"augment is or holds {what}, whose name does not tell it from others, and a "
            "checkpoint or a trial log knows augment by its name; expected a function defined at "
            "the top of a module, or a functools.partial of one: define it there, or keep no "
            "checkpoint or trial log."
        )


def _functions(value: Any) -> Iterator[Callable[..., Any]]:
    """Give a function, or those that a partial holds."""
    if isinstance(value, partial):
        for held in (value.func, *value.args, *value.keywords.values()):
            yield from _functions(held)
    elif isinstance(value, Mapping):
        for held in value.values():
            yield from _functions(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _functions(held)
    elif callable(value):
        yield value


def check_augment(augment: Any) -> None:
    """Check that a function was given.

    Raises:
        OptionError: it is something else.
    """
    if not callable(augment):
        raise OptionError(
            f"augment is a {type(augment).__name__}; expected a function of the inputs of a batch "
            "and a numpy.random.Generator that gives the changed inputs."
        )


def augmented(
    augment: Augment, inputs: Mapping[str, NDArray[Any]], random: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Change the inputs of a batch, arrays (n, ...) by input name, and check what comes back.

    Raises:
        DataError: not arrays of the same names, shapes and dtypes, or numbers that are not finite.
    """
    one = next(iter(inputs)) if len(inputs) == 1 else None
    # What the function writes into may be a view of these, so the forms are noted before.
    forms = {name: (array.shape, array.dtype) for name, array in inputs.items()}
    given = augment(inputs[one] if one is not None else dict(inputs), random)
    changed = {one: given} if one is not None else given
    if not isinstance(changed, Mapping):
        raise DataError(
            f"augment gave a {type(changed).__name__} for {len(inputs)} inputs; expected a dict of "
            f"arrays with {', '.join(inputs)}: return the changed inputs by name."
        )
    if set(changed) != set(inputs):
        raise DataError(
            f"augment gave the inputs {', '.join(map(str, changed)) or 'none'}; expected "
            f"{', '.join(inputs)}: return every input, the unchanged too."
        )
    return {name: _checked(name, changed[name], *form) for name, form in forms.items()}


def _checked(name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"augment gave a {type(array).__name__} for the input {name}; expected an array: "
            "return the changed batch."
        )
    if array.shape != shape:
        raise DataError(
            f"augment gave the input {name} in the shape {array.shape}; expected {shape}: return "
            "as many samples as it gets, each of the same shape."
        )
    if array.dtype != dtype:
        raise DataError(
            f"augment gave the input {name} as {array.dtype}; expected {dtype}: convert the result "
            f'with .astype("{dtype}").'
        )
    if dtype.kind == "f" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise DataError(
            f"augment gave {count} values of {array.size} for the input {name} that are NaN or "
            "infinite; expected finite numbers: look at what the function divides by."
        )
    # A flipped view runs backwards, which torch does not take.
    return np.ascontiguousarray(array)
