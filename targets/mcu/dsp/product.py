"""The inner product of a few pixels with a few output channels, by SMLAD.

A tile is two output channels (a *pair*) with up to three pixels, or two pairs with one pixel. Its
pixels lie widened to 16 bits in a small buffer, its weights in a stream in the order of use:
for each round of channels the biases, the weights and the constants of requantization. A *step* is
two inputs: one word of a pixel, one word of a pair's weights. Five ways to lay out weights:

- ``paired``: two channels in a halfword (:mod:`tvm_compress.layouts.paired`): one byte a weight;
  a word is unpacked once for all pixels of the tile.
- ``offset``: as ``paired``, of weights that fit once an offset is taken off all of them: those of
  uint8 networks, whose zero point has. ``sum x * w = sum x * (w - offset) + offset * sum x``; the
  last term is made once a tile, for all channels. That sums wrap around on their way does no harm,
  for words are a ring: what they come to fits, which is the sum with ``w``.
- ``wide``: a halfword a weight, for weights or sums that do not fit the first two ways.
- ``blocks``: as ``paired``, but of blocks of four inputs only those that are not zero in all
  channels of the round. Four blocks follow a word with four bytes: how far the pixels' pointer
  moves on to each. A block of 8 weights of a pair costs two instructions more than in ``paired``.
- ``codes``: half a byte a weight where a layer has at most 16 different ones. A byte holds the
  codes of two channels and is the place of their halfword in a table in front of the stream.

The weights of the first three may be coded: then they are no part of the stream, but are decoded
into a buffer a piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.layouts.paired import pair_words, wide_words
from tvm_compress.targets.mcu.dsp.assembler import Assembler
from tvm_compress.targets.mcu.dsp.coded import WeightCode, count_bytes
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.requantize import Requantize

__all__ = ["LAYOUTS", "Product", "load_shared", "save_shared", "unrolled"]

Array = NDArray[Any]

LAYOUTS = ("paired", "offset", "wide", "blocks", "codes")
_ALL = ("r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr")
# What a call does not keep.
_LOST = ("r0", "r1", "r2", "r3", "r12", "lr")
# Blocks behind one word of distances.
_BLOCKS = 4
# Halfwords that are decoded at a time: little memory, and a call costs little beside them.
_PIECE = 64
_CODES = 16
# Words of the table of pairs of codes.
_TABLE_WORDS = _CODES * _CODES // 2


@dataclass(frozen=True)
class _Tile:
    """The shape of a tile, and how many steps of pixels and weights one load fetches."""

    pixels: int
    pairs: int
    x_steps: int
    w_steps: int
    wide: bool = False
    blocks: bool = False
    codes: bool = False

    @property
    def steps(self) -> int:
        """Steps of one round of loads; of a block."""
        return 2 if self.blocks else max(self.x_steps, self.w_steps)

    @property
    def registers(self) -> tuple[list[str], list[str], list[str], str, str]:
        """The registers of sums, pixels and weights, and the two pointers."""
        free = list(_ALL)

        def take(count: int) -> list[str]:
            taken, free[:count] = free[:count], []
            return taken

        sums = take(2 * self.pixels * self.pairs)
        x = take(self.pixels * self.x_steps)
        # The word of codes, two looked up and the table; or the words of a load.
        w = take(4 if self.codes else self.pairs * self.w_steps * (2 if self.wide else 1))
        xp, wp = take(2)
        return sums, x, w, xp, wp


# By layout and pixels: as many steps a load as the registers hold.
_TILES = {
    ("paired", 3): _Tile(3, 1, 1, 2),
    ("paired", 2): _Tile(2, 1, 2, 4),
    ("paired", 1): _Tile(1, 2, 4, 2),
    ("wide", 3): _Tile(3, 1, 1, 1, wide=True),
    ("wide", 2): _Tile(2, 1, 2, 2, wide=True),
    ("wide", 1): _Tile(1, 2, 4, 1, wide=True),
    ("blocks", 3): _Tile(3, 1, 1, 2, blocks=True),
    ("blocks", 2): _Tile(2, 1, 2, 2, blocks=True),
    ("blocks", 1): _Tile(1, 2, 2, 2, blocks=True),
    ("codes", 2): _Tile(2, 1, 2, 2, codes=True),
    ("codes", 1): _Tile(1, 2, 2, 1, codes=True),
}
_TILES |= {("offset", pixels): _TILES["paired", pixels] for pixels in (3, 2, 1)}


class Product:
    """All output channels of one tile of pixels.

    Args:
        layer: weights, biases and requantization.
        order: for each halfword of a pixel in the buffer the column of the weights, -1 for none.
        pixels: of a tile, 1 to 3.
        layout: how the weights lie, one of ``LAYOUTS``.
        unroll: steps in one round of the loop over inputs.
        coded: whether weights are no part of the stream but decoded piece by piece, see
            :mod:`tvm_compress.targets.mcu.dsp.coded`. For ``paired``, ``offset`` and ``wide``
            alone; nothing is unrolled then.
    """

    # Of a pixel in the rows of the ring; in words of the frame, of what is kept of a tile there.
    value_bytes = 2
    frame_words = 0
    # Whether it reads a buffer of pixels, and not the input itself.
    buffered = True

    def __init__(
        self,
        layer: IntegerLayer,
        order: Sequence[int],
        pixels: int,
        layout: str,
        unroll: int,
        coded: bool = False,
    ) -> None:
        assert not (coded and layout in ("blocks", "codes"))
        self.coded = coded
        self.layer, self.layout, self.unroll = layer, layout, unroll
        self.offset = 0
        if layout == "offset":
            assert layer.offset
            self.offset, self.frame_words = layer.offset, pixels
        self.tile = _TILES[layout, pixels]
        self.pixels = pixels  # of the tile that there are
        self.end = "tile_end"
        steps = len(order) // 2
        self.steps = -(-steps // self.tile.steps) * self.tile.steps
        self._order = np.asarray([*order, *[-1] * (2 * self.steps - len(order))])
        self._outputs = layer.geometry.outputs

    @staticmethod
    def swaps(layer: IntegerLayer) -> bool:
        """Whether four inputs of the buffer lie as 0, 2, 1, 3: as SXTB16 leaves them."""
        return layer.geometry.inputs % 4 == 0

    @staticmethod
    def forms(layer: IntegerLayer) -> list[tuple[str, int]]:
        """Give the layouts and pixels that a layer's weights can have."""
        if layer.offset is None:
            layouts: tuple[str, ...] = ("wide",)
        elif layer.offset:
            layouts = ("offset", "wide")
        elif len(np.union1d(layer.weights, 0)) <= _CODES:
            layouts = ("paired", "blocks", "codes")
        else:
            layouts = ("paired", "blocks")
        return [form for form in _TILES if form[0] in layouts]

    def rest(self, pixels: int) -> Product:
        """Give the product of the pixels that are left of a row; it reads the same stream."""
        rest = copy(self)
        rest.pixels = pixels
        if not self.tile.blocks:  # whose distances are those of a whole tile
            rest.tile = replace(self.tile, pixels=pixels, x_steps=2)
            rest.end = "rest_end"
        return rest

    @property
    def pixels_bytes(self) -> int:
        """Bytes of the buffer for a tile's pixels."""
        return self.steps * 4 * self.tile.pixels

    # -- pixels -----------------------------------------------------------------------------------

    def widen(self, out: Assembler, step: int) -> None:
        """Fill the buffer at r12 from the input at r0, whose pixels are ``step`` bytes apart."""
        inputs = self.layer.geometry.inputs
        for p in range(1, self.pixels):
            out.add(f"r{p}", "r0", p * step, "r4")
        quads = inputs // 4
        rounds, rest = _split(quads, 8 if self.pixels == 1 else 4)
        if rounds:
            with out.counted("lr", *rounds[:1]):
                for _ in range(rounds[1]):
                    self._widen_quad(out)
        for _ in range(rest):
            self._widen_quad(out)
        self._widen_rest(out, inputs - 4 * quads)

    def _widen_quad(self, out: Assembler) -> None:
        """Four inputs of each pixel: two words each, swapped or in their order."""
        pixels = self.pixels
        raw = [f"r{3 + p}" for p in range(pixels)]
        for p in range(pixels):
            out.op(f"ldr {raw[p]}, [r{p}], #4")
        words = [f"r{6 + i}" for i in range(2 * self.tile.pixels)]
        # The place of (pixel, step) among the words of a round of loads.
        for p in range(pixels):
            a, b = self._places(p, words)
            if self.swaps(self.layer):
                out.op(f"sxtb16 {a}, {raw[p]}", f"sxtb16 {b}, {raw[p]}, ror #8")
            else:
                out.op(f"sxtb16 {a}, {raw[p]}", f"sxtb16 {raw[p]}, {raw[p]}, ror #8")
                out.op(f"pkhtb {b}, {raw[p]}, {a}, asr #16")
                out.op(f"pkhbt {a}, {a}, {raw[p]}, lsl #16")
        out.op(f"stm r12!, {{{', '.join(words)}}}")

    def _widen_rest(self, out: Assembler, rest: int) -> None:
        """The last one to three inputs of each pixel, byte by byte, and zeros behind them."""
        if not rest:
            return
        words = [f"r{6 + i}" for i in range(2 * self.tile.pixels)]
        for p in range(self.pixels):
            a, b = self._places(p, words)
            out.op(f"ldrsb {a}, [r{p}]")
            if rest > 1:
                out.op(f"ldrsb r3, [r{p}, #1]", f"pkhbt {a}, {a}, r3, lsl #16")
            if rest > 2:
                out.op(f"ldrsb {b}, [r{p}, #2]")
            else:
                out.op(f"mov {b}, #0")
        out.op(f"stm r12!, {{{', '.join(words)}}}")

    def gather(self, out: Assembler, step: int, quads: int, aligned: bool) -> None:
        """Append to the buffer at r12 four times ``quads`` values of each window.

        The first one's lie from r0 on in the ring, the others ``step`` bytes apart; ``aligned``
        says that all of them lie at multiples of four.
        """
        for p in range(1, self.pixels):
            out.add(f"r{p}", "r0", p * step, "r3")
        rounds, rest = _split(quads, 12)
        if rounds:
            with out.counted("r11", rounds[0]):
                for _ in range(rounds[1]):
                    self._gather_two(out, aligned)
        for _ in range(rest):
            self._gather_two(out, aligned)

    def _gather_two(self, out: Assembler, aligned: bool) -> None:
        words = [f"r{4 + i}" for i in range(2 * self.tile.pixels)]
        for p in range(self.pixels):
            a, b = self._places(p, words)
            if aligned:
                out.op(f"ldm r{p}!, {{{a}, {b}}}")
            else:
                out.op(f"ldr {a}, [r{p}], #4", f"ldr {b}, [r{p}], #4")
        out.op(f"stm r12!, {{{', '.join(words)}}}")

    def _places(self, pixel: int, registers: Sequence[str]) -> tuple[str, str]:
        """Give the registers of a pixel's two words within two steps of the buffer."""
        if self.tile.x_steps == 1:  # step by step: all pixels of one step, then of the next
            return registers[pixel], registers[self.tile.pixels + pixel]
        return registers[2 * pixel], registers[2 * pixel + 1]

    # -- the stream -------------------------------------------------------------------------------

    @property
    def stream(self) -> Array:
        """The words that a tile reads one after the other, uint32."""
        parts = [
            _words(part)
            for biases, weights, constants in self._rounds()
            for part in (biases, [] if self.coded else weights, constants)
        ]
        end = [4 * self.whole_words] if self.tells_end else []
        return np.concatenate([self._table(), _words(end), *parts])

    @cached_property
    def coded_halfwords(self) -> Array:
        """The weights that a tile decodes one after the other, uint16."""
        words = np.concatenate([_words(weights) for _, weights, _ in self._rounds()])
        halfwords = words.astype("<u4").view("<u2")
        rounds = -(-self._outputs // (2 * self.tile.pairs))
        assert len(halfwords) == rounds * sum(n * times for n, times in self.pieces)
        return halfwords

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """What a round of channels decodes: pieces of how many halfwords, and how often."""
        rounds, each = self.steps // self.tile.steps, self._halfwords_of_loads
        count = -(-rounds // max(1, _PIECE // each))
        size = -(-rounds // count)
        times, rest = divmod(rounds, size)
        return [(size * each, times), *([(rest * each, 1)] if rest else [])]

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the buffer for a piece of weights, a multiple of 4."""
        return 2 * self.pieces[0][0] if self.coded else 0

    @property
    def _halfwords_of_loads(self) -> int:
        """Halfwords of weights in one round of loads."""
        return 2 * self.tile.steps * self.tile.pairs * (2 if self.tile.wide else 1)

    @property
    def words(self) -> int:
        """Words of the stream."""
        rounds = -(-self._outputs // (2 * self.tile.pairs))
        return self.table_words + self.tells_end + self._words_of(rounds)

    @property
    def tells_end(self) -> bool:
        """Whether a word in front of the rounds has the bytes of the whole ones.

        So layers of one shape share their code, however many weights they have.
        """
        return self.tile.blocks

    @property
    def table_words(self) -> int:
        """Words of the table in front of the stream's rounds."""
        return _TABLE_WORDS if self.tile.codes else 0

    @property
    def whole_words(self) -> int:
        """Words of the stream that whole rounds of channels read."""
        return self._words_of(self._outputs // (2 * self.tile.pairs))

    def _words_of(self, whole: int) -> int:
        tile = self.tile
        ends = 2 * tile.pairs * (1 + len(self.layer.requantize.own(0)))
        if self.coded:
            return whole * ends
        if tile.codes:
            return whole * (ends + self.steps * tile.pairs // 2)
        if not tile.blocks:
            return whole * (ends + self.steps * tile.pairs * (2 if tile.wide else 1))
        words = ends + (not self._even) + self._left
        kept = [len(kept) for kept in self._kept[:whole]]
        groups = sum(count // _BLOCKS for count in kept)
        return whole * words + groups + 2 * tile.pairs * sum(kept)

    def _channels(self) -> list[list[int]]:
        """Give the output channels of each round; the last one stands in for missing ones."""
        size, last = 2 * self.tile.pairs, self._outputs - 1
        return [[min(c, last) for c in range(o, o + size)] for o in range(0, last + 1, size)]

    @cached_property
    def _columns(self) -> Array:
        """The weights in the order of the buffer, without the offset, (outputs, 2 * steps)."""
        columns = self.layer.weights[:, np.maximum(self._order, 0)]
        return np.where(self._order >= 0, columns, 0) - self.offset

    def _rounds(self) -> Iterator[list[Array | list[int]]]:
        """Give the parts of each round's stream."""
        layer, tile = self.layer, self.tile
        make = wide_words if tile.wide else pair_words
        for at, channels in enumerate(self._channels()):
            a, b = channels[::2], channels[1::2]
            biases: list[int] = []
            for first, second in zip(layer.bias[a].tolist(), layer.bias[b].tolist(), strict=True):
                biases += [first if tile.wide else 256 * first + second, second]
            # (pairs, steps, words a step)
            columns = [(self._columns[i], self._columns[j]) for i, j in zip(a, b, strict=True)]
            packed = np.stack([make(*pair) for pair in columns])
            weights: Array | list[int]
            if tile.blocks:
                weights = self._blocks(packed, self._kept[at])
            elif tile.codes:
                weights = self._codes(channels)
            else:
                weights = self._dense(packed)
            constants = [word for channel in channels for word in layer.requantize.own(channel)]
            yield [biases, weights, constants]

    def _dense(self, packed: Array) -> Array:
        pairs, steps, words = packed.shape
        loads = packed.reshape(pairs, steps // self.tile.w_steps, self.tile.w_steps * words)
        return loads.swapaxes(0, 1).reshape(-1)

    @cached_property
    def _values(self) -> Array:
        """The different weights; the buffer's padding takes 0."""
        return np.union1d(self.layer.weights, 0)

    def _table(self) -> Array:
        """The halfword of each pair of codes, the first channel's in the low four bits."""
        if not self.tile.codes:
            return _words([])
        values = np.zeros(_CODES, np.int64)
        values[: len(self._values)] = self._values
        halfwords = (256 * values[None, :] + values[:, None]).reshape(-1)
        return halfwords.astype(np.uint16).view("<u4").astype(np.uint32)

    def _codes(self, channels: list[int]) -> Array:
        """The codes of a round: a byte for each input of a pair, in the order of the words."""
        codes = np.searchsorted(self._values, self._columns[channels])
        pairs = (codes[::2] | codes[1::2] << 4).reshape(self.tile.pairs, -1, 2)
        data = np.ascontiguousarray(pairs.swapaxes(0, 1)).astype(np.uint8)
        return data.reshape(-1).view("<u4").astype(np.uint32)

    @cached_property
    def _kept(self) -> list[list[int]]:
        """The blocks that each round multiplies; a far one has blocks of zeros on the way to it."""
        used = np.asarray(self._columns.reshape(self._outputs, -1, 4).any(axis=2))
        reach = 255 // (8 * self.tile.pixels)  # blocks that a byte of distance passes over
        rounds = []
        for channels in self._channels():
            chain: list[int] = []
            for block in np.flatnonzero(used[channels].any(axis=0)).tolist():
                while block - (chain[-1] + 1 if chain else 0) > reach:
                    chain.append((chain[-1] + 1 if chain else 0) + reach)
                chain.append(block)
            rounds.append(chain)
        return rounds

    def _blocks(self, packed: Array, kept: list[int]) -> list[int]:
        """Give the words of a round's blocks: whole groups, then what is left of a group.

        Where rounds differ, the bytes of the groups come first, and behind the last of the left
        blocks' distances stands a 1.
        """
        whole = len(kept) // _BLOCKS * _BLOCKS
        words = [] if self._even else [whole // _BLOCKS * (1 + 2 * _BLOCKS * self.tile.pairs) * 4]
        starts = list(range(0, whole, _BLOCKS))
        for start in [*starts, *([whole] if self._left else [])]:
            blocks = kept[start : start + _BLOCKS]
            distances = 1 << 8 * len(blocks) if start == whole else 0
            for i, block in enumerate(blocks):
                before = kept[start + i - 1] + 1 if start + i else 0
                distances |= (block - before) * 8 * self.tile.pixels << 8 * i
            words.append(distances)
            for block in blocks:
                words += packed[:, 2 * block : 2 * block + 2].reshape(-1).tolist()
        return words

    @cached_property
    def _even(self) -> bool:
        """Whether all rounds multiply as many blocks."""
        return len({len(kept) for kept in self._kept}) == 1

    @cached_property
    def _left(self) -> bool:
        """Whether a round has blocks that are no whole group."""
        return any(len(kept) % _BLOCKS for kept in self._kept)

    # -- code -------------------------------------------------------------------------------------

    def emit(self, out: Assembler, frame: dict[str, int]) -> None:
        """Write the product; the frame's slots are ``stream``, ``end``, ``tile``, ``out``...

        ``out`` is the address of the tile's first output and is left as it was; ``tile`` and
        ``tile_end`` (or ``rest_end``) the buffer's ends, ``end`` that of the stream's whole rounds;
        ``part`` and three words from ``shared`` on are for the product's own use (see
        :meth:`prepare`). Where weights are decoded, ``codes`` and two words behind it are the
        decoder's state, and ``decoded`` is the place of the buffer.
        """
        self._out, self._frame = out, frame
        whole, rest = divmod(self._outputs, 2 * self.tile.pairs)
        sums, _, _, _, wp = self.tile.registers
        if self.offset:
            self._sum_pixels(self.offset)
        self._load(wp, "stream")
        if self.coded:
            out.op("mov r0, #0", f"str r0, [sp, #{frame['codes'] + 8}]")
        if whole:
            with out.repeat(whole) as start:
                self._round(2 * self.tile.pairs)
                if whole > 1:
                    self._load(sums[0], "end")
                    out.op(f"cmp {wp}, {sums[0]}", f"bne {start}")
        if rest:
            self._round(rest)
        # The output's address went through all channels.
        self._load("r0", "out")
        out.add("r0", "r0", -self._outputs, "r1")
        self._save("r0", "out")

    def prepare(self, out: Assembler, frame: dict[str, int]) -> None:
        """Write, once, what puts the shared constants into the frame."""
        save_shared(self.layer.requantize, out, frame)

    def _save(self, register: str, slot: str) -> None:
        self._out.op(f"str {register}, [sp, #{self._frame[slot]}]")

    def _load(self, register: str, slot: str) -> None:
        self._out.op(f"ldr {register}, [sp, #{self._frame[slot]}]")

    def _sum_pixels(self, factor: int) -> None:
        """Put the sum of each pixel's inputs, times an int16, into the frame's table."""
        out, pixels = self._out, self.tile.pixels
        words = self.steps * pixels
        each = next(n for n in (8, 6, 4, 2) if words % n == 0 and n % self._period == 0)
        loads = words // each
        per = max(n for n in (1, 2, 3, 4) if loads % n == 0)
        x = [f"r{3 + i}" for i in range(each)]
        self._load("r12", "tile")
        out.move("r11", (factor & 0xFFFF) * 0x00010001)
        out.op(*(f"mov r{p}, #0" for p in range(pixels)))
        with out.counted("lr", loads // per):
            for _ in range(per):
                out.op(f"ldm r12!, {{{', '.join(x)}}}")
                for i, word in enumerate(x):
                    p = i * pixels // self._period % pixels
                    out.op(f"smlad r{p}, {word}, r11, r{p}")
        for p in range(pixels):
            self._save(f"r{p}", f"table{p}")

    @property
    def _period(self) -> int:
        """Words of the buffer until it is the first pixel's turn again (see :meth:`_places`)."""
        return self.tile.pixels * (1 if self.tile.x_steps == 1 else 2)

    def _sums(self) -> tuple[list[list[str]], list[list[str]]]:
        """Give the sums of the first and second channel of each pair, by pixel."""
        sums, n = self.tile.registers[0], self.tile.pixels
        first = [sums[2 * n * q : 2 * n * q + n] for q in range(self.tile.pairs)]
        second = [sums[2 * n * q + n : 2 * n * (q + 1)] for q in range(self.tile.pairs)]
        return first, second

    def _round(self, channels: int) -> None:
        """Sum and store a round of channels, of which ``channels`` there are."""
        _, _, _, xp, wp = self.tile.registers
        first, second = self._sums()
        begin = [s for q in range(self.tile.pairs) for s in (first[q][0], second[q][0])]
        self._load(xp, "tile")
        # A multiple load takes its registers in rising order, as the stream has them.
        assert begin == sorted(begin, key=_ALL.index)
        self._out.op(f"ldm {wp}!, {{{', '.join(begin)}}}")
        if self.tile.codes:
            self._load(self.tile.registers[2][3], "table")
        if self.tile.blocks:
            self._sum_blocks()
        elif self.coded:
            self._save(wp, "part")
            self._sum_coded()
            self._load(wp, "part")
        else:
            self._sum_dense()
        if not self.tile.wide:
            self._part(channels)
        self._store(channels)

    def _copy_biases(self) -> None:
        for sums in (s for half in self._sums() for s in half):
            self._out.op(*(f"mov {s}, {sums[0]}" for s in sums[1:]))

    def _sum_dense(self) -> None:
        out, tile = self._out, self.tile
        _, x, _, xp, _ = tile.registers
        loops, per, peeled = unrolled(self.steps // tile.steps, self.unroll // tile.steps)
        if not peeled:
            self._copy_biases()
        for i in range(peeled):
            self._steps(fresh=i == 0)
        if loops:
            with out.repeat(loops) as start:
                for _ in range(per):
                    self._steps(fresh=False)
                self._load(x[0], self.end)
                out.op(f"cmp {xp}, {x[0]}", f"bne {start}")

    def _sum_coded(self) -> None:
        out, (_, x, _, xp, _) = self._out, self.tile.registers
        self._copy_biases()
        for halfwords, times in self.pieces:
            with out.repeat(times) as start:
                self._piece(halfwords)
                if times > 1:
                    if len(self.pieces) > 1:  # the rest of the pixels is the other piece's
                        rest = self.pieces[1][0] // self._halfwords_of_loads * self._pixels_of_loads
                        self._load(x[0], self.end)
                        out.op(f"subw {x[0]}, {x[0]}, #{rest}")
                    else:
                        self._load(x[0], self.end)
                    out.op(f"cmp {xp}, {x[0]}", f"bne {start}")

    @property
    def _pixels_of_loads(self) -> int:
        """Bytes of pixels in one round of loads."""
        return 4 * self.tile.steps * self.tile.pixels

    def _piece(self, halfwords: int) -> None:
        """Decode so many halfwords and multiply them."""
        out, (sums, x, _, xp, wp) = self._out, self.tile.registers
        kept = [r for r in _ALL if r in (*sums, xp) and r in _LOST]
        # The stack stays aligned to eight bytes.
        kept = sorted([*kept, *["r8"] * (len(kept) % 2)], key=_ALL.index)
        place, rounds = self._frame["decoded"], halfwords // self._halfwords_of_loads
        out.op(f"push {{{', '.join(kept)}}}")
        out.op(f"add r0, sp, #{self._frame['codes'] + 4 * len(kept)}")
        out.op(f"add r1, sp, #{place + 4 * len(kept)}")
        out.move("r2", halfwords)
        out.decode(self._decoder_instructions(halfwords))
        out.op(f"pop {{{', '.join(kept)}}}", f"add {wp}, sp, #{place}")
        with out.repeat(rounds) as start:
            self._steps(fresh=False)
            if rounds > 1:
                out.op(f"add {x[0]}, sp, #{place + 2 * halfwords}")
                out.op(f"cmp {wp}, {x[0]}", f"bne {start}")

    @cached_property
    def _decoded_instructions(self) -> float:
        """Instructions that a halfword takes to be decoded, on average."""
        counts = count_bytes(self.coded_halfwords)
        return WeightCode.of(counts).instructions(counts) / len(self.coded_halfwords)

    def _decoder_instructions(self, halfwords: int) -> float:
        return WeightCode.call_instructions() + halfwords * self._decoded_instructions

    def _steps(self, fresh: bool) -> None:
        """One round of loads and what is multiplied of it."""
        out, tile = self._out, self.tile
        _, x, w, xp, wp = tile.registers
        for step in range(tile.steps):
            if step % tile.x_steps == 0:
                out.op(f"ldm {xp}!, {{{', '.join(x)}}}")
            if step % tile.w_steps == 0:
                out.op(
                    f"ldr {w[0]}, [{wp}], #4" if tile.codes else f"ldm {wp}!, {{{', '.join(w)}}}"
                )
            self._step(step, fresh=fresh and step == 0)

    def _looked_up(self, half: int) -> str:
        """Look up the two codes of one half of a word; gives the register of the weights."""
        word, first, second, table = self.tile.registers[2]
        self._out.op(
            f"uxtb {first}, {word}" + (", ror #16" if half else ""),
            f"lsr {second}, {word}, #24" if half else f"uxtb {second}, {word}, ror #8",
            f"ldrh {first}, [{table}, {first}, lsl #1]",
            f"ldrh {second}, [{table}, {second}, lsl #1]",
            f"orr {first}, {first}, {second}, lsl #16",
        )
        return first

    def _step(self, step: int, fresh: bool) -> None:
        out, tile = self._out, self.tile
        _, x, w, _, _ = tile.registers
        first, second = self._sums()
        for q in range(tile.pairs):
            place = q * tile.w_steps + step % tile.w_steps
            if tile.codes:
                words = (self._looked_up(place),) * 2
            else:
                words = (w[2 * place], w[2 * place + 1]) if tile.wide else (w[place], w[place])
            for sums, weight in zip((first[q], second[q]), words, strict=True):
                if sums is second[q] and not tile.wide:
                    out.op(f"sxtb16 {weight}, {weight}")
                # The first step takes the bias of pixel 0 for all, whose sum is set last.
                for p in reversed(range(tile.pixels)):
                    source = sums[0] if fresh else sums[p]
                    pixel = self._pixel(x, p, step % tile.x_steps)
                    out.op(f"smlad {sums[p]}, {pixel}, {weight}, {source}")

    def _pixel(self, x: Sequence[str], pixel: int, step: int) -> str:
        # Two steps of a pixel lie side by side where a load fetches several (see Convolution).
        if self.tile.x_steps == 1:
            return x[pixel]
        return x[step // 2 * 2 * self.tile.pixels + 2 * pixel + step % 2]

    def _sum_blocks(self) -> None:
        out, tile = self._out, self.tile
        sums, x, w, xp, wp = tile.registers
        distances = next(r for r in _ALL if r not in (*sums, *x, *w, xp, wp))
        counts = [len(kept) for kept in self._kept]
        groups, left = divmod(max(counts), _BLOCKS)
        if self._even and max(counts) and max(counts) * 2 <= self.unroll:
            for group in range(groups):
                self._group(distances, _BLOCKS, fresh=group == 0)
            if left:
                self._group(distances, left, fresh=groups == 0)
            return
        self._copy_biases()
        if groups:
            behind, part = out.label(), f"[sp, #{self._frame['part']}]"
            if self._even:
                out.add(distances, wp, groups * (1 + 2 * _BLOCKS * tile.pairs) * 4, x[0])
                out.op(f"str {distances}, {part}")
            else:
                out.op(f"ldr {distances}, [{wp}], #4")
                if min(counts) < _BLOCKS:
                    out.op(f"cmp {distances}, #0", f"beq {behind}")
                with out.repeat(sum(n >= _BLOCKS for n in counts) / len(counts)):
                    out.op(f"add {distances}, {distances}, {wp}", f"str {distances}, {part}")
            with out.repeat(sum(n // _BLOCKS for n in counts) / len(counts)) as start:
                self._group(distances, _BLOCKS, fresh=False)
                self._load(x[0], "part")
                out.op(f"cmp {wp}, {x[0]}", f"bne {start}")
            out.place(behind)
        elif not self._even:
            out.op(f"add {wp}, {wp}, #4")
        if self._even:
            if left:
                self._group(distances, left, fresh=False)
        elif self._left:
            behind = out.label()
            out.op(f"ldr {distances}, [{wp}], #4", f"cmp {distances}, #1", f"beq {behind}")
            with out.repeat(sum(n % _BLOCKS for n in counts) / len(counts)) as start:
                out.op(f"uxtab {xp}, {xp}, {distances}", f"lsr {distances}, {distances}, #8")
                self._block(fresh=False)
                out.op(f"cmp {distances}, #1", f"bne {start}")
            out.place(behind)

    def _group(self, distances: str, count: int, fresh: bool) -> None:
        """Up to four blocks and the word in front of them."""
        out, (_, _, _, xp, wp) = self._out, self.tile.registers
        out.op(f"ldr {distances}, [{wp}], #4")
        for block in range(count):
            rotation = f", ror #{8 * block}" if block else ""
            out.op(f"uxtab {xp}, {xp}, {distances}{rotation}")
            self._block(fresh=fresh and block == 0)

    def _block(self, fresh: bool) -> None:
        out, tile = self._out, self.tile
        _, x, w, xp, wp = tile.registers
        out.op(f"ldm {wp}!, {{{', '.join(w)}}}")
        for step in range(2):
            if step % tile.x_steps == 0:
                out.op(f"ldm {xp}!, {{{', '.join(x)}}}")
            self._step(step, fresh=fresh and step == 0)

    def _part(self, channels: int) -> None:
        """Take the second channels' sums off the raw ones, and add the offset's to both."""
        out, x = self._out, self.tile.registers[1][: self.pixels]
        if self.offset:
            if len(x) > 1:
                out.op(f"ldrd {x[0]}, {x[1]}, [sp, #{self._frame['table0']}]")
            if len(x) != 2:
                self._load(x[-1], f"table{len(x) - 1}")
        first, second = self._sums()
        for q in range(-(-channels // 2)):
            for p in range(self.pixels):
                a, b = first[q][p], second[q][p]
                out.op(f"sub {a}, {a}, {b}")
                if self.offset:
                    out.op(f"add {a}, {a}, {x[p]}, lsl #8", f"add {b}, {b}, {x[p]}")

    def _store(self, channels: int) -> None:
        """Requantize and store; the constants of two channels are loaded at a time."""
        out, tile, requantize = self._out, self.tile, self.layer.requantize
        sums, _, _, _, wp = tile.registers
        first, second = self._sums()
        count = len(requantize.own(0))
        free = [r for r in _ALL if r not in sums and r != wp]
        own, y = free[: 2 * count], free[-1]
        self._load(y, "out")
        shared = load_shared(requantize, out, self._frame, free[2 * count :])
        for q in range(tile.pairs):
            if own:
                out.op(f"ldm {wp}!, {{{', '.join(own)}}}")
            for half, totals in ((0, first[q]), (1, second[q])):
                if 2 * q + half >= channels:
                    continue
                scaled = half == 0 and not tile.wide
                words = requantize.registers(own[half * count :][:count], shared, scaled)
                for total in totals[: self.pixels]:
                    requantize.emit(out, total, words, scaled)
                for p in reversed(range(1, self.pixels)):
                    out.op(f"strb {totals[p]}, [{y}, #{p * self._outputs}]")
                out.op(f"strb {totals[0]}, [{y}], #1")
        self._save(y, "out")


def unrolled(rounds: int, most: int) -> tuple[int, int, int]:
    """Cut ``rounds`` of loads into (loops, rounds a loop, rounds in front of the loops).

    >>> unrolled(12, 4), unrolled(13, 4), unrolled(3, 4)
    ((3, 4, 0), (3, 4, 1), (0, 3, 3))
    """
    most = max(1, most)
    if rounds <= most:
        return 0, rounds, rounds
    # As many a loop as divide the rounds, or some in front of the loop.
    per = max(n for n in range(1, most + 1) if rounds % n == 0)
    if 2 * per < most:
        per = most
    return rounds // per, per, rounds % per


def save_shared(requantize: Requantize, out: Assembler, frame: dict[str, int]) -> None:
    """Write what puts the constants of all channels into the frame; r0 is lost."""
    for i, word in enumerate(requantize.shared):
        out.move("r0", word)
        out.op(f"str r0, [sp, #{frame['shared'] + 4 * i}]")


def load_shared(
    requantize: Requantize, out: Assembler, frame: dict[str, int], free: list[str]
) -> list[str]:
    """Load the constants of all channels out of the frame; gives the first free registers."""
    shared, place = free[: len(requantize.shared)], frame["shared"]
    if len(shared) > 1:
        out.op(f"ldrd {shared[0]}, {shared[1]}, [sp, #{place}]")
    if len(shared) == 3:
        out.op(f"ldr {shared[2]}, [sp, #{place + 8}]")
    return shared


def _split(count: int, most: int) -> tuple[tuple[int, int], int]:
    """Cut ``count`` pieces into rounds of at most ``most``: ((rounds, pieces a round), rest)."""
    if count <= most:
        return (), count  # type: ignore[return-value]
    return (count // most, most), count % most


def _words(values: Array | list[int]) -> Array:
    return np.asarray(values, np.int64).astype(np.uint32)
