from __future__ import annotations

import platform
import re
import stat
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tvm_compress import doctor
from tvm_compress.doctor import Finding, diagnose, satisfies

NAMES = [
    "python",
    "apache-tvm",
    "apache-tvm-ffi",
    "numpy",
    "onnx",
    "tflite",
    "torch",
    "ziglang",
    "unicorn",
    "capstone",
    "xgboost",
    "onnxruntime",
    "qemu-system-arm",
    "qemu-system-riscv32",
    "arm-none-eabi-gcc",
]
REQUIRES = [
    "apache-tvm==0.27.0.post1",
    "apache-tvm-ffi==0.1.14.post1",
    "numpy>=2.0",
    "onnx>=1.18",
    "tflite>=2.18",
    "torch>=2.6; extra == 'train'",
    "capstone>=5.0; extra == 'boards'",
    "unicorn>=2.1.2; extra == 'boards'",
    "ziglang>=0.13; extra == 'boards'",
    "xgboost>=3.0; extra == 'tune'",
    "xgboost-cpu>=3.0; extra == 'tune-cpu'",
    "tvm-compress[boards]; extra == 'demo'",
]
FITTING = {
    "apache-tvm": "0.27.0.post1",
    "apache-tvm-ffi": "0.1.14.post1",
    "numpy": "2.4.6",
    "onnx": "1.23.2",
    "tflite": "2.18.0",
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Replace what is installed by what the test puts here; no program is on the path."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Requires-Python": ">=3.11,<3.14"})
    monkeypatch.setenv("PATH", str(tmp_path))
    return versions


def by_name() -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnose()}


def test_everything_that_is_used_is_looked_at() -> None:
    found = diagnose()
    # The two packages of xgboost are the same module.
    assert [f.name.removesuffix("-cpu") for f in found] == NAMES
    assert found[0].version == platform.python_version()
    for finding in found:
        assert (finding.state == "ok") == (finding.remedy == ""), finding
        assert (finding.state == "missing") == (finding.version is None), finding
        assert finding.purpose


def test_versions_are_those_of_the_package_index() -> None:
    assert by_name()["numpy"].version == metadata.version("numpy")
    assert by_name()["apache-tvm"].version == metadata.version("apache-tvm")


def test_nothing_installed(installed: dict[str, str]) -> None:
    found = by_name()
    required = {"python", "apache-tvm", "apache-tvm-ffi", "numpy", "onnx", "tflite"}
    assert {name for name, f in found.items() if f.required} == required
    assert {name for name, f in found.items() if f.state == "ok"} == {"python"}
    assert {name: f.remedy for name, f in found.items() if f.state == "missing"} == {
        "apache-tvm": "pip install 'apache-tvm==0.27.0.post1'",
        "apache-tvm-ffi": "pip install 'apache-tvm-ffi==0.1.14.post1'",
        "numpy": "pip install 'numpy>=2.0'",
        "onnx": "pip install 'onnx>=1.18'",
        "tflite": "pip install 'tflite>=2.18'",
        "torch": "pip install 'tvm-compress[train]'",
        "ziglang": "pip install 'tvm-compress[boards]'",
        "unicorn": "pip install 'tvm-compress[boards]'",
        "capstone": "pip install 'tvm-compress[boards]'",
        "xgboost": "pip install 'tvm-compress[tune-cpu]'",
        "onnxruntime": "pip install 'onnxruntime'",
        "qemu-system-arm": "apt-get install qemu-system-arm, or brew install qemu",
        "qemu-system-riscv32": "apt-get install qemu-system-misc, or brew install qemu",
        "arm-none-eabi-gcc": "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi, or brew "
        "install --cask gcc-arm-embedded",
    }


def test_what_fits_is_ok(installed: dict[str, str]) -> None:
    installed.update(FITTING)
    found = by_name()
    for name, version in FITTING.items():
        assert (found[name].state, found[name].version) == ("ok", version)
    assert found["apache-tvm"].wanted == "==0.27.0.post1"


