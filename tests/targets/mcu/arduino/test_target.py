"""The library that is written, and its example sketch run on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from tests.targets.mcu.integer_nets import Layer, module_of
from tests.targets.mcu.nets import const, execute, host_cc, network, normal
from tvm_compress.errors import OptionError

STUBS = Path(__file__).parent / "stubs"
STRICT = ("-Wall", "-Wextra", "-Werror", "-O1", "-ffp-contract=off")


def host_cxx() -> tuple[str, ...]:
    return ("c++",) if shutil.which("c++") else (sys.executable, "-m", "ziglang", "c++")


@pytest.fixture(scope="module")
def mod() -> tvm.IRModule:
    weight = const(normal(6, 4))

    def describe(net: Any, x: Any, bias: Any) -> list[Any]:
        y = net(relax.op.add(net(relax.op.matmul(x, weight)), bias))
        return [net(relax.op.nn.softmax(y)), net(relax.op.tanh(bias))]

    return network({"x": (1, 6), "bias": (1, 4)}, describe)


def test_the_files_of_a_library(mod: tvm.IRModule, tmp_path: Path) -> None:
    artifact = tc.build(mod, "arduino", name="net", out_dir=tmp_path / "net")
    assert sorted(artifact.files) == [
        *("examples/serial/harness_model.h", "examples/serial/serial.ino"),
        *("keywords.txt", "library.properties"),
        *("src/net.c", "src/net.h", "src/net_layers.c", "src/net_layers.h", "src/net_libm.c"),
    ]
    for name, path in artifact.files.items():
        assert path == tmp_path / "net" / name
        assert not re.search("@[A-Z]+@", path.read_text())
    told = dict(
        line.split("=", 1) for line in artifact.files["library.properties"].read_text().splitlines()
    )
    # What the environment's specification of libraries asks for.
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph"}
    assert required | {"category", "url", "architectures"} <= set(told)
    assert (told["name"], told["includes"]) == ("net", "net.h")
    assert not artifact.has_size


def test_the_sketch_answers_with_the_models_bytes(mod: tvm.IRModule, tmp_path: Path) -> None:
    artifact = tc.build(mod, "arduino", name="net", out_dir=tmp_path)
    for source in tmp_path.glob("src/*.c"):
        execute([*host_cc(), "-std=gnu11", *STRICT, "-c", source], tmp_path)
    sketch = tmp_path / "sketch.cpp"
    text = artifact.files["examples/serial/serial.ino"].read_text()
    main = "\nint main() { setup(); for (;;) { loop(); } }\n"
    sketch.write_text(f'#include "Arduino.h"\n{text}{main}')
    places = (STUBS, tmp_path / "src", tmp_path / "examples" / "serial")
    program = tmp_path / "program"
    execute(
        [
            *(*host_cxx(), "-std=gnu++11", *STRICT, *(f"-I{place}" for place in places), sketch),
            *(*sorted(tmp_path.glob("*.o")), "-lm", "-o", program),
        ]
    )
    x, bias = normal(3, 6), normal(3, 4, seed=1)
    lines = [f">{a.tobytes().hex()}{b.tobytes().hex()}" for a, b in zip(x, bias, strict=True)]
    lines += [">00", f">{'0' * 81}", ">zz", "noise", lines[0]]
    shown = subprocess.run(
        [program], input="\r\n".join([*lines, ""]).encode(), capture_output=True, check=True
    ).stdout.decode()
    y = artifact.run({"x": x, "bias": bias})
    answers = ["<" + b"".join(y[i].tobytes() for y in y.values()).hex() for i in range(3)]
    bad = "! the line does not hold two digits for each byte of the inputs"
    assert shown.splitlines() == [*answers, bad, bad, bad, answers[0]]
    assert artifact.run({"x": x, "bias": bias})["y0"].tobytes() == (
        tc.build(mod, name="net").run({"x": x, "bias": bias})["y0"].tobytes()
    )


@pytest.mark.gnu
def test_kernels_in_assembly_are_compiled_as_the_environment_does(tmp_path: Path) -> None:
    net = module_of({"x": Layer((1, 6, 6, 8), (8, 8, 3, 3), "conv")})
    artifact = tc.build(net, "arduino", board="cortex-m4", name="net", out_dir=tmp_path)
    assert "src/net_kernels.s" not in artifact.files
    gcc = ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-Wall", "-Wextra", "-Werror", "-c")
    execute([*gcc, artifact.files["src/net_kernels.S"]], tmp_path)
    symbols = execute(["arm-none-eabi-nm", tmp_path / "net_kernels.o"])
    assert re.search(r" T net_k000", symbols)


def test_a_toolchain_is_refused(mod: tvm.IRModule) -> None:
    with pytest.raises(OptionError) as caught:
        tc.build(mod, "arduino", toolchain="gnu")
    assert str(caught.value) == (
        "The target arduino writes a library and compiles nothing, and the toolchain gnu was "
        "given. Leave it out; the Arduino environment has its own."
    )


def test_it_runs_on_no_engine(mod: tvm.IRModule) -> None:
    artifact = tc.build(mod, "arduino", name="net")
    with pytest.raises(OptionError) as caught:
        artifact.run({}, engine="qemu")
    assert str(caught.value) == (
        "An Arduino library runs on no engine, and qemu was given; build it for a board."
    )
