"""The ``.tcz`` file: a header, and three sections each with its length and checksum.

``SPEC.md`` beside this file tells the bytes, ``DESIGN.md`` why they are so.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import tvm

from tvm_compress.codec.cursor import Cursor, Damaged, varint
from tvm_compress.codec.tensors import (
    PROFILES,
    Profile,
    Record,
    measure_tensors,
    pack_tensors,
    read_records,
)
from tvm_compress.codec.text import pack_text, unpack_text
from tvm_compress.errors import ModelFormatError, OptionError, UnsupportedError

__all__ = [
    "MAGIC",
    "PROFILES",
    "Header",
    "SectionState",
    "Sections",
    "check_profile",
    "join_sections",
    "measure",
    "pack",
    "read_header",
    "read_sections",
    "unpack",
]

MAGIC = b"TCZ\x1a"
VERSION = 1
_SECTIONS = ("graph", "tensors", "weights")
_ENTRY = struct.Struct("<BII")
_FIXED = struct.Struct("<4sBBHB")
# What a graph's bytes may become; the model of text cannot do better on a graph that exists.
_GRAPH_GROWTH, _GRAPH_FREE = 64, 4096


@dataclass(frozen=True)
class Sections:
    """A file taken apart: its profile and its three sections."""

    profile: Profile
    graph: bytes
    tensors: bytes
    weights: bytes

    @property
    def records(self) -> list[Record]:
        """What the file says of its tensors, in the order of the graph."""
        with _section("tensors"):
            return read_records(self.tensors, len(self.weights), self.profile)


@dataclass(frozen=True)
class SectionState:
    """A section as the header tells it, and whether what is there has its length and checksum."""

    name: str
    size_bytes: int
    crc32: int
    intact: bool


@dataclass(frozen=True)
class Header:
    """The header of a file, whatever the state of the file.

    Attributes:
        version: of the format.
        profile: ``archive`` or ``flash``, or the number of an unknown one.
        features: bits that a reader must know.
        intact: whether the header has its checksum.
        sections: as many as the header holds whole.
        header_bytes: bytes before the first section.
        file_bytes: bytes of the file.
    """

    version: int
    profile: str
    features: int
    intact: bool
    sections: tuple[SectionState, ...]
    header_bytes: int
    file_bytes: int


def read_header(data: bytes) -> Header | None:
    """Tell what a file's header says, as far as it goes; None where there is none.

    Unlike :func:`read_sections` this refuses nothing, so that a damaged file can be looked at.
    """
    if data[:4] != MAGIC or len(data) < _FIXED.size:
        return None
    _, version, profile, features, count = _FIXED.unpack_from(data)
    size = _FIXED.size + count * _ENTRY.size + 4
    (checksum,) = struct.unpack("<I", data[size - 4 : size]) if len(data) >= size else (None,)
    states, at = [], size
    for place in range(_FIXED.size, min(size - 4, len(data)) - _ENTRY.size + 1, _ENTRY.size):
        kind, length, crc = _ENTRY.unpack_from(data, place)
        name = _SECTIONS[kind - 1] if 0 < kind <= len(_SECTIONS) else f"type {kind}"
        part = data[at : at + length]
        at += length
        intact = len(part) == length and zlib.crc32(part) == crc
        states.append(SectionState(name, length, crc, intact))
    return Header(
        version,
        PROFILES[profile] if profile < len(PROFILES) else str(profile),
        features,
        zlib.crc32(data[: size - 4]) == checksum,
        tuple(states),
        size,
        len(data),
    )


def check_profile(profile: str) -> Profile:
    """Give the profile.

    Raises:
        OptionError: there is none of this name.
    """
    for known in PROFILES:
        if profile == known:
            return known
    raise OptionError(f"There is no profile {profile!r}; expected {' or '.join(PROFILES)}.")


def pack(mod: tvm.IRModule, profile: str = "archive") -> bytes:
    """Give the bytes of a ``.tcz`` file; the same module gives the same bytes on every machine.

    Args:
        mod: a canonical module.
        profile: ``archive`` for the smallest file, ``flash`` for one that a device decodes.

    Raises:
        OptionError: an unknown profile.
        UnsupportedError: the module holds an operator, attribute or dtype that a file cannot.
        PassError: the module is not one straight-line function main.
    """
    from tvm_compress.codec.graph import pack_graph

    chosen = check_profile(profile)
    text, leaves = pack_graph(mod)
    tensors, weights = pack_tensors(leaves, chosen)
    graph = varint(len(text)) + pack_text(text)
    if len(text) > _GRAPH_GROWTH * len(graph) + _GRAPH_FREE:
        raise UnsupportedError(
            "The module's graph repeats itself more than a .tcz file admits; save it as .json."
        )
    return join_sections(Sections(chosen, graph, tensors, weights))


def join_sections(sections: Sections) -> bytes:
    """Give the file of three sections."""
    parts = (sections.graph, sections.tensors, sections.weights)
    head = _FIXED.pack(MAGIC, VERSION, PROFILES.index(sections.profile), 0, len(parts))
    for kind, part in enumerate(parts, 1):
        if len(part) >> 32:
            raise UnsupportedError(
                f"The section {_SECTIONS[kind - 1]} has {len(part)} bytes; expected fewer than "
                "2**32 bytes, which a .tcz file holds: share more of the weights, or save it as "
                ".json."
            )
        head += _ENTRY.pack(kind, len(part), zlib.crc32(part))
    return head + struct.pack("<I", zlib.crc32(head)) + b"".join(parts)


def read_sections(data: bytes, name: str = "The file") -> Sections:
    """Take a file apart and check lengths and checksums; nothing is decoded.

    Args:
        data: the file.
        name: what messages call it.

    Raises:
        ModelFormatError: it is no ``.tcz`` file, of a newer version, cut short or damaged.
    """
    if data[:4] != MAGIC:
        raise ModelFormatError(
            f"{name} does not begin as a .tcz file does; expected a file that "
            "tvm_compress.save wrote."
        )
    with _section("header", name):
        cursor = Cursor(data)
        _, version, profile, features, count = _FIXED.unpack(cursor.take(_FIXED.size))
        if version > VERSION or features:
            raise ModelFormatError(
                f"{name} is of version {version} with the features {features:#06x}, by its "
                f"header; this tvm-compress reads version {VERSION} without features. Install a "
                "newer one, or copy the file again."
            )
        if version != VERSION or profile >= len(PROFILES) or count != len(_SECTIONS):
            raise Damaged("it tells a version, a profile or a number of sections that never was")
        entries = [_ENTRY.unpack(cursor.take(_ENTRY.size)) for _ in _SECTIONS]
        (checksum,) = struct.unpack("<I", cursor.take(4))
        if zlib.crc32(data[: cursor.at - 4]) != checksum:
            raise Damaged("its checksum is another")
        if [kind for kind, _, _ in entries] != [1, 2, 3]:
            raise Damaged("its sections are not graph, tensors and weights")
    parts = []
    for section, (_, length, checksum) in zip(_SECTIONS, entries, strict=True):
        with _section(section, name):
            part = cursor.take(length)
            if zlib.crc32(part) != checksum:
                raise Damaged("its checksum is another")
            parts.append(part)
    with _section("weights", name):
        if cursor.left:
            raise Damaged(f"{cursor.left} bytes follow it")
    return Sections(PROFILES[profile], *parts)


def unpack(data: bytes, name: str = "The file") -> tvm.IRModule:
    """Read a ``.tcz`` file into a module; nothing in the file is ever executed.

    Args:
        data: the file.
        name: what messages call it.

    Raises:
        ModelFormatError: see :func:`read_sections`; or a section holds what no writer writes.
    """
    return measure(data, name)[0]


def measure(data: bytes, name: str = "The file") -> tuple[tvm.IRModule, Mapping[str | None, float]]:
    """Read a ``.tcz`` file, and tell how many bits of the section weights each tensor takes.

    Returns:
        The module, and bits by parameter's name (see
        :func:`tvm_compress.codec.tensors.measure_tensors`); None stands for all tensors that are
        no parameters.

    Raises:
        ModelFormatError: see :func:`unpack`.
    """
    from tvm_compress.codec.graph import unpack_graph

    sections = read_sections(data, name)
    with _section("tensors", name):
        records = read_records(sections.tensors, len(sections.weights), sections.profile)
    with _section("graph", name):
        cursor = Cursor(sections.graph)
        length = cursor.varint()
        if length > _GRAPH_GROWTH * len(sections.graph) + _GRAPH_FREE:
            raise Damaged(f"it promises {length} bytes and has {cursor.left}")
        text = unpack_text(cursor.take(cursor.left), length)
    with _section("weights", name):
        measured = measure_tensors(sections.weights, records, sections.profile)
    with _section("graph", name):
        mod, names = unpack_graph(text, [leaf for leaf, _ in measured])
    bits: dict[str | None, float] = {}
    for tensor, (_, its_bits) in zip(names, measured, strict=True):
        bits[tensor] = bits.get(tensor, 0.0) + its_bits
    return mod, bits


@contextmanager
def _section(section: str, name: str = "The file") -> Iterator[None]:
    """Say which section is damaged."""
    try:
        yield
    except Damaged as error:
        what = section if section == "header" else f"section {section}"
        raise ModelFormatError(
            f"{name} is damaged in its {what}: {error}. Copy it again, or save the model anew."
        ) from error
