"""Distillation: what a dense network says of inputs, as the targets of a compressed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray

from tvm_compress.errors import UnsupportedError
from tvm_compress.tensors import output_specs
from tvm_compress.training.device import find_device, moved
from tvm_compress.training.interpreter import TorchModule
from tvm_compress.training.samples import check_inputs

__all__ = ["teacher_outputs"]

_BATCH = 64


@torch.no_grad()
def teacher_outputs(
    mod: tvm.IRModule,
    inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
    *,
    device: str = "cpu",
) -> NDArray[Any]:
    """Run a network on samples and give what stands before its last softmax.

    ``finetune(compressed, (x, teacher_outputs(dense, x)), loss="distillation")`` trains without
    labels. Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network (arXiv
    1503.02531), section 2.

    Args:
        mod: the network that teaches, of one output.
        inputs: N samples, as :func:`tvm_compress.training.finetune` takes them.
        device: where torch computes, as there.

    Returns:
        Floats (N, *shape of the output); of a network that ends in a softmax its input, else the
        output.

    Raises:
        OptionError: a device that torch does not find.
        DataError: inputs of a wrong name, shape or dtype, or that are not finite.
        UnsupportedError: a network of several outputs, or an operator without a torch meaning.
    """
    outputs = output_specs(mod)
    if len(outputs) != 1:
        raise UnsupportedError(
            f"Distillation: the network has {len(outputs)} outputs "
            f"({', '.join(spec.name for spec in outputs)}); expected one."
        )
    mod, samples = check_inputs(mod, inputs)
    net = TorchModule(mod, before_softmax=True).to(find_device(device))
    batches = []
    for start in range(0, len(samples), _BATCH):
        batch = samples.batch(np.arange(start, min(start + _BATCH, len(samples))))
        tensors, _ = moved(batch, net.device)
        batches.append(net(*tensors).cpu().numpy())
    found = np.concatenate(batches)
    return found.reshape(len(found), *outputs[0].shape)
