"""The inner product with weights of few bits: three or four output channels in a halfword.

A *round* is a few channels whose weights share halfwords, which are multiplied as they are:

- a quad: four channels of 4 bits (:data:`~tvm_compress.layouts.narrow.QUAD`),
- a triple: two of 5 bits and one of 6 (:data:`~tvm_compress.layouts.narrow.TRIPLE`),
- a pair: two of 8 bits (:mod:`tvm_compress.layouts.paired`).

A channel's weights say where it can go, and which go where makes the flash smallest: rounds of all
three kinds take two bytes of flash for each input. They hold channels in any order, so a round's
stream says where its outputs lie.

The raw word adds the sums of all fields, each times its place, to one register; masked words give
the sums of all fields but the last one, which remains when they are taken off. All of this is exact
in the ring of words: a sum may wrap around on its way, only what remains of it at the end (the
channel's sum, bias included, times the field's place) has to fit a word. Fields that are never
negative hold ``weight + c``, so ``c`` times the sum of the tile's pixels, made once a tile, is
taken off their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.layouts.narrow import QUAD, TRIPLE, narrow_words
from tvm_compress.layouts.paired import pair_words
from tvm_compress.targets.mcu.dsp.assembler import Assembler
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.product import Product, load_shared, unrolled

__all__ = ["NARROW", "NarrowProduct", "Round", "share_halfwords"]

Array = NDArray[Any]

NARROW = "narrow"
_ALL = ("r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr")
# The pointers to pixels and weights.
_XP, _WP = "r12", "lr"
# The same in both halves of a word.
_ONES = 0x00010001


@dataclass(frozen=True)
class _Kind:
    """How the channels of a round share a halfword.

    Attributes:
        widths: bits of each channel's field, from the low end on.
        scales: the power of two by which each channel's sum comes too large.
        centred: whether all fields but the last hold ``weight + 2**(width - 1)``.
        loads: by pixels of the tile, how many steps of pixels and of weights one load fetches.
        spare: registers that unpacking takes.
    """

    widths: tuple[int, ...]
    scales: tuple[int, ...]
    centred: bool
    loads: dict[int, tuple[int, int]]
    spare: int

    @property
    def places(self) -> list[int]:
        """The lowest bit of each field."""
        return [0, *accumulate(self.widths[:-1])]

    def mask(self, field: int) -> int:
        """Give the word that cuts a field out of two halfwords."""
        return (((1 << self.widths[field]) - 1) << self.places[field]) * _ONES


_QUAD = _Kind(QUAD, (0, 4, 8, 12), True, {2: (1, 1), 1: (4, 2)}, 1)
_TRIPLE = _Kind(TRIPLE, (0, 0, 10), True, {2: (1, 2), 1: (4, 2)}, 2)
_PAIR = _Kind((8, 8), (0, 8), False, {2: (2, 4), 1: (4, 4)}, 0)


@dataclass(frozen=True)
class Round:
    """Channels that share halfwords, from the low end on; one may stand for a missing one."""

    kind: _Kind
    channels: tuple[int, ...]


def share_halfwords(layer: IntegerLayer) -> list[Round]:
    """Give the rounds of a layer whose weights are ``pairable``: as few as there can be.

    Rounds of quads come first, then triples, then pairs, of which the last one may hold a channel
    twice. Which fields a channel fits follows from its weights and the bound of its sum.
    """
    low, high = layer.weights.min(axis=1, initial=0), layer.weights.max(axis=1, initial=0)
    # The smallest sums first: what does not fit the last field, whose sums are the largest, or
    # finds no place at all, are the largest ones.
    order = np.argsort(layer.bound, kind="stable")

    def fitting(kind: _Kind, field: int) -> list[int]:
        half = 1 << (kind.widths[field] - 1)
        small = layer.bound << kind.scales[field] < 1 << 31
        fit = small & (-half <= low) & (high < half)
        return [int(c) for c in order[fit[order]]]

    fours, fours_last = fitting(_QUAD, 2), fitting(_QUAD, 3)
    # Each quad saves a round against pairs; its channels could save no more as parts of triples.
    rounds = _deal(_QUAD, fours_last, fours, min(len(fours_last), len(fours) // 4))
    left = set(range(len(low))) - {c for one in rounds for c in one.channels}
    narrow = [c for c in fitting(_TRIPLE, 0) if c in left]
    # Channels that fit no other field are the first to take the last one.
    last = [c for c in fitting(_TRIPLE, 2) if c in left]
    last.sort(key=set(narrow).__contains__)
    triples = min(len(narrow) // 2, len(last), len({*narrow, *last}) // 3)
    rounds += _deal(_TRIPLE, last, narrow, triples)
    pairs = sorted(left - {c for one in rounds for c in one.channels})
    pairs += pairs[-1:] * (len(pairs) % 2)
    return rounds + _deal(_PAIR, pairs[1::2], pairs[::2], len(pairs) // 2)


def _deal(kind: _Kind, last: Sequence[int], others: Sequence[int], count: int) -> list[Round]:
    """Give so many rounds, with channels in the last field of each and in the others."""
    tops, n = last[:count], len(kind.widths) - 1
    used = set(tops) if kind.centred else set()
    rest = [c for c in others if c not in used]
    return [Round(kind, (*sorted(rest[n * i : n * (i + 1)]), top)) for i, top in enumerate(tops)]


class NarrowProduct(Product):
    """All output channels of one tile of one or two pixels; see the module's docstring.

    Args:
        layer: weights, biases and requantization.
        order: for each halfword of a pixel in the buffer the column of the weights, -1 for none.
        pixels: of a tile, 1 or 2.
        unroll: steps in one round of the loop over inputs.
    """

    # The sums of the tile's pixels.
    frame_words = 2

    def __init__(self, layer: IntegerLayer, order: Sequence[int], pixels: int, unroll: int) -> None:
        # Pixels lie step by step, an even number of steps.
        super().__init__(layer, order, 3, "paired", unroll)
        self.layout, self.pixels = NARROW, pixels
        self.tile = replace(self.tile, pixels=pixels)
        assert 2 * self.steps == len(order)

    @staticmethod
    def forms(layer: IntegerLayer) -> list[tuple[str, int]]:
        """Give the layouts and pixels that a layer's weights can have: none without few bits."""
        if not layer.pairable or share_halfwords(layer)[0].kind is _PAIR:
            return []
        return [(NARROW, pixels) for pixels in (2, 1)]

    # -- the stream -------------------------------------------------------------------------------

    @cached_property
    def rounds(self) -> list[Round]:
        """The rounds of channels, in the order of the stream."""
        return share_halfwords(self.layer)

    @cached_property
    def stream(self) -> Array:
        """The words that a tile reads one after the other, uint32."""
        parts: list[Any] = []
        for one in self.rounds:
            channels = list(one.channels)
            columns = self._columns[channels]
            if one.kind.centred:
                words = narrow_words(columns, one.kind.widths)
            else:
                words = pair_words(columns[1], columns[0])[:, 0]
            parts += [self._biases(one), words, self._tail(channels)]
        return np.concatenate([np.asarray(p, np.int64).astype(np.uint32) for p in parts])

    def _biases(self, one: Round) -> list[int]:
        """Give what the sums begin with; the last one is that of all fields."""
        biases = self.layer.bias[list(one.channels)].tolist()
        both = sum(b << place for b, place in zip(biases, one.kind.places, strict=True))
        return [b << scale for b, scale in zip(biases[:-1], one.kind.scales, strict=False)] + [both]

    def _tail(self, channels: list[int]) -> list[int]:
        """Give where the outputs lie, in front of each word's channels' constants."""
        words = []
        for i, channel in enumerate(channels):
            if i % self._per_word == 0:
                places = channels[i : i + self._per_word]
                words.append(sum(c << j * self._place_bits for j, c in enumerate(places)))
            words += self.layer.requantize.own(channel)
        return words

    @property
    def _place_bits(self) -> int:
        """Bits of an output's place."""
        return 8 if self._outputs <= 256 else 16

    @property
    def _per_word(self) -> int:
        return 32 // self._place_bits

    @property
    def words(self) -> int:
        """Words of the stream."""
        return len(self.stream)

    @property
    def whole_words(self) -> int:
        """Words of the stream that whole rounds of channels read: all."""
        return self.words

    # -- code -------------------------------------------------------------------------------------

    def emit(self, out: Assembler, frame: dict[str, int]) -> None:
        """Write the product; see :meth:`Product.emit` for the slots of the frame."""
        self._out, self._frame = out, frame
        self._sum_pixels(1)
        self._load(_WP, "stream")
        for kind in (_QUAD, _TRIPLE, _PAIR):
            count = sum(one.kind is kind for one in self.rounds)
            if count:
                with out.counted_on_stack(frame["part"], "r0", count):
                    _RoundCode(self, kind, out, frame).emit()


