"""Quantised programs of torch.export; the judge is torch itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from tvm_compress import edge, ir
from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.frontends.torch_integers import register_operators
from tvm_compress.targets import reference

torch = pytest.importorskip("torch")
nn = torch.nn
functional = nn.functional
register_operators()
q = torch.ops.quantized_decomposed


def passed(
    x: Any,
    scale: Any,
    zero: Any,
    low: Any = -128,
    high: Any = 127,
    dtype: Any = torch.int8,
    kind: str = "default",
) -> Any:
    """Quantise and dequantise an activation."""
    there = getattr(q.quantize_per_tensor, kind)(x, scale, zero, low, high, dtype)
    return getattr(q.dequantize_per_tensor, kind)(there, scale, zero, low, high, dtype)


def integers(*shape: int) -> Any:
    return torch.randint(-127, 128, shape, dtype=torch.int8)


class Network(nn.Module):  # type: ignore[name-defined]
    """What ``convert_pt2e`` makes of convolutions, a residual addition and a linear layer.

    The activations' scales are powers of two, by which torch's product with 1 / scale is exact.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("conv_weight", integers(4, 3, 3, 3))
        self.register_buffer("conv_scale", torch.rand(4) * 0.01 + 0.001)
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int64))
        self.conv_bias = nn.Parameter(torch.rand(4))
        self.register_buffer("_frozen_param0", integers(4, 1, 3, 3))
        self.register_buffer("fc_weight", integers(5, 4))
        self.register_buffer("fc_scale", torch.rand(5) * 0.01 + 0.001)
        self.register_buffer("fc_zeros", torch.zeros(5, dtype=torch.int64))

    def forward(self, x: Any) -> Any:
        x = passed(x, 2.0**-6, 3)
        w = q.dequantize_per_channel(
            self.conv_weight, self.conv_scale, self.zeros, 0, -127, 127, torch.int8
        )
        a = passed(torch.relu(functional.conv2d(x, w, self.conv_bias, padding=1)), 2.0**-5, -128)
        w = q.dequantize_per_tensor(self._frozen_param0, 0.004, 0, -127, 127, torch.int8)
        b = passed(functional.conv2d(a, w, padding=1, groups=4), 2.0**-4, 10)
        c = passed(torch.mean(passed(a + b, 2.0**-4, -20), (2, 3)), 2.0**-5, -20)
        w = q.dequantize_per_channel(
            self.fc_weight, self.fc_scale, self.fc_zeros, 0, -127, 127, torch.int8
        )
        return passed(functional.linear(c, w), 2.0**-6, 1)


def exported(module: Any, *example: Any) -> Any:
    return torch.export.export(module.eval(), example)


