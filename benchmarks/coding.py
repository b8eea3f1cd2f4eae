"""How near do .tcz files come to the entropy of what they hold, and what does decoding cost?

The bound of a layer is the static, first-order entropy of its gaps and of its codes, as in Deep
Compression; coded bytes have their tables in them. The published SqueezeNet of the Deep Compression
authors is a row where the folder of development data is there.
"""

from __future__ import annotations

import importlib
import lzma
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser
from tvm_compress.codec import coded_bytes
from tvm_compress.codec.container import Sections, join_sections
from tvm_compress.codec.graph import Leaf
from tvm_compress.codec.tensors import PROFILES, Profile, pack_tensors, read_records, unpack_tensors
from tvm_compress.targets.mcu.boards import get_board
from tvm_compress.targets.mcu.elf import read_elf
from tvm_compress.targets.mcu.firmware import Layer, ModelSources, TensorSpec, link_firmware

SEED = 0
BOARD_FILES = ROOT / "benchmarks" / "coding_board"
CODEC = ROOT / "tvm_compress" / "codec"
# Ratio of coded bytes to the bound, by profile: over all layers above 100,000 weights, and others.
LIMITS: dict[Profile, tuple[float, float]] = {"archive": (1.01, 1.04), "flash": (1.03, 1.10)}


@dataclass(frozen=True)
class BoardCost:
    """What decoding a flash file costs on a Cortex-M4.

    Attributes:
        opening: instructions of tcz_open, which checks every byte once.
        clearing: instructions of setting the codes to 0 before.
        decoding: instructions of decoding all tensors, tables included.
        nonzero: stored weights that are not 0.
        code_bytes: flash of the decoder's functions and its table of checksums.
        ram_bytes: its tables and the deepest stack; the decoded codes are the caller's.
        checks: three sums over picked codes, as the firmware gave them.
    """

    opening: int
    clearing: int
    decoding: int
    nonzero: int
    code_bytes: int
    ram_bytes: int
    checks: tuple[int, int, int]


def entropy_bytes(symbols: NDArray[Any]) -> float:
    """Give the first-order entropy of all symbols together, in bytes."""
    counts = np.unique(symbols, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(counts * np.log2(share)).sum() / 8)


def bound_bytes(codes: NDArray[np.uint8]) -> float:
    """Give the static entropy of the gaps and the codes of a layer, in bytes."""
    flat = codes.ravel()
    at = np.flatnonzero(flat)
    return entropy_bytes(np.diff(at, prepend=-1)) + entropy_bytes(flat[at]) if at.size else 0.0


def squeezenet(folder: Path) -> tuple[list[Leaf], list[Leaf]]:
    """Give the layers and the biases of the published compressed SqueezeNet."""
    with np.load(folder / "reference" / "han_squeezenet_decoded.npz") as data:
        names = [name.removesuffix("/code") for name in data.files if name.endswith("/code")]
        layers = [Leaf(data[f"{name}/codebook"], data[f"{name}/code"]) for name in names]
        return layers, [Leaf(data[f"{name}/bias"]) for name in names]


def shared(weights: NDArray[Any], density: float, levels: int) -> Leaf:
    """Prune by magnitude and share linearly: centroids at even distances, code 0 for zero."""
    threshold = np.quantile(np.abs(weights), 1 - density)
    kept = np.abs(weights) > threshold
    grid = np.linspace(weights.min(), weights.max(), levels - 1).astype(np.float32)
    nearest = np.abs(weights[kept][:, None] - grid).argmin(1)
    codes = np.zeros(weights.shape, np.uint8)
    codes[kept] = nearest + 1
    return Leaf(np.append(np.float32(0), grid), codes)


def laplace(chance: np.random.Generator) -> list[Leaf]:
    """Give a layer of 1024 x 4096 Laplace weights at a density of 9 %, with 32 centroids."""
    return [shared(chance.laplace(size=(1024, 4096)).astype(np.float32), 0.09, 32)]


def lenet_digits() -> list[Leaf]:
    """Give LeNet-300-100 trained on scikit-learn's digits, pruned to 9 %, 32 centroids a layer."""
    datasets = importlib.import_module("sklearn.datasets")
    network = importlib.import_module("sklearn.neural_network")
    x, y = datasets.load_digits(return_X_y=True)
    trained = network.MLPClassifier((300, 100), max_iter=40, random_state=SEED, tol=0.0)
    with np.errstate(all="ignore"):
        trained.fit(x / 16, y)
    return [shared(w.T.astype(np.float32), 0.09, 32) for w in trained.coefs_]


