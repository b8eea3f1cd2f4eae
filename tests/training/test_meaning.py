"""Every operator's torch meaning against its numpy meaning: one sample, and a batch of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax
from tvm.relax import op

from tvm_compress.ops.meaning import MEANING
from tvm_compress.targets.reference import run

torch = pytest.importorskip("torch", reason="torch is not installed; these tests need it.")

from tvm_compress.training import TorchModule  # noqa: E402
from tvm_compress.training.meaning import TORCH, straight_through  # noqa: E402

SAMPLES = 3


@dataclass(frozen=True)
class Case:
    """A network of one operator; the inputs are drawn between ``low`` and ``high``."""

    name: str
    build: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    low: float = -2.0
    high: float = 2.0
    dtype: str = "float32"


def module_of(case: Case) -> tvm.IRModule:
    inputs = [
        relax.Var(f"x{i}", relax.TensorType(shape, case.dtype))
        for i, shape in enumerate(case.shapes)
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            output = builder.emit_output(case.build(*inputs))
        builder.emit_func_output(output)
    return builder.get()


def draw(case: Case, seed: int) -> list[NDArray[Any]]:
    """Inputs of all samples: (SAMPLES, *shape)."""
    rng = np.random.default_rng(seed)
    return [
        rng.uniform(case.low, case.high, (SAMPLES, *shape)).astype(case.dtype)
        for shape in case.shapes
    ]


def assert_equal(got: Any, expected: NDArray[Any], tolerance: float) -> None:
    got = got.detach().numpy()
    assert got.shape == expected.shape
    if expected.dtype.kind == "f":
        assert got.dtype.kind == "f"
        scale = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)), 1e-6)
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * scale)
    else:
        np.testing.assert_array_equal(got, expected)


def check(case: Case, seed: int = 0, tolerance: float = 1e-5) -> None:
    mod = module_of(case)
    net = TorchModule(mod)
    inputs = draw(case, seed)
    expected = []
    for n in range(SAMPLES):
        arrays = {f"x{i}": x[n] for i, x in enumerate(inputs)}
        expected.append(list(run(mod, arrays).values()))
        single = net(*[torch.from_numpy(x) for x in arrays.values()])
        singles = single if isinstance(single, tuple) else (single,)
        for got, want in zip(singles, expected[-1], strict=True):
            assert_equal(got, want, tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # vmap warns where it has to run sample by sample
        batch = net(*[torch.from_numpy(x) for x in inputs])
    batches = batch if isinstance(batch, tuple) else (batch,)
    for got, wants in zip(batches, zip(*expected, strict=True), strict=True):
        assert_equal(got, np.stack(wants), tolerance)


def c(value: Any, dtype: str = "float32") -> Any:
    return relax.const(np.asarray(value, dtype), dtype)


def normal(*shape: int, seed: int = 7) -> Any:
    return c(np.random.default_rng(seed).normal(size=shape))


def items(call: Any, count: int) -> Any:
    """A tuple of a tuple's items in reverse, so that an output in the wrong place is seen."""
    call = relax.BlockBuilder.current().emit(call)
    return tvm.ir.Tuple([tvm.ir.TupleGetItem(call, i) for i in reversed(range(count))])


UNARY = [
    "abs", "asinh", "atan", "ceil", "cos", "cosh", "erf", "exp", "floor", "isfinite", "isinf",
    "isnan", "negative", "ones_like", "round", "sigmoid", "sign", "sin", "sinh", "square", "tan",
    "tanh", "trunc", "zeros_like", "nn.relu", "nn.gelu", "nn.gelu_tanh", "nn.silu", "nn.selu",
]  # fmt: skip
UNARY_FROM = {
    "acos": (-0.9, 0.9), "acosh": (1.1, 4.0), "asin": (-0.9, 0.9), "atanh": (-0.9, 0.9),
    "log": (0.1, 9.0), "rsqrt": (0.1, 9.0), "sqrt": (0.1, 9.0),
}  # fmt: skip
BINARY = ["add", "atan2", "maximum", "minimum", "multiply", "subtract"]
COMPARE = ["equal", "greater", "greater_equal", "less", "less_equal", "not_equal"]
LOGICAL = ["logical_and", "logical_or", "logical_xor"]
BITWISE = ["bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift"]


def operator(name: str) -> Callable[..., Any]:
    # By TVM's builders: a call that is made by hand without attributes ends the process.
    return attrgetter(name)(op)  # type: ignore[no-any-return]


