"""The commands. Each imports what it works with when it runs: ``import tvm`` takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvm_compress.cli.program import TRACEBACK_VARIABLE, Program

if TYPE_CHECKING:
    import tvm
    from numpy.typing import NDArray

    from tvm_compress.recipe import Recipe

__all__ = ["app", "main"]

app = typer.Typer(
    name="tvm-compress",
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Example: tvm-compress compress kws.onnx -o kws.tcz --sparsity 0.9 --bits 4",
)

_Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="ONNX, .tflite, a torch.export program (.pt2), or what compress wrote (.tcz, .json).",
    ),
]
_Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=SIZES",
        show_default=False,
        help="Shape of an input that the model leaves open, as x=1,3,224,224; may be repeated.",
    ),
]
_FORMATS = (".onnx", ".tcz", ".json")
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
_Board = Annotated[
    str | None,
    typer.Option(
        metavar="BOARD", show_default=False, help="Name of a board, or the path of its .toml file."
    ),
]

_LimitsOf = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="BOARD",
        show_default=False,
        help="Fit the flash, RAM and stack of this board, by name or .toml file.",
    ),
]
_FlashLimit = Annotated[
    int | None,
    typer.Option(metavar="BYTES", show_default=False, help="Fit as many bytes of flash."),
]
_RamLimit = Annotated[
    int | None,
    typer.Option(metavar="BYTES", show_default=False, help="Fit as many bytes of RAM."),
]
_TargetOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--target-option",
        metavar="NAME=VALUE",
        show_default=False,
        help="An option of the target, such as stack-bytes=8192 of zephyr; may be repeated.",
    ),
]
_Toolchain = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", show_default=False, help="zig or gnu; the first installed by default."
    ),
]
_Fallback = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="error or float: what becomes of a quantised operator without an integer form.",
    ),
]
_Optimize = Annotated[
    str,
    typer.Option(
        metavar="WHAT",
        help="speed, balanced, size, or the instructions that a byte of flash is worth.",
    ),
]


def _price(text: str) -> str | float:
    """Give the number that ``--optimize`` holds, or its word."""
    try:
        return float(text)
    except ValueError:
        return text


def main() -> None:
    """Run the command line of this process and exit."""
    typer.main.get_command(app).main()


def _print_version(wanted: bool) -> None:
    if wanted:
        import tvm_compress

        typer.echo(f"tvm-compress {tvm_compress.__version__}")
        raise typer.Exit


@app.callback()
def program(
    ctx: typer.Context,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            help=f"Show Python's traceback where a command fails, as {TRACEBACK_VARIABLE}=1 does.",
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Compress networks on Apache TVM's IR, build firmware of them and run it."""
    if traceback and isinstance(ctx.command, Program):
        ctx.command.show_traceback = True


