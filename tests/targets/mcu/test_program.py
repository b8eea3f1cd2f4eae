from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

from tests.targets.mcu.nets import Net, assert_close, const, network, normal, shared
from tests.targets.mcu.test_lower import WITHOUT_KERNEL
from tvm_compress import build
from tvm_compress.errors import UnsupportedError
from tvm_compress.targets import reference
from tvm_compress.targets.mcu.lower import lower
from tvm_compress.targets.mcu.memory import Lifetime, live_set_bound
from tvm_compress.targets.mcu.program import ARENA_ALIGNMENT, Program, make_program
from tvm_compress.tensors import input_specs

Array = NDArray[Any]
op = relax.op
X = (1, 4, 6)


def program_of(mod: tvm.IRModule) -> Program:
    return make_program(*lower(mod))


def drawn(mod: tvm.IRModule, seed: int = 0) -> dict[str, Array]:
    chance = np.random.default_rng(seed)
    arrays = {}
    for spec in input_specs(mod):
        if spec.dtype.startswith("float"):
            arrays[spec.name] = chance.standard_normal(spec.shape).astype(spec.dtype)
        elif spec.dtype == "bool":
            arrays[spec.name] = chance.random(spec.shape) < 0.5
        else:
            low = 0 if spec.dtype.startswith("u") else -4
            arrays[spec.name] = chance.integers(low, 5, spec.shape).astype(spec.dtype)
    return arrays


def check(mod: tvm.IRModule) -> Program:
    """Run on this machine, hold to the reference, give the program."""
    inputs = drawn(mod)
    expected = reference.run(mod, inputs)
    actual = build(mod).run(inputs)
    assert list(actual) == list(expected)
    for name, value in expected.items():
        if value.dtype.kind == "f":
            assert_close(actual[name], value, 1e-5)
        else:
            assert actual[name].dtype == value.dtype
            np.testing.assert_array_equal(actual[name], value)
    return program_of(mod)


def kinds(program: Program) -> list[str]:
    return ["copy" if step.function is None else "call" for step in program.steps]


# What is given out, and which steps that takes.
OUTPUTS: dict[str, tuple[Callable[[Net, Any], Any], list[str]]] = {
    "an input": (lambda net, x: x, ["copy"]),
    "an input in another shape": (lambda net, x: net(op.reshape(x, (2, 12))), ["copy"]),
    "a constant": (lambda net, x: [net(op.nn.relu(x)), const(normal(3))], ["call", "copy"]),
    "a result": (lambda net, x: net(op.nn.relu(x)), ["call"]),
    "a result in another shape": (
        lambda net, x: net(op.reshape(net(op.nn.relu(x)), (24,))),
        ["call"],
    ),
    "an input twice": (lambda net, x: [x, x], ["copy", "copy"]),
    "a result and an input": (lambda net, x: [net(op.nn.relu(x)), x], ["call", "copy"]),
    "a result twice": (
        lambda net, x: (lambda y: [y, y])(net(op.nn.relu(x))),
        ["call", "copy"],
    ),
    "a result in two shapes": (
        lambda net, x: (lambda y: [net(op.reshape(y, (4, 6))), net(op.reshape(y, (6, 4)))])(
            net(op.nn.relu(x))
        ),
        ["call", "copy"],
    ),
    "a result that is also read": (
        lambda net, x: (lambda y: [y, net(op.nn.softmax(y))])(net(op.nn.relu(x))),
        ["call", "call"],
    ),
    "both halves": (
        lambda net, x: (lambda p: [net(p[0]), net(p[1])])(net(op.split(x, 2, axis=1))),
        ["call"],
    ),
    "one half": (lambda net, x: net(net(op.split(x, 2, axis=1))[1]), ["call"]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_whatever_is_given_out(name: str) -> None:
    describe, steps = OUTPUTS[name]
    program = check(network({"x": X}, describe))
    assert kinds(program) == steps


def test_several_inputs_and_outputs_keep_their_order() -> None:
    def describe(net: Net, b: Any, a: Any) -> Any:
        return [net(op.add(a, b)), net(op.subtract(a, b)), net(op.multiply(a, a))]

    program = check(network({"b": (2, 3), "a": (2, 3)}, describe, outputs=["s", "d", "q"]))
    assert [spec.name for spec in program.inputs] == ["b", "a"]
    assert [spec.name for spec in program.outputs] == ["s", "d", "q"]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "float64"])
