"""How the networks of ``benchmarks/mcu.py`` are compressed: one way, with a setting for each.

From the int8 file to float, channels that change nothing go, blocks of weights are pruned in one
shot with the others refitted, the rest is fine-tuned on the tuning inputs alone (towards what the
network said before, or towards the input that it reconstructs), and int8 comes last. No label and
no scoring input is looked at.
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
from tvm_compress.passes import Dequantize, Reconstruct, RemoveChannels
from tvm_compress.quantization import Ranges

__all__ = ["SETTINGS", "Setting", "compressed"]


@dataclass(frozen=True)
class Setting:
    """What differs from network to network.

    Attributes:
        sparsity: share of the blocks of a layer that become zero.
        layers: sparsity by layer, in place of that.
        outputs: output channels of a block; its inputs are 4.
        small: layers with less than this share of the weights are not pruned.
        epochs, lr: of fine-tuning; 0 epochs leave it out.
        noise: standard deviation of what is added to inputs, in units of their own.
        rolls: places that an input (.., height, width, channels) is moved by at most in height.
        flips: whether images are mirrored.
        ranges: how the ranges of activations are found.
    """

    sparsity: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    outputs: int = 2
    small: float = 0.02
    epochs: int = 0
    lr: float = 1e-3
    noise: float = 0.0
    rolls: int = 0
    flips: bool = False
    ranges: Ranges = "mse"


SETTINGS = {
    "kws_dscnn_int8": Setting(0.1),
    "vww_96_int8": Setting(0.1),
    "ic_resnet8_int8": Setting(
        layers={
            "conv2d_8_weight": 0.6,
            "conv2d_7_weight": 0.5,
            "conv2d_5_weight": 0.3,
            "conv2d_9_weight": 0.2,
            "conv2d_4_weight": 0.2,
        },
        epochs=10,
        rolls=2,
        flips=True,
        ranges="percentile",
    ),
    "ad01_int8": Setting(0.82, outputs=4, small=0.0, epochs=200, lr=3e-4, noise=0.1),
}


def _moved(
    inputs: NDArray[Any], rng: np.random.Generator, *, noise: float, rolls: int, flips: bool
) -> NDArray[Any]:
    """Give inputs that the network has not seen."""
    if flips:
        chosen = rng.random(len(inputs)) < 0.5
        inputs[chosen] = inputs[chosen][..., ::-1, :]
    if rolls:
        for i, places in enumerate(rng.integers(-rolls, rolls + 1, len(inputs))):
            inputs[i] = np.roll(inputs[i], places, axis=-3)
    if noise:
        inputs += rng.normal(0.0, noise, inputs.shape).astype(inputs.dtype)
    return inputs


def compressed(name: str, mod: tvm.IRModule, data: Samples) -> tvm.IRModule:
    """Give the compressed int8 network in the QDQ form."""
    setting = SETTINGS[name]
    ((key, source),) = qdq.input_parameters(mod).items()
    real = source.dequantize(data.tuning)
    dense = RemoveChannels().apply(Dequantize().apply(mod))
    prune = Reconstruct(
        setting.sparsity,
        bits=0,
        block=4,
        outputs=setting.outputs,
        small=setting.small,
        layers=dict(setting.layers),
    )
    small = prune.on(real[:1000]).apply(dense)
    if setting.epochs:
        small = _tuned(small, dense, real, data, setting)
    limits = [float(v) for v in source.dequantize(np.array([-128, 127], np.int8))]
    return tc.quantize(small, real[:1000], ranges=setting.ranges, input_ranges={key: limits})


def _tuned(
    small: tvm.IRModule,
    dense: tvm.IRModule,
    real: NDArray[Any],
    data: Samples,
    setting: Setting,
) -> tvm.IRModule:
    from tvm_compress.training import finetune, teacher_outputs

    change = functools.partial(
        _moved, noise=setting.noise, rolls=setting.rolls, flips=setting.flips
    )
    # Inputs of 0 to 255 leave the first weights so small that one step of Adam drowns them: they
    # are trained in units of the inputs' spread.
    unit = float(real.std())
    loss: dict[str, Any] = {"loss": "mse"}
    targets = real
    if not data.reconstructs:
        teacher = _scaled(dense, unit)
        loss = {"loss": "distillation", "teacher": teacher}
        targets = teacher_outputs(teacher, real / unit)
    tuned = finetune(
        _scaled(small, unit),
        ((real / unit).astype(np.float32), targets),
        epochs=setting.epochs,
        lr=setting.lr,
        batch_size=32,
        schedule="cosine",
        augment=change,
        progress=False,
        **loss,
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
