"""The sums of one window over compressed weights, with MVE: nothing is expanded.

The unit is a *vector*: 16 weights of one output channel. Where a layout skips weights that are 0,
the inputs that meet the others are gathered by their places, so that a vector costs one gathering
load and one VMLADAVA for 16 products, whatever lies between them. Layouts:

- ``gaps``: 16 places and 16 weights, a byte each. Places count from a base that moves on from one
  vector to the next by a fixed step, so that windows of any size are reached with bytes.
- ``gap_codes``: the same with half a byte a weight, where a layer has at most 16 different ones.
- ``half_gaps``, ``half_gap_codes``: the same with two output channels in a vector, eight weights of
  each, for channels that keep few: VPT blocks add each half to its own sum.
- ``blocks``: blocks of 4 inputs; 4 places a vector, in units of 4 bytes, and 16 weights.
- ``block_codes``: the same with half a byte a weight.
- ``bank``: of every 16 inputs at most k; an entry is a byte, its place in its bank in the upper and
  its code in the lower half. Which banks a vector's entries belong to never changes: VSRI puts the
  places under the numbers of the banks in one instruction.
- ``dense_codes``: every weight, half a byte each; inputs are read in their order.

Two codes that share a byte are looked up by one gather of halfwords in a table of all pairs, the
entries of ``bank`` in a table of 256 bytes. Both tables are made in scratch, once a call, of the 16
weights that begin the stream.

Six output channels form a group: their biases, then vector after vector of all of them. All groups
have equally many vectors (written one behind the other, or as a loop), or each its own number, that
stands in the stream: then channels are sorted by what they need, so that the vectors of a group are
about equally full.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.mve.assembler import VectorAssembler, vectors

__all__ = [
    "LAYOUTS",
    "ROUNDS",
    "SUMS",
    "TABLE",
    "Compressed",
    "Rounds",
    "compressed_forms",
    "spread",
]

Array = NDArray[Any]

Rounds = Literal["unrolled", "looped", "own"]
ROUNDS: tuple[Rounds, ...] = ("unrolled", "looped", "own")

LANES = 16
# Different weights that half a byte tells apart.
_CODES = 16
# What a place of a byte reaches.
_REACH = 256
# Output channels of a group: six of the seven even core registers, r12 counts groups.
SUMS = ("r0", "r2", "r4", "r6", "r8", "r10")
_WINDOW, TABLE, _STEP = "r3", "r5", "r7"
# The most vectors of a channel; places of padding then stay within the window.
_MOST = 256
# The most vectors of a group that are written one behind the other.
_MOST_UNROLLED = 96


def spread(
    places: Sequence[int], size: int, count: int, room: int = LANES
) -> list[list[int]] | None:
    """Distribute ascending places over ``count`` vectors of ``room``; None where they do not fit.

    Vector i takes places from ``i * step`` on that a byte reaches, with the step that lets the last
    one reach the window's end. Each place goes to the first vector that has room: what a later one
    could take instead stays free for it, as both ends of the ranges ascend.

    >>> spread([0, 3, 299], 300, 2)
    [[0, 3], [299]]
    >>> spread(range(300), 300, 2) is None
    True
    """
    step = step_of(size, count)
    if step > _REACH or (count == 1 and size > _REACH):
        return None
    found: list[list[int]] = [[] for _ in range(count)]
    i = 0
    for place in places:
        while i < count and (len(found[i]) == room or place >= i * step + _REACH):
            i += 1
        if i == count or place < i * step:
            return None
        found[i].append(place)
    return found


def step_of(size: int, count: int) -> int:
    """Give how far the base moves from one of ``count`` vectors to the next."""
    return -(-max(size - _REACH, 0) // (count - 1)) if count > 1 else 0


class _Layout(ABC):
    """How the weights of a channel become vectors; see the module's docstring.

    Args:
        weights: int8 (outputs, size) in the order of the window's bytes.
    """

    name: ClassVar[str]
    # Channels whose vectors one instruction loads.
    chunk: ClassVar[int] = len(SUMS)
    # Bytes of the table in scratch.
    table_bytes: ClassVar[int] = 0
    # Bytes that a vector of one channel takes in the stream.
    vector_bytes: ClassVar[int]
    # Whether the window's first byte lies at a multiple of 4.
    aligned: ClassVar[bool] = False

    def __init__(self, weights: Array) -> None:
        self.weights = weights

    @property
    def size(self) -> int:
        """Bytes of a window."""
        return int(self.weights.shape[1])

    @property
    def read(self) -> int:
        """Bytes from the window's first one on that may be read."""
        return self.size

    @property
    @abstractmethod
    def least(self) -> list[int]:
        """The least number of vectors of each channel."""

    def count(self, channels: Sequence[int]) -> int | None:
        """Give the least number of vectors that all of these channels can have, or None."""
        return self.least[0]

    @abstractmethod
    def step(self, count: int) -> int:
        """Give the bytes from the base of one of ``count`` vectors to that of the next."""

    @abstractmethod
    def chunks(self, channels: Sequence[int], count: int) -> list[Array]:
        """Give the bytes of the stream of each vector, uint8, for at most ``chunk`` channels.

        First what VLDM loads: all channels' first registers, then the second ones.
        """

    def head(self) -> Array:
        """Give the bytes that begin the stream of a call."""
        return self.values.view(np.uint8) if self.table_bytes else np.zeros(0, np.uint8)

    def front(self) -> Array:
        """Give the bytes that begin the stream of a window."""
        return np.zeros(0, np.uint8)

    def size_bytes(self, channels: int) -> int:
        """Give the bytes of the stream that one vector of each of so many channels takes."""
        return channels * self.vector_bytes

    def begin(self, out: VectorAssembler) -> None:
        """Read :meth:`front`, where there is something to read."""
        return

    @abstractmethod
    def emit(self, out: VectorAssembler, sums: Sequence[str]) -> None:
        """Multiply one vector of each of at most ``chunk`` channels."""

    @cached_property
    def values(self) -> Array:
        """The 16 weights by their codes, int8; 0 is one of them."""
        found = np.union1d(self.weights, 0)
        return np.concatenate([found, np.zeros(_CODES - len(found), found.dtype)]).astype(np.int8)

    def code(self, weights: Array) -> Array:
        """Give the codes of weights, uint8 of their shape."""
        return np.asarray(self._code_of[weights.view(np.uint8)])

    @cached_property
    def _code_of(self) -> Array:
        """The code of each byte."""
        found = np.zeros(256, np.uint8)
        for code, value in reversed(list(enumerate(self.values))):  # the first of equal ones
            found[int(value) & 0xFF] = code
        return found

    def halves(self, weights: Array) -> Array:
        """Give the codes of an even number of weights, two a byte, the first in the lower half."""
        codes = self.code(weights)
        return np.asarray(codes[::2] | codes[1::2] << 4)

    def make_table(self, out: VectorAssembler) -> None:
        """Make the table at ``TABLE`` of the 16 weights at r1; r0, r2, r4 and q0 to q3 are lost."""
        out.op(f"mov r0, {TABLE}", "mov r4, r1")
        out.op("vldrb.u16 q0, [r4], #8", "vldrb.u16 q1, [r4]", "mov r4, r1")
        with out.low_overhead(_CODES):
            out.op("ldrb r2, [r4], #1", "lsl r2, r2, #8")
            out.op("vadd.i16 q2, q0, r2", "vadd.i16 q3, q1, r2", "vstmia r0!, {d4-d7}")


