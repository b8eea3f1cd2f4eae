"""``reconstruct``: prune and share weights in one shot, by a few hundred inputs without labels.

Before::

    conv_weight = const                                          # dense float32
    y = R.nn.conv2d(x, conv_weight)

After ``Reconstruct(sparsity=0.5, bits=4).on(inputs)``::

    conv_weight = tvm_compress.codebook(codes, centroids)        # half of the codes are 0
    y = R.nn.conv2d(x, conv_weight)

Layer after layer, from the front: the inputs that the layer gets behind the layers compressed
before it give its Gram matrix; the weights of least worth are pruned and the others moved so that
the outputs change least; then weights are rounded to centroids column by column, each rounding
compensated by the columns behind, and at last the centroids are fitted to the codes. Sources:
:mod:`tvm_compress.reconstruction`.

After ``Reconstruct(sparsity=0.5, bits=4, scale="channel").on(inputs)`` the centroids are of shape
(outputs, 1, 1, 1, 16): those of a channel are a scale of its own times numbers that all channels
share, which ``quantize`` makes one codebook of int8 centroids and a scale for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress import clustering, edge, ir
from tvm_compress import reconstruction as solve
from tvm_compress.errors import OptionError, PassError
from tvm_compress.ops import codebook
from tvm_compress.passes.base import InputsPass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import check_sparsity, check_weight, option_by_layer

__all__ = ["Reconstruct"]

_TURNS = 4  # of codes, centroids and the channels' scales


@dataclass(frozen=True)
class Reconstruct(InputsPass):
    """One-shot pruning and sharing that keeps each layer's outputs on given inputs.

    The options are the fields; the inputs are no option: ``Reconstruct(...).on(inputs)`` is the
    pass that runs, and :func:`tvm_compress.compress` gives its ``calibrate=`` to it.

    Args:
        sparsity: share of each layer's weights that become zero, 0..1. With 0 the zeros that there
            are stay: what an earlier pass pruned can be shared.
        bits: bits of a code, 1..8; 0 leaves the weights dense.
        small: a layer that holds less than this share of all weights, 0..1, is not pruned and has
            codes of 2 bits more (8 at most): the first and the last layer and depthwise ones, whose
            weights are few and matter most.
        damping: added to the diagonal of a layer's Gram matrix, as a share of its mean, above 0;
            more of it trusts the inputs less.
        block: input channels of the blocks that are pruned whole, at one place of the window.
        outputs: output channels of a block. The kernels of microcontrollers with the DSP extension
            skip blocks of 4 inputs of 2 outputs, and of 4 in a product with one vector.
        scale: ``tensor`` gives all weights of a layer the same centroids; ``channel`` scales them
            for each output channel, in steps that are exact in int8.
        layers: sparsity by pattern of the weight's name, in place of what follows from the other
            options; the first pattern that fits counts.
        layer_bits: bits by pattern of the weight's name, likewise.

    Raises:
        OptionError: an option outside its range, or a pattern that fits no weight.
        PassError: there are no inputs; a weight is shared already, is not float32 or is not finite.
    """

    name: ClassVar[str] = "reconstruct"
    needs_inputs: ClassVar[bool] = True

    sparsity: float = 0.5
    bits: int = 4
    small: float = 0.04
    damping: float = 0.1
    block: int = 1
    outputs: int = 1
    scale: Literal["tensor", "channel"] = "tensor"
    layers: Mapping[str, float] = field(default_factory=dict)
    layer_bits: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options."""
        check_sparsity(self.name, self.sparsity, *self.layers.values())
        if not 0.0 <= self.small <= 1.0:
            raise OptionError(f"reconstruct: small is {self.small}; expected a number from 0 to 1.")
        for bits in (self.bits, *self.layer_bits.values()):
            if bits not in range(9):
                raise OptionError(
                    f"reconstruct: the codes have {bits} bits; expected a whole number from 1 to "
                    "8, or 0 for dense weights."
                )
        for what, size in (("inputs", self.block), ("outputs", self.outputs)):
            if size < 1:
                raise OptionError(
                    f"reconstruct: a block has {size} {what}; expected a whole number from 1 on."
                )
        if self.scale not in ("tensor", "channel"):
            raise OptionError(
                f"reconstruct: the scale is {self.scale}; expected tensor or channel."
            )
        if not 0.0 < self.damping < np.inf:
            raise OptionError(
                f"reconstruct: the damping is {self.damping}; expected a number above 0, such as "
                "0.1."
            )

    def rewritten(self, mod: tvm.IRModule, inputs: Any) -> tvm.IRModule:
        """Give the module with pruned and shared weights.

        Raises:
            PassError: there are no inputs, so there is nothing to reconstruct.
        """
        if inputs is None:
            raise PassError(
                "reconstruct: there are no inputs; expected some hundred samples without labels: "
                "give compress() calibrate=x, or apply Reconstruct(...).on(x). Without any, use "
                "prune and share-weights."
            )
        mod = Canonicalize().apply(mod)
        weights = ir.weights(mod)
        sparsity = option_by_layer(self.name, weights, self.layers)
        bits = option_by_layer(self.name, weights, self.layer_bits)
        for weight in weights.values():
            check_weight(self.name, weight, float32=True)
        new: dict[str, tvm.ir.Expr] = {}
        named = ir.parameters(mod)
        total = sum(weight.parameter.value.size for weight in weights.values())

        def change(layer: solve.LayerInputs) -> dict[str, NDArray[Any]]:
            name, values = layer.name, {}
            few = layer.rows.size < self.small * total
            share = sparsity.get(name, 0.0 if few else self.sparsity)
            width = bits.get(name, min(self.bits + 2, 8) if few and self.bits else self.bits)
            blocks = _blocks(weights[name], self.outputs, self.block)
            axis = weights[name].output_axis if self.scale == "channel" else None
            new[name], rows = _compress(layer, share, width, self.damping, blocks, axis)
            values[name] = layer.dense(rows)
            if layer.bias is not None:
                moved = layer.moved_bias(named[layer.bias].value, rows)
                new[layer.bias], values[layer.bias] = edge.constant(moved), moved
            return values

        solve.layer_inputs(mod, inputs, change)
        return ir.replace_parameters(mod, new)


