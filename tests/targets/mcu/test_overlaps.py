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
from tests.targets.mcu.mve.test_groups import addition
from tests.targets.mcu.nets import Net, network
from tvm_compress.build import prepare
from tvm_compress.passes import Patchwise
from tvm_compress.targets.mcu import memory
from tvm_compress.targets.mcu.lower import lower
from tvm_compress.targets.mcu.program import Program, Storage, make_program
from tvm_compress.targets.mcu.target import FirmwareArtifact, generate


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
    program = program_of(chain(1))
    assert program.plan is not None
    assert replay(program) > 0
    step = next(s for s in program.steps if s.outputs[0].name in program.plan.over and s.distances)
    (storage,) = (s for s in step.inputs if s.place == "arena")
    program.plan.offsets[storage.name] -= 16
    with pytest.raises(AssertionError):
        replay(program)


# --- on the board


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
                x = addition(net, emit(net, y, one, 100 * seed + i), x)
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


def take_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the planner take all pairs, though the arena be larger."""
    found: list[Any] = []
    plan = memory._plan

    def choose(lifetimes: Any, pairs: Any, *_: Any) -> Any:
        found[:] = pairs
        return pairs

    monkeypatch.setattr(memory, "_pairs_that_pack", choose)
    monkeypatch.setattr(memory, "_plan", lambda lives, _, *rest: plan(lives, found, *rest))


@pytest.fixture(params=["where it helps", "wherever it may"])
def every(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether outputs lie over inputs wherever kernels allow it, not at the peak alone."""
    if request.param == "wherever it may":
        take_every_pair(monkeypatch)
        return True
    return False


@pytest.mark.parametrize("seed", range(5))
def test_chains_on_the_board(seed: int, every: bool) -> None:
    mod = chain(seed)
    program = program_of(mod)
    assert program.plan is not None
    assert replay(program) > (3 if every else 0)
    if not every:
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


def test_chains_take_every_kind_of_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    take_every_pair(monkeypatch)
    grown, kinds = 0, set()
    for seed in range(5):
        program = program_of(chain(seed))
        assert program.plan is not None
        offsets, over = program.plan.offsets, program.plan.over
        grown += sum(offsets[other] > offsets[tensor] for tensor, other in over.items())
        for step in program.steps:
            if step.outputs[0].name in over:
                kinds.add((step.kind, sum(s.place == "arena" for s in step.inputs)))
    assert grown > 5
    # A convolution over its input and over its residual, and a depthwise one.
    assert kinds >= {("conv2d", 1), ("conv2d", 2), ("depthwise_conv2d", 1)}


def test_a_kernel_without_scratch_memory_reserves_none() -> None:
    program = program_of(chain(0), mve=True)
    steps = [s for s in program.steps if s.layer and s.layer.assembly and not s.layer.scratch_bytes]
    assert steps
    for step in steps:
        assert step.workspaces == ()
    sources = generate(chain(0), "net", mve=True)
    assert "NULL);" in sources.files["net_layers.c"]