class _Whole(_Layout):
    """Vectors of one output channel each."""

    def chunks(self, channels: Sequence[int], count: int) -> list[Array]:
        packed = [self.pack(channel, count) for channel in channels]
        found = []
        for loaded, rest in (zip(*vector, strict=True) for vector in zip(*packed, strict=True)):
            found.append(np.concatenate([np.stack(loaded).swapaxes(0, 1).reshape(-1), *rest]))
        return found

    @abstractmethod
    def pack(self, channel: int, count: int) -> list[tuple[Array, Array]]:
        """Give each vector of a channel, uint8: the registers that VLDM loads, and the rest."""


class _Coded(_Layout):
    """Layouts whose weights are codes, looked up in the table of pairs."""

    table_bytes = 2 * _CODES * _CODES

    def look_up(self, out: VectorAssembler, codes: str, to: str) -> None:
        """Read eight bytes of the stream and give the 16 weights that they stand for."""
        out.op(f"vldrb.u16 {codes}, [r1], #8")
        out.op(f"vldrh.u16 {to}, [{TABLE}, {codes}, uxtw #1]")


class _Places(_Layout):
    """Layouts that skip: the places of what is not skipped stand in the stream."""

    unit: ClassVar[int] = 1  # bytes that a place counts
    entries: ClassVar[int] = LANES  # places of a vector

    @cached_property
    def kept(self) -> list[list[int]]:
        """The places that each channel keeps, in units."""
        padded = np.pad(self.weights, ((0, 0), (0, -self.size % self.unit)))
        units = np.asarray(padded.reshape(len(padded), -1, self.unit).any(axis=2))
        return [np.flatnonzero(row).tolist() for row in units]

    @property
    def _units(self) -> int:
        return -(-self.size // self.unit)

    @cached_property
    def least(self) -> list[int]:
        """The least number of vectors of each channel; one that cannot be packed has too many."""
        found = []
        for kept in self.kept:
            counts = range(max(1, -(-len(kept) // self.entries)), _MOST + 1)
            found.append(next((n for n in counts if self._fits(kept, n)), _MOST + 1))
        return found

    def _spread(self, kept: Sequence[int], count: int) -> list[list[int]] | None:
        return spread(kept, self._units, count, self.entries)

    def _fits(self, kept: Sequence[int], count: int) -> bool:
        return self._spread(kept, count) is not None

    def count(self, channels: Sequence[int]) -> int | None:
        first = max(self.least[c] for c in channels)
        for count in range(first, min(2 * first, _MOST) + 1):
            if all(self._fits(self.kept[c], count) for c in channels):
                return count
        return None

    def step(self, count: int) -> int:
        return self.unit * step_of(self._units, count)

    def _vectors(self, channel: int, count: int) -> Iterator[tuple[Array, Array]]:
        """Give the places of each vector, uint8, and its weights, int8."""
        padded = np.pad(self.weights[channel], (0, -self.size % self.unit))
        units = padded.reshape(-1, self.unit)
        step = step_of(self._units, count)
        found = self._spread(self.kept[channel], count)
        assert found is not None
        for i, kept in enumerate(found):
            places = np.zeros(self.entries, np.uint8)
            weights = np.zeros((self.entries, self.unit), np.int8)
            places[: len(kept)] = np.asarray(kept, np.int64) - i * step
            weights[: len(kept)] = units[kept]
            yield places, weights.reshape(-1)


class _Gaps(_Whole, _Places):
    name = "gaps"
    vector_bytes = 32
    chunk = 3

    def pack(self, channel: int, count: int) -> list[tuple[Array, Array]]:
        return [
            (np.stack([p, w.view(np.uint8)]), _NOTHING) for p, w in self._vectors(channel, count)
        ]

    def emit(self, out: VectorAssembler, sums: Sequence[str]) -> None:
        n = len(sums)
        out.op(f"vldmia r1!, {vectors(0, 2 * n)}")
        for i, total in enumerate(sums):
            out.op(f"vldrb.u8 q{6 + i % 2}, [{_WINDOW}, q{i}]")
            out.op(f"vmladava.s8 {total}, q{n + i}, q{6 + i % 2}")


class _GapCodes(_Coded, _Whole, _Places):
    name = "gap_codes"
    vector_bytes = 24

    def pack(self, channel: int, count: int) -> list[tuple[Array, Array]]:
        return [(p[None], self.halves(w)) for p, w in self._vectors(channel, count)]

    def emit(self, out: VectorAssembler, sums: Sequence[str]) -> None:
        out.op(f"vldmia r1!, {vectors(0, len(sums))}")
        for i, total in enumerate(sums):
            self.look_up(out, "q6", "q7")
            out.op(f"vldrb.u8 q6, [{_WINDOW}, q{i}]", f"vmladava.s8 {total}, q7, q6")


class _HalfGaps(_Places):
    name = "half_gaps"
    vector_bytes = 16
    entries = LANES // 2
    # Whether weights are codes.
    coded: ClassVar[bool] = False

    def chunks(self, channels: Sequence[int], count: int) -> list[Array]:
        packed = [list(self._vectors(channel, count)) for channel in channels]
        if len(packed) % 2:
            empty = np.zeros(self.entries, np.uint8), np.zeros(self.entries, np.int8)
            packed.append([empty] * count)
        found = []
        for vector in zip(*packed, strict=True):
            places, weights = (np.concatenate(part) for part in zip(*vector, strict=True))
            weights = self.halves(weights) if self.coded else weights.view(np.uint8)
            found.append(np.concatenate([places, weights]))
        return found

    def size_bytes(self, channels: int) -> int:
        return (channels + channels % 2) * self.vector_bytes

    def begin(self, out: VectorAssembler) -> None:
        out.move("r0", LANES // 2)
        out.op("vctp.8 r0")

    def emit(self, out: VectorAssembler, sums: Sequence[str]) -> None:
        pairs = [sums[i : i + 2] for i in range(0, len(sums), 2)]
        n = len(pairs)
        out.op(f"vldmia r1!, {vectors(0, n if self.coded else 2 * n)}")
        swapped = False
        for i, pair in enumerate(pairs):
            weights = self._weights(out, n + i)
            out.op(f"vldrb.u8 q6, [{_WINDOW}, q{i}]")
            if len(pair) == 1:  # the other half's weights are 0
                out.op(f"vmladava.s8 {pair[0]}, {weights}, q6")
                continue
            then, other = pair[::-1] if swapped else pair
            out.op("vpste", f"vmladavat.s8 {then}, {weights}, q6")
            out.op(f"vmladavae.s8 {other}, {weights}, q6")
            swapped = not swapped  # "else" inverts the predicate, and leaves it so
        if swapped:
            out.op("vpnot")

    def _weights(self, out: VectorAssembler, register: int) -> str:
        """Give the register of a pair's weights, of which VLDM has loaded ``register``."""
        return f"q{register}"


class _HalfGapCodes(_Coded, _HalfGaps):
    name = "half_gap_codes"
    vector_bytes = 12
    coded = True

    def _weights(self, out: VectorAssembler, register: int) -> str:
        self.look_up(out, "q6", "q7")
        return "q7"


class _Blocks(_Whole, _Places):
    name = "blocks"
    vector_bytes = 20
    unit, entries = 4, 4
    aligned = True

    def pack(self, channel: int, count: int) -> list[tuple[Array, Array]]:
        return [(w.view(np.uint8)[None], p) for p, w in self._vectors(channel, count)]

    def emit(self, out: VectorAssembler, sums: Sequence[str]) -> None:
        out.op(f"vldmia r1!, {vectors(0, len(sums))}")
        for i, total in enumerate(sums):
            _gather_blocks(out)
            out.op(f"vmladava.s8 {total}, q{i}, q7")


class _BlockCodes(_Coded, _Whole, _Places):
    name = "block_codes"
    vector_bytes = 12
    unit, entries = 4, 4
    aligned = True

    def pack(self, channel: int, count: int) -> list[tuple[Array, Array]]:
        return [
            (_NO_VECTOR, np.concatenate([p, self.halves(w)]))
            for p, w in self._vectors(channel, count)
        ]

    def emit(self, out: VectorAssembler, sums: Sequence[str]) -> None:
        for total in sums:
            _gather_blocks(out)
            self.look_up(out, "q0", "q1")
            out.op(f"vmladava.s8 {total}, q1, q7")


def _gather_blocks(out: VectorAssembler) -> None:
    """Read four places and gather their blocks into q7; q6 is lost."""
    out.op("vldrb.u32 q6, [r1], #4", f"vldrw.u32 q7, [{_WINDOW}, q6, uxtw #2]")


class _Bank(_Whole):
    name = "bank"
    vector_bytes = 16
    table_bytes = _REACH

    @cached_property
    def _banks(self) -> Array:
        padded = np.pad(self.weights, ((0, 0), (0, -self.size % LANES)))
        return padded.reshape(len(padded), -1, LANES)

    @cached_property
    def keep(self) -> int:
        """The most weights of a bank that are not 0."""
        return max(int((self._banks != 0).sum(axis=2).max()), 1)

    @property
    def _banks_of_vector(self) -> int:
        return LANES // self.keep

    @property
    def read(self) -> int:
        return self.step(0) * self.least[0]

    @cached_property
    def least(self) -> list[int]:
        return [-(-self._banks.shape[1] // self._banks_of_vector)] * len(self.weights)

    def step(self, count: int) -> int:
        return LANES * self._banks_of_vector

    def front(self) -> Array:
        lanes = np.arange(LANES) // self.keep
        return (np.minimum(lanes, self._banks_of_vector - 1) << 4).astype(np.uint8)

    def begin(self, out: VectorAssembler) -> None:
        out.op("vldrb.u8 q7, [r1], #16")

    def pack(self, channel: int, count: int) -> list[tuple[Array, Array]]:
        each = self._banks_of_vector
        found = []
        for i in range(count):
            entries = np.full(LANES, self.code(np.zeros(1, np.int8)))
            for bank, weights in enumerate(self._banks[channel, i * each : (i + 1) * each]):
                (kept,) = np.nonzero(weights)
                place = bank * self.keep
                entries[place : place + len(kept)] = self.code(weights[kept]) | kept << 4
            found.append((entries[None].astype(np.uint8), _NOTHING))
        return found

    def emit(self, out: VectorAssembler, sums: Sequence[str]) -> None:
        out.op(f"vldmia r1!, {vectors(0, len(sums))}")
        for i, total in enumerate(sums):
            out.op(f"vsri.8 q7, q{i}, #4", f"vldrb.u8 q6, [{TABLE}, q{i}]")
            out.op(f"vldrb.u8 q{i}, [{_WINDOW}, q7]", f"vmladava.s8 {total}, q6, q{i}")

    def make_table(self, out: VectorAssembler) -> None:
        out.op(f"mov r0, {TABLE}", "vldrb.u8 q0, [r1]")
        with out.low_overhead(_CODES):
            out.op("vstrb.8 q0, [r0], #16")


class _DenseCodes(_Coded, _Whole):
    name = "dense_codes"
    vector_bytes = 8

    @property
    def read(self) -> int:
        return -(-self.size // LANES) * LANES

    @cached_property
    def least(self) -> list[int]:
        return [self.read // LANES] * len(self.weights)

    def step(self, count: int) -> int:
        return LANES

    def pack(self, channel: int, count: int) -> list[tuple[Array, Array]]:
        row = np.pad(self.weights[channel], (0, self.read - self.size))
        return [(_NO_VECTOR, self.halves(part)) for part in row.reshape(count, LANES)]

    def emit(self, out: VectorAssembler, sums: Sequence[str]) -> None:
        out.op(f"vldrb.u8 q7, [{_WINDOW}]")
        for total in sums:
            self.look_up(out, "q0", "q1")
            out.op(f"vmladava.s8 {total}, q1, q7")


_NOTHING = np.zeros(0, np.uint8)
_NO_VECTOR = np.zeros((0, LANES), np.uint8)

LAYOUTS: dict[str, type[_Layout]] = {
    layout.name: layout
    for layout in (
        *(_Gaps, _GapCodes, _HalfGaps, _HalfGapCodes),
        *(_Blocks, _BlockCodes, _Bank, _DenseCodes),
    )
}


def compressed_forms(weights: Array) -> list[Compressed]:
    """Give the forms that the weights of a layer can have.

    Args:
        weights: integers (outputs, size) in the order of the window's bytes.
    """
    if weights.min(initial=0) < -128 or weights.max(initial=0) > 127:
        return []
    few = len(np.union1d(weights, 0)) <= _CODES
    # A place costs as much flash as a weight, and gathering twice the instructions of loading.
    sparse = 2 * np.count_nonzero(weights) <= weights.size
    forms: list[Compressed] = []
    for name, kind in LAYOUTS.items():
        skips = name != "dense_codes"
        if (kind.table_bytes and not few) or (skips and not sparse):
            continue
        layout = kind(weights.astype(np.int8))
        if isinstance(layout, _Bank) and layout.keep > LANES // 2:
            continue
        forms += [Compressed(layout, rounds) for rounds in ROUNDS]
    return [form for form in forms if form.possible]


class Compressed:
    """The sums of all output channels of one window, as instructions and as a stream.

    Args:
        layout: the weights, one of ``LAYOUTS``.
        rounds: how the vectors of a group are counted: ``unrolled`` or ``looped``, where all groups
            have equally many, or ``own``.
    """

    def __init__(self, layout: _Layout, rounds: Rounds) -> None:
        self.layout, self.rounds = layout, rounds
        self._outputs = len(layout.weights)

    @property
    def name(self) -> str:
        """The layout's name."""
        return self.layout.name

    @cached_property
    def possible(self) -> bool:
        """Whether the weights can be laid out so, and no other form is the same."""
        counts = {count for _, count in self.groups(list(range(self._outputs)))}
        if None in counts or max(self.layout.least) > _MOST:
            return False
        if self.rounds == "own":
            return len(set(self.layout.least)) > 1
        (count,) = counts
        assert count is not None
        return count <= _MOST_UNROLLED // len(SUMS) if self.rounds == "unrolled" else count > 1

    @property
    def sorts(self) -> bool:
        """Whether channels are sorted, so that outputs are scattered: by bytes, among 256."""
        return self.rounds == "own" and self._outputs <= _REACH

    def order(self, order: Sequence[int]) -> list[int]:
        """Give the channel of each sum in the buffer, which without sorting is in ``order``."""
        if not self.sorts:
            return list(order)
        return sorted(range(self._outputs), key=lambda c: self.layout.least[c])

    def groups(self, channels: Sequence[int]) -> list[tuple[list[int], int | None]]:
        """Give the channels of each group, from the buffer's end, and its vectors."""
        ends = range(len(channels), 0, -len(SUMS))
        parts = [list(channels[max(end - len(SUMS), 0) : end]) for end in ends]
        if self.rounds == "own":
            return [(part, self.layout.count(part)) for part in parts]
        count = self._count
        return [(part, count) for part in parts]

    @cached_property
    def _count(self) -> int | None:
        return self.layout.count(range(self._outputs))

    @property
    def registers(self) -> list[str]:
        """The odd core registers that are taken."""
        return [*([TABLE] if self.layout.table_bytes else []), *([_STEP] if self.own_step else [])]

    @property
    def own_step(self) -> bool:
        """Whether each group moves the window's address on by its own step."""
        return self.rounds == "own" and self.layout.step(2) > 0

    # -- the stream -------------------------------------------------------------------------------

    def stream(self, channels: Sequence[int], bias: Array) -> Array:
        """Give the words of a window, uint32; the sum of ``channels[i]`` has the i-th place."""
        parts = [self.layout.front()]
        for group, count in self.groups(channels):
            assert count is not None
            parts.append(_bytes(bias[group].astype("<i4")))
            if self.own_step:
                parts.append(_bytes(np.array([count, self.layout.step(count)], "<u2")))
            elif self.rounds == "own":
                parts.append(_bytes(np.array([count], "<u4")))
            starts = range(0, len(group), self.layout.chunk)
            chunks = [self.layout.chunks(group[i : i + self.layout.chunk], count) for i in starts]
            parts += [part for vector in zip(*chunks, strict=True) for part in vector]
        return np.concatenate(parts).view("<u4").astype(np.uint32)

    def stream_bytes(self, channels: Sequence[int]) -> int:
        """Give the bytes of :meth:`stream`."""
        total = len(self.layout.front()) + 4 * len(channels)
        for group, count in self.groups(channels):
            total += (count or 0) * self.layout.size_bytes(len(group)) + 4 * (self.rounds == "own")
        return total

    # -- code -------------------------------------------------------------------------------------

    def emit(self, out: VectorAssembler, channels: Sequence[int], window: int) -> None:
        """Write the sums to the buffer that ends at r11, of the window at r3, which stays.

        ``window`` is the place in the frame where that address stands too, if :attr:`own_step`.
        """
        self.layout.begin(out)
        groups = self.groups(channels)
        whole = [count or 0 for group, count in groups if len(group) == len(SUMS)]
        if whole:
            mean = sum(whole) / len(whole)
            if self.rounds == "unrolled":
                with out.low_overhead(len(whole)):
                    self._group(out, len(SUMS), mean, window)
            else:
                with out.counted("r12", len(whole)):
                    self._group(out, len(SUMS), mean, window)
        rest, count = groups[-1]
        if len(rest) < len(SUMS):
            self._group(out, len(rest), count or 0, window)

    def _group(self, out: VectorAssembler, channels: int, count: float, window: int) -> None:
        sums = SUMS[:channels]
        out.load_words("r1", sums)
        if self.rounds == "own":
            if self.own_step:
                out.op("ldrh lr, [r1], #2", f"ldrh {_STEP}, [r1], #2")
            else:
                out.op("ldr lr, [r1], #4")
            out.op("dls lr, lr")
            with out.repeat(count) as start:
                self._vector(out, sums)
                if self.own_step:
                    out.op(f"add {_WINDOW}, {_WINDOW}, {_STEP}")
                out.op(f"le lr, {start}")
            if self.own_step:
                out.op(f"ldr {_WINDOW}, [sp, #{window}]")
        else:
            self._equal(out, sums, int(count))
        out.push_words("r11", sums)

    def _equal(self, out: VectorAssembler, sums: Sequence[str], count: int) -> None:
        step = self.layout.step(count)
        moved = 0
        if self.rounds == "looped":
            with out.low_overhead(count):
                self._vector(out, sums)
                out.add(_WINDOW, _WINDOW, step)
            moved = count * step
        else:
            for i in range(count):
                self._vector(out, sums)
                if i + 1 < count:
                    out.add(_WINDOW, _WINDOW, step)
            moved = (count - 1) * step
        out.add(_WINDOW, _WINDOW, -moved)

    def _vector(self, out: VectorAssembler, sums: Sequence[str]) -> None:
        """One vector of each channel of a group."""
        for first in range(0, len(sums), self.layout.chunk):
            self.layout.emit(out, sums[first : first + self.layout.chunk])


def _bytes(array: Array) -> Array:
    return array.view(np.uint8)
