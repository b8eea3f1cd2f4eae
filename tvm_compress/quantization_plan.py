"""Which tensors of a float network become integers, and which of them share a scale.

A group of a convolution or product, its bias and its rectifier gives one tensor of integers; what
only moves values has the scale of what it takes, and all parts of a concatenation have one scale.
An elementwise function of one tensor is rounded once, however many operators it takes. An operator
without an integer form stays in float, and so do sums and moves of what it gives, up to the next
product. :class:`tvm_compress.passes.Quantize` carries a plan out.

Source of the groups: Jacob et al. (arXiv 1712.05877), section 2.4; the scales of softmax, logistic
and tanh are those of TensorFlow Lite's 8-bit quantisation specification.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.quantization import Affine

__all__ = ["PRODUCTS", "Plan", "Product", "channel_axis"]

PRODUCTS = tuple(f"relax.nn.conv{n}d{kind}" for n in (1, 2, 3) for kind in ("", "_transpose"))
PRODUCTS += ("relax.matmul",)
_SUMS = ("relax.add", "relax.subtract", "relax.multiply")
_RECTIFIERS = ("relax.nn.relu", "relax.clip")
# These give values between those that they take, so their scale is that of what they take.
_MOVES = (
    "relax.reshape",
    "relax.permute_dims",
    "relax.strided_slice",
    "relax.split",
    "relax.tile",
    "relax.repeat",
    "relax.flip",
    "relax.broadcast_to",
    "relax.nn.pad",
    "relax.image.resize2d",
    *(f"relax.nn.max_pool{n}d" for n in (1, 2, 3)),
    *(f"relax.nn.avg_pool{n}d" for n in (1, 2, 3)),
    *(f"relax.nn.adaptive_avg_pool{n}d" for n in (1, 2, 3)),
)
# Functions whose results lie in a known range, with the scales that TensorFlow Lite has for them.
_FIXED = {
    "relax.nn.softmax": Affine(1 / 256, -128),
    "relax.sigmoid": Affine(1 / 256, -128),
    "relax.tanh": Affine(1 / 128, 0),
}
# Any of these, and any of them of each other, is a table of one tensor of integers.
_ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        *("abs", "add", "clip", "divide", "erf", "exp", "maximum", "minimum", "multiply"),
        *("negative", "power", "sigmoid", "sqrt", "square", "subtract", "tanh"),
        *(f"nn.{n}" for n in ("gelu", "gelu_tanh", "leakyrelu", "relu", "selu", "silu")),
        "nn.softplus",
    )
)
_OWN = ("relax.mean",)


class Classes:
    """Tensors that have to have one scale: disjoint sets of names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        while (parent := self._parent.get(name, name)) != name:
            name = parent
        return name

    def join(self, name: str, other: str) -> None:
        self._parent[self.find(other)] = self.find(name)


@dataclass(frozen=True)
class Product:
    """A convolution or product of an activation with a weight, and the bias behind it."""

    name: str
    data: str
    weight: str
    end: str  # the name of the sum with the bias, or of the product where there is none
    axis: int  # of the channels in the result


