"""The ``.tcz`` file: a header, and three sections each with its length and checksum.

``SPEC.md`` beside this file tells the bytes, ``DESIGN.md`` why they are so.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tvm

from tvm_compress.codec.cursor import Cursor, Damaged, varint
from tvm_compress.codec.tensors import (
    PROFILES,
    Profile,
    Record,
    pack_tensors,
    read_records,
    unpack_tensors,
)
from tvm_compress.codec.text import pack_text, unpack_text
from tvm_compress.errors import ModelFormatError, OptionError, UnsupportedError

__all__ = [
    "MAGIC",
    "PROFILES",
    "Sections",
    "check_profile",
    "join_sections",
    "pack",
    "read_sections",
    "unpack",
]

MAGIC = b"TCZ\x1a"
VERSION = 1
_SECTIONS = ("graph", "tensors", "weights")
_ENTRY = struct.Struct("<BII")
_FIXED = struct.Struct("<4sBBHB")
# What a graph's bytes may become; the model of text cannot do better on a graph that exists.
_GRAPH_GROWTH, _GRAPH_FREE = 512, 4096


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
        leaves = unpack_tensors(sections.weights, records, sections.profile)
    with _section("graph", name):
        return unpack_graph(text, leaves)


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
