"""Outputs that are written over an input: which may be, and that they are right."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax, tirx

from tests.targets.mcu.nets import PREAMBLE, Net, const, load_c, network, normal, shared
from tvm_compress import build
from tvm_compress.targets import reference
from tvm_compress.targets.mcu.emit import CFunction, emit_function
from tvm_compress.targets.mcu.lower import lower
from tvm_compress.targets.mcu.program import Program, make_program

Array = NDArray[Any]
op = relax.op
X = (1, 4, 6)


def pooled(net: Net, x: Any) -> Any:
    square = net(op.reshape(x, (1, 1, 4, 6)))
    return net(op.nn.max_pool2d(square, (3, 3), padding=(1, 1)))


# One loop nest each, and the arguments that its output may take the bytes of.
NESTS: dict[str, tuple[Callable[[Net, Any, Any], Any], tuple[int, ...]]] = {
    "a sum of two": (lambda net, x, z: net(op.add(x, z)), (0, 1)),
    "a row for all": (lambda net, x, z: net(op.add(x, const(normal(6)))), (0,)),
    "one argument twice": (
        lambda net, x, z: net(op.add(net(op.multiply(x, x)), net(op.exp(z)))),
        (0, 1),
    ),
    "a choice": (lambda net, x, z: net(op.where(net(op.greater(x, z)), x, z)), (0, 1)),
    "another shape": (
        lambda net, x, z: net(op.reshape(net(op.tanh(net(op.reshape(x, (4, 6))))), (2, 12))),
        (0,),
    ),
    "read whole in front": (lambda net, x, z: net(op.nn.softmax(x)), (0,)),
    "a mean taken off": (
        lambda net, x, z: net(op.subtract(x, net(op.mean(x, axis=2, keepdims=True)))),
        (0,),
    ),
    "first rows": (lambda net, x, z: net(op.strided_slice(x, [1], [0], [2])), (0,)),
    "narrower elements": (
        lambda net, x, z: net(op.astype(net(op.round(net(op.multiply(x, z)))), "int8")),
        (0, 1),
    ),
    # Types that may not alias in C.
    "other elements": (lambda net, x, z: net(op.astype(x, "int32")), ()),
    "wider elements": (lambda net, x, z: net(op.astype(x, "float64")), ()),
    "later rows": (lambda net, x, z: net(op.strided_slice(x, [1], [1], [3])), ()),
    "another order": (lambda net, x, z: net(op.permute_dims(x, [0, 2, 1])), ()),
    "turned around": (lambda net, x, z: net(op.flip(x, 1)), ()),
    "neighbours": (lambda net, x, z: pooled(net, x), ()),
    "a sum over an axis": (lambda net, x, z: net(op.sum(x, axis=1)), ()),
    "a border": (lambda net, x, z: net(op.nn.pad(x, [0, 0, 1, 1, 0, 0])), ()),
    "a row spread out": (
        lambda net, x, z: net(op.add(net(op.strided_slice(x, [1], [0], [1])), z)),
        (1,),
    ),
    "a product": (
        lambda net, x, z: net(op.matmul(x, net(op.reshape(z, (1, 6, 4))))),
        (),
    ),
}


def nest(name: str) -> tuple[CFunction, tuple[int, ...], tirx.PrimFunc]:
    lowered, _ = lower(network({"x": X, "z": X}, NESTS[name][0]))
    (function,) = (f for _, f in lowered.functions_items() if isinstance(f, tirx.PrimFunc))
    return *emit_function(function, 1), function


@pytest.mark.parametrize("name", NESTS)
def test_which_arguments_may_lie_under_the_output(name: str) -> None:
    assert nest(name)[0].in_place == NESTS[name][1]


def call(
    function: CFunction, spaces: tuple[int, ...], inputs: list[Array], size: int, over: int | None
) -> bytes:
    """Call an emitted function with the output in a place of its own, or over an input."""
    if over is not None:
        function = function.sharing((over, len(inputs)))
    pointers = ", ".join(f"p[{i}]" for i in range(len(function.parameters)))
    entry = f"void g(void **p);\nvoid g(void **p) {{ f({pointers}); }}\n"
    text = PREAMBLE + function.definition("f") + entry
    held = [x.copy() for x in inputs]
    output = np.zeros(size, np.uint8) if over is None else held[over]
    scratch = [np.zeros(space, np.uint8) for space in spaces]
    arrays = [*held, output, *scratch]
    load_c(text, "g")((ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays)))
    return output.tobytes()[:size]


@pytest.mark.parametrize(
    ("name", "over"), [(n, i) for n, (_, found) in NESTS.items() for i in found]
)
def test_the_same_bytes_over_an_argument(name: str, over: int) -> None:
    function, spaces, primitive = nest(name)
    chance = np.random.default_rng(0)
    tensors = [param.ty for param in primitive.params]
    inputs = [
        chance.standard_normal([int(n) for n in ty.shape]).astype("float32") for ty in tensors[:-1]
    ]
    size = int(np.prod([int(n) for n in tensors[-1].shape])) * (1 if "narrower" in name else 4)
    assert call(function, spaces, inputs, size, over) == call(function, spaces, inputs, size, None)


def test_a_nest_that_may_not_would_be_wrong() -> None:
    function, spaces, _ = nest("turned around")
    x = normal(*X)
    assert call(function, spaces, [x], x.nbytes, 0) != call(function, spaces, [x], x.nbytes, None)


def test_parameters_that_share_lose_restrict_alone() -> None:
    function = CFunction(
        ("const float* restrict a", "const float* restrict b", "float* restrict y"), "", (1,)
    )
    assert function.sharing({1, 2}).parameters == (
        "const float* restrict a",
        "const float* b",
        "float* y",
    )


# --- programs


def program_of(mod: Any) -> Program:
    return make_program(*lower(mod))


def shared_steps(program: Program) -> int:
    """How many steps write over an input, by the addresses in the plan; the functions know it."""
    assert program.plan is not None
    offsets, found = program.plan.offsets, 0

    def where(storage: Any) -> Any:
        return (storage.place, offsets.get(storage.name, storage.name))

    for index, step in enumerate(program.steps):
        (target,) = step.outputs
        for i, storage in enumerate(step.inputs):
            if storage.place in ("arena", "output") and where(storage) == where(target):
                assert i in step.in_place
                assert step.function is not None
                parameters = program.functions[step.function].parameters
                assert "restrict" not in parameters[i]
                assert "restrict" not in parameters[len(step.inputs)]
                assert not any(
                    storage is read for later in program.steps[index + 1 :] for read in later.inputs
                )
                found += 1
    return found


def check(mod: Any) -> Program:
    """Hold the C on this machine to the reference."""
    names = [param.name for param in mod["main"].params]
    shapes = {param.name: [int(n) for n in param.ty.shape] for param in mod["main"].params}
    inputs = {name: normal(*shapes[name], seed=i) for i, name in enumerate(names)}
    before = {name: x.copy() for name, x in inputs.items()}
    expected, actual = reference.run(mod, inputs), build(mod).run(inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=2e-5, atol=2e-5)
    for name, value in before.items():
        np.testing.assert_array_equal(inputs[name], value, "an input was written")
    return program_of(mod)


def weight(kind: str, *shape: int) -> Any:
    if kind == "shared":
        return shared(shape, zeros=0.2)
    value = normal(*shape, seed=1) / 8
    return const(
        np.where(np.random.default_rng(2).random(shape) < 0.9, 0, value)
        if kind == "sparse"
        else value
    )


LAYOUTS = {"dense": "dense", "shared": "dense_codes", "sparse": "gap_codes"}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_residual_is_added_in_place(kind: str) -> None:
    def describe(net: Net, x: Any) -> Any:
        first = net(op.nn.softmax(x, axis=1))
        middle = net(op.nn.conv2d(first, net(weight(kind, 8, 8, 3, 3), "w"), padding=(1, 1)))
        total = net(op.nn.relu(net(op.add(middle, first))))
        return net(op.mean(total, axis=(2, 3)))

    # The residual is also what the convolution reads: it must not be written.
    program = check(network({"x": (1, 8, 7, 5)}, describe))
    assert [step.layer.layout for step in program.steps if step.layer] == [LAYOUTS[kind]]
    assert shared_steps(program) == 0

    def longer(net: Net, x: Any) -> Any:
        first = net(op.nn.softmax(x, axis=1))
        middle = net(op.tanh(first))
        middle = net(op.nn.conv2d(middle, net(weight(kind, 8, 8, 3, 3), "w"), padding=(1, 1)))
        total = net(op.nn.relu(net(op.add(middle, first))))
        return net(op.mean(total, axis=(2, 3)))

    program = check(network({"x": (1, 8, 7, 5)}, longer))
    assert [step.layer.layout for step in program.steps if step.layer] == [LAYOUTS[kind]]
    assert shared_steps(program) == 1
    assert program.plan is not None
    assert program.plan.over == {program.steps[2].outputs[0].name: program.steps[0].outputs[0].name}
    # Two tensors while the convolution runs, not three.
    scratch = sum(space.size_bytes for space in program.steps[2].workspaces)
    assert program.live_bytes[2] == 2 * 8 * 7 * 5 * 4 + scratch


def test_a_chain_needs_one_tensor() -> None:
    def describe(net: Net, x: Any) -> Any:
        for _ in range(5):
            x = net(op.nn.softmax(x))
        return net(op.permute_dims(x, [0, 2, 1]))

    program = check(network({"x": (1, 24, 48)}, describe))
    assert program.plan is not None
    workspaces = max(sum(w.size_bytes for w in step.workspaces) for step in program.steps)
    assert program.plan.arena_bytes == 24 * 48 * 4 + workspaces
    # The first reads the caller's input, the last cannot.
    assert shared_steps(program) == 4
    assert program.live_bytes == [program.plan.arena_bytes] * 5 + [24 * 48 * 4]


def test_a_chain_is_computed_in_the_output() -> None:
    def describe(net: Net, x: Any) -> Any:
        for _ in range(3):
            x = net(op.nn.log_softmax(x))
        return [x, net(op.permute_dims(net(op.tanh(x)), [0, 2, 1]))]

    program = check(network({"x": X}, describe))
    assert [step.outputs[0].name for step in program.steps] == ["y0", "y0", "y0", "y1"]
    assert shared_steps(program) == 2


def test_what_is_read_again_stays() -> None:
    def describe(net: Net, x: Any) -> Any:
        kept = net(op.nn.softmax(x))
        other = net(op.nn.softmax(kept))
        return net(op.matmul(kept, net(op.reshape(other, (1, 6, 4)))))

    assert shared_steps(check(network({"x": X}, describe))) == 0


def test_an_input_of_the_network_stays() -> None:
    assert shared_steps(check(network({"x": X}, lambda net, x: net(op.nn.relu(x))))) == 0


STEPS: dict[str, Callable[[Net, Any, Any], Any]] = {
    "softmax": lambda net, a, b: net(op.nn.softmax(a)),
    "add": lambda net, a, b: net(op.add(a, b)),
    "mix": lambda net, a, b: net(op.multiply(net(op.tanh(a)), net(op.subtract(b, a)))),
    "flip": lambda net, a, b: net(op.flip(a, 3)),
    "norm": lambda net, a, b: net(op.subtract(a, net(op.mean(b, axis=3, keepdims=True)))),
    "conv": lambda net, a, b: net(op.add(net(op.nn.conv2d(a, const(normal(4, 4, 1, 1) / 4))), b)),
    "depthwise": lambda net, a, b: net(
        op.add(net(op.nn.conv2d(a, const(normal(4, 1, 3, 3) / 4), padding=(1, 1), groups=4)), b)
    ),
}


@given(
    st.lists(
        st.tuples(st.sampled_from(list(STEPS)), st.integers(1, 3), st.integers(1, 4)),
        min_size=2,
        max_size=7,
    ),
    st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_random_graphs(steps: list[tuple[str, int, int]], twice: bool) -> None:
    def describe(net: Net, x: Any) -> Any:
        values = [x, net(op.nn.softmax(x))]
        for name, a, b in steps:
            values.append(
                STEPS[name](net, values[-min(a, len(values))], values[-min(b, len(values))])
            )
        return values[-2:] if twice else values[-1]

    shared_steps(check(network({"x": (1, 4, 3, 5)}, describe)))


# --- order


def test_branches_run_one_after_the_other() -> None:
    def describe(net: Net, x: Any) -> Any:
        start = net(op.nn.softmax(x))
        wide = [net(op.matmul(start, const(normal(8, 64, seed=i)))) for i in range(4)]
        thin = [net(op.matmul(w, const(normal(64, 8, seed=i)))) for i, w in enumerate(wide)]
        return net(op.concat(thin, axis=1))

    program = check(network({"x": (1, 8)}, describe))
    assert program.plan is not None
    # One wide tensor at a time, and not four: beside it the start and its own thin one.
    assert program.plan.arena_bytes == 4 * 64 + 2 * 8 * 4
    assert [step.kind for step in program.steps[1:4]] == ["matmul", "matmul", "write_part"]
