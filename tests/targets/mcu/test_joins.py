"""Concatenations that are written part by part into the joined tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.targets.mcu.nets import Net, const, network, normal, stock_tvm
from tvm_compress import build, edge, ir
from tvm_compress.targets import reference
from tvm_compress.targets.mcu.lower import lower
from tvm_compress.targets.mcu.program import Program, make_program

op = relax.op
X = (2, 3, 4)


def check(mod: Any) -> Program:
    inputs = {
        p.name: normal(*(int(n) for n in p.ty.shape), seed=i)
        for i, p in enumerate(mod["main"].params)
    }
    expected, actual = reference.run(mod, inputs), build(mod).run(inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-6)
    lowered, layers = lower(mod)
    # It is an ordinary Relax module all the same.
    for value, stock in zip(expected.values(), stock_tvm(lowered, *inputs.values()), strict=True):
        np.testing.assert_allclose(stock, value, rtol=1e-5, atol=1e-6)
    assert not any(
        edge.op_name(b.value) == "relax.concat" for b in ir.bindings(ir.main_function(lowered))
    )
    return make_program(lowered, layers)


JOINS: dict[str, tuple[Callable[[Net, Any, Any], Any], int]] = {
    "the first axis": (lambda net, x, z: net(op.concat([x, z], 0)), 2),
    "the last axis": (lambda net, x, z: net(op.concat([x, z, x], -1)), 3),
    "a constant": (lambda net, x, z: net(op.concat([x, const(normal(2, 2, 4))], 1)), 2),
    "one alone": (lambda net, x, z: net(op.concat([x], 1)), 1),
    "itself": (lambda net, x, z: net(op.concat([x, x], 1)), 2),
    "of joins": (
        lambda net, x, z: net(op.concat([net(op.concat([x, z], 2)), net(op.concat([z, x], 2))], 1)),
        4,
    ),
    "of joins along one axis": (
        lambda net, x, z: net(op.concat([x, net(op.concat([z, x], 1)), z], 1)),
        4,
    ),
    "a join that is read too": (
        lambda net, x, z: (lambda y: [net(op.concat([y, x], 1)), net(op.nn.softmax(y))])(
            net(op.concat([x, z], 1))
        ),
        5,
    ),
    "a join that is read twice": (
        lambda net, x, z: (lambda y: net(op.concat([y, y], 1)))(net(op.concat([x, z], 1))),
        4,
    ),
    "two outputs": (lambda net, x, z: [net(op.concat([x, z], 1)), net(op.concat([z, x], 0))], 4),
}


@pytest.mark.parametrize("name", JOINS)
def test_joins(name: str) -> None:
    describe, steps = JOINS[name]
    assert len(check(network({"x": X, "z": X}, describe)).steps) == steps


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.data(),
)
@settings(max_examples=12, deadline=None)
def test_parts_of_any_shape(shape: list[int], parts: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))

    def describe(net: Net, *xs: Any) -> Any:
        return net(op.concat([net(op.tanh(x)) for x in xs], axis))

    inputs = {}
    for i, size in enumerate(parts):
        mine = list(shape)
        mine[axis] = size
        inputs[f"x{i}"] = tuple(mine)
    check(network(inputs, describe))


def test_a_part_dies_when_it_is_written() -> None:
    def describe(net: Net, x: Any) -> Any:
        parts = [net(op.matmul(x, const(normal(8, 64, seed=i)))) for i in range(6)]
        joined = net(op.concat(parts, axis=0))
        return net(op.matmul(joined, const(normal(64, 1))))

    program = check(network({"x": (4, 8)}, describe))
    part = 4 * 64 * 4
    assert program.plan is not None
    # The joined tensor and one part, and not six.
    assert program.plan.arena_bytes == 6 * part + part


def test_a_join_lies_in_the_output() -> None:
    program = check(network({"x": X, "z": X}, JOINS["the first axis"][0]))
    assert program.plan is not None
    assert program.plan.arena_bytes == 0
    assert {step.outputs[0].place for step in program.steps} == {"output"}


def test_names_of_layers_are_kept() -> None:
    def describe(net: Net, x: Any) -> Any:
        w = net(const(normal(4, 4)), "w")
        first = net(op.matmul(x, w), "y")
        # A part of the join y would be called y_1 too, were its name not out of the way.
        return net(op.concat([net(op.matmul(first, w), "y_1"), first], axis=0), "y")

    mod = network({"x": (4, 4)}, describe)
    program = check(mod)
    assert [step.layer is not None for step in program.steps] == [True, True, False, False]
