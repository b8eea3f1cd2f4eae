from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper
from tvm import relax
from typer.testing import CliRunner

import tvm_compress
from tvm_compress import codec, doctor, inspection, ir, pipeline, qdq
from tvm_compress.cli import app
from tvm_compress.errors import CompressError, InputError
from tvm_compress.frontends import load
from tvm_compress.passes import Prune, Reconstruct, ShareWeights
from tvm_compress.pipeline import quantize
from tvm_compress.recipe import Finetune, Recipe
from tvm_compress.recipes import deep_compression, post_training
from tvm_compress.targets import reference
from tvm_compress.targets.artifact import Target
from tvm_compress.targets.mcu import boards
from tvm_compress.targets.mcu.boards import list_boards
from tvm_compress.tensors import input_specs

COMMANDS = ("compress", "quantize", "inspect", "export", "build", "run", "boards", "doctor")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def call(*arguments: object, **environment: str) -> Outcome:
    result = CliRunner(env=environment).invoke(app, [str(a) for a in arguments])
    return Outcome(result.exit_code, result.stdout, result.stderr)


def done(*arguments: object) -> str:
    outcome = call(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def mistake(*arguments: object) -> str:
    """Call and expect the user's mistake: exit code 1 and one line without a traceback."""
    outcome = call(*arguments)
    assert outcome.code == 1, outcome
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(".")
    return line.removeprefix("Error: ")


@pytest.fixture(scope="module")
def network(digits_onnx: Path) -> tvm.IRModule:
    return load(digits_onnx)


@pytest.fixture(scope="module")
def small(network: tvm.IRModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed network as a file."""
    path = tmp_path_factory.mktemp("small") / "small.json"
    recipe = deep_compression(0.9, 4, epochs=0)
    pipeline.save(pipeline.compress(network, recipe, progress=False), path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One product, of float weights, as a file."""
    chance = np.random.default_rng(8)
    weight = relax.const(chance.standard_normal((20, 12)).astype(np.float32))
    bias = relax.const(chance.standard_normal(12).astype(np.float32))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 20), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.matmul(x, weight))
            out = builder.emit_output(relax.op.add(y, bias))
        builder.emit_func_output(out)
    path = tmp_path_factory.mktemp("tiny") / "tiny.json"
    pipeline.save(load(builder.get()), path)
    return path


@pytest.fixture(scope="module")
def tiny_shared(tiny: Path) -> Path:
    path = tiny.with_name("shared.json")
    pipeline.save(ShareWeights(4)(Prune(0.6)(load(tiny))), path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.npy"
    generator = np.random.default_rng(3)
    np.save(path, generator.standard_normal((1, 1, 8, 8)).astype(np.float32))
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    generator = np.random.default_rng(4)
    x = generator.standard_normal((8, 1, 8, 8)).astype(np.float32)
    np.savez(path, x=x, y=generator.integers(0, 10, 8))
    return path


# ---- help, version, usage ------------------------------------------------------------------------


def test_help_lists_the_commands() -> None:
    out = done("--help")
    for command in COMMANDS:
        assert f" {command} " in out
    assert "Example: tvm-compress compress " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_the_parser_takes(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(done(command, "--help").split())
    example = text.partition(f"Example: tvm-compress {command}")[2].split()
    assert text.count("Example: ") == 1
    assert command == "doctor" or example
    # In an empty folder the model is missing, and that is found behind the parser.
    monkeypatch.chdir(tmp_path)
    if command not in ("boards", "doctor"):
        assert "kws" in mistake(command, *example)


def test_help_names_what_the_options_take() -> None:
    text = " ".join(done("compress", "--help").replace("│", " ").split())
    hints = get_type_hints(ShareWeights)
    for method in get_args(hints["method"]):
        assert method in text
    for scope in get_args(get_type_hints(Prune)["scope"]):
        assert scope in text
    defaults = {"sparsity": Prune.sparsity, "bits": ShareWeights.bits, "lr": Finetune.lr}
    for option, default in defaults.items():
        described = text.partition(f"--{option} ")[2].partition("--")[0]
        assert f"[default: ({default})]" in described, option
    described = text.partition("--epochs ")[2].partition("--lr")[0]
    assert f"[default: ({Finetune.epochs} with --train, else 0)]" in described


def test_version() -> None:
    assert done("--version") == f"tvm-compress {tvm_compress.__version__}\n"


def test_no_command_shows_the_help_and_fails() -> None:
    outcome = call()
    assert outcome.code == 1
    assert "Usage: tvm-compress" in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["squeeze"], "No such command 'squeeze'; `tvm-compress --help` shows the usage."),
        (["--fast"], "No such option: --fast; `tvm-compress --help` shows the usage."),
        (
            ["inspect", "a.onnx", "--fast"],
            "No such option: --fast; `tvm-compress inspect --help` shows the usage.",
        ),
        (["inspect"], "Missing argument 'MODEL'; `tvm-compress inspect --help` shows the usage."),
        (
            ["build", "a.onnx"],
            "Missing option '-o' / '--output'; `tvm-compress build --help` shows the usage.",
        ),
    ],
)
def test_wrong_usage_is_the_users_mistake(arguments: list[str], message: str) -> None:
    assert mistake(*arguments) == message


@pytest.mark.parametrize("option", ["--bits", "--sparsity", "--epochs"])
def test_an_option_of_another_type(option: str) -> None:
    message = mistake("compress", "a.onnx", "-o", "b.json", option, "many")
    assert f"Invalid value for '{option}'" in message
    assert message.endswith("; `tvm-compress compress --help` shows the usage.")


# ---- how a command ends --------------------------------------------------------------------------


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def diagnose() -> None:
        raise error

    monkeypatch.setattr(doctor, "diagnose", diagnose)


def test_a_fault_of_ours_is_one_line_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyError("size\nof a"))
    outcome = call("doctor")
    assert outcome == Outcome(
        2,
        "",
        "This is a fault of tvm-compress, not yours (KeyError: 'size\\nof a'); run `tvm-compress "
        "--traceback ...` and report what it prints.\n",
    )


def test_an_error_that_the_user_cannot_mend_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, CompressError("Compiling failed:\nline 3"))
    outcome = call("doctor")
    assert outcome.code == 2
    assert outcome.err.startswith(
        "This is a fault of tvm-compress, not yours (CompressError: Compiling failed:); run "
    )


@pytest.mark.parametrize("by_variable", [False, True])
def test_traceback_shows_where(monkeypatch: pytest.MonkeyPatch, by_variable: bool) -> None:
    fail_with(monkeypatch, KeyError("size"))
    if by_variable:
        outcome = call("doctor", TVM_COMPRESS_TRACEBACK="1")
    else:
        outcome = call("--traceback", "doctor")
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert "in diagnose" in outcome.err
    # It holds for that call alone.
    assert "Traceback" not in call("doctor").err


