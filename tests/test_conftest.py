"""The markers by need: run a small test file under the real conftest with a PATH that has nothing.

In a process of its own, because the conftest reads CI and the profile when it is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

REPO = Path(__file__).resolve().parents[1]

SAMPLE = """
import hypothesis, pytest

@pytest.mark.qemu
def test_qemu(): pass

@pytest.mark.gnu
def test_gnu(): pass

@pytest.mark.rtl
def test_rtl(): pass

@pytest.mark.zephyr
def test_zephyr(): pass

@pytest.mark.shared_data
def test_marked(): pass

def test_fixture(shared_data): pass

def test_plain():
    settings = hypothesis.settings()
    print("profile", settings.deadline, settings.derandomize)
"""


def run_sample(folder: Path, **environment: str) -> str:
    (folder / "conftest.py").write_text((REPO / "tests" / "conftest.py").read_text())
    (folder / "test_sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-c", str(REPO / "pyproject.toml"), "-rA"]
    command += ["--rootdir", str(folder), "-p", "no:cacheprovider", "-p", "no:xdist", str(folder)]
    kept = {k: v for k, v in os.environ.items() if k not in {"CI", "ZEPHYR_BASE"}}
    kept = {k: v for k, v in kept.items() if not k.startswith(("PYTEST_", "HYPOTHESIS_"))}
    kept["PYTHONPATH"] = str(REPO)
    kept["COLUMNS"] = "400"
    result = subprocess.run(
        command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True
    )
    assert result.returncode in {0, 1}, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    empty = tmp_path / "empty"
    empty.mkdir()
    return empty


TOOLS = {
    "qemu-system-arm": "install the distribution's package qemu-system-arm.",
    "arm-none-eabi-gcc": "packages gcc-arm-none-eabi and libnewlib-arm-none-eabi.",
    "verilator": "install the distribution's package verilator.",
}


@pytest.mark.slow
def test_missing_needs_skip_with_a_sentence(tmp_path: Path, nothing: Path) -> None:
    absent = tmp_path / "absent"
    out = run_sample(tmp_path, PATH=str(nothing), TVM_COMPRESS_SHARED=str(absent))
    assert "1 passed, 6 skipped" in out
    for command, how_to_get in TOOLS.items():
        lines = [line for line in out.splitlines() if f"{command} was not found on PATH" in line]
        assert lines and all("SKIPPED" in line and how_to_get in line for line in lines)
    assert "ZEPHYR_BASE is not set; this test needs it to name a Zephyr tree." in out
    assert f"The development data is not at {absent}; set TVM_COMPRESS_SHARED" in out
    assert "profile None False" in out


@pytest.mark.slow
def test_in_ci_a_missing_tool_fails(tmp_path: Path, nothing: Path) -> None:
    absent = tmp_path / "absent"
    out = run_sample(tmp_path, PATH=str(nothing), TVM_COMPRESS_SHARED=str(absent), CI="true")
    assert "1 passed, 3 skipped, 3 errors" in out
    for command, how_to_get in TOOLS.items():
        assert f"{command} was not found on PATH; this test needs it:" in out
        assert how_to_get in out
    assert "profile None True" in out


@pytest.mark.slow
def test_what_is_there_runs(tmp_path: Path, nothing: Path) -> None:
    for command in TOOLS:
        (nothing / command).write_text("#!/bin/sh\n")
        (nothing / command).chmod(0o755)
    settings = {"ZEPHYR_BASE": str(nothing), "TVM_COMPRESS_SHARED": str(nothing)}
    out = run_sample(tmp_path, PATH=str(nothing), CI="true", **settings)
    assert "7 passed" in out


def test_hypothesis_has_no_time_limit_here() -> None:
    assert hypothesis.settings().deadline is None
