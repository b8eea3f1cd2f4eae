"""A function in Thumb-2 assembly, written line by line, that knows what it will cost.

Every instruction is counted as often as the loops around it run, so the text of a kernel and its
cost model are one thing: what :class:`Assembler` says of instructions is what an emulator counts,
but for branches that depend on data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Assembler", "AssemblyFunction"]

# Stands for the function's symbol, which the model's name begins.
SYMBOL = "@SYMBOL@"
# Stands for the symbol of the decoder of weights, see :mod:`tvm_compress.targets.mcu.dsp.coded`.
DECODER = "@DECODER@"


@dataclass(frozen=True)
class AssemblyFunction:
    """A function that has no name yet.

    Attributes:
        parameters: C declarations of the parameters, in order.
        text: the lines between the label and the size directive.
        instructions: executed by one call.
        code_bytes: upper bound, all instructions taken as four bytes.
        in_place: the indices of the parameters whose bytes the output may take.
        distances: (index of a parameter, bytes): the output may lie over that input too where it
            begins at least so many bytes before it.
    """

    parameters: tuple[str, ...]
    text: str
    instructions: float = field(compare=False)
    code_bytes: int = field(compare=False)
    in_place: tuple[int, ...] = ()
    distances: tuple[tuple[int, int], ...] = ()

    def sharing(self, parameters: Collection[int]) -> AssemblyFunction:
        """Give the function for calls in which some parameters point to the same bytes: itself."""
        return self

    @property
    def decodes(self) -> bool:
        """Whether it calls the decoder of weights."""
        return DECODER in self.text

    def definition(self, name: str, decoder: str = "") -> str:
        """Give the assembly of the function under a name; ``decoder`` is what it calls."""
        body = self.text.replace(SYMBOL, name).replace(DECODER, decoder)
        lines = [
            f'    .section .text.{name},"ax",%progbits',
            "    .balign 4",
            f"    .global {name}",
            f"    .type {name}, %function",
            "    .thumb_func",
            f"{name}:",
            body,
            f"    .size {name}, . - {name}",
            "",
        ]
        return "\n".join(lines)

    def declaration(self, name: str) -> str:
        """Give the C prototype under a name."""
        return f"void {name}({', '.join(self.parameters)});\n"


class Assembler:
    """Collects the lines of one function."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._times = 1.0
        self._labels = 0
        self.instructions = 0.0
        self.code_bytes = 0

    def op(self, *texts: str) -> None:
        """Append instructions."""
        for text in texts:
            self._lines.append(f"    {text}")
            self.instructions += self._times
            self.code_bytes += 4

    def decode(self, instructions: float) -> None:
        """Append a call of the decoder, which executes so many instructions."""
        self.op(f"bl {DECODER}")
        self.instructions += self._times * instructions

    def label(self) -> str:
        """Make a label of this function."""
        self._labels += 1
        return f".L{SYMBOL}_{self._labels}"

    def place(self, label: str) -> None:
        """Put a label here."""
        self._lines.append(f"{label}:")

    @contextmanager
    def repeat(self, times: float) -> Iterator[str]:
        """Count what is written inside ``times`` times; gives the label at its start."""
        label = self.label()
        self.place(label)
        outer = self._times
        self._times = outer * times
        try:
            yield label
        finally:
            self._times = outer

    @contextmanager
    def counted(self, register: str, times: int, step: int = 1) -> Iterator[None]:
        """Loop ``times`` times, counting a register down that the body leaves alone."""
        if times == 1:
            yield
            return
        self.move(register, times * step)
        with self.repeat(times) as start:
            yield
            self.op(f"subs {register}, {register}, #{step}", f"bne {start}")

    @contextmanager
    def counted_on_stack(self, slot: int, scratch: str, times: int) -> Iterator[None]:
        """Loop ``times`` times with the counter in the frame; ``scratch`` is lost at both ends."""
        if times == 1:
            yield
            return
        self.move(scratch, times)
        self.op(f"str {scratch}, [sp, #{slot}]")
        with self.repeat(times) as start:
            yield
            self.op(
                f"ldr {scratch}, [sp, #{slot}]",
                f"subs {scratch}, {scratch}, #1",
                f"str {scratch}, [sp, #{slot}]",
                f"bne {start}",
            )

    def move(self, register: str, value: int) -> None:
        """Load a constant of 32 bits."""
        value &= 0xFFFFFFFF
        if value < 1 << 16:
            self.op(f"movw {register}, #{value}")
        elif _encodable(value):
            self.op(f"mov {register}, #{value}")
        elif _encodable(~value & 0xFFFFFFFF):
            self.op(f"mvn {register}, #{~value & 0xFFFFFFFF}")
        else:
            self.op(f"movw {register}, #{value & 0xFFFF}", f"movt {register}, #{value >> 16}")

    def add(self, target: str, source: str, value: int, scratch: str | None = None) -> None:
        """Add a constant; ``scratch`` is lost where it does not fit an instruction."""
        if value == 0:
            if target != source:
                self.op(f"mov {target}, {source}")
        elif 0 < value < 4096:
            self.op(f"addw {target}, {source}, #{value}")
        elif 0 < -value < 4096:
            self.op(f"subw {target}, {source}, #{-value}")
        elif _encodable(value & 0xFFFFFFFF):
            self.op(f"add {target}, {source}, #{value & 0xFFFFFFFF}")
        elif _encodable(-value & 0xFFFFFFFF):
            self.op(f"sub {target}, {source}, #{-value & 0xFFFFFFFF}")
        else:
            # Twelve bits at a time, so that no register is needed.
            sign, rest = (1, value) if value > 0 else (-1, -value)
            high = rest & ~0xFFF
            if scratch is None and _encodable(high):
                self.op(f"{'add' if sign > 0 else 'sub'} {target}, {source}, #{high}")
                self.add(target, target, sign * (rest & 0xFFF))
            elif scratch is None:
                raise AssertionError(f"adding {value} needs a scratch register")
            else:
                self.move(scratch, value)
                self.op(f"add {target}, {source}, {scratch}")

    def function(self, parameters: Sequence[str]) -> AssemblyFunction:
        """Finish."""
        text = "\n".join(self._lines)
        return AssemblyFunction(tuple(parameters), text, self.instructions, self.code_bytes)


def _encodable(value: int) -> bool:
    """Whether a constant is one of Thumb-2's modified immediates.

    >>> [_encodable(v) for v in (255, 0x3FC00, 0x00AB00AB, 0xABABABAB, 257)]
    [True, True, True, True, False]
    """
    low = value & 0xFF
    if value in (low, low * 0x00010001, low * 0x01010101, (value >> 8 & 0xFF) * 0x01000100):
        return True
    return any(
        value & ~(0xFF << shift) == 0 and value >> shift & 0x80 != 0 for shift in range(1, 25)
    )