def cases() -> list[Case]:
    image, row = ((1, 4, 9, 7),), ((1, 12),)
    found = [Case(name, operator(name), ((1, 3, 4),)) for name in UNARY]
    found += [Case(n, operator(n), ((1, 3, 4),), *span) for n, span in UNARY_FROM.items()]
    found += [Case(n, operator(n), ((1, 3, 4), (4,))) for n in BINARY]
    found += [
        Case(n, operator(n), ((1, 3, 4), (3, 1)), 0.5, 5.0)
        for n in ("divide", "power", "floor_divide", "floor_mod", "mod")
    ]
    found += [Case(n, operator(n), ((1, 30), (1, 30)), 0, 4, "int32") for n in COMPARE]
    found += [Case(n, operator(n), ((1, 30), (1, 30)), 0, 2, "bool") for n in LOGICAL]
    found += [Case(n, operator(n), ((1, 30), (30,)), 0, 5, "int32") for n in BITWISE]
    for name in ("max", "min", "mean", "prod", "std", "sum", "variance"):
        reduce = getattr(op, name)
        found += [
            Case(f"{name} all", lambda x, f=reduce: f(x), image),
            Case(f"{name} axes", lambda x, f=reduce: f(x, [2, -1]), image),
            Case(f"{name} kept", lambda x, f=reduce: f(x, [1], keepdims=True), image),
        ]
    for name in ("argmax", "argmin"):
        index = getattr(op, name)
        found += [
            Case(f"{name} all", lambda x, f=index: f(x, keepdims=True), image),
            Case(f"{name} axis", lambda x, f=index: f(x, axis=-1), image),
        ]
    found += [
        Case("bitwise_not", operator("bitwise_not"), row, -9, 9, "int32"),
        Case("logical_not", operator("logical_not"), row, 0, 2, "bool"),
        Case("divide integers", op.divide, ((1, 30), (1, 30)), 1, 9, "int32"),
        Case("mean integers", lambda x: op.sum(x, [1]), row, -9, 9, "int32"),
        Case("clip", lambda x: op.clip(x, -0.5, 1.25), image),
        Case("clip integers", lambda x: op.clip(x, -3, 300), row, -9, 9, "int8"),
        Case("leakyrelu", lambda x: op.nn.leakyrelu(x, 0.2), image),
        Case("prelu", lambda x: op.nn.prelu(x, normal(4), 1), image),
        Case("softplus", lambda x: op.nn.softplus(x, beta=2.0), image),
        Case("where", lambda x, y: op.where(op.less(x, y), x, y), ((1, 5), (4, 5))),
        Case("astype float", lambda x: op.astype(x, "float32"), row, -9, 9, "int8"),
        Case("astype int", lambda x: op.astype(x, "int32"), row, -9, 9),
        Case("astype wide", lambda x: op.astype(x, "float64"), row),
        Case("reshape", lambda x: op.reshape(x, (1, 3, -1)), image),
        Case("full", lambda x: op.add(x, op.full((3, 4), relax.const(2.5), "float32")), ((3, 4),)),
        Case("zeros", lambda x: op.add(x, op.zeros((3, 4), "float32")), ((3, 4),)),
        Case("ones", lambda x: op.add(x, op.ones((3, 4), "float32")), ((3, 4),)),
        Case("broadcast_to", lambda x: op.broadcast_to(x, (5, 3, 4)), ((1, 3, 1),)),
        Case("squeeze", lambda x: op.squeeze(x), ((1, 3, 1, 4),)),
        Case("squeeze axis", lambda x: op.squeeze(x, [0, -1]), ((1, 3, 1, 1),)),
        Case("expand_dims", lambda x: op.expand_dims(x, [0, -1]), ((1, 3),)),
        Case("flatten", op.flatten, image),
        Case("batch_flatten", op.nn.batch_flatten, image),
        Case("permute_dims", lambda x: op.permute_dims(x, [0, 2, 3, 1]), image),
        Case("permute_dims reversed", lambda x: op.permute_dims(x), image),
        Case("concat", lambda x, y: op.concat([x, y], -1), ((1, 3, 2), (1, 3, 4))),
        Case("stack", lambda x, y: op.stack([x, y], 1), ((1, 3), (1, 3))),
        Case("split even", lambda x: items(op.split(x, 2, 1), 2), image),
        Case("split at", lambda x: items(op.split(x, [2, 3], -1), 3), image),
        Case("slice", lambda x: op.strided_slice(x, [2, 3], [1, -5], [8, 100], [3, 1]), image),
        Case("slice back", lambda x: op.strided_slice(x, [2], [6], [-100], [-2]), image),
        Case("slice back to", lambda x: op.strided_slice(x, [3], [5], [1], [-1]), image),
        Case("take", lambda x: op.take(x, c([[2, 0], [1, 2]], "int64"), axis=1), image),
        Case("take flat", lambda x: op.take(op.flatten(x), c([3, 0, 3], "int32"), axis=0), row),
        Case("take table", lambda i: op.take(normal(8, 5), i, axis=0), row, 0, 8, "int32"),
        Case(
            "gather_elements",
            lambda x: op.gather_elements(x, c([[[0, 2], [1, 1]]], "int64"), axis=1),
            ((1, 3, 2),),
        ),
        Case("flip", lambda x: op.flip(x, 2), image),
        Case("tile", lambda x: op.tile(x, (1, 2, 1, 3)), image),
        Case("one_hot", lambda i: op.one_hot(i, 5.0, -1.0, 6, 1), row, 0, 6, "int64"),
        Case("einsum", lambda x, y: op.einsum([x, y], "bij,bkj->bik"), ((1, 3, 4), (1, 2, 4))),
        Case("shape_of", lambda x: op.shape_to_tensor(op.shape_of(x)), image),
        Case("repeat", lambda x: op.repeat(x, 3, 1), image),
        Case("repeat flat", lambda x: op.repeat(x, 2), row),
        Case("pad", lambda x: op.nn.pad(x, [0, 0, 1, 0, 2, 3, 0, 1], pad_value=0.5), image),
        *(
            Case(f"pad {mode}", lambda x, m=mode: op.nn.pad(x, [0, 0, 0, 0, 2, 3, 1, 0], m), image)
            for mode in ("reflect", "replicate", "circular")
        ),
        Case("cumsum", lambda x: op.cumsum(x, 2), image),
        Case("cumsum flat", lambda x: op.cumsum(x), row),
        Case("softmax", lambda x: op.nn.softmax(x, 1), image, -30, 30),
        Case("log_softmax", lambda x: op.nn.log_softmax(x, -1), image, -30, 30),
        Case("matmul", lambda x: op.matmul(x, normal(12, 5)), row),
        Case("matmul batch", op.matmul, ((1, 2, 3, 4), (2, 4, 5))),
        Case("matmul vector", lambda x: op.matmul(x, normal(12)), row),
        *convolutions(),
        *resizes(),
        *pools(),
        Case(
            "batch_norm",
            lambda x: items(
                op.nn.batch_norm(
                    x, normal(4), normal(4, seed=8), normal(4, seed=9), c([1, 2, 0.5, 3]), axis=1,
                    training=False,
                ),
                3,
            ),
            image,
        ),
        Case(
            "batch_norm of the batch",
            lambda x: items(
                op.nn.batch_norm(
                    x, normal(4), normal(4, seed=8), normal(4, seed=9), c([1, 2, 0.5, 3]), axis=1,
                    training=True,
                ),
                3,
            ),
            image,
        ),
        Case(
            "batch_norm plain",
            lambda x: items(
                op.nn.batch_norm(
                    x, normal(7), normal(7), normal(7, seed=9), c([1, 2, 0.5, 3, 1, 2, 4]), axis=3,
                    epsilon=0.1, center=False, scale=False, training=False,
                ),
                1,
            ),
            image,
        ),
        Case("layer_norm", lambda x: op.nn.layer_norm(x, normal(7), normal(7), -1), image),
        Case("rms_norm", lambda x: op.nn.rms_norm(x, normal(7), -1, 1e-5), image),
        Case(
            "group_norm",
            lambda x: op.nn.group_norm(x, normal(4), normal(4, seed=8), 2, 1, [2, 3]),
            image,
        ),
        Case(
            "group_norm last",
            lambda x: op.nn.group_norm(x, normal(6), normal(6, seed=8), 3, 2, [1], center=False),
            ((1, 5, 6),),
        ),
        Case(
            "layer_norm plain",
            lambda x: op.nn.layer_norm(x, normal(7), normal(7), -1, center=False, scale=False),
            image,
        ),
        Case(
            "layer_norm two",
            lambda x: op.nn.layer_norm(x, normal(9, 7), normal(9, 7), [-2, -1], 0.01),
            image,
        ),
    ]  # fmt: skip
    return found