class Function(nn.Module):  # type: ignore[name-defined]
    """A function of one input and of tensors that the program holds."""

    def __init__(self, function: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.function = function
        for name, tensor in held.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def both(program: Any, x: Any) -> tuple[Any, Any]:
    """Give the outputs of the loaded module and of torch."""
    (y,) = reference.run(load(program), x.numpy()).values()
    return y, program.module()(x).detach().numpy()


def dequantises(mod: tvm.IRModule) -> dict[str, Any]:
    """Give the dequantize of each parameter, by its name."""
    named = ir.parameters(mod)
    calls = [b.value for b in ir.bindings(mod["main"])]
    return {
        edge.var_name(call.args[0]): call
        for call in calls
        if edge.op_name(call) == "relax.dequantize" and edge.var_name(call.args[0]) in named
    }


def test_a_quantised_network() -> None:
    torch.manual_seed(0)
    program = exported(Network(), torch.randn(2, 3, 7, 7))
    for _ in range(3):
        y, wanted = both(program, torch.randn(2, 3, 7, 7))
        assert len(np.unique(wanted)) > 5
        assert np.abs(y - wanted).max() <= 2.0**-6


def test_weights_stay_integers_under_their_names() -> None:
    torch.manual_seed(0)
    network = Network()
    mod = load(exported(network, torch.randn(1, 3, 7, 7)))
    parameters = ir.parameters(mod)
    assert {name: str(p.value.dtype) for name, p in parameters.items()} == {
        "conv_weight": "int8",
        "p_conv_bias": "float32",
        "conv2d_2_weight": "int8",  # a frozen parameter has no name of its own
        "fc_weight": "int8",
    }
    np.testing.assert_array_equal(parameters["conv_weight"].value, network.conv_weight.numpy())
    np.testing.assert_array_equal(parameters["fc_weight"].value, network.fc_weight.numpy().T)
    calls = dequantises(mod)
    for name, axis, scale in (
        ("conv_weight", 0, network.conv_scale),
        ("fc_weight", 1, network.fc_scale),
    ):
        assert int(calls[name].attrs.axis) == axis
        np.testing.assert_array_equal(edge.constant_value(calls[name].args[1]), scale.numpy())
        zero = edge.constant_value(calls[name].args[2])
        assert zero.dtype == np.int8 and not zero.any()
    one = edge.constant_value(calls["conv2d_2_weight"].args[1])
    assert one.shape == () and one == np.float32(0.004)


def test_a_file_is_read_where_nothing_else_knows_the_operators(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = exported(Network(), torch.randn(1, 3, 7, 7))
    path = tmp_path / "network.pt2"
    torch.export.save(program, str(path))
    tvm.ir.assert_structural_equal(load(path), load(program))
    script = "import sys; from tvm_compress.frontends import load; load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True)


def test_a_range_that_is_narrower_than_the_type() -> None:
    def clipped(self: Any, x: Any) -> Any:
        return passed(x, 0.1, 5, -10, 20)

    y, wanted = both(exported(Function(clipped), torch.zeros(50)), torch.linspace(-4, 4, 50))
    np.testing.assert_allclose(y, wanted, atol=1e-6)
    assert y.min() == np.float32(-1.5) and y.max() == np.float32(1.5)


def test_uint8_and_zero_points() -> None:
    def unsigned(self: Any, x: Any) -> Any:
        return passed(x, 0.05, 200, 0, 255, torch.uint8)

    y, wanted = both(exported(Function(unsigned), torch.zeros(50)), torch.linspace(-12, 12, 50))
    assert y.min() == np.float32(-10) and np.isclose(y.max(), 2.75)
    np.testing.assert_allclose(y, wanted, atol=0.0501)


@pytest.mark.parametrize("kind", ["tensor", "tensor2"])
def test_parameters_that_are_tensors(kind: str) -> None:
    def held(self: Any, x: Any) -> Any:
        low, high = (self.low, self.high) if kind == "tensor2" else (-5, 90)
        return passed(x, self.scale, self.zero, low, high, kind=kind)

    module = Function(
        held,
        scale=torch.tensor([0.0625]),
        zero=torch.tensor([7]),
        low=torch.tensor(-5),
        high=torch.tensor(90),
    )
    y, wanted = both(exported(module, torch.zeros(50)), torch.linspace(-12, 12, 50))
    np.testing.assert_allclose(y, wanted, atol=1e-6)
    assert y.min() == -0.75 and y.max() == (90 - 7) * 0.0625


def test_float_weights_that_the_program_quantises_become_integers() -> None:
    torch.manual_seed(0)
    scale, zero = torch.rand(5) * 0.02 + 0.01, torch.zeros(5, dtype=torch.int64)

    def unfolded(self: Any, x: Any) -> Any:
        args = (self.scale, self.zero, 0, -127, 127, torch.int8)
        w = q.dequantize_per_channel(q.quantize_per_channel(self.w, *args), *args)
        return functional.linear(x, w)

    program = exported(
        Function(unfolded, w=torch.randn(5, 6), scale=scale, zero=zero), torch.zeros(2, 6)
    )
    mod = load(program)
    (parameter,) = ir.parameters(mod).values()
    assert parameter.value.dtype == np.int8 and parameter.shape == (6, 5)
    assert parameter.value.min() >= -127
    y, wanted = both(program, torch.randn(2, 6))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_scales_along_another_axis() -> None:
    scale, zero = torch.tensor([0.5, 0.25, 1.0]), torch.tensor([1, 2, 3])

    def columns(self: Any, x: Any) -> Any:
        w = q.dequantize_per_channel(self.w, self.s, self.z, 1, -128, 127, torch.int8)
        return torch.matmul(x, w)

    module = Function(columns, w=integers(4, 3), s=scale, z=zero)
    program = exported(module, torch.zeros(2, 4))
    call = dequantises(load(program))["w"]
    assert int(call.attrs.axis) == 1
    np.testing.assert_array_equal(edge.constant_value(call.args[2]), [1, 2, 3])
    y, wanted = both(program, torch.randn(2, 4))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-4)


def test_a_bias_of_int32() -> None:
    bias = torch.tensor([100000, -200000, 5], dtype=torch.int32)

    def biased(self: Any, x: Any) -> Any:
        low, high = -(2**31), 2**31 - 1
        b = q.dequantize_per_tensor(self.b, 1e-4, 0, low, high, torch.int32)
        return functional.linear(x, self.w, b)

    program = exported(Function(biased, b=bias, w=torch.randn(3, 4)), torch.zeros(2, 4))
    parameters = ir.parameters(load(program))
    assert parameters["b"].value.dtype == np.int32
    np.testing.assert_array_equal(parameters["b"].value, bias.numpy())
    y, wanted = both(program, torch.randn(2, 4))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


# ---- refusals ------------------------------------------------------------------------------------


def refused(program: Any, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        load(program)
    return str(caught.value)


@pytest.mark.parametrize(
    ("scale", "said"),
    [(0.0, "0.0"), (-0.5, "-0.5"), (float("nan"), "nan"), (float("inf"), "inf")],
)
def test_scales_that_are_none(scale: float, said: str) -> None:
    def wrong(self: Any, x: Any) -> Any:
        return q.dequantize_per_channel(self.w, self.s, self.z, 0, -127, 127, torch.int8) + x

    module = Function(
        wrong,
        w=integers(2, 3),
        s=torch.tensor([1.0, scale]),
        z=torch.zeros(2, dtype=torch.int64),
    )
    assert refused(exported(module, torch.zeros(2, 3)), ModelFormatError) == (
        f"dequantize_per_channel has the scale {said}; expected finite numbers over 0: quantise "
        "the network again, with inputs that vary."
    )


@pytest.mark.parametrize(("zero", "said"), [(300, "300"), (0.5, "0.5")])
def test_zero_points_that_are_no_integer_of_the_type(zero: Any, said: str) -> None:
    def wrong(self: Any, x: Any) -> Any:
        return q.dequantize_per_channel(self.w, self.s, self.z, 0, -127, 127, torch.int8) + x

    module = Function(wrong, w=integers(2, 3), s=torch.ones(2), z=torch.tensor([zero, zero]))
    assert refused(exported(module, torch.zeros(2, 3)), ModelFormatError) == (
        f"dequantize_per_channel has the zero point {said}; expected whole numbers of int8, from "
        "-128 to 127: quantise the network again."
    )


def test_types_that_no_frontend_takes() -> None:
    def wide(self: Any, x: Any) -> Any:
        return passed(x, 0.1, 0, -32768, 32767, torch.int16)

    assert refused(exported(Function(wide), torch.zeros(3)), UnsupportedError) == (
        "quantize_per_tensor is of the quantised type int16, which no frontend takes; expected "
        "int8 or uint8 (int32 for a bias): quantise the network to 8 bits."
    )

    def wider(self: Any, x: Any) -> Any:
        return passed(x, 0.1, 0, -(2**31), 2**31 - 1, torch.int32)

    assert "the quantised type int32" in refused(
        exported(Function(wider), torch.zeros(3)), UnsupportedError
    )


def test_scales_that_only_the_run_can_tell() -> None:
    def dynamic(self: Any, x: Any) -> Any:
        return passed(x, torch.max(torch.abs(x)) / 127, self.zero, kind="tensor")

    program = exported(Function(dynamic, zero=torch.tensor(0)), torch.zeros(3))
    assert refused(program, UnsupportedError) == (
        "The scale of quantize_per_tensor is computed at run time; expected one that the program "
        "holds: quantise the network with static ranges."
    )
