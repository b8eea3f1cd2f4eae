from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from tests.targets.mcu.nets import Net, const, network, normal
from tvm_compress.errors import BudgetError, DataError, OptionError, PassError, UnsupportedError

op = relax.op


def small() -> tvm.IRModule:
    def describe(net: Net, x: Any) -> Any:
        x = net(op.nn.relu(net(op.matmul(x, const(normal(12, 40))), "first")))
        x = net(op.nn.relu(net(op.matmul(x, const(normal(40, 30))), "second")))
        return net(op.matmul(x, const(normal(30, 4))), "third")

    return network({"x": (1, 12)}, describe, outputs=["scores"])


X = normal(1, 12)


def board_file(folder: Path, *, flash: int = 0x400000, ram: int = 0x400000) -> Path:
    """A user's own board, somewhere on the disk."""
    path = folder / "my_board.toml"
    path.write_text(
        f"""
name = "my-board"
description = "A small board"
cpu = "cortex-m4"
fpu = "fpv4-sp-d16"
stack_bytes = 1024
emulators = ["unicorn"]

[flash]
origin = 0x00000000
length = {flash}

[ram]
origin = 0x20000000
length = {ram}
"""
    )
    return path


def test_without_a_board_the_c_runs_on_this_machine(tmp_path: Path) -> None:
    artifact = tc.build(small(), out_dir=tmp_path / "new" / "folder", name="net")
    names = {"net.c", "net.h", "net_layers.c", "net_layers.h"}
    assert set(artifact.files) == names
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == names
    assert all(artifact.files[name].read_text() for name in names)
    expected = tc.build(small(), "reference").run(X)["scores"]
    np.testing.assert_allclose(artifact.run(X)["scores"], expected, rtol=1e-5, atol=1e-5)


def test_for_a_board_the_firmware_is_there_too(tmp_path: Path) -> None:
    artifact = tc.build(small(), board="cortex-m4", out_dir=tmp_path, name="net")
    assert set(artifact.files) == {"net.c", "net.h", "net_layers.c", "net_layers.h", "net.elf"}
    assert {path.name for path in tmp_path.iterdir()} == set(artifact.files)
    assert artifact.files["net.elf"].read_bytes()[:4] == b"\x7fELF"
    host = tc.build(small(), name="net").run(X)["scores"]
    assert artifact.run(X)["scores"].tobytes() == host.tobytes()


def test_a_board_of_the_users_own(tmp_path: Path) -> None:
    board = board_file(tmp_path)
    for given in (board, str(board)):
        assert tc.build(small(), board=given).run(X)["scores"].shape == (1, 4)


def test_without_a_folder_the_files_live_as_long_as_the_artifact() -> None:
    artifact = tc.build(small())
    folder = artifact.files["model.c"].parent
    assert folder.is_dir()
    del artifact
    assert not folder.exists()


def test_many_samples_at_once() -> None:
    x = normal(5, 12)
    for artifact in (tc.build(small()), tc.build(small(), "reference")):
        together = artifact.run(x)["scores"]
        alone = [artifact.run({"x": x[i : i + 1]})["scores"] for i in range(5)]
        assert together.tobytes() == np.concatenate(alone).tobytes()


@pytest.mark.parametrize("target", ["c", "reference"])
def test_bad_inputs_are_said(target: str) -> None:
    artifact = tc.build(small(), target)
    with pytest.raises(DataError, match=r"x is float64; expected float32"):
        artifact.run(X.astype(np.float64))
    with pytest.raises(DataError, match="There is no input y; expected x"):
        artifact.run({"y": X})


def test_profile_takes_one_sample() -> None:
    artifact = tc.build(small(), board="cortex-m4")
    with pytest.raises(DataError, match="profile takes one sample; 3 were given"):
        artifact.profile(normal(3, 12))


def test_the_module_stays_as_it_is() -> None:
    mod = small()
    before = tvm.ir.save_json(mod)
    tc.build(mod)
    assert tvm.ir.save_json(mod) == before


