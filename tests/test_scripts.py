"""The set-up scripts, with stand-ins for python, apt-get and the tools: nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

# It records its calls and does the part of the real one that the script looks at.
FAKE_PYTHON = """#!/bin/bash
root="$FAKE_ROOT"
case "$*" in
    *print*) echo "${FAKE_VERSION:-3.11}"; exit 0 ;;
    "-c import sys; sys.exit"*) [ "${FAKE_VERSION:-3.11}" != 3.10 ]; exit ;;
    "-m pip --version") exit 0 ;;
esac
echo "$(basename "$0") $*" >>"$root/calls"
case "$*" in
    "-m venv"*)
        [ ! -e "$root/no-venv" ] || exit 1
        rm -rf "${@: -1}"
        mkdir -p "${@: -1}/bin"
        cp "$0" "${@: -1}/bin/python"
        ;;
    *--editable*) [ ! -e "$root/break-pip" ] ;;
esac
"""


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


class Sandbox:
    """A copy of the set-up files, and a PATH with the plain tools and what a test puts there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir(parents=True)
        (root / "scripts").mkdir()
        for name in ("scripts/ensure_env.sh", "scripts/ensure_tools.sh"):
            shutil.copy2(REPO / name, root / name)
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy2(REPO / name, root / name)
        plain = "bash sh env cat cksum dirname basename rm mv cp mkdir touch chmod id"
        for tool in plain.split():
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)

    def run(self, script: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "scripts" / script), *args],
            env={"PATH": str(self.bin), "FAKE_ROOT": str(self.root), **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def calls(self) -> list[str]:
        """Return the recorded calls since the last time."""
        log = self.root / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "copy")


@pytest.fixture
def with_python(sandbox: Sandbox) -> Sandbox:
    executable(sandbox.bin / "python3.11", FAKE_PYTHON)
    return sandbox


INSTALL = "python -m pip install --progress-bar off -c constraints.txt"


def test_environment_is_made_once(with_python: Sandbox) -> None:
    first = with_python.run("ensure_env.sh", "demo")
    assert first.returncode == 0, first.stderr
    assert "Making .venv with python3.11 (3.11)." in first.stdout
    assert with_python.calls() == [
        "python3.11 -m venv --clear .venv",
        f"{INSTALL} --quiet hatchling editables",
        f"{INSTALL} --quiet --no-build-isolation --editable .[demo]",
    ]
    again = with_python.run("ensure_env.sh", "demo")
    assert (again.returncode, again.stdout, with_python.calls()) == (0, "", [])


def test_demo_environment_is_upgraded_for_tests_and_serves_both(with_python: Sandbox) -> None:
    with_python.run("ensure_env.sh", "demo")
    with_python.calls()
    assert with_python.run("ensure_env.sh", "test").returncode == 0
    assert with_python.calls()[-1].endswith("--editable .[test,docs,train]")
    assert with_python.run("ensure_env.sh", "demo").returncode == 0
    assert with_python.run("ensure_env.sh", "test").returncode == 0
    assert with_python.calls() == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_changed_pins_are_installed(with_python: Sandbox, changed: str) -> None:
    with_python.run("ensure_env.sh", "test")
    with_python.calls()
    with (with_python.root / changed).open("a") as file:
        file.write("# changed\n")
    with_python.run("ensure_env.sh", "test")
    assert [call.split()[2] for call in with_python.calls()] == ["pip", "pip"]


def test_interrupted_installation_is_repeated(with_python: Sandbox) -> None:
    with_python.run("ensure_env.sh", "demo")
    (with_python.root / "break-pip").touch()
    assert with_python.run("ensure_env.sh", "test").returncode != 0
    # It may have been cut off anywhere, so not even the smaller level is taken for granted.
    with_python.calls()
    (with_python.root / "break-pip").unlink()
    assert with_python.run("ensure_env.sh", "demo").returncode == 0
    assert with_python.calls()[-1].endswith("--editable .[demo]")


def test_moved_environment_is_made_again(with_python: Sandbox, tmp_path: Path) -> None:
    with_python.run("ensure_env.sh", "demo")
    with_python.calls()
    with_python.root.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    with_python.root, with_python.bin = moved, moved / "bin"
    assert with_python.run("ensure_env.sh", "demo").returncode == 0
    assert with_python.calls()[0] == "python3.11 -m venv --clear .venv"


def test_other_python_makes_the_environment_again(with_python: Sandbox) -> None:
    with_python.run("ensure_env.sh", "demo")
    with_python.calls()
    other = with_python.bin / "other"
    executable(other, FAKE_PYTHON.replace(":-3.11", ":-3.12"))
    assert with_python.run("ensure_env.sh", "demo", PYTHON=str(other)).returncode == 0
    assert with_python.calls()[0] == "other -m venv --clear .venv"
    assert with_python.run("ensure_env.sh", "demo", PYTHON=str(other)).returncode == 0
    assert with_python.calls() == []


def test_launcher_without_its_python_is_passed_over(sandbox: Sandbox) -> None:
    executable(sandbox.bin / "python3.11", "#!/bin/bash\necho not installed >&2\nexit 127\n")
    executable(sandbox.bin / "python3", FAKE_PYTHON)
    result = sandbox.run("ensure_env.sh", "demo")
    assert result.returncode == 0
    assert "Making .venv with python3 (3.11)." in result.stdout