def convolutions() -> list[Case]:
    return [
        Case("conv1d", lambda x: op.nn.conv1d(x, normal(6, 4, 3), 2, (1, 2)), ((1, 4, 11),)),
        Case(
            "conv1d NWC",
            lambda x: op.nn.conv1d(x, normal(6, 4, 3), padding=1, data_layout="NWC"),
            ((1, 11, 4),),
        ),
        Case("conv2d", lambda x: op.nn.conv2d(x, normal(6, 4, 3, 2), padding=1), ((1, 4, 9, 7),)),
        Case(
            "conv2d uneven",
            lambda x: op.nn.conv2d(x, normal(6, 4, 3, 3), (2, 1), (0, 1, 2, 3), (1, 2)),
            ((1, 4, 9, 7),),
        ),
        Case(
            "conv2d NHWC HWIO",
            lambda x: op.nn.conv2d(
                x, normal(3, 3, 4, 6), 2, (0, 0, 1, 1), data_layout="NHWC", kernel_layout="HWIO"
            ),
            ((1, 8, 8, 4),),
        ),
        Case(
            "conv2d groups",
            lambda x: op.nn.conv2d(x, normal(8, 2, 3, 3), groups=2),
            ((1, 4, 9, 7),),
        ),
        Case(
            "conv2d depthwise",
            lambda x: op.nn.conv2d(x, normal(8, 1, 3, 3), groups=4, data_layout="NHWC"),
            ((1, 9, 7, 4),),
        ),
        Case("conv3d", lambda x: op.nn.conv3d(x, normal(3, 2, 2, 3, 2), 2), ((1, 2, 5, 6, 4),)),
        Case(
            "conv1d_transpose",
            lambda x: op.nn.conv1d_transpose(x, normal(4, 3, 3), 2, (1, 0), 1),
            ((1, 4, 6),),
        ),
        Case(
            "conv2d_transpose",
            lambda x: op.nn.conv2d_transpose(
                x, normal(4, 3, 3, 2), (2, 3), (1, 0, 0, 2), (1, 2), (1, 2)
            ),
            ((1, 4, 5, 4),),
        ),
        Case(
            "conv2d_transpose groups",
            lambda x: op.nn.conv2d_transpose(x, normal(4, 3, 3, 3), 2, 1, groups=2),
            ((1, 4, 5, 4),),
        ),
    ]


