from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax

from tests.targets.mcu.nets import (
    STRICT,
    ZIG_CC,
    Net,
    const,
    execute,
    host_cc,
    need,
    network,
    normal,
    shared,
)
from tvm_compress import build
from tvm_compress.errors import OptionError
from tvm_compress.targets import reference
from tvm_compress.targets.mcu.firmware import ModelSources
from tvm_compress.targets.mcu.sources import ABI_VERSION, check_name
from tvm_compress.targets.mcu.target import generate

Array = NDArray[Any]
op = relax.op
DATA = Path(__file__).parent / "data"


def small(seed: int = 0, *, inputs: str = "x", output: str = "y") -> tvm.IRModule:
    """Convolutions of every layout, a pooling, a product and a softmax."""

    def describe(net: Net, x: Any) -> Any:
        x = net(op.nn.conv2d(x, const(normal(6, 2, 3, 3, seed=seed)), padding=1, strides=2))
        x = net(op.nn.relu(net(op.add(x, const(normal(6, 1, 1, seed=seed))))))
        kept = x
        x = net(
            op.nn.conv2d(x, net(shared((6, 6, 3, 3), seed=seed, zeros=0.8), "sparse"), padding=1)
        )
        x = net(op.nn.relu(net(op.add(x, kept))))
        x = net(op.nn.conv2d(x, net(shared((6, 6, 1, 1), 3, seed, zeros=0.0), "codes")))
        x = net(op.nn.max_pool2d(x, (2, 2), (2, 2)))
        x = net(op.reshape(x, (1, 24)))
        return net(op.nn.softmax(net(op.matmul(x, const(normal(24, 5, seed=seed))))))

    return network({inputs: (1, 2, 8, 8)}, describe, outputs=[output])


X = normal(1, 2, 8, 8, seed=3)


def write(model: ModelSources, folder: Path) -> list[Path]:
    """Write a model's files; give those to compile."""
    for name, text in model.files.items():
        (folder / name).write_text(text)
    return [folder / name for name in model.files if name.endswith(".c")]


# -- names ----------------------------------------------------------------------------------------

