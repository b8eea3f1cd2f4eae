"""Outputs that lie partly over their inputs: plans replayed, and their bytes on the board."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from tests.targets.mcu.integer_nets import Layer, emit
from tests.targets.mcu.nets import Net, const, network
from tvm_compress.build import prepare
from tvm_compress.ops.requantize import quantize_multiplier, requantize
from tvm_compress.passes import Patchwise
from tvm_compress.targets.mcu.lower import lower
from tvm_compress.targets.mcu.program import Program, Storage, make_program
from tvm_compress.targets.mcu.target import FirmwareArtifact


def replay(program: Program) -> int:
    """Run the plan on a map of who owns each byte; give how many steps write over an input.

    A step needs all bytes of its inputs. It may begin to write over one of them only so far before
    it as its kernel says; what a later step reads it must leave alone, which that step sees.
    """
    assert program.plan is not None
    offsets, found = program.plan.offsets, 0
    owner: list[Storage | None] = [None] * program.plan.arena_bytes

    def own(storage: Storage) -> range:
        begin = offsets[storage.name]
        return range(begin, begin + storage.size_bytes)

    for step in program.steps:
        for storage in step.inputs:
            if storage.place == "arena":
                assert all(owner[byte] is storage for byte in own(storage)), step.name
        written = [s for s in (*step.outputs, *step.workspaces) if s.place == "arena"]
        assert len({b for s in written for b in own(s)}) == sum(s.size_bytes for s in written)
        shared = False
        for target in written:
            for i, storage in enumerate(step.inputs):
                if storage.place != "arena" or storage is target:
                    continue
                if not set(own(storage)) & set(own(target)):
                    continue
                assert target is step.outputs[0], f"{step.name}: scratch over an input"
                shared = True
                before = offsets[storage.name] - offsets[target.name]
                rules = [before == 0] if i in step.in_place else []
                rules += [before >= d for at, d in step.distances if at == i]
                assert any(rules), (step.name, before)
        found += shared
        for target in written:
            for byte in own(target):
                owner[byte] = target
    return found


def program_of(mod: tvm.IRModule, **extension: bool) -> Program:
    return make_program(*lower(prepare(mod, "error"), **(extension or {"dsp": True})))


# The most that the four networks take on a Cortex-M4, and the scratch memory of kernels within.
_NETWORKS = {"kws_dscnn": 10_240, "vww_96": 40_960, "ic_resnet8": 38_912, "ad01": 1_536}


@pytest.mark.parametrize("name", _NETWORKS)
def test_plans_of_networks(shared_data: Path, name: str) -> None:
    mod = tc.load(shared_data / "mlperf_tiny" / f"{name}_int8.tflite")
    program = program_of(mod)
    assert program.plan is not None
    assert replay(program) > 0 or name == "ad01"
    assert program.plan.arena_bytes == program.plan.bound_bytes <= _NETWORKS[name]
    for extension in ({"dsp": False}, {"mve": True}):
        replay(program_of(mod, **extension))


@pytest.mark.parametrize("patches", [2, 3])
def test_plans_of_patches(shared_data: Path, patches: int) -> None:
    mod = tc.load(shared_data / "mlperf_tiny" / "vww_96_int8.tflite")
    program = program_of(Patchwise(layers=9, patches=patches)(mod))
    assert program.plan is not None
    assert replay(program) > 0
    assert program.plan.arena_bytes <= 1.05 * program.plan.bound_bytes


def test_a_plan_that_spoils_an_input_is_seen() -> None:
    program = program_of(chain(0))
    assert program.plan is not None
    assert replay(program) > 0
    step = next(s for s in program.steps if s.outputs[0].name in program.plan.over and s.distances)
    (storage,) = (s for s in step.inputs if s.place == "arena")
    program.plan.offsets[storage.name] -= 16
    with pytest.raises(AssertionError):
        replay(program)


# --- on the board


def _added(net: Net, x: Any, y: Any, seed: int) -> Any:
    """A residual: the two are rescaled and added, as what TFLite's ADD becomes."""
    chance = np.random.default_rng(seed)

    def scaled(value: Any) -> Any:
        wide = net(relax.op.astype(value, "int32"))
        wide = net(relax.op.left_shift(wide, const(20, "int32")))
        factor = quantize_multiplier(chance.uniform(0.3, 0.7), "double")
        return net(
            requantize(wide, *factor, axis=3, zero_point=0, rounding="double", out_dtype="int32")
        )

    total = net(relax.op.add(scaled(x), scaled(y)))
    factor = quantize_multiplier(2.0**-20, "double")
    return net(requantize(total, *factor, axis=3, zero_point=3, rounding="double"))


