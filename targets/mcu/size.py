"""What a firmware takes of a board: bytes of flash and RAM, by parts, read from the ELF file."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tvm_compress.targets.mcu.elf import Elf

__all__ = ["FlashSize", "RamSize", "Size", "measure_elf"]


@dataclass(frozen=True)
class FlashSize:
    """Bytes in flash; the parts sum to the total."""

    code: int
    weights: int
    constants: int


@dataclass(frozen=True)
class RamSize:
    """Bytes in RAM; the parts sum to the total. ``stack`` is the deepest stack of the model."""

    arena: int
    inputs: int
    outputs: int
    static: int
    stack: int


@dataclass(frozen=True)
class Size:
    """What a firmware takes of a board, in bytes, harness and start-up code included."""

    flash: FlashSize
    ram: RamSize

    @property
    def flash_bytes(self) -> int:
        """All bytes that are programmed into flash."""
        return sum(asdict(self.flash).values())

    @property
    def ram_bytes(self) -> int:
        """All bytes of RAM that are ever touched, the model's deepest stack included."""
        return sum(asdict(self.ram).values())


def measure_elf(elf: Elf, name: str) -> Size:
    """Give the sizes of a firmware of the model ``name``, its stack still 0."""
    flash_bytes = sum(len(segment.data) for segment in elf.segments)
    weights = sum(
        symbol.size
        for symbol in elf.symbols
        if symbol.kind == "object" and symbol.name.startswith(f"{name}_w_")
    )
    constants = elf.section_bytes(".rodata") - weights
    ram = {"harness_arena": 0, "harness_input_": 0, "harness_output_": 0}
    for symbol in elf.symbols:
        for prefix in ram:
            if symbol.kind == "object" and symbol.name.startswith(prefix):
                ram[prefix] += symbol.size
    arena, inputs, outputs = ram.values()
    total = sum(elf.section_bytes(section) for section in (".arena", ".data", ".bss"))
    return Size(
        FlashSize(flash_bytes - weights - constants, weights, constants),
        RamSize(arena, inputs, outputs, total - arena - inputs - outputs, 0),
    )