def resizes() -> list[Case]:
    modes = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    found = []
    for method, size in ((m, s) for m in ("linear", "nearest_neighbor") for s in ((5, 9), (4, 1))):
        for mode in modes:
            found.append(
                Case(
                    f"resize2d {method} {mode} {size}",
                    lambda x, s=size, m=method, c=mode: op.image.resize2d(
                        x, s, layout="NHWC", method=m, coordinate_transformation_mode=c
                    ),
                    ((1, 3, 4, 2),),
                )
            )
    return found


def pools() -> list[Case]:
    found = []
    shapes = {1: (1, 3, 11), 2: (1, 3, 11, 8), 3: (1, 3, 5, 6, 7)}
    for rank, shape in shapes.items():
        for kind in ("max", "avg"):
            pool = getattr(op.nn, f"{kind}_pool{rank}d")
            ones = (1,) * rank
            settings: dict[str, dict[str, Any]] = {
                "plain": {},
                "uneven": {"padding": (1,) * rank + (2,) * rank},
                "ceil": {"ceil_mode": True, "strides": (2,) * rank, "padding": ones},
                "ceil past": {"ceil_mode": True, "strides": (4,) * rank, "padding": ones * 2},
            }
            if kind == "avg":
                settings["padding counts"] = {
                    "count_include_pad": True,
                    "ceil_mode": True,
                    "strides": (2,) * rank,
                    "padding": (2,) * rank,
                }
            for setting, options in settings.items():
                options = {"pool_size": (3,) * rank, "strides": (2,) * rank, **options}
                found.append(
                    Case(
                        f"{kind}_pool{rank}d {setting}",
                        lambda x, f=pool, o=options: f(x, **o),
                        (shape,),
                    )
                )
            found.append(
                Case(
                    f"{kind}_pool{rank}d dilated",
                    lambda x, f=pool, r=rank: f(x, (2,) * r, (1,) * r, dilation=(2,) * r),
                    (shape,),
                )
            )
        adaptive = getattr(op.nn, f"adaptive_avg_pool{rank}d")
        found.append(
            Case(
                f"adaptive_avg_pool{rank}d",
                lambda x, f=adaptive, r=rank: f(x, (3, 4, 2)[:r]),
                (shape,),
            )
        )
    found.append(
        Case("max_pool2d NHWC", lambda x: op.nn.max_pool2d(x, 2, layout="NHWC"), ((1, 5, 6, 3),))
    )
    found.append(
        Case("avg_pool2d NHWC", lambda x: op.nn.avg_pool2d(x, 2, layout="NHWC"), ((1, 5, 6, 3),))
    )
    found.append(
        Case("max_pool2d int8", lambda x: op.nn.max_pool2d(x, 2, padding=1), ((1, 2, 5, 5),),
             -100, 100, "int8")
    )  # fmt: skip
    return found


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_reference(case: Case) -> None:
    check(case)


