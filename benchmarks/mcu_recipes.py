"""How the networks of ``benchmarks/mcu.py`` are compressed: two ways, with a setting for each.

From the int8 file to float, channels that change nothing go, weights or blocks of them are pruned
in one shot with the others refitted, the rest may be fine-tuned on the tuning inputs alone (towards
the input that the network reconstructs), what is left is shared by at most 15 values with a scale
for each output channel, and int8 comes last. No label and no scoring input is looked at.

Where answers hang on single steps of int8, as they do in ic on JPEG pictures, all roundings stay as
they are, and the output channels that matter least get fewer bits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

import tvm_compress as tc
from benchmarks.mcu_data import Samples
from tvm_compress import edge, ir, qdq
from tvm_compress.passes import Dequantize, NarrowWeights, Reconstruct, RemoveChannels

__all__ = ["SETTINGS", "Setting", "compressed"]


@dataclass(frozen=True)
class Setting:
    """What differs from network to network.

    Attributes:
        sparsity: share of the blocks of a layer that become zero.
        layers: sparsity by layer, in place of that.
        inputs, outputs: channels of a block; 1 and 1 are single weights.
        small: layers with less than this share of the weights are not pruned.
        damping: of the reconstruction; less of it trusts the tuning inputs more.
        bits: of the codes of shared weights by pattern of the layer's weight; others stay dense.
        epochs, lr: of fine-tuning; 0 epochs leave it out.
        noise: standard deviation of what is added to inputs, in units of their own.
        narrow: share of a layer's output channels that get 5 or 6 bits, by pattern of its weight;
            nothing else is done then.
    """

    sparsity: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    inputs: int = 4
    outputs: int = 2
    small: float = 0.02
    damping: float = 0.1
    bits: Mapping[str, int] = field(default_factory=dict)
    epochs: int = 0
    lr: float = 1e-3
    noise: float = 0.0
    narrow: Mapping[str, float] = field(default_factory=dict)


SETTINGS = {
    # Of more zeros in its last convolution a channel dies, and a layer of 63 channels needs kernels
    # of its own; the other ones have to keep their weights for equal answers.
    "kws_dscnn_int8": Setting(
        layers={"conv2d_9_weight": 0.5},
        bits={"conv2d_9_weight": 4, "conv2d_[357]_weight": 6},
        inputs=1,
        outputs=1,
        damping=0.03,
    ),
    "vww_96_int8": Setting(
        layers={"conv2d_1[135]_weight": 0.5},
        bits={"conv2d_1[135]_weight": 4},
        inputs=1,
        outputs=1,
    ),
    "ic_resnet8_int8": Setting(narrow={"conv2d_8_weight": 0.66, "*": 0.0}),
    "ad01_int8": Setting(0.9, bits={"*": 4}, outputs=4, small=0.0, epochs=200, lr=1e-3, noise=0.1),
}


def _noisy(inputs: NDArray[Any], rng: np.random.Generator, *, noise: float) -> NDArray[Any]:
    """Give inputs that the network has not seen."""
    moved: NDArray[Any] = inputs + rng.normal(0.0, noise, inputs.shape).astype(inputs.dtype)
    return moved


def compressed(name: str, mod: tvm.IRModule, data: Samples) -> tvm.IRModule:
    """Give the compressed int8 network in the QDQ form."""
    setting = SETTINGS[name]
    if setting.narrow:
        return NarrowWeights(layers=setting.narrow).on(data.tuning).apply(mod)
    ((key, source),) = qdq.input_parameters(mod).items()
    real = source.dequantize(data.tuning)
    dense = RemoveChannels().apply(Dequantize().apply(mod))
    prune = Reconstruct(
        setting.sparsity,
        bits=0,
        damping=setting.damping,
        block=setting.inputs,
        outputs=setting.outputs,
        small=setting.small,
        layers=dict(setting.layers),
    )
    small = prune.on(real[:1000]).apply(dense)
    if setting.epochs:
        small = _tuned(small, real, setting)
    if setting.bits:
        share = Reconstruct(
            0.0, 0, damping=setting.damping, layer_bits=setting.bits, scale="channel"
        )
        small = share.on(real[:1000]).apply(small)
    limits = [float(v) for v in source.dequantize(np.array([-128, 127], np.int8))]
    return tc.quantize(small, real[:1000], input_ranges={key: limits})


def _tuned(small: tvm.IRModule, real: NDArray[Any], setting: Setting) -> tvm.IRModule:
    """Fine-tune a network that reconstructs its input."""
    from tvm_compress.training import finetune

    # Inputs of 0 to 255 leave the first weights so small that one step of Adam drowns them: they
    # are trained in units of the inputs' spread.
    unit = float(real.std())
    tuned = finetune(
        _scaled(small, unit),
        ((real / unit).astype(np.float32), real),
        epochs=setting.epochs,
        lr=setting.lr,
        batch_size=32,
        schedule="cosine",
        augment=functools.partial(_noisy, noise=setting.noise),
        loss="mse",
        progress=False,
    )
    return _scaled(tuned, 1.0 / unit)


def _scaled(mod: tvm.IRModule, factor: float) -> tvm.IRModule:
    """Multiply the weights that meet the network's inputs first."""
    weights = ir.weights(mod)
    new = {
        name: edge.constant((weights[name].parameter.value * factor).astype(np.float32))
        for name in ir.first_weights(mod)
    }
    return ir.replace_parameters(mod, new)