def test_tensors_of_other_dtypes(dtype: str) -> None:
    def describe(net: Net, x: Any) -> Any:
        doubled = net(op.add(x, const(np.arange(6), dtype)))
        return [doubled, net(op.multiply(doubled, const(3, dtype)))]

    program = check(network({"x": ((4, 6), dtype)}, describe))
    assert {spec.dtype for spec in (*program.inputs, *program.outputs)} == {dtype}


def test_truth_values() -> None:
    def describe(net: Net, x: Any, mask: Any) -> Any:
        above = net(op.greater(x, const(0.25)))
        both = net(op.logical_and(above, mask))
        return [both, net(op.where(both, x, const(np.zeros(6))))]

    program = check(network({"x": (5, 6), "mask": ((5, 6), "bool")}, describe))
    assert [spec.dtype for spec in program.outputs] == ["bool", "float32"]


def test_64_bit_indices() -> None:
    def describe(net: Net, tokens: Any) -> Any:
        rows = net(op.take(const(normal(5, 3)), tokens, axis=0))
        return [rows, net(op.argmax(rows, axis=1))]

    mod = network({"tokens": ((7,), "int64")}, describe)
    tokens = np.array([0, 4, 2, 2, 1, 3, 4])
    expected = reference.run(mod, tokens)
    actual = build(mod).run(tokens)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value)
        assert actual[name].dtype == value.dtype


def test_an_embedding_of_shared_weights() -> None:
    mod = network(
        {"tokens": ((7,), "int64")},
        lambda net, tokens: net(op.take(net(shared((5, 3)), "table"), tokens, axis=0)),
    )
    tokens = np.array([0, 4, 2, 2, 1, 3, 4])
    np.testing.assert_array_equal(build(mod).run(tokens)["y"], reference.run(mod, tokens)["y"])


@pytest.mark.parametrize("name", WITHOUT_KERNEL)
def test_operators_without_a_kernel_never_decode_a_weight_whole(name: str) -> None:
    inputs, describe = WITHOUT_KERNEL[name]
    program = program_of(network(inputs, describe))
    (step,) = program.steps
    assert step.workspaces == ()
    assert program.plan is not None
    assert program.plan.arena_bytes == 0
    # Codes and centroids as they are, and no array on the stack beside.
    assert [s.dtype for s in step.inputs if s.place == "flash"] == ["uint8", "float32"]
    assert step.function is not None
    declared = re.findall(r"^ +\w+ \w+\[(\d+)\]", program.functions[step.function].body, re.M)
    assert all(int(count) <= 2 for count in declared)


def test_parts_are_joined() -> None:
    def describe(net: Net, x: Any) -> Any:
        first, second = net(op.nn.relu(x)), net(op.tanh(x))
        return net(op.concat([first, second, x], axis=1))

    check(network({"x": X}, describe))


# -- memory ---------------------------------------------------------------------------------------


def test_a_reshape_moves_nothing() -> None:
    def describe(net: Net, x: Any) -> Any:
        y = net(op.nn.softmax(x))
        for shape in ((24,), (3, 8), (2, 12)):
            y = net(op.nn.softmax(net(op.reshape(y, shape))))
        return y

    program = check(network({"x": X}, describe))
    assert kinds(program) == ["call"] * 4


def test_tensors_that_are_never_live_together_share_bytes() -> None:
    def describe(net: Net, x: Any) -> Any:
        for i in range(6):
            x = net(op.matmul(x, const(normal(16, 16, seed=i) / 4)))
        return x

    program = check(network({"x": (1, 16)}, describe))
    assert program.plan is not None
    assert program.plan.arena_bytes == 2 * 64


