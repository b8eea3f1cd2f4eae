"""Fuzzes the readers of .tcz files: the Python one, and the C decoder with sanitizers as its twin.

    python tests/fuzz/fuzz_tcz.py -max_total_time=60 tests/fuzz/corpus

Needs atheris, and cc for the twin. An input is a file whose checksums are mended before it is read,
so that the mutations reach what the checksums guard. Any exception but ModelFormatError, any report
of a sanitizer and any difference between the two decoders is a finding. ``--write-corpus`` writes
the corpus anew.
"""

from __future__ import annotations

import importlib
import struct
import sys
import tempfile
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

WRITES_CORPUS = "--write-corpus" in sys.argv
# The codec is instrumented while it is imported, and only where this file is run to fuzz.
atheris: Any = None
if __name__ == "__main__" and not WRITES_CORPUS:
    atheris = importlib.import_module("atheris")

import numpy as np  # noqa: E402

with atheris.instrument_imports(include=["tvm_compress.codec"]) if atheris else nullcontext():
    from tvm_compress import codec
    from tvm_compress.codec.container import Sections, join_sections
    from tvm_compress.codec.graph import Leaf
    from tvm_compress.codec.tensors import PROFILES, pack_tensors

from tests.codec.twin import Twin, by_python  # noqa: E402
from tvm_compress.errors import ModelFormatError  # noqa: E402

CORPUS = Path(__file__).with_name("corpus")
_FIXED, _ENTRY, _COUNT = 9, 9, 3
_HEADER = _FIXED + _COUNT * _ENTRY + 4


def mended(data: bytes) -> bytes:
    """Give the file with right checksums, and with lengths that its bytes can have."""
    if len(data) < _HEADER:
        return data
    head, body = bytearray(data[: _HEADER - 4]), data[_HEADER:]
    head[:5] = b"TCZ\x1a\x01"
    head[6:9] = bytes([0, 0, _COUNT])
    at = 0
    for number in range(_COUNT):
        place = _FIXED + number * _ENTRY
        length = struct.unpack_from("<I", head, place + 1)[0]
        left = len(body) - at
        length = left if number == _COUNT - 1 else min(length, left)
        crc = zlib.crc32(body[at : at + length])
        struct.pack_into("<BII", head, place, number + 1, length, crc)
        at += length
    return bytes(head) + struct.pack("<I", zlib.crc32(head)) + body


def check(data: bytes, twin: Twin) -> None:
    """Read one input by both decoders."""
    for file in (data, mended(data)):
        with suppress(ModelFormatError):
            codec.unpack(file)
        mine, its = by_python(file), twin.decode(file)
        assert mine == its, f"Python: {mine.read}, C: {twin.text}"


def write_corpus() -> None:
    """Write a few small files of each profile."""
    from tests.codec.test_container import MODULES

    chance = np.random.default_rng(0)
    codes = (chance.integers(0, 16, (9, 40)) * (chance.random((9, 40)) < 0.3)).astype(np.uint8)
    leaves = [Leaf(np.arange(16, dtype=np.float32), codes), Leaf(chance.random(3).astype("f4"))]
    CORPUS.mkdir(exist_ok=True)
    for profile in PROFILES:
        for number, mod in enumerate(MODULES.values()):
            (CORPUS / f"{profile}-{number}.tcz").write_bytes(codec.pack(mod, profile))
        file = join_sections(Sections(profile, b"", *pack_tensors(leaves, profile)))
        (CORPUS / f"{profile}-tensors.tcz").write_bytes(file)


def main() -> None:
    """Run libFuzzer with the arguments of the command line."""
    if WRITES_CORPUS:
        write_corpus()
        return
    with tempfile.TemporaryDirectory() as folder:
        twin = Twin("cc", Path(folder))
        atheris.Setup(sys.argv, lambda data: check(data, twin))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
