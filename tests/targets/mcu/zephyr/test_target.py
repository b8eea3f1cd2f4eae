"""The target: built and run with tools that stand in, and with a real tree where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from examples.digits.data import DigitsSplit
from tests.targets.mcu.integer_nets import Layer, module_of
from tests.targets.mcu.nets import network, normal
from tests.targets.mcu.zephyr.fakes import NEW, World
from tests.targets.mcu.zephyr.test_tree import CMAKE, NINJA
from tvm_compress.errors import CompressError, DataError, MissingToolError, OptionError
from tvm_compress.targets import get_target
from tvm_compress.targets.mcu.zephyr.target import ZephyrArtifact, ZephyrTarget
from tvm_compress.tensors import input_specs

Array = NDArray[Any]
NOT_BUILT = (
    "ZEPHYR_BASE is not set, so the application was written and not built. Set it to the folder "
    "zephyr of your workspace, 3.2 or newer, and build again."
)


@pytest.fixture(scope="module")
def mod() -> tvm.IRModule:
    return network({"x": (1, 3)}, lambda net, x: net(relax.op.add(x, x)))


def build(mod: tvm.IRModule, target: str | ZephyrTarget = "zephyr", **options: Any) -> Any:
    artifact = tc.build(mod, target, name="net", **({"board": "mps2_an385"} | options))
    assert isinstance(artifact, ZephyrArtifact)
    return artifact


@pytest.fixture
def tools(world: World) -> World:
    """A tree of new names, and all programs that a build and a run take."""
    world.tree((3, 7), NEW)
    world.set("ZEPHYR_TOOLCHAIN_VARIANT", "cross-compile")
    world.program("arm-none-eabi-gcc")
    world.program("cmake", CMAKE)
    world.program("ninja", NINJA)
    return world


def answering(world: World, *lines: str, code: int = 0) -> Path:
    """Let QEMU note how it was called and what it was sent, and show these lines."""
    seen = world.folder / "seen"
    shown = "".join(f"echo '{line}'\n" for line in lines)
    world.program(
        "qemu-system-arm", f'echo "$@" > {seen}\ncat >> {seen}\n{shown}echo oh >&2\nexit {code}'
    )
    return seen


# -- without a tree -------------------------------------------------------------------------------


def test_without_a_tree_the_application_is_written_and_not_built(
    mod: tvm.IRModule, world: World
) -> None:
    artifact = build(mod, out_dir=world.folder / "app")
    assert {"CMakeLists.txt", "prj.conf", "src/main.c", "model/src/net.c"} <= set(artifact.files)
    for name, path in artifact.files.items():
        assert path == world.folder / "app" / name
        assert path.is_file()
    assert not artifact.has_size
    with pytest.raises(MissingToolError) as caught:
        artifact.run(normal(1, 3))
    assert str(caught.value) == NOT_BUILT
    with pytest.raises(MissingToolError) as caught:
        _ = artifact.size
    assert str(caught.value) == NOT_BUILT
    with pytest.raises(OptionError, match=r"^A Zephyr application cannot be profiled; "):
        artifact.profile(normal(1, 3))


@pytest.mark.parametrize(
    ("board", "assembly"),
    [("mps2_an385", None), ("mps2/an386", "smlad"), ("mps3_an547", "vmladava")],
)
def test_kernels_are_those_of_the_boards_core(
    world: World, board: str, assembly: str | None
) -> None:
    net = module_of({"x": Layer((1, 6, 6, 8), (8, 8, 3, 3), "conv")})
    files = build(net, board=board, out_dir=world.folder / "app").files
    kernels = "model/src/net_kernels.s"
    assert (kernels in files) == (assembly is not None)
    if assembly:
        assert assembly in files[kernels].read_text().lower()
        assert "src/net_kernels.s" in files["model/CMakeLists.txt"].read_text()


def test_a_board_is_needed(mod: tvm.IRModule, world: World) -> None:
    with pytest.raises(OptionError) as caught:
        build(mod, board=None)
    assert str(caught.value) == (
        "The target zephyr needs a board; expected one of Zephyr's, such as mps2_an385. Name one."
    )
    with pytest.raises(OptionError, match=r"^'my.toml' is no name of a board of Zephyr's"):
        build(mod, board="my.toml")


# -- with tools that stand in ---------------------------------------------------------------------


def test_it_is_built_for_the_trees_spelling_and_run_on_qemu(
    mod: tvm.IRModule, tools: World
) -> None:
    artifact = build(mod, ZephyrTarget(cmake_args=("-DX=1",)), out_dir=tools.folder / "app")
    told = (tools.folder / "app" / "build" / "told").read_text().splitlines()
    assert {"-DBOARD=mps2/an385", "-DX=1"} <= set(told)
    assert artifact.files["build/zephyr/zephyr.elf"] == artifact.elf
    x = normal(2, 3)
    answers = [f"<{row.tobytes().hex()}\r" for row in 2 * x]
    seen = answering(tools, "*** Booting ***", "# verbose", answers[0], "# 7", answers[1], ". 99")
    y = artifact.run(x)
    assert list(y) == ["y"]
    assert y["y"].tobytes() == (2 * x).tobytes()
    first, *sent = seen.read_text().splitlines()
    assert first.split() == [
        *("-M", "mps2-an385", "-display", "none", "-monitor", "none", "-serial", "stdio"),
        *("-semihosting-config", "enable=on,target=native", "-kernel", str(artifact.elf)),
    ]
    assert sent == [*(f">{row.tobytes().hex()}" for row in x), "."]
    assert artifact.run(x, engine="qemu")["y"].shape == (2, 3)
    with pytest.raises(DataError):
        artifact.run(x.astype(np.float64))


def test_faults_and_wrong_answers_are_told(mod: tvm.IRModule, tools: World) -> None:
    artifact = build(mod)
    x = normal(1, 3)

    def failure(*lines: str, code: int = 0) -> str:
        answering(tools, *lines, code=code)
        with pytest.raises(CompressError) as caught:
            artifact.run(x)
        return str(caught.value)

    assert failure("! the processor faulted, for Zephyr`s reason 2", code=3) == (
        "The Zephyr application of net reports: the processor faulted, for Zephyr`s reason 2. If "
        "the stack is too small, raise stack_bytes; else report the model as a bug."
    )
    whole = "<" + 24 * "0"
    for lines in ((), (whole, whole), (whole + "0",), (whole[:-1] + "x",)):
        assert failure(*lines, "bye") == (
            f"The Zephyr application of net gave {len(lines)} answers; expected 1 of 12 bytes "
            f"each. Build it again; the console ended with: {chr(10).join((*lines, 'bye'))!r}"
        )
    assert failure(code=1) == (
        "QEMU ended with 1 before the application did: 'oh'. Check the installation of QEMU."
    )


def test_a_run_that_does_not_end_is_stopped(mod: tvm.IRModule, tools: World) -> None:
    artifact = build(mod)
    pid = tools.folder / "pid"
    tools.program("qemu-system-arm", f"echo $$ > {pid}; echo hello; exec sleep 600")
    with pytest.raises(CompressError) as caught:
        artifact.run(normal(1, 3), timeout_s=0.5)
    assert str(caught.value) == (
        "The Zephyr application did not end within 0.5 s on QEMU and was stopped. Give fewer "
        "samples at a time or a longer timeout. The console ended with: 'hello'"
    )
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_where_it_cannot_run_is_told(mod: tvm.IRModule, tools: World) -> None:
    artifact = build(mod)
    with pytest.raises(MissingToolError) as caught:
        artifact.run(normal(1, 3))
    assert str(caught.value) == (
        "The emulator qemu-system-arm is not installed. Install it with: apt-get install "
        "qemu-system-arm"
    )
    with pytest.raises(OptionError) as caught:
        artifact.run(normal(1, 3), engine="unicorn")
    assert str(caught.value) == (
        "A Zephyr application runs on QEMU alone, and the engine 'unicorn' was asked for. Leave it "
        'out, or build the target "c" for a board that runs on it.'
    )
    other = build(mod, board="nrf52840dk_nrf52840")
    with pytest.raises(OptionError) as caught:
        other.run(normal(1, 3))
    assert str(caught.value) == (
        "QEMU has no machine for the board nrf52840dk_nrf52840 that is known here. Flash the "
        "application with `west flash`, or build it for mps2_an385."
    )


def test_the_template_of_the_benchmark_is_spoken_with(mod: tvm.IRModule, tools: World) -> None:
    artifact = build(mod, ZephyrTarget(template="mlperf-tiny"))
    with pytest.raises(OptionError) as caught:
        artifact.run(normal(1, 3))
    assert str(caught.value) == (
        "The application is of the template mlperf-tiny, which answers its own commands. Speak "
        "with it by `converse`, or build it of the template serial."
    )
    seen = answering(tools, "m-ready")
    assert artifact.converse("name%exit%") == "m-ready\n"
    assert seen.read_text().endswith("\nname%exit%")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"board": "mps2/an386"}, "The Zephyr tree has no board mps2/an386."),
        ({"toolchain": "zig"}, "Zephyr's toolchain 'zig' is not known;"),
    ],
)
def test_what_the_tree_lacks_is_told_before_anything_is_written(
    mod: tvm.IRModule, tools: World, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(OptionError) as caught:
        build(mod, out_dir=tools.folder / "app", **options)
    assert str(caught.value).startswith(complaint)
    assert not (tools.folder / "app").exists()


# -- options of the command line ------------------------------------------------------------------


def test_options_are_spelled_as_text() -> None:
    options = [
        "template=mlperf-tiny",
        "stack-bytes=8192",
        "libc=newlib",
        "verbose=true",
        "definitions=A=1",
    ]
    options += ["definitions=B", "extra_files=x.c"]
    assert get_target("zephyr", options) == ZephyrTarget(
        "mlperf-tiny", 8192, "newlib", True, ("A=1", "B"), ("x.c",)
    )
    assert get_target("zephyr", ["verbose=false"]) == get_target("zephyr") == ZephyrTarget()


@pytest.mark.parametrize(
    ("target", "option", "message"),
    [
        (
            "zephyr",
            "stack=1",
            "The target zephyr has no option 'stack=1'; expected NAME=VALUE with one of the names "
            "template, stack-bytes, libc, verbose, definitions, extra-files, cmake-args.",
        ),
        (
            "zephyr",
            "verbose",
            "The target zephyr has no option 'verbose'; expected NAME=VALUE with one of the names "
            "template, stack-bytes, libc, verbose, definitions, extra-files, cmake-args.",
        ),
        (
            "c",
            "x=1",
            "The target c has no option 'x=1'; expected NAME=VALUE with one of the names none, for "
            "it has no options.",
        ),
        (
            "zephyr",
            "verbose=1",
            "The target's option verbose is '1'; expected true or false. Mend the value.",
        ),
        (
            "zephyr",
            "stack-bytes=1k",
            "The target's option stack-bytes is '1k'; expected a whole number. Mend the value.",
        ),
    ],
)
def test_a_wrong_option_is_refused(target: str, option: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        get_target(target, [option])
    assert str(caught.value) == message


def test_the_command_line_writes_an_application(digits_onnx: Path, world: World) -> None:
    from typer.testing import CliRunner

    from tvm_compress.cli.commands import app

    place = world.folder / "app"
    words = ["build", str(digits_onnx), "-o", str(place), "--target", "zephyr", "--json"]
    words += ["--board", "mps2_an385", "--target-option", "stack-bytes=2048"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert list(document) == ["files"]
    assert document["files"]["prj.conf"] == str(place / "prj.conf")
    assert "CONFIG_MAIN_STACK_SIZE=2048" in (place / "prj.conf").read_text()
    result = CliRunner().invoke(
        app, ["run", *words[1:2], *words[4:6], *words[7:9], "--random", "0"]
    )
    assert result.exit_code == 1
    assert result.stderr == f"Error: {NOT_BUILT}\n"


# -- with a real tree -----------------------------------------------------------------------------

BOARDS = ["mps2_an385", "mps2/an521/cpu0", "mps3_an547"]
OWN_CODE_BYTES = 4096


def own_code(artifact: ZephyrArtifact) -> int:
    """Bytes of code and constants of src/main.c, before the linker leaves anything out."""
    from elftools.elf.elffile import ELFFile

    assert artifact.elf is not None
    (path,) = artifact.elf.parents[1].glob("CMakeFiles/app.dir/src/main.c.obj")
    with path.open("rb") as stream:
        sections = list(ELFFile(stream).iter_sections())
    # Allocated, with contents: neither .bss nor what is for debuggers.
    return sum(s["sh_size"] for s in sections if s["sh_flags"] & 2 and s["sh_type"] != "SHT_NOBITS")


def assert_sized(artifact: ZephyrArtifact) -> None:
    size, model = artifact.size, artifact.model
    assert artifact.has_size
    assert size.ram["arena"] == model.arena_bytes
    assert size.ram["inputs"] == sum(spec.size_bytes for spec in model.inputs)
    assert size.ram["outputs"] == sum(spec.size_bytes for spec in model.outputs)
    assert 4096 <= size.ram["stack"] <= 4096 + 256
    assert min((*size.flash.values(), *size.ram.values())) > 0
    assert 0 < own_code(artifact) < OWN_CODE_BYTES


@pytest.mark.zephyr
@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS)
def test_digits_on_a_real_tree(board: str, digits_onnx: Path, digits: DigitsSplit) -> None:
    mod = tc.load(digits_onnx)
    artifact = build(mod, board=board)
    assert_sized(artifact)
    x = digits.test_images[:20]
    actual, expected = artifact.run(x), tc.build(mod, name="net").run(x)
    assert {n: y.tobytes() for n, y in actual.items()} == {
        n: y.tobytes() for n, y in expected.items()
    }


@pytest.mark.zephyr
@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("board", BOARDS)
def test_keyword_spotting_on_a_real_tree(board: str, shared_data: Path) -> None:
    mod = tc.load(shared_data / "mlperf_tiny" / "kws_dscnn_int8.tflite")
    artifact = build(mod, board=board)
    assert_sized(artifact)
    (spec,) = input_specs(mod)
    x = np.random.default_rng(0).integers(-128, 128, (20, *spec.shape[1:])).astype(np.int8)
    actual, expected = artifact.run(x), tc.build(mod, "reference").run(x)
    assert {n: y.tobytes() for n, y in actual.items()} == {
        n: y.tobytes() for n, y in expected.items()
    }


FAULT = """#include <zephyr/kernel.h>
static void fault(void *a, void *b, void *c)
{
    ARG_UNUSED(a), ARG_UNUSED(b), ARG_UNUSED(c);
    __asm__ volatile("udf #0");
}
K_THREAD_DEFINE(faulty, 512, fault, NULL, NULL, NULL, 0, 0, 0);
"""


@pytest.mark.zephyr
@pytest.mark.qemu
@pytest.mark.slow
def test_a_fault_on_a_real_tree(mod: tvm.IRModule, tmp_path: Path) -> None:
    """Extra files, definitions and verbosity of a real build, too."""
    (tmp_path / "fault.c").write_text(FAULT + "#if WANTED != 7\n#error WANTED\n#endif\n")
    target = ZephyrTarget(
        verbose=True, definitions=("WANTED=7",), extra_files=(tmp_path / "fault.c",)
    )
    artifact = build(mod, target)
    with pytest.raises(CompressError, match="reports: the processor faulted, for Zephyr's reason"):
        artifact.run(normal(1, 3), timeout_s=30)


@pytest.mark.zephyr
@pytest.mark.qemu
@pytest.mark.slow
def test_the_benchmarks_commands_on_a_real_tree(digits_onnx: Path, digits: DigitsSplit) -> None:
    mod = tc.load(digits_onnx)
    artifact = build(mod, ZephyrTarget(template="mlperf-tiny"))
    assert 0 < own_code(artifact) < OWN_CODE_BYTES
    x = digits.test_images[:1]
    data = x.tobytes()
    pieces = "".join(f"db {data[i : i + 31].hex()}%" for i in range(0, len(data), 31))
    lines = artifact.converse(f"name%db load {len(data)}%{pieces}infer 2 1%exit%").splitlines()
    logits = tc.build(mod, name="net").run(x)["logits"].ravel().tolist()
    assert "m-load-done" in lines
    (results,) = [line[11:-1] for line in lines if line.startswith("m-results-[")]
    assert [float(v) for v in results.split(",")] == pytest.approx(logits, abs=0.00051)
