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
from tvm_compress import qdq
from tvm_compress.passes import Dequantize, Reconstruct, RemoveChannels

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
        noise: standard deviation of what is added to inputs, in units of the input.
        rolls: places that an input is moved by at most along its first axis.
        flips: whether images are mirrored.
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


SETTINGS = {
    "kws_dscnn_int8": Setting(0.1),
    "vww_96_int8": Setting(0.1),
    "ic_resnet8_int8": Setting(0.1),
    "ad01_int8": Setting(0.82, outputs=4, small=0.0, epochs=200, lr=3e-4, noise=1.0),
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
            inputs[i] = np.roll(inputs[i], places, axis=0)
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
    return tc.quantize(small, real[:1000], input_ranges={key: limits})


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
    loss: dict[str, Any] = {"loss": "mse"}
    targets = real
    if not data.reconstructs:
        loss = {"loss": "distillation", "teacher": dense}
        targets = teacher_outputs(dense, real)
    return finetune(
        small,
        (real, targets),
        epochs=setting.epochs,
        lr=setting.lr,
        batch_size=32,
        schedule="cosine",
        augment=change,
        progress=False,
        **loss,
    )
