from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.targets.mcu.nets import network
from tvm_compress.errors import OptionError
from tvm_compress.targets import TARGETS, get_target
from tvm_compress.targets.artifact import Size, Target

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_has_the_name_that_it_is_known_by(name: str) -> None:
    target = get_target(name)
    assert isinstance(target, Target)
    assert target.name == name


def test_an_unknown_target_is_told_the_known_ones() -> None:
    with pytest.raises(OptionError) as caught:
        get_target("gpu")
    assert (
        str(caught.value)
        == "There is no target 'gpu'; expected one of arduino, c, reference, zephyr."
    )


def test_the_list_imports_no_target() -> None:
    """Some need tools that are not installed."""
    code = (
        "import sys, tvm_compress.targets\n"
        "print([m for m in sys.modules if m.startswith('tvm_compress.targets.mcu')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_parts_of_a_size_sum() -> None:
    size = Size({"code": 5, "weights": 7, "constants": 1}, {"arena": 3, "stack": 40})
    assert (size.flash_bytes, size.ram_bytes) == (13, 43)


@pytest.mark.parametrize(
    ("name", "what"), [("reference", "The reference target"), ("c", "C without a board")]
)
def test_what_runs_on_no_board_has_neither_size_nor_profile(name: str, what: str) -> None:
    mod = network({"x": (2, 3)}, lambda net, x: net(x + x))
    artifact = get_target(name).build(mod, name="model", board=None, out_dir=None)
    with pytest.raises(OptionError) as caught:
        _ = artifact.size
    assert str(caught.value) == f"{what} has no size on a machine; build it for a board."
    with pytest.raises(OptionError) as caught:
        artifact.profile({})
    assert str(caught.value) == f"{what} cannot be profiled; build it for a board."
