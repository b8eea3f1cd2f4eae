"""Augmentation: a function of the user's that changes each batch of inputs before it is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError, OptionError

__all__ = ["Augment", "augmented", "check_augment", "function_name"]

# The inputs of a batch: one array where the network has one input, else arrays by input name.
Augment = Callable[[Any, np.random.Generator], Any]


def function_name(function: Callable[..., Any]) -> str:
    """Give the name by which a checkpoint knows a function: that of its module and its own.

    >>> function_name(np.linalg.norm)
    'numpy.linalg.norm'
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"


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