class _RoundCode:
    """The code of the rounds of one kind."""

    def __init__(
        self, product: NarrowProduct, kind: _Kind, out: Assembler, frame: dict[str, int]
    ) -> None:
        self.product, self.kind, self.out, self.frame = product, kind, out, frame
        self.pixels = pixels = product.tile.pixels
        # A load fetches what divides the steps.
        most = 4 if product.steps % 4 == 0 else 2
        self.x_steps, self.w_steps = (min(n, most) for n in kind.loads[pixels])
        free = iter(_ALL[:-2])
        # By channel and pixel.
        self.sums = [[next(free) for _ in range(pixels)] for _ in kind.widths]
        self.x = [next(free) for _ in range(self.x_steps * pixels)]
        self.w = [next(free) for _ in range(self.w_steps)]
        self.spare = [next(free) for _ in range(kind.spare)]

    def emit(self) -> None:
        """Write one round."""
        out = self.out
        out.op(f"ldr {_XP}, [sp, #{self.frame['tile']}]")
        out.op(f"ldm {_WP}!, {{{', '.join(sums[0] for sums in self.sums)}}}")
        if self.kind is _TRIPLE:
            out.move(self.spare[1], self.kind.mask(0))
        self._sum()
        self._part()
        self._store()

    def _sum(self) -> None:
        steps = max(self.x_steps, self.w_steps)
        loops, per, peeled = unrolled(self.product.steps // steps, self.product.unroll // steps)
        out = self.out
        if not peeled:
            for sums in self.sums:
                out.op(*(f"mov {s}, {sums[0]}" for s in sums[1:]))
        for i in range(peeled):
            self._steps(steps, fresh=i == 0)
        if loops:
            with out.repeat(loops) as start:
                for _ in range(per):
                    self._steps(steps, fresh=False)
                out.op(f"ldr {self.x[0]}, [sp, #{self.frame[self.product.end]}]")
                out.op(f"cmp {_XP}, {self.x[0]}", f"bne {start}")

    def _steps(self, steps: int, fresh: bool) -> None:
        """Load and multiply; the first time all pixels take the bias of pixel 0."""
        out = self.out
        for step in range(steps):
            if step % self.x_steps == 0:
                out.op(_loaded(_XP, self.x))
            if step % self.w_steps == 0:
                out.op(_loaded(_WP, self.w))
            x = self.x[step % self.x_steps * self.pixels :][: self.pixels]
            self._step(x, self.w[step % self.w_steps], fresh and step == 0)

    def _step(self, x: list[str], w: str, fresh: bool) -> None:
        """Multiply the raw word, then each field but the last."""
        out = self.out

        def multiply(sums: list[str], weights: str) -> None:
            for p in reversed(range(self.pixels)):
                source = sums[0] if fresh else sums[p]
                out.op(f"smlad {sums[p]}, {x[p]}, {weights}, {source}")

        multiply(self.sums[-1], w)
        if self.kind is _QUAD:
            for field, sums in enumerate(self.sums[:-1]):
                out.op(f"and {self.spare[0]}, {w}, #{self.kind.mask(field)}")
                multiply(sums, self.spare[0])
        elif self.kind is _TRIPLE:
            # No immediate cuts out the second field where it is, so its sum comes unscaled.
            out.op(f"and {self.spare[0]}, {self.spare[1]}, {w}, lsr #{self.kind.places[1]}")
            multiply(self.sums[1], self.spare[0])
            out.op(f"and {w}, {w}, #{self.kind.mask(0)}")
            multiply(self.sums[0], w)
        else:
            out.op(f"sxtb16 {w}, {w}")
            multiply(self.sums[0], w)

    def _part(self) -> None:
        """Take the other fields off the raw sums, and what centres them off the others."""
        out, kind = self.out, self.kind
        *others, raw = self.sums
        for sums, place, scale in zip(others, kind.places, kind.scales, strict=False):
            for total, part in zip(raw, sums, strict=True):
                out.op(f"sub {total}, {total}, {part}{_shifted(place - scale)}")
        if not kind.centred:
            return
        pixels = self.x[: self.pixels]
        # Two neighbours of the frame, or one.
        load = "ldrd" if self.pixels == 2 else "ldr"
        out.op(f"{load} {', '.join(pixels)}, [sp, #{self.frame['table0']}]")
        for sums, width, scale in zip(others, kind.widths, kind.scales, strict=False):
            for total, pixel in zip(sums, pixels, strict=True):
                out.op(f"sub {total}, {total}, {pixel}{_shifted(width - 1 + scale)}")

    def _store(self) -> None:
        """Requantize and store; where outputs lie is told in front of their constants."""
        out, product = self.out, self.product
        requantize, outputs = product.layer.requantize, product._outputs
        count = len(requantize.own(0))
        taken = {s for sums in self.sums for s in sums}
        places, *free, y = [r for r in _ALL[:-1] if r not in taken]
        # An address takes the place of a constant that is used up.
        room = len(free) - max(1, count)
        scaled = len(requantize.shared) <= room
        if scaled:
            room -= len(requantize.shared)
        else:  # without the last one, of sums that come 256 times larger
            room -= len(requantize.shared) - 1
        once = 1 + room // count if count else len(self.kind.widths)
        once = min(once, product._per_word, len(self.kind.widths))
        own = free[: max(1, once * count)]
        shared = self._load_shared(free[len(own) :], scaled)
        out.op(f"ldr {y}, [sp, #{self.frame['out']}]")
        for i, (totals, scale) in enumerate(zip(self.sums, self.kind.scales, strict=True)):
            at = i % once
            if at == 0:
                loads = [places] if i % product._per_word == 0 else []
                loads += own[: count * min(once, len(self.kind.widths) - i)]
                if loads:
                    out.op(_loaded(_WP, loads))
            mine = own[count * at :][:count]
            larger = scaled and scale == 8
            words = requantize.registers(mine, shared, larger)
            for total in totals:
                if scale and not larger:
                    out.op(f"asr {total}, {total}, #{scale}")
                requantize.emit(out, total, words, larger)
            place = (mine or own)[-1]
            extend = "uxtab" if product._place_bits == 8 else "uxtah"
            turned = i % product._per_word * product._place_bits
            out.op(f"{extend} {place}, {y}, {places}" + (f", ror #{turned}" if turned else ""))
            for p, total in enumerate(totals):
                out.op(f"strb {total}, [{place}, #{p * outputs}]")

    def _load_shared(self, free: list[str], whole: bool) -> list[str]:
        """Load the constants of all channels out of the frame, all or without the last one."""
        requantize = self.product.layer.requantize
        if whole:
            return load_shared(requantize, self.out, self.frame, free)
        shared = free[: len(requantize.shared) - 1]
        for i, register in enumerate(shared):
            self.out.op(f"ldr {register}, [sp, #{self.frame['shared'] + 4 * i}]")
        return [*shared, ""]


def _loaded(pointer: str, registers: Sequence[str]) -> str:
    """Give the load of words one after the other; a multiple one has two registers at least."""
    if len(registers) == 1:
        return f"ldr {registers[0]}, [{pointer}], #4"
    return f"ldm {pointer}!, {{{', '.join(registers)}}}"


def _shifted(bits: int) -> str:
    return f", lsl #{bits}" if bits else ""
