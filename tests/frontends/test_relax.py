"""Relax modules: from TVMScript, from BlockBuilder, with dynamic shapes, from a saved file."""

# TVMScript's annotations are calls, and a decorated class is a module: no type checker knows.
# mypy: disable-error-code="valid-type,no-untyped-def,index,misc,attr-defined,name-defined,type-arg"

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_compress import edge, ir
from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.ops import codebook
from tvm_compress.targets import reference
from tvm_compress.tensors import input_specs, output_specs


@I.ir_module
class Dynamic:
    @R.function
    def main(x: R.Tensor(("n", 3), "float32"), z: R.Tensor(("n", "m"), "float32")):
        with R.dataflow():
            y = R.nn.relu(x)
            w = R.sum(z, axis=[1], keepdims=True)
            u = R.add(y, w)
            R.output(u)
        return u


def refused(mod: Any, kind: type[Exception] = UnsupportedError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(mod, **options)
    return str(caught.value)


def test_the_batch_is_one_and_other_sizes_are_given() -> None:
    mod = load(Dynamic, shapes={"z": (1, 5)})
    assert [spec.shape for spec in input_specs(mod)] == [(1, 3), (1, 5)]
    mod = load(Dynamic, shapes={"x": (4, 3), "z": (4, 5)})
    assert [spec.shape for spec in input_specs(mod)] == [(4, 3), (4, 5)]
    assert output_specs(mod)[0].shape == (4, 3)
    x, z = np.ones((4, 3), np.float32), np.ones((4, 5), np.float32)
    np.testing.assert_array_equal(reference.run(mod, {"x": x, "z": z})["u"], np.full((4, 3), 6))


def test_a_size_that_stays_dynamic() -> None:
    assert refused(Dynamic) == (
        'z has the dynamic type R.Tensor((1, m), dtype="float32"); expected a static shape: give '
        "it to load with shapes={...}."
    )


def test_wrong_shapes() -> None:
    assert refused(Dynamic, shapes={"x": (2, 4), "z": (2, 5)}) == (
        "The input x has the static size 3 on axis 1; 4 was given: give the sizes that the model "
        "leaves open."
    )
    assert refused(Dynamic, shapes={"x": (2,)}) == (
        "The input x has 2 dimensions; the shape (2,) was given: give as many sizes."
    )
    assert refused(Dynamic, shapes={"q": (2,)}) == "There is no input q; expected x, z."
    assert refused(Dynamic, shapes={"x": (-2, 3)}) == (
        "The shape (-2, 3) was given for the input x; expected whole numbers from 1."
    )
    assert refused(Dynamic, shapes={"x": (2, 3), "z": (4, 5)}) == (
        "The input z has the size n on axis 0, which is 2 by another input; 4 was given: give one "
        "size for it."
    )


def test_a_size_that_only_the_run_can_tell() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor((4,), "float32")):
            with R.dataflow():
                y = R.nonzero(x)
                R.output(y)
            return y

    sentence = refused(Network)
    assert "dynamic type" in sentence and sentence.endswith("shapes={...}.")


def test_control_flow() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor((2,), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(
            (2,), "float32"
        ):
            if c:  # noqa: SIM108 - this is TVMScript
                y = R.add(x, x)
            else:
                y = R.multiply(x, x)
            return y

    assert refused(Network) == (
        "y is bound to a If; expected straight-line code: export the network without control flow."
    )


def test_no_main() -> None:
    assert refused(tvm.IRModule()).startswith("The module has no function main (it has none);")


def test_an_empty_batch_size_expression() -> None:
    @I.ir_module
    class Network:
        @R.function
        def main(x: R.Tensor(("2 * n", "n"), "float32")):
            with R.dataflow():
                y = R.nn.relu(x)
                R.output(y)
            return y

    assert refused(Network).startswith("x has the dynamic type R.Tensor((2 * n, n)")


def build(nan: bool = False) -> tvm.IRModule:
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    weight[0, 0] = np.nan if nan else 0
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            # Nested calls and constants without names, as people write them.
            y = relax.op.nn.relu(
                relax.op.add(relax.op.matmul(x, relax.const(weight)), relax.const(1.0))
            )
            y = builder.emit_output(y, "y")
        builder.emit_func_output(y)
    return builder.get()


def test_block_builder_and_back_from_a_file(tmp_path: Path) -> None:
    mod = load(build())
    assert list(ir.parameters(mod)) == ["matmul_weight"]
    x = np.asarray([[1, 2, 3]], np.float32)
    np.testing.assert_array_equal(reference.run(mod, x)["y"], [[17, 23]])
    path = tmp_path / "m.json"
    path.write_text(tvm.ir.save_json(mod))
    tvm.ir.assert_structural_equal(load(path), mod)
    path.write_text(tvm.ir.save_json(Dynamic))
    assert [s.shape for s in input_specs(load(path, shapes={"z": (1, 2)}))] == [(1, 3), (1, 2)]


def test_loading_twice_changes_nothing() -> None:
    tvm.ir.assert_structural_equal(load(load(build())), load(build()))


def test_nan_of_a_shared_weight_that_a_code_means() -> None:
    for code, refuse in ((1, True), (0, False)):
        codes = edge.constant(np.full((3, 2), code, np.uint8))
        shared = codebook(codes, edge.constant(np.asarray([0, np.nan], np.float32)))
        mod = ir.replace_parameters(load(build()), {"matmul_weight": shared})
        if refuse:
            assert refused(mod, ModelFormatError).startswith(
                "The parameter matmul_weight holds 6 NaN of 6 values; expected numbers"
            )
        else:
            assert ir.parameters(load(mod))["matmul_weight"].shared


def test_nan() -> None:
    assert refused(build(nan=True), ModelFormatError) == (
        "The parameter matmul_weight holds 1 NaN of 6 values; expected numbers: train or export "
        "the network again."
    )
