"""The one exception tree.

Every message is a sentence that says what was wrong, what was expected and what to do next.
The command line turns an :class:`InputError` into exit code 1 and anything else into 2.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "CompressError",
    "DataError",
    "InputError",
    "MissingToolError",
    "ModelFormatError",
    "OptionError",
    "PassError",
    "UnsupportedError",
]


class CompressError(Exception):
    """Base of all errors that this package raises on purpose."""


class InputError(CompressError):
    """The user can mend it: a file, an option, data or a missing tool."""


class ModelFormatError(InputError):
    """A model file is missing, damaged or of a format that is not read."""


class UnsupportedError(InputError):
    """The model asks for something that is not supported (an operator, a dynamic shape)."""


class OptionError(InputError, ValueError):
    """An option is outside its range or names something unknown."""


class PassError(InputError):
    """A pass met a module that it cannot rewrite."""


class DataError(InputError, ValueError):
    """Input data has the wrong name, shape or dtype, or values that are not numbers."""


class BudgetError(InputError):
    """The model does not fit the board's flash or RAM, or no trial of a search meets its budget."""


class FlashError(BudgetError):
    """The model does not fit the board's flash: a build that weighs flash more may."""


class MissingToolError(InputError):
    """A tool or an optional package is not installed; the message says how to get it."""