def test_an_input_error_is_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, InputError("It is red; expected blue."))
    assert mistake("doctor") == "It is red; expected blue."
    outcome = call("--traceback", "doctor")
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_a_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, PermissionError(13, "Permission denied", "a.onnx"))
    assert mistake("doctor") == (
        "a.onnx cannot be read or written (Permission denied); choose another path or change its "
        "permissions."
    )


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    outcome = call("doctor")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert "fault" not in outcome.err


def test_output_into_a_pipe_that_nobody_reads() -> None:
    root = str(Path(tvm_compress.__file__).parents[1])
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as pipe:
        result = subprocess.run(
            [sys.executable, "-m", "tvm_compress", "--version"],
            env={**os.environ, "PYTHONPATH": root},
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (result.returncode, result.stderr) == (1, "")


# ---- compress ------------------------------------------------------------------------------------


def test_command_line_python_and_file_say_the_same(
    digits_onnx: Path, network: tvm.IRModule, tmp_path: Path
) -> None:
    recipe = deep_compression(0.8, 3, epochs=0, method="linear", scope="global", seed=5)
    expected = pipeline.compress(network, recipe, progress=False)

    options = ["--sparsity", "0.8", "--bits", "3", "--method", "linear", "--scope", "global"]
    by_options = tmp_path / "options.json"
    out = done("compress", digits_onnx, "-o", by_options, *options, "--seed", "5", "--json")
    document = json.loads(out)
    assert Recipe.model_validate(document["recipe"]) == recipe

    toml = tmp_path / "recipe.toml"
    toml.write_text(recipe.to_toml())
    by_file = tmp_path / "file.json"
    document = json.loads(done("compress", digits_onnx, "-o", by_file, "--recipe", toml, "--json"))
    assert Recipe.model_validate(document["recipe"]) == recipe

    assert by_options.read_bytes() == by_file.read_bytes()
    tvm.ir.assert_structural_equal(load(by_options), expected)


def test_without_options_it_is_deep_compression_in_one_shot(
    digits_onnx: Path, tmp_path: Path
) -> None:
    path = tmp_path / "small.json"
    document = json.loads(done("compress", digits_onnx, "-o", path, "--json"))
    assert Recipe.model_validate(document["recipe"]) == deep_compression(epochs=0)
    assert document["output"] == str(path)
    assert document["before"]["density"] == 1.0
    assert document["after"] == inspection.inspect(load(path)).totals
    assert 0.1 < document["after"]["density"] < 0.12
    assert document["after"]["packed_bytes"] < document["before"]["packed_bytes"] / 10


def test_tables_go_to_stdout_and_progress_to_stderr(digits_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    outcome = call("compress", digits_onnx, "-o", path)
    assert outcome.code == 0
    assert outcome.err.splitlines() == ["[1/2] prune", "[2/2] share-weights"]
    assert outcome.out.splitlines()[-1] == f"wrote {path}"
    assert "packed bytes (estimate)" in outcome.out
    assert outcome.out.count("conv2_weight") == 1


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace fine-tuning by nothing; give its calls."""
    calls: list[dict[str, Any]] = []

    def finetune(mod: tvm.IRModule, data: Any, **options: Any) -> tvm.IRModule:
        calls.append({"data": data, **options})
        return mod

    fake = ModuleType("tvm_compress.training")
    fake.finetune = finetune  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tvm_compress.training", fake)
    return calls


def test_training_data_means_fine_tuning(
    digits_onnx: Path, samples: Path, trained: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "small.json"
    out = done("compress", digits_onnx, "-o", path, "--train", samples, "--lr", "0.01", "--json")
    assert Recipe.model_validate(json.loads(out)["recipe"]) == deep_compression(lr=0.01)
    assert [call["epochs"] for call in trained] == [Finetune.epochs] * 2
    x, y = trained[0]["data"]
    with np.load(samples) as content:
        np.testing.assert_array_equal(x, content["x"])
        np.testing.assert_array_equal(y, content["y"])


def test_fine_tuning_runs_where_asked(
    digits_onnx: Path,
    samples: Path,
    trained: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["compress", digits_onnx, "-o", tmp_path / "small.json", "--train", samples]
    asked: list[str] = []
    monkeypatch.setattr(pipeline, "check_device", asked.append)
    done(*command, "--device", "cuda:1")
    done(*command)
    assert [call["device"] for call in trained] == ["cuda:1"] * 2 + ["cpu"] * 2
    assert asked == ["cuda:1", "cpu"]


def test_training_data_without_labels_where_a_recipe_distils(
    digits_onnx: Path, trained: list[dict[str, Any]], tmp_path: Path
) -> None:
    samples, toml = tmp_path / "samples.npz", tmp_path / "recipe.toml"
    x = np.random.default_rng(6).standard_normal((4, 1, 8, 8)).astype(np.float32)
    np.savez(samples, allow_pickle=False, x=x)
    sys.modules["tvm_compress.training"].teacher_outputs = (  # type: ignore[attr-defined]
        lambda mod, given, **options: reference.run(mod, given)["logits"]
    )
    command = ["compress", digits_onnx, "-o", tmp_path / "small.json", "--recipe", toml]
    toml.write_text(Recipe([Prune(0.5), Finetune(epochs=1, loss="distillation")]).to_toml())
    done(*command, "--train", samples)
    np.testing.assert_array_equal(trained[0]["data"][0], x)
    toml.write_text(Recipe([Prune(0.5), Finetune(epochs=1)]).to_toml())
    message = mistake(*command, "--train", samples)
    assert message.startswith(f"{samples} holds the arrays x; expected an .npz with samples x")


def test_samples_without_labels_mean_one_shot_reconstruction(tiny: Path, tmp_path: Path) -> None:
    samples = np.random.default_rng(7).standard_normal((40, 20)).astype(np.float32)
    array, named, toml = tmp_path / "x.npy", tmp_path / "x.npz", tmp_path / "recipe.toml"
    np.save(array, samples)
    np.savez(named, allow_pickle=False, x=samples)
    recipe = post_training(0.02)
    expected = pipeline.compress(load(tiny), recipe, calibrate=samples, progress=False)
    toml.write_text(recipe.to_toml())
    by_options = tmp_path / "options.tcz"
    command = ["compress", tiny, "-o", by_options, "--calibrate", array, "--json"]
    document = json.loads(done(*command, "--lam", "0.02"))
    assert Recipe.model_validate(document["recipe"]) == recipe
    by_file = tmp_path / "file.tcz"
    command = ["compress", tiny, "-o", by_file, "--calibrate", named, "--recipe", toml]
    outcome = call(*command, "--profile", "flash", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    for path, profile in ((by_options, "archive"), (by_file, "flash")):
        tvm.ir.assert_structural_equal(load(path), expected, map_free_vars=True)
        assert path.read_bytes() == codec.pack(expected, profile)
    # Of the file that was written, in its profile.
    assert document["after"] == inspection.inspect_file(by_options).totals
    assert document["after"]["file_bytes"] == by_options.stat().st_size
    before = inspection.inspect(load(tiny)).totals
    assert document["before"] == {
        name: before[name] for name in ("parameters", "density", "dense_bytes", "packed_bytes")
    }
    (row,) = (row for row in cells(outcome.out) if row[0].startswith(".tcz bytes"))
    dense, size = len(codec.pack(load(tiny), "flash")), by_file.stat().st_size
    assert row == [".tcz bytes (flash)", f"{dense:,}", f"{size:,}"]
    assert outcome.out.splitlines()[-1] == f"wrote {by_file}"

    # Samples are not needed, and those of --train do.
    plain = pipeline.compress(load(tiny), recipe, progress=False)
    rows = cells(done("compress", tiny, "-o", by_options, "--lam", "0.02"))
    assert [".tcz bytes (archive)", "-", f"{by_options.stat().st_size:,}"] in rows
    assert ["dense bytes", f"{4 * (20 * 12 + 12):,}", f"{4 * (20 * 12 + 12):,}"] in rows
    tvm.ir.assert_structural_equal(load(by_options), plain, map_free_vars=True)
    done("compress", tiny, "-o", by_options, "--recipe", toml)
    tvm.ir.assert_structural_equal(load(by_options), plain, map_free_vars=True)
    done("compress", tiny, "-o", by_options, "--recipe", toml, "--train", named)
    tvm.ir.assert_structural_equal(load(by_options), expected, map_free_vars=True)
    toml.write_text(Recipe([Reconstruct()]).to_toml())
    done("compress", tiny, "-o", by_options, "--recipe", toml, "--calibrate", array)
    assert mistake("compress", tiny, "-o", by_file, "--recipe", toml) == (
        "A step of the recipe needs samples, and none were given; expected --calibrate samples.npy "
        "with some hundred inputs."
    )


def test_training_data_of_another_kind(digits_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="Fine-tuning needs torch.")
    train, output = tmp_path / "train.npz", tmp_path / "small.json"
    np.savez(train, x=np.zeros((8, 1, 8, 8)), y=np.zeros(8, np.int64))
    outcome = call("compress", digits_onnx, "-o", output, "--train", train)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(
        "Error: The input image of the training data is float64; expected float32"
    )
    assert not output.exists()


def test_checkpoints_are_kept_where_asked(
    digits_onnx: Path, samples: Path, trained: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder, path = tmp_path / "checkpoints", tmp_path / "small.json"
    command = ["compress", digits_onnx, "-o", path, "--train", samples, "--checkpoint-dir", folder]
    done(*command)
    first = path.read_bytes()
    assert len(list(folder.iterdir())) == 4
    done(*command)
    assert len(trained) == 2
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "1.5"], "prune: the sparsity is 1.5; expected a number from 0 to 1."),
        (["--sparsity", "nan"], "prune: the sparsity is nan; expected a number from 0 to 1."),
        (
            ["--bits", "9"],
            "share-weights: the codes have 9 bits; expected a whole number from 1 to 8.",
        ),
        (
            ["--method", "best"],
            "share-weights: the method is best; expected optimal, linear, density, random.",
        ),
        (["--scope", "all"], "prune: the scope is all; expected layer or global."),
        (["--epochs", "-1"], "finetune: epochs is -1; expected a whole number from 0 on."),
        (["--lr", "0"], "finetune: lr is 0.0; expected a finite number above 0."),
        (
            ["--epochs", "1"],
            "The recipe fine-tunes, and no training data was given; expected --train data.npz, or "
            "no fine-tuning: --epochs 0 or a recipe without finetune.",
        ),
        (
            ["--calibrate", "x.npy", "--epochs", "2", "--method", "linear"],
            "--method and --epochs was given together with --calibrate and without --train; "
            "expected --lam alone, with or without --calibrate, or a --recipe.",
        ),
        (
            ["--lam", "0.01", "--sparsity", "0.5", "--train", "x.npz"],
            "--sparsity and --train was given together with --lam; expected --lam alone, with or "
            "without --calibrate, or a --recipe.",
        ),
        (
            ["--device", "gpu"],
            "The device is 'gpu'; expected cpu, cuda, or cuda with a number, such as cuda:1.",
        ),
        (
            ["--calibrate", "x.npy", "--train", "x.npz"],
            "--calibrate was given, and no step of the recipe looks at inputs; expected no "
            "--train, a recipe with a reduce-rate or reconstruct step, or no --calibrate.",
        ),
        (
            ["--calibrate", "missing.npy"],
            "missing.npy does not exist or is a folder; expected a .npy or .npz file.",
        ),
        (["--profile", "zip"], "There is no profile 'zip'; expected archive or flash."),
        (
            ["--profile", "flash"],
            "The profile flash was asked for small.json, which will be JSON; expected a name that "
            "ends in .tcz.",
        ),
        (
            ["--epochs", "0", "--train", "x.npz"],
            "--train was given, and the recipe does not fine-tune; expected --epochs above 0, a "
            "recipe with a finetune step, or no --train.",
        ),
        (
            ["--recipe", "r.toml", "--bits", "4", "--sparsity", "0.5"],
            "--recipe was given together with --sparsity and --bits; expected one or the other: "
            "write the value into the recipe.",
        ),
        (
            ["--recipe", "missing.toml"],
            "The recipe missing.toml cannot be read (No such file or directory); expected a TOML "
            "file with [[steps]].",
        ),
        (
            ["--train", "missing.npz"],
            "missing.npz does not exist or is a folder; expected a .npy or .npz file.",
        ),
        (
            ["--shape", "image"],
            "--shape image is no shape; expected the input's name and its sizes, like "
            "x=1,3,224,224.",
        ),
        (
            ["--shape", "image=1,x,8"],
            "--shape image=1,x,8 is no shape; expected the input's name and its sizes, like "
            "x=1,3,224,224.",
        ),
        (
            ["--shape", "image=1,0,8,8"],
            "--shape image=1,0,8,8 is no shape; expected the input's name and its sizes, like "
            "x=1,3,224,224.",
        ),
        (
            ["--shape", "=1,8"],
            "--shape =1,8 is no shape; expected the input's name and its sizes, like "
            "x=1,3,224,224.",
        ),
    ],
)
def test_compress_refuses(
    options: list[str],
    message: str,
    digits_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mistake("compress", digits_onnx, "-o", "small.json", *options) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[[steps]\n", "r.toml is not TOML: "),
        ("[[steps]]\nstep = 'prune'\nbits = 4\n", "Step 1 of the recipe: prune: there is no field"),
    ],
)
def test_compress_refuses_a_recipe(text: str, part: str, digits_onnx: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "r.toml", tmp_path / "small.json"
    path.write_text(text)
    assert part in mistake("compress", digits_onnx, "-o", output, "--recipe", path)
    assert not output.exists()


def test_compress_refuses_a_network_that_is_shared_already(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "again.json"
    output.write_text("old")
    outcome = call("compress", small, "-o", output)
    assert outcome.code == 1
    assert "prune: the weight conv1_weight is already shared" in outcome.err.splitlines()[-1]
    assert output.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["again.json"]


def test_compress_looks_at_the_output_first(digits_onnx: Path, tmp_path: Path) -> None:
    assert "is a folder; expected the name of a file" in mistake(
        "compress", "missing.onnx", "-o", tmp_path
    )
    assert "does not exist; create it" in mistake(
        "compress", "missing.onnx", "-o", tmp_path / "no" / "small.json"
    )


def test_a_shape_is_given_to_the_frontend(tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    node = helper.make_node("Relu", ["a=b"], ["y"])
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h"])
        for name in ("a=b", "y")
    ]
    graph = helper.make_graph([node], "open", value[:1], value[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    # The name of an input may hold the sign that ends it.
    document = json.loads(done("inspect", path, "--shape", "a=b=2,3,5", "--json"))
    assert document["inputs"][0]["shape"] == [2, 3, 5]
    outcome = call("inspect", path)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"x": np.ones(3), "labels": np.ones(3)}, "the arrays x, labels"),
        ({"y": np.ones(3)}, "the arrays y"),
        (np.ones(3), "one array"),
    ],
)
def test_training_data_without_samples_or_labels(
    given: Any, found: str, digits_onnx: Path, tmp_path: Path
) -> None:
    path = tmp_path / "train.npz"
    with path.open("wb") as stream:
        if isinstance(given, dict):
            np.savez(stream, allow_pickle=False, **given)
        else:
            np.save(stream, given)
    output = tmp_path / "small.json"
    assert mistake("compress", digits_onnx, "-o", output, "--train", path) == (
        f"{path} holds {found}; expected an .npz with samples x (or one array for each input's "
        "name) and labels y: numpy.savez(path, x=x, y=y)."
    )


# ---- inspect -------------------------------------------------------------------------------------


def test_inspect_counts_what_is_there(network: tvm.IRModule, small: Path) -> None:
    document = json.loads(done("inspect", small, "--json"))
    assert document["inputs"] == [{"name": "image", "shape": [1, 1, 8, 8], "dtype": "float32"}]
    assert document["outputs"] == [{"name": "logits", "shape": [1, 10], "dtype": "float32"}]
    assert document["operators"]["nn.conv2d"] == 3
    assert document["operators"]["tvm_compress.codebook"] == 5
    rows = {row["name"]: row for row in document["parameters"]}
    conv = rows["conv2_weight"]
    codes = ShareWeights(4).apply(Prune(0.9).apply(network))
    value = ir.parameters(codes)["conv2_weight"].value
    assert conv["shape"] == [32, 16, 3, 3]
    assert conv["operator"] == "nn.conv2d"
    assert conv["density"] == np.count_nonzero(value) / value.size
    assert conv["distinct"] == len(set(value.ravel().tolist()))
    assert conv["bits"] == 4
    assert conv["dense_bytes"] == 4 * value.size
    # 10 % of 4 bits and a gap of about 4 bits each, 16 centroids, the rows.
    assert conv["layout"] == "gap_codes"
    nonzero = np.count_nonzero(value)
    assert nonzero + 64 < conv["packed_bytes"] < 1.5 * nonzero + 64 + 2 * 33 + 2
    bias = rows["conv2_bias"]
    assert (bias["operator"], bias["bits"], bias["layout"]) == (None, 32, "dense")
    assert bias["packed_bytes"] == bias["dense_bytes"] == 128
    total = document["totals"]
    assert total["parameters"] == 22954
    assert total["packed_bytes"] == sum(row["packed_bytes"] for row in document["parameters"])
    assert total["dense_bytes"] == 4 * 22954


def cells(out: str) -> list[list[str]]:
    """The rows of all tables."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in out.splitlines()
        if line.startswith("│")
    ]


def test_inspect_prints_every_parameter(small: Path) -> None:
    out = done("inspect", small)
    found = inspection.inspect(load(small))
    coded = found.totals["coded_bytes"]
    rows = {row[0]: row for row in cells(out)}
    for p in found.parameters:
        assert p.coded_bytes is not None and p.bits_per_weight is not None
        assert rows[p.name] == [
            *(p.name, "x".join(map(str, p.shape)), p.operator or "-", f"{p.density:.1%}"),
            *(str(p.bits), f"{p.bits_per_weight:.2f}", f"{p.coded_bytes:,}"),
            *(f"{p.coded_bytes / coded:.1%}", f"{p.dense_bytes:,}", f"{p.packed_bytes:,}"),
            p.layout,
        ]
    assert rows["total"][6:8] == [f"{coded:,}", "100.0%"]
    assert out.splitlines()[-1].startswith(
        f".tcz of the profile flash: {found.totals['file_bytes']:,} bytes (header 40, graph "
    )
    assert "input image: float32 1x1x8x8" in out
    assert "output logits: float32 1x10" in out
    assert "…" not in out


@pytest.mark.parametrize("profile", codec.PROFILES)
def test_inspect_shows_what_a_file_spends(tiny_shared: Path, profile: str, tmp_path: Path) -> None:
    path = tmp_path / "small.tcz"
    pipeline.save(load(tiny_shared), path, profile=profile)
    found = inspection.inspect_file(path)
    assert json.loads(done("inspect", path, "--json")) == json.loads(
        json.dumps({**found.as_dict()})
    )
    out = done("inspect", path)
    size = path.stat().st_size
    assert out.splitlines()[0] == (
        f"{path}: .tcz version 1, profile {profile}, features 0x0000, {size:,} bytes"
    )
    rows = cells(out)
    assert rows[0] == ["header", "40", "", "intact"]
    assert found.file is not None
    for state, row in zip(found.file.sections, rows[1:4], strict=True):
        assert row == [state.name, f"{state.size_bytes:,}", f"{state.crc32:08x}", "intact"]
    assert out.splitlines()[-1].startswith(f".tcz of the profile {profile}: {size:,} bytes")
    # As another profile, which it is not.
    document = json.loads(done("inspect", path, "--profile", "archive", "--json"))
    assert document["file"]["file_bytes"] == len(codec.pack(load(path), "archive"))


def test_inspect_shows_where_a_file_is_damaged(tiny_shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.tcz"
    pipeline.save(load(tiny_shared), path)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    outcome = call("inspect", path)
    assert outcome.code == 1
    assert [row[-1] for row in cells(outcome.out)] == ["intact", "intact", "intact", "damaged"]
    assert "is damaged in its section weights: its checksum is another" in outcome.err
    outcome = call("inspect", path, "--json")
    assert outcome.code == 1
    document = json.loads(outcome.out)
    assert list(document) == ["file", "error"]
    assert document["file"] == json.loads(json.dumps(asdict(codec.read_header(path.read_bytes()))))
    assert outcome.err == f"Error: {document['error']}\n"
    assert "is damaged in its section weights" in document["error"]
    document = json.loads(call("inspect", path, "--json", "--profile", "flash").out)
    assert [section["intact"] for section in document["file"]["sections"]] == [True, True, False]


def test_inspect_prints_histograms(small: Path, network: tvm.IRModule) -> None:
    mod = load(small)
    out = done("inspect", small, "--histogram", "conv1*", "--histogram", "fc2_weight")
    titles = [line.strip() for line in out.splitlines() if line.strip().endswith("of them 0")]
    assert [title.partition(":")[0] for title in titles] == [
        "conv1_weight", "conv1_bias", "fc2_weight"
    ]  # fmt: skip
    found = inspection.histogram(mod, "fc2_weight")
    rows = cells(out.partition("fc2_weight: 640 values")[2])
    assert len(rows) == len(found.bins) + 16
    most = max(one.count for one in found.bins)
    for one, row in zip(found.bins, rows, strict=False):
        assert row[:4] == [
            *(f"{one.low:.4g}", f"{one.high:.4g}", str(one.centroids), f"{one.count:,}")
        ]
        assert set(row[4]) <= {"#"}
        assert len(row[4]) == int(np.ceil(40 * one.count / most))
    for centroid, row in zip(found.centroids, rows[16:], strict=True):
        assert row[:3] == [*(str(centroid.code), f"{centroid.value:.6g}", f"{centroid.count:,}")]
    assert rows[16][3] == ""  # no bar for the zeros, which would dwarf all others
    document = json.loads(done("inspect", small, "--histogram", "fc2_weight", "--json"))
    assert document["histograms"] == json.loads(json.dumps([asdict(found)]))
    assert "histograms" not in json.loads(done("inspect", small, "--json"))
    names = ", ".join(p.name for p in inspection.inspect(mod).parameters)
    assert mistake("inspect", small, "--histogram", "conv9*") == (
        f"--histogram conv9* matches no parameter; expected one of {names}, or a pattern."
    )
    assert mistake("inspect", small, "--profile", "zip") == (
        "There is no profile 'zip'; expected archive or flash."
    )


def test_inspect_draws_the_memory_plan(small: Path) -> None:
    found = inspection.memory(load(small))
    out = done("inspect", small, "--memory")
    assert (
        f"arena {found.arena_bytes:,} bytes (most live at once {found.bound_bytes:,}), beside it "
        "inputs 256 and outputs 40"
    ) in out.splitlines()
    steps, tensors = re.split(r"^Arena +$", out.partition("arena, 0 to")[2], flags=re.M)
    rows = cells(steps)
    assert len(rows) == len(found.steps)
    most = max(step.live_bytes for step in found.steps)
    letters = {}
    drawn = cells(tensors)
    for one, row in zip(
        sorted(found.tensors, key=lambda t: (t.offset, t.first)), drawn, strict=True
    ):
        letters[one.name] = row[0]
        assert row[1:] == [
            *(one.name, f"{one.offset:,}", f"{one.offset + one.size_bytes:,}"),
            *(f"{one.size_bytes:,}", f"{one.first} to {one.last}", one.over or ""),
        ]
    assert len(set(letters.values())) == len(found.tensors)
    for i, (step, row) in enumerate(zip(found.steps, rows, strict=True)):
        assert row[:4] == [str(i), step.name, step.kind, f"{step.live_bytes:,}"]
        assert len(row[4]) == int(np.ceil(20 * step.live_bytes / most))
        assert len(row[5]) == 48
        # Each letter as wide as its tensor, to a column at either end.
        for one in found.tensors:
            if one.first <= i <= one.last and one.over is None:
                share = 48 * one.size_bytes / found.arena_bytes
                assert abs(row[5].count(letters[one.name]) - share) < 2
        live = {letters[t.name] for t in found.tensors if t.first <= i <= t.last}
        assert set(row[5]) <= {*live, "."}
    document = json.loads(done("inspect", small, "--memory", "--json"))
    assert document["memory"] == json.loads(json.dumps(asdict(found)))
    assert "memory" not in json.loads(done("inspect", small, "--json"))


def test_the_memory_plan_of_a_network_without_steps(tmp_path: Path) -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.reshape(x, (3, 2)))
        builder.emit_func_output(out)
    path = tmp_path / "moved.json"
    pipeline.save(load(builder.get()), path)
    out = done("inspect", path, "--memory")
    assert "arena 0 bytes (most live at once 0), beside it inputs 24 and outputs 24" in out


def test_a_board_is_for_the_memory_plan(small: Path) -> None:
    assert mistake("inspect", small, "--board", "cortex-m4") == (
        "The board cortex-m4 was given without --memory; expected both, for the plan alone "
        "depends on a board. Add --memory or leave the board out."
    )
    document = json.loads(done("inspect", small, "--memory", "--board", "cortex-m4", "--json"))
    assert document["memory"]["arena_bytes"] == inspection.memory(load(small)).arena_bytes
    assert "The board 'cortex-m99' is not known" in mistake(
        "inspect", small, "--memory", "--board", "cortex-m99"
    )


def test_histograms_of_several_codebooks(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    network = load(tiny)
    (name,) = ir.weights(network)
    pipeline.save(ShareWeights(1, groups=4).apply(network), path)
    rows = cells(done("inspect", path, "--histogram", name).partition(": centroids")[2])
    assert [row[:2] for row in rows] == [
        [str(book), str(code)] for book in range(4) for code in (0, 1)
    ]
    pipeline.save(ShareWeights(6, groups=6).apply(network), path)
    out = done("inspect", path, "--histogram", name)
    assert f"{name}: 240 values" in out
    assert f"{name}: centroids" not in out  # 384 of them; the bins count them


def test_inspect_says_why_no_file_holds_a_network(tmp_path: Path) -> None:
    builder = tvm.relax.BlockBuilder()
    x = tvm.relax.Var("x", tvm.relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            one = builder.emit(tvm.relax.op.add(x, tvm.relax.const(np.ones(3, np.float32))))
            out = builder.emit_output(tvm.relax.op.sort(one))
        builder.emit_func_output(out)
    path = tmp_path / "sorted.json"
    path.write_text(tvm.ir.save_json(builder.get()))
    out = done("inspect", path)
    assert cells(out)[0][5:8] == ["-", "-", "-"]
    assert out.splitlines()[-1].startswith("no coded bytes: The module calls relax.sort")


# ---- export --------------------------------------------------------------------------------------


def test_export_writes_every_format(tiny_shared: Path, tmp_path: Path) -> None:
    mod = load(tiny_shared)
    for name in ("kws.onnx", "kws.tcz", "kws.json"):
        path = tmp_path / name
        out = done("export", tiny_shared, "-o", path)
        assert out == f"wrote {path} ({path.stat().st_size:,} bytes)\n"
        assert inspection.inspect(load(path)).totals["density"] == pytest.approx(
            inspection.inspect(mod).totals["density"]
        )
    assert (tmp_path / "kws.tcz").read_bytes() == codec.pack(mod)
    done("export", tiny_shared, "-o", tmp_path / "kws.tcz", "--profile", "flash")
    assert (tmp_path / "kws.tcz").read_bytes() == codec.pack(mod, "flash")
    done("export", tiny_shared, "-o", tmp_path / "kws.onnx", "--name", "keyword")
    assert onnx.load(tmp_path / "kws.onnx").graph.name == "keyword"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["-o", "kws.bin"],
            "The output kws.bin names no format; expected a name that ends in .onnx, .tcz, .json.",
        ),
        (
            ["-o", "kws.onnx", "--profile", "flash"],
            "The profile flash was asked for kws.onnx, which will be ONNX; expected a name that "
            "ends in .tcz.",
        ),
        (
            ["-o", "kws.tcz", "--profile", "zip"],
            "There is no profile 'zip'; expected archive or flash.",
        ),
        (
            ["-o", "no/kws.tcz"],
            "The folder no of the output kws.tcz does not exist; create it or choose another.",
        ),
    ],
)
def test_export_refuses(
    options: list[str],
    message: str,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mistake("export", small, *options) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["inspect"], ["run", "--random", "0"], ["build", "-o", "x"]])
