"""What a build gives, and what a target is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from numpy.typing import NDArray

from tvm_compress.errors import OptionError

if TYPE_CHECKING:
    import tvm

    from tvm_compress.targets.mcu.boards import Board

__all__ = ["Artifact", "Goal", "Optimize", "Profile", "Size", "Target"]

# What is to be small, where less of one thing takes more of another; or the price itself, in
# instructions of an inference that a byte of flash is worth.
Goal = Literal["speed", "balanced", "size"]
Optimize = Goal | float

Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]


class LayerProfile(Protocol):
    """One layer's cost."""

    @property
    def name(self) -> str:
        """The variable in the IR that the layer computes."""

    @property
    def kind(self) -> str:
        """Operator and layout of its weights."""

    @property
    def instructions(self) -> int:
        """Instructions of one inference."""

    @property
    def model_cycles(self) -> int | None:
        """Cycles of one inference by a table of the processor's; None where there is none."""

    @property
    def mix(self) -> Mapping[str, int]:
        """Instructions of one inference by class of instruction."""


class Profile(Protocol):
    """What one inference costs."""

    @property
    def instructions(self) -> int:
        """Instructions of one inference; the sum of its layers."""

    @property
    def model_cycles(self) -> int | None:
        """Model cycles of one inference; the sum of its layers. They are not time."""

    @property
    def layers(self) -> tuple[LayerProfile, ...]:
        """The layers in the order in which they run."""


@dataclass(frozen=True)
class Size:
    """Bytes that an artifact takes on its machine, in all and by parts that sum to the totals.

    ``flash`` has code, weights and constants; ``ram`` has arena, inputs, outputs, static and
    stack (the deepest stack, measured by painting; what the board keeps for it where it has no
    emulator).
    """

    flash: Mapping[str, int]
    ram: Mapping[str, int]

    @property
    def flash_bytes(self) -> int:
        """All bytes of flash."""
        return sum(self.flash.values())

    @property
    def ram_bytes(self) -> int:
        """All bytes of RAM."""
        return sum(self.ram.values())


class Artifact(ABC):
    """A network built for a target."""

    @property
    @abstractmethod
    def files(self) -> dict[str, Path]:
        """The files that were written, by name."""

    @property
    def has_size(self) -> bool:
        """Whether it is linked for a machine, so that :attr:`size` has an answer."""
        return False

    @property
    def size(self) -> Size:
        """Bytes of flash and RAM.

        Raises:
            OptionError: the artifact is not built for a board.
        """
        raise OptionError(f"{self._what} has no size on a machine; build it for a board.")

    @abstractmethod
    def run(self, inputs: Inputs, *, engine: str | None = None) -> dict[str, NDArray[Any]]:
        """Run the network.

        Args:
            inputs: one array, or arrays by input name: one sample of the input's shape, or N of
                them along the first axis where the network's batch is 1.
            engine: which emulator of the board runs it (``unicorn``, ``qemu``); without it the
                first that is installed.

        Returns:
            The outputs by name.

        Raises:
            DataError: a name, shape or dtype is wrong.
            OptionError: the board does not run on that engine, or there is no board.
        """

    def profile(self, inputs: Inputs, *, engine: str | None = None) -> Profile:
        """Count instructions and model cycles of one inference, in total and layer by layer.

        Raises:
            OptionError: the artifact is not built for a board.
            DataError: a name, shape or dtype is wrong, or there is more than one sample.
            MissingToolError: no emulator is installed, or not the disassembler.
        """
        raise OptionError(f"{self._what} cannot be profiled; build it for a board.")

    def _no_engine(self, engine: str | None) -> None:
        if engine is not None:
            raise OptionError(
                f"{self._what} runs on no engine, and {engine} was given; build it for a board."
            )

    _what: ClassVar[str] = "The artifact"


class Target(ABC):
    """A kind of machine: the one way from a canonical module to something that runs."""

    name: ClassVar[str]

    @abstractmethod
    def build(
        self,
        mod: tvm.IRModule,
        *,
        name: str,
        board: str | Path | Board | None,
        out_dir: Path | None,
        toolchain: str | None,
        optimize: Optimize,
    ) -> Artifact:
        """Build ``mod``; see :func:`tvm_compress.build`."""
