"""What every pass is to TVM and to its users."""

# TVMScript's annotations are calls, and a decorated class is a module: no type checker knows.
# mypy: disable-error-code="valid-type,no-untyped-def,index,misc,attr-defined,name-defined,type-arg"

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_compress.errors import CompressError, OptionError, PassError
from tvm_compress.passes import (
    PASSES,
    Canonicalize,
    InputsPass,
    NarrowWeights,
    Pass,
    Prune,
    Quantize,
    ShareWeights,
)


@I.ir_module
class Network:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
        with R.dataflow():
            y = R.nn.relu(x)
            R.output(y)
        return y


def test_names_are_the_verb_phrases_of_the_classes() -> None:
    for name, cls in PASSES.items():
        assert name == cls.name
        assert name.replace("-", "") == cls.__name__.lower()
        assert cls.__module__ == f"tvm_compress.passes.{name.replace('-', '_')}"


def test_options_are_frozen_fields() -> None:
    for cls in PASSES.values():
        made = cls()
        assert made == cls() and repr(made).startswith(cls.__name__)
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.name = "other"


def test_the_argument_stays_as_it_was() -> None:
    inputs = np.random.default_rng(0).random((4, 4), "float32")
    quantised = Quantize().on(inputs)(Network)
    for cls in PASSES.values():
        network = quantised if cls is NarrowWeights else Network
        before = network.script(show_meta=True)
        made = cls()
        if isinstance(made, InputsPass) and made.needs_inputs:
            made = made.on(inputs)
        made(network)
        assert network.script(show_meta=True) == before


@dataclasses.dataclass(frozen=True)
class Fails(Pass):
    """Raises what it is told to."""

    name = "fails"
    error: Any = None

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        raise self.error


@pytest.mark.parametrize("error", [*CompressError.__subclasses__(), PassError, OptionError])
@pytest.mark.parametrize("sequence", [False, True])
def test_errors_keep_class_and_sentence(error: type[CompressError], sequence: bool) -> None:
    failing: Any = Fails(error("fails: what, expected, next."))
    if sequence:
        failing = tvm.transform.Sequential([relax.transform.Normalize(), failing])
    with pytest.raises(CompressError) as caught:
        failing(Network)
    assert type(caught.value) is error
    assert str(caught.value) == "fails: what, expected, next."


def test_a_pass_needs_main() -> None:
    mod = tvm.IRModule({"entry": Network["main"].with_attr("global_symbol", "entry")})
    for made in (Canonicalize(), Prune(), ShareWeights()):
        with pytest.raises(PassError) as caught:
            made(mod)
        assert str(caught.value) == (
            "The module has no function main (it has entry); rename the entry function to main."
        )


def test_a_pass_that_finds_no_weight_changes_nothing() -> None:
    tvm.ir.assert_structural_equal(ShareWeights()(Prune()(Network)), Canonicalize()(Network))