def test_a_model_that_is_missing_or_none(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = command
    assert "nothing.onnx does not exist; expected a file" in mistake(name, "nothing.onnx", *options)
    text = tmp_path / "text.onnx"
    text.write_text("This is a letter and no network.\n")
    assert "expected ONNX, .tflite" in mistake(name, text, *options)
    assert [p.name for p in tmp_path.iterdir()] == ["text.onnx"]


# ---- run -----------------------------------------------------------------------------------------


def test_run_on_the_reference(small: Path, image: Path, tmp_path: Path) -> None:
    expected = reference.run(load(small), np.load(image))["logits"]
    document = json.loads(done("run", small, "--input", image, "--json"))
    logits = document["outputs"]["logits"]
    assert (logits["dtype"], logits["shape"]) == ("float32", [1, 10])
    np.testing.assert_array_equal(np.array(logits["values"], np.float32), expected)

    output = tmp_path / "out.npz"
    out = done("run", small, "-i", image, "-o", output)
    with np.load(output) as content:
        assert content.files == ["logits"]
        np.testing.assert_array_equal(content["logits"], expected)
    assert f"{expected.max():.6g}" in out
    assert f"{expected.min():.6g}" in out
    assert out.splitlines()[-1] == f"wrote {output}"


def test_run_takes_inputs_by_name(small: Path, image: Path, tmp_path: Path) -> None:
    expected = done("run", small, "--input", image, "--json")
    for names in ({"image": np.load(image)}, {"arr_0": np.load(image)}):
        path = tmp_path / "inputs.npz"
        np.savez(path, allow_pickle=False, **names)
        assert done("run", small, "--input", path, "--json") == expected


def test_run_on_random_input_is_repeatable(small: Path) -> None:
    first = done("run", small, "--random", "7", "--json")
    assert done("run", small, "--random", "7", "--json") == first
    assert done("run", small, "--random", "8", "--json") != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "No input was given; expected --input with a .npy or .npz file (image: float32 (1, 1, "
            "8, 8)), or --random SEED.",
        ),
        (
            ["--random", "1", "--input", "x.npy"],
            "Both --input and --random were given; expected --input with a .npy or .npz file "
            "(image: float32 (1, 1, 8, 8)), or --random SEED.",
        ),
        (["--random", "-1"], "--random is -1; expected a whole number from 0 on."),
        (
            ["--input", "missing.npy"],
            "missing.npy does not exist or is a folder; expected a .npy or .npz file.",
        ),
        (
            ["--random", "1", "--board", "cortex-m4"],
            "The target reference takes no board, and cortex-m4 was given; leave it out or choose "
            "the target c.",
        ),
        (
            ["--random", "1", "--profile"],
            "The reference target cannot be profiled; build it for a board.",
        ),
        (
            ["--random", "1", "--profile", "--target", "c"],
            "C without a board cannot be profiled; build it for a board.",
        ),
        (
            ["--random", "1", "-o", "no/out.npz"],
            "The folder no of the output out.npz does not exist; create it or choose another.",
        ),
    ],
)
def test_run_refuses(
    options: list[str],
    message: str,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mistake("run", small, *options) == message


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((1, 8, 8), np.float32),
            "The input image has the shape (1, 8, 8); expected (1, 1, 8, 8).",
        ),
        (
            np.zeros((1, 1, 8, 8)),
            'The input image is float64; expected float32: convert it with .astype("float32").',
        ),
    ],
)
def test_run_refuses_an_input_of_another_kind(
    array: np.ndarray[Any, Any], message: str, small: Path, tmp_path: Path
) -> None:
    path = tmp_path / "input.npy"
    np.save(path, array)
    assert mistake("run", small, "--input", path) == message
    np.savez(tmp_path / "input.npz", picture=array)
    assert mistake("run", small, "--input", tmp_path / "input.npz") == (
        "There is no input picture; expected image."
    )