@app.command(
    epilog="Example: tvm-compress compress kws.onnx -o kws.json --sparsity 0.9 --bits 4 "
    "--train speech.npz"
)
def compress(
    model: _Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", show_default=False, help="Where the module goes.")
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            show_default=False, help="Recipe as TOML, in place of the options of a recipe."
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(show_default="0.9", help="Share of the weights that become zero, 0..1."),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(show_default="4", help="Bits of a shared weight's code, 1..8.")
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            show_default="layer", help="Prune each layer alike (layer) or all together (global)."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            show_default="optimal", help="Centroids: optimal, linear, density or random start."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            show_default="5 with --train, else 0",
            help="Passes over the training data behind pruning and again behind sharing.",
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(show_default="0.001", help="Learning rate of fine-tuning.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(show_default="0", help="Seed of everything that is random.")
    ] = None,
    lam: Annotated[
        float | None,
        typer.Option(
            show_default="0.005 with --calibrate",
            help="Quantise in one shot instead, without training: what a bit is worth, above 0; "
            "more of it makes a smaller file and a worse network.",
        ),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Training data: .npz with samples x (or one array for each input's name) and "
            "labels y, which a recipe that distils does without.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Some hundred samples without labels, .npy or .npz. Without --train and --recipe: "
            "quantise in one shot by them, as --lam does without any.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Where to fine-tune: cpu, or cuda for a GPU that torch finds."
        ),
    ] = "cpu",
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Folder that keeps the module behind each step; the same command goes on there.",
        ),
    ] = None,
    budget_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            show_default=False,
            help="Search sparsity and bits of each layer; the most accuracy that may go, 0..1.",
        ),
    ] = None,
    budget_weight_bytes: Annotated[
        int | None,
        typer.Option(show_default=False, help="Likewise; the most bytes of the .tcz file."),
    ] = None,
    budget_flash_bytes: Annotated[
        int | None,
        typer.Option(show_default=False, help="Likewise; the most bytes of flash on --board."),
    ] = None,
    budget_instructions: Annotated[
        int | None,
        typer.Option(show_default=False, help="Likewise; the most instructions an inference."),
    ] = None,
    board: Annotated[
        str | None,
        typer.Option(
            metavar="BOARD",
            show_default="cortex-m4",
            help="For flash and instructions of a budget.",
        ),
    ] = None,
    validate: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Samples x and classes y, .npz, by which a search judges networks.",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(show_default="16", help="Networks that a search tries at most.")
    ] = None,
    trial_log: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Folder that keeps what a search measured; the same command goes on there.",
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(help="Of a .tcz file: archive (the smallest) or flash (a device decodes it)."),
    ] = "archive",
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Do not say on standard error what happens.")
    ] = False,
    shape: _Shapes = None,
    json: _Json = False,
) -> None:
    """Prune and share the weights of a network, fine-tuning it where training data is given."""
    from tvm_compress import inspection, pipeline
    from tvm_compress.cli import arrays, budget, show
    from tvm_compress.files import check_output

    check_output(output)
    options = {
        "sparsity": sparsity,
        "bits": bits,
        "scope": scope,
        "method": method,
        "epochs": epochs,
        "lr": lr,
        "seed": seed,
        "lam": lam,
    }
    pipeline.check_profile(profile, output)
    given = {k: v for k, v in options.items() if v is not None}
    limits = {
        "max_accuracy_drop": budget_accuracy_drop,
        "weight_bytes": budget_weight_bytes,
        "flash_bytes": budget_flash_bytes,
        "instructions": budget_instructions,
    }
    of_search = {"board": board, "validate": validate, "trials": trials, "trial-log": trial_log}
    tuning: dict[str, Any] = {k: v for k, v in given.items() if k in ("epochs", "lr", "seed")}
    others = {name: value for name, value in given.items() if name not in tuning}
    of_recipe = {"recipe": recipe, "checkpoint-dir": checkpoint_dir, **others}
    limit = budget.make_budget(limits, of_search, of_recipe, profile)
    if limit is not None and validate is not None:
        mod = _load(model, shape)
        found = budget.run(
            mod,
            limit,
            validate=validate,
            train=train,
            calibrate=calibrate,
            tuning=tuning,
            trials=trials,
            trial_log=trial_log,
            device=device,
            quiet=quiet,
        )
        small, told = found.module, {"search": budget.as_dict(found)}
    else:
        found = None
        steps = _recipe(recipe, given, train, calibrate)
        mod = _load(model, shape)
        small = pipeline.compress(
            mod,
            steps,
            train=arrays.read_training(train, labels=steps.needs_labels) if train else None,
            calibrate=arrays.read_inputs(calibrate) if calibrate else None,
            device=device,
            checkpoint_dir=checkpoint_dir,
            progress=not quiet,
        )
        told = {"recipe": steps.model_dump(mode="json")}
    pipeline.save(small, output, profile=profile)
    written = output.suffix == ".tcz"
    after = inspection.inspect_file(output) if written else inspection.inspect(small)
    # Of the archive there is nothing to compare: dense floats take minutes to code.
    compared = None if written and profile != "flash" else "flash"
    before = inspection.inspect(mod, profile=compared).totals
    if json:
        show.as_json(
            {
                "output": str(output),
                **told,
                "before": before,
                "after": after.totals,
            }
        )
    else:
        show.inspection(after)
        show.saving(before, after)
        if found is not None:
            show.front(found)
        show.line(f"wrote {output}")


