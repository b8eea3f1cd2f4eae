"""The inner product of up to eight pixels with sparse weights, one output channel after the other.

Weights that are zero are neither stored nor multiplied. An *entry* is a weight and how many columns
of zeros lie in front of it, in the order in which the buffer holds a pixel. Two layouts:

- ``gap_codes``: a byte an entry: the gap in the high four bits, in the low four the weight's
  code, its place in a table of at most 16 words that a call copies into its frame.
- ``gaps``: two bytes an entry, the gap's distance in the buffer and the int8 weight.

A gap that does not fit is bridged by entries whose weight is 0. Entries are read four (two) a
word; what a row has no whole word of stands in its first one, and a row enters the unrolled loop at
the place that leaves out what it does not have: its number of entries costs no comparison.

Two pixels are multiplied at a time. With b the second one and a the first, a word of the buffer is
``b * 2**24 + (a + 128)``, which is exact in a signed word as ``a + 128`` is a byte. SMLAL adds word
times weight to 64 bits: the sum of the second pixel times ``2**24``, plus that of the first. From
each row's start the ``128 * sum(w)`` that is too much is taken off, so the two sums are apart where
the first one takes less than 24 bits. ``gap_codes`` has weights times ``2**8`` in its table: the
second sum is the high word (and one less where the first is negative), the low word is ``2**8``
times the first. A layer of one pixel reads the input as it is, and multiplies by MLA.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import Assembler
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.product import load_shared, save_shared

__all__ = ["SPARSE_LAYOUTS", "SparseProduct"]

Array = NDArray[Any]

SPARSE_LAYOUTS = ("gap_codes", "gaps")
_CODES = 16
_MOST_GAP = 15  # of four bits
# Of a tile; one pixel alone is multiplied in another way.
_PIXELS = (2, 4, 8)
# The largest immediate offset of a load or store.
_REACH = 4095
# With more weights a dense layout wins: an entry takes more than one instruction a pixel, a dense
# multiply-accumulate 0.7 to 0.9.
_MOST_DENSITY = 0.65
# What a row leaves out of the loop is told in a byte, in instructions.
_MOST_UNROLL = 24
# The bytes of a row's entries are told in half a word.
_MOST_COLUMNS = 30_000


class SparseProduct:
    """All output channels of one tile of pixels; see the module's docstring.

    Args:
        layer: weights, biases and requantization.
        order: for each place of a pixel in the buffer the column of the weights, -1 for none.
        pixels: of the tile; it has room for 1 (read from the input), 2, 4 or 8.
        layout: one of :data:`SPARSE_LAYOUTS`.
        unroll: entries that a round of the inner loop multiplies; whole words of them are taken.
    """

    # Of a pixel in the rows of the ring.
    value_bytes = 1
    # A word in front of the rows has their bytes, so that layers of one shape share their code.
    tells_end = True
    coded = False
    decoded_bytes = 0

    def __init__(
        self, layer: IntegerLayer, order: list[int], pixels: int, layout: str, unroll: int
    ) -> None:
        assert layout in SPARSE_LAYOUTS
        self.layer, self.layout = layer, layout
        self.pixels = pixels  # of the tile that there are
        g = layer.geometry
        # Only what has no window lies in the input as the entries go over it.
        self.tile = 1 if pixels == 1 and g.kernel == (1, 1) else _room(pixels)
        self.end = "tile_end"
        self.columns = len(order)
        self._outputs = g.outputs
        self._codes = layout == "gap_codes"
        # Entries of a word, and the distance in the buffer that one column is.
        self._per = 4 if self._codes else 2
        self._column = 1 if self.tile == 1 else 2 * self.tile
        self._main = self.tile
        width = (g.flattened() if g.pointwise else g).out_size[1]
        rest = width % pixels
        self._tiles = (self.tile, _room(rest) if rest else self.tile)
        self._order = np.asarray(order)
        self.unroll = unroll

    @staticmethod
    def swaps(layer: IntegerLayer) -> bool:
        """Whether four inputs of the buffer lie as 0, 2, 1, 3: never."""
        return False

    @staticmethod
    def forms(layer: IntegerLayer) -> list[tuple[str, int]]:
        """Give the layouts and pixels that a layer's weights can have, none without many zeros."""
        g = layer.geometry
        direct = g.kernel == (1, 1)
        g = g.flattened() if g.pointwise else g
        if np.count_nonzero(layer.weights) > _MOST_DENSITY * layer.weights.size:
            return []
        width = g.out_size[1]
        pixels = min(_PIXELS[-1], width, 1 + _REACH // g.outputs)
        alone = direct and pixels == 1
        if g.columns > _MOST_COLUMNS or g.strides[1] * g.inputs + 3 > _REACH:
            return []
        if not alone and layer.bound.max(initial=0) >= 1 << 23:
            return []
        layouts = []
        if len(np.union1d(layer.weights, 0)) <= _CODES:
            layouts.append("gap_codes")
        if layer.weights.min() >= -128 and layer.weights.max() <= 127:
            layouts.append("gaps")
        # Tiles without a rest take less code.
        divisor = max(n for n in range(1, pixels + 1) if width % n == 0)
        sizes = [pixels, *([divisor] if 2 < divisor < pixels else [])]
        return [(layout, size) for layout in layouts for size in sizes]

    def rest(self, pixels: int) -> SparseProduct:
        """Give the product of the pixels that are left of a row; it reads the same stream."""
        rest = copy(self)
        rest.pixels, rest.tile, rest.end = pixels, _room(pixels), "rest_end"
        return rest

    @property
    def buffered(self) -> bool:
        """Whether it reads a buffer of pixels, and not the input itself."""
        return self.tile > 1

    @property
    def pixels_bytes(self) -> int:
        """Bytes of the buffer for a tile's pixels."""
        return self.columns * 2 * self.tile if self.buffered else 0

    # -- pixels -----------------------------------------------------------------------------------

    def widen(self, out: Assembler, step: int) -> None:
        """Fill the buffer at r12 from the input at r0, whose pixels are ``step`` bytes apart."""
        self._point(out, step)
        quads, rest = divmod(self.layer.geometry.inputs, 4)
        self._quads(out, step, quads)
        size = 2 * self.tile
        for i in range(rest):
            for q in range(-(-self.pixels // 2)):
                second = 2 * q + 1 < self.pixels
                out.op(f"ldrb r4, [r{q}, #{i}]")
                if second:
                    out.op(f"ldrsb r5, [r{q}, #{step + i}]")
                out.op("eor r4, r4, #128")
                if second:
                    out.op("orr r4, r4, r5, lsl #24")
                out.op(f"str r4, [r12, #{i * size + 4 * q}]")

    def gather(self, out: Assembler, step: int, quads: int, aligned: bool) -> None:
        """Append to the buffer at r12 four times ``quads`` values of each window, from r0 on."""
        self._point(out, step)
        self._quads(out, step, quads)

    def _point(self, out: Assembler, step: int) -> None:
        """Let a register point to the first pixel of each pair."""
        for q in range(1, -(-self.pixels // 2)):
            out.add(f"r{q}", "r0", 2 * q * step, "r4")

    def _quads(self, out: Assembler, step: int, quads: int) -> None:
        if not quads:
            return
        size = 2 * self.tile
        out.move("r10", 0xFF00FF00)
        with out.counted("r11", quads):
            for q in range(-(-self.pixels // 2)):
                b = "r5" if 2 * q + 1 < self.pixels else "r4"  # any byte, where there is no second
                if b == "r5":
                    out.op(f"ldr r5, [r{q}, #{step}]")
                out.op(f"ldr r4, [r{q}], #4")
                out.op(f"and r9, {b}, #0xff00ff00", f"and r8, r10, {b}, lsl #8")
                out.op("eor r4, r4, #0x80808080", "uxtb16 r6, r4", "uxtb16 r7, r4, ror #8")
                words = (
                    ("r5", f"pkhbt r5, r6, {b}, lsl #24"),
                    ("r4", "pkhbt r4, r7, r9, lsl #16"),
                    ("r8", "pkhtb r8, r8, r6, asr #16"),
                    ("r9", "pkhtb r9, r9, r7, asr #16"),
                )
                for i, (word, make) in enumerate(words):
                    out.op(make, f"str {word}, [r12, #{i * size + 4 * q}]")
            out.add("r12", "r12", 4 * size)

    # -- the stream -------------------------------------------------------------------------------

    @property
    def stream(self) -> Array:
        """The words that a tile reads one after the other, uint32."""
        rows = self._rows
        words = np.ascontiguousarray(rows.data).view("<u4").astype(np.uint32)
        counts = -(-rows.counts // self._per)
        ends = np.cumsum(counts)
        heads = (4 * counts << 16) | self._jumps(self._tiles[0]) | self._jumps(self._tiles[1]) << 8
        own = [self.layer.requantize.own(o) for o in range(self._outputs)]
        parts: list[Array] = [_words([*self._table, 4 * self.whole_words])]
        sums = self.layer.weights.astype(np.int64).sum(axis=1).tolist()
        for o, (bias, total, end) in enumerate(
            zip(self.layer.bias.tolist(), sums, ends.tolist(), strict=True)
        ):
            first = _words(self._start(bias, total))
            head = _words(heads[o : o + 1] if self._jumping else [])
            parts += [first, head, words[end - counts[o] : end], _words(own[o])]
        return np.concatenate(parts)

    def _start(self, bias: int, total: int) -> list[int]:
        """Give the words that a row's sums begin with; ``total`` is that of its weights."""
        if not self.buffered:
            return [bias]
        apart, scale = (32, 8) if self._codes else (24, 0)
        both = (bias << apart) + (bias - 128 * total << scale)
        return [both & 0xFFFFFFFF, both >> 32 & 0xFFFFFFFF]

    @property
    def words(self) -> int:
        """Words of the stream."""
        return self.table_words + 1 + self.whole_words

    @property
    def whole_words(self) -> int:
        """Words of the stream's rows."""
        row = (2 if self.buffered else 1) + self._jumping + len(self.layer.requantize.own(0))
        return self._outputs * row + len(self._rows.data) // 4

    @property
    def table_words(self) -> int:
        """Words of the table in front of the stream's rows."""
        return _CODES if self._codes else 0

    @property
    def frame_words(self) -> int:
        """Words of the table's copy at the bottom of the frame."""
        return self.table_words

    @cached_property
    def _table(self) -> list[int]:
        """The different weights, and 0, which fills up; as long in all layers."""
        values = np.zeros(self.table_words, np.int64)
        if self._codes:
            used = np.union1d(self.layer.weights, 0).astype(np.int64)
            values[: len(used)] = used << 8 if self.buffered else used
        return [int(value) for value in values]

    @cached_property
    def _rows(self) -> _Rows:
        w = self.layer.weights[:, np.maximum(self._order, 0)]
        w = np.where(self._order >= 0, w, 0)
        most = _MOST_GAP if self._codes else 255 // self._column
        gaps, values, counts = _entries(w, most)
        # What a row has too little for a whole word is left out at its start.
        places = -(-counts // self._per) * self._per
        behind = np.cumsum(places) - np.cumsum(counts)
        at = np.arange(len(gaps)) + np.repeat(behind, counts)
        data = np.zeros((int(places.sum()), 4 // self._per), np.uint8)
        if self._codes:
            table = np.union1d(self.layer.weights, 0)
            data[at, 0] = gaps << 4 | np.searchsorted(table, values)
        else:
            data[at, 0] = gaps * self._column
            data[at, 1] = values.astype(np.int8).view(np.uint8)
        return _Rows(counts, data.reshape(-1))

    # -- the loop ---------------------------------------------------------------------------------

    @property
    def _round(self) -> int:
        """Entries that a round of the loop multiplies: all, where that is less than asked for."""
        most = min(int(self._rows.counts.max()), self.unroll, _MOST_UNROLL)
        return -(-most // self._per) * self._per

    @property
    def _looping(self) -> bool:
        """Whether a row takes several rounds."""
        return bool(self._rows.counts.max() > self._round)

    @property
    def _jumping(self) -> bool:
        """Whether rows enter the loop at places of their own."""
        return self._looping or bool(np.ptp(self._rows.counts) > 0)

    def _first(self) -> Array:
        """Give the place in the loop at which each row enters."""
        return np.asarray(-self._rows.counts % self._round)

    def _jumps(self, tile: int) -> Array:
        """Give the instructions of the loop that each row leaves out."""
        if not self._jumping:
            return np.zeros(self._outputs, np.int64)
        probe = copy(self)
        probe.tile, probe._out = tile, Assembler()
        probe._head()
        head = int(probe._out.instructions)
        probe._entry(0)
        entry = int(probe._out.instructions) - head
        first = self._first()
        heads = first // self._per + self._looping
        jumps = heads * head + first * entry
        assert jumps.max() < 256
        return np.asarray(jumps)

    # -- code -------------------------------------------------------------------------------------

    def prepare(self, out: Assembler, frame: dict[str, int]) -> None:
        """Write, once, what puts the table and the shared constants into the frame."""
        if self._codes:
            out.op(f"ldr r0, [sp, #{frame['table']}]", "mov r1, sp")
            out.op(*("ldm r0!, {r2-r9}", "stm r1!, {r2-r9}") * (_CODES // 8))
        save_shared(self.layer.requantize, out, frame)

    def emit(self, out: Assembler, frame: dict[str, int]) -> None:
        """Write the product; see :meth:`Product.emit` for the slots of the frame."""
        self._out, self._frame = out, frame
        self._load("lr", "stream")
        if self._codes and self.tile < 8:
            out.move("r9", 0xF0F0F0F0 >> _SHIFTS[self.tile])
        with out.repeat(self._outputs) as start:
            self._begin_row()
            self._sum_row()
            self._store()
            if self._outputs > 1:
                self._load("r4", "end")
                out.op("cmp lr, r4", f"bne {start}")
        # The output's address went through all channels.
        self._load("r0", "out")
        out.add("r0", "r0", -self._outputs, "r1")
        self._save("r0", "out")

    def _load(self, register: str, slot: str) -> None:
        self._out.op(f"ldr {register}, [sp, #{self._frame[slot]}]")

    def _save(self, register: str, slot: str) -> None:
        self._out.op(f"str {register}, [sp, #{self._frame[slot]}]")

    @property
    def _pixel_registers(self) -> tuple[str, str]:
        return ("r8", "r9") if self.tile == 8 else ("r4", "r5")

    def _begin_row(self) -> None:
        """Set the sums, where the row ends, and go to its first entry."""
        out, head = self._out, self._pixel_registers[0]
        first = ["r0", "r1"] if self.buffered else ["r0"]
        out.op(f"ldm lr!, {{{', '.join([*first, *([head] if self._jumping else [])])}}}")
        self._load("r12", "tile" if self.buffered else "x")
        for i in range(2, self.tile):
            out.op(f"mov r{i}, r{i % 2}")
        if self._looping and self.tile == 8:
            out.op(f"add r9, lr, {head}, lsr #16")
            self._save("r9", "part")
        elif self._looping:
            out.op(f"add r10, lr, {head}, lsr #16")
        self._head()
        if self._jumping:
            place = 8 if self.tile != self._tiles[0] else 0
            out.op(f"ubfx {head}, {head}, #{place}, #8", f"lsl {head}, {head}, #2")
            # Reading pc gives what is four bytes on: behind the instruction of two that never runs.
            out.op(f"add pc, {head}")
            with out.repeat(0):
                out.op("nop")

    def _sum_row(self) -> None:
        """The unrolled loop over a row's entries; each instruction of it takes four bytes."""
        out, counts, per = self._out, self._rows.counts, self._per
        first = self._first()
        with out.repeat(1) as start:
            for place in range(self._round):
                if not self._jumping and place < first[0]:
                    continue
                times = (counts + place) // self._round
                if place % per == 0 and (place or self._looping):
                    with out.repeat(float((times - (first == place)).mean())):
                        self._head()
                with out.repeat(float(times.mean())):
                    self._entry(place % per)
            if self._looping:
                with out.repeat(float((-(-counts // self._round)).mean())):
                    end = "r10"
                    if self.tile == 8:
                        end = "r8"
                        self._load(end, "part")
                    out.op(f"cmp lr, {end}", f"bne {start}")

    def _head(self) -> None:
        """Load a word of entries."""
        out = self._out
        if self.tile == 8:
            out.op("ldr r10, [lr], #4")
        else:
            out.op("ldr r6, [lr], #4")
            if self._codes:
                out.op(f"and r7, r9, r6, lsr #{_SHIFTS[self.tile]}", "and r6, r6, #0x0f0f0f0f")
            elif self.tile == 1:
                out.op("sxtb16 r7, r6, ror #8")

    def _entry(self, place: int) -> None:
        """Multiply one entry of a word with all pixels."""
        out = self._out
        a, b = self._pixel_registers
        word, weight = ("r10", "r11") if self.tile == 8 else ("r6", "r8")
        at = 8 * place if self._codes else 16 * place
        turned = f", ror #{at}" if at else ""
        if self._codes and self.tile == 8:
            out.op(f"ubfx {a}, {word}, #{at + 4}, #4", f"add r12, r12, {a}, lsl #4")
            out.op(f"ubfx {weight}, {word}, #{at}, #4", f"ldr {weight}, [sp, {weight}, lsl #2]")
        elif self._codes:
            out.op(f"uxtab r12, r12, r7{turned}", f"uxtb.w {weight}, {word}{turned}")
            out.op(f"ldr {weight}, [sp, {weight}, lsl #2]")
        elif self.tile != self._main:  # distances are those of a tile of more pixels
            shift = _SHIFTS[self.tile] - _SHIFTS[self._main]
            out.op(f"uxtb.w {a}, {word}{turned}", f"add r12, r12, {a}, lsr #{shift}")
        else:
            out.op(f"uxtab r12, r12, {word}{turned}")
        if self.tile == 1:
            out.op(f"ldrsb.w {a}, [r12], #1")
            if self._codes:
                out.op(f"mla r0, {a}, {weight}, r0")
            else:
                out.op(f"smlab{'t' if place else 'b'} r0, {a}, r7, r0")
            return
        if not self._codes:
            out.op(f"sxtb {weight}, {word}, ror #8" if not place else f"asr {weight}, {word}, #24")
        pairs = self.tile // 2
        for q in range(0, pairs, 2):
            x = (a, b)[: pairs - q]
            many = len(x) > 1
            out.op(f"ldm.w r12!, {{{a}, {b}}}" if many else f"ldr {a}, [r12], #4")
            for i, pixels in enumerate(x):
                out.op(f"smlal r{2 * (q + i)}, r{2 * (q + i) + 1}, {pixels}, {weight}")

    def _store(self) -> None:
        """Part the sums of two pixels, requantize and store."""
        out, requantize = self._out, self.layer.requantize
        # Neither the sums nor what all rows need.
        free = [f"r{8 + i}" for i in range(5)] if self.tile == 8 else ["r4", "r5", "r6", "r7", "r8"]
        count = len(requantize.own(0))
        own, shared, y = free[:count], free[count:-1], free[-1]
        if count:
            out.op(f"ldm lr!, {{{', '.join(own)}}}" if count > 1 else f"ldr {own[0]}, [lr], #4")
        self._load(y, "out")
        shared = load_shared(requantize, out, self._frame, shared)
        for p in range(0, self.pixels, 2):
            low, high = f"r{p}", f"r{p + 1}"
            second = p + 1 < self.pixels
            if self.buffered:
                self._part(low, high, second)
            for total, scaled in ((low, self.buffered), (high, False))[: 1 + second]:
                requantize.emit(out, total, requantize.registers(own, shared, scaled), scaled)
        for p in reversed(range(1, self.pixels)):
            out.op(f"strb r{p}, [{y}, #{p * self._outputs}]")
        out.op(f"strb r0, [{y}], #1")
        self._save(y, "out")

    def _part(self, low: str, high: str, second: bool) -> None:
        """Make 256 times the first sum, and the second one."""
        out = self._out
        if not self._codes:
            if second:
                out.op(f"lsl {high}, {high}, #8", f"orr {high}, {high}, {low}, lsr #24")
            out.op(f"lsl {low}, {low}, #8")
        if second:
            out.op(f"add {high}, {high}, {low}, lsr #31")


@dataclass(frozen=True)
class _Rows:
    """The entries of all rows: how many each has, int64 (outputs,), and their bytes, uint8."""

    counts: Array
    data: Array


# How far the four bits of a gap are from the distance in the buffer, by the tile's pixels.
_SHIFTS = {1: 4, 2: 2, 4: 1, 8: 0}


def _room(pixels: int) -> int:
    """Give the pixels of the smallest tile that holds so many."""
    return next(size for size in _PIXELS if size >= pixels)


def _entries(weights: Array, most: int) -> tuple[Array, Array, Array]:
    """Give gaps and values of all rows' entries, and how many each row has.

    A row has one entry at least. ``most`` is the largest gap.

    >>> gaps, values, counts = _entries(np.array([[0, 0, 0, 0, 5, 7], [0] * 6]), 2)
    >>> gaps.tolist(), values.tolist(), counts.tolist()
    ([2, 1, 0, 0], [0, 5, 7, 0], [3, 1])
    """
    kept = weights != 0
    kept[~kept.any(axis=1), 0] = True
    rows, places = np.nonzero(kept)
    before = np.concatenate([[-1], places[:-1]])
    before[np.flatnonzero(np.diff(rows, prepend=-1))] = -1
    fillers, left = np.divmod(places - before - 1, most + 1)
    at = np.cumsum(fillers + 1) - 1
    gaps = np.full(int(at[-1]) + 1, most)
    values = np.zeros(len(gaps), np.int64)
    gaps[at], values[at] = left, weights[rows, places]
    counts = np.bincount(rows, fillers + 1, len(weights)).astype(np.int64)
    return gaps, values, counts


def _words(values: Array | list[int]) -> Array:
    return np.asarray(values, np.int64).astype(np.uint32)