# ---- build and the targets that it builds --------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Replace build() by one that knows its answers; give its calls."""
    calls: list[dict[str, Any]] = []

    def run(inputs: Any, engine: str | None) -> Any:
        calls[-1].setdefault("engines", set()).add(engine)
        return {"logits": np.arange(10, dtype=np.float32).reshape(1, 10)}

    def profile(inputs: Any, engine: str | None) -> Any:
        calls[-1].setdefault("engines", set()).add(engine)
        layers = [
            SimpleNamespace(
                name="conv1",
                kind="conv2d",
                instructions=np.int64(9000),
                model_cycles=12000,
                mix={"load": 3000, "multiply": 6000},
            ),
            SimpleNamespace(
                name="fc1",
                kind="matmul",
                instructions=np.int64(1000),
                model_cycles=3000,
                mix={"load": 1000},
            ),
        ]
        return SimpleNamespace(instructions=np.int64(10000), model_cycles=15000, layers=layers)

    def build(mod: tvm.IRModule, target: Target, **options: Any) -> Any:
        calls.append({"target": target.name, **options})
        size = SimpleNamespace(
            flash_bytes=4321,
            ram_bytes=1234,
            flash={"code": 3000, "weights": 1321},
            ram={"arena": 1000, "stack": 234},
        )
        files = {"source": tmp_path / "kws.c"}
        sized = options["board"] is not None
        return SimpleNamespace(files=files, has_size=sized, size=size, run=run, profile=profile)

    fake = ModuleType("tvm_compress.build")
    fake.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tvm_compress.build", fake)
    return calls