class Plan:
    """Which tensors of a float module become integers, read off the module alone.

    Attributes:
        rounded: names of the variables that a ``quantize`` comes behind, inputs too.
        scales: which of them share a scale.
        fixed: those whose scale is known.
        own: those whose values give a range; the others have the scale of what they move.
        products: by the name of the product.
        biases: the same by the name of the sum with the bias (of the product, without one).
        constants: by the name of a sum of activations: its operands that are constants.
    """

    def __init__(self, mod: tvm.IRModule, in_float: set[str], io: str) -> None:
        self.rounded: set[str] = set()
        self.scales = Classes()
        self.fixed: dict[str, Affine] = {}
        self.own: set[str] = set()
        self.products: dict[str, Product] = {}
        self.biases: dict[str, Product] = {}
        self.constants: dict[str, list[int]] = {}
        self._fused: set[str] = set()  # results that their group's next operator takes unrounded
        self._function_of: dict[str, str] = {}  # a function of one tensor, not rounded so far
        self._operator: dict[str, str] = {}
        self._shape: dict[str, tuple[int, ...] | None] = {}
        self._in_float = in_float
        self._integers_out = io == "int8"
        function = ir.main_function(mod)
        bindings = list(ir.bindings(function))
        self._bound = {binding.var: binding.value for binding in bindings}
        self._weights = ir.weights(mod)
        self._parameters = set(ir.parameters(mod))
        self._users: dict[Any, list[Any]] = defaultdict(list)
        for binding in bindings:
            for var in edge.variables_in(binding.value):
                self._users[var].append(binding)
        self._outputs: set[Any] = set()
        for _, var in edge.outputs_of(function)[0]:
            while isinstance(var, relax.Var):
                self._outputs.add(var)
                var = self._bound.get(var)
        for param in function.params:
            if edge.dtype_of_or_none(param) == "float32":
                self._shape[edge.var_name(param)] = edge.static_shape(param)
                self._round(edge.var_name(param), own=True)
        for binding in bindings:
            if edge.var_name(binding.var) not in self._parameters:
                self._visit(binding)

    # -- what a variable is -----------------------------------------------------------------------

    def _round(self, name: str, *, own: bool = False) -> None:
        self.rounded.add(name)
        if own:
            self.own.add(name)

    def _constant(self, expr: Any) -> NDArray[Any] | None:
        """Give the array of an argument that is a float constant, bound to a name or not."""
        value = self._bound.get(expr, expr) if isinstance(expr, relax.Var) else expr
        if isinstance(value, edge.Constant) and edge.dtype_of(value) == "float32":
            return edge.constant_value(value)
        return None

    def _activations(self, value: Any) -> list[str]:
        names = [edge.var_name(var) for var in edge.variables_in(value)]
        return [name for name in names if name not in self._parameters]

    def _only_user(self, var: Any) -> Any:
        users = self._users[var]
        return users[0] if len(users) == 1 and var not in self._outputs else None

    def _wanted_in_float(self, binding: Any) -> bool:
        names = {edge.var_name(var) for var in edge.variables_in(binding.value)}
        return bool((names & self._weights.keys() | {edge.var_name(binding.var)}) & self._in_float)

    # -- one binding ------------------------------------------------------------------------------

    def _visit(self, binding: Any) -> None:
        name, value = edge.var_name(binding.var), binding.value
        operator = edge.op_name(value)
        self._operator[name] = operator or ""
        if edge.is_tensor(binding.var):
            self._shape[name] = edge.static_shape(binding.var)
        if isinstance(value, relax.Var):
            self._move(name, edge.var_name(value))
        elif isinstance(value, tvm.ir.TupleGetItem):
            self._move(name, edge.var_name(value.tuple_value))
        elif operator == "relax.split" and not self._wanted_in_float(binding):
            self._settle(edge.var_name(value.args[0]))
            self._move(name, edge.var_name(value.args[0]))
        elif edge.dtype_of_or_none(binding.var) != "float32":
            return
        elif self._stays_float(binding):
            asked = self._integers_out and binding.var in self._outputs
            users = self._users[binding.var]
            if asked or any(self._takes_integers(user) for user in users):
                self._round(name, own=bool(self._activations(value)))
        elif (source := self._argument(binding)) is not None:
            self._function_of[name] = source
            if self._integers_out and binding.var in self._outputs:
                self._settle(name)
        else:
            for taken in self._activations(value):
                self._settle(taken)
            self._visit_integers(binding)

    def _visit_integers(self, binding: Any) -> None:
        name, value = edge.var_name(binding.var), binding.value
        operator = edge.op_name(value)
        if operator in _MOVES:
            self._move(name, self._activations(value)[0])
        elif operator == "relax.concat":
            self._concat(name, self._activations(value))
        elif operator == "relax.nn.softmax":
            self.fixed[name] = _FIXED[operator]
            self._round(name)
        else:
            self._compute(binding)

    def _argument(self, binding: Any) -> str | None:
        """Give the tensor that an elementwise operator is a function of, if it is of one alone."""
        value = binding.value
        if edge.op_name(value) not in _ELEMENTWISE:
            return None
        taken = self._activations(value)
        sources = {self._function_of.get(name, name) for name in taken}
        source = sources.pop() if len(sources) == 1 else ""
        if source not in self.rounded or self._shape[source] != edge.static_shape(binding.var):
            return None
        constants = [self._constant(arg) for arg in value.args]
        numbers = all(a is None or (a.size == 1 and np.isfinite(a).all()) for a in constants)
        return source if numbers else None

    def _settle(self, name: str) -> None:
        """Round a function of one tensor, which another operator takes."""
        if self._function_of.pop(name, None) is None:
            return
        fixed = _FIXED.get(self._operator[name])
        if fixed is not None:
            self.fixed[name] = fixed
        self._round(name, own=fixed is None)

    def _takes_integers(self, binding: Any) -> bool:
        """Whether a product is worth rounding what it takes, though that is float."""
        product = edge.op_name(binding.value) in PRODUCTS
        return product and not self._wanted_in_float(binding) and self._has_weight_right(binding)

    def _has_weight_right(self, binding: Any) -> bool:
        data, weight = (
            edge.var_name(arg) if isinstance(arg, relax.Var) else "" for arg in binding.value.args
        )
        if not data or not weight or data in self._parameters:
            return False
        return weight in self._weights or weight not in self._parameters

    def _stays_float(self, binding: Any) -> bool:
        value = binding.value
        operator, taken = edge.op_name(value), self._activations(value)
        if self._wanted_in_float(binding) or not taken:
            return True
        known = self.rounded | self._fused | self._function_of.keys()
        if not known.issuperset(taken):
            return True
        if self._argument(binding) is not None:
            return False
        if operator in PRODUCTS:
            return not self._has_weight_right(binding)
        if operator == "relax.concat":
            return len(taken) < len(value.args[0].fields)
        if operator == "relax.nn.pad":  # zero alone is sure to lie in the range
            constant = str(value.attrs.pad_mode) == "constant"
            return constant and float(value.attrs.pad_value) != 0
        if operator in _SUMS:
            arrays = [self._constant(arg) for arg in value.args]
            others = len(taken) + sum(array is not None for array in arrays)
            return others < 2 or any(a is not None and not np.isfinite(a).all() for a in arrays)
        return operator not in (*_RECTIFIERS, *_MOVES, "relax.nn.softmax", *_OWN)

    def _move(self, name: str, source: str) -> None:
        if source not in self.rounded:
            return
        self._round(name)
        self.scales.join(source, name)
        if source in self.fixed:
            self.fixed[name] = self.fixed[source]

    def _concat(self, name: str, parts: list[str]) -> None:
        fixed = {self.fixed.get(part) for part in parts}
        alike = len(fixed) == 1 and None not in fixed
        self._round(name, own=not alike)
        if alike:
            self.fixed[name] = self.fixed[parts[0]]
        for part in parts:
            if part not in self.fixed:
                self.scales.join(name, part)

    def _compute(self, binding: Any) -> None:
        """Note a product, a sum, a rectifier or a mean."""
        name, value = edge.var_name(binding.var), binding.value
        operator, user = edge.op_name(value), self._only_user(binding.var)
        if user is not None and self._wanted_in_float(user):
            user = None
        bias = operator in PRODUCTS and user is not None and self._is_bias(user, binding)
        if operator in PRODUCTS and edge.var_name(value.args[1]) in self._weights:
            data, weight = (edge.var_name(arg) for arg in value.args)
            end = edge.var_name(user.var) if bias else name
            product = Product(name, data, weight, end, channel_axis(value))
            self.products[name] = self.biases[end] = product
        if operator in _SUMS and name not in self.biases:
            places = [i for i, arg in enumerate(value.args) if self._constant(arg) is not None]
            self.constants[name] = places
        rectified = user is not None and edge.op_name(user.value) in _RECTIFIERS
        if bias or (rectified and operator in (*PRODUCTS, *_SUMS)):
            self._fused.add(name)
        else:
            self._round(name, own=True)

    def _is_bias(self, user: Any, product: Any) -> bool:
        """Whether ``user`` adds a constant to a product that varies along the channels alone."""
        if edge.op_name(user.value) != "relax.add":
            return False
        bias = self._constant(user.value.args[1])
        shape = edge.static_shape(product.var) or ()
        if bias is None or edge.static_shape(user.var) != shape:
            return False
        if edge.var_name(product.value.args[1]) not in self._weights:
            return False
        full = (1,) * (len(shape) - bias.ndim) + bias.shape
        axis = channel_axis(product.value)
        return bool(np.isfinite(bias).all()) and all(
            size == 1 for i, size in enumerate(full) if i != axis
        )


def channel_axis(call: Any) -> int:
    """Give the axis of the output channels in what a product gives."""
    if edge.op_name(call) == "relax.matmul":
        return len(edge.static_shape(call) or ()) - 1
    return str(call.attrs.out_layout or call.attrs.data_layout).index("C")