@app.command(
    epilog="Example: tvm-compress quantize kws.onnx --calibrate speech.npz -o kws.tcz "
    "--input-range input=-128,127"
)
def quantize(
    model: _Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", show_default=False, help="Where the module goes.")
    ],
    calibrate: Annotated[
        Path,
        typer.Option(show_default=False, help="Some hundred samples without labels, .npy or .npz."),
    ],
    ranges: Annotated[
        str,
        typer.Option(help="Of activations: mse, min-max or percentile."),
    ] = "mse",
    percentile: Annotated[
        float, typer.Option(help="Of --ranges percentile: percent of values that are not clipped.")
    ] = 99.99,
    weights: Annotated[
        str, typer.Option(help="Of weights: max (clips none) or mse (least squared error).")
    ] = "max",
    io: Annotated[
        str, typer.Option("--io", help="What the network takes and gives: int8 or float.")
    ] = "int8",
    equalize: Annotated[
        bool, typer.Option("--equalize", help="Equalise the weights of following layers first.")
    ] = False,
    bias_correction: Annotated[
        bool, typer.Option(help="Take the mean error of each channel off its bias.")
    ] = True,
    input_range: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW,HIGH",
            show_default=False,
            help="Range of an input, where it is known; may be repeated.",
        ),
    ] = None,
    in_float: Annotated[
        list[str] | None,
        typer.Option(
            "--float",
            metavar="PATTERN",
            show_default=False,
            help="Leave the weights or operators that a pattern fits in float; may be repeated.",
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(help="Of a .tcz file: archive (the smallest) or flash (a device decodes it)."),
    ] = "archive",
    shape: _Shapes = None,
    json: _Json = False,
) -> None:
    """Quantise a network to int8 by samples, without training, and show its scales."""
    from dataclasses import asdict

    from tvm_compress import pipeline, qdq
    from tvm_compress.cli import arrays, show
    from tvm_compress.files import check_output

    check_output(output)
    pipeline.check_profile(profile, output)
    known = {name: pair for name, pair in map(_range_of_input, input_range or ())}
    options: dict[str, Any] = {"ranges": ranges, "weights": weights, "io": io}
    mod = _load(model, shape)
    small = pipeline.quantize(
        mod,
        arrays.read_inputs(calibrate),
        **options,
        percentile=percentile,
        bias_correction=bias_correction,
        equalize=equalize,
        input_ranges=known,
        layers=dict.fromkeys(in_float or (), 0),
    )
    pipeline.save(small, output, profile=profile)
    ends = {"inputs": qdq.input_parameters(small), "outputs": qdq.output_parameters(small)}
    if json:
        told = {end: {n: asdict(how) for n, how in named.items()} for end, named in ends.items()}
        show.as_json({"output": str(output), **told})
        return
    for end, named in ends.items():
        for name, how in named.items():
            show.line(
                f"{end[:-1]} {name}: {how.dtype}, scale {how.scale:.9g}, zero point "
                f"{how.zero_point}"
            )
    show.line(f"wrote {output} ({output.stat().st_size:,} bytes)")


def _range_of_input(text: str) -> tuple[str, list[float]]:
    from tvm_compress.errors import OptionError

    name, _, ends = text.rpartition("=")
    try:
        low, high = (float(end) for end in ends.split(","))
    except ValueError:
        name = ""
    if not name:
        raise OptionError(
            f"--input-range {text} is no range; expected the input's name and two numbers, like "
            "x=0,255."
        )
    return name, [low, high]


