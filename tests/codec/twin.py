"""The C decoder in a process of its own, and the Python decoder in its words, to compare them."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tvm_compress.codec
from tvm_compress.codec.container import read_sections
from tvm_compress.codec.cursor import Damaged
from tvm_compress.codec.tensors import unpack_tensors
from tvm_compress.errors import ModelFormatError

CODEC = Path(tvm_compress.codec.__file__).parent
MAIN = Path(__file__).with_name("decoder_main.c")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-g"]
# Each compiler with the sanitizers that it brings; zig has no address sanitizer.
COMPILERS = {
    "zig": ([sys.executable, "-m", "ziglang", "cc"], ["-fsanitize=undefined"]),
    "cc": (["cc"], ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
}
READ = "The file was read."


@dataclass(frozen=True)
class Decoded:
    """Whether a file was read, and the (codes, values) bytes of each tensor if it was."""

    read: bool
    tensors: tuple[tuple[bytes, bytes], ...]


def missing(compiler: str) -> str | None:
    """Return why a compiler cannot be used, or None."""
    if compiler == "zig" and importlib.util.find_spec("ziglang") is None:
        return "ziglang is not installed; pip install ziglang"
    if compiler == "cc" and shutil.which("cc") is None:
        return "no host compiler cc is on the path; install gcc or clang"
    return None


def sanitizers_of(compiler: str, folder: Path) -> list[str]:
    """Give the options for the sanitizers that a compiler has on this machine, perhaps none."""
    command, best = COMPILERS[compiler]
    if compiler != "cc":
        return best
    program = folder / "empty.c"
    program.write_text("int main(void) { return 0; }\n")
    # A host without the runtime libraries of the sanitizers still runs the plain decoder.
    for tried in (best, ["-fsanitize=undefined", "-fno-sanitize-recover=all"]):
        probe = [*command, *tried, str(program), "-o", str(folder / "probe")]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return tried
    return []


class Twin:
    """The C decoder, built with sanitizers whose report ends its process."""

    def __init__(self, compiler: str, folder: Path) -> None:
        command, sanitizers = COMPILERS[compiler][0], sanitizers_of(compiler, folder)
        program = folder / f"decoder-{compiler}"
        sources = [str(CODEC / "decoder.c"), str(MAIN)]
        built = subprocess.run(
            [*command, *STRICT, *sanitizers, f"-I{CODEC}", *sources, "-o", str(program)],
            capture_output=True,
            text=True,
        )
        assert built.returncode == 0, built.stderr
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.text = ""

    def _get(self, count: int) -> bytes:
        assert self._process.stdout is not None
        got = self._process.stdout.read(count)
        assert len(got) == count, f"the decoder died with exit code {self._process.wait()}"
        return got

    def _number(self) -> int:
        number: int = struct.unpack("<I", self._get(4))[0]
        return number

    def decode(self, file: bytes) -> Decoded:
        """Decode one file; ``text`` becomes what the decoder says of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack("<I", len(file)) + file)
        self._process.stdin.flush()
        tensors = []
        while self._number():
            codes = self._get(self._number())
            tensors.append((codes, self._get(self._number())))
        status = self._number()
        self.text = self._get(self._number()).decode()
        assert (status == 0) == (self.text == READ)
        return Decoded(status == 0, tuple(tensors) if status == 0 else ())

    def close(self) -> None:
        """End the process; a leak or a late report shows in its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait() == 0
        self._process.stdout.close()


def by_python(file: bytes) -> Decoded:
    """What the Python decoder makes of a file's weights (the graph is not for the device)."""
    try:
        sections = read_sections(file)
        if sections.profile != "flash":
            return Decoded(False, ())
        records = sections.records
        leaves = unpack_tensors(sections.weights, records, "flash")
    except (ModelFormatError, Damaged):
        return Decoded(False, ())
    tensors = []
    for leaf, record in zip(leaves, records, strict=True):
        values = np.ascontiguousarray(leaf.values)
        if leaf.codes is not None:
            tensors.append((leaf.codes.tobytes(), values.tobytes()))
        elif record.kind == 1:
            bits = values.reshape(-1).view(f"u{values.itemsize}")
            tensors.append(((bits != 0).astype(np.uint8).tobytes(), bits[bits != 0].tobytes()))
        elif record.kind == 3:
            tensors.append((values.tobytes(), b""))
        else:
            tensors.append((b"", values.tobytes()))
    return Decoded(True, tuple(tensors))
