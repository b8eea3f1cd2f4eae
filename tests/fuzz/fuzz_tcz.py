"""Fuzzes the reader of .tcz files in Python, with the C decoder and its sanitizers as the twin.

    python tests/fuzz/fuzz_tcz.py -max_total_time=60 -seed=1 tests/fuzz/corpus

``fuzz.py`` runs this and the fuzzer of the C decoder side by side. An input is a file whose
checksums are mended before it is read, so that the mutations reach what the checksums guard. Any
exception but ModelFormatError, any report of a sanitizer and any difference between the two
decoders is a finding.

atheris guides the mutations by what they reach; its arguments are libFuzzer's. It has wheels for
Linux on x86-64 alone; elsewhere mutations are made by chance, and of its arguments
``-max_total_time``, ``-seed`` and ``-artifact_prefix`` are taken. ``--write-corpus`` writes the
corpus anew.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

WRITES_CORPUS = "--write-corpus" in sys.argv
# The codec is instrumented while it is imported, and only where this file is run to fuzz.
atheris: Any = None
if __name__ == "__main__" and not WRITES_CORPUS and importlib.util.find_spec("atheris"):
    atheris = importlib.import_module("atheris")

import numpy as np  # noqa: E402

with atheris.instrument_imports(include=["tvm_compress.codec"]) if atheris else nullcontext():
    from tvm_compress import codec
    from tvm_compress.codec.container import Sections, join_sections
    from tvm_compress.codec.graph import Leaf
    from tvm_compress.codec.tensors import PROFILES, pack_tensors

from tests.codec.twin import COMPILERS, Twin, by_python, missing  # noqa: E402
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


def mutation(corpus: Sequence[bytes], chance: np.random.Generator) -> bytes:
    """Change one of the files in one to four places."""
    data = bytearray(corpus[int(chance.integers(len(corpus)))])
    for _ in range(int(chance.integers(1, 5))):
        at, kind = int(chance.integers(len(data) + 1)), int(chance.integers(5))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(chance.integers(8))
        elif kind == 1 and at < len(data):
            data[at] = int(chance.choice([0, 1, 2, 0x0F, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            del data[at : at + int(chance.integers(1, 9))]
        elif kind == 3:
            data[at:at] = chance.bytes(int(chance.integers(1, 5)))
        else:
            data[at:] = corpus[int(chance.integers(len(corpus)))][at:]
    return bytes(data)


def by_chance(
    one_input: Callable[[bytes], None], seconds: float, seed: int, runs: int, prefix: str
) -> int:
    """Try mutations of the corpus until the time or the runs are over; give their number."""
    corpus = [path.read_bytes() for path in sorted(CORPUS.glob("*.tcz"))]
    chance, end = np.random.default_rng(seed), time.monotonic() + seconds
    for done in range(runs):
        if time.monotonic() >= end:
            return done
        data = corpus[done] if done < len(corpus) else mutation(corpus, chance)
        try:
            one_input(data)
        except BaseException:
            path = Path(f"{prefix}crash-{zlib.crc32(data):08x}")
            path.write_bytes(data)
            print(f"The input is in {path}.", file=sys.stderr)
            raise
    return runs


def main(arguments: Sequence[str]) -> None:
    """Run atheris with the arguments of the command line, or what stands in for it."""
    if WRITES_CORPUS:
        write_corpus()
        return
    compiler = next(name for name in ("cc", *COMPILERS) if missing(name) is None)
    with tempfile.TemporaryDirectory() as folder:
        twin = Twin(compiler, Path(folder))

        def one_input(data: bytes) -> None:
            check(data, twin)

        if atheris is not None:
            atheris.Setup([sys.argv[0], *arguments], one_input)
            atheris.Fuzz()
            return
        options = dict(text.split("=", 1) for text in arguments if text.startswith("-"))
        done = by_chance(
            one_input,
            float(options.get("-max_total_time", "inf")),
            int(options.get("-seed", 0)),
            sys.maxsize,
            options.get("-artifact_prefix", ""),
        )
        print(f"Done {done} runs", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