BAD_NAMES = [
    "int",
    "arena",
    "base",
    "model_run",
    "class",
    "this",
    "new",
    "uint8_t",
    "NULL",
    "float",
]
BAD_NAMES += ["model_layer_000_conv2d", "MODEL_ARENA_BYTES", "INFINITY", "memcpy", "x0", "in_x"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_of_tensors_never_break_the_c(name: str) -> None:
    for mod in (small(inputs=name), small(output=name)):
        artifact = build(mod)
        assert [s.name for s in (*artifact.model.inputs, *artifact.model.outputs)].count(name) == 1
        (actual,) = artifact.run(X).values()
        np.testing.assert_allclose(actual, reference.run(small(), X)["y"], atol=1e-5)


def test_an_input_and_an_output_may_have_one_name() -> None:
    # Names are unique within a module, so the output takes another one: the C must still compile.
    mod = network({"x": (2, 3)}, lambda net, x: net(op.nn.relu(x)), outputs=["x"])
    (actual,) = build(mod).run(normal(2, 3)).values()
    np.testing.assert_array_equal(actual, np.maximum(normal(2, 3), 0))


@pytest.mark.parametrize("name", ["keyword_spotter", "Net2", "a", "model_", "int_", "x" * 40])
def test_a_name_that_can_prefix_symbols(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "2nd", "a b", "net-1", "ä", "_x", "a.b", "../a", "int", "main", "a\n"]
)
def test_a_name_that_is_no_prefix(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_name(name)
    assert str(caught.value) == (
        f"The name {name!r} cannot prefix C symbols; expected letters, digits and underscores, a "
        "letter first, and no keyword of C."
    )


@pytest.mark.parametrize(
    "name",
    ["math", "string", "Time", "libm", "stdint", "harness", "harness_model", "startup", "main_net"],
)
def test_a_name_that_others_own(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_name(name)
    assert str(caught.value) == (
        f"The name {name!r} belongs to C's own headers or to the firmware's start-up code and "
        "harness; expected a name of your own, such as my_model."
    )


@given(st.text(max_size=12))
def test_any_name_that_is_taken_is_an_identifier(name: str) -> None:
    try:
        check_name(name)
    except OptionError:
        return
    assert re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)


# -- the text -------------------------------------------------------------------------------------


def test_files_and_header() -> None:
    model = generate(small(), "net")
    assert sorted(model.files) == ["net.c", "net.h", "net_layers.c", "net_layers.h"]
    header = model.files["net.h"]
    for line in (
        f"#define NET_ABI_VERSION {ABI_VERSION}",
        f"#define NET_ARENA_BYTES {model.arena_bytes}",
        "#define NET_ARENA_ALIGN 16",
        "#define NET_NUM_INPUTS 1",
        "#define NET_INPUT_0_SIZE 128",
        "#define NET_INPUT_0_BYTES 512",
        "#define NET_INPUT_0_RANK 4",
        "#define NET_INPUT_0_SHAPE {1, 2, 8, 8}",
        "#define NET_OUTPUT_0_SHAPE {1, 5}",
        "/* x: float32, 1 x 2 x 8 x 8 */",
        "int net_run(const float *in_x, float *out_y, void *arena);",
        'extern "C" {',
    ):
        assert line in header.splitlines()


def test_a_scalar_has_rank_zero() -> None:
    mod = network({"x": ()}, lambda net, x: net(op.exp(x)))
    header = generate(mod, "net").files["net.h"]
    assert "#define NET_INPUT_0_RANK 0\n#define NET_INPUT_0_SHAPE {1}" in header
    assert "/* x: float32, scalar */" in header
    assert build(mod).run(np.float32(0))["y"].shape == ()


def test_nothing_of_tvm_and_no_heap() -> None:
    text = "".join(generate(small(), "net").files.values())
    text = text.replace("generated by tvm-compress", "")
    assert not re.search(r"tvm|TVM|DLTensor|malloc|calloc|free\(|alloca|printf", text)
    included = set(re.findall(r"#include <(.*)>", text))
    assert included <= {"math.h", "stdbool.h", "stddef.h", "stdint.h", "string.h"}


def test_every_external_name_begins_with_the_model() -> None:
    model = generate(small(), "net")
    text = model.files["net.c"] + model.files["net_layers.c"]
    defined = re.findall(r"^(?:static )?(?:const )?\w+ \*?(\w+)(?:\(|\[\d+\] =)", text, re.M)
    assert len(defined) > 10
    assert all(name.startswith("net_") for name in defined)
    assert {layer.symbol for layer in model.layers} <= set(defined)
    assert {s for layer in model.layers for s in layer.weight_symbols} <= set(defined)


def test_equal_modules_give_equal_text() -> None:
    assert generate(small(), "net").files == generate(small(), "net").files


def test_layers_say_kind_and_layout() -> None:
    kinds = [layer.kind for layer in generate(small(), "net").layers]
    assert kinds[:3] == ["conv2d (dense)", "conv2d (gap_codes)", "conv2d (dense_codes)"]
    assert kinds[-2] == "matmul (dense)"


def test_packed_weights_take_the_bytes_that_they_are_said_to(tmp_path: Path) -> None:
    # 36 weights of 3 bits and 8 centroids; a dense matrix would take 144 bytes.
    text = generate(small(), "net").files["net_layers.c"]
    sizes = {
        name: int(count) * {"uint8_t": 1, "uint16_t": 2, "float": 4}[ctype]
        for ctype, name, count in re.findall(r"static const (\w+) (net_w_\w+)\[(\d+)\]", text)
    }
    third = [layer for layer in generate(small(), "net").layers][2]
    assert sum(sizes[symbol] for symbol in third.weight_symbols) == 6 * 3 + 8 * 4


def test_constants_are_read_back_exactly() -> None:
    values = np.array([0.1, 1e-45, -0.0, 3.4028235e38, 1 / 3, -1e-40, 16777217], np.float32)
    mod = network({"x": (7,)}, lambda net, x: [net(op.nn.relu(x)), const(values)])
    actual = build(mod).run(np.zeros(7, np.float32))["y1"]
    np.testing.assert_array_equal(actual.view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "bool", "float64"])
def test_constants_of_every_dtype(dtype: str) -> None:
    if dtype == "bool":
        values = np.array([True, False])
    elif dtype == "float64":
        values = np.array([0.1, 5e-324, -1.7976931348623157e308])
    else:
        values = np.array([np.iinfo(dtype).min, 3, np.iinfo(dtype).max], dtype)
    mod = network({"x": (7,)}, lambda net, x: [net(op.nn.relu(x)), const(values, dtype)])
    actual = build(mod).run(np.zeros(7, np.float32))["y1"]
    assert actual.dtype == values.dtype
    np.testing.assert_array_equal(actual, values)


def test_infinity_and_nan_are_constants_too() -> None:
    values = np.array([np.inf, -np.inf, np.nan], np.float32)
    mod = network({"x": (7,)}, lambda net, x: [net(op.nn.relu(x)), const(values)])
    actual = build(mod).run(np.zeros(7, np.float32))["y1"]
    np.testing.assert_array_equal(actual, values)


# -- compilers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3", "-Os"])
@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_no_compiler_warns(compiler: str, level: str, tmp_path: Path) -> None:
    command = ZIG_CC if compiler == "zig" else (need("gcc"),)
    more = ["-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", level]
    for source in write(generate(small(), "net"), tmp_path):
        execute([*command, *STRICT, *more, "-c", source, "-o", tmp_path / "object.o"])