NO_LIMITS = {"limits_of": None, "flash_limit": None, "ram_limit": None}


def test_build_passes_its_options_on(
    small: Path, builds: list[dict[str, Any]], tmp_path: Path
) -> None:
    options = ["--target", "c", "--board", "cortex-m4", "--name", "kws", "--toolchain", "gnu"]
    options += ["--fallback", "float", "--optimize", "size"]
    out = done("build", small, *options, "-o", tmp_path / "kws_c")
    folder = tmp_path / "kws_c"
    (given,) = builds
    assert given == {
        "target": "c",
        "board": "cortex-m4",
        "name": "kws",
        "out_dir": folder,
        "toolchain": "gnu",
        "fallback": "float",
        "optimize": "size",
        **NO_LIMITS,
    }
    rows = [line.replace("│", " ").split() for line in out.splitlines()]
    for row in ("flash code 3,000", "flash total 4,321", "ram stack 234", "ram total 1,234"):
        assert row.split() in rows
    assert f"wrote {tmp_path / 'kws.c'}" in out


def test_build_prints_json(small: Path, builds: list[dict[str, Any]], tmp_path: Path) -> None:
    command = ["build", small, "-o", tmp_path / "kws_c", "--json"]
    document = json.loads(done(*command, "--board", "cortex-m4"))
    assert document == {
        "files": {"source": str(tmp_path / "kws.c")},
        "flash_bytes": 4321,
        "ram_bytes": 1234,
        "flash": {"code": 3000, "weights": 1321},
        "ram": {"arena": 1000, "stack": 234},
    }
    # What is not linked for a board has no size.
    assert json.loads(done(*command)) == {"files": {"source": str(tmp_path / "kws.c")}}
    assert builds[1]["board"] is None
    assert builds[1]["name"] == "model"
    assert done(*command[:-1]) == f"wrote {tmp_path / 'kws.c'}\n"


