"""The graph of a module as bytes: inputs, bindings, outputs, but no weight.

A value is its tag and what the tag asks for; names that follow from the operator cost one byte;
variables are counted back from the last one. Reading makes calls of listed operators with listed
attributes, and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.codec.cursor import Cursor, Damaged, varint
from tvm_compress.codec.words import ATTRIBUTES, OPERATORS, WORDS
from tvm_compress.errors import UnsupportedError
from tvm_compress.ops import CODEBOOK, codebook

__all__ = ["Leaf", "pack_graph", "unpack_graph"]

_NONE, _FALSE, _TRUE, _INT, _FLOAT, _STRING, _ARRAY, _DTYPE = range(8)
_INT_IMM, _FLOAT_IMM, _VARIABLE, _SHAPE, _TUPLE, _SCALAR, _TENSOR = range(8, 15)
_CONSTANT, _SHARED, _CALL, _PACK, _ITEM, _ALIAS = range(6)
_DEEPEST = 16
_INT_BYTES = 10

_OPERATOR_NUMBER = {name: number for number, name in enumerate(OPERATORS)}
_WORD_NUMBER = {word: number for number, word in enumerate((*WORDS, *ATTRIBUTES))}
_ALL_WORDS = (*WORDS, *ATTRIBUTES)


@dataclass(frozen=True)
class Leaf:
    """A tensor of the module: dense ``values``, or ``codes`` with their centroids as ``values``."""

    values: NDArray[Any]
    codes: NDArray[np.uint8] | None = None


def _zigzag(value: int) -> bytes:
    if not -(1 << 63) <= value < 1 << 64:
        raise UnsupportedError(
            f"The module holds the integer {value}; expected 64 bits: save it as .json."
        )
    return varint(2 * value if value >= 0 else -2 * value - 1)


class _Names:
    """Says which name a binding of an operator would have by itself: add, add_2, add_3..."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def expected(self, stem: str) -> str:
        number = self._next.get(stem, 1)
        return stem if number == 1 else f"{stem}_{number}"

    def take(self, stem: str, name: str) -> None:
        tail = name[len(stem) + 1 :] if name.startswith(f"{stem}_") else ""
        if name == stem:
            self._next[stem] = 2
        elif tail.isdigit() and len(tail) < 9:
            self._next[stem] = int(tail) + 1


