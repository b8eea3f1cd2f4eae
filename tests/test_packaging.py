"""What is shipped: the wheel, the sdist, and the pins.

passes/ and targets/ are links inside tvm_compress/, and a packaging tool that does not follow them
leaves their code out without a word. So the wheel is built, installed into an environment of its
own and imported from outside the checkout.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
DATA_SUFFIXES = {".c", ".h", ".ld", ".toml"}


def sources(folder: str, suffixes: set[str]) -> set[str]:
    """Return the paths, relative to ``folder``, of its files with these suffixes."""
    root = REPO / folder
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }


def build(kind: str, out: Path) -> Path:
    """Build the wheel or the sdist with the installed hatchling; return its path."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out)]
    result = subprocess.run([*command, str(REPO)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    suffixes = {".py", *DATA_SUFFIXES}
    # The links are left out here, whether or not rglob follows them, and come in by name.
    expected = {
        f"tvm_compress/{path}"
        for path in sources("tvm_compress", suffixes)
        if path.partition("/")[0] not in {"passes", "targets"}
    }
    for linked in ("passes", "targets"):
        expected |= {f"tvm_compress/{linked}/{path}" for path in sources(linked, suffixes)}
    assert {"tvm_compress/errors.py", "tvm_compress/targets/__init__.py"} <= expected
    assert expected - held == set()
    assert "tvm_compress/py.typed" in held
    top = {name.partition("/")[0] for name in held}
    assert top == {"tvm_compress", f"tvm_compress-{PROJECT['version']}.dist-info"}


@pytest.mark.slow
def test_wheel_imports_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "env"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120
    )
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)

    # The dependencies are borrowed from this environment. A path in a .pth file is added without
    # running the .pth files in it, so this checkout's editable installation stays out.
    purelib = Path(sysconfig.get_path("purelib"))
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"{purelib}\n")

    program = """
import importlib, pkgutil, sys
import tvm_compress, tvm_compress.errors, tvm_compress.passes, tvm_compress.targets
roots = [tvm_compress, tvm_compress.passes, tvm_compress.targets]
for root in roots:
    assert root.__file__.startswith(sys.prefix), root.__file__
names = [m.name for m in pkgutil.walk_packages(tvm_compress.__path__, "tvm_compress.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print("\\n".join(names))
for name in ("passes", "targets"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} is importable without the package's name")
"""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    result = subprocess.run(
        [str(python), "-c", program], cwd=tmp_path, env=outside, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert {"tvm_compress.passes", "tvm_compress.targets"} <= set(result.stdout.split())

    (script,) = environment.glob("bin/tvm-compress")
    assert os.access(script, os.X_OK)


@pytest.mark.slow
def test_sdist_holds_what_builds_the_wheel_again(tmp_path: Path) -> None:
    archive = build("sdist", tmp_path)
    with tarfile.open(archive) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers()}
    wanted = {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "README.md"}
    wanted |= {"examples/digits/digits_cnn.onnx", "scripts/ensure_env.sh", "tests/conftest.py"}
    for linked in ("passes", "targets"):
        wanted |= {f"{linked}/{path}" for path in sources(linked, {".py", *DATA_SUFFIXES})}
    assert wanted - names == set()
    assert not [name for name in names if name.startswith((".venv", "site/", "shared"))]


def test_wheel_metadata() -> None:
    assert PROJECT["name"] == "tvm-compress"
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert PROJECT["license"] == "Apache-2.0"
    changelog = (REPO / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{PROJECT['version']}]" in changelog


def test_links_are_relative() -> None:
    # An absolute link would work on one machine.
    for name in ("passes", "targets"):
        assert os.readlink(REPO / "tvm_compress" / name) == f"../{name}"


def pins() -> dict[str, str]:
    """Return the versions in constraints.txt by canonical name."""
    lines = (REPO / "constraints.txt").read_text().splitlines()
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            found[canonicalize_name(name)] = version
    return found


def test_constraints_are_exact_versions_alone() -> None:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("#")]
    assert kept and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in kept)
    assert len(pins()) == len(kept)
    assert pins()["torch"] == "2.13.0"


def required(extras: set[str]) -> Iterator[Requirement]:
    """Yield what the project with these extras installs, all the way down.

    What is not installed here (another system's packages) is yielded but not followed.
    """
    seen: set[tuple[str, str]] = set()
    own = PROJECT["optional-dependencies"]
    todo = [Requirement(text) for text in PROJECT["dependencies"]]
    todo += [Requirement(text) for extra in extras for text in own[extra]]
    while todo:
        requirement = todo.pop()
        if requirement.name == PROJECT["name"]:
            todo += [Requirement(text) for extra in requirement.extras for text in own[extra]]
            continue
        yield requirement
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key in seen:
                continue
            seen.add(key)
            try:
                texts = importlib.metadata.requires(requirement.name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            for text in texts:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)


def test_everything_installed_is_pinned() -> None:
    pinned = pins()
    loose = set()
    for requirement in required({"demo", "docs", "test", "train"}):
        name = canonicalize_name(requirement.name)
        # torch's Linux wheel names its CUDA packages by exact version: those are pinned by it.
        exact = any(clause.operator == "==" for clause in requirement.specifier)
        if name not in pinned and not exact:
            loose.add(name)
    assert loose == set(), "constraints.txt lacks these"


def test_pins_are_what_the_project_asks_for() -> None:
    pinned = pins()
    texts = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    for requirement in map(Requirement, texts):
        name = canonicalize_name(requirement.name)
        # xgboost and xgboost-cpu exclude each other; the project's own set-up takes the latter.
        if name in {PROJECT["name"], "xgboost"}:
            continue
        assert pinned[name] in requirement.specifier, requirement
