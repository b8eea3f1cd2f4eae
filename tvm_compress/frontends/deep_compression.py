"""The files that the authors of Deep Compression published: codes and centroids, as they are.

A file holds, all little-endian:

- one uint32 a layer: how many entries of the layer are stored;
- then for each layer, in the network's order: the codebook of ``2**code_bits`` float32 whose entry
  0 is 0.0; one float32 bias an output; the stored entries' codes; the stored entries' distances of
  4 bits each. Codes of 8 bits take a byte, codes of 4 bits half a byte; two share a byte, the first
  in its low half, and a layer's halves end with a whole byte.

An entry's distance is its place minus that of the entry before, minus 1; where a gap is wider than
16, filler entries of code 0 bridge it. Places count through the weight in Caffe's order: outputs,
inputs, then rows and columns.

Source: the decoder in the repository songhan/SqueezeNet-Deep-Compression; Han, Mao, Dally, Deep
Compression (arXiv 1510.00149), section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.errors import ModelFormatError, OptionError, UnsupportedError
from tvm_compress.frontends.load import load
from tvm_compress.ops import codebook
from tvm_compress.passes.prune import option_by_layer

__all__ = ["import_deep_compression"]

_INDEX_BITS = 4


def import_deep_compression(
    path: str | PathLike[str],
    graph: str | PathLike[str] | tvm.IRModule,
    *,
    code_bits: Mapping[str, int] | None = None,
) -> tvm.IRModule:
    """Read a compressed network of the Deep Compression authors as shared weights.

    Args:
        path: the compressed file.
        graph: the network that the weights belong to, a module or what
            :func:`tvm_compress.load` takes. Its own weights and biases are replaced; every
            convolution and product takes the next layer of the file.
        code_bits: bits of a stored code, 4 or 8, by pattern of the weight's name. Without it
            convolutions have 8 bits and products 4, as the authors' AlexNet has.

    Returns:
        The module with ``tvm_compress.codebook`` for every weight: nothing is rounded or coded
        anew, and code 0 is the zero of the pruned weights.

    Raises:
        ModelFormatError: the file does not exist, ends early, is longer than the graph's weights
            need, or holds an entry outside its layer.
        OptionError: bits other than 4 and 8, or a pattern that fits no weight.
        UnsupportedError: a layer of the graph has no bias of its own.
    """
    mod = graph if isinstance(graph, tvm.IRModule) else load(graph)
    weights = ir.weights(mod)
    bits = option_by_layer("import_deep_compression", weights, code_bits or {})
    for name, value in bits.items():
        if value not in (4, 8):
            raise OptionError(
                f"import_deep_compression: the codes of {name} have {value} bits; expected 4 or 8, "
                "the sizes that the format has."
            )
    source = Path(path)
    if not source.is_file():
        raise ModelFormatError(f"{source} does not exist; expected a compressed network (.net).")
    reader = _Reader(source, source.read_bytes())
    biases = _biases(mod)
    named = ir.parameters(mod)
    counts = reader.take("the entry counts", "<u4", len(weights))
    new: dict[str, tvm.ir.Expr] = {}
    for (name, weight), count in zip(weights.items(), counts, strict=True):
        if name not in biases:
            raise UnsupportedError(
                f"import_deep_compression: the layer of {name} has no bias of its own; expected "
                "one constant that is added to its output, as the format stores one."
            )
        default = 4 if weight.operator == "relax.matmul" else 8
        codes, centroids, values = reader.layer(weight, int(count), bits.get(name, default))
        bias = named[biases[name]].value
        if values.size != bias.size:
            raise UnsupportedError(
                f"import_deep_compression: the bias of {name} has {bias.size} elements; expected "
                f"{values.size}, one an output."
            )
        new[name] = codebook(edge.constant(codes), edge.constant(centroids))
        new[biases[name]] = edge.constant(values.reshape(bias.shape))
    reader.finish()
    return ir.replace_parameters(mod, new)


def _biases(mod: tvm.IRModule) -> dict[str, str]:
    """Give the name of the bias of each weight, where it belongs to that layer alone."""
    function = ir.main_function(mod)
    named = ir.parameters(mod)
    uses = edge.use_counts(function)
    weight_of: dict[Any, str] = {}
    found: dict[str, str] = {}
    for binding in ir.bindings(function):
        call = binding.value
        args = list(call.args) if isinstance(call, tvm.ir.Call) else []
        if len(args) != 2 or not isinstance(args[1], relax.Var):
            continue
        second = edge.var_name(args[1])
        if second not in named or uses[args[1]] != 1:
            continue
        if edge.op_name(call) == "relax.add" and args[0] in weight_of:
            found[weight_of[args[0]]] = second
        elif uses[binding.var] == 1:
            weight_of[binding.var] = second
    return found


class _Reader:
    """Cuts the file into arrays; says what is missing where it ends."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.place = path, data, 0

    def take(self, what: str, dtype: str, count: int) -> NDArray[Any]:
        size = np.dtype(dtype).itemsize * count
        if self.place + size > len(self.data):
            raise ModelFormatError(
                f"{self.path} ends within {what}: {len(self.data) - self.place} bytes are left of "
                f"{size}; expected the file of this graph's network, whole: fetch it again."
            )
        array = np.frombuffer(self.data, dtype, count, self.place)
        self.place += size
        return array

    def small(self, what: str, bits: int, count: int) -> NDArray[np.uint8]:
        """Take codes of 8 bits, or of 4 bits with the first in a byte's low half."""
        if bits == 8:
            return self.take(what, "u1", count)
        pairs = self.take(what, "u1", -(-count // 2))
        return np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[:count]

    def layer(
        self, weight: ir.Weight, count: int, bits: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """Give the codes in the weight's shape, the centroids and the biases of a layer."""
        name, shape = weight.name, weight.parameter.value.shape
        product = weight.operator == "relax.matmul"  # stored as (outputs, inputs), as Caffe does
        stored = shape[::-1] if product and weight.output_axis else shape
        centroids = self.take(f"the codebook of {name}", "<f4", 2**bits)
        biases = self.take(f"the biases of {name}", "<f4", stored[0])
        if centroids[0] != 0:
            raise ModelFormatError(
                f"{self.path}: the codebook of {name} begins with {centroids[0]}; expected 0.0, "
                "the value of what was pruned: check that file and graph belong together."
            )
        codes = self.small(f"the codes of {name}", bits, count)
        gaps = self.small(f"the distances of {name}", _INDEX_BITS, count)
        places = np.cumsum(gaps.astype(np.int64) + 1) - 1
        dense: NDArray[np.uint8] = np.zeros(int(np.prod(stored)), np.uint8)
        if count and places[-1] >= dense.size:
            raise ModelFormatError(
                f"{self.path}: an entry of {name} lies at {places[-1]}; expected at most "
                f"{dense.size - 1}: check that file and graph belong together."
            )
        dense[places] = codes
        dense = dense.reshape(stored)
        laid = dense.T if stored is not shape else dense
        return (
            np.ascontiguousarray(laid),
            centroids.astype(np.float32),
            biases.astype(np.float32),
        )

    def finish(self) -> None:
        left = len(self.data) - self.place
        if left:
            raise ModelFormatError(
                f"{self.path} holds {left} bytes more than the graph's layers take; expected "
                "the file of this graph's network."
            )
