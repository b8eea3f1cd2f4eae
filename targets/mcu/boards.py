"""Boards as data: one small TOML file says what a board has and which emulators run it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tvm_compress.errors import OptionError

__all__ = [
    "Board",
    "Cpu",
    "EmulatorName",
    "Fpu",
    "Isa",
    "Region",
    "Uart",
    "UartKind",
    "get_board",
    "limit_board",
    "list_boards",
]

Cpu = Literal[
    "cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "rv32imac"
]
Fpu = Literal["none", "fpv4-sp-d16", "fpv5-sp-d16", "fpv5-d16", "riscv-f"]
Isa = Literal["arm", "riscv"]
EmulatorName = Literal["unicorn", "qemu"]
UartKind = Literal["cmsdk", "pl011", "ns16550"]

# What each core may have. MVE shares its registers with an FPU, and compilers know the two
# together alone.
_FPUS: dict[Cpu, tuple[Fpu, ...]] = {
    "cortex-m0": ("none",),
    "cortex-m3": ("none",),
    "cortex-m4": ("fpv4-sp-d16", "none"),
    "cortex-m7": ("fpv5-sp-d16", "fpv5-d16", "none"),
    "cortex-m33": ("fpv5-sp-d16", "none"),
    "cortex-m55": ("fpv5-d16",),
    "rv32imac": ("riscv-f", "none"),
}
_SMALLEST_LIMIT = 1024  # bytes; a start-up code alone takes more flash

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


class Uart(BaseModel):
    """A serial port: what kind of device it is, and the address of its registers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: UartKind
    address: int = Field(ge=0, lt=2**32, multiple_of=4)


class Board(BaseModel):
    """A board as its TOML file describes it; sizes are bytes, the clock is hertz.

    ``flash`` and ``ram`` hold what there is: start-up code and code stand at the beginning of
    ``flash``, data and stack in ``ram``. Where they are too small for all, the constants go as a
    whole to a region of ``extra_flash``, the arena to one of ``extra_ram``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    description: str
    cpu: Cpu
    fpu: Fpu
    # The DSP extension is optional on a Cortex-M33; without a word it is there.
    dsp: bool | None = None
    flash: Region
    ram: Region
    extra_flash: tuple[Region, ...] = Field(default=(), strict=False)
    extra_ram: tuple[Region, ...] = Field(default=(), strict=False)
    # Where the processor reads its vector table at reset; without it the flash begins with it.
    vectors: int | None = Field(default=None, ge=0, lt=2**32, multiple_of=128)
    stack_bytes: int = Field(gt=0, multiple_of=8)
    emulators: tuple[EmulatorName, ...] = Field(default=(), strict=False)
    qemu_machine: str | None = None
    uart: Uart | None = None
    clock_hz: int | None = Field(default=None, gt=0)
    # What limit_board did to the sizes, in words; no file says it.
    limits: str = ""

    @property
    def title(self) -> str:
        """The name, and by what its sizes were limited: "mps2-an386 (as nucleo_l4r5zi)"."""
        return f"{self.name} ({self.limits})" if self.limits else self.name

    @property
    def isa(self) -> Isa:
        """The family of the core's instructions."""
        return "riscv" if self.cpu.startswith("rv") else "arm"

    @property
    def has_dsp(self) -> bool:
        """Whether the core has the DSP extension (SMLAD and its like) and kernels for it."""
        return self.dsp is not False and self.cpu in ("cortex-m4", "cortex-m7", "cortex-m33")

    @property
    def has_mve(self) -> bool:
        """Whether the core has the M-profile vector extension (MVE, Helium)."""
        return self.cpu == "cortex-m55"

    @property
    def features(self) -> tuple[str, ...]:
        """What kernels and compilers use of the core: some of "fpu", "dsp" and "mve"."""
        has = {"fpu": self.fpu != "none", "dsp": self.has_dsp, "mve": self.has_mve}
        return tuple(name for name, there in has.items() if there)

    @property
    def flash_regions(self) -> tuple[Region, ...]:
        """All of flash, the region with the start-up code first."""
        return (self.flash, *self.extra_flash)

    @property
    def ram_regions(self) -> tuple[Region, ...]:
        """All of RAM, the region with the stack first."""
        return (self.ram, *self.extra_ram)

    @model_validator(mode="after")
    def _consistent(self) -> Board:
        regions = sorted((*self.flash_regions, *self.ram_regions), key=lambda r: r.origin)
        if any(low.end > high.origin for low, high in pairwise(regions)):
            raise ValueError("flash and ram overlap; give all regions disjoint address ranges")
        table = self.vectors
        if table is not None and any(r.origin <= table < r.end for r in regions):
            raise ValueError("vectors lies in flash or ram; leave it out, or give other memory")
        if self.stack_bytes >= self.ram.length:
            raise ValueError("stack_bytes is not smaller than ram.length; lower stack_bytes")
        if any(region.end > 2**32 for region in regions):
            raise ValueError("a region ends above 4 GiB; origin + length must fit 32 bits")
        if "qemu" in self.emulators and not self.qemu_machine:
            raise ValueError('emulators names "qemu"; add qemu_machine, e.g. "mps2-an386"')
        if self.fpu not in _FPUS[self.cpu]:
            known = " or ".join(f'"{fpu}"' for fpu in _FPUS[self.cpu])
            what = "no FPU" if _FPUS[self.cpu] == ("none",) else "another FPU"
            raise ValueError(f"a {self.cpu} has {what}; set fpu = {known}")
        if self.dsp is not None and self.cpu != "cortex-m33":
            raise ValueError(
                "dsp is optional on a cortex-m33 alone, and every other core has it or not; "
                "leave dsp out"
            )
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


