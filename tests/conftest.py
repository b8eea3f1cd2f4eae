"""What all tests share: markers by need, the built-in network and its data, hypothesis's profile.

A test says what it needs by a marker (``qemu``, ``gnu``, ``rtl``, ``zephyr``, ``shared_data``).
Where that is missing the test is skipped with a sentence; in CI (``CI=true``) a missing tool fails
the test, because a skip there would hide it for good. A Zephyr tree and the shared data are the
exceptions: CI does not have them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from examples.digits.data import DigitsSplit, load_digits_split

REPO = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}

# Machines differ in speed, so hypothesis's time limit an example would be a test of the machine.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if IN_CI else "default")


@dataclass(frozen=True)
class Need:
    """A command that tests with a marker start."""

    command: str
    how_to_get: str


NEEDS = {
    "qemu": Need("qemu-system-arm", "install the distribution's package qemu-system-arm"),
    "gnu": Need(
        "arm-none-eabi-gcc",
        "install the distribution's packages gcc-arm-none-eabi and libnewlib-arm-none-eabi",
    ),
    "rtl": Need("verilator", "install the distribution's package verilator"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let golden files be written anew."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


def shared_data_folder() -> Path:
    """Return where the development data would lie; the folder need not exist."""
    override = os.environ.get("TVM_COMPRESS_SHARED")
    return Path(override) if override else REPO.parent / "shared" / "data"


def missing_shared_data() -> str | None:
    """Return why a test of the shared data cannot run, or None."""
    folder = shared_data_folder()
    if folder.is_dir():
        return None
    return (
        f"The development data is not at {folder}; set TVM_COMPRESS_SHARED to the folder that "
        "holds it. It is not part of the project."
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose needs are not met."""
    for marker, need in NEEDS.items():
        if item.get_closest_marker(marker) and shutil.which(need.command) is None:
            message = (
                f"{need.command} was not found on PATH; this test needs it: {need.how_to_get}."
            )
            if IN_CI:
                pytest.fail(message, pytrace=False)
            pytest.skip(message)
    if item.get_closest_marker("zephyr") and not os.environ.get("ZEPHYR_BASE"):
        pytest.skip("ZEPHYR_BASE is not set; this test needs it to name a Zephyr tree.")
    if item.get_closest_marker("shared_data") and (reason := missing_shared_data()):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development data; skips where it is missing."""
    if reason := missing_shared_data():
        pytest.skip(reason)
    return shared_data_folder()


@pytest.fixture(scope="session")
def digits_onnx() -> Path:
    """The committed network for scikit-learn's digits, as ONNX."""
    return REPO / "examples" / "digits" / "digits_cnn.onnx"


@pytest.fixture(scope="session")
def digits() -> DigitsSplit:
    """The digits, split as the network's training split them."""
    return load_digits_split()
