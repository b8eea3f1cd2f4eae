"""The target ``c``: plain C99 for a microcontroller, or for this machine without a board."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress.errors import CompressError, FlashError, OptionError
from tvm_compress.targets.artifact import Artifact, Inputs, Optimize, Size, Target
from tvm_compress.targets.mcu.boards import Board, get_board
from tvm_compress.targets.mcu.dsp import SCARCE, preference
from tvm_compress.targets.mcu.firmware import Firmware, ModelSources, Profile, link_firmware
from tvm_compress.targets.mcu.lower import lower
from tvm_compress.targets.mcu.program import ARENA_ALIGNMENT, make_program
from tvm_compress.targets.mcu.project import LIBM, project_folder, write_files
from tvm_compress.targets.mcu.sources import check_name, write_sources
from tvm_compress.targets.mcu.toolchain import find_toolchain, host_library
from tvm_compress.tensors import check_samples, join_samples

__all__ = ["CTarget", "FirmwareArtifact", "HostArtifact", "generate"]


def generate(
    mod: tvm.IRModule,
    name: str,
    *,
    dsp: bool = False,
    mve: bool = False,
    optimize: Optimize = "balanced",
) -> ModelSources:
    """Generate the C99 text of a canonical module; every symbol begins with ``name``.

    With ``dsp`` or ``mve`` the kernels of integer layers are assembly for cores with the DSP or
    the vector extension; ``optimize`` says how flash is weighed against instructions there.

    Raises:
        OptionError: ``name`` cannot prefix C symbols.
        UnsupportedError: an operator has no C form.
    """
    check_name(name)
    lowered = lower(mod, dsp=dsp, mve=mve, preference=preference(optimize))
    return write_sources(make_program(*lowered), name)


@dataclass(frozen=True)
class CTarget(Target):
    """Plain C99 without heap or runtime; see :func:`tvm_compress.build`."""

    name: ClassVar[str] = "c"

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
        """Write the sources, and link the firmware where a board is given."""
        chosen = None if board is None else get_board(board)
        folder, scratch = project_folder(out_dir)
        if chosen is None:
            sources = generate(mod, name)
            if toolchain is not None:
                raise OptionError(
                    f"The toolchain {toolchain} compiles for boards, and no board was given; name "
                    "a board or leave the toolchain out."
                )
            return HostArtifact(sources, write_files(sources.files, folder), scratch)
        tools = find_toolchain(toolchain)
        prices: list[Optimize] = [optimize, *_scarcer(optimize)]
        for price in prices:
            sources = generate(mod, name, dsp=chosen.has_dsp, mve=chosen.has_mve, optimize=price)
            try:
                firmware = link_firmware(sources, chosen, folder, tools)
                break
            except FlashError:
                # Only kernels in assembly weigh flash.
                if price == prices[-1] or not any(file.endswith(".s") for file in sources.files):
                    raise
        return FirmwareArtifact(firmware, write_files(sources.files, folder), scratch)


def _scarcer(optimize: Optimize) -> list[Optimize]:
    """Give what to optimize for where a firmware does not fit: flash that is worth more."""
    steps: tuple[Optimize, ...] = (SCARCE, "size")
    asked = preference(optimize).byte_cost
    return [step for step in steps if preference(step).byte_cost > asked]


@dataclass(frozen=True)
class FirmwareArtifact(Artifact):
    """A firmware that runs on an emulated board."""

    firmware: Firmware
    sources: dict[str, Path]
    _scratch: Any = field(default=None, repr=False)

    @property
    def files(self) -> dict[str, Path]:
        """The C sources and the ELF file."""
        return {**self.sources, self.firmware.elf.name: self.firmware.elf}

    @property
    def has_size(self) -> bool:
        """A firmware is linked."""
        return True

    @property
    def size(self) -> Size:
        """Bytes of flash and RAM of the whole firmware, start-up code and harness included."""
        size = self.firmware.size
        return Size(asdict(size.flash), asdict(size.ram))

    def run(self, inputs: Inputs, *, engine: str | None = None) -> dict[str, NDArray[Any]]:
        """Run on the emulator ``engine`` (``unicorn``, ``qemu``); see :meth:`Artifact.run`."""
        samples = check_samples(self.firmware.model.inputs, inputs)
        return join_samples(self.firmware.run(samples, engine))

    def profile(self, inputs: Inputs, *, engine: str | None = None) -> Profile:
        """Count instructions on the emulator ``engine``; see :meth:`Artifact.profile`."""
        samples = check_samples(self.firmware.model.inputs, inputs)
        return self.firmware.profile(samples, engine)


@dataclass(frozen=True)
class HostArtifact(Artifact):
    """The same C compiled for this machine, with the firmware's own libm: the same bytes."""

    model: ModelSources
    sources: dict[str, Path]
    _scratch: Any = field(default=None, repr=False)
    _what: ClassVar[str] = "C without a board"

    @property
    def files(self) -> dict[str, Path]:
        """The C sources."""
        return dict(self.sources)

    def run(self, inputs: Inputs, *, engine: str | None = None) -> dict[str, NDArray[Any]]:
        """Compile at the first call and run; see :meth:`Artifact.run`."""
        self._no_engine(engine)
        samples = check_samples(self.model.inputs, inputs)
        count = len(next(iter(samples.values())))
        results = [self._run_one({n: v[i] for n, v in samples.items()}) for i in range(count)]
        return join_samples(
            {spec.name: np.stack([r[spec.name] for r in results]) for spec in self.model.outputs}
        )

    @cached_property
    def _function(self) -> Callable[..., int]:
        with tempfile.TemporaryDirectory() as folder:
            texts = {**self.model.files, "libm.c": LIBM}
            for name, text in texts.items():
                (Path(folder) / name).write_text(text)
            # One unit, with the libm hidden: the process's own libm must not take its place.
            unit = Path(folder) / f"{self.model.name}_host.c"
            lines = [f'#include "{name}"' for name in self.model.files if name.endswith(".c")]
            hidden = ["#pragma GCC visibility push(hidden)", '#include "libm.c"']
            unit.write_text("\n".join([*hidden, "#pragma GCC visibility pop", *lines, ""]))
            library = ctypes.CDLL(str(host_library(unit, [Path(folder) / n for n in texts])))
        function: Callable[..., int] = getattr(library, self.model.run_symbol)
        return function

    def _run_one(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = {s.name: np.zeros(s.shape, s.dtype) for s in self.model.outputs}
        arena = np.zeros(self.model.arena_bytes + ARENA_ALIGNMENT, np.uint8)
        start = -arena.ctypes.data % ARENA_ALIGNMENT
        arrays = [np.ascontiguousarray(inputs[s.name]) for s in self.model.inputs]
        arrays += [*outputs.values(), arena[start:]]
        status = self._function(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))
        if status:
            raise CompressError(f"{self.model.run_symbol} returned {status}; expected 0.")
        return outputs