def test_messages_of_ensure_env(with_python: Sandbox) -> None:
    level = with_python.run("ensure_env.sh", "all")
    assert level.returncode == 1
    assert level.stderr == "ensure_env.sh: the level is 'all'; expected demo or test.\n"

    wrong = with_python.run("ensure_env.sh", "demo", PYTHON="no-such-python")
    assert wrong.returncode == 1
    assert wrong.stderr == (
        "PYTHON=no-such-python does not run or is not Python 3.11, 3.12 or 3.13, the versions that "
        "Apache TVM's wheel is used with here. Name one of those.\n"
    )

    old = with_python.run("ensure_env.sh", "demo", FAKE_VERSION="3.10")
    assert old.returncode == 1
    assert old.stderr == (
        "No Python 3.11, 3.12 or 3.13 was found on PATH. Install one, or name one: "
        "make demo PYTHON=/path/to/python3.11\n"
    )

    (with_python.root / "no-venv").touch()
    bare = with_python.run("ensure_env.sh", "demo")
    assert bare.returncode == 1
    assert bare.stderr == (
        "python3.11 cannot make a virtual environment; on Debian and Ubuntu its module comes with "
        "the package python3.11-venv. Install that, or name another Python with PYTHON=.\n"
    )
    assert not (with_python.root / ".venv").exists()


GCC = "#!/bin/bash\necho {}\n"


def test_tools_that_are_there_need_nothing(sandbox: Sandbox) -> None:
    executable(sandbox.bin / "qemu-system-arm", "#!/bin/bash\n")
    executable(sandbox.bin / "arm-none-eabi-gcc", GCC.format("/usr/lib/libc.a"))
    result = sandbox.run("ensure_tools.sh", CI="true")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("in_ci", [False, True])
def test_missing_tools_are_named(sandbox: Sandbox, in_ci: bool) -> None:
    (sandbox.bin / "id").unlink()
    executable(sandbox.bin / "id", "#!/bin/bash\necho 1000\n")
    executable(sandbox.bin / "apt-get", "#!/bin/bash\necho called >>$FAKE_ROOT/calls\n")
    executable(sandbox.bin / "arm-none-eabi-gcc", GCC.format("libc.a"))
    result = sandbox.run("ensure_tools.sh", **({"CI": "true"} if in_ci else {}))
    assert sandbox.calls() == [], "only root may install"
    missing, debian, macos, rest = result.stderr.splitlines()
    assert missing == "Missing: qemu-system-arm newlib"
    assert debian == (
        "On Debian and Ubuntu: sudo apt-get install "
        "qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi"
    )
    assert macos == "On macOS: brew install qemu && brew install --cask gcc-arm-embedded"
    if in_ci:
        assert result.returncode == 1
        assert rest == "CI is set, and there a missing tool is a failure."
    else:
        assert result.returncode == 0
        assert rest == "The tests that need them will be skipped."


APT = """#!/bin/bash
echo "apt-get $*" >>"$FAKE_ROOT/calls"
case "$*" in
    *install*)
        for tool in qemu-system-arm arm-none-eabi-gcc; do
            printf '#!/bin/bash\\necho /usr/lib/libc.a\\n' >"$FAKE_ROOT/bin/$tool"
            chmod +x "$FAKE_ROOT/bin/$tool"
        done
        ;;
esac
"""


def test_root_on_debian_installs_them(sandbox: Sandbox) -> None:
    (sandbox.bin / "id").unlink()
    executable(sandbox.bin / "id", "#!/bin/bash\necho 0\n")
    executable(sandbox.bin / "apt-get", APT)
    result = sandbox.run("ensure_tools.sh", CI="true")
    assert result.returncode == 0, result.stderr
    assert sandbox.calls() == [
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends "
        "qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi",
    ]


def test_failing_apt_is_said(sandbox: Sandbox) -> None:
    (sandbox.bin / "id").unlink()
    executable(sandbox.bin / "id", "#!/bin/bash\necho 0\n")
    executable(sandbox.bin / "apt-get", "#!/bin/bash\nexit 100\n")
    result = sandbox.run("ensure_tools.sh")
    assert result.returncode == 0
    assert result.stderr.startswith("apt-get failed.\nMissing: qemu-system-arm arm-none-eabi-gcc\n")
    assert sandbox.run("ensure_tools.sh", CI="true").returncode == 1


def make(*args: str) -> str:
    # These tests may themselves run below make, whose flags would come through.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *args]
    result = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, check=True, env=clean
    )
    return result.stdout


def test_bare_make_prints_help() -> None:
    out = make()
    for target in ("demo", "test", "lint", "docs", "bench", "clean"):
        assert f"\n  make {target} " in out
    assert out == make("help")


def test_make_runs_what_it_says() -> None:
    demo = make("--dry-run", "demo")
    assert "scripts/ensure_env.sh demo" in demo
    assert "ensure_tools" not in demo
    steps = make("--dry-run", "test")
    order = ["ensure_env.sh test", "ensure_tools.sh", "ruff check .", "ruff format --check"]
    order += ["mypy", "mkdocs build --strict", "pytest -n 2"]
    places = [steps.index(step) for step in order]
    # pytest comes last, so that its summary closes the log.
    assert places == sorted(places)
    assert steps.rstrip().endswith("-m pytest -n 2")