def _recipe(
    file: Path | None, options: dict[str, Any], train: Path | None, calibrate: Path | None
) -> Recipe:
    """Make the recipe of the file or of the options, and hold it against the data."""
    from tvm_compress.errors import OptionError
    from tvm_compress.recipe import Recipe
    from tvm_compress.recipes import deep_compression, post_training

    if file is not None:
        if options:
            given = " and ".join(f"--{name}" for name in options)
            raise OptionError(
                f"--recipe was given together with {given}; expected one or the other: write the "
                "value into the recipe."
            )
        recipe = Recipe.from_toml(file)
    elif "lam" in options or (calibrate is not None and train is None):
        way = "--lam" if "lam" in options else "--calibrate and without --train"
        others = [f"--{name}" for name in options if name != "lam"]
        if others := others + (["--train"] if train else []):
            raise OptionError(
                f"{' and '.join(others)} was given together with {way}; expected --lam alone, with "
                "or without --calibrate, or a --recipe."
            )
        recipe = post_training(**options)
    else:
        recipe = deep_compression(**(options if train else {"epochs": 0, **options}))
    if recipe.needs_training_data and train is None:
        raise OptionError(
            "The recipe fine-tunes, and no training data was given; expected --train data.npz, or "
            "no fine-tuning: --epochs 0 or a recipe without finetune."
        )
    if calibrate is not None and not recipe.takes_inputs:
        raise OptionError(
            "--calibrate was given, and no step of the recipe looks at inputs; expected no "
            "--train, a recipe with a reduce-rate or reconstruct step, or no --calibrate."
        )
    if recipe.needs_inputs and calibrate is None and train is None:
        raise OptionError(
            "A step of the recipe needs samples, and none were given; expected --calibrate "
            "samples.npy with some hundred inputs."
        )
    if train is not None and not (recipe.needs_training_data or recipe.takes_inputs):
        raise OptionError(
            "--train was given, and the recipe does not fine-tune; expected --epochs above 0, a "
            "recipe with a finetune step, or no --train."
        )
    return recipe


def _load(model: Path, shapes: Sequence[str] | None) -> tvm.IRModule:
    from tvm_compress.errors import OptionError
    from tvm_compress.frontends import load

    given: dict[str, tuple[int, ...]] = {}
    for text in shapes or ():
        name, _, sizes = text.rpartition("=")
        try:
            given[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            given[name] = ()
        if not name or min(given[name], default=0) < 1:
            raise OptionError(
                f"--shape {text} is no shape; expected the input's name and its sizes, like "
                "x=1,3,224,224."
            )
    return load(model, shapes=given or None)


@app.command(epilog="Example: tvm-compress inspect kws.tcz --histogram 'conv*'")
def inspect(
    model: _Model,
    profile: Annotated[
        str | None,
        typer.Option(
            show_default="flash, or the profile of the .tcz file",
            help="Code the network as this profile to see its size: archive (smaller, slow) or "
            "flash.",
        ),
    ] = None,
    histogram: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Show how the values of a parameter are spread; a name, or a pattern like "
            "'conv*' or '*'; may be repeated.",
        ),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Draw the memory plan of the C code: steps, live bytes, addresses."
        ),
    ] = False,
    board: _Board = None,
    fallback: _Fallback = "error",
    shape: _Shapes = None,
    json: _Json = False,
) -> None:
    """Show a network's inputs, outputs and operators, and each parameter's density and size.

    Of a .tcz file its header too, and what the file spends on each parameter. With --memory where
    the tensors between the operators lie.
    """
    from dataclasses import asdict

    from tvm_compress import codec, inspection
    from tvm_compress.cli import show
    from tvm_compress.errors import InputError, OptionError

    if board is not None and not memory:
        raise OptionError(
            f"The board {board} was given without --memory; expected both, for the plan alone "
            "depends on a board. Add --memory or leave the board out."
        )
    header = codec.read_header(model.read_bytes()) if model.is_file() else None
    if header is not None and not json:  # before a damaged file is refused
        show.header(header, model)
    try:
        mod = _load(model, shape)
        if header is not None and profile is None:
            found = inspection.inspect_file(model)
        else:
            found = inspection.inspect(mod, profile=profile or "flash")
    except InputError as error:
        if header is not None and json:
            show.as_json({"file": asdict(header), "error": str(error)})
        raise
    names = _matching(histogram or (), [p.name for p in found.parameters])
    spread = [inspection.histogram(mod, name) for name in names]
    plan = inspection.memory(mod, board=board, fallback=fallback) if memory else None
    if json:
        histograms = {"histograms": [asdict(one) for one in spread]} if histogram else {}
        planned = {} if plan is None else {"memory": asdict(plan)}
        show.as_json({**found.as_dict(), **histograms, **planned})
        return
    show.inspection(found)
    for one in spread:
        show.histogram(one)
    if plan is not None:
        show.memory(plan)


