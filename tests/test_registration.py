from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tvm_compress
from tvm_compress import pipeline
from tvm_compress.frontends import load
from tvm_compress.passes import ShareWeights
from tvm_compress.recipe import Recipe


def python(program: str, *arguments: str) -> str:
    root = str(Path(tvm_compress.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = """
import sys
from tvm_compress.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"tvm", "tvm_ffi", "numpy", "onnx", "torch", "scipy", "tvm_compress.ops"} & set(sys.modules)
print("\\nheavy:", sorted(heavy))
"""
    assert python(program, *arguments).splitlines()[-1] == "heavy: []"


REGISTERED = """
import tvm
print(tvm.ir.Op.get("tvm_compress.codebook").name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import tvm, tvm_compress",
        "import tvm_compress, tvm",
        "import tvm_compress.edge",
        "import tvm_compress.ops",
        "import tvm_compress.ir",
        "from tvm_compress.passes import Prune",
    ],
)
def test_operators_are_registered_whatever_is_imported_first(first: str) -> None:
    assert python(f"{first}\n{REGISTERED}") == "tvm_compress.codebook\n"


@pytest.mark.slow
def test_a_saved_module_is_read_after_the_plain_imports(digits_onnx: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.json"
    pipeline.save(ShareWeights().apply(load(digits_onnx)), small)
    program = f"""
import sys
import tvm_compress
assert "tvm" not in sys.modules
import tvm
assert not [f for f in sys.meta_path if type(f).__module__.startswith("tvm_compress")]
# The loader of TVM is the one that it would have without us.
from importlib.machinery import SourceFileLoader
assert type(tvm.__spec__.loader) is SourceFileLoader
assert "exec_module" not in vars(tvm.__spec__.loader)
mod = tvm.ir.load_json(open({str(small)!r}).read())
print(mod.script(show_meta=False).count("tvm_compress.codebook"))
"""
    assert python(program) == "5\n"


def test_a_tvm_that_fails_to_import_fails_as_without_us(tmp_path: Path) -> None:
    package = tmp_path / "tvm"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('no libtvm')\n")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import tvm_compress
for _ in range(2):
    try:
        import tvm
    except RuntimeError as error:
        print(error)
try:
    import tvm.nothing
except RuntimeError as error:
    print(error)
"""
    assert python(program) == "no libtvm\n" * 3


def test_the_package_gives_what_it_lists() -> None:
    assert set(tvm_compress.__all__) >= {"load", "compress", "save", "build", "recipes", "passes"}
    for name in tvm_compress.__all__:
        assert name in dir(tvm_compress)
        assert getattr(tvm_compress, name) is not None
    assert tvm_compress.load is load
    assert tvm_compress.compress is pipeline.compress
    assert tvm_compress.save is pipeline.save
    assert tvm_compress.Recipe is Recipe
    with pytest.raises(AttributeError, match="module 'tvm_compress' has no attribute 'squeeze'"):
        tvm_compress.squeeze  # noqa: B018


def test_build_stays_a_function_when_its_module_is_imported() -> None:
    from tvm_compress.build import build

    assert tvm_compress.build is build
    # What else is set stays set.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tvm_compress, "probe", 1, raising=False)
        assert tvm_compress.probe == 1


def test_the_version_is_that_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    monkeypatch.setattr(metadata, "version", lambda name: f"{name} 7")
    assert tvm_compress.__version__ == "tvm-compress 7"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert tvm_compress.__version__ == "unknown"