def test_run_on_a_board_with_a_profile(
    small: Path, builds: list[dict[str, Any]], image: Path
) -> None:
    command = ["run", small, "--target", "c", "--board", "cortex-m4", "--input", image]
    document = json.loads(done(*command, "--profile", "--json"))
    assert document["outputs"]["logits"]["values"] == [list(range(10))]
    assert document["profile"] == {
        "instructions": 10000,
        "model_cycles": 15000,
        "layers": [
            {
                "name": "conv1",
                "kind": "conv2d",
                "instructions": 9000,
                "model_cycles": 12000,
                "mix": {"load": 3000, "multiply": 6000},
            },
            {
                "name": "fc1",
                "kind": "matmul",
                "instructions": 1000,
                "model_cycles": 3000,
                "mix": {"load": 1000},
            },
        ],
    }
    board = {"target": "c", "board": "cortex-m4", "fallback": "error", **NO_LIMITS}
    assert builds == [{**board, "toolchain": None, "engines": {None}, "optimize": "balanced"}]
    done(*command, "--profile", "--toolchain", "zig", "--engine", "qemu", "--optimize", "speed")
    assert builds[1:] == [{**board, "toolchain": "zig", "engines": {"qemu"}, "optimize": "speed"}]
    out = done(*command, "--profile")
    rows = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["conv1", "conv2d", "9,000", "90.0%", "12,000", "80.0%"] in rows
    assert ["total", "10,000", "-", "15,000", "-"] in rows
    assert ["multiply", "6,000", "60.0%"] in rows
    assert ["load", "4,000", "40.0%"] in rows
    assert "model cycles (not time)" in out
    assert "profile" not in json.loads(done(*command, "--json"))