def test_a_module_need_not_be_canonical() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(op.nn.relu(op.matmul(x, const(normal(3, 4)))))
        builder.emit_func_output(y)
    (y,) = tc.build(builder.get()).run(normal(2, 3)).values()
    expected = np.maximum(normal(2, 3) @ normal(3, 4), 0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


# -- refusals -------------------------------------------------------------------------------------


def test_an_unknown_target() -> None:
    with pytest.raises(
        OptionError, match="There is no target 'fpga'; expected one of arduino, c, reference"
    ):
        tc.build(small(), "fpga")


def test_an_unknown_board() -> None:
    with pytest.raises(OptionError) as caught:
        tc.build(small(), board="arduino")
    assert "The board 'arduino' is not known. The known boards are cortex-m0," in str(caught.value)


def test_an_unknown_toolchain() -> None:
    with pytest.raises(OptionError, match=r"The toolchain 'iar' is not known\. Choose one of"):
        tc.build(small(), board="cortex-m4", toolchain="iar")


@pytest.mark.parametrize("target", ["c", "reference"])
@pytest.mark.parametrize("wanted", ["small", 0.0, -1, float("nan"), float("inf"), True, None])
def test_an_unknown_thing_to_optimize_for(target: str, wanted: Any) -> None:
    with pytest.raises(OptionError) as caught:
        tc.build(small(), target, optimize=wanted)
    assert str(caught.value) == (
        f"{wanted!r} is nothing that build can optimize for; expected one of speed, balanced, "
        "size, or a number above 0: the instructions of an inference that a byte of flash is "
        "worth. Leave it out for balanced."
    )


def test_a_toolchain_without_a_board() -> None:
    with pytest.raises(OptionError, match="compiles for boards, and no board was given"):
        tc.build(small(), toolchain="zig")


@pytest.mark.parametrize(("what", "value"), [("board", "cortex-m4"), ("toolchain", "zig")])
def test_the_reference_takes_neither_board_nor_toolchain(what: str, value: str) -> None:
    with pytest.raises(OptionError) as caught:
        tc.build(small(), "reference", **{what: value})  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"The target reference takes no {what}, and {value} was given; leave it out or choose the "
        "target c."
    )


def test_what_is_no_module() -> None:
    with pytest.raises((PassError, TypeError), match="IRModule"):
        tc.build("model.onnx")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["2nd", "a-b", "", "../up"])
