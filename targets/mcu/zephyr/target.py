"""The target ``zephyr``: an application that the user's tree builds and QEMU runs."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress.errors import CompressError, MissingToolError, OptionError
from tvm_compress.targets.artifact import Artifact, Inputs, Optimize, Size, Target
from tvm_compress.targets.mcu import qemu
from tvm_compress.targets.mcu.boards import Board
from tvm_compress.targets.mcu.elf import read_elf
from tvm_compress.targets.mcu.firmware import ModelSources
from tvm_compress.targets.mcu.harness import pack_inputs
from tvm_compress.targets.mcu.project import project_folder, write_files
from tvm_compress.targets.mcu.target import generate
from tvm_compress.targets.mcu.zephyr.boards import ZephyrBoard, board_in_tree, get_zephyr_board
from tvm_compress.targets.mcu.zephyr.project import application_files
from tvm_compress.targets.mcu.zephyr.tree import build_application, find_tree, toolchain_settings
from tvm_compress.tensors import check_samples, join_samples

__all__ = ["ZephyrArtifact", "ZephyrTarget"]

_QEMU, _ = qemu.PROGRAMS["arm"]
Array = NDArray[Any]


@dataclass(frozen=True)
class ZephyrTarget(Target):
    """A complete Zephyr application, the model as a module in it; see :func:`tvm_compress.build`.

    It is written, and where ``ZEPHYR_BASE`` names a tree it is built with it. Give an instance as
    ``target`` of ``build`` to set options.

    Attributes:
        template: what the application answers on the serial line: ``serial``, which :meth:`run`
            of the artifact speaks with, or ``mlperf-tiny``, the commands of that benchmark's
            runner.
        stack_bytes: bytes of the main thread's stack, in which the model runs.
        libc: ``minimal``, ``newlib``, ``picolibc``, or ``default``, which is Zephyr's choice.
        verbose: let Zephyr show its banner, and the application what it does.
        definitions: of the preprocessor, ``NAME`` or ``NAME=VALUE``, for all that is compiled.
        extra_files: paths of sources and headers that are compiled with the application, of
            ``.conf`` files for ``prj.conf``, and of an ``.overlay`` of the device tree.
        cmake_args: further arguments of CMake's, such as ``-DPython3_EXECUTABLE=...``.
    """

    name: ClassVar[str] = "zephyr"

    template: str = "serial"
    stack_bytes: int = 4096
    libc: str = "minimal"
    verbose: bool = False
    definitions: tuple[str, ...] = ()
    extra_files: tuple[str | Path, ...] = ()
    cmake_args: tuple[str, ...] = ()

    def build(
        self,
        mod: tvm.IRModule,
        *,
        name: str,
        board: str | Path | Board | None,
        out_dir: Path | None,
        toolchain: str | None = None,
        optimize: Optimize = "balanced",
    ) -> Artifact:
        """Write the application, and build it where there is a tree."""
        if board is None:
            raise OptionError(
                "The target zephyr needs a board; expected one of Zephyr's, such as mps2_an385. "
                "Name one."
            )
        known = get_zephyr_board(str(board))
        # What cannot be done is said before the work.
        tree = find_tree()
        if tree is not None:
            spelled = board_in_tree(str(board), known, tree.boards)
            settings = toolchain_settings(toolchain)
        model = generate(
            mod, name, dsp=known.kernels == "dsp", mve=known.kernels == "mve", optimize=optimize
        )
        texts = application_files(
            model,
            template=self.template,
            stack_bytes=self.stack_bytes,
            libc=self.libc,
            verbose=self.verbose,
            emulated=known.machine is not None,
            definitions=self.definitions,
            extra_files=[Path(path) for path in self.extra_files],
        )
        folder, scratch = project_folder(out_dir)
        files = write_files(texts, folder)
        elf = None
        if tree is not None:
            elf = build_application(tree, folder, spelled, settings, self.cmake_args)
            files[elf.relative_to(folder).as_posix()] = elf
        return ZephyrArtifact(model, files, str(board), known, elf, self.template, scratch)


@dataclass(frozen=True)
class ZephyrArtifact(Artifact):
    """A Zephyr application: its files, and where it was built the ELF file that QEMU runs."""

    model: ModelSources
    written: dict[str, Path]
    board_name: str
    board: ZephyrBoard
    elf: Path | None
    template: str
    _scratch: Any = field(default=None, repr=False)
    _what: ClassVar[str] = "A Zephyr application"

    @property
    def files(self) -> dict[str, Path]:
        """The files of the application by their path in its folder, and the ELF file."""
        return dict(self.written)

    @property
    def has_size(self) -> bool:
        """Whether it was built."""
        return self.elf is not None

    @property
    def size(self) -> Size:
        """Bytes of flash and RAM of the whole image, Zephyr included.

        ``stack`` is what is kept for the main thread, in which the model runs.

        Raises:
            MissingToolError: the application was not built.
        """
        elf = read_elf(self._built())
        owned = dict.fromkeys(("weights", "arena", "inputs", "outputs", "stack"), 0)
        prefixes = {
            f"{self.model.name}_w_": "weights",
            "harness_arena": "arena",
            "harness_input_": "inputs",
            "harness_output_": "outputs",
            "z_main_stack": "stack",
        }
        for symbol in elf.symbols:
            for prefix, part in prefixes.items():
                if symbol.kind == "object" and symbol.name.startswith(prefix):
                    owned[part] += symbol.size
        flash = sum(len(segment.data) for segment in elf.segments)
        constants = elf.section_bytes("rodata") - owned["weights"]
        # What lies in RAM is what is not in the image, or is copied out of it.
        ram = sum(
            segment.memory_bytes
            for segment in elf.segments
            if segment.virtual != segment.physical or len(segment.data) < segment.memory_bytes
        )
        parts = {part: owned[part] for part in ("arena", "inputs", "outputs")}
        static = ram - sum(parts.values()) - owned["stack"]
        return Size(
            {
                "code": flash - owned["weights"] - constants,
                "weights": owned["weights"],
                "constants": constants,
            },
            parts | {"static": static, "stack": owned["stack"]},
        )

    def run(
        self, inputs: Inputs, *, engine: str | None = None, timeout_s: float = 600.0
    ) -> dict[str, Array]:
        """Run on QEMU's machine of the board, N samples in one start; see :meth:`Artifact.run`.

        Args:
            inputs: as of :meth:`Artifact.run`.
            engine: ``qemu``, or None.
            timeout_s: seconds until a run that does not end is stopped.

        Raises:
            MissingToolError: the application was not built, or QEMU is not installed.
            OptionError: QEMU has no machine for the board, or the engine is another one.
            DataError: a name, shape or dtype is wrong.
            CompressError: the application faulted, did not end, or answered something else.
        """
        if self.template != "serial":
            raise OptionError(
                f"The application is of the template {self.template}, which answers its own "
                "commands. Speak with it by `converse`, or build it of the template serial."
            )
        samples = check_samples(self.model.inputs, inputs)
        count, data = pack_inputs(self.model.name, self.model.inputs, samples)
        rows = np.frombuffer(data[4:], np.uint8).reshape(count, -1)
        text = "".join(f">{row.tobytes().hex()}\n" for row in rows) + ".\n"
        console = self.converse(text, engine=engine, timeout_s=timeout_s)
        return join_samples(self._outputs(console, count))

    def converse(self, text: str, *, engine: str | None = None, timeout_s: float = 600.0) -> str:
        """Start QEMU, send ``text`` over the serial line, give what is shown until the end.

        The text must have the application end: by ``.`` (``serial``) or ``exit%``
        (``mlperf-tiny``).

        Raises:
            MissingToolError: the application was not built, or QEMU is not installed.
            OptionError: QEMU has no machine for the board, or the engine is another one.
            CompressError: it did not end in time, or QEMU failed.
        """
        machine = self._machine(engine)
        return _converse(self._built(), machine, text, timeout_s)

    def _built(self) -> Path:
        if self.elf is None:
            raise MissingToolError(
                "ZEPHYR_BASE is not set, so the application was written and not built. Set it to "
                "the folder zephyr of your workspace, 3.2 or newer, and build again."
            )
        return self.elf

    def _machine(self, engine: str | None) -> str:
        if engine not in (None, "qemu"):
            raise OptionError(
                f"A Zephyr application runs on QEMU alone, and the engine {engine!r} was asked for."
                ' Leave it out, or build the target "c" for a board that runs on it.'
            )
        if self.board.machine is None:
            raise OptionError(
                f"QEMU has no machine for the board {self.board_name} that is known here. Flash "
                "the application with `west flash`, or build it for mps2_an385."
            )
        self._built()
        if not qemu.available("arm"):
            raise MissingToolError(
                f"The emulator {_QEMU} is not installed. {qemu.how_to_get('arm')}"
            )
        return self.board.machine

    def _outputs(self, console: str, count: int) -> dict[str, Array]:
        """Read the answers, one line a sample, from what the console showed."""
        lines = console.replace("\r", "").split("\n")
        for line in lines:
            if line.startswith("! "):
                raise CompressError(
                    f"The Zephyr application of {self.model.name} reports: {line[2:]}. If the "
                    "stack is too small, raise stack_bytes; else report the model as a bug."
                )
        row = sum(spec.size_bytes for spec in self.model.outputs)
        answers = [line[1:] for line in lines if line.startswith("<")]
        whole = re.compile(f"[0-9a-f]{{{2 * row}}}")
        if len(answers) != count or not all(map(whole.fullmatch, answers)):
            shown = console.strip()[-500:]
            raise CompressError(
                f"The Zephyr application of {self.model.name} gave {len(answers)} answers; "
                f"expected {count} of {row} bytes each. Build it again; the console ended with: "
                f"{shown!r}"
            )
        table = np.frombuffer(bytes.fromhex("".join(answers)), np.uint8).reshape(count, row)
        outputs = {}
        start = 0
        for spec in self.model.outputs:
            column = np.ascontiguousarray(table[:, start : start + spec.size_bytes])
            outputs[spec.name] = column.view(np.dtype(spec.dtype)).reshape(count, *spec.shape)
            start += spec.size_bytes
        return outputs


def _converse(elf: Path, machine: str, text: str, timeout_s: float) -> str:
    """Start QEMU, give it ``text`` on the serial line, and return what it showed until its end."""
    command = [_QEMU, "-M", machine, "-display", "none", "-monitor", "none", "-serial", "stdio"]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(elf)]
    try:
        # subprocess.run kills and awaits the process when the time is over or on Ctrl-C.
        done = subprocess.run(
            command, input=text.encode(), capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        shown = (error.stdout or b"").decode("latin-1").strip()[-500:]
        raise CompressError(
            f"The Zephyr application did not end within {timeout_s:g} s on QEMU and was stopped. "
            f"Give fewer samples at a time or a longer timeout. The console ended with: {shown!r}"
        ) from error
    if done.returncode < 0 or done.returncode == 1:
        words = done.stderr.decode("utf-8", "replace").strip()[:500]
        raise CompressError(
            f"QEMU ended with {done.returncode} before the application did: {words!r}. "
            "Check the installation of QEMU."
        )
    return done.stdout.decode("latin-1")