def _stem(operator: str) -> str:
    return operator.rsplit(".", 1)[1]


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        self.leaves: list[Leaf] = []
        self._names = _Names()
        self._number: dict[Any, int] = {}
        self._attributes: dict[bytes, int] = {}

    def string(self, text: str) -> None:
        """A word's number plus one, or 0 and the text."""
        if text in _WORD_NUMBER:
            self.out += varint(_WORD_NUMBER[text] + 1)
            return
        raw = text.encode()
        self.out += b"\0" + varint(len(raw)) + raw

    def name(self, name: str, stem: str | None) -> None:
        """1 for the name that the operator suggests, else 0 and the text."""
        if stem is not None:
            usual = name == self._names.expected(stem)
            self.out.append(usual)
            self._names.take(stem, name)
            if usual:
                return
        raw = name.encode()
        self.out += varint(len(raw)) + raw

    def sizes(self, sizes: Sequence[int]) -> None:
        self.out.append(len(sizes))
        for size in sizes:
            self.out += varint(size)

    def value(self, value: Any) -> None:
        """An attribute's value."""
        out = self.out
        if value is None or isinstance(value, bool):
            out.append(_NONE if value is None else _TRUE if value else _FALSE)
        elif isinstance(value, int):
            out.append(_INT)
            out += _zigzag(value)
        elif isinstance(value, float):
            out.append(_FLOAT)
            out += struct.pack("<d", value)
        elif isinstance(value, str):
            out.append(_STRING)
            self.string(str(value))
        elif isinstance(value, tvm_ffi.dtype):
            out.append(_DTYPE)
            self.string(str(value))
        elif isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
            self.immediate(value)
        elif isinstance(value, tvm_ffi.Array | tuple | list):
            out.append(_ARRAY)
            out += varint(len(value))
            for item in value:
                self.value(item)
        else:
            raise UnsupportedError(
                f"The module holds a {type(value).__name__} as an attribute; expected numbers, "
                "strings and lists of them: save it as .json."
            )

    def immediate(self, value: Any) -> None:
        whole = isinstance(value, tvm.tirx.IntImm)
        self.out.append(_INT_IMM if whole else _FLOAT_IMM)
        self.string(edge.dtype_of_prim(value))
        self.out += _zigzag(int(value.value)) if whole else struct.pack("<d", value.value)

    def dictionary(self, attrs: Any) -> None:
        items = sorted(dict(attrs.items()).items()) if attrs is not None else []
        self.out += varint(len(items))
        for key, value in items:
            self.string(str(key))
            self.value(value)

    def attributes(self, attrs: Any) -> None:
        """0 for none, the number of equal ones before plus two, or 1 and the fields."""
        if attrs is None:
            self.out.append(0)
            return
        outer, self.out = self.out, bytearray()
        info = edge.type_info(attrs)
        if info.type_key not in ATTRIBUTES:
            raise UnsupportedError(
                f"The module holds {info.type_key}, which a .tcz file cannot; save it as .json."
            )
        self.string(info.type_key)
        if info.type_key == "ir.DictAttrs":
            self.dictionary(attrs)
        else:
            self.out.append(len(info.fields))
            for one in info.fields:
                self.string(one.name)
                self.value(getattr(attrs, one.name))
        text, self.out = bytes(self.out), outer
        if text in self._attributes:
            self.out += varint(self._attributes[text] + 2)
        else:
            self._attributes[text] = len(self._attributes)
            self.out += b"\1" + text

    def expression(self, expr: Any) -> None:
        """An argument: a variable, a constant, a shape, or a tuple of them."""
        out = self.out
        if isinstance(expr, relax.Var):
            out.append(_VARIABLE)
            out += varint(len(self._number) - 1 - self._number[expr])
        elif isinstance(expr, edge.Constant):
            value = edge.constant_value(expr)
            if value.ndim or value.dtype.name not in WORDS:
                out.append(_TENSOR)
                self.leaves.append(Leaf(value))
            else:
                out.append(_SCALAR)
                self.string(value.dtype.name)
                out += value.astype(value.dtype.newbyteorder("<")).tobytes()
        elif isinstance(expr, relax.ShapeExpr):
            out.append(_SHAPE)
            self.sizes([int(size) for size in expr.values])
        elif isinstance(expr, tvm.ir.Tuple):
            out.append(_TUPLE)
            out += varint(len(expr.fields))
            for item in expr.fields:
                self.expression(item)
        elif isinstance(expr, tvm.tirx.IntImm | tvm.tirx.FloatImm):
            self.immediate(expr)
        else:
            raise UnsupportedError(
                f"The module passes a {type(expr).__name__} to an operator; expected tensors, "
                "shapes and numbers: save it as .json."
            )

    def binding(self, name: str, value: Any) -> None:
        out = self.out
        if isinstance(value, edge.Constant):
            out.append(_CONSTANT)
            self.name(name, None)
            self.leaves.append(Leaf(edge.constant_value(value)))
        elif edge.op_name(value) == CODEBOOK and all(
            isinstance(arg, edge.Constant) for arg in value.args
        ):
            out.append(_SHARED)
            self.name(name, None)
            codes, centroids = (edge.constant_value(arg) for arg in value.args)
            self.leaves.append(Leaf(centroids, codes))
        elif isinstance(value, tvm.ir.Call):
            self._call(name, value)
        elif isinstance(value, tvm.ir.Tuple):
            out.append(_PACK)
            self.name(name, "tuple")
            self.expression(value)
        elif isinstance(value, tvm.ir.TupleGetItem):
            out.append(_ITEM)
            self.name(name, "item")
            out += varint(value.index)
            self.expression(value.tuple_value)
        else:
            out.append(_ALIAS)
            self.name(name, "alias")
            self.expression(value)

    def _call(self, name: str, call: Any) -> None:
        operator = edge.op_name(call)
        if operator not in _OPERATOR_NUMBER or len(call.ty_args):
            raise UnsupportedError(
                f"The module calls {operator or type(call.op).__name__} ({name}), which a .tcz "
                "file cannot hold; save it before it is lowered, or save it as .json."
            )
        self.out.append(_CALL)
        self.out += varint(_OPERATOR_NUMBER[operator])
        self.name(name, _stem(operator))
        self.out += varint(len(call.args))
        for arg in call.args:
            self.expression(arg)
        self.attributes(call.attrs)

    def define(self, var: Any) -> None:
        self._number[var] = len(self._number)