def test_a_name_that_is_no_prefix(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot prefix C symbols"):
        tc.build(small(), name=name, out_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", "a/b"])
def test_a_name_that_is_no_file(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(OptionError) as caught:
        tc.build(small(), "reference", name=name, out_dir=folder)
    assert str(caught.value) == (
        f"The name {name!r} is no file name; expected one without folders, such as my_model."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["c", "reference"])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_is_a_file(target: str, below: str, tmp_path: Path) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")
    with pytest.raises(OptionError) as caught:
        tc.build(small(), target, out_dir=file / below if below else file)
    assert str(caught.value) == (
        f"{file} is a file; expected a folder for the files of the build. Name another one, or "
        "leave it out to build in a temporary folder."
    )
    assert file.read_text() == "mine"


def test_more_flash_than_the_board_has(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    board = board_file(tmp_path, flash=8192)
    with pytest.raises(BudgetError) as caught:
        tc.build(small(), board=board, out_dir=folder, name="net")
    message = str(caught.value)
    assert message.startswith("net needs ")
    assert "the board my-board has 8192: " in message
    needed = int(message.split()[2])
    assert f": {needed - 8192} too many. The largest layers are " in message
    # 40 x 30, 12 x 40 and 30 x 4 weights of four bytes, and their code.
    sizes = [int(n) for n in re.findall(r"\(matmul \(dense\)\) (\d+) bytes", message)]
    assert len(sizes) == 3
    assert all(w <= n < w + 1500 for n, w in zip(sizes, (4800, 1920, 480), strict=True))
    assert not folder.exists()


def test_flash_is_worth_more_where_a_firmware_does_not_fit(tmp_path: Path) -> None:
    mod = tc.quantize(small(), normal(20, 12))
    sizes: dict[Any, int] = {}
    for optimize in ("balanced", 64.0, "size"):
        built = tc.build(mod, board=board_file(tmp_path), optimize=optimize)
        sizes[optimize] = built.size.flash_bytes
    assert sizes["balanced"] > sizes[64.0] >= sizes["size"]
    for optimize in (64.0, "size"):
        board = board_file(tmp_path, flash=sizes[optimize])
        assert tc.build(mod, board=board).size.flash_bytes == sizes[optimize]
    with pytest.raises(BudgetError, match=f"needs {sizes['size']} bytes of flash and the board"):
        tc.build(mod, board=board_file(tmp_path, flash=sizes["size"] - 4))


def test_more_ram_than_the_board_has(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(BudgetError, match=r"of RAM and the board my-board has 1100: ") as caught:
        tc.build(small(), board=board_file(tmp_path, ram=1100), out_dir=folder)
    # Of 40 and 30 floats each: what a layer reads and writes lies in the arena together.
    layers = re.findall(r"\(matmul \(dense\)\) (\d+) bytes", str(caught.value))
    assert [int(size) for size in layers] == [280, 160, 120]
    assert not folder.exists()


def test_the_limits_of_another_board(tmp_path: Path) -> None:
    other = board_file(tmp_path, flash=8192)
    with pytest.raises(BudgetError) as caught:
        tc.build(small(), board="mps2-an386", limits_of=other, name="net")
    with pytest.raises(BudgetError) as own:
        tc.build(small(), board=other, name="net")
    # Word for word what the other board says, but for the name.
    assert "the board mps2-an386 (as my-board) has 8192: " in str(caught.value)
    assert str(caught.value) == str(own.value).replace("my-board", "mps2-an386 (as my-board)")
    roomy = tc.build(small(), board="mps2-an386", limits_of="nucleo_l4r5zi")
    assert roomy.run(X)["scores"].tobytes() == tc.build(small()).run(X)["scores"].tobytes()


def test_limits_in_bytes() -> None:
    size = tc.build(small(), board="mps2-an386", name="net").size
    flash = -(-size.flash_bytes // 4) * 4
    tc.build(small(), board="mps2-an386", flash_limit=flash, name="net")
    with pytest.raises(
        BudgetError,
        match=rf"mps2-an386 \(limited to {flash - 4} bytes of flash\) has {flash - 4}: ",
    ):
        tc.build(small(), board="mps2-an386", flash_limit=flash - 4, name="net")
    wide = network({"x": (1, 400)}, lambda net, x: net(x + x))
    tc.build(wide, board="mps2-an386", ram_limit=4096)
    with pytest.raises(BudgetError) as caught:
        tc.build(wide, board="mps2-an386", ram_limit=2048)
    message = str(caught.value)
    assert "the board mps2-an386 (limited to 2048 bytes of RAM) has 2048: " in message
    assert "1600 for inputs, 1600 for outputs, " in message
    assert "256 kept for the stack" in message


def test_a_limit_needs_a_board() -> None:
    with pytest.raises(OptionError) as caught:
        tc.build(small(), limits_of="nucleo_l4r5zi", flash_limit=4096)
    assert str(caught.value) == (
        "limits_of=nucleo_l4r5zi and flash_limit=4096 was given and no board; expected the board "
        "that is to run the firmware too, such as mps2-an386. Name one or leave the limit out."
    )
    with pytest.raises(OptionError, match=r"and mps2-an386 \(as nucleo_l4r5zi\) was given"):
        tc.build(small(), "reference", board="mps2-an386", limits_of="nucleo_l4r5zi")
    with pytest.raises(OptionError, match=r"'nucleo_l4r5zx' is not known.*nucleo_l4r5zi"):
        tc.build(small(), board="mps2-an386", limits_of="nucleo_l4r5zx")


def test_an_operator_without_a_form_leaves_nothing(tmp_path: Path) -> None:
    mod = network({"x": (4, 4)}, lambda net, x: net(op.sort(x), "sorted"))
    with pytest.raises(UnsupportedError):
        tc.build(mod, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_reference_keeps_the_module_as_json(tmp_path: Path) -> None:
    artifact = tc.build(small(), "reference", out_dir=tmp_path, name="net")
    assert set(artifact.files) == {"net.json"}
    again = tc.load(artifact.files["net.json"])
    np.testing.assert_array_equal(
        tc.build(again, "reference").run(X)["scores"], artifact.run(X)["scores"]
    )
    assert tc.build(small(), "reference").files == {}


def test_limits_are_of_targets_that_link() -> None:
    with pytest.raises(OptionError) as caught:
        tc.build(small(), "zephyr", board="mps2_an385", flash_limit=4096)
    assert str(caught.value) == (
        "flash_limit=4096 was given for the target zephyr, which links nothing by our boards' "
        "sizes; expected the target c. Leave the limit out."
    )
