"""Int8 convolutions and products for Cortex-M with the DSP extension, layer by layer.

One function computes a layer whole: it lays out a tile of pixels in the order in which the product
loads them, for all output channels together. :class:`~tvm_compress.targets.mcu.dsp.product.Product`
takes them widened to 16 bits, :class:`~tvm_compress.targets.mcu.dsp.sparse.SparseProduct`, of
weights with many zeros, two in a word. Where windows overlap, padded rows are widened (or copied)
into a ring first, and the tile gathers its windows out of it: no tensor of windows is ever made.
Rows and columns outside the image hold the input's zero point.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import product as pairs_of
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.targets.mcu.dsp.assembler import Assembler, AssemblyFunction
from tvm_compress.targets.mcu.dsp.coded import WeightCode, count_bytes
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.narrow import NARROW, NarrowProduct
from tvm_compress.targets.mcu.dsp.product import Product
from tvm_compress.targets.mcu.dsp.residual import Addition
from tvm_compress.targets.mcu.dsp.sparse import SPARSE_LAYOUTS, SparseProduct

__all__ = ["BYTE_COST", "SCARCE", "Convolution"]

Array = NDArray[Any]
AnyProduct = Product | SparseProduct

# Steps of the inner product in one round of its loop.
_UNROLLS = (16, 48, 96)
# Entries of the sparse one.
_SPARSE_UNROLLS = (4, 8, 16)
# Branches of a loop this short take more cycles than instructions: for scarce flash alone.
_SHORT_UNROLL, SCARCE = 4, 64.0
# Instructions of an inference that a byte of flash is worth, where nothing else is said.
BYTE_COST = 16.0
# The largest immediate offset of a byte store.
_REACH = 4095
# Of the ring: each has its address in the frame and its own code.
_MOST_ROWS = 255


class Convolution:
    """The kernel of one layer; see the module's docstring.

    Args:
        layer: what to compute.
        residual: a tensor of the output's shape that is added.
        byte_cost: instructions of an inference that a byte of flash is worth.
        coded: whether weights are decoded while they are multiplied.
        layout, pixels, unroll: of the :class:`~tvm_compress.targets.mcu.dsp.product.Product` or
            the :class:`~tvm_compress.targets.mcu.dsp.sparse.SparseProduct`; what is not given is
            chosen by cost.
    """

    def __init__(
        self,
        layer: IntegerLayer,
        residual: Addition | None = None,
        byte_cost: float = BYTE_COST,
        *,
        coded: bool = False,
        layout: str | None = None,
        pixels: int | None = None,
        unroll: int | None = None,
    ) -> None:
        self.residual = residual
        self.layer, self.g = layer, layer.geometry
        g = self.g
        # A window of one pixel needs no ring; without a stride its pixels form one row.
        self.direct = g.kernel == (1, 1)
        if g.pointwise:
            self.g = g = g.flattened()
        # A row of a window lies in one piece, or where it is dilated in one for each column.
        self.pieces = g.kernel[1] if g.dilation[1] > 1 else 1
        self.segment = g.kernel[1] // self.pieces * g.inputs
        self.segment_words = -(-self.segment // 4) * 2
        if layout is None or pixels is None or unroll is None:
            choice = self._cheapest(byte_cost, coded, layout, pixels, unroll)
            layout, pixels, unroll = choice
        form: type[AnyProduct] = SparseProduct if layout in SPARSE_LAYOUTS else Product
        # In the rows of the ring inputs lie as in the buffer.
        self.swapped, self.value_bytes = form.swaps(layer), form.value_bytes
        self.product: AnyProduct
        if layout in SPARSE_LAYOUTS:
            self.product = SparseProduct(layer, self.order(), pixels, layout, unroll)
        elif layout == NARROW:
            self.product = NarrowProduct(layer, self.order(), pixels, unroll)
        else:
            self.product = Product(layer, self.order(), pixels, layout, unroll, coded)
        self.code: WeightCode | None = None  # where weights are coded: its own, until it shares one
        if coded:
            self.code = WeightCode.of(self.counts)
        self.out = Assembler()

    @property
    def layout(self) -> str:
        """How the weights lie in the stream."""
        return f"coded_{self.product.layout}" if self.product.coded else self.product.layout

    # -- what it needs ----------------------------------------------------------------------------

    @staticmethod
    def refuses(layer: IntegerLayer) -> str | None:
        """Say why the layer cannot be computed this way, or None."""
        g = layer.geometry
        if (why := layer.not_dense) is not None:
            return why
        if g.outputs * 3 > _REACH:
            return "it has too many output channels"
        if g.kernel != (1, 1) and g.strides[0] > min(g.kernel[0], 8):
            return "its stride is larger than its window"
        if layer.too_large:
            return "its sums are too large"
        if (g.kernel[0] - 1) * g.dilation[0] + 1 > _MOST_ROWS:
            return "its windows are too high"
        row = (g.in_size[1] + g.padding[1] + g.kernel[1] * g.dilation[1] * 2) * g.inputs * 2
        if g.kernel != (1, 1) and row * g.kernel[0] * g.dilation[0] > 1 << 20:
            return "its rows are too long"
        return layer.requantize.refuses()

    def _cheapest(
        self,
        byte_cost: float,
        coded: bool,
        layout: str | None,
        pixels: int | None,
        unroll: int | None,
    ) -> tuple[str, int, int]:
        """Choose the form of the product by the instructions and the flash of the whole layer."""
        forms = Product.forms(self.layer)
        unrolls: tuple[int, ...] = _UNROLLS
        if coded:
            forms = [form for form in forms if form[0] in ("paired", "offset", "wide")]
            unrolls = _UNROLLS[:1]
        elif byte_cost >= SCARCE:
            unrolls = (_SHORT_UNROLL, *_UNROLLS)
        ways = [(forms, unrolls)]
        if not coded:
            ways.append((NarrowProduct.forms(self.layer), unrolls))
            ways.append((SparseProduct.forms(self.layer), _SPARSE_UNROLLS))
        costs: list[tuple[float, int, tuple[str, int, int]]] = []
        for forms, unrolls in ways:
            for chosen, count in forms:
                if count > self.g.out_size[1] or layout not in (None, chosen):
                    continue
                if pixels not in (None, count):
                    continue
                tried = unrolls if unroll is None else (unroll,)
                form = {"layout": chosen, "pixels": count, "unroll": tried[0]}
                kernel = Convolution(self.layer, self.residual, coded=coded, **form)  # type: ignore[arg-type]
                for steps in tried:
                    kernel.product.unroll = steps
                    costs.append((kernel.cost(byte_cost), len(costs), (chosen, count, steps)))
        return min(costs)[-1]

    def cost(self, byte_cost: float) -> float:
        """Give the instructions of an inference, and those that the flash is worth."""
        function = self.function()
        flash = function.code_bytes + 4 * self.product.words
        if self.code is not None:
            flash += self.code.size_bytes(self.counts) + self.code.table.nbytes
        return function.instructions + byte_cost * flash

    # -- memory -----------------------------------------------------------------------------------

    @property
    def row_values(self) -> int:
        """Values of one row of the ring, the last window's over-reading included."""
        g = self.g
        last = (g.out_size[1] - 1) * g.strides[1] + (self.pieces - 1) * g.dilation[1]
        last = last * g.inputs + self.segment_words * 2
        own = (g.padding[1] + g.in_size[1]) * g.inputs
        return -(-max(last, own) * self.value_bytes // 8) * 8 // self.value_bytes

    @property
    def ring_rows(self) -> int:
        """Rows of the input that are widened at a time."""
        return (self.g.kernel[0] - 1) * self.g.dilation[0] + 1

    @property
    def ring_bytes(self) -> int:
        """Bytes of the ring."""
        return 0 if self.direct else self.ring_rows * self.row_values * self.value_bytes

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch: the ring, the pixels of a tile, and what a residual needs."""
        return self._sum_place + (
            self.residual.scratch_bytes(self._sum_bytes) if self.residual else 0
        )

    @property
    def _sum_place(self) -> int:
        return -(-(self.ring_bytes + self.product.pixels_bytes) // 8) * 8

    @property
    def _sum_bytes(self) -> int:
        return self.product.pixels * self.g.outputs

    @property
    def _tiles(self) -> list[tuple[int, AnyProduct]]:
        """The tiles of a row of the output: how many, and their product."""
        whole, rest = divmod(self.g.out_size[1], self.product.pixels)
        return [(whole, self.product), *([(1, self.product.rest(rest))] if rest else [])]

    @property
    def distance(self) -> int:
        """How many bytes before the input the output must begin at least, to lie over it.

        Inputs are widened before outputs are stored that take their place: of a tile, or of the
        rows of a window.
        """
        g = self.g
        rows, columns = np.arange(g.out_size[0]), np.arange(g.out_size[1])
        if self.direct:
            starts = np.asarray([i for i in columns if i % self.product.pixels == 0])
            written = (rows[:, None] * g.out_size[1] + starts) * g.outputs
            if not self.product.buffered:  # the input is read while outputs are stored
                written += g.outputs
            place = rows[:, None] * g.strides[0] * g.in_size[1] + starts * g.strides[1]
            return int((written - place * g.inputs).max())
        fresh = rows * g.strides[0] - g.padding[0] + self.ring_rows - g.strides[0]
        inside = fresh < g.in_size[0]
        written = rows * g.out_size[1] * g.outputs
        place = np.maximum(fresh, 0) * g.in_size[1] * g.inputs
        return int((written - place)[inside].max(initial=0))

    def order(self) -> list[int]:
        """Give the column of each halfword of a tile's pixel, -1 where there is none."""
        g = self.g
        place = np.arange(self.segment_words * 2)
        if self.swapped:  # a word holds the inputs 0 and 2, the next one 1 and 3
            place = place // 4 * 4 + np.asarray([0, 2, 1, 3])[place % 4]
        kw, channel = np.divmod(place, g.inputs)
        rows = [
            np.where(
                place < self.segment, (channel * g.kernel[0] + kh) * g.kernel[1] + first + kw, -1
            )
            for kh, first in pairs_of(range(g.kernel[0]), range(self.pieces))
        ]
        return [int(column) for column in np.concatenate(rows)]

    def stream(self) -> Array:
        """Give the words that the function reads, uint32: one after the other, then the codes."""
        if self.code is None:
            return self.product.stream
        assert isinstance(self.product, Product)
        codes = self.code.encode(self.product.coded_halfwords)
        return np.concatenate([self.product.stream, codes])

    @cached_property
    def counts(self) -> Array:
        """How often each byte is coded, int64 (256,)."""
        assert isinstance(self.product, Product)
        return count_bytes(self.product.coded_halfwords)

    @property
    def tables(self) -> list[Array]:
        """What else the function reads: the table of the code, if there is one."""
        return [] if self.code is None else [self.code.table]

    # -- code -------------------------------------------------------------------------------------

    def function(self) -> AssemblyFunction:
        """Write ``void f(const int8_t *x, const uint32_t *stream, int8_t *y, void *scratch)``.

        With a residual its address comes behind that of ``x``, with coded weights that of the
        code's table behind ``stream``.
        """
        out = self.out = Assembler()
        self._frame: dict[str, int] = {}
        for name in (
            *(f"table{i}" for i in range(self.product.frame_words)),
            *("x", "stream", "ring", "tile", "tile_end", "rest_end"),
            *("end", "out", "part", "count", "tiles", "rows", "column"),
            *("shared", "shared1", "shared2", "y", "residual", "tables", "table"),
        ):
            self._frame[name] = 4 * len(self._frame)
        if self.product.coded:
            for name in ("codes", "code", "position"):  # struct weight_decoder
                self._frame[name] = 4 * len(self._frame)
        first_row = 4 * len(self._frame)
        rows = 0 if self.direct else self.ring_rows
        self._frame["decoded"] = first_row + 4 * rows
        size = -(-(self._frame["decoded"] + self.product.decoded_bytes) // 8) * 8
        self._first_row = first_row
        out.op("push {r4-r11, lr}", f"sub sp, sp, #{size + 4}")
        parameters = ["stream", "y", "scratch"]
        if self.product.coded:
            parameters.insert(1, "code")
        parameters = ["x", *(["residual"] if self.residual else []), *parameters]
        slots = {"y": "y" if self.residual else "out", "scratch": "ring"}
        for i, name in enumerate(parameters):
            register = f"r{min(i, 3)}"
            if i > 3:  # it lies behind what was saved
                out.op(f"ldr {register}, [sp, #{size + 4 + 36 + 4 * (i - 4)}]")
            self._save(register, slots.get(name, name))
        # The scratch's address is in r3 now.
        if self.residual:
            out.add("r4", "r3", self._sum_place, "r5")
            self._save("r4", "out")
        stream = f"r{parameters.index('stream')}"
        if self.product.table_words:
            self._save(stream, "table")
            out.add(stream, stream, 4 * self.product.table_words)
            self._save(stream, "stream")
        out.add("r4", "r3", self.ring_bytes, "r5")
        self._save("r4", "tile")
        for _, product in self._tiles:
            out.add("r6", "r4", product.pixels_bytes, "r5")
            self._save("r6", product.end)
        if self.product.tells_end:
            out.op(f"ldr r4, [{stream}], #4", f"add r4, r4, {stream}")
            self._save(stream, "stream")
        else:
            out.add("r4", stream, self.product.whole_words * 4, "r5")
        self._save("r4", "end")
        if self.product.coded:
            out.add("r4", stream, self.product.words * 4, "r5")
            self._save("r4", "codes")
        self.product.prepare(out, self._frame)
        if self.residual:
            self.residual.prepare(out, self._frame, self._sum_bytes)
        if self.direct:
            self._direct_layer()
        else:
            self._ring_layer()
        out.op(f"add sp, sp, #{size + 4}", "pop {r4-r11, pc}")
        constants = ("x", "residual", "stream", "code")
        function = out.function(
            [f"{'const ' if name in constants else ''}void *{name}" for name in parameters]
        )
        if self.residual:
            return replace(function, in_place=(1,))
        return replace(function, distances=((0, max(0, self.distance)),))

    def _save(self, register: str, slot: str) -> None:
        self.out.op(f"str {register}, [sp, #{self._frame[slot]}]")

    def _load(self, register: str, slot: str) -> None:
        self.out.op(f"ldr {register}, [sp, #{self._frame[slot]}]")

    # -- pixels: straight from the input ----------------------------------------------------------

    def _direct_layer(self) -> None:
        g = self.g
        with self.out.counted_on_stack(self._frame["rows"], "r0", g.out_size[0]):
            for count, product in self._tiles:
                with self.out.counted_on_stack(self._frame["count"], "r0", count):
                    self._widen_tile(product)
                    self._finish_tile(product, "x", g.strides[1] * g.inputs)
            if g.out_size[0] > 1:
                row = g.strides[0] * g.in_size[1] - g.strides[1] * g.out_size[1]
                self._load("r0", "x")
                self.out.add("r0", "r0", row * g.inputs, "r1")
                self._save("r0", "x")

    def _finish_tile(self, product: AnyProduct, source: str, step: int) -> None:
        """Multiply, add the residual, and go on to the next tile of the source and the output."""
        product.emit(self.out, self._frame)
        slots = [(source, step)]
        if self.residual:
            self.residual.merge(self.out, self._frame, product.pixels * self.g.outputs)
            slots += [("residual", self.g.outputs), ("y", self.g.outputs)]
        else:
            slots.append(("out", self.g.outputs))
        for slot, size in slots:
            self._load("r0", slot)
            self.out.add("r0", "r0", product.pixels * size, "r1")
            self._save("r0", slot)

    def _widen_tile(self, product: AnyProduct) -> None:
        if product.buffered:
            self._load("r0", "x")
            self._load("r12", "tile")
            product.widen(self.out, self.g.strides[1] * self.g.inputs)

    # -- pixels: through the ring -----------------------------------------------------------------

    def _ring_layer(self) -> None:
        """Row after row of the output; new rows of the input are widened into the ring."""
        g, out = self.g, self.out
        rows = self.ring_rows
        self._load("r0", "ring")
        for i in range(rows):
            out.op(f"str r0, [sp, #{self._first_row + 4 * i}]")
            if i < rows - 1:
                out.add("r0", "r0", self.row_values * self.value_bytes, "r1")
        self._fill_ring()
        # The first rows, but for those that a step brings.
        fresh = g.strides[0]
        out.move("r0", -g.padding[0])
        self._save("r0", "rows")
        for i in range(rows - fresh):
            self._widen_row(self._first_row + 4 * i)
        with out.counted_on_stack(self._frame["count"], "r0", g.out_size[0]):
            for i in range(rows - fresh, rows):
                self._widen_row(self._first_row + 4 * i)
            self._row_of_tiles()
            self._rotate(fresh)

    def _fill_ring(self) -> None:
        """Fill the ring with the padding's value: left and right borders keep it."""
        out = self.out
        if self.g.padding[1] == 0 and self.row_values == self.g.in_size[1] * self.g.inputs:
            return
        self._load("r0", "ring")
        out.move("r2", self._zeros)
        out.op("mov r3, r2")
        with out.counted("r1", self.ring_bytes // 8):
            out.op("strd r2, r3, [r0], #8")

    @property
    def _zeros(self) -> int:
        """A word of the padding's value."""
        zero = self.layer.zero
        return (zero & 0xFF) * 0x01010101 if self.value_bytes == 1 else (zero & 0xFFFF) * 0x00010001

    def _widen_row(self, slot: int) -> None:
        """Widen the input's next row into the row whose address is in a slot, or fill it."""
        g, out = self.g, self.out
        values = g.in_size[1] * g.inputs
        outside, done = out.label(), out.label()
        out.op(f"ldr r1, [sp, #{slot}]")
        out.add("r1", "r1", g.padding[1] * g.inputs * self.value_bytes, "r2")
        self._load("r2", "rows")
        out.op("add r3, r2, #1")
        self._save("r3", "rows")
        padded = g.padding[0] > 0 or self._last_row >= g.in_size[0]
        if padded:
            out.move("r3", g.in_size[0])
            out.op("cmp r2, r3", f"bhs {outside}")  # unsigned: rows above the image too
        self._load("r0", "x")
        # Sixteen inputs a round.
        rounds, rest = divmod(values, 16)
        if rounds:
            with out.counted("lr", rounds):
                self._widen_row_values(16)
        if rest:
            self._widen_row_values(rest)
        self._save("r0", "x")
        if padded:
            out.op(f"b {done}")
            out.place(outside)
            self._outside_row(values)
            out.place(done)

    @property
    def _last_row(self) -> int:
        g = self.g
        return (g.out_size[0] - 1) * g.strides[0] - g.padding[0] + self.ring_rows - 1

    def _widen_row_values(self, count: int) -> None:
        """Widen ``count`` bytes from r0 to r1, both advanced; or copy them."""
        out = self.out
        if self.value_bytes == 1:
            for i in range(count // 4):
                out.op(f"ldr r{2 + i}, [r0], #4")
            for i in range(count // 4):
                out.op(f"str r{2 + i}, [r1], #4")
            for _ in range(count % 4):
                out.op("ldrb r2, [r0], #1", "strb r2, [r1], #1")
            return
        for _ in range(count // 8):
            out.op("ldr r2, [r0], #4", "ldr r3, [r0], #4")
            if self.swapped:
                out.op("sxtb16 r4, r2", "sxtb16 r5, r2, ror #8")
                out.op("sxtb16 r6, r3", "sxtb16 r7, r3, ror #8")
            else:
                for raw, a, b in (("r2", "r4", "r5"), ("r3", "r6", "r7")):
                    out.op(f"sxtb16 {a}, {raw}", f"sxtb16 {raw}, {raw}, ror #8")
                    out.op(f"pkhtb {b}, {raw}, {a}, asr #16", f"pkhbt {a}, {a}, {raw}, lsl #16")
            self._store_four()
        for _ in range(count % 8 // 4 if self.swapped else 0):
            out.op("ldr r2, [r0], #4", "sxtb16 r4, r2", "sxtb16 r5, r2, ror #8")
            out.op("str r4, [r1], #4", "str r5, [r1], #4")
        for _ in range(0 if self.swapped else count % 8):
            out.op("ldrsb r2, [r0], #1", "strh r2, [r1], #2")

    def _store_four(self) -> None:
        # A multiple store needs an aligned address, which an odd number of channels does not give.
        if self.g.padding[1] * self.g.inputs % 2 == 0:
            self.out.op("stm r1!, {r4-r7}")
        else:
            self.out.op(*(f"str r{4 + i}, [r1], #4" for i in range(4)))

    def _outside_row(self, values: int) -> None:
        """A row above or below the image."""
        out = self.out
        out.move("r2", self._zeros)
        words, rest = divmod(values, 4 // self.value_bytes)
        # Not counted: the model counts every row as one of the image.
        before = out.instructions
        if words:
            with out.counted("lr", words):
                out.op("str r2, [r1], #4")
        for _ in range(rest):
            out.op("strb r2, [r1], #1" if self.value_bytes == 1 else "strh r2, [r1], #2")
        out.instructions = before

    def _rotate(self, fresh: int) -> None:
        """Give the rows that fell out of the window to the next ones."""
        rows, out = self.ring_rows, self.out
        if fresh >= rows:
            return
        place = [self._first_row + 4 * i for i in range(rows)]
        for i in range(min(fresh, 8)):
            out.op(f"ldr r{4 + i}, [sp, #{place[i]}]")
        for i in range(rows - fresh):
            out.op(f"ldr r0, [sp, #{place[i + fresh]}]", f"str r0, [sp, #{place[i]}]")
        for i in range(fresh):
            out.op(f"str r{4 + i}, [sp, #{place[rows - fresh + i]}]")

    def _row_of_tiles(self) -> None:
        g, out = self.g, self.out
        out.op("mov r0, #0")
        self._save("r0", "column")
        for count, product in self._tiles:
            with out.counted_on_stack(self._frame["tiles"], "r0", count):
                self._gather(product)
                self._finish_tile(product, "column", g.strides[1] * g.inputs * self.value_bytes)

    def _gather(self, product: AnyProduct) -> None:
        """Copy the windows of a tile out of the ring, as the product loads them."""
        g, out = self.g, self.out
        step = g.strides[1] * g.inputs * self.value_bytes
        self._load("lr", "column")
        self._load("r12", "tile")
        apart = g.dilation[1] * g.inputs * self.value_bytes if self.pieces > 1 else 0
        aligned = step % 4 == apart % 4 == 0
        for kh, piece in pairs_of(range(g.kernel[0]), range(self.pieces)):
            out.op(f"ldr r0, [sp, #{self._first_row + 4 * kh * g.dilation[0]}]")
            out.op("add r0, r0, lr")
            out.add("r0", "r0", piece * apart, "r3")
            product.gather(out, step, self.segment_words // 2, aligned)
