"""Writes a model as an Arduino library; the templates are in ``library/``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import tvm
from numpy.typing import NDArray

from tvm_compress.errors import OptionError
from tvm_compress.targets.artifact import Artifact, Inputs, Optimize, Target
from tvm_compress.targets.mcu.boards import Board, get_board
from tvm_compress.targets.mcu.firmware import ModelSources
from tvm_compress.targets.mcu.harness import harness_header
from tvm_compress.targets.mcu.project import (
    LIBM,
    LIBM_FUNCTIONS,
    project_folder,
    read_templates,
    write_files,
)
from tvm_compress.targets.mcu.target import CTarget, generate

__all__ = ["ArduinoArtifact", "ArduinoTarget", "library_files"]

_TEMPLATES = Path(__file__).parent / "library"


@dataclass(frozen=True)
class ArduinoTarget(Target):
    """A library of the Arduino environment; see :func:`tvm_compress.build`.

    A board, one of the target ``c``, says which kernels are written; without it they are C, which
    every processor runs.
    """

    name: ClassVar[str] = "arduino"

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
        """Write the library."""
        if toolchain is not None:
            raise OptionError(
                f"The target arduino writes a library and compiles nothing, and the toolchain "
                f"{toolchain} was given. Leave it out; the Arduino environment has its own."
            )
        core = None if board is None else get_board(board)
        extensions = {} if core is None else {"dsp": core.has_dsp, "mve": core.has_mve}
        model = generate(mod, name, optimize=optimize, **extensions)
        folder, scratch = project_folder(out_dir)
        files = write_files(library_files(model), folder)
        host = CTarget().build(mod, name=name, board=None, out_dir=None, optimize=optimize)
        return ArduinoArtifact(files, host, scratch)


@dataclass(frozen=True)
class ArduinoArtifact(Artifact):
    """An Arduino library; it runs on this machine, as the same network in C."""

    written: dict[str, Path]
    host: Artifact
    _scratch: Any = field(default=None, repr=False)
    _what: ClassVar[str] = "An Arduino library"

    @property
    def files(self) -> dict[str, Path]:
        """The files of the library by their path in its folder."""
        return dict(self.written)

    def run(self, inputs: Inputs, *, engine: str | None = None) -> dict[str, NDArray[Any]]:
        """Run the network's C on this machine; see :meth:`Artifact.run`."""
        self._no_engine(engine)
        return self.host.run(inputs)


def library_files(model: ModelSources) -> dict[str, str]:
    """Give the texts of a library's files by their path in its folder."""
    files = read_templates(_TEMPLATES, {"NAME": model.name, "UPPER": model.name.upper()})
    files["examples/serial/harness_model.h"] = harness_header(
        model.name, model.inputs, model.outputs, model.arena_bytes
    )
    # The environment gives a library no flags of its own, so that names change in the text.
    renamed = "".join(f"#define {f} {model.name}_{f}\n" for f in LIBM_FUNCTIONS)
    declared = "".join(f"{prototype};\n" for prototype in LIBM_FUNCTIONS.values())
    head = f"#include <math.h>\n{renamed}{declared}"
    layers, libm = f"{model.name}_layers.c", f"{model.name}_libm.c"
    for name, text in {**model.files, libm: LIBM}.items():
        # The environment compiles .S, not .s.
        path = f"src/{name[:-2]}.S" if name.endswith(".s") else f"src/{name}"
        files[path] = head + text if name in (layers, libm) else text
    return files
