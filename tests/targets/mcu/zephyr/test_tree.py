from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.targets.mcu.zephyr.fakes import NEW, World, make_program
from tvm_compress.errors import BudgetError, CompressError, MissingToolError, OptionError
from tvm_compress.targets.mcu.zephyr.tree import (
    Tree,
    build_application,
    find_tree,
    toolchain_settings,
)

# What CMake is told, one word a line, and a stand-in for the ELF file.
CMAKE = 'mkdir -p "$5" && printf "%s\\n" "$@" > "$5/told"; printf "%s" "$TOLD"'
NINJA = 'mkdir -p "$2/zephyr"; echo elf > "$2/zephyr/zephyr.elf"'


@pytest.mark.parametrize("version", [(3, 2), (3, 7), (4, 3)])
def test_a_tree_is_found_with_its_version_and_boards(
    world: World, version: tuple[int, int]
) -> None:
    base = world.tree(version, NEW)
    tree = find_tree()
    assert tree == Tree(base, version)
    assert tree.boards == set(NEW)


@pytest.mark.parametrize("value", [None, ""])
def test_without_zephyr_base_there_is_no_tree(world: World, value: str | None) -> None:
    if value is not None:
        world.set("ZEPHYR_BASE", value)
    assert find_tree() is None


@pytest.mark.parametrize("broken", ["VERSION", "share", "all", "numbers"])
def test_what_is_no_tree_is_refused(world: World, broken: str) -> None:
    base = world.tree()
    if broken in ("VERSION", "all"):
        (base / "VERSION").unlink()
    if broken in ("share", "all"):
        (base / "share" / "zephyr-package").rmdir()
    if broken == "numbers":
        (base / "VERSION").write_text("VERSION_MAJOR = 3\n")
    with pytest.raises(OptionError) as caught:
        find_tree()
    assert str(caught.value) == (
        f"ZEPHYR_BASE is {base}, which is no Zephyr tree; expected the folder that holds VERSION, "
        "Kconfig.zephyr and share/zephyr-package. Set it to the folder zephyr of your workspace, "
        "or unset it to write the application without building it."
    )


@pytest.mark.parametrize("version", [(3, 1), (2, 7)])
def test_a_tree_that_is_too_old_is_refused(world: World, version: tuple[int, int]) -> None:
    base = world.tree(version)
    with pytest.raises(OptionError) as caught:
        find_tree()
    assert str(caught.value) == (
        f"ZEPHYR_BASE is {base}, which is Zephyr {version[0]}.{version[1]}; expected 3.2 or newer. "
        "Update the tree, or set ZEPHYR_BASE to another one."
    )


# -- toolchains -----------------------------------------------------------------------------------


def test_zephyrs_sdk_comes_first_then_gcc(world: World) -> None:
    gcc = make_program(world.folder / "gcc" / "bin", "arm-none-eabi-gcc", "")
    world.set("PATH", gcc.parent)
    assert toolchain_settings(None) == {
        "ZEPHYR_TOOLCHAIN_VARIANT": "gnuarmemb",
        "GNUARMEMB_TOOLCHAIN_PATH": str(world.folder / "gcc"),
    }
    world.set("ZEPHYR_SDK_INSTALL_DIR", world.folder)
    assert toolchain_settings(None) == {"ZEPHYR_TOOLCHAIN_VARIANT": "zephyr"}


@pytest.mark.parametrize("place", [".cmake/packages/Zephyr-sdk", "zephyr-sdk-0.16.1"])
def test_an_installed_sdk_is_found(world: World, place: str) -> None:
    (world.folder / "home" / place).mkdir(parents=True)
    assert toolchain_settings(None) == {"ZEPHYR_TOOLCHAIN_VARIANT": "zephyr"}


