"""The application that is written: golden files, options, and its C run on this machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

import tvm_compress as tc
from tests.targets.mcu.nets import const, execute, host_cc, network, normal
from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.firmware import ModelSources
from tvm_compress.targets.mcu.target import generate
from tvm_compress.targets.mcu.zephyr.project import LIBC, application_files

HERE = Path(__file__).parent
# What is written by other parts, or copied as it is.
ELSEWHERE = re.compile(r"model/(src|include|libm)/.*|src/main\.c")


def model_and_module() -> tuple[ModelSources, Any]:
    weight = const(normal(6, 4))
    mod = network(
        {"x": (1, 6), "bias": (1, 4)},
        lambda net, x, bias: [
            net(relax.op.nn.softmax(net(relax.op.add(net(relax.op.matmul(x, weight)), bias)))),
            net(relax.op.tanh(bias)),
        ],
    )
    return generate(mod, "net"), mod


@pytest.fixture(scope="module")
def model() -> ModelSources:
    return model_and_module()[0]


def application(model: ModelSources, **options: Any) -> dict[str, str]:
    defaults: dict[str, Any] = {
        "template": "serial",
        "stack_bytes": 4096,
        "libc": "minimal",
        "verbose": False,
        "emulated": True,
        "definitions": (),
        "extra_files": (),
    }
    return application_files(model, **(defaults | options))


def test_the_application_is_the_golden_one(
    model: ModelSources, request: pytest.FixtureRequest
) -> None:
    files = {n: t for n, t in application(model).items() if not ELSEWHERE.fullmatch(n)}
    golden = HERE / "golden"
    if request.config.getoption("--update-golden"):
        for name, text in files.items():
            (golden / name).parent.mkdir(parents=True, exist_ok=True)
            (golden / name).write_text(text)
    kept = {p.relative_to(golden).as_posix(): p for p in golden.rglob("*") if p.is_file()}
    assert sorted(files) == sorted(kept)
    for name, path in kept.items():
        assert files[name] == path.read_text(), f"{name}: run pytest with --update-golden"


def test_no_field_of_a_template_is_left(model: ModelSources) -> None:
    assert not [name for name, text in application(model).items() if re.search(r"@[A-Z]+@", text)]


def test_all_sources_of_the_model_are_compiled_and_its_header_is_public(
    model: ModelSources,
) -> None:
    with_assembly = ModelSources(
        "net", model.files | {"net_kernels.s": ""}, model.inputs, model.outputs, 0, ()
    )
    files = application(with_assembly)
    listed = re.search(r"zephyr_library_sources\((src[^)]*)\)", files["model/CMakeLists.txt"])
    assert listed
    assert sorted(listed[1].split()) == sorted(
        ["src/net.c", "src/net_layers.c", "src/net_kernels.s", "src/libm.c"]
    )
    for name in listed[1].split():
        assert f"model/{name}" in files
    assert files["model/include/net.h"] == model.files["net.h"]
    assert "model/src/net.h" not in files


def test_the_functions_of_libm_are_the_models_own(model: ModelSources) -> None:
    text = application(model)["model/CMakeLists.txt"]
    renamed = re.search(r"zephyr_library_compile_definitions\((.*)\)", text)
    assert renamed
    functions = ("expf", "tanhf", "erff", "powf", "rintf", "nearbyintf")
    assert renamed[1].split() == [f"{name}=net_{name}" for name in functions]


@pytest.mark.parametrize("libc", LIBC)
def test_options_that_are_settings(model: ModelSources, libc: str) -> None:
    conf = application(model, stack_bytes=8192, libc=libc, verbose=True, emulated=False)["prj.conf"]
    lines = conf.splitlines()
    assert "CONFIG_MAIN_STACK_SIZE=8192" in lines
    assert LIBC[libc] in lines
    assert [n for n in LIBC.values() if n in lines] == [LIBC[libc]]
    assert {"CONFIG_BOOT_BANNER=y", "CONFIG_TVM_COMPRESS_VERBOSE=y"} <= set(lines)
    assert "SEMIHOST" not in conf


def test_definitions_and_extra_files(model: ModelSources, tmp_path: Path) -> None:
    for name in ("more.c", "fast.S", "more.h", "my.conf", "my.overlay"):
        (tmp_path / name).write_text(f"/* {name} */\n")
    paths = sorted(tmp_path.iterdir())
    files = application(model, definitions=("A", "B_1=x y"), extra_files=paths)
    text = files["CMakeLists.txt"]
    assert 'zephyr_compile_definitions("A" "B_1=x y")' in text
    assert "target_sources(app PRIVATE src/main.c src/fast.S src/more.c)" in text
    assert files["src/more.h"] == "/* more.h */\n"
    assert files["app.overlay"] == "/* my.overlay */\n"
    assert files["prj.conf"].endswith("# my.conf\n/* my.conf */\n")


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stack_bytes": 504},
            "stack_bytes is 504; expected a multiple of 8 from 512 on. Take the default 4096, or "
            "what a run tells that the model uses, and some more.",
        ),
        (
            {"stack_bytes": 4097},
            "stack_bytes is 4097; expected a multiple of 8 from 512 on. Take the default 4096, or "
            "what a run tells that the model uses, and some more.",
        ),
        (
            {"template": "arduino"},
            "The template 'arduino' is not known; expected one of serial, mlperf-tiny. Leave it "
            "out for serial.",
        ),
        (
            {"libc": "glibc"},
            "The C library 'glibc' is not known; expected one of minimal, newlib, picolibc, "
            "default. Leave it out for minimal.",
        ),
        *(
            (
                {"definitions": (bad,)},
                f"{bad!r} is no definition of the preprocessor; expected NAME or NAME=VALUE "
                'without any of " \\ $ ; @. Put others into a header among extra_files.',
            )
            for bad in ("", "1A", "A B", 'A="x"', "A=$ENV{HOME}", "A=1;B", "A=@B@", "A=\n")
        ),
    ],
)
def test_a_wrong_option_is_refused(
    model: ModelSources, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        application(model, **options)
    assert str(caught.value) == message


def test_an_extra_file_that_cannot_be_taken_is_refused(model: ModelSources, tmp_path: Path) -> None:
    def refused(*names: str) -> str:
        with pytest.raises(OptionError) as caught:
            application(model, extra_files=[tmp_path / name for name in names])
        return str(caught.value)

    assert refused("gone.c").startswith(f"The extra file {tmp_path}/gone.c cannot be read (")
    assert refused("gone.c").endswith("Give the path of a text file.")
    (tmp_path / "bytes.c").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refused("bytes.c")
    (tmp_path / "x.py").touch()
    (tmp_path / "x").touch()
    assert refused("x.py") == (
        f"The extra file {tmp_path}/x.py ends in .py; expected .c, .s, .S, .h, .conf or .overlay. "
        "Rename it, or copy it into the application yourself."
    )
    assert "ends in nothing" in refused("x")
    (tmp_path / "main.c").touch()
    assert refused("main.c") == (
        "The extra file main.c has the name of a file of the application; expected another one. "
        "Rename it."
    )
    (tmp_path / "a.overlay").touch()
    (tmp_path / "b.overlay").touch()
    assert refused("a.overlay", "b.overlay") == (
        "Two extra files would be app.overlay of the application; expected one. Join them or "
        "rename one."
    )


# -- the C of the application, on this machine ----------------------------------------------------


def compile_application(
    model: ModelSources, folder: Path, *flags: str, template: str = "serial"
) -> Path:
    files = application(model, template=template)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    # With the model's own names of libm's functions, as its CMakeLists.txt has them.
    renamed = re.search(r"compile_definitions\((net_.*|.*=net_.*)\)", files["model/CMakeLists.txt"])
    assert renamed
    program = folder / "program"
    includes = (folder / "model/include", folder / "model/libm")
    execute(
        [
            *(*host_cc(), "-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-ffp-contract=off"),
            *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", *flags),
            *(f"-D{definition}" for definition in renamed[1].split()),
            *(f"-I{place}" for place in (HERE / "stubs", folder / "src", *includes)),
            *sorted(folder.glob("src/*.c")),
            *sorted(folder.glob("model/src/*.c")),
            *("-lm", "-o", program),
        ]
    )
    return program


@pytest.fixture(scope="module")
def program(model: ModelSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_application(model, tmp_path_factory.mktemp("application"))


def converse(program: Path, text: bytes) -> list[str]:
    done = subprocess.run([program], input=text, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def test_the_application_answers_with_the_models_bytes(program: Path) -> None:
    x, bias = normal(5, 6), normal(5, 4, seed=1)
    text = "".join(
        f">{a.tobytes().hex()}{b.tobytes().hex()}\r\n" for a, b in zip(x, bias, strict=True)
    )
    lines = converse(program, text.encode() + b".\n")
    outputs = tc.build(model_and_module()[1], name="net").run({"x": x, "bias": bias})
    assert len(lines) == 6
    for i, line in enumerate(lines[:5]):
        assert line == "<" + b"".join(y[i].tobytes() for y in outputs.values()).hex()
    assert lines[5] == ". 1234"


@settings(max_examples=40)
@given(st.binary(max_size=200).filter(lambda line: b">" not in line and b"." not in line))
def test_what_is_no_request_is_passed_over(program: Path, noise: bytes) -> None:
    assert converse(program, noise + b"\n.\n") == [". 1234"]


BYTES = 40


@settings(max_examples=60)
@given(st.binary(max_size=200).filter(lambda line: not {10, 13} & set(line)))
def test_a_line_that_is_not_the_inputs_is_reported_and_the_next_one_runs(
    program: Path, line: bytes
) -> None:
    whole = re.fullmatch(rb"[0-9a-f]{%d}" % (2 * BYTES), line)
    lines = converse(program, b">" + line + b"\n>" + b"00" * BYTES + b"\n.\n")
    bad = "! the line does not hold two digits for each byte of the inputs"
    assert (lines[0][0] == "<") if whole else (lines[0] == bad)
    assert [text[0] for text in lines[1:]] == ["<", "."]


@pytest.mark.parametrize("digits", [2 * BYTES - 1, 2 * BYTES + 1])
def test_a_digit_too_few_or_too_many_is_reported(program: Path, digits: int) -> None:
    lines = converse(program, b">" + b"0" * digits + b"\n.\n")
    assert [text[0] for text in lines] == ["!", "."]


def test_the_application_of_newer_trees_and_of_a_verbose_one(
    model: ModelSources, tmp_path: Path
) -> None:
    program = compile_application(
        model,
        tmp_path,
        "-DKERNEL_VERSION_NUMBER=0x40000",
        "-DSTUB_VALUE_CONFIG_TVM_COMPRESS_VERBOSE=1",
    )
    lines = converse(program, b">" + b"00" * BYTES + b"\n.\n")
    assert lines[:2] == ["# net on stub", "# 7 cycles of the system's clock"]
    assert [text[0] for text in lines[2:]] == ["<", "."]


def test_math_of_the_minimal_library_declares_what_c_declares() -> None:
    """Every declaration of ours stands beside the C library's own without a complaint."""
    ours = HERE.parents[3] / "targets/mcu/zephyr/application/model/libm/math.h"
    text = "#include <math.h>\n#undef signbit\n#undef isnan\n#undef isinf\n#undef isfinite\n"
    text += "#undef INFINITY\n#undef NAN\n" + f'#include "{ours.resolve()}"\n'
    text += "int x = isnan(NAN) && isinf(INFINITY) && signbit(-1.0f) && isfinite(1.0f);\n"
    done = subprocess.run(
        [*host_cc(), "-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-xc", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -- the template of the benchmark ----------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark_program(model: ModelSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    return compile_application(model, folder, "-DMLPERF_VENDOR=me", template="mlperf-tiny")


BOOT = ["m-timestamp-mode-performance", "m-lap-us-700", "m-init-done", "m-ready"]


def command(program: Path, *commands: str) -> list[list[str]]:
    """Send commands, and give the lines of each answer, without its m-ready."""
    lines = converse(program, "".join(f"{text}%" for text in commands).encode())
    assert lines[:4] == BOOT
    answers: list[list[str]] = [[]]
    for line in lines[4:]:
        if line == "m-ready":
            answers.append([])
        else:
            answers[-1].append(line)
    assert len(answers) == len(commands) + 1 and not answers[-1]
    return answers[:-1]


def thousandths(values: Any) -> str:
    return ",".join(f"{v:.3f}" for v in values.ravel().tolist())


@pytest.mark.parametrize("piece", [40, 32, 7, 1])
def test_the_benchmarks_commands(benchmark_program: Path, piece: int) -> None:
    x, bias = normal(1, 6, seed=2), normal(1, 4, seed=3)
    data = x.tobytes() + bias.tobytes()
    pieces = [data[i : i + piece].hex() for i in range(0, len(data), piece)]
    sent = ["name", "profile", "timestamp", "db load 40", *(f"db {p}" for p in pieces)]
    answers = command(benchmark_program, *sent, "db print", "infer 3 2", "results")
    assert answers[:4] == [
        ["m-name-dut-[me]"],
        ["m-profile-[tvm-compress for MLPerf Tiny]", "m-model-[net]"],
        ["m-lap-us-1400"],
        ["m-[Expecting 40 bytes]"],
    ]
    assert answers[4:-3] == [[]] * (len(pieces) - 1) + [["m-load-done"]]
    assert answers[-3] == [f"m-buffer-{data.hex()}"]
    y = tc.build(model_and_module()[1], name="net").run({"x": x, "bias": bias})
    results = f"m-results-[{thousandths(next(iter(y.values())))}]"
    assert answers[-2] == [
        *("m-warmup-start-2", "m-warmup-done", "m-infer-start-3"),
        *("m-lap-us-2100", "m-lap-us-2800", "m-infer-done", results),
    ]
    assert answers[-1] == [results]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "e-[The command is empty]"),
        ("jump", "e-[Unknown command: jump]"),
        ("db", "e-[Command 'db' needs load, print or digits]"),
        ("db load", "e-[Command 'db load' takes the 40 bytes of the inputs]"),
        ("db load 41", "e-[Command 'db load' takes the 40 bytes of the inputs]"),
        ("db load x", "e-[Command 'db load' takes the 40 bytes of the inputs]"),
        ("db 00", "e-[Expected 0 bytes more of two digits each]"),
        ("infer 0", "e-[Command 'infer' takes a count from 1 on and a count from 0 on]"),
        ("infer 1 -1", "e-[Command 'infer' takes a count from 1 on and a count from 0 on]"),
        ("infer x", "e-[Command 'infer' takes a count from 1 on and a count from 0 on]"),
        ("x" * 255, "e-[Unknown command: " + "x" * 255 + "]"),
        ("x" * 256, "e-[A command has at most 255 characters]"),
        ("x" * 999, "e-[A command has at most 255 characters]"),
        (
            "help",
            "name, profile, timestamp, db load N, db HH[HH]*, db print, infer N [W], results",
        ),
    ],
)
def test_a_wrong_command_is_answered(benchmark_program: Path, text: str, answer: str) -> None:
    assert command(benchmark_program, text, "name") == [[answer], ["m-name-dut-[me]"]]