def test_every_numpy_meaning_has_a_torch_meaning_and_a_case() -> None:
    # A network is trained in its QDQ form: the integer form is made of it at the end.
    integers = {"tvm_compress.lookup", "tvm_compress.requantize", "tvm_compress.softmax"}
    assert set(TORCH) == set(MEANING) - integers
    used: set[str] = set()
    for case in CASES:
        for binding in module_of(case)["main"].body.blocks[0].bindings:
            value = binding.value
            if isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.Op):
                used.add(value.op.name)
    # What is missing is tested below.
    assert set(TORCH) - used == {"relax.quantize", "relax.dequantize"}


def quantised(dtype: str, axis: int, scale: Any, zero: Any) -> Callable[[Any], Any]:
    def build(x: Any) -> Any:
        q = op.quantize(x, c(scale), c(zero, "int8"), axis, dtype)
        return op.dequantize(q, c(scale), c(zero, "int8"), axis)

    return build


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantisation_equals_the_reference(dtype: str) -> None:
    # Powers of two: the quotients are exact, so no rounding can differ.
    check(Case("tensor", quantised(dtype, 1, 0.25, 3), ((1, 3, 40),), -50, 50))
    check(Case("channel", quantised(dtype, 1, [0.25, 2, 0.5], [3, 0, 7]), ((1, 3, 40),), -90, 90))
    check(Case("only", lambda x: op.quantize(x, c(0.5), c(1, "int8"), 1, dtype), ((1, 99),), -9, 9))


def test_gradient_passes_through_the_rounding_within_the_range_alone() -> None:
    net = TorchModule(module_of(Case("", quantised("int8", 1, 0.5, 0), ((1, 5),))))
    x = torch.tensor([[0.1, -0.7, 63.4, 64.0, -70.0]], requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 1, 1, 0, 0]]


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_straight_through_is_exact(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    for rounding in (torch.round, torch.trunc):
        assert torch.equal(straight_through(x, rounding(x)), rounding(x))


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    average=st.booleans(),
    ceil_mode=st.booleans(),
    include=st.booleans(),
)
def test_pools_equal_the_reference(
    seed: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, ...],
    dilation: tuple[int, int],
    average: bool,
    ceil_mode: bool,
    include: bool,
) -> None:
    def build(x: Any) -> Any:
        args = (x, kernel, strides, padding, dilation, ceil_mode)
        return op.nn.avg_pool2d(*args, include) if average else op.nn.max_pool2d(*args)

    # A window of padding alone has no maximum: the reference gives -inf, which torch equals.
    check(Case("pool", build, ((1, 2, *size),)), seed)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    data_layout=st.sampled_from(["NCHW", "NHWC"]),
    kernel_layout=st.sampled_from(["OIHW", "HWIO", "OHWI"]),
)
def test_convolutions_equal_the_reference(
    seed: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, ...],
    dilation: tuple[int, int],
    groups: int,
    data_layout: str,
    kernel_layout: str,
) -> None:
    sizes = {"O": 4, "I": 4 // groups, "H": kernel[0], "W": kernel[1]}
    weight = normal(*[sizes[letter] for letter in kernel_layout], seed=seed)
    shape = (1, 4, *size) if data_layout == "NCHW" else (1, *size, 4)

    def build(x: Any) -> Any:
        return op.nn.conv2d(
            x, weight, strides, padding, dilation, groups, data_layout, kernel_layout
        )

    check(Case("conv", build, (shape,)), seed)