def code_bytes(layers: Sequence[Leaf], profile: Profile) -> list[int]:
    """Give each layer's coded bytes, coded by itself."""
    sizes = []
    for layer in layers:
        assert layer.codes is not None
        sizes.append(coded_bytes(layer.codes, layer.values, profile))
    return sizes


def general_bytes(layers: Sequence[Leaf]) -> dict[str, int]:
    """Give the bytes that xz -9e and brotli -q11 make of the codes of all layers."""
    raw = b"".join(layer.codes.tobytes() for layer in layers if layer.codes is not None)
    sizes = {"xz -9e": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))}
    try:
        brotli = importlib.import_module("brotli")
    except ImportError:
        return sizes
    return sizes | {"brotli -q11": len(brotli.compress(raw, quality=11))}


def flash_file(leaves: Sequence[Leaf]) -> bytes:
    """Give a flash file of tensors without a graph, as the device reads it."""
    tensors, weights = pack_tensors(leaves, "flash")
    return join_sections(Sections("flash", b"", tensors, weights))


def board_cost(leaves: Sequence[Leaf], out_dir: Path) -> BoardCost:
    """Decode tensors on the emulated Cortex-M4 and count.

    Raises:
        MissingToolError: no cross compiler or no emulator is installed.
    """
    file = flash_file(leaves)
    codes = [leaf.codes for leaf in leaves if leaf.codes is not None]
    text = ",".join(map(str, file))
    largest = max(code.size for code in codes)
    sources = {path.name: path.read_text(encoding="utf-8") for path in BOARD_FILES.iterdir()}
    sources |= {
        name: (CODEC / name).read_text(encoding="utf-8") for name in ("decoder.c", "decoder.h")
    }
    sources["file.h"] = (
        f"static const unsigned char tcz_w_file[{len(file)}] = {{{text}}};\n"
        f"#define TCZ_LARGEST {largest}\n"
    )
    model = ModelSources(
        "tcz",
        sources,
        (TensorSpec("request", (1,), "int32"),),
        (TensorSpec("output", (3,), "int32"),),
        0,
        (
            Layer("tcz_layer_000_open", "open", "open", ("tcz_w_file",)),
            Layer("tcz_layer_001_clear", "clear", "clear"),
            Layer("tcz_layer_002_decode", "decode", "decode"),
        ),
    )
    firmware = link_firmware(model, get_board("cortex-m4"), out_dir)
    request = {"request": np.zeros((1, 1), np.int32)}
    checks = firmware.run(request)["output"].ravel()
    counts = {layer.name: layer.instructions for layer in firmware.profile(request).layers}
    symbols = read_elf(firmware.elf).symbols
    # All that decoder.c brings: its functions by name (static ones may be inlined) and its table.
    own = {"tcz_open", "tcz_next", "tcz_read", "tcz_close", "read_code", "read_stream", "number"}
    own |= {"decode_chunk", "long_word", "special_gap", "chunk_bits", "take_values"}
    own |= {"crc32", "word32"}
    checksums, types = 64, 12  # bytes of the two tables, which have no symbols of their own
    flash = sum(s.size for s in symbols if s.name.split(".")[0] in own) + checksums + types
    tables = sum(s.size for s in symbols if s.name in ("tables", "reader"))
    return BoardCost(
        counts["open"],
        counts["clear"],
        counts["decode"],
        sum(int(np.count_nonzero(code)) for code in codes),
        flash,
        tables + firmware.size.ram.stack,
        (int(checks[0]), int(checks[1]), int(checks[2])),
    )


