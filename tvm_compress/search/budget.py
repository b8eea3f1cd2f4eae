"""What a compressed network may cost."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_compress.errors import OptionError

__all__ = ["COSTS", "Budget"]

COSTS = ("weight_bytes", "flash_bytes", "instructions")


@dataclass(frozen=True)
class Budget:
    """Limits that a compressed network has to meet; at least one.

    Args:
        max_accuracy_drop: largest loss of accuracy (0..1) against the uncompressed network.
        weight_bytes: bytes of the whole file that ``save(mod, "x.tcz")`` writes: weights, biases
            and graph.
        flash_bytes: bytes of flash of the firmware for ``board``, as ``build(mod, "c",
            board=board).size.flash_bytes`` tells: code, weights and constants.
        instructions: of one inference on the emulated board, on the first sample of the
            validation data.
        board: name of the board, or path of its TOML file.

    Raises:
        OptionError: no limit, or one outside its range.
    """

    max_accuracy_drop: float | None = None
    weight_bytes: int | None = None
    flash_bytes: int | None = None
    instructions: int | None = None
    board: str = "cortex-m4"

    def __post_init__(self) -> None:
        """Check the limits."""
        drop = self.max_accuracy_drop
        if drop is None and not self.costs:
            raise OptionError(
                "The budget has no limit; expected at least one of max_accuracy_drop, "
                f"{', '.join(COSTS)}."
            )
        if drop is not None and not 0.0 <= drop <= 1.0:
            raise OptionError(
                f"The budget's max_accuracy_drop is {drop}; expected a number from 0 to 1, such as "
                "0.005 for half a point."
            )
        for name, limit in self.costs.items():
            if limit < 1:
                raise OptionError(
                    f"The budget's {name} is {limit}; expected a whole number from 1 on."
                )

    @property
    def costs(self) -> dict[str, int]:
        """The limits of bytes and instructions that are set, by name."""
        given = {name: getattr(self, name) for name in COSTS}
        return {name: limit for name, limit in given.items() if limit is not None}

    @property
    def measured(self) -> tuple[str, ...]:
        """The costs that a search measures: those with a limit, else ``weight_bytes``."""
        return tuple(self.costs) or COSTS[:1]