def test_two_models_in_one_program_in_cpp(tmp_path: Path) -> None:
    """Equal networks under two names: not one symbol may be defined twice."""
    cpp = need("g++")
    mods = {"first": small(1), "second": small(2)}
    objects = []
    for name, mod in mods.items():
        for source in write(generate(mod, name), tmp_path):
            objects.append(source.with_suffix(".o"))
            execute([*host_cc(), *STRICT, "-O1", "-c", source, "-o", objects[-1]])
    program = tmp_path / "program"
    warnings = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    main = DATA / "two_models.cpp"
    execute([cpp, *warnings, "-I", tmp_path, main, *objects, "-o", program, "-lm"])
    printed = [np.array(line.split(), np.float64) for line in execute([program]).splitlines()]
    x = (0.25 * np.arange(128, dtype=np.float32) - 1).reshape(1, 2, 8, 8)
    for values, mod in zip(printed, mods.values(), strict=True):
        np.testing.assert_allclose(values, reference.run(mod, x)["y"][0], atol=1e-5)
    assert not np.array_equal(*printed)


def test_the_same_model_twice_under_two_names_links(tmp_path: Path) -> None:
    sources = [s for name in ("a", "b") for s in write(generate(small(), name), tmp_path)]
    (tmp_path / "main.c").write_text(
        '#include "a.h"\n#include "b.h"\nint main(void) { return 0; }\n'
    )
    execute([*host_cc(), *STRICT, *sources, tmp_path / "main.c", "-o", tmp_path / "p", "-lm"])


@pytest.mark.parametrize("names", [("Net", "net"), ("net", "NET")])
def test_names_that_differ_in_case_alone_are_told_by_the_compiler(
    names: tuple[str, str], tmp_path: Path
) -> None:
    # Their macros are the same, so the second header must not be passed over without a word.
    includes = []
    for number, name in enumerate(names):  # folders, for there are disks that see no case
        folder = tmp_path / str(number)
        folder.mkdir()
        write(generate(small(), name), folder)
        includes.append(f'#include "{number}/{name}.h"\n')
    unit = tmp_path / "unit.c"
    command = [*host_cc(), *STRICT, "-c", unit, "-o", tmp_path / "unit.o"]
    for include in includes:
        unit.write_text(include)
        execute(command)
    unit.write_text("".join(includes))
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "Two models have names that differ in case alone; build one under" in result.stderr


def test_a_model_may_be_named_as_the_layers_of_another(tmp_path: Path) -> None:
    headers = []
    for name in ("net", "net_layers"):
        folder = tmp_path / name
        folder.mkdir()
        write(generate(small(), name), folder)
        headers += [f"{name}/{name}.h", f"{name}/{name}_layers.h"]
    guards = [re.search(r"#ifndef (\w+)", (tmp_path / path).read_text()) for path in headers]
    assert len({guard.group(1) for guard in guards if guard}) == 4


# A chain whose arena is used to its last byte, networks with workspaces, one without an arena.
GUARDED = {
    "all layouts": (small(), (1, 2, 8, 8)),
    "softmax alone": (network({"x": (3, 50)}, lambda net, x: net(op.nn.softmax(x))), (3, 50)),
    "no arena": (network({"x": (3, 5)}, lambda net, x: net(op.nn.relu(x))), (3, 5)),
    "products": (
        network(
            {"x": (1, 30)},
            lambda net, x: net(
                op.matmul(
                    net(op.nn.relu(net(op.matmul(x, net(shared((30, 33), zeros=0.9), "a"))))),
                    net(shared((33, 4), 2), "b"),
                )
            ),
        ),
        (1, 30),
    ),
}


@pytest.mark.parametrize("name", GUARDED)
def test_arena_and_tensors_under_the_sanitizers(name: str, tmp_path: Path) -> None:
    compiler = need("gcc")
    mod, shape = GUARDED[name]
    model = generate(mod, "net")
    sources = write(model, tmp_path)
    x = normal(*shape)
    (tmp_path / "inputs").write_bytes(x.tobytes())
    macros = {
        "MODEL_H": '"net.h"',
        "RUN": "net_run",
        "ARENA_BYTES": "NET_ARENA_BYTES",
        "INPUT_BYTES": "NET_INPUT_0_BYTES",
        "OUTPUT_BYTES": "NET_OUTPUT_0_BYTES",
    }
    defines = [f"-D{key}={value}" for key, value in macros.items()]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1"]
    main = ["-D_POSIX_C_SOURCE=200112L", "-Wno-type-limits", DATA / "guarded_main.c"]
    program = tmp_path / "program"
    execute(
        [
            compiler,
            *STRICT,
            *sanitize,
            *defines,
            "-I",
            tmp_path,
            *main,
            *sources,
            "-o",
            program,
            "-lm",
        ]
    )
    execute([program], tmp_path)
    (expected,) = reference.run(mod, x).values()
    actual = np.frombuffer((tmp_path / "outputs").read_bytes(), np.float32)
    np.testing.assert_allclose(actual, expected.reshape(-1), atol=1e-5, rtol=1e-4)
