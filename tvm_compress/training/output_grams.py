"""How a network's outputs move with the rows of its weights: Gram matrices of gradients.

For a row ``w`` of a layer (what one output channel is a product with) and the gradient ``g`` of
the outputs by it, ``H = E[g g^T]`` says that a change ``d`` of the row moves the outputs by
``d H d`` in squared error. Of several outputs one random combination a sample is enough on average.

A network that ends in a softmax is judged by its distribution: ``g`` is the gradient of
``log p(y)`` of an answer ``y`` drawn from what the network itself says, and ``H`` its Fisher
information. Samples that the network is sure of hardly count then. Other networks are judged by
the squared error of their outputs.

Sources: Kurtic et al., The Optimal BERT Surgeon (arXiv 2203.07259), section 3.1; Martens, New
Insights and Perspectives on the Natural Gradient Method (arXiv 1412.1193), section 5, for the
Fisher information as the Gauss-Newton matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vmap

from tvm_compress.training.interpreter import TorchModule
from tvm_compress.training.samples import check_inputs

__all__ = ["Rows", "output_grams"]

_BATCH = 50


@dataclass(frozen=True)
class Rows:
    """One layer whose rows are looked at.

    Attributes:
        weight: name of the weight.
        axis: of its output channels.
        bias: name of the bias that is added to the layer's sums, or None.
    """

    weight: str
    axis: int
    bias: str | None


def output_grams(
    mod: tvm.IRModule,
    inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
    layers: Sequence[Rows],
    *,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Measure the Gram matrices of the outputs' gradients by each row of some weights.

    Args:
        mod: a canonical module; quantised ones are looked at through their roundings.
        inputs: N samples, as :func:`tvm_compress.training.finetune` takes them.
        layers: whose rows.
        seed: of the random answers or combinations.

    Returns:
        By weight float64 (outputs, columns + 1, columns + 1), in real units: the columns are the
        weight's axes but the output's, in their order; the last one is the bias (zeros without).

    Raises:
        DataError: inputs of a wrong name, shape or dtype, or that are not finite.
        UnsupportedError: an operator without a torch meaning.
    """
    mod, samples = check_inputs(mod, inputs)
    count = len(samples)
    net = TorchModule(mod, before_softmax=True)
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    held = {name: value.detach() for name, value in held.items()}
    names = [n for layer in layers for n in (layer.weight, layer.bias) if n is not None]
    mine = {f"{name}:value": held.pop(f"{name}:value") for name in names}
    chance = torch.Generator().manual_seed(seed)

    def combined(chosen: dict[str, Tensor], weights: Tensor, *x: Tensor) -> Tensor:
        outputs = functional_call(net, {**held, **chosen}, x)
        return (_flat(outputs) * weights).sum()

    gradients = vmap(grad(combined), in_dims=(None, 0, *[0] * len(samples.specs)))
    found: dict[str, Tensor] = {}
    for start in range(0, count, _BATCH):
        batch = samples.batch(np.arange(start, min(start + _BATCH, count)))
        tensors = [torch.as_tensor(x) for x in batch[0]]
        with torch.no_grad():
            outputs = net(*tensors)
        weights = _weights(outputs, len(tensors[0]), net.ends_in_softmax, chance)
        by_name = gradients(mine, weights, *tensors)
        for layer in layers:
            rows = by_name[f"{layer.weight}:value"].movedim(1 + layer.axis, 1).flatten(2)
            last = torch.zeros_like(rows[..., :1])
            if layer.bias is not None:
                last = by_name[f"{layer.bias}:value"].reshape(last.shape).to(rows.dtype)
            rows = torch.cat([rows, last], 2).movedim(1, 0)  # (outputs, samples, columns + 1)
            gram = rows.transpose(1, 2) @ rows
            if layer.weight in found:
                found[layer.weight] += gram
            else:
                found[layer.weight] = gram
    return {name: gram.numpy().astype(np.float64) / count for name, gram in found.items()}


def _flat(outputs: Any) -> Tensor:
    """Give all outputs of one sample as one vector."""
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.cat([part.reshape(-1).to(torch.float32) for part in parts])


def _weights(outputs: Any, count: int, softmax: bool, chance: torch.Generator) -> Tensor:
    """Give (samples, outputs): the combination of outputs whose gradient is taken."""
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    flat = torch.cat([part.reshape(count, -1).to(torch.float32) for part in parts], 1)
    if not softmax:
        return torch.randn(flat.shape, generator=chance)
    # The softmax may stand at several places of the output; the last axis is where it sums.
    chances = torch.softmax(parts[0].to(torch.float32), -1)
    places = chances.reshape(-1, chances.shape[-1])
    answers = torch.multinomial(places, 1, generator=chance)
    drawn = torch.zeros_like(places).scatter_(1, answers, 1.0)
    return (drawn - places).reshape(count, -1)