def pack_graph(mod: tvm.IRModule) -> tuple[bytes, list[Leaf]]:
    """Give the graph's bytes and the tensors that it names in order.

    Raises:
        UnsupportedError: the module holds something that a file cannot.
        PassError: it is not one straight-line function main.
    """
    others = [var.name_hint for var in mod.get_global_vars() if var.name_hint != "main"]
    function = ir.main_function(mod)
    if others:
        raise UnsupportedError(
            f"The module has the functions {', '.join(others)} beside main, which a .tcz file "
            "cannot hold; save it before it is lowered, or save it as .json."
        )
    # One way to write each module: outputs are names of variables of the one block.
    function = ir.main_function(ir.Rewriter(mod).run())
    writer = _Writer()
    writer.dictionary(function.attrs)
    writer.out += varint(len(function.params))
    for param in function.params:
        shape = edge.static_shape(param) if edge.is_tensor(param) else None
        if shape is None:
            raise UnsupportedError(
                f"The input {edge.var_name(param)} is {param.ty}; expected a tensor of static "
                "shape: give the sizes to load with shapes={...}."
            )
        writer.name(edge.var_name(param), None)
        writer.string(edge.dtype_of(param))
        writer.sizes(shape)
        writer.define(param)
    outputs, is_tuple = edge.outputs_of(function)
    bound = {binding.var: binding.value for binding in ir.bindings(function)}
    names = {var for _, var in outputs}
    inner = [binding for binding in ir.bindings(function) if binding.var not in names]
    writer.out += varint(len(inner))
    for binding in inner:
        writer.binding(edge.var_name(binding.var), binding.value)
        writer.define(binding.var)
    writer.out.append(is_tuple)
    writer.out += varint(len(outputs))
    for name, var in outputs:
        writer.name(name, None)
        writer.expression(bound.get(var, var))
    return bytes(writer.out), writer.leaves


