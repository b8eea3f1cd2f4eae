"""The linker script of a board, and what goes to which of its regions of memory.

The script has the real sizes, so a firmware that was linked does fit. One that does not is linked
once more with room to spare and measured there, and then either its constants or its arena go to
another region, or it is our own sentence that says what is too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_compress.targets.mcu.boards import Board, Region
from tvm_compress.targets.mcu.elf import Elf

__all__ = ["Excess", "Placement", "link_script", "place"]

_RUNTIME = Path(__file__).parent / "runtime"
_ROOMY_BYTES = 0x1000_0000
_VECTORS_BYTES = 64  # 16 words, for no interrupt is used
_ALIGNMENT = 16  # of what follows a section that moved away


@dataclass(frozen=True)
class Placement:
    """Which region of flash holds the constants, and which of RAM the arena; 0 is the first."""

    constants: int = 0
    arena: int = 0


@dataclass(frozen=True)
class Excess:
    """Bytes that a firmware needs beyond what a board has, 0 where it fits."""

    flash: int
    ram: int


def link_script(board: Board, placement: Placement | None) -> str:
    """Give the text of the linker script; without a placement one with room to spare.

    The linker keeps ``stack_bytes`` of the first region of RAM free for the stack.
    """
    flash, ram = board.flash_regions, board.ram_regions
    lengths = {
        **{_name("FLASH", i): region.length for i, region in enumerate(flash)},
        **{_name("RAM", i): region.length for i, region in enumerate(ram)},
    }
    lengths["RAM"] -= board.stack_bytes
    if placement is None:
        flash, ram, placement = flash[:1], ram[:1], Placement()
        lengths = dict.fromkeys(lengths, _ROOMY_BYTES)
    memory = [
        *((_name("FLASH", i), "rx", region.origin) for i, region in enumerate(flash)),
        *((_name("RAM", i), "rwx", region.origin) for i, region in enumerate(ram)),
    ]
    vectors = "FLASH"
    if board.vectors is not None:
        vectors = "VECTORS"
        memory.append((vectors, "rx", board.vectors))
        lengths[vectors] = _VECTORS_BYTES
    aliases = {
        "VECTORS": vectors,
        "CONSTANTS": _name("FLASH", placement.constants),
        "ARENA": _name("RAM", placement.arena),
    }
    lines = ["MEMORY", "{"]
    lines += [
        f"    {name} ({access}) : ORIGIN = {origin:#x}, LENGTH = {lengths[name]:#x}"
        for name, access, origin in memory
    ]
    lines += ["}"]
    lines += [f'REGION_ALIAS("{a}", {name})' for a, name in aliases.items() if a != name]
    lines += [
        f"link_stack_top = {board.ram.end // 16 * 16:#x};",
        f"link_stack_bytes = {board.stack_bytes:#x};",
        (_RUNTIME / "firmware.ld").read_text(encoding="utf-8"),
    ]
    return "\n".join(lines)


def _name(kind: str, index: int) -> str:
    return f"{kind}_{index}" if index else kind


def place(elf: Elf, board: Board) -> tuple[Placement, Excess]:
    """Give the placement of a firmware that was linked with room to spare, and what is too much.

    Args:
        elf: linked by a script without a placement.
        board: where it is to go.
    """
    flash_end = max(
        segment.physical + len(segment.data)
        for segment in elf.segments
        if segment.data and segment.physical >= board.flash.origin
    )
    ram_end = max(
        section.address + section.size
        for section in elf.sections
        if section.name in (".arena", ".data", ".bss")
    )
    constants, flash = _place(
        flash_end - board.flash.origin, elf.section_bytes(".rodata"), board.flash_regions
    )
    arena, ram = _place(
        ram_end - board.ram.origin + board.stack_bytes,
        elf.section_bytes(".arena"),
        board.ram_regions,
    )
    return Placement(constants, arena), Excess(flash, ram)


def _place(total: int, movable: int, regions: Sequence[Region]) -> tuple[int, int]:
    """Give the region of what can move, and how many bytes are still too many there.

    Args:
        total: bytes in the first region while all is there.
        movable: those of them that can go elsewhere, together.
        regions: the first is where the rest stays.
    """
    first, *others = (region.length for region in regions)
    excess = [max(total - first, 0)]
    rest = total - movable + _ALIGNMENT
    excess += [max(rest - first, 0) + max(movable - length, 0) for length in others]
    best = min(range(len(excess)), key=excess.__getitem__)
    return best, excess[best]
