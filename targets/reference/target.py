"""The reference target: the module itself, run by the numpy interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tvm
from numpy.typing import NDArray

from tvm_compress.errors import OptionError
from tvm_compress.targets.artifact import Artifact, Inputs, Optimize, Target
from tvm_compress.targets.mcu.boards import Board
from tvm_compress.targets.reference.interpreter import run

__all__ = ["ReferenceArtifact", "ReferenceTarget"]


@dataclass(frozen=True)
class ReferenceArtifact(Artifact):
    """A module that runs in numpy."""

    mod: tvm.IRModule
    path: Path | None
    _what: ClassVar[str] = "The reference target"

    @property
    def files(self) -> dict[str, Path]:
        """The module as JSON, where a folder was given."""
        return {} if self.path is None else {self.path.name: self.path}

    def run(self, inputs: Inputs, *, engine: str | None = None) -> dict[str, NDArray[Any]]:
        """Run the module; see :meth:`Artifact.run`."""
        self._no_engine(engine)
        return run(self.mod, inputs)


@dataclass(frozen=True)
class ReferenceTarget(Target):
    """Numpy: slow, obviously right."""

    name: ClassVar[str] = "reference"

    def build(
        self,
        mod: tvm.IRModule,
        *,
        name: str,
        board: str | Path | Board | None,
        out_dir: Path | None,
        toolchain: str | None = None,
        optimize: Optimize = "balanced",
    ) -> ReferenceArtifact:
        """Keep the module; write it as JSON where a folder is given.

        There is nothing to ``optimize``: no machine's instructions or flash are counted.

        Raises:
            OptionError: a board or a toolchain was given, or the name is no file name.
        """
        from tvm_compress.pipeline import save

        named = board.title if isinstance(board, Board) else board
        for what, given in (("board", named), ("toolchain", toolchain)):
            if given is not None:
                raise OptionError(
                    f"The target reference takes no {what}, and {given} was given; leave it out "
                    "or choose the target c."
                )
        if not name or Path(name).name != name:
            raise OptionError(
                f"The name {name!r} is no file name; expected one without folders, such as "
                "my_model."
            )
        path = None
        if out_dir is not None:
            out_dir.mkdir(parents=True, exist_ok=True)
            path = out_dir / f"{name}.json"
            save(mod, path)
        return ReferenceArtifact(mod, path)
