"""A canonical module as a torch network: its parameters can be trained and written back.

The bindings of ``main`` become a list of steps once; running the network then touches TVM no more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from torch import Tensor, nn
from tvm import relax

from tvm_compress import edge, fixed_point, ir, qdq
from tvm_compress.errors import DataError, UnsupportedError
from tvm_compress.ops import codebook, flat_codes
from tvm_compress.tensors import input_specs, output_specs
from tvm_compress.training.meaning import TORCH, Attributes, as_declared, straight_through

__all__ = ["TorchModule"]

_Read = Callable[[list[Any]], Any]

# Arguments that describe data or a number format: training would change what the network means.
_HELD_ARGUMENTS = {
    "relax.nn.batch_norm": (3, 4),
    "relax.quantize": (1, 2),
    "relax.dequantize": (1, 2),
}


class SharedWeight(torch.autograd.Function):
    """``centroids[codes]``, whose gradient sums over all weights of a centroid.

    Source: Deep Compression (arXiv 1510.00149), section 3.3, equation 3.
    """

    @staticmethod
    def forward(ctx: Any, codes: Tensor, centroids: Tensor) -> Tensor:
        """Give the dense weight: ``codes`` int32 of any shape into the flattened ``centroids``."""
        ctx.save_for_backward(codes)
        ctx.shape = centroids.shape
        return torch.index_select(centroids.flatten(), 0, codes.flatten()).reshape(codes.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        """Sum in float64 and in a fixed order: millions of weights may share a centroid."""
        (codes,) = ctx.saved_tensors
        (gradient,) = gradients
        flat = gradient.reshape(-1).to(torch.float64)
        sums = torch.bincount(codes.flatten(), weights=flat, minlength=ctx.shape.numel())
        return None, sums.to(gradient.dtype).reshape(ctx.shape)


class FixedPointWeight(torch.autograd.Function):
    """A weight rounded to its grid; the gradient goes straight through to the weight behind it.

    Beyond the ends of the grid the gradient is 0. Source: Bengio et al., Estimating or Propagating
    Gradients Through Stochastic Neurons (arXiv 1308.3432), straight-through estimator; Courbariaux
    et al., BinaryConnect (arXiv 1511.00363), for weights.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, centroids: Tensor, scales: Tensor) -> Tensor:
        """Round ``weight / scales`` to the grid of :mod:`tvm_compress.fixed_point`.

        The scales (which broadcast to the weight) are those that the IR has behind the sum: so the
        weight is trained in its own unit, whatever the number format.
        """
        size = centroids.numel()
        numbers = torch.round(weight / (centroids[1] * scales))
        clipped = numbers.clamp(-(size // 2), size // 2 - 1)
        ctx.save_for_backward((numbers == clipped) / scales)
        codes = clipped.to(torch.int64) & (size - 1)
        return torch.index_select(centroids, 0, codes.flatten()).reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Pass the gradient on where the weight lies on the grid's range."""
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None, None


class TorchModule(nn.Module):
    """A network that runs in torch what a canonical module says, with gradients.

    Its parameters are the floating parameters of the IR: a dense tensor under ``NAME:value``, the
    centroids of a shared weight under ``NAME:centroids`` (its codes never change). Of a weight in
    fixed point (:mod:`tvm_compress.fixed_point`) the grid stays, and ``NAME:value`` is the weight
    behind the rounding, so its codes change; those of 0 do not. Integers that a ``dequantize`` of
    known scale stands behind (weights, biases, centroids of the QDQ form) are trained likewise:
    ``NAME:value`` or ``NAME:centroids`` is in the unit of what they stand for, and is rounded to
    them in every run. Statistics of a batch normalisation, scales of quantisation and of fixed
    point, and tensors with infinities (masks of attention) are parameters that do not ask for a
    gradient.

    Args:
        mod: a module as :func:`tvm_compress.load` gives it.
        before_softmax: give the input of a softmax that ends the network in place of its output
            (``ends_in_softmax`` says whether there is one); the output then has the shape of that
            input.

    Raises:
        UnsupportedError: the module holds an operator without a torch meaning.
    """

    def __init__(self, mod: tvm.IRModule, *, before_softmax: bool = False) -> None:
        super().__init__()
        self._mod = mod
        self._input_specs = input_specs(mod)
        self._output_specs = output_specs(mod)
        self._parameters_of_ir = ir.parameters(mod)
        self._in_fixed_point = {
            name
            for name, parameter in self._parameters_of_ir.items()
            if parameter.centroids is not None
            and parameter.centroids.dtype.kind == "f"
            and fixed_point.step_of(parameter.centroids) is not None
        }
        self._integers = _integers(mod)
        self._slots: dict[Any, int] = {}
        self._steps: list[tuple[int, _Read]] = []
        self._weight_slots: list[tuple[int, str]] = []
        self._zeros: list[tuple[str, str]] = []
        self._constants = 0
        function = ir.main_function(mod)
        self._scales = _scales_by_weight(mod)
        for param in function.params:
            self._slot(param)
        held = _held(function)
        for binding in ir.bindings(function):
            name = edge.var_name(binding.var)
            if name in self._parameters_of_ir:
                self._register(self._parameters_of_ir[name], trained=name not in held)
                self._weight_slots.append((self._slot(binding.var), name))
            else:
                read = self._reader(binding.value, name)
                self._steps.append((self._slot(binding.var), read))
        weights = ir.weights(mod)
        self._hold_zeros_of(weights)
        self._convolves = {n for n, w in weights.items() if w.operator == "relax.nn.conv2d"}
        outputs, self._is_tuple = edge.outputs_of(function)
        variables = [var for _, var in outputs]
        self.ends_in_softmax = False
        if before_softmax and len(variables) == 1:
            logits = _input_of_last_softmax(function, variables[0])
            self.ends_in_softmax = logits is not None
            variables = variables if logits is None else [logits]
        named = zip(outputs, variables, strict=True)
        self._results = [self._reader(var, name) for (name, _), var in named]

    # -- building ---------------------------------------------------------------------------------

    def _slot(self, var: Any) -> int:
        return self._slots.setdefault(var, len(self._slots))

    def _register(self, parameter: ir.Parameter, trained: bool) -> None:
        name, value = parameter.name, parameter.value
        if name in self._in_fixed_point:
            scales = self._scales.get(name, np.ones(1, value.dtype))
            self.register_buffer(f"{name}:grid", _tensor(np.asarray(parameter.centroids)))
            self.register_buffer(f"{name}:scales", _tensor(scales))
            self.register_parameter(f"{name}:value", nn.Parameter(_tensor(value * scales), trained))
            self._hold(f"{name}:value", torch.from_numpy(np.asarray(value == 0)))
        elif name in self._integers:
            self._register_integers(parameter)
        elif parameter.codes is not None and parameter.centroids is not None:
            codes = flat_codes(parameter.codes, parameter.centroids.shape)
            self.register_buffer(f"{name}:codes", _tensor(codes.astype(np.int32)))
            centroids = _tensor(parameter.centroids)
            self.register_parameter(f"{name}:centroids", nn.Parameter(centroids, trained))
            zero = torch.zeros(centroids.shape, dtype=torch.bool)
            zero[..., 0] = centroids[..., 0] == 0
            if zero.any():
                self._hold(f"{name}:centroids", zero)
        elif value.dtype.kind == "f":
            trained = trained and not np.isinf(value).any()
            self.register_parameter(f"{name}:value", nn.Parameter(_tensor(value), trained))
        else:
            self.register_buffer(f"{name}:value", _tensor(value))

    def _register_integers(self, parameter: ir.Parameter) -> None:
        name, how = parameter.name, self._integers[parameter.name]
        table = parameter.value if parameter.centroids is None else parameter.centroids
        steps = table.astype(np.float64) - how.zero_point
        # A bias may have more digits than float32.
        wide = np.float64 if table.dtype.itemsize > 2 else np.float32
        real = _tensor((steps * how.scale).astype(wide))
        self.register_buffer(f"{name}:scales", _tensor(how.scale.astype(wide)))
        self.register_buffer(f"{name}:zero_point", _tensor(how.zero_point.astype(wide)))
        if parameter.codes is None:
            self.register_parameter(f"{name}:value", nn.Parameter(real))
            return
        codes = flat_codes(parameter.codes, table.shape)
        self.register_buffer(f"{name}:codes", _tensor(codes.astype(np.int32)))
        self.register_parameter(f"{name}:centroids", nn.Parameter(real))
        zero = torch.zeros(real.shape, dtype=torch.bool)
        zero[..., 0] = real[..., 0] == 0
        if zero.any():
            self._hold(f"{name}:centroids", zero)

    def _hold(self, attribute: str, zeros: Tensor) -> None:
        self.register_buffer(f"{attribute}:zeros", zeros, persistent=False)
        self._zeros.append((attribute, f"{attribute}:zeros"))

    def _hold_zeros_of(self, weights: dict[str, ir.Weight]) -> None:
        for name, weight in weights.items():
            if weight.parameter.shared:
                continue
            value = weight.parameter.value
            zero = self._integers[name].zero_point if name in self._integers else 0
            trained = value.dtype.kind == "f" or name in self._integers
            if trained and (value == zero).any():
                self._hold(f"{name}:value", torch.from_numpy(np.asarray(value == zero)))

    def _reader(self, expr: Any, name: str) -> _Read:
        """Turn a binding's value into a function of the values of the variables."""
        if isinstance(expr, relax.Var):
            slot = self._slots[expr]
            return lambda values: values[slot]
        if isinstance(expr, edge.Constant):
            attribute = f"constant:{self._constants}"
            self._constants += 1
            self.register_buffer(attribute, _tensor(edge.constant_value(expr)), persistent=False)
            return lambda values: getattr(self, attribute)
        if isinstance(expr, tvm.ir.Tuple):
            fields = [self._reader(field, name) for field in expr.fields]
            return lambda values: tuple(field(values) for field in fields)
        if isinstance(expr, tvm.ir.TupleGetItem):
            source, index = self._reader(expr.tuple_value, name), int(expr.index)
            return lambda values: source(values)[index]
        if isinstance(expr, relax.ShapeExpr):
            sizes = tuple(int(size) for size in expr.values)
            return lambda values: sizes
        if isinstance(expr, tvm.tirx.IntImm | tvm.tirx.FloatImm):
            number = expr.value
            return lambda values: number
        return self._call(expr, name)

    def _call(self, call: Any, name: str) -> _Read:
        operator = edge.op_name(call)
        if operator not in TORCH:
            what = operator or type(call).__name__
            raise UnsupportedError(
                f"Fine-tuning: {what} (bound to {name}) has no torch meaning; expected one of the "
                "operators listed in docs/operators.md: replace it in the network, or compress "
                "without fine-tuning."
            )
        function, declared = TORCH[operator], _declared(call.ty)
        attrs = Attributes(call.attrs, declared)
        args = [self._reader(arg, name) for arg in call.args]
        return lambda values: as_declared(function(attrs, *[arg(values) for arg in args]), declared)

    # -- running ----------------------------------------------------------------------------------

    def dense(self, name: str) -> Tensor:
        """Give a parameter's dense tensor, by its name in the IR, with its gradient's path."""
        if name in self._in_fixed_point:
            parts = [getattr(self, f"{name}:{part}") for part in ("value", "grid", "scales")]
            rounded: Tensor = FixedPointWeight.apply(*parts)  # type: ignore[no-untyped-call]
            return rounded
        if name in self._integers and not self._parameters_of_ir[name].shared:
            return self._rounded(name, "value").to(torch.float32)
        if self._parameters_of_ir[name].shared:
            whole = name in self._integers
            centroids: Tensor = (
                self._rounded(name, "centroids") if whole else getattr(self, f"{name}:centroids")
            )
            codes: Tensor = getattr(self, f"{name}:codes")
            weight: Tensor = SharedWeight.apply(codes, centroids)  # type: ignore[no-untyped-call]
            return weight
        value: Tensor = getattr(self, f"{name}:value")
        return value

    def _rounded(self, name: str, part: str) -> Tensor:
        """Give the integers of a parameter as floats, with a gradient straight to what they are."""
        how = self._integers[name]
        scaled = getattr(self, f"{name}:{part}") / getattr(self, f"{name}:scales")
        whole = straight_through(scaled, torch.round(scaled)) + getattr(self, f"{name}:zero_point")
        return torch.clamp(whole, how.low, how.high)

    def _laid_out(self, name: str) -> Tensor:
        weight = self.dense(name)
        # A convolution whose weight has its channels innermost gives its result so, and pools are
        # several times as fast on that.
        return (
            weight.clone(memory_format=torch.channels_last) if name in self._convolves else weight
        )

    def forward(self, *inputs: Tensor) -> Any:
        """Run one sample, or a batch of samples.

        Args:
            inputs: one tensor an input, in order. Each has the shape that the IR declares (with
                its own batch axis of 1), or all have one more axis in front: the samples.

        Returns:
            The output, or a tuple where ``main`` returns one; with the axis of the samples in
            front where the inputs have it. An output that the IR declares to be of integers may
            stand as floats of whole value.

        Raises:
            DataError: another number of inputs or other shapes.
        """
        batched = self._check(inputs)
        # Outside of vmap: the weights are the same for all samples.
        weights = [(slot, self._laid_out(name)) for slot, name in self._weight_slots]

        def sample(*tensors: Tensor) -> tuple[Any, ...]:
            values: list[Any] = [None] * len(self._slots)
            values[: len(tensors)] = tensors
            for slot, weight in weights:
                values[slot] = weight
            for slot, read in self._steps:
                values[slot] = read(values)
            return tuple(read(values) for read in self._results)

        # What operators make of nothing (zeros, ones) has to lie where everything else is.
        device = inputs[0].device if inputs else self.device
        with nullcontext() if device.type == "cpu" else device:
            outputs = torch.func.vmap(sample)(*inputs) if batched else sample(*inputs)
        return outputs if self._is_tuple else outputs[0]

    @property
    def device(self) -> torch.device:
        """Where the parameters lie; inputs have to lie there too."""
        held = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if held is None else held.device

    def _check(self, inputs: tuple[Tensor, ...]) -> bool:
        specs = self._input_specs
        shapes = [tuple(x.shape) for x in inputs]
        if shapes == [spec.shape for spec in specs]:
            return False
        counts = {shape[0] for shape in shapes if shape}
        if [shape[1:] for shape in shapes] == [s.shape for s in specs] and len(counts) == 1:
            return True
        expected = ", ".join(f"{spec.name} {spec.shape}" for spec in specs)
        raise DataError(
            f"The inputs have the shapes {', '.join(map(str, shapes)) or 'of nothing'}; expected "
            f"{expected}, or all of them with one more axis of samples in front."
        )

    # -- training ---------------------------------------------------------------------------------

    @torch.no_grad()
    def hold_zeros(self) -> None:
        """Set pruned weights and the zero centroids to 0.0 again; call it after every step.

        What an optimizer remembers of them (momentum) cannot move them this way.
        """
        for attribute, zeros in self._zeros:
            getattr(self, attribute).masked_fill_(getattr(self, zeros), 0.0)

    def to_relax(self) -> tvm.IRModule:
        """Give the module with the present values: of the same structure, with the same zeros.

        The codes are the same too, but for those of weights in fixed point.
        """
        return ir.replace_parameters(self._mod, self.parameters_of_ir())

    @torch.no_grad()
    def parameters_of_ir(self) -> dict[str, tvm.ir.Expr]:
        """Give what each parameter of the IR that can be trained is bound to now, by its name."""
        new: dict[str, tvm.ir.Expr] = {}
        for name, parameter in self._parameters_of_ir.items():
            old = parameter.value if parameter.centroids is None else parameter.centroids
            if name in self._integers:
                whole = self._rounded(name, "centroids" if parameter.shared else "value")
                value = edge.constant(whole.cpu().numpy().astype(old.dtype))
                if parameter.codes is not None:
                    value = codebook(edge.constant(parameter.codes), value)
                new[name] = value
                continue
            if old.dtype.kind != "f":
                continue
            if name in self._in_fixed_point:
                latent = getattr(self, f"{name}:value").detach().cpu().numpy()
                bits = old.size.bit_length() - 1
                # Divided by the same numbers of the same dtype as in FixedPointWeight.
                steps = old[1] * getattr(self, f"{name}:scales").cpu().numpy()
                codes = fixed_point.encode(latent, bits, steps)
                new[name] = codebook(edge.constant(codes), edge.constant(old))
                continue
            attribute = f"{name}:centroids" if parameter.shared else f"{name}:value"
            value = edge.constant(getattr(self, attribute).detach().cpu().numpy().astype(old.dtype))
            if parameter.codes is not None:
                value = codebook(edge.constant(parameter.codes), value)
            new[name] = value
        return new


@dataclass(frozen=True)
class _Integers:
    """How the integers of a parameter stand for real numbers, and between which they lie."""

    scale: NDArray[np.float64]
    zero_point: NDArray[np.int64]
    low: int
    high: int


def _integers(mod: tvm.IRModule) -> dict[str, _Integers]:
    """Give what is trained of integers: those that a ``dequantize`` alone uses."""
    found, named = {}, ir.parameters(mod)
    for name, how in qdq.integer_parameters(mod).items():
        parameter, scale = named[name], how.scale
        table = parameter.value if parameter.centroids is None else parameter.centroids
        low, high = int(np.iinfo(table.dtype).min), int(np.iinfo(table.dtype).max)
        if low < 0 and not how.zero_point.any():  # symmetric, as quantize leaves it
            low = min(-high, int(table.min(initial=0)))
        if parameter.centroids is not None:
            scale = _of_centroids(scale, parameter.centroids.shape)
        found[name] = _Integers(scale, how.zero_point, low, high)
    return found


def _of_centroids(scale: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Give the unit of centroids: where they serve channels of several scales, the mean of them."""
    if scale.size == 1:
        return scale.reshape(())
    groups = shape[:-1] or (1,) * scale.ndim
    cut = [size for n, count in zip(scale.shape, groups, strict=True) for size in _cut(n, count)]
    blocks = np.square(scale).reshape(cut)
    means: NDArray[np.float64] = np.sqrt(blocks.mean(axis=tuple(range(1, blocks.ndim, 2))))
    return means[..., None] if len(shape) > 1 else means.reshape(())


def _cut(size: int, count: int) -> tuple[int, int]:
    """Give the blocks that an axis of scales falls into, and their length."""
    return (1, 1) if size == 1 else (count, size // count)


def _tensor(value: NDArray[Any]) -> Tensor:
    # A copy: the array is the memory of a constant of the IR.
    return torch.from_numpy(np.array(value, order="C"))


def _declared(ty: Any) -> Any:
    if isinstance(ty, relax.TupleType):
        return tuple(_declared(field) for field in ty.fields)
    return "shape" if isinstance(ty, relax.ShapeType) else edge.dtype_of(ty)


def _held(function: relax.Function) -> set[str]:
    """Give the names of the variables that are an argument which is not to be trained."""
    held = {
        edge.var_name(binding.value.args[index])
        for binding in ir.bindings(function)
        for index in _HELD_ARGUMENTS.get(edge.op_name(binding.value) or "", ())
        if isinstance(binding.value.args[index], relax.Var)
    }
    return held | set(ir.scales(function).values())


def _scales_by_weight(mod: tvm.IRModule) -> dict[str, NDArray[Any]]:
    """Give the scales behind the sums of weights in fixed point, in the shape of the weights."""
    found, named, weights = {}, ir.parameters(mod), ir.weights(mod)
    for name, scale in ir.scales(ir.main_function(mod)).items():
        shape, axis = named[name].value.shape, weights[name].output_axis
        places = [1] * len(shape)
        places[axis] = shape[axis]
        scales = named[scale].value.ravel()
        if scales.size >= shape[axis]:  # of a transposed convolution in groups they repeat
            found[name] = scales[: shape[axis]].reshape(places)
    return found


def _input_of_last_softmax(function: relax.Function, output: Any) -> Any:
    """Give what goes into the softmax that makes ``output``, or None where none does."""
    bound = {binding.var: binding.value for binding in ir.bindings(function)}
    value = output
    while isinstance(value, relax.Var):
        value = bound.get(value)
    while edge.op_name(value) in ("relax.reshape", "relax.quantize", "relax.dequantize"):
        value = value.args[0]
        while isinstance(value, relax.Var):
            value = bound.get(value)
    if edge.op_name(value) != "relax.nn.softmax":
        return None
    shape = edge.static_shape(value) or ()
    # The classes have to lie along the last axis of more than one element, where the loss looks.
    axis = int(value.attrs.axis) % len(shape)
    return value.args[0] if all(size == 1 for size in shape[axis + 1 :]) else None