def get_board(name_or_path: str | Path | Board) -> Board:
    """The board of that name, or the one that a TOML file describes.

    Args:
        name_or_path: a name from :func:`list_boards`, or the path of a file ending in ``.toml``;
            a board is given back.

    Raises:
        OptionError: the name is unknown, or the file is missing or does not describe a board.
    """
    if isinstance(name_or_path, Board):
        return name_or_path
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return _read(path)
    name = str(name_or_path)
    # A name is asked for often, and nothing is gained by reading the files of all boards.
    names = sorted(file.stem for file in _FOLDER.glob("*.toml"))
    if name in names:
        return _read(_FOLDER / f"{name}.toml")
    # Zephyr writes mps2/an386 and mps2_an386.
    near = get_close_matches(name.lower().replace("/", "-").replace("_", "-"), names, 3, 0.6)
    told = (
        f"The nearest names are {', '.join(near)}"
        if near
        else f"The known boards are {', '.join(names)}"
    )
    raise OptionError(
        f"The board {name!r} is not known. {told}; choose one (tvm-compress boards lists all) or "
        "give the path of a board's .toml file."
    )


def limit_board(
    board: Board,
    limits_of: str | Path | Board | None = None,
    flash_limit: int | None = None,
    ram_limit: int | None = None,
) -> Board:
    """A board with less memory than it has, mostly an emulated one with a real one's sizes.

    The regions of the other board are laid into the memory of this one, each as a whole, so that
    what fits there fits here and the other way round. The stack that is kept is the other board's
    too; with a limit of RAM at most an eighth of it. Memory never grows: a limit above what the
    board has changes nothing.

    Args:
        board: what runs the firmware.
        limits_of: the board, name or file whose sizes count.
        flash_limit: bytes of flash, from 1024 on.
        ram_limit: bytes of RAM, the stack among them, from 1024 on.

    Raises:
        OptionError: there is no such board, or a limit is no whole number from 1024 on.
    """
    words = []
    flash, ram, stack = board.flash_regions, board.ram_regions, board.stack_bytes
    if limits_of is not None:
        other = get_board(limits_of)
        flash, ram = _laid_into(flash, other.flash_regions), _laid_into(ram, other.ram_regions)
        stack = other.stack_bytes
        words.append(f"as {other.name}")
    for kind, limit in (("flash", flash_limit), ("ram", ram_limit)):
        if limit is None:
            continue
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < _SMALLEST_LIMIT:
            raise OptionError(
                f"The {kind} limit is {limit!r}; expected a whole number of bytes from "
                f"{_SMALLEST_LIMIT} on. Give the size of the memory, as 262144 for 256 KB."
            )
        if kind == "flash":
            flash = _cut(flash, limit)
        else:
            ram = _cut(ram, limit)
        words.append(f"limited to {limit} bytes of {'RAM' if kind == 'ram' else kind}")
    if not words:
        return board
    changes: dict[str, Any] = {
        "flash": flash[0].model_dump(),
        "extra_flash": [region.model_dump() for region in flash[1:]],
        "ram": ram[0].model_dump(),
        "extra_ram": [region.model_dump() for region in ram[1:]],
        "stack_bytes": max(min(stack, ram[0].length // 64 * 8), 8),
        "limits": ", ".join(words),
    }
    return Board.model_validate(board.model_dump() | changes)


def _cut(regions: Sequence[Region], limit: int) -> tuple[Region, ...]:
    """The first ``limit`` bytes of some regions."""
    kept = []
    left = limit // 4 * 4
    for region in regions:
        if left:
            length = min(region.length, left)
            kept.append(Region(origin=region.origin, length=length))
            left -= length
    return tuple(kept)


def _laid_into(own: Sequence[Region], wanted: Sequence[Region]) -> tuple[Region, ...]:
    """Regions as long as the ``wanted`` ones in the memory ``own``, or as long as there is room.

    The first stands where the first of ``own`` stands: the processor starts there.
    """
    free = [(region.origin, region.length) for region in own]
    laid: list[Region] = []
    for region in wanted:
        fitting = [i for i, (_, length) in enumerate(free) if length >= region.length]
        largest = max(range(len(free)), key=lambda i: free[i][1])
        index = 0 if not laid else next(iter(fitting), largest)
        origin, room = free[index]
        length = min(room, region.length)
        if length:
            laid.append(Region(origin=origin, length=length))
            free[index] = (origin + length, room - length)
    return tuple(laid)
