"""Boards as data: one small TOML file says what a board has and which emulators run it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tvm_compress.errors import OptionError

__all__ = ["Board", "Cpu", "EmulatorName", "Fpu", "Region", "get_board", "list_boards"]

Cpu = Literal["cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"]
Fpu = Literal["none", "fpv4-sp-d16", "fpv5-sp-d16", "fpv5-d16"]
EmulatorName = Literal["unicorn", "qemu"]

_FOLDER = Path(__file__).parent / "boards"


class Region(BaseModel):
    """A memory region: its first address and its length, both in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    origin: int = Field(ge=0, lt=2**32, multiple_of=4)
    length: int = Field(gt=0, le=2**32, multiple_of=4)

    @property
    def end(self) -> int:
        """The first address behind the region."""
        return self.origin + self.length


class Board(BaseModel):
    """A board as its TOML file describes it; sizes are bytes, the clock is hertz."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    description: str
    cpu: Cpu
    fpu: Fpu
    flash: Region
    ram: Region
    # Where the processor reads its vector table at reset; without it the flash begins with it.
    vectors: int | None = Field(default=None, ge=0, lt=2**32, multiple_of=128)
    stack_bytes: int = Field(gt=0, multiple_of=8)
    emulators: tuple[EmulatorName, ...] = Field(default=(), strict=False)
    qemu_machine: str | None = None
    clock_hz: int | None = Field(default=None, gt=0)

    @property
    def has_dsp(self) -> bool:
        """Whether the core has the DSP extension (SMLAD and its like)."""
        return self.cpu in ("cortex-m4", "cortex-m7", "cortex-m33")

    @property
    def has_mve(self) -> bool:
        """Whether the core has the M-profile vector extension (MVE, Helium)."""
        return self.cpu == "cortex-m55"

    @model_validator(mode="after")
    def _consistent(self) -> Board:
        if self.flash.origin < self.ram.end and self.ram.origin < self.flash.end:
            raise ValueError("flash and ram overlap; give them disjoint address ranges")
        table = self.vectors
        if table is not None and any(r.origin <= table < r.end for r in (self.flash, self.ram)):
            raise ValueError("vectors lies in flash or ram; leave it out, or give other memory")
        if self.stack_bytes >= self.ram.length:
            raise ValueError("stack_bytes is not smaller than ram.length; lower stack_bytes")
        if self.flash.end > 2**32 or self.ram.end > 2**32:
            raise ValueError("a region ends above 4 GiB; origin + length must fit 32 bits")
        if "qemu" in self.emulators and not self.qemu_machine:
            raise ValueError('emulators names "qemu"; add qemu_machine, e.g. "mps2-an386"')
        if self.cpu == "cortex-m3" and self.fpu != "none":
            raise ValueError('a cortex-m3 has no FPU; set fpu = "none"')
        if self.cpu == "cortex-m4" and self.fpu == "fpv5-sp-d16":
            raise ValueError('the FPU of a cortex-m4 is "fpv4-sp-d16" (or "none")')
        if (self.cpu == "cortex-m55") != (self.fpu == "fpv5-d16"):
            # MVE shares its registers, and compilers know the two together alone.
            raise ValueError('a cortex-m55, and no other core here, has fpu = "fpv5-d16"')
        if self.cpu == "cortex-m55" and "unicorn" in self.emulators:
            raise ValueError('unicorn knows no cortex-m55; set emulators = ["qemu"]')
        return self


def _read(path: Path) -> Board:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"The board file {path} cannot be read ({error}). "
            "Give the path of a readable TOML file or the name of a known board."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise OptionError(
            f"The board file {path} is not TOML ({error}). "
            "Mend that line; targets/mcu/boards/cortex-m4.toml is an example."
        ) from error
    try:
        return Board.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'the board'}: "
            f"{fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise OptionError(
            f"The board file {path} does not describe a board: {faults}. "
            "Mend these entries; targets/mcu/boards/cortex-m4.toml is an example."
        ) from error


def list_boards() -> tuple[Board, ...]:
    """All boards that come with the package, sorted by name."""
    return tuple(_read(path) for path in sorted(_FOLDER.glob("*.toml")))


def get_board(name_or_path: str | Path) -> Board:
    """The board of that name, or the one that a TOML file describes.

    Args:
        name_or_path: a name from :func:`list_boards`, or the path of a file ending in ``.toml``.

    Raises:
        OptionError: the name is unknown, or the file is missing or does not describe a board.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return _read(path)
    boards = {board.name: board for board in list_boards()}
    if str(name_or_path) not in boards:
        raise OptionError(
            f"The board {str(name_or_path)!r} is not known. The known boards are "
            f"{', '.join(boards)}; choose one or give the path of a board's .toml file."
        )
    return boards[str(name_or_path)]