def test_the_plan_holds_what_is_live_and_no_more() -> None:
    def describe(net: Net, x: Any) -> Any:
        first = net(op.nn.relu(net(op.matmul(x, const(normal(16, 40))))))
        second = net(op.nn.softmax(net(op.matmul(first, const(normal(40, 40))))))
        return net(op.add(net(op.multiply(first, second)), net(op.tanh(first))))

    program = check(network({"x": (1, 16)}, describe))
    spans: dict[str, list[int]] = {}
    sizes = {}
    for index, step in enumerate(program.steps):
        for storage in (*step.inputs, *step.outputs, *step.workspaces):
            if storage.place == "arena":
                spans.setdefault(storage.name, []).append(index)
                sizes[storage.name] = storage.size_bytes
    lifetimes = [Lifetime(n, sizes[n], min(at), max(at)) for n, at in spans.items()]
    assert lifetimes
    assert program.plan is not None
    assert set(program.plan.offsets) == set(spans)
    assert program.plan.arena_bytes == live_set_bound(lifetimes, ARENA_ALIGNMENT)
    for a in lifetimes:
        for b in lifetimes:
            if a.name < b.name and a.first <= b.last and b.first <= a.last:
                low, high = sorted((a, b), key=lambda life: program.plan.offsets[life.name])  # type: ignore[union-attr]
                end = program.plan.offsets[low.name] + low.size_bytes
                assert end <= program.plan.offsets[high.name]


def test_results_are_written_straight_into_the_output() -> None:
    program = program_of(network({"x": X}, lambda net, x: net(op.nn.relu(x))))
    assert [storage.place for step in program.steps for storage in step.outputs] == ["output"]
    assert program.plan is not None
    assert program.plan.arena_bytes == 0


def test_a_weight_of_two_layers_lies_in_flash_once() -> None:
    def describe(net: Net, x: Any) -> Any:
        w = net(shared((16, 16)), "w")
        return net(op.matmul(net(op.nn.relu(net(op.matmul(x, w)))), w))

    program = check(network({"x": (2, 16)}, describe))
    assert len({id(s) for step in program.steps for s in step.inputs if s.is_weight}) == len(
        [s for s in program.constants if s.is_weight]
    )
    assert len(program.steps) == 2
    weights = [tuple(id(s) for s in step.inputs if s.is_weight) for step in program.steps]
    assert weights[0] == weights[1]


def test_loop_nests_with_one_text_are_one_function() -> None:
    def describe(net: Net, x: Any) -> Any:
        for i in range(4):
            x = net(op.matmul(x, const(normal(16, 16, seed=i) / 4)))
        return x

    program = check(network({"x": (1, 16)}, describe))
    assert len(program.functions) == 1
    assert {step.function for step in program.steps} == {0}


# -- what has no form -----------------------------------------------------------------------------


def test_a_call_that_is_not_lowered() -> None:
    mod = network({"x": X}, lambda net, x: net(op.nn.relu(x), "act"))
    with pytest.raises(UnsupportedError) as caught:
        make_program(mod, {})
    assert str(caught.value) == (
        "c: relax.nn.relu (bound to act) has no C form; expected an operator that TVM legalises "
        "to loops."
    )


@pytest.mark.parametrize("what", ["input", "inside"])
def test_a_dtype_without_a_c_type(what: str) -> None:
    def describe(net: Net, x: Any) -> Any:
        if what == "input":
            return net(op.nn.relu(x))
        return net(op.astype(net(op.nn.softmax(net(op.astype(x, "float16")))), "float32"))

    mod = network({"x": (X, "float16" if what == "input" else "float32")}, describe)
    with pytest.raises(UnsupportedError, match="is float16, which has no type in C99"):
        build(mod)


def test_an_operator_that_tvm_cannot_lower() -> None:
    mod = network({"x": (4, 4)}, lambda net, x: net(op.sort(x), "sorted"))
    with pytest.raises(UnsupportedError, match=r"has no C form|cannot emit"):
        build(mod)
