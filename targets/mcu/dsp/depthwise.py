"""Dense int8 depthwise convolution for the DSP extension.

With the channels last, neighbours of one channel lie far apart, and SMLAD wants them in one word.
So four channels at a time are widened and transposed into planes with padding around them (1.9
instructions a value, once), and each plane is convolved with its weights in registers, two outputs
at a time: for three rows three double loads and twelve multiplications, six of them double. Windows
that are not three columns wide and at most three rows high read their weights from the stream, for
every two outputs again.

Tall maps are cut into strips, so that the planes stay small; the rows that two strips share are
moved. An input is read before any output takes its place: the layer may run in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import Assembler, AssemblyFunction
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer

__all__ = ["Depthwise"]

Array = NDArray[Any]

_GROUP = 4
# Pairs of outputs in one round of the loop over a row.
_UNROLL = 4
# Registers of words of a plane, and of weights that do not stay in registers.
_READ = ("r2", "r3", "r9")
_STREAMED = ("r4", "r5", "r6", "r7")


@dataclass(frozen=True)
class _Step:
    """What is done with one word of a row: two inputs.

    Attributes:
        words: of weights, each the columns of two of them, -1 for a 0.
        uses: (output, multiplication, which of the words).
    """

    words: tuple[tuple[int, int], ...]
    uses: tuple[tuple[int, str, int], ...]


class Depthwise:
    """The kernel of one layer; see the module's docstring.

    Args:
        layer: what to compute.
        plane_bytes: the most that the planes may take, unless one strip of one row takes more.
        unroll: pairs of outputs in one round of the loop over a row.
    """

    def __init__(self, layer: IntegerLayer, plane_bytes: int = 4096, unroll: int = _UNROLL) -> None:
        self.layer, self.g = layer, layer.geometry
        self._most_unrolled = unroll
        g = self.g
        self.step = g.strides[1]
        self.multiple = g.outputs // g.groups  # outputs of a channel
        # Whether the weights of a window are too many for the registers, or of another form.
        self.streamed = g.kernel[1] != 3 or g.kernel[0] > 3
        self.rows_kept = max(0, g.kernel[0] - g.strides[0])
        height = g.out_size[0]
        strips = next(
            s
            for s in range(1, height + 1)
            if s == height or self._plane_bytes(-(-height // s)) * self._group <= plane_bytes
        )
        self.strip_rows = -(-height // strips)
        self.strips = -(-height // self.strip_rows)
        self.out = Assembler()

    layout = "wide"

    @property
    def _group(self) -> int:
        return min(_GROUP, self.g.groups)

    @staticmethod
    def refuses(layer: IntegerLayer) -> str | None:
        """Say why the layer cannot be computed this way, or None."""
        g = layer.geometry
        if g.batch != 1:
            return "the batch is not 1"
        if g.inputs != 1 or g.groups == 1:
            return "it is not depthwise"
        if g.rank == 0 or not g.channels_last:
            return "its channels come first"
        if g.dilation != (1, 1) or g.strides[1] not in (1, 2) or g.strides[0] > g.kernel[0]:
            return "its strides or dilation are out of the ordinary"
        if g.outputs > 2047:
            return "it has too many channels"
        kernel = Depthwise(layer)
        if kernel.pitch * (g.kernel[0] - 1) + 4 * (kernel._read_words - kernel.step + 1) > 1020:
            return "its rows are too long"
        if kernel._plane_bytes(kernel.strip_rows) * (_GROUP - 1) > 4000:
            return "its planes are too large"
        if layer.too_large:
            return "its sums are too large"
        return layer.requantize.refuses()

    # -- memory -----------------------------------------------------------------------------------

    @property
    def pitch(self) -> int:
        """Bytes of a row of a plane, a multiple of 4; pairs read a few values further."""
        g = self.g
        pairs = -(-g.out_size[1] // 2)
        read = (pairs * 2 - 1) * self.step + 4
        if self.streamed:
            read = (pairs - 1) * 2 * self.step + 2 * self._read_words
        own = g.padding[1] + g.in_size[1]
        return -(-max(read, own) // 2) * 4

    def _plane_rows(self, strip_rows: int) -> int:
        return (strip_rows - 1) * self.g.strides[0] + self.g.kernel[0]

    def _plane_bytes(self, strip_rows: int) -> int:
        return self._plane_rows(strip_rows) * self.pitch

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch: the planes of a group of channels."""
        return self._plane_bytes(self.strip_rows) * self._group

    def stream(self) -> Array:
        """Give the words of each output channel: weights, bias, constants; uint32."""
        layer, g = self.layer, self.g
        constants = layer.requantize
        words: list[int] = []
        w = layer.weights.reshape(g.outputs, *g.kernel).astype(np.int64)

        def word(low: int, high: int) -> int:
            return int(low) & 0xFFFF | (int(high) & 0xFFFF) << 16

        for channel in range(g.outputs):
            rows = w[channel]
            if self.streamed:
                # One 0 more, for what lies on either side of a window.
                taps = np.pad(rows, ((0, 0), (0, 1)))
                words += [
                    word(r[a], r[b]) for r in taps for step in self._steps for a, b in step.words
                ]
            else:
                words += self._in_registers(rows, word)
            multiplier, addend, *shift = constants.words(channel)
            words.append(int(layer.bias[channel]))
            words.append((shift[0] if shift else 0) + ((self._rounds - 1) << 8))
            words += [multiplier, addend]
        return np.asarray([w & 0xFFFFFFFF for w in words], np.uint32)

    def _in_registers(self, rows: Array, word: Callable[[int, int], int]) -> list[int]:
        """Give the words of weights that stay in registers."""
        words = [word(r[0], r[1]) for r in rows]
        if self.step == 1:
            return words + [word(r[1], r[2]) for r in rows]
        last = [r[2] for r in rows] + [0]
        return words + [word(last[i], last[i + 1]) for i in range(0, len(rows), 2)]

    @property
    def _pairs(self) -> int:
        return self.g.out_size[1] // 2

    @property
    def _unroll(self) -> int:
        """Pairs in a round: as many as divide a row, or a rest is written behind the loop."""
        return 1 if self.streamed else max(1, min(self._most_unrolled, self._pairs))

    @property
    def _rounds(self) -> int:
        return max(1, self._pairs // self._unroll)

    # -- code -------------------------------------------------------------------------------------

    def function(self) -> AssemblyFunction:
        """Write ``void f(const int8_t *x, const uint32_t *stream, int8_t *y, void *scratch)``."""
        out, g = self.out, self.g
        names = [
            *("constants", "addend", "x", "y", "stream", "planes", "count", "rows", "channel"),
            *("row", "group", "from", "plane", "to", "strip", "place", "loop"),
        ]
        self._frame = {name: 4 * i for i, name in enumerate(names)}
        # What transposes rows is not needed while they are convolved.
        self._frame |= {"multiple": self._frame["rows"], "weights": self._frame["place"]}
        size = 4 * len(names)
        out.op("push {r4-r11, lr}", f"sub sp, sp, #{size + 4}")
        for register, name in (("r0", "x"), ("r1", "stream"), ("r2", "y"), ("r3", "planes")):
            self._save(register, name)
        groups, rest = divmod(g.groups, _GROUP)
        if groups:
            self._fill_planes(_GROUP)
            with out.counted_on_stack(self._frame["group"], "r0", groups):
                self._channels(_GROUP)
                for name, outputs in (("x", 1), ("y", self.multiple)):
                    self._load("r0", name)
                    out.add("r0", "r0", _GROUP * outputs, "r1")
                    self._save("r0", name)
        if rest:
            self._fill_planes(rest)
            self._channels(rest)
        out.op(f"add sp, sp, #{size + 4}", "pop {r4-r11, pc}")
        parameters = ["const void *x", "const void *stream", "void *y", "void *scratch"]
        return replace(out.function(parameters), in_place=(0,) if self._reads_ahead else ())

    @property
    def _reads_ahead(self) -> bool:
        """Whether the outputs of a strip take no place of inputs that a later one reads."""
        g = self.g
        if self.multiple > 1:
            return False
        for strip in range(1, self.strips):
            rows = strip * self.strip_rows
            read = rows * g.strides[0] + self.rows_kept - g.padding[0]
            if read < g.in_size[0] and rows * g.out_size[1] > max(read, 0) * g.in_size[1]:
                return False
        return True

    def _save(self, register: str, slot: str) -> None:
        self.out.op(f"str {register}, [sp, #{self._frame[slot]}]")

    def _load(self, register: str, slot: str) -> None:
        self.out.op(f"ldr {register}, [sp, #{self._frame[slot]}]")

    def _fill_planes(self, channels: int) -> None:
        """Fill the planes with the padding's value; the borders keep it."""
        out, zero = self.out, self.layer.zero & 0xFFFF
        self._load("r0", "planes")
        out.move("r2", zero | zero << 16)
        words = self._plane_bytes(self.strip_rows) * channels // 4
        rounds, rest = divmod(words, 4)
        out.op("mov r3, r2", "mov r4, r2", "mov r5, r2")
        if rounds:
            with out.counted("r1", rounds):
                out.op("stm r0!, {r2-r5}")
        out.op(*["str r2, [r0], #4"] * rest)

    def _channels(self, channels: int) -> None:
        """A group of channels, strip after strip."""
        out, g = self.out, self.g
        self._load("r0", "x")
        self._save("r0", "from")
        self._load("r0", "y")
        self._save("r0", "to")
        out.move("r0", -g.padding[0])
        self._save("r0", "row")
        self._load("r0", "stream")
        self._save("r0", "plane")  # where the stream of the group begins
        last = g.out_size[0] - (self.strips - 1) * self.strip_rows
        self._strip(channels, self.strip_rows if self.strips > 1 else last, first=True)
        if self.strips > 2:
            with out.counted_on_stack(self._frame["strip"], "r0", self.strips - 2):
                self._strip(channels, self.strip_rows, first=False)
        if self.strips > 1:
            self._strip(channels, last, first=False)

    def _strip(self, channels: int, rows: int, first: bool) -> None:
        out, g = self.out, self.g
        planes = self._plane_rows(rows)
        begin = 0
        if not first:
            self._move_kept(channels)
            begin = self.rows_kept
        elif self.strips == 1:
            # Rows above and below the image were filled with the planes and stay so.
            begin = min(g.padding[0], planes)
        end = planes
        if self.strips == 1:
            end = min(planes, g.padding[0] + g.in_size[0])
        elif first and g.padding[0]:
            # What padding a low strip does not hold comes, row by row, with the next ones.
            begin = min(g.padding[0], planes)
            self._fill_rows(channels, begin)
        self._load("r0", "planes")
        out.add("r0", "r0", begin * self.pitch, "r1")
        self._save("r0", "place")
        if first:
            out.move("r0", begin - g.padding[0])
            self._save("r0", "row")
        if end > begin:
            with out.counted_on_stack(self._frame["rows"], "r0", end - begin):
                self._transpose_row(channels, checked=self.strips > 1)
        self._convolve(channels, rows)

    def _fill_rows(self, channels: int, rows: int) -> None:
        """Fill the first rows of each plane, which the group before has used."""
        out, zero = self.out, self.layer.zero & 0xFFFF
        out.move("r2", zero | zero << 16)
        for channel in range(channels):
            self._load("r0", "planes")
            out.add("r0", "r0", channel * self._plane_bytes(self.strip_rows), "r1")
            with out.counted("r1", rows * self.pitch // 4):
                out.op("str r2, [r0], #4")

    def _move_kept(self, channels: int) -> None:
        """Move the rows that two strips share to the front of each plane."""
        out, kept = self.out, self.rows_kept
        if not kept:
            return
        moved = (self._plane_rows(self.strip_rows) - kept) * self.pitch
        for channel in range(channels):
            self._load("r0", "planes")
            out.add("r0", "r0", channel * self._plane_bytes(self.strip_rows), "r1")
            out.add("r1", "r0", moved, "r2")
            words = kept * self.pitch // 4
            rounds, rest = divmod(words, 4)
            if rounds:
                with out.counted("r2", rounds):
                    out.op("ldm r1!, {r4-r7}", "stm r0!, {r4-r7}")
            for _ in range(rest):
                out.op("ldr r4, [r1], #4", "str r4, [r0], #4")

    def _transpose_row(self, channels: int, checked: bool) -> None:
        """Widen one row of the input into the planes: r0 from, r1 to."""
        out, g = self.out, self.g
        plane = self._plane_bytes(self.strip_rows)
        self._load("r1", "place")
        out.add("r2", "r1", self.pitch, "r3")
        self._save("r2", "place")
        outside, done = out.label(), out.label()
        if checked:
            self._load("r2", "row")
            out.op("add r3, r2, #1")
            self._save("r3", "row")
            out.move("r3", g.in_size[0])
            out.op("cmp r2, r3", f"bhs {outside}")
        out.add("r1", "r1", g.padding[1] * 2, "r2")
        self._load("r0", "from")
        width, channel_step = g.in_size[1], g.groups
        single = g.padding[1] % 2  # so that pairs are stored at even places
        pairs, tail = divmod(width - single, 2) if width > single else (0, 0)
        single = min(single, width)
        if single:
            self._transpose_one(channels, plane)
        if channels == _GROUP:
            rounds, rest = divmod(pairs, 4)
            if rounds:
                with out.counted("lr", rounds):
                    for _ in range(4):
                        self._transpose_pair(plane, channel_step)
            for _ in range(rest):
                self._transpose_pair(plane, channel_step)
        elif pairs:
            with out.counted("lr", pairs * 2):
                self._transpose_one(channels, plane)
        if tail:
            self._transpose_one(channels, plane)
        self._save("r0", "from")
        if checked:
            out.op(f"b {done}")
            out.place(outside)
            before = out.instructions  # the model counts every row as one of the image
            zero = self.layer.zero & 0xFFFF
            out.move("r2", zero | zero << 16)
            with out.counted("lr", self.pitch // 4):
                for channel in range(channels):
                    out.op(f"str r2, [r1, #{channel * plane}]")
                out.op("add r1, r1, #4")
            out.instructions = before
            out.place(done)

    def _transpose_one(self, channels: int, plane: int) -> None:
        out = self.out
        for channel in range(channels):
            out.op(f"ldrsb r2, [r0, #{channel}]", f"strh r2, [r1, #{channel * plane}]")
        out.add("r0", "r0", self.g.groups, "r2")
        out.op("add r1, r1, #2")

    def _transpose_pair(self, plane: int, step: int) -> None:
        out = self.out
        out.op("ldr r2, [r0]", f"ldr r3, [r0, #{step}]")
        out.add("r0", "r0", 2 * step, "r4")
        out.op("sxtb16 r4, r2", "sxtb16 r5, r2, ror #8", "sxtb16 r6, r3", "sxtb16 r7, r3, ror #8")
        out.op("pkhbt r8, r4, r6, lsl #16", "pkhbt r9, r5, r7, lsl #16")
        out.op("pkhtb r10, r6, r4, asr #16", "pkhtb r11, r7, r5, asr #16")
        for i in range(1, 4):
            out.op(f"str r{8 + i}, [r1, #{i * plane}]")
        out.op("str r8, [r1], #4")

    # -- products ---------------------------------------------------------------------------------

    def _convolve(self, channels: int, rows: int) -> None:
        """Convolve the planes of a group; the stream is read from the group's first channel."""
        out, g = self.out, self.g
        self._load("r0", "plane")
        self._save("r0", "stream")
        self._load("r12", "planes")
        self._load("lr", "to")
        used = rows * g.strides[0] * self.pitch
        with out.counted_on_stack(self._frame["channel"], "r0", channels):
            with out.counted_on_stack(self._frame["multiple"], "r0", self.multiple):
                self._load("r0", "stream")
                self._load_channel()
                self._save("r0", "stream")
                with out.counted_on_stack(self._frame["count"], "r0", rows):
                    self._row()
                # On to the next channel of the first pixel.
                out.add("lr", "lr", 1 - rows * g.out_size[1] * g.outputs, "r0")
                if self.multiple > 1:
                    out.add("r12", "r12", -used, "r0")
            # And to the next plane.
            back = 0 if self.multiple > 1 else used
            out.add("r12", "r12", self._plane_bytes(self.strip_rows) - back, "r0")
        self._load("r0", "to")
        out.add("r0", "r0", rows * g.out_size[1] * g.outputs, "r1")
        self._save("r0", "to")

    @property
    def _weights(self) -> tuple[list[str], list[str]]:
        """Give the registers of the words (w0, w1), and of (w1, w2) or the w2 of two rows."""
        height = self.g.kernel[0]
        second = height if self.step == 1 else -(-height // 2)
        names = [f"r{4 + i}" for i in range(height + second)]
        return names[:height], names[height:]

    def _load_channel(self) -> None:
        out = self.out
        if self.streamed:
            self._save("r0", "weights")
            words = self.g.kernel[0] * sum(len(step.words) for step in self._steps)
            out.add("r0", "r0", 4 * words, "r2")
            out.op("ldm r0!, {r10, r11}")
        else:
            first, second = self._weights
            out.op(f"ldm r0!, {{{', '.join([*first, *second])}, r10, r11}}")
        out.op("ldrd r2, r3, [r0], #8", f"strd r2, r3, [sp, #{self._frame['constants']}]")
        self._save("r11", "loop")

    def _row(self) -> None:
        """One row of outputs of one channel: r12 the plane's row, lr the output."""
        out, g = self.out, self.g
        self._load("r11", "loop")
        unroll, rounds = self._unroll, self._rounds
        if self._pairs:
            with out.repeat(rounds) as start:
                for _ in range(unroll):
                    self._outputs(2)
                if rounds > 1:
                    out.op("subs r11, r11, #256", f"bpl {start}")
            for _ in range(self._pairs - rounds * unroll):
                self._outputs(2)
        if g.out_size[1] % 2:
            self._outputs(1)
        read = (self._pairs * 2 + g.out_size[1] % 2 * 2) * self.step * 2
        out.add("r12", "r12", g.strides[0] * self.pitch - read, "r0")

    def _outputs(self, count: int) -> None:
        """Two neighbouring outputs (or one), summed over all rows of the window."""
        if self.streamed:
            self._sums_of_stream(count)
        else:
            self._sums(count)
        self._finish_outputs(count)

    @property
    def _read_words(self) -> int:
        """Words of a row of a plane that two outputs read."""
        taps = self.g.kernel[1]
        return (taps + 2) // 2 if self.step == 1 else (taps + 1) // 2 + 1

    @cached_property
    def _steps(self) -> list[_Step]:
        """What is done with each word of a row, where weights are streamed.

        The first output's weights lie in words (w0, w1), (w2, w3) ... and the second's, without a
        stride, in (0, w0), (w1, w2) ...; a first or last weight alone is taken out of the other's.
        """
        taps = self.g.kernel[1]
        steps = []
        for i in range(self._read_words):
            words: list[tuple[int, int]] = []
            uses: list[tuple[int, str, int]] = []
            late = 2 * i - self.step  # the second output's first weight here
            shared = self.step == 1 and i > 0 and 2 * i + 1 == taps
            if 2 * i < taps and not shared:
                words.append((2 * i, 2 * i + 1 if 2 * i + 1 < taps else -1))
                uses.append((0, "smlad", 0))
            if i == 0 and self.step == 1:
                uses.append((1, "smlatb", 0))
            elif i > 0:
                words.append((late, late + 1 if late + 1 < taps else -1))
                if shared:
                    uses.append((0, "smlabt", len(words) - 1))
                uses.append((1, "smlad", len(words) - 1))
            steps.append(_Step(tuple(words), tuple(uses)))
        return steps

    def _sums_of_stream(self, count: int) -> None:
        """Sum with weights that are loaded, as many words at a time as registers take."""
        out = self.out
        self._load("r8", "weights")
        begun = [False, False]
        for row in range(self.g.kernel[0]):
            i = 0
            while i < len(self._steps):
                group = [self._steps[i]]
                for step in self._steps[i + 1 : i + len(_READ)]:
                    if sum(len(s.words) for s in (*group, step)) > len(_STREAMED):
                        break
                    group.append(step)
                weights = list(_STREAMED[: sum(len(s.words) for s in group)])
                if len(weights) == 1:
                    out.op(f"ldr {weights[0]}, [r8], #4")
                elif len(weights) == 2:
                    out.op(f"ldrd {weights[0]}, {weights[1]}, [r8], #8")
                else:
                    out.op(f"ldm r8!, {{{', '.join(weights)}}}")
                place = row * self.pitch + 4 * i
                if len(group) > 1:
                    out.op(f"ldrd r2, r3, [r12, #{place}]")
                if len(group) != 2:
                    last = len(group) - 1
                    out.op(f"ldr {_READ[last]}, [r12, #{place + 4 * last}]")
                for read, step in zip(_READ, group, strict=False):
                    for output, multiply, word in step.uses:
                        if output < count:
                            total = f"r{output}" if begun[output] else "r10"
                            begun[output] = True
                            out.op(f"{multiply} r{output}, {read}, {weights[word]}, {total}")
                    del weights[: len(step.words)]
                i += len(group)
        out.op(f"add r12, r12, #{4 * self.step}")

    def _sums(self, count: int) -> None:
        """Sum with the weights in registers."""
        out, g = self.out, self.g
        first, second = self._weights
        for row in reversed(range(g.kernel[0])):
            new = row == g.kernel[0] - 1
            a, b = ("r10", "r10") if new else ("r0", "r1")
            if self.step == 2 and count == 2:
                out.op(f"ldr r9, [r12, #{row * self.pitch + 8}]")
            if row:
                out.op(f"ldrd r2, r3, [r12, #{row * self.pitch}]")
            else:
                out.op(f"ldrd r2, r3, [r12], #{4 * self.step}")
            if self.step == 1:
                out.op(f"smlad r0, r2, {first[row]}, {a}", f"smlabt r0, r3, {second[row]}, r0")
                if count == 2:
                    out.op(f"smlatb r1, r2, {first[row]}, {b}", f"smlad r1, r3, {second[row]}, r1")
            else:
                half = "bt"[row % 2]
                out.op(f"smlad r0, r2, {first[row]}, {a}")
                out.op(f"smlab{half} r0, r3, {second[row // 2]}, r0")
                if count == 2:
                    out.op(f"smlad r1, r3, {first[row]}, {b}")
                    out.op(f"smlab{half} r1, r9, {second[row // 2]}, r1")

    def _finish_outputs(self, count: int) -> None:
        out, g = self.out, self.g
        out.op(f"ldrd r2, r3, [sp, #{self._frame['constants']}]")
        # A shift by a register takes its lowest byte alone; the loop's counter is above it.
        words = ["r2", "r3", "r11"][: len(self.layer.requantize.words(0))]
        for i in range(count):
            self.layer.requantize.emit(out, f"r{i}", words)
        for i in range(count):
            if g.outputs < 256:
                out.op(f"strb r{i}, [lr], #{g.outputs}")
            else:
                out.op(f"strb r{i}, [lr, #{i * g.outputs}]")
        if g.outputs >= 256:
            out.add("lr", "lr", count * g.outputs, "r2")
