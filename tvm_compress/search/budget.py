"""What a compressed network may cost."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from tvm_compress.errors import OptionError

__all__ = ["COSTS", "Budget", "is_number", "is_whole"]

COSTS = ("weight_bytes", "flash_bytes", "instructions")
_OF_BOARD = COSTS[1:]
_DEFAULT_BOARD = "cortex-m4"


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or numpy; True and 8.0 are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, of Python or numpy; True is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Budget:
    """Limits that a compressed network has to meet; at least one.

    Args:
        max_accuracy_drop: largest loss of accuracy (0..1) against the uncompressed network.
        weight_bytes: bytes of the whole file that ``save(mod, "x.tcz", profile=profile)`` writes:
            weights, biases and graph.
        flash_bytes: bytes of flash of the firmware for ``board``, as ``build(mod, "c",
            board=board).size.flash_bytes`` tells: code, weights and constants.
        instructions: of one inference on the emulated board, on the first sample of the
            validation data.
        board: name of the board, or path of its TOML file; ``cortex-m4`` where none is given and
            ``flash_bytes`` or ``instructions`` is limited.
        profile: of the file that ``weight_bytes`` counts, see :func:`tvm_compress.save`.

    Raises:
        OptionError: no limit, one that is no number or outside its range, a board without a limit
            that it is for, or an unknown profile.
    """

    max_accuracy_drop: float | None = None
    weight_bytes: int | None = None
    flash_bytes: int | None = None
    instructions: int | None = None
    board: str | None = None
    profile: str = "archive"

    def __post_init__(self) -> None:
        """Check the limits."""
        from tvm_compress.codec import check_profile

        drop = self.max_accuracy_drop
        if drop is None and not self.costs:
            raise OptionError(
                "The budget has no limit; expected at least one of max_accuracy_drop, "
                f"{', '.join(COSTS)}."
            )
        if drop is not None and not (is_number(drop) and 0.0 <= drop <= 1.0):
            raise OptionError(
                f"The budget's max_accuracy_drop is {drop!r}; expected a number from 0 to 1, such "
                "as 0.005 for half a point."
            )
        for name, limit in self.costs.items():
            if not (is_whole(limit) and limit >= 1):
                raise OptionError(
                    f"The budget's {name} is {limit!r}; expected a whole number from 1 on."
                )
            # A trial log takes no numbers of numpy.
            object.__setattr__(self, name, int(limit))
        if drop is not None:
            object.__setattr__(self, "max_accuracy_drop", float(drop))
        check_profile(self.profile)
        if not self.needs_board and self.board is not None:
            raise OptionError(
                f"The budget names the board {self.board} and limits neither "
                f"{' nor '.join(_OF_BOARD)}; expected one of them with it: limit it, or leave the "
                "board out."
            )
        if self.needs_board and self.board is None:
            object.__setattr__(self, "board", _DEFAULT_BOARD)

    @property
    def needs_board(self) -> bool:
        """Whether a limit is measured on a board."""
        return any(name in self.costs for name in _OF_BOARD)

    @property
    def costs(self) -> dict[str, int]:
        """The limits of bytes and instructions that are set, by name."""
        given = {name: getattr(self, name) for name in COSTS}
        return {name: limit for name, limit in given.items() if limit is not None}

    @property
    def measured(self) -> tuple[str, ...]:
        """The costs that a search measures: those with a limit, else ``weight_bytes``."""
        return tuple(self.costs) or COSTS[:1]
