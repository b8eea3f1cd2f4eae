from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.coding import board_cost
from tests.codec.test_tensors import tensors
from tests.codec.twin import READ, Twin, by_python
from tvm_compress.codec.container import Sections, join_sections
from tvm_compress.codec.graph import Leaf
from tvm_compress.codec.tensors import pack_tensors


def flash_file(leaves: list[Leaf]) -> bytes:
    return join_sections(Sections("flash", b"graph", *pack_tensors(leaves, "flash")))


@settings(max_examples=50)
@given(leaves=st.lists(tensors(), max_size=4))
def test_the_twin_reads_what_python_reads(twin: Twin, leaves: list[Leaf]) -> None:
    file = flash_file(leaves)
    mine, its = by_python(file), twin.decode(file)
    assert mine.read
    assert mine == its
    assert twin.text == READ


@settings(max_examples=250)
@given(data=st.data())
def test_the_twin_refuses_what_python_refuses(
    twin: Twin, leaves: list[Leaf], data: st.DataObject
) -> None:
    sections = list(pack_tensors(leaves, "flash"))
    which = data.draw(st.integers(0, 1))
    changed = bytearray(sections[which])
    at = data.draw(st.integers(0, min(len(changed), 400) - 1))
    if data.draw(st.booleans()):
        at = len(changed) - 1 - at
    kind = data.draw(st.sampled_from(["flip", "set", "cut", "insert"]))
    if kind == "flip":
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "set":
        changed[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    elif kind == "cut":
        del changed[at:]
    else:
        changed.insert(at, data.draw(st.integers(0, 255)))
    sections[which] = bytes(changed)
    # The checksums are right, so the decoders see the change.
    file = join_sections(Sections("flash", b"", *sections))
    assert by_python(file) == twin.decode(file)


def test_each_status_is_told(twin: Twin, leaves: list[Leaf]) -> None:
    tensors_, weights = pack_tensors(leaves, "flash")
    file = flash_file(leaves)

    def told(data: bytes) -> str:
        assert not twin.decode(data).read
        return twin.text

    assert told(b"") == "The file is no .tcz file of the flash profile and of version 1."
    archive = join_sections(Sections("archive", b"", *pack_tensors(leaves, "archive")))
    assert told(archive).startswith("The file is no .tcz file of the flash")
    assert told(file[:20]) == "The header is damaged; copy the file again."
    assert told(file[:-1]) == "The header is damaged; copy the file again."
    assert told(file + b"\0") == "The header is damaged; copy the file again."
    assert told(file[:-1] + b"\1") == "A section is damaged; copy the file again."
    bad = join_sections(Sections("flash", b"", tensors_[:-1], weights))
    assert told(bad) == "The section tensors holds what no writer writes."
    # Something behind the last record, behind none, and nothing at all.
    for records in (tensors_ + b"\0", b"\0\0", b""):
        bad = join_sections(Sections("flash", b"", records, weights))
        assert told(bad) == "The section tensors holds what no writer writes."
        assert not by_python(bad).read
    bad = join_sections(Sections("flash", b"", tensors_, weights[:-5] + bytes(4)))
    assert told(bad) == "The section weights holds what no writer writes."


def test_a_device_decodes_within_its_limits(tmp_path: Path) -> None:
    chance = np.random.default_rng(2)
    codes = np.minimum(chance.geometric(0.2, (300, 200)), 15).astype(np.uint8)
    codes *= chance.random(codes.shape) < 0.1
    cost = board_cost([Leaf(np.arange(16, dtype=np.float32), codes)], tmp_path)
    flat = codes.ravel()
    assert cost.checks == (flat[flat.size // 3], flat[flat.size // 2], 1)
    assert cost.nonzero == np.count_nonzero(codes)
    assert cost.decoding <= 30 * cost.nonzero
    assert cost.code_bytes <= 4096
    assert cost.ram_bytes <= 2048