def test_what_the_user_set_is_kept(world: World) -> None:
    world.set("ZEPHYR_TOOLCHAIN_VARIANT", "xtools")
    assert toolchain_settings(None) == {"ZEPHYR_TOOLCHAIN_VARIANT": "xtools"}
    other = make_program(world.folder / "other" / "bin", "arm-none-eabi-gcc", "")
    world.set("GNUARMEMB_TOOLCHAIN_PATH", world.folder / "other")
    assert toolchain_settings("gnuarmemb") == {
        "ZEPHYR_TOOLCHAIN_VARIANT": "gnuarmemb",
        "GNUARMEMB_TOOLCHAIN_PATH": str(other.parents[1]),
    }
    world.set("CROSS_COMPILE", other.parent / "arm-none-eabi-")
    assert toolchain_settings("cross-compile") == {
        "ZEPHYR_TOOLCHAIN_VARIANT": "cross-compile",
        "CROSS_COMPILE": f"{other.parent}/arm-none-eabi-",
    }


def test_cross_compile_takes_gcc_from_path(world: World) -> None:
    gcc = world.program("arm-none-eabi-gcc")
    prefix = str(gcc).removesuffix("gcc")
    assert toolchain_settings("cross-compile")["CROSS_COMPILE"] == prefix


def test_an_unknown_toolchain_is_told_the_known_ones(world: World) -> None:
    with pytest.raises(OptionError) as caught:
        toolchain_settings("zig")
    assert str(caught.value) == (
        "Zephyr's toolchain 'zig' is not known; expected one of zephyr, gnuarmemb, cross-compile. "
        "Another one is yours to choose by ZEPHYR_TOOLCHAIN_VARIANT."
    )


INSTALL = (
    "Install it with: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi, or use another "
    "toolchain."
)


@pytest.mark.parametrize(
    ("variables", "toolchain", "message"),
    [
        (
            {},
            "zephyr",
            "The toolchain zephyr needs Zephyr's SDK, which was not found. Set "
            "ZEPHYR_SDK_INSTALL_DIR to its folder, or use toolchain='gnuarmemb'.",
        ),
        (
            {},
            None,
            "The toolchain gnuarmemb needs arm-none-eabi-gcc on PATH, which was not found. "
            + INSTALL,
        ),
        (
            {"GNUARMEMB_TOOLCHAIN_PATH": "/nowhere"},
            "gnuarmemb",
            "The toolchain gnuarmemb needs /nowhere/bin/arm-none-eabi-gcc, which was not found. "
            + INSTALL,
        ),
        (
            {},
            "cross-compile",
            "The toolchain cross-compile needs arm-none-eabi-gcc, which was not found. " + INSTALL,
        ),
        (
            {"CROSS_COMPILE": "/nowhere/arm-"},
            "cross-compile",
            "The toolchain cross-compile needs /nowhere/arm-gcc, which was not found. " + INSTALL,
        ),
    ],
)
def test_a_missing_toolchain_is_named(
    world: World, variables: dict[str, str], toolchain: str | None, message: str
) -> None:
    for name, value in variables.items():
        world.set(name, value)
    with pytest.raises(MissingToolError) as caught:
        toolchain_settings(toolchain)
    assert str(caught.value) == message


# -- building -------------------------------------------------------------------------------------


def build(world: World, *cmake_args: str) -> Path:
    tree = find_tree()
    assert tree is not None
    settings = {"ZEPHYR_TOOLCHAIN_VARIANT": "gnuarmemb", "TOLD": "hello"}
    return build_application(tree, world.folder / "app", "mps2_an385", settings, cmake_args)


@pytest.fixture
def tools(world: World) -> World:
    world.tree()
    world.program("cmake", CMAKE)
    world.program("ninja", NINJA)
    return world


def test_cmake_and_ninja_are_told_what_to_do(tools: World) -> None:
    elf = build(tools, "-DX=1")
    place = tools.folder / "app" / "build"
    assert elf == place / "zephyr" / "zephyr.elf"
    assert elf.read_text() == "elf\n"
    assert (place / "told").read_text().splitlines() == [
        *("-GNinja", "-S", str(tools.folder / "app"), "-B", str(place)),
        *("-DBOARD=mps2_an385", "-DX=1"),
    ]
    assert (place / "configure.log").read_text() == "hello"  # the settings are in the environment