def _blocks(weight: ir.Weight, outputs: int, inputs: int) -> NDArray[np.int64] | None:
    """Give the number of each weight's block, in the weight's shape; None for single weights."""
    shape, axis = weight.parameter.value.shape, weight.output_axis
    if outputs == inputs == 1 or len(shape) < 2:
        return None
    input_axis = 1 - axis if len(shape) == 2 else 1
    places = np.indices(shape)
    places[axis] //= outputs
    places[input_axis] //= inputs
    return np.asarray(np.ravel_multi_index(tuple(places), shape))


def _compress(
    layer: solve.LayerInputs,
    sparsity: float,
    bits: int,
    damping: float,
    blocks: NDArray[np.int64] | None,
    axis: int | None,
) -> tuple[tvm.ir.Expr, NDArray[np.float32]]:
    """Give the new binding of a layer's weight, and its values as rows.

    Of an ``axis`` the channels have scales of their own.
    """
    grams = [solve.damped(gram, damping) for gram in layer.gram]
    aims = [
        solve.target_rows(*parts, damping)
        for parts in zip(layer.rows, layer.gram, layer.cross, strict=True)
    ]
    stays = _stays(layer, aims, grams, sparsity, blocks)
    pruned = np.stack([solve.refit_rows(*p) for p in zip(aims, grams, stays, strict=True)])
    if not bits:
        rows = pruned.astype(np.float32)
        return edge.constant(layer.dense(rows)), rows
    codes, table, units = _shared(pruned, aims, grams, stays, bits, by_row=axis is not None)
    values = np.take(table, codes)
    if axis is not None:
        values *= units[..., None]
        places = [1] * layer.dense(codes).ndim
        places[axis] = -1
        table = (units.reshape(-1, 1) * table).reshape(*places, table.size)
    expr = codebook(edge.constant(layer.dense(codes)), edge.constant(table))
    return expr, values


def _shared(
    pruned: NDArray[np.float64],
    aims: list[NDArray[np.float64]],
    grams: list[NDArray[np.float64]],
    stays: list[NDArray[np.bool_]],
    bits: int,
    *,
    by_row: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Give codes (groups, rows, columns), centroids (2**bits,) and each row's unit of them."""
    units = np.abs(pruned).max(2) if by_row else np.ones(pruned.shape[:2])
    units[units == 0] = 1.0
    normal = pruned / units[..., None]
    _, table = clustering.share(normal.astype(np.float32), bits)
    used = 1 + min(np.unique(normal[np.stack(stays)].astype(np.float32)).size, table.size - 1)
    codes = np.zeros(pruned.shape, np.uint8)
    if used == 1:
        return codes, table, units.astype(np.float32)
    centroids = table[:used].astype(np.float64)
    for _ in range(_TURNS if by_row else 1):
        # A code is found by its neighbours in order, and fitting may have changed that.
        centroids[1:].sort()
        scaled = zip(pruned, units, grams, stays, strict=True)
        codes = np.stack(
            [
                solve.share_rows(rows / unit[:, None], gram, centroids, kept)
                for rows, unit, gram, kept in scaled
            ]
        )
        parts = [
            (aim / unit[:, None], gram, some)
            for aim, unit, gram, some in zip(aims, units, grams, codes, strict=True)
        ]
        centroids = solve.fit_centroids(parts, centroids, list(units**2))
        if by_row:
            centroids = _whole(centroids)
            values = np.take(centroids, codes)
            fits = zip(values, aims, grams, units, strict=True)
            units = np.stack([solve.fit_scales(*given) for given in fits])
    table[:used] = centroids
    return codes, table, units.astype(np.float32)


def _whole(centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round centroids to 127ths of the largest magnitude, none but the first to zero."""
    step = np.abs(centroids).max() / 127
    whole = np.rint(centroids / step)
    whole[1:][whole[1:] == 0] = 1.0
    return np.asarray(whole / 127)


def _stays(
    layer: solve.LayerInputs,
    aims: list[NDArray[np.float64]],
    grams: list[NDArray[np.float64]],
    sparsity: float,
    blocks: NDArray[np.int64] | None,
) -> list[NDArray[np.bool_]]:
    """Choose the weights that stay, group by group."""
    if sparsity == 0.0:
        return [rows != 0 for rows in layer.rows]
    if blocks is None:
        drop = round(sparsity * layer.rows[0].size)
        return [solve.prune_rows(aim, gram, drop) for aim, gram in zip(aims, grams, strict=True)]
    stays = []
    for aim, gram, numbers in zip(aims, grams, layer.as_rows(blocks), strict=True):
        _, own = np.unique(numbers, return_inverse=True)
        drop = round(sparsity * (int(own.max()) + 1))
        stays.append(solve.prune_blocks(aim, gram, drop, own.reshape(numbers.shape)))
    return stays
