"""The passes: this list is the only one."""

from __future__ import annotations

from tvm_compress.passes.bank_prune import BankPrune
from tvm_compress.passes.base import InputsPass, Pass
from tvm_compress.passes.block_prune import BlockPrune
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.channels_last import ChannelsLast
from tvm_compress.passes.dequantize import Dequantize
from tvm_compress.passes.drop_prune import DropPrune
from tvm_compress.passes.equalize import Equalize
from tvm_compress.passes.fixed_point import FixedPoint
from tvm_compress.passes.narrow_weights import NarrowWeights
from tvm_compress.passes.patchwise import Patchwise
from tvm_compress.passes.prune import Prune
from tvm_compress.passes.prune_channels import PruneChannels
from tvm_compress.passes.quantize import Quantize
from tvm_compress.passes.reconstruct import Reconstruct
from tvm_compress.passes.reduce_rate import ReduceRate
from tvm_compress.passes.remove_channels import RemoveChannels
from tvm_compress.passes.round_biases import RoundBiases
from tvm_compress.passes.share_weights import ShareWeights
from tvm_compress.passes.to_integers import ToIntegers

__all__ = [
    "PASSES",
    "BankPrune",
    "BlockPrune",
    "Canonicalize",
    "ChannelsLast",
    "Dequantize",
    "DropPrune",
    "Equalize",
    "FixedPoint",
    "InputsPass",
    "NarrowWeights",
    "Pass",
    "Patchwise",
    "Prune",
    "PruneChannels",
    "Quantize",
    "Reconstruct",
    "ReduceRate",
    "RemoveChannels",
    "RoundBiases",
    "ShareWeights",
    "ToIntegers",
]

PASSES: dict[str, type[Pass]] = {
    p.name: p
    for p in (
        Canonicalize,
        Prune,
        BankPrune,
        BlockPrune,
        DropPrune,
        PruneChannels,
        RemoveChannels,
        Reconstruct,
        Patchwise,
        ShareWeights,
        FixedPoint,
        ReduceRate,
        RoundBiases,
        ToIntegers,
        ChannelsLast,
        Equalize,
        Quantize,
        NarrowWeights,
        Dequantize,
    )
}