def test_run_on_this_machine_and_on_several_samples(small: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(5).standard_normal((3, 1, 8, 8)).astype(np.float32)
    path = tmp_path / "images.npy"
    np.save(path, images)
    mod = load(small)
    expected = np.concatenate([reference.run(mod, image[None])["logits"] for image in images])
    for target in ("reference", "c"):
        document = json.loads(done("run", small, "--target", target, "-i", path, "--json"))
        found = np.array(document["outputs"]["logits"]["values"], np.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_reference_is_built_as_a_module(small: Path, tmp_path: Path) -> None:
    out = done("build", small, "--target", "reference", "--name", "kws", "-o", tmp_path / "out")
    assert out == f"wrote {tmp_path / 'out' / 'kws.json'}\n"
    tvm.ir.assert_structural_equal(load(tmp_path / "out" / "kws.json"), load(small))


@pytest.mark.parametrize("command", [["build", "-o", "x"], ["run", "--random", "0"]])
def test_an_unknown_target_or_board(
    command: list[str], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = command
    message = mistake(name, small, *options, "--target", "z80")
    assert message == "There is no target 'z80'; expected one of arduino, c, reference, zephyr."
    message = mistake(name, small, *options, "--target", "c", "--board", "z80")
    assert "'z80' is not known" in message
    assert "cortex-m4" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_board_gives_what_the_reference_gives(small: Path, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kws_c"
    command = ["--target", "c", "--board", "cortex-m4"]
    size = json.loads(done("build", small, *command, "--name", "kws", "-o", folder, "--json"))
    assert sum(size["flash"].values()) == size["flash_bytes"]
    assert size["files"]
    assert all(Path(path).is_relative_to(folder) for path in size["files"].values())

    ran = json.loads(done("run", small, *command, "-i", image, "--profile", "--json"))
    expected = reference.run(load(small), np.load(image))["logits"]
    found = np.array(ran["outputs"]["logits"]["values"], np.float32)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    for what in ("instructions", "model_cycles"):
        layers = [layer[what] for layer in ran["profile"]["layers"]]
        assert ran["profile"][what] == sum(layers) > 0


# ---- doctor --------------------------------------------------------------------------------------


def finding(**changes: Any) -> doctor.Finding:
    fields: dict[str, Any] = {
        "name": "numpy",
        "purpose": "arrays",
        "required": True,
        "version": "2.4.6",
        "wanted": ">=2.0",
        "state": "ok",
        "remedy": "",
    }
    return doctor.Finding(**{**fields, **changes})


def test_doctor_prints_what_is_there_and_how_to_get_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = finding(
        name="torch", required=False, version=None, state="missing", remedy="pip install torch"
    )
    monkeypatch.setattr(doctor, "diagnose", lambda: (finding(), torch))
    rows = [line.replace("│", " ").split() for line in done("doctor").splitlines()]
    assert ["numpy", "arrays", "2.4.6", ">=2.0", "ok"] in rows
    row = next(row for row in rows if row[:1] == ["torch"])
    assert " ".join(row) == "torch arrays - >=2.0 missing (optional) pip install torch"
    document = json.loads(done("doctor", "--json"))
    assert [row["name"] for row in document] == ["numpy", "torch"]
    assert document[0]["version"] == "2.4.6"


@pytest.mark.parametrize(
    "changes", [{"version": None, "state": "missing"}, {"state": "wrong version"}]
)
def test_doctor_fails_where_something_required_is_wrong(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: (finding(**changes, remedy="pip install x"),))
    outcome = call("doctor")
    assert outcome.code == 1
    assert changes["state"] in outcome.out
    assert call("doctor", "--json").code == 1


def test_doctor_looks_at_this_machine() -> None:
    outcome = call("doctor", "--json")
    names = {row["name"]: row["version"] for row in json.loads(outcome.out)}
    assert names["apache-tvm"] == tvm.__version__
    assert names["numpy"] == np.__version__


# ---- boards --------------------------------------------------------------------------------------


def test_boards_lists_all_and_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    out = done("boards")
    rows = {row[0]: row for line in out.splitlines() if (row := line.replace("│", " ").split())}
    assert {board.name for board in list_boards()} <= set(rows)
    assert " ".join(rows["mps2-an386"]) == (
        "mps2-an386 cortex-m4 fpu dsp 4,096 4,096 + 16,384 25 zig, gnu (missing) unicorn, qemu "
        "(missing)"
    )
    assert "qemu is missing for mps2-an385 and maybe others" not in out  # told once, of the first
    assert (
        "qemu is missing for cortex-m3 and maybe others. Install it with: apt-get install " in out
    )
    assert "qemu-system-misc" in out and "gcc-arm-none-eabi" in out


def test_boards_as_json_and_by_name(tmp_path: Path) -> None:
    rows = json.loads(done("boards", "--json"))
    assert [row["name"] for row in rows] == [board.name for board in list_boards()]
    mine = tmp_path / "mine.toml"
    text = (Path(boards.__file__).parent / "boards" / "cortex-m4.toml").read_text()
    mine.write_text(text.replace('"cortex-m4"', '"mine"', 1))
    first, second = json.loads(done("boards", mine, "mps2-an505", "--json"))
    assert first["name"] == "mine"
    assert second["uart"] == {"kind": "cmsdk", "address": 0x50200000}
    assert second["features"] == ["fpu", "dsp"]
    assert second["ram"] == {"origin": 0x38000000, "length": 0x400000}
    assert second["compilers"][0] == {"name": "zig", "installed": True, "remedy": ""}
    assert "nearest names are mps2-an386" in mistake("boards", "mps2_an386")


@pytest.mark.parametrize(
    "command", [("build", "-o", "out"), ("run", "--target", "c", "--random", 0)]
)
def test_limits_on_the_command_line(
    command: tuple[object, ...], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = command
    line = (name, tiny, *options, "--board", "mps2-an386")
    done(*line, "--as", "nucleo_l4r5zi")
    assert "limited to 1024 bytes of flash) has 1024" in mistake(*line, "--flash-limit", 1024)
    assert "The ram limit is 1000; expected" in mistake(*line, "--ram-limit", 1000)
    assert "and no board; expected the board" in mistake(*line[:-2], "--as", "nucleo_l4r5zi")


# ---- quantize ------------------------------------------------------------------------------------


def test_quantize_writes_a_network_of_integers(tiny: Path, tmp_path: Path) -> None:
    output, samples = tmp_path / "q.tcz", tmp_path / "x.npz"
    spec = input_specs(load(tiny))[0]
    x = np.random.default_rng(0).uniform(-1, 1, (20, *spec.shape[1:])).astype(np.float32)
    np.savez(samples, **{spec.name: x})
    told = done("quantize", tiny, "--calibrate", samples, "-o", output)
    expected = quantize(load(tiny), x)
    tvm.ir.assert_structural_equal(load(output), expected, map_free_vars=True)
    how = qdq.input_parameters(expected)[spec.name]
    size = output.stat().st_size
    assert f"input {spec.name}: int8, scale {how.scale:.9g}, zero point {how.zero_point}" in told
    assert told.endswith(f"wrote {output} ({size:,} bytes)\n")
    ends = ("--input-range", f"{spec.name}=-2,2", "--float", "*", "--io", "float", "--equalize")
    way = ("--ranges", "percentile", "--percentile", "99", "--weights", "mse")
    other = tmp_path / "q.json"
    options = (*ends, *way, "--no-bias-correction", "--json")
    document = json.loads(done("quantize", tiny, "--calibrate", samples, "-o", other, *options))
    assert document == {"output": str(other), "inputs": {}, "outputs": {}}
    expected = quantize(
        load(tiny), x, ranges="percentile", percentile=99, weights="mse", io="float",
        bias_correction=False, equalize=True, input_ranges={spec.name: (-2, 2)}, layers={"*": 0},
    )  # fmt: skip
    tvm.ir.assert_structural_equal(load(other), expected, map_free_vars=True)


def test_quantize_refuses(tiny: Path, tmp_path: Path) -> None:
    samples, output = tmp_path / "x.npy", tmp_path / "q.json"
    spec = input_specs(load(tiny))[0]
    np.save(samples, np.random.default_rng(0).random((4, *spec.shape[1:]), np.float32))
    for text in ("x", "=0,1", "x=1", "x=a,b"):
        said = mistake(
            "quantize", tiny, "--calibrate", samples, "-o", output, "--input-range", text
        )
        assert said == (
            f"--input-range {text} is no range; expected the input's name and two numbers, like "
            "x=0,255."
        )
    assert (
        mistake("quantize", tiny, "--calibrate", samples, "-o", output, "--ranges", "kl")
        == "quantize: the ranges are 'kl'; expected min-max, percentile or mse."
    )
    assert not output.exists()