def test_wrong_data_is_answered(benchmark_program: Path) -> None:
    answers = command(benchmark_program, "db load 40", "db 0", "db 0g", "db " + "0" * 82)
    assert answers[1:] == [
        ["e-[Expected 40 bytes more of two digits each]"],
        ["e-[No hexadecimal digits at byte 0]"],
        ["e-[Expected 40 bytes more of two digits each]"],
    ]


@settings(max_examples=40)
@given(st.binary(max_size=300).filter(lambda text: not set(b"%\n\r\0") & set(text)))
def test_noise_is_answered_and_the_next_command_too(benchmark_program: Path, noise: bytes) -> None:
    done = subprocess.run(
        [benchmark_program], input=noise + b"%name%", capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.endswith(b"m-ready\r\nm-name-dut-[me]\r\nm-ready\r\n")


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_results_of_bytes_are_the_steps_of_a_softmax(dtype: str, tmp_path: Path) -> None:
    mod = network({"x": ((1, 4), dtype)}, lambda net, x: net(relax.op.add(x, const(0, dtype))))
    program = compile_application(
        generate(mod, "net"), tmp_path, "-DMLPERF_INPUT_XOR=0x80", template="mlperf-tiny"
    )
    x = np.array([0, 1, 128, 255], np.uint8)  # as the runner sends images
    answers = command(program, "db load 4", f"db {x.tobytes().hex()}", "infer 1 0")
    seen = x if dtype == "int8" else x ^ 0x80
    assert answers[2][-1] == f"m-results-[{thousandths(np.floor(seen / 0.256 + 0.5) / 1000)}]"