@pytest.mark.parametrize(
    ("name", "version", "remedy"),
    [
        ("apache-tvm", "0.28.0", "pip install 'apache-tvm==0.27.0.post1'"),
        ("apache-tvm-ffi", "0.1.15.post2", "pip install 'apache-tvm-ffi==0.1.14.post1'"),
        ("numpy", "1.26.4", "pip install 'numpy>=2.0'"),
        ("torch", "2.5.1+cpu", "pip install 'torch>=2.6'"),
    ],
)
def test_another_version_than_the_one_that_is_asked_for(
    installed: dict[str, str], name: str, version: str, remedy: str
) -> None:
    installed.update({**FITTING, name: version})
    finding = by_name()[name]
    assert finding.state == "wrong version"
    assert finding.version == version
    assert finding.remedy == remedy


@pytest.mark.parametrize("name", ["xgboost", "xgboost-cpu"])
def test_either_package_of_xgboost_will_do(installed: dict[str, str], name: str) -> None:
    installed[name] = "3.2.0"
    finding = by_name()[name]
    assert finding.state == "ok"
    assert finding.wanted == ">=3.0"


def test_a_python_that_is_too_old(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.14")
    finding = by_name()["python"]
    assert finding.state == "wrong version"
    assert finding.remedy == "install Python >=3.11,<3.14 and make a new environment with it"


def test_a_checkout_that_nobody_installed_asks_for_any_version(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    monkeypatch.setattr(metadata, "metadata", missing)
    installed["numpy"] = "2.4.6"
    found = by_name()
    assert (found["numpy"].wanted, found["numpy"].state) == ("", "ok")
    assert found["python"].state == "ok"
    assert found["onnx"].remedy == "pip install 'onnx'"


def program(folder: Path, name: str, *lines: str) -> None:
    path = folder / name
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("name", "line", "version"),
    [
        ("qemu-system-arm", "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", "7.2.22"),
        ("qemu-system-arm", "QEMU emulator version 10.0.0", "10.0.0"),
        ("arm-none-eabi-gcc", "arm-none-eabi-gcc (15:12.2.rel1-1) 12.2.1 20221205", "12.2.1"),
        (
            "arm-none-eabi-gcc",
            "arm-none-eabi-gcc (Arm GNU Toolchain 13.3.Rel1 (Build 24)) 13.3.1 20240614",
            "13.3.1",
        ),
    ],
)
def test_programs_are_asked_for_their_version(
    installed: dict[str, str], tmp_path: Path, name: str, line: str, version: str
) -> None:
    program(tmp_path, name, f"echo '{line}'", "echo 'Copyright 1.2.3'")
    finding = by_name()[name]
    assert (finding.state, finding.version) == ("ok", version)


@pytest.mark.parametrize("lines", [["echo 'version 1.2'", "exit 1"], ["echo hello"], [")"]])
def test_a_program_that_does_not_run(
    installed: dict[str, str], tmp_path: Path, lines: list[str]
) -> None:
    program(tmp_path, "qemu-system-arm", *lines)
    finding = by_name()["qemu-system-arm"]
    assert finding.state == "missing"
    assert finding.version is None
    assert finding.remedy == (
        f"{tmp_path / 'qemu-system-arm'} --version fails: install qemu-system-arm again"
    )


@pytest.mark.parametrize(
    "version", ["0.27.0", "0.27.0.post1", "1.9", "1.10", "2.0", "2.0.0", "2.13.0+cpu", "3.1"]
)
@pytest.mark.parametrize(
    "wanted", ["", "==0.27.0.post1", ">=2.0", ">=1.10,<3", ">=2.0.0", "<2", "==2.0"]
)
def test_versions_compare_as_pip_compares_them(version: str, wanted: str) -> None:
    assert satisfies(version, wanted) == SpecifierSet(wanted).contains(version)


def test_what_is_asked_for_is_in_the_form_that_is_compared() -> None:
    # satisfies() knows ==, >= and <; another clause in pyproject.toml would be taken as met.
    project = tomllib.loads((Path(doctor.__file__).parents[1] / "pyproject.toml").read_text())
    texts = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        texts += extra
    # Behind a semicolon stands where it is wanted.
    wanted = [re.sub(r"^[\w.-]+(\[[^]]*])?", "", text.partition(";")[0]) for text in texts]
    assert any(wanted)
    for clauses in filter(None, wanted):
        for clause in clauses.split(","):
            assert re.fullmatch(r"(==|>=|<)[\w.]+", clause.strip()), clauses
