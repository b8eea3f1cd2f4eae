from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tvm_compress.layouts
from tvm_compress.layouts import Bank, Block, DenseCodes, GapCodes

LAYOUTS = Path(tvm_compress.layouts.__file__).parent
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-g"]
# Each compiler with the sanitizers that it brings; zig has no address sanitizer.
COMPILERS = {
    "zig": ([sys.executable, "-m", "ziglang", "cc"], ["-fsanitize=undefined"]),
    "cc": (["cc"], ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
}


class Reference:
    """The reference decoders in a process of their own; a sanitizer's report ends it."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _read(self, count: int) -> bytes:
        assert self.process.stdout is not None
        got = self.process.stdout.read(count)
        assert len(got) == count, f"the decoder died with exit code {self.process.wait()}"
        return got

    def dense(self, packed: DenseCodes, out_count: int | None = None) -> tuple[str, NDArray]:
        return self._request(
            0, packed.rows, packed.cols, packed.bits, 0, 0, np.empty(0, np.uint16), packed.data,
            np.empty(0, np.float32), out_count,
        )  # fmt: skip

    def gap(
        self,
        packed: GapCodes,
        out_count: int | None = None,
        row_start: NDArray | None = None,
        values_kind: bool | None = None,
    ) -> tuple[str, NDArray]:
        values = np.empty(0, np.float32) if packed.values is None else packed.values
        kind = 1 + (packed.values is not None if values_kind is None else values_kind)
        start = packed.row_start_stored if row_start is None else row_start
        return self._request(
            kind, packed.rows, packed.cols, 0, packed.gap_bits, packed.code_bits, start,
            packed.data, values, out_count,
        )  # fmt: skip

    def bank(self, packed: Bank, out_count: int | None = None) -> tuple[str, NDArray]:
        return self._request(
            3, packed.rows, packed.cols, packed.keep, 0, 0, np.empty(0, np.uint16), packed.data,
            np.empty(0, np.float32), out_count,
        )  # fmt: skip

    def block(
        self, packed: Block, out_count: int | None = None, row_start: NDArray | None = None
    ) -> tuple[str, NDArray]:
        start = packed.row_start_stored if row_start is None else row_start
        return self._request(
            4, packed.rows, packed.cols, 0, 0, 0, start, packed.gaps, packed.values, out_count
        )

    def _request(
        self, kind: int, rows: int, cols: int, bits: int, gap_bits: int, code_bits: int,
        row_start: NDArray, data: NDArray, values: NDArray, out_count: int | None,
    ) -> tuple[str, NDArray]:  # fmt: skip
        """Return the status' text and the (rows, cols) output, valid where the text says so."""
        count = rows * cols if out_count is None else out_count
        assert self.process.stdin is not None
        self.process.stdin.write(
            struct.pack(
                "<BIIBBBBIIIBQ", kind, rows, cols, bits, gap_bits, code_bits, row_start.itemsize,
                row_start.size, data.size, len(values), values.itemsize, count,
            )
            + row_start.tobytes() + data.tobytes() + values.tobytes()
        )  # fmt: skip
        self.process.stdin.flush()
        status, length = self._read(2)
        text = self._read(length).decode()
        assert (status == 0) == (text == "The matrix was unpacked.")
        dtype = values.dtype if kind in (2, 4) else np.dtype(np.uint8)
        out = np.frombuffer(self._read(count * dtype.itemsize), dtype)
        return text, out.reshape(rows, cols) if out_count is None else out


@pytest.fixture(scope="session", params=COMPILERS)
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reference]:
    command, sanitizers = COMPILERS[request.param]
    if request.param == "zig" and importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; pip install ziglang")
    if request.param == "cc" and shutil.which("cc") is None:
        pytest.skip("no host compiler cc is on the path; install gcc or clang")
    folder = tmp_path_factory.mktemp("layouts")
    if request.param == "cc":
        empty = folder / "empty.c"
        empty.write_text("int main(void) { return 0; }\n")
        probe = subprocess.run(
            [*command, *sanitizers, empty, "-o", folder / "probe"], capture_output=True
        )
        # A host without the runtime libraries of the sanitizers still runs the plain decoder.
        sanitizers = sanitizers if probe.returncode == 0 else []
    program = folder / "decoder"
    sources = [LAYOUTS / "reference.c", Path(__file__).with_name("reference_main.c")]
    built = subprocess.run(
        [*command, *STRICT, *sanitizers, f"-I{LAYOUTS}", *sources, "-o", program],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    decoder = Reference(program)
    yield decoder
    assert decoder.process.stdin is not None
    assert decoder.process.stdout is not None
    decoder.process.stdin.close()
    # A leak or a late report shows in the exit code.
    assert decoder.process.wait() == 0
    decoder.process.stdout.close()