def chain(seed: int) -> tvm.IRModule:
    """A random chain of convolutions that grow and shrink the map, some behind a residual."""
    chance = np.random.default_rng(seed)
    height, width, channels = (int(n) for n in (*chance.integers(9, 14, 2), chance.integers(3, 9)))

    def describe(net: Net, x: Any) -> Any:
        size = [1, height, width, channels]
        for i in range(9):
            kind = ["pointwise", "3x3", "depthwise", "pointwise", "residual"][chance.integers(5)]
            strided = chance.random() < 0.25 and min(size[1:3]) > 4
            outputs = int(chance.choice([size[3], 4, 7, 12, 16, 24]))
            one = Layer((*size,), (outputs, size[3], 1, 1), "")  # type: ignore[arg-type]
            if kind in ("3x3", "residual"):
                one = replace(one, weight=(outputs, size[3], 3, 3), pad=(1, 1, 1, 1))
            if kind == "residual":
                one = replace(one, weight=(size[3], size[3], 3, 3))
                # What the residual waits for, in front of it.
                y = emit(net, x, one, 100 * seed + 50 + i)
                x = _added(net, emit(net, y, one, 100 * seed + i), x, i)
                continue
            if kind == "depthwise":
                outputs = size[3]
                one = replace(one, weight=(outputs, 1, 3, 3), pad=(1, 1, 1, 1), groups=outputs)
            if strided:
                one = replace(one, strides=(2, 2))
                size[1:3] = [-(-n // 2) for n in size[1:3]]
            x = emit(net, x, one, 100 * seed + i)
            size[3] = outputs
        # Nothing of it is computed in the caller's output.
        return net(relax.op.permute_dims(x, [0, 3, 1, 2]))

    return network({"x": ((1, height, width, channels), "int8")}, describe)


@pytest.mark.parametrize("seed", range(6))
def test_chains_on_the_board(seed: int) -> None:
    mod = chain(seed)
    program = program_of(mod)
    assert program.plan is not None
    assert replay(program) > 0
    assert program.plan.arena_bytes <= 1.1 * program.plan.bound_bytes
    built = tc.build(mod, board="cortex-m4")
    assert isinstance(built, FirmwareArtifact)
    assert built.firmware.model.arena_bytes == program.plan.arena_bytes
    (shape,) = ([int(n) for n in p.ty.shape] for p in mod["main"].params)
    x = np.random.default_rng(seed).integers(-128, 128, (3, *shape[1:])).astype(np.int8)
    right = tc.build(mod, target="reference").run(x)
    for name, value in built.run(x).items():
        assert len(np.unique(right[name])) > 8
        np.testing.assert_array_equal(value, right[name])


def test_chains_take_every_kind_of_overlap() -> None:
    exact = before = 0
    for seed in range(6):
        program = program_of(chain(seed))
        assert program.plan is not None
        offsets = program.plan.offsets
        for tensor, other in program.plan.over.items():
            apart = offsets[other] - offsets[tensor]
            exact, before = exact + (apart == 0), before + (apart > 0)
    assert exact > 3
    assert before > 3


def test_a_kernel_without_scratch_memory_reserves_none() -> None:
    size = (1, 8, 8, 16)

    def describe(net: Net, x: Any) -> Any:
        x = emit(net, x, Layer(size, (16, 16, 1, 1), ""), 0)
        return net(relax.op.nn.max_pool2d(x, (2, 2), (2, 2), layout="NHWC"))

    program = program_of(network({"x": (size, "int8")}, describe), mve=True)
    step = program.steps[-1]
    assert step.layer is not None
    assert step.layer.assembly is not None
    assert step.workspaces == ()