def _best_seconds(run: Any, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> int:
    """Code three sets, and decode one on the host and on a board."""
    options = option_parser("coding", __doc__ or "").parse_args()
    sets = {
        "LeNet-300-100 on digits, 9 %": lenet_digits(),
        "Laplace 1024 x 4096, 9 %": laplace(np.random.default_rng(SEED)),
    }
    folder = Path(os.environ.get("TVM_COMPRESS_SHARED", ROOT.parent / "shared" / "data"))
    biases: list[Leaf] = []
    published = "published SqueezeNet"
    if folder.is_dir():
        sets[published], biases = squeezenet(folder)
    rows, results = [], {}
    figures: list[Figure] = []
    for name, layers in sets.items():
        bounds = [bound_bytes(layer.codes) for layer in layers if layer.codes is not None]
        counts = [layer.codes.size for layer in layers if layer.codes is not None]
        general = general_bytes(layers)
        found: dict[str, Any] = {"bound": sum(bounds), **general}
        row = [name, f"{sum(counts):,}", f"{sum(bounds):,.0f}"]
        for profile in PROFILES:
            sizes = code_bytes(layers, profile)
            found[profile] = sum(sizes)
            row.append(f"{sum(sizes):,} ({sum(sizes) / sum(bounds):.4f})")
            for number, (size, bound, count) in enumerate(zip(sizes, bounds, counts, strict=True)):
                large = count > 100_000
                if count >= 10_000:
                    limit = LIMITS[profile][not large]
                    what = f"{profile}, layer {number} of {name}"
                    figures.append(Figure(what, size / bound, limit, "of the bound"))
            if min(counts) < 10_000:
                limit = LIMITS[profile][1]
                ratio = sum(sizes) / sum(bounds)
                figures.append(Figure(f"{profile}, all of {name}", ratio, limit, "of the bound"))
        for method, size in general.items():
            what = f"archive of {name} over {method}"
            figures.append(Figure(what, found["archive"] / size, 1.0, "of its bytes"))
        row += [f"{general[m]:,}" if m in general else "not run" for m in ("xz -9e", "brotli -q11")]
        rows.append(row)
        results[name] = found
    table = markdown_table(
        ["set", "weights", "bound", "archive", "flash", "xz -9e", "brotli -q11"], rows
    )
    if biases:
        whole, timing = _published(sets[published] + biases, figures)
        results["whole SqueezeNet"] = whole
        table += f"\n\n{timing}"
    with tempfile.TemporaryDirectory() as scratch:
        cost = board_cost(sets["LeNet-300-100 on digits, 9 %"], Path(scratch))
    per_weight = cost.decoding / cost.nonzero
    figures += [
        Figure("decoding on a Cortex-M4", per_weight, 30, "instructions a stored weight"),
        Figure("the decoder's code", cost.code_bytes, 4096, "bytes of flash"),
        Figure("the decoder's tables and stack", cost.ram_bytes, 2048, "bytes of RAM"),
    ]
    results["board"] = {**vars(cost)}
    table += (
        f"\n\nOn a Cortex-M4 a stored weight of the first set costs {per_weight:.1f} instructions, "
        f"tables included; clearing the zeros before costs {cost.clearing / cost.nonzero:.1f} and "
        f"checking the file once {cost.opening / cost.nonzero:.1f} more. The decoder is "
        f"{cost.code_bytes:,} bytes of code and needs "
        f"{cost.ram_bytes:,} bytes of RAM beside the codes."
    )
    packages = ("tvm-compress", "constriction", "numpy", "scikit-learn")
    return finish(Report("coding", table, figures, results, SEED, packages), options)


def _published(leaves: Sequence[Leaf], figures: list[Figure]) -> tuple[dict[str, Any], str]:
    """Code all of the published SqueezeNet both ways, and time it."""
    found: dict[str, Any] = {}
    weights = sum(leaf.codes.size for leaf in leaves if leaf.codes is not None)
    for profile in PROFILES:
        start = time.perf_counter()
        tensors, coded = pack_tensors(leaves, profile)
        seconds = time.perf_counter() - start
        records = read_records(tensors, len(coded), profile)

        def decode(records: Any = records, coded: bytes = coded, profile: Profile = profile) -> Any:
            return unpack_tensors(coded, records, profile)

        for one, other in zip(decode(), leaves, strict=True):
            assert one.values.tobytes() == other.values.tobytes()
            if one.codes is not None and other.codes is not None:
                assert np.array_equal(one.codes, other.codes)
        found[profile] = {
            "bytes": len(tensors) + len(coded),
            "encode_s": seconds,
            "decode_s": _best_seconds(decode, 3 if profile == "flash" else 1),
        }
    figures += [
        Figure("SqueezeNet, archive", found["archive"]["bytes"], 545_000, "bytes"),
        Figure("encoding SqueezeNet, archive", found["archive"]["encode_s"], 60, "s"),
        Figure("encoding SqueezeNet, flash", found["flash"]["encode_s"], 5, "s"),
        Figure(
            "decoding SqueezeNet, flash",
            weights / found["flash"]["decode_s"] / 1e6,
            20,
            "million weights a second",
            at_least=True,
        ),
    ]
    return found, (
        f"All weights and biases of the published SqueezeNet, without loss: "
        f"{found['archive']['bytes']:,} bytes (archive), {found['flash']['bytes']:,} (flash); the "
        f"authors' file has 675,763, their method with Huffman coding 556,569."
    )


if __name__ == "__main__":
    raise SystemExit(main())
