"""An ONNX graph whose nodes are made anew: what is known of its tensors, and new nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tvm_compress.errors import ModelFormatError

__all__ = ["Graph", "attributes_of", "called", "inferred", "inputs_of", "type_name"]


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add the shapes and types that ONNX infers.

    Raises:
        ModelFormatError: ONNX finds the model invalid.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise ModelFormatError(f"ONNX finds the model invalid: {error}") from error


class Graph:
    """The nodes of a graph made anew, one after another.

    Attributes:
        model: the ONNX model, whose nodes stay until :meth:`finished`.
        producers: the old node that gives a tensor, by its name.
        uses: how often a tensor is used, by its name.
        types: what ONNX infers of a tensor, by its name.
        made: the new nodes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, graph = model, model.graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        for node in graph.node:
            values = [a.t for a in node.attribute if node.op_type == "Constant" and a.HasField("t")]
            self.tensors.update(dict.fromkeys(node.output, values[0]) if values else {})
        self.uses: dict[str, int] = {}
        for name in [i for n in graph.node for i in n.input] + [o.name for o in graph.output]:
            self.uses[name] = self.uses.get(name, 0) + 1
        self.types = {
            value.name: value.type.tensor_type
            for value in [*graph.input, *graph.value_info, *graph.output]
        }
        self.names = {*self.tensors, *self.producers, *self.types}
        self.made: list[onnx.NodeProto] = []

    def finished(self) -> onnx.ModelProto:
        """Give the model with the new nodes, less those that nothing uses."""
        del self.model.graph.node[:]
        self.model.graph.node.extend(_live(self.made, self.model.graph.output))
        return self.model

    # -- what is known of a tensor -----------------------------------------------------------------

    def constant(self, name: str) -> NDArray[Any] | None:
        """Give the array of a tensor that the file holds."""
        tensor = self.tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def type_of(self, name: str) -> int:
        """Give the element type of a tensor, 0 where nothing tells it."""
        if name in self.tensors:
            return int(self.tensors[name].data_type)
        return int(self.types[name].elem_type) if name in self.types else 0

    def rank_of(self, name: str) -> int | None:
        """Give the number of axes of a tensor, None where nothing tells it."""
        if name in self.tensors:
            return len(self.tensors[name].dims)
        known = name in self.types and self.types[name].HasField("shape")
        return len(self.types[name].shape.dim) if known else None

    # -- making nodes ------------------------------------------------------------------------------

    def fresh(self, name: str) -> str:
        """Give a name that no tensor has."""
        unique, number = name, 1
        while unique in self.names:
            number += 1
            unique = f"{name}_{number}"
        self.names.add(unique)
        return unique

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node; give the name of its output."""
        self.made.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def value(self, array: NDArray[Any], name: str) -> str:
        """Add a Constant node; give the name of its output."""
        tensor = numpy_helper.from_array(array, self.fresh(name))
        self.tensors[tensor.name] = tensor
        return self.node("Constant", [], tensor.name, value=tensor)


def _live(nodes: Sequence[onnx.NodeProto], outputs: Any) -> list[onnx.NodeProto]:
    """Drop nodes that nothing uses any more."""
    used, kept = {value.name for value in outputs}, []
    for node in reversed(nodes):
        if any(name in used for name in node.output):
            used.update(node.input)
            kept.append(node)
    return kept[::-1]


def called(node: onnx.NodeProto) -> str:
    """Say which node is meant."""
    return f"{node.op_type} (node {node.name or node.output[0]})"


def type_name(kind: int) -> str:
    """Name an element type as ONNX does, in small letters."""
    return str(TensorProto.DataType.Name(kind)).lower()


def attributes_of(node: onnx.NodeProto, *without: str) -> dict[str, Any]:
    """Give a node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name not in without}


def inputs_of(node: onnx.NodeProto, count: int) -> list[str]:
    """Give ``count`` inputs; those that were left out are empty."""
    return [*node.input, *[""] * count][:count]