def _matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Give the names that a pattern of --histogram matches, in their order."""
    from fnmatch import fnmatchcase

    from tvm_compress.errors import OptionError

    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise OptionError(
                f"--histogram {pattern} matches no parameter; expected one of "
                f"{', '.join(names) or 'none: the network has none'}, or a pattern."
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


@app.command(epilog="Example: tvm-compress export kws.json -o kws.onnx")
def export(
    model: _Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", show_default=False, help="Where the file goes.")
    ],
    name: Annotated[str, typer.Option(help="Name of the ONNX graph.")] = "model",
    profile: Annotated[
        str,
        typer.Option(help="Of a .tcz file: archive (the smallest) or flash (a device decodes it)."),
    ] = "archive",
    shape: _Shapes = None,
) -> None:
    """Write a network in another format: .onnx, .tcz, or a Relax module as .json."""
    from tvm_compress import pipeline
    from tvm_compress.cli import show
    from tvm_compress.errors import OptionError
    from tvm_compress.files import check_output

    check_output(output)
    if output.suffix not in _FORMATS:
        raise OptionError(
            f"The output {output.name} names no format; expected a name that ends in "
            f"{', '.join(_FORMATS)}."
        )
    pipeline.check_profile(profile, output)
    mod = _load(model, shape)
    if output.suffix == ".onnx":
        from tvm_compress.export_onnx import export_onnx

        export_onnx(mod, output, name=name)
    else:
        pipeline.save(mod, output, profile=profile)
    show.line(f"wrote {output} ({output.stat().st_size:,} bytes)")


@app.command(
    epilog="Example: tvm-compress build kws.json --target c --board cortex-m4 --name kws -o kws_c"
)
def build(
    model: _Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", show_default=False, help="Folder for the files.")
    ],
    target: Annotated[str, typer.Option(metavar="TARGET", help="What to build for.")] = "c",
    board: _Board = None,
    name: Annotated[str, typer.Option(help="Prefix of every symbol and file name.")] = "model",
    target_option: _TargetOptions = None,
    toolchain: _Toolchain = None,
    fallback: _Fallback = "error",
    optimize: _Optimize = "balanced",
    limits_of: _LimitsOf = None,
    flash_limit: _FlashLimit = None,
    ram_limit: _RamLimit = None,
    shape: _Shapes = None,
    json: _Json = False,
) -> None:
    """Write a network as source and firmware, and show what it takes of flash and RAM."""
    from tvm_compress.build import build
    from tvm_compress.cli import show
    from tvm_compress.targets import get_target

    artifact = build(
        _load(model, shape),
        get_target(target, target_option or ()),
        board=board,
        name=name,
        out_dir=output,
        toolchain=toolchain,
        fallback=fallback,
        optimize=_price(optimize),
        limits_of=limits_of,
        flash_limit=flash_limit,
        ram_limit=ram_limit,
    )
    # Sizes are those of a firmware, and a firmware is linked for a board.
    if json:
        show.as_json(show.build_as_dict(artifact, sized=artifact.has_size))
    else:
        show.build(artifact, sized=artifact.has_size)


@app.command(
    epilog="Example: tvm-compress run kws.json --target c --board cortex-m4 --random 0 --profile"
)
def run(
    model: _Model,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET", help="reference (numpy); c: this machine, or a board; zephyr."
        ),
    ] = "reference",
    board: _Board = None,
    input: Annotated[
        Path | None,
        typer.Option(
            "--input", "-i", show_default=False, help=".npy, or .npz with an array for each input."
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(metavar="SEED", show_default=False, help="Run on random input instead."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", show_default=False, help="Write the outputs here, as .npz."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Count instructions layer by layer.")
    ] = False,
    target_option: _TargetOptions = None,
    toolchain: _Toolchain = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Emulator of the board: unicorn or qemu; the first installed by default.",
        ),
    ] = None,
    fallback: _Fallback = "error",
    optimize: _Optimize = "balanced",
    limits_of: _LimitsOf = None,
    flash_limit: _FlashLimit = None,
    ram_limit: _RamLimit = None,
    shape: _Shapes = None,
    json: _Json = False,
) -> None:
    """Run a network on one sample, or on several along the batch axis."""
    from tvm_compress.build import build
    from tvm_compress.cli import arrays, show
    from tvm_compress.files import check_output
    from tvm_compress.targets import get_target

    if output is not None:
        check_output(output)
    mod = _load(model, shape)
    inputs = _inputs(mod, input, random)
    artifact = build(
        mod,
        get_target(target, target_option or ()),
        board=board,
        toolchain=toolchain,
        fallback=fallback,
        optimize=_price(optimize),
        limits_of=limits_of,
        flash_limit=flash_limit,
        ram_limit=ram_limit,
    )
    # First what may be refused.
    counted = artifact.profile(inputs, engine=engine) if profile else None
    results = artifact.run(inputs, engine=engine)
    if output is not None:
        arrays.write_arrays(output, results)
    if json:
        document: dict[str, Any] = {"outputs": show.outputs_as_dict(results)}
        if counted is not None:
            document["profile"] = show.profile_as_dict(counted)
        show.as_json(document)
        return
    show.outputs(results)
    if counted is not None:
        show.profile(counted)
    if output is not None:
        show.line(f"wrote {output}")


def _inputs(
    mod: tvm.IRModule, file: Path | None, seed: int | None
) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Read or make the inputs, and check them before anything is built."""
    from tvm_compress.cli import arrays
    from tvm_compress.errors import OptionError
    from tvm_compress.tensors import check_samples, input_specs

    specs = input_specs(mod)
    if file is not None and seed is None:
        inputs = arrays.read_inputs(file)
        check_samples(specs, inputs)
        return inputs
    if file is not None or seed is None:
        what = "No input was given" if file is None else "Both --input and --random were given"
        raise OptionError(
            f"{what}; expected --input with a .npy or .npz file ("
            f"{arrays.expected_inputs(specs)}), or --random SEED."
        )
    if seed < 0:
        raise OptionError(f"--random is {seed}; expected a whole number from 0 on.")
    return arrays.random_inputs(specs, seed)


@app.command(epilog="Example: tvm-compress boards mps2-an386 --json")
def boards(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BOARD]...", show_default=False, help="Names or .toml files; all by default."
        ),
    ] = None,
    json: _Json = False,
) -> None:
    """List the boards: core, memories, and which compilers and emulators are installed for each."""
    from tvm_compress.cli import show
    from tvm_compress.targets.mcu.boards import get_board, list_boards

    found = [get_board(name) for name in names] if names else list_boards()
    if json:
        show.as_json(show.boards_as_list(found))
    else:
        show.boards(found)


@app.command(epilog="Example: tvm-compress doctor")
def doctor(json: _Json = False) -> None:
    """Show what is installed, what is missing and how to get it; exit 1 if it cannot work."""
    from dataclasses import asdict

    from tvm_compress.cli import show
    from tvm_compress.doctor import diagnose

    found = diagnose()
    if json:
        show.as_json([asdict(finding) for finding in found])
    else:
        show.findings(found)
    if any(finding.required and finding.state != "ok" for finding in found):
        raise typer.Exit(1)