class _Reader(Cursor):
    def __init__(self, data: bytes, leaves: Iterator[Leaf]) -> None:
        super().__init__(data)
        self._leaves = leaves
        self._names = _Names()
        self._variables: list[Any] = []
        self._attributes: list[Any] = []
        self.leaf_names: list[str | None] = []

    def count(self) -> int:
        """A number of things that take a byte each, so it cannot exceed what is left."""
        number = self.varint()
        if number > self.left:
            raise Damaged(f"it promises {number} items and holds {self.left} bytes")
        return number

    def string(self) -> str:
        number = self.varint()
        if number > len(_ALL_WORDS):
            raise Damaged(f"it holds the unknown word {number}")
        return _ALL_WORDS[number - 1] if number else self.text()

    def text(self) -> str:
        return self.take(self.varint()).decode()

    def name(self, stem: str | None) -> str:
        if stem is not None:
            usual = self.byte()
            if usual > 1:
                raise Damaged("a name has an unknown tag")
            name = self._names.expected(stem) if usual else self.text()
            self._names.take(stem, name)
            return name
        return self.text()

    def sizes(self) -> list[int]:
        return [self.varint() for _ in range(self.byte())]

    def integer(self) -> int:
        value = self.varint(_INT_BYTES)
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def real(self) -> float:
        value: float = struct.unpack("<d", self.take(8))[0]
        return value

    def value(self, depth: int = 0) -> Any:
        tag = self.byte()
        if tag in (_NONE, _FALSE, _TRUE):
            return (None, False, True)[tag]
        if tag == _INT:
            return self.integer()
        if tag == _FLOAT:
            return self.real()
        if tag == _STRING:
            return self.string()
        if tag == _DTYPE:
            return tvm_ffi.dtype(self.string())
        if tag in (_INT_IMM, _FLOAT_IMM):
            return self.immediate(tag)
        if tag == _ARRAY and depth < _DEEPEST:
            return [self.value(depth + 1) for _ in range(self.count())]
        raise Damaged(f"an attribute has the unknown tag {tag}")

    def immediate(self, tag: int) -> Any:
        dtype = self.string()
        if tag == _INT_IMM:
            return tvm.tirx.IntImm(dtype, self.integer())
        return tvm.tirx.FloatImm(dtype, self.real())

    def dictionary(self) -> dict[str, Any]:
        return {self.string(): self.value() for _ in range(self.count())}

    def attributes(self) -> Any:
        number = self.varint()
        if not number:
            return None
        if number > 1:
            if number - 2 >= len(self._attributes):
                raise Damaged("it repeats attributes that are not there")
            return self._attributes[number - 2]
        key = self.string()
        if key not in ATTRIBUTES:
            raise Damaged(f"{key[:40]} is no type of attributes")
        if key == "ir.DictAttrs":
            fields = self.dictionary()
        else:
            fields = {self.string(): self.value() for _ in range(self.byte())}
        attrs = tvm.ir.make_node(key, **fields)
        self._attributes.append(attrs)
        return attrs

    def leaf(self, name: str | None = None) -> Leaf:
        leaf = next(self._leaves, None)
        if leaf is None:
            raise Damaged("it names more tensors than the file holds")
        self.leaf_names.append(name)
        return leaf

    def expression(self, depth: int = 0) -> Any:
        tag = self.byte()
        if tag == _VARIABLE:
            back = self.varint()
            if back >= len(self._variables):
                raise Damaged("it uses a variable before its binding")
            return self._variables[len(self._variables) - 1 - back]
        if tag == _TENSOR:
            return edge.constant(_dense(self.leaf()))
        if tag == _SCALAR:
            dtype = np.dtype(self.string()).newbyteorder("<")
            raw = np.frombuffer(self.take(dtype.itemsize), dtype)
            return edge.constant(raw.astype(dtype.newbyteorder("=")).reshape(()))
        if tag == _SHAPE:
            return relax.ShapeExpr(self.sizes())
        if tag in (_INT_IMM, _FLOAT_IMM):
            return self.immediate(tag)
        if tag == _TUPLE and depth < _DEEPEST:
            return tvm.ir.Tuple([self.expression(depth + 1) for _ in range(self.count())])
        raise Damaged(f"an argument has the unknown tag {tag}")

    def binding(self) -> tuple[str, Any]:
        tag = self.byte()
        if tag == _CONSTANT:
            name = self.name(None)
            return name, edge.constant(_dense(self.leaf(name)))
        if tag == _SHARED:
            name = self.name(None)
            leaf = self.leaf(name)
            if leaf.codes is None:
                raise Damaged(f"the shared weight {name[:40]} has no codes")
            return name, codebook(edge.constant(leaf.codes), edge.constant(leaf.values))
        if tag == _CALL:
            number = self.varint()
            if number >= len(OPERATORS):
                raise Damaged(f"it calls the unknown operator {number}")
            name = self.name(_stem(OPERATORS[number]))
            args = [self.expression() for _ in range(self.count())]
            operator = tvm.ir.Op.get(OPERATORS[number])
            attributes = self.attributes()
            kind = "" if attributes is None else edge.type_info(attributes).type_key
            # TVM reads attributes of the type that it expects without looking at the one they have.
            if operator.attrs_type_key and kind != operator.attrs_type_key:
                raise Damaged(f"{operator.name} has attributes of the type {kind or 'none'}")
            return name, tvm.ir.Call(operator, args, attributes)
        if tag == _PACK:
            return self.name("tuple"), self.expression()
        if tag == _ITEM:
            name, index = self.name("item"), self.varint()
            return name, tvm.ir.TupleGetItem(self.expression(), index)
        if tag == _ALIAS:
            return self.name("alias"), self.expression()
        raise Damaged(f"a binding has the unknown tag {tag}")

    def module(self) -> tvm.IRModule:
        attrs = self.dictionary()
        builder = relax.BlockBuilder()
        inputs, bindings = [], []
        for _ in range(self.count()):
            name, dtype = self.name(None), self.string()
            inputs.append(relax.Var(name, relax.TensorType(self.sizes(), dtype)))
            self._variables.append(inputs[-1])
        for _ in range(self.count()):
            name, value = self.binding()
            value = builder.normalize(value)
            var = relax.DataflowVar(name, value.ty)
            bindings.append(relax.VarBinding(var, value))
            self._variables.append(var)
        is_tuple = self.byte()
        outputs = [(self.name(None), self.expression()) for _ in range(self.count())]
        if self.left or is_tuple > 1 or not (is_tuple or len(outputs) == 1):
            raise Damaged("it does not end behind its outputs")
        if next(self._leaves, None) is not None:
            raise Damaged("it names fewer tensors than the file holds")
        node = tvm.ir.make_node("ir.DictAttrs", **attrs)
        function = edge.straight_line(
            SimpleNamespace(attrs=node), inputs, bindings, outputs, bool(is_tuple)
        )
        return tvm.IRModule({"main": function})


def _dense(leaf: Leaf) -> NDArray[Any]:
    if leaf.codes is not None:
        raise Damaged("a dense tensor has codes")
    return leaf.values


def unpack_graph(data: bytes, leaves: Sequence[Leaf]) -> tuple[tvm.IRModule, Sequence[str | None]]:
    """Build the module of a graph and its tensors.

    Returns:
        The module, and of each tensor the parameter's name, or None where it is no parameter.

    Raises:
        Damaged: the bytes are no graph, or TVM refuses what they say.
    """
    try:
        reader = _Reader(data, iter(leaves))
        return reader.module(), reader.leaf_names
    except Damaged:
        raise
    except Exception as error:  # whatever TVM says of a graph that cannot be
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Damaged(f"TVM refuses its graph ({lines[-1][:200]})") from error
