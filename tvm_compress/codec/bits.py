"""Mixed adaptive models of bits, in whole numbers: what the archive profile predicts with.

Every bit is predicted by several contexts. A context holds how often it saw 0 and 1; its estimate
is Krichevsky and Trofimov's ``(n1 + 1/2) / (n + 1)``. The estimates are mixed in the logistic
domain, ``p = squash(sum_i w_i[b_i] * stretch(p_i))`` (Mahoney, "Adaptive weighing of context
models for lossless data compression", 2005), where the weight depends on ``b_i``, the number of
bits that the context has seen, because an estimate from two bits deserves less trust.

Bits are coded in blocks: the predictions of a block come from what was coded before it, so both
directions are array operations. The weights follow a diagonal Newton step a block.

All arithmetic is on integers, and the two tables are computed in decimal with a fixed precision,
so every machine predicts the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal
from functools import cache
from typing import Any, Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from tvm_compress.codec.cursor import Damaged

__all__ = ["BitCoder", "Decoder", "Encoder", "Meter", "Mixer", "blocks", "logit_tables"]

Ints = NDArray[np.int64]

# Logits are in units of 1/256 and end at +-11: beyond, a 16-bit probability has no steps left.
_LOGIT_LIMIT = 11 * 256
_COUNT_BUCKETS = 12
_WEIGHT_ONE = 1 << 16
# A count is halved here; it bounds the products below 2**63.
_COUNT_LIMIT = 1 << 20


class BitCoder(Protocol):
    """Codes bits in one of both directions."""

    def code(self, chances: Ints, bits: Ints | None) -> Ints:
        """Code one bit for each chance (of a 1, of 65536); give the bits."""


_BERNOULLI = constriction.stream.model.Bernoulli


class Encoder:
    """Writes bits with a range coder (constriction's: 32-bit words, 64-bit state)."""

    def __init__(self) -> None:
        self._coder: Any = constriction.stream.queue.RangeEncoder()

    def code(self, chances: Ints, bits: Ints | None) -> Ints:
        """Append ``bits``."""
        assert bits is not None
        # k / 65536 is exact in float32, so no rounding of a platform's gets into the model.
        floats = chances.astype(np.float32) / np.float32(65536)
        self._coder.encode(bits.astype(np.int32), _BERNOULLI(perfect=False), floats)
        return bits

    def data(self) -> bytes:
        """Give what was written: little-endian words."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype("<u4").tobytes()


class Decoder:
    """Reads bits that :class:`Encoder` wrote; behind the end it reads arbitrary bits."""

    def __init__(self, data: bytes) -> None:
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._coder: Any = constriction.stream.queue.RangeDecoder(words)
        # A range decoder cannot tell where its words end. Writing what was read can, and costs
        # little beside the predictions.
        self._data, self._again = data, Encoder()

    def code(self, chances: Ints, bits: Ints | None) -> Ints:
        """Read one bit for each chance.

        Raises:
            Damaged: the data is nothing that :class:`Encoder` writes.
        """
        floats = chances.astype(np.float32) / np.float32(65536)
        try:
            read: NDArray[np.int32] = self._coder.decode(_BERNOULLI(perfect=False), floats)
        except AssertionError as error:  # what constriction says of words that no coder writes
            raise Damaged("its coded bits are none that a writer writes") from error
        return self._again.code(chances, read.astype(np.int64))

    def exhausted(self) -> bool:
        """Whether the data is, to the last word, what is written for the bits that were read."""
        return self._again.data() == self._data


class Meter:
    """Adds up what the bits that pass to or from a coder cost.

    Attributes:
        bits: the information of all bits so far: the sum of -log2 of their chances.
    """

    def __init__(self, coder: BitCoder) -> None:
        self._coder = coder
        self.bits = 0.0

    def code(self, chances: Ints, bits: Ints | None) -> Ints:
        """Code one bit for each chance by the coder."""
        bits = self._coder.code(chances, bits)
        self.bits -= float(np.log2(np.where(bits, chances, 65536 - chances) / 65536).sum())
        return bits


@cache
def logit_tables() -> tuple[Ints, Ints]:
    """Give stretch (4096,), logits of (i + 1/2) / 4096, and squash over -limit..limit."""
    context = Context(prec=24)
    stretch = np.zeros(4096, np.int64)
    for i in range(2048, 4096):
        chance = (Decimal(2 * i + 1), Decimal(8191 - 2 * i))
        logit = context.ln(context.divide(*chance))
        stretch[i] = int(context.multiply(logit, Decimal(256)).to_integral_value())
        stretch[4095 - i] = -stretch[i]
    squash = np.zeros(2 * _LOGIT_LIMIT + 1, np.int64)
    for x in range(_LOGIT_LIMIT + 1):
        odds = context.exp(context.divide(Decimal(-x), Decimal(256)))
        chance_of_one = context.divide(Decimal(65536), context.add(Decimal(1), odds))
        squash[_LOGIT_LIMIT + x] = min(int(chance_of_one.to_integral_value()), 65535)
        squash[_LOGIT_LIMIT - x] = 65536 - squash[_LOGIT_LIMIT + x]
    return stretch, squash


@cache
def _buckets() -> Ints:
    """Give the bucket of a count up to 4096: its number of binary digits."""
    return np.array([min(n.bit_length(), _COUNT_BUCKETS - 1) for n in range(4097)], np.int64)


class Mixer:
    """Predicts bits from several contexts and learns from what came.

    Args:
        sizes: number of contexts of each input; an input's contexts are ``0 .. size - 1``.
        weights: a mixer whose weights to start from (it keeps them), of as many inputs.
    """

    def __init__(self, sizes: Sequence[int], weights: Mixer | None = None) -> None:
        self._seen = [np.zeros((size, 2), np.int64) for size in sizes]
        first = _WEIGHT_ONE * 3 // (2 * (len(sizes) + 1))
        if weights is None:
            self._weights = np.full((len(sizes), _COUNT_BUCKETS), first, np.int64)
            self._curvature = np.zeros((len(sizes), _COUNT_BUCKETS), np.int64)
        else:
            # The same arrays, so that layers teach one another.
            self._weights, self._curvature = weights._weights, weights._curvature

    def code(self, coder: BitCoder, contexts: Sequence[Ints], bits: Ints | None) -> Ints:
        """Code one block: ``bits`` (n,), or None to read them; ``contexts[i]`` is (n,)."""
        stretch, squash = logit_tables()
        count_bucket = _buckets()
        logits, buckets = [], []
        for seen, context in zip(self._seen, contexts, strict=True):
            zeros_ones = seen[context]
            ones = zeros_ones[:, 1]
            total = zeros_ones[:, 0] + ones
            logits.append(stretch[(2 * ones + 1) * 2048 // (total + 1)])
            buckets.append(count_bucket[np.minimum(total, 4096)])
        total_logit = np.zeros(contexts[0].size, np.int64)
        for i, (logit, bucket) in enumerate(zip(logits, buckets, strict=True)):
            total_logit += self._weights[i][bucket] * logit
        total_logit = np.clip(total_logit >> 16, -_LOGIT_LIMIT, _LOGIT_LIMIT)
        chances = squash[total_logit + _LOGIT_LIMIT]
        bits = coder.code(chances, bits)
        self._learn(contexts, logits, buckets, chances, bits)
        return bits

    def _learn(
        self,
        contexts: Sequence[Ints],
        logits: Sequence[Ints],
        buckets: Sequence[Ints],
        chances: Ints,
        bits: Ints,
    ) -> None:
        wrong = (bits << 12) - (chances >> 4)
        spread = (chances * (65536 - chances)) >> 20
        inputs = len(logits)
        for i, (logit, bucket) in enumerate(zip(logits, buckets, strict=True)):
            gradient = np.zeros(_COUNT_BUCKETS, np.int64)
            np.add.at(gradient, bucket, wrong * logit)
            np.add.at(self._curvature[i], bucket, spread * logit * logit)
            # Newton: gradient / curvature; an input for each of the others' share, and a floor
            # that stands for the trust in the first weight.
            step = (gradient << 12) // (((inputs * self._curvature[i]) >> 12) + (1 << 19))
            self._weights[i] = np.clip(self._weights[i] + step, -2 * _WEIGHT_ONE, 4 * _WEIGHT_ONE)
            np.minimum(self._curvature[i], 1 << 50, out=self._curvature[i])
        for seen, context in zip(self._seen, contexts, strict=True):
            np.add.at(seen, (context, bits), 1)
            full = seen.max(initial=0) >= _COUNT_LIMIT if seen.size < 4096 else False
            if full:
                seen >>= 1


def blocks(count: int, first: int, largest: int) -> list[tuple[int, int]]:
    """Cut ``count`` items into blocks of a sixteenth of what came before, within two bounds.

    >>> blocks(100, 16, 4096)[:3]
    [(0, 16), (16, 32), (32, 48)]
    """
    cut, start = [], 0
    while start < count:
        stop = min(count, start + min(max(first, start // 16), largest))
        cut.append((start, stop))
        start = stop
    return cut
