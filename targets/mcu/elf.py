"""A reader of linked 32-bit little-endian ELF files of Arm and RISC-V.

Source: "Executable and Linking Format (ELF) Specification" 1.2 and "ELF for the Arm
Architecture" (bit 0 of a function's address marks Thumb code; it is 0 on RISC-V).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from tvm_compress.errors import ModelFormatError
from tvm_compress.targets.mcu.boards import Isa

__all__ = ["Elf", "Section", "Segment", "Symbol", "read_elf"]

_PT_LOAD = 1
_SHT_SYMTAB = 2
_SHF_ALLOC = 2
_MACHINES: dict[bytes, Isa] = {b"\x28\x00": "arm", b"\xf3\x00": "riscv"}
_STT = {1: "object", 2: "function"}


@dataclass(frozen=True)
class Segment:
    """A loaded piece: its bytes, where they are stored (flash) and where they are used."""

    physical: int
    virtual: int
    data: bytes
    memory_bytes: int


@dataclass(frozen=True)
class Section:
    """An allocated section: name, address and size in bytes."""

    name: str
    address: int
    size: int


@dataclass(frozen=True)
class Symbol:
    """A symbol of a function or an object; the Thumb bit is cleared. Size in bytes."""

    name: str
    address: int
    size: int
    kind: str


@dataclass(frozen=True)
class Elf:
    """What the emulators and the size report need to know of a linked file."""

    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    isa: Isa = "arm"

    def section_bytes(self, name: str) -> int:
        """The size of the section of that name, 0 where there is none."""
        return sum(section.size for section in self.sections if section.name == name)

    def function_at(self, address: int) -> str:
        """The name of the function that holds ``address``, or a hexadecimal number."""
        for symbol in self.symbols:
            inside = symbol.address <= address < symbol.address + symbol.size
            if symbol.kind == "function" and inside:
                return symbol.name
        return f"0x{address:08x}"


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode("utf-8", "replace")


def read_elf(path: Path) -> Elf:
    """Read a linked ELF file.

    Raises:
        ModelFormatError: the file is missing, or is no 32-bit little-endian ELF of Arm or RISC-V.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFormatError(
            f"The firmware {path} cannot be read ({error}). Build it again."
        ) from error
    if data[:6] != b"\x7fELF\x01\x01" or data[18:20] not in _MACHINES:
        raise ModelFormatError(
            f"{path} is not a 32-bit little-endian ELF file of Arm or RISC-V. "
            "Give a firmware that link_firmware wrote."
        )
    try:
        return _parse(data)
    except (struct.error, ValueError, IndexError) as error:
        raise ModelFormatError(
            f"The ELF file {path} is damaged ({error}). Build the firmware again."
        ) from error


def _parse(data: bytes) -> Elf:
    phoff, shoff = struct.unpack_from("<II", data, 28)
    phentsize, phnum, shentsize, shnum, shstrndx = struct.unpack_from("<5H", data, 42)
    segments = []
    for index in range(phnum):
        kind, offset, virtual, physical, filesz, memsz = struct.unpack_from(
            "<6I", data, phoff + index * phentsize
        )
        if kind == _PT_LOAD:
            if offset + filesz > len(data):
                raise ValueError("a segment ends behind the end of the file")
            segments.append(Segment(physical, virtual, data[offset : offset + filesz], memsz))
    headers = [
        struct.unpack_from("<10I", data, shoff + index * shentsize) for index in range(shnum)
    ]
    contents = [data[header[4] : header[4] + header[5]] for header in headers]
    sections = tuple(
        Section(_string(contents[shstrndx], header[0]), header[3], header[5])
        for header in headers
        if header[2] & _SHF_ALLOC
    )
    symbols = []
    for header, content in zip(headers, contents, strict=True):
        if header[1] != _SHT_SYMTAB:
            continue
        for name, value, size, info, _, _ in struct.iter_unpack("<IIIBBH", content):
            kind_name = _STT.get(info & 15)
            if kind_name:
                address = value & ~1 if kind_name == "function" else value
                text = _string(contents[header[6]], name)
                symbols.append(Symbol(text, address, size, kind_name))
    return Elf(tuple(segments), sections, tuple(symbols), _MACHINES[data[18:20]])