def test_without_west_the_headers_of_cmsis_are_named(tools: World) -> None:
    hal = tools.folder / "workspace" / "modules" / "hal"
    for name in ("cmsis", "cmsis_6", "nxp"):
        (hal / name).mkdir(parents=True)
    told = tools.folder / "app" / "build" / "told"
    modules = f"-DZEPHYR_MODULES={hal}/cmsis;{hal}/cmsis_6"
    build(tools)
    assert modules in told.read_text().splitlines()
    tools.set("ZEPHYR_MODULES", "mine")
    build(tools)
    assert "ZEPHYR_MODULES" not in told.read_text()
    os.environ.pop("ZEPHYR_MODULES")
    tools.program("west")
    build(tools)
    assert "ZEPHYR_MODULES" not in told.read_text()


def test_each_build_begins_anew_and_takes_no_folder_of_others(tools: World) -> None:
    build(tools)
    stale = tools.folder / "app" / "build" / "stale"
    stale.touch()
    build(tools)
    assert not stale.exists()
    (stale.parent / "configure.log").unlink()
    with pytest.raises(OptionError) as caught:
        build(tools)
    assert str(caught.value) == (
        f"{stale.parent} is not a build folder of tvm-compress; expected none, or one that it "
        "made. Name another out_dir, or move the folder away."
    )
    assert (stale.parent / "told").exists()


@pytest.mark.parametrize(("program", "package"), [("cmake", "cmake"), ("ninja", "ninja-build")])
def test_a_missing_program_is_named(tools: World, program: str, package: str) -> None:
    (tools.programs / program).unlink()
    with pytest.raises(MissingToolError) as caught:
        build(tools)
    assert str(caught.value) == (
        f"{program} is not installed, and Zephyr is built with it. Install it with: apt-get "
        f"install {package}"
    )


def test_what_does_not_fit_is_told_by_region(tools: World) -> None:
    tools.program(
        "ninja",
        'echo "ld: region \\`FLASH\' overflowed by 1234 bytes"\n'
        'echo "ld: region \\`RAM\' overflowed by 8 bytes"; exit 1',
    )
    with pytest.raises(BudgetError) as caught:
        build(tools)
    assert str(caught.value) == (
        "The application does not fit the board: it overflows FLASH by 1234 bytes, RAM by 8 bytes. "
        "Compress the network further, choose a larger board, or lower stack_bytes where RAM is "
        "short."
    )


def test_a_missing_python_package_is_named(tools: World) -> None:
    tools.program("cmake", "echo \"ModuleNotFoundError: No module named 'elftools'\"; exit 1")
    with pytest.raises(MissingToolError) as caught:
        build(tools)
    assert str(caught.value) == (
        "Zephyr's scripts need the Python package elftools, which is not installed for the first "
        "python on PATH. Install it with: pip install -r "
        f"{tools.folder}/workspace/zephyr/scripts/requirements-base.txt"
    )


def test_a_newlib_that_does_not_do_is_told(tools: World) -> None:
    tools.program("ninja", 'echo "#error Retargetable locking is needed"; exit 1')
    with pytest.raises(MissingToolError) as caught:
        build(tools)
    assert str(caught.value) == (
        "The toolchain's newlib was built without retargetable locking, which Zephyr needs. Use "
        "libc='minimal', or a toolchain with another newlib, such as Zephyr's SDK."
    )


def test_other_failures_show_the_tools_own_words(tools: World) -> None:
    tools.program(
        "ninja",
        "echo '[1/2] Building'; echo 'x.c:1: error: no'; echo '-- progress'; echo 'more'; exit 3",
    )
    with pytest.raises(CompressError) as caught:
        build(tools)
    log = tools.folder / "app" / "build" / "build.log"
    assert str(caught.value) == (
        "Building the Zephyr application failed with exit code 3. Read the tool's own words (all "
        f"of them are in {log}) and mend the tree or the options:\nx.c:1: error: no\nmore"
    )
    assert log.read_text().startswith("[1/2] Building")
    tools.program("cmake", "for i in $(seq 50); do echo line $i; done; exit 2")
    with pytest.raises(
        CompressError, match=r"^Configuring the Zephyr application failed"
    ) as caught:
        build(tools)
    assert str(caught.value).splitlines()[1:] == [f"line {i}" for i in range(31, 51)]
