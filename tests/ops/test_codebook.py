"""The operator ``tvm_compress.codebook`` among TVM's own passes, printers and compilers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.ops import CODEBOOK, codebook, codebook_numpy
from tvm_compress.passes import Canonicalize, Prune, ShareWeights
from tvm_compress.targets import reference

CODES = np.asarray([[0, 2, 1], [3, 3, 0], [1, 0, 2], [2, 2, 2]], np.uint8)
CENTROIDS = np.asarray([0.0, -1.5, 0.25, 2.0], np.float32)


def shared_network(
    codes: NDArray[Any] = CODES, centroids: NDArray[Any] = CENTROIDS, relu: bool = True
) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, codes.shape[0]), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            weight = builder.emit(
                codebook(edge.constant(codes), edge.constant(centroids)), "fc_weight"
            )
            product = builder.emit(relax.op.matmul(x, weight), "fc")
            product = builder.emit(relax.op.add(product, relax.const(0.5)), "biased")
            if relu:
                product = builder.emit(relax.op.nn.relu(product), "relu")
            result = builder.emit_output(product, "y")
        builder.emit_func_output(result)
    return builder.get()


def compiled(mod: tvm.IRModule, *inputs: NDArray[Any], **options: Any) -> NDArray[Any]:
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm", **options), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(x) for x in inputs))
    return np.asarray(result.numpy())


X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
EXPECTED = np.maximum(X @ CENTROIDS[CODES] + np.float32(0.5), 0)


def codebook_of(mod: tvm.IRModule) -> Any:
    (call,) = [b.value for b in ir.bindings(mod["main"]) if edge.op_name(b.value) == CODEBOOK]
    return call


@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=5),
    st.integers(1, 256),
    st.sampled_from(["float16", "float32", "float64"]),
    st.integers(0, 2**31),
)
def test_numpy_meaning_by_its_definition(
    shape: list[int], size: int, dtype: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, size, shape).astype(np.uint8)
    centroids = rng.standard_normal(size).astype(dtype)
    dense = codebook_numpy(codes, centroids)
    assert dense.dtype == centroids.dtype and dense.shape == codes.shape
    for place in np.ndindex(*shape):
        assert dense[place] == centroids[int(codes[place])]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 2), (2, 1, 3, 2), (1, 2, 1, 2, 3)])
def test_any_rank_infers_its_type_and_compiles(shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(1).integers(0, 200, shape).astype(np.uint8)
    centroids = np.random.default_rng(2).standard_normal(256).astype(np.float32)
    builder = relax.BlockBuilder()
    inputs = [
        relax.Var("codes", relax.TensorType(shape, "uint8")),
        relax.Var("centroids", relax.TensorType((256,), "float32")),
    ]
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(codebook(*inputs)))
        builder.emit_func_output(result)
    mod = builder.get()
    assert edge.static_shape(mod["main"].ret_ty) == shape
    assert edge.dtype_of(mod["main"].ret_ty) == "float32"
    np.testing.assert_array_equal(compiled(mod, codes, centroids), centroids[codes])
    relax.analysis.well_formed(mod)


def test_symbolic_codes_keep_their_shape() -> None:
    n = tvm.tirx.Var("n", "int64")
    codes = relax.Var("codes", relax.TensorType((n, 3), "uint8"))
    centroids = relax.Var("centroids", relax.TensorType((4,), "float32"))
    ty = relax.BlockBuilder().normalize(codebook(codes, centroids)).ty
    assert list(ty.shape.values) == [n, 3]
    unknown = relax.Var("codes", relax.TensorType(dtype="uint8", ndim=2))
    ty = relax.BlockBuilder().normalize(codebook(unknown, centroids)).ty
    assert ty.ndim == 2 and ty.shape is None


@pytest.mark.parametrize(
    ("codes", "centroids", "sentence"),
    [
        (((2,), "int8"), ((4,), "float32"), "the codes are int8; expected uint8."),
        (((2,), "float32"), ((4,), "float32"), "the codes are float32; expected uint8."),
        (
            ((2,), "uint8"),
            ((2, 1, 4), "float32"),
            "the centroids have 3 dimensions; expected a vector, or 2 dimensions, one for each of "
            "the codes and the last for a codebook.",
        ),
        (
            ((2, 6), "uint8"),
            ((1, 4, 8), "float32"),
            "the centroids have the blocks (1, 4); expected divisors of the codes' shape (2, 6).",
        ),
        (
            ((2,), "uint8"),
            ((4,), "int32"),
            "the centroids are int32; expected a floating type, int8 or int16.",
        ),
    ],
)
def test_wrong_types_are_refused(codes: Any, centroids: Any, sentence: str) -> None:
    args = [relax.Var(n, relax.TensorType(*t)) for n, t in (("c", codes), ("t", centroids))]
    with pytest.raises(TypeError) as caught:
        relax.BlockBuilder().normalize(codebook(*args))
    assert str(caught.value) == f"tvm_compress.codebook: {sentence}"


def test_more_than_256_centroids_are_refused() -> None:
    codes = relax.Var("c", relax.TensorType((2,), "uint8"))
    centroids = relax.Var("t", relax.TensorType((257,), "float32"))
    with pytest.raises(TypeError) as caught:
        relax.BlockBuilder().normalize(codebook(codes, centroids))
    assert str(caught.value) == (
        "tvm_compress.codebook: there are 257 centroids; expected 1 to 256, as a code is one byte."
    )


def test_stock_compile_gives_the_numbers() -> None:
    np.testing.assert_allclose(compiled(shared_network(), X), EXPECTED, rtol=1e-6)
    (given_y,) = reference.run(shared_network(), X).values()
    np.testing.assert_allclose(given_y, EXPECTED, rtol=1e-6)


def test_the_default_pipeline_of_the_target_compiles_it() -> None:
    target = tvm.target.Target("llvm")
    pipeline = relax.get_default_pipeline(target)
    np.testing.assert_allclose(
        compiled(shared_network(), X, relax_pipeline=pipeline), EXPECTED, rtol=1e-6
    )


STOCK = {
    "FoldConstant": relax.transform.FoldConstant,
    "CanonicalizeBindings": relax.transform.CanonicalizeBindings,
    "EliminateCommonSubexpr": relax.transform.EliminateCommonSubexpr,
    "DeadCodeElimination": relax.transform.DeadCodeElimination,
    "ConvertToDataflow": relax.transform.ConvertToDataflow,
    "Normalize": relax.transform.Normalize,
}


@pytest.mark.parametrize("name", STOCK)
def test_survives_stock_passes(name: str) -> None:
    mod = STOCK[name]()(shared_network())
    call = codebook_of(mod)
    np.testing.assert_array_equal(edge.constant_value(call.args[0]), CODES)
    np.testing.assert_array_equal(edge.constant_value(call.args[1]), CENTROIDS)
    relax.analysis.well_formed(mod)
    np.testing.assert_allclose(compiled(mod, X), EXPECTED, rtol=1e-6)


def test_legalized_and_fused_it_is_one_gather() -> None:
    mod = tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
        ]
    )(shared_network())
    assert CODEBOOK not in mod.script()
    assert "take" in [v.name_hint for v in mod.get_global_vars()]
    np.testing.assert_allclose(compiled(mod, X), EXPECTED, rtol=1e-6)


def test_json_round_trip() -> None:
    mod = shared_network()
    again = tvm.ir.load_json(tvm.ir.save_json(mod))
    tvm.ir.assert_structural_equal(again, mod, map_free_vars=True)
    np.testing.assert_array_equal(edge.constant_value(codebook_of(again).args[0]), CODES)
    np.testing.assert_allclose(compiled(again, X), EXPECTED, rtol=1e-6)


def test_script_round_trip() -> None:
    mod = shared_network()
    again = tvm.script.from_source(mod.script(show_meta=True))
    tvm.ir.assert_structural_equal(again, mod)
    np.testing.assert_allclose(compiled(again, X), EXPECTED, rtol=1e-6)


def test_structural_equality_sees_codes_and_centroids() -> None:
    tvm.ir.assert_structural_equal(shared_network(), shared_network())
    other_codes, other_centroids = CODES.copy(), CENTROIDS.copy()
    other_codes[0, 0], other_centroids[1] = 1, -1.25
    for other in (shared_network(other_codes), shared_network(centroids=other_centroids)):
        with pytest.raises(ValueError, match="StructuralEqual check failed"):
            tvm.ir.assert_structural_equal(shared_network(), other)


@tvm.ir.instrument.pass_instrument
class Names:
    """Writes down the names of the passes that run."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def run_before_pass(self, mod: tvm.IRModule, info: Any) -> None:
        self.names.append(str(info.name))


def test_our_passes_stand_beside_stock_passes() -> None:
    dense = ir.replace_parameters(
        shared_network(),
        lambda p: edge.constant(np.asarray(X[:, :3].T @ X[:, 1:], np.float32).repeat(2, 0)[:4, :3]),
    )
    names = Names()
    with tvm.transform.PassContext(instruments=[names]):
        mod = tvm.transform.Sequential(
            [
                relax.transform.Normalize(),
                Canonicalize(),
                Prune(sparsity=0.5),
                relax.transform.DeadCodeElimination(["main"]),
                ShareWeights(bits=2),
                relax.transform.CanonicalizeBindings(),
            ]
        )(dense)
    ours = [name for name in names.names if name in ("canonicalize", "prune", "share-weights")]
    assert ours == ["canonicalize", "prune", "share-weights"]
    weight = ir.parameters(mod)["fc_weight"]
    assert weight.shared and int((weight.value == 0).sum()) == 6
    (expected,) = reference.run(mod, X).values()
    np.testing.assert_allclose(compiled(mod, X), expected, rtol=1e-5, atol=1e-6)


def test_registering_again_changes_nothing() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("this registration must not take effect")

    edge.register_op(CODEBOOK, "again", arguments=[], infer_type=refuse, legalize=refuse)
    np.testing.assert_allclose(compiled(shared_network(), X), EXPECTED, rtol=1e-6)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(1, 256),
    st.integers(0, 999),
)
def test_codebooks_of_blocks_by_their_definition(
    axes: list[tuple[int, int]], size: int, seed: int
) -> None:
    groups, shape = [g for g, _ in axes], [g * n for g, n in axes]
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, size, shape).astype(np.uint8)
    centroids = rng.standard_normal((*groups, size)).astype(np.float32)
    dense = codebook_numpy(codes, centroids)
    assert dense.dtype == np.float32 and dense.shape == codes.shape
    for place in np.ndindex(*shape):
        block = tuple(i // n for i, (_, n) in zip(place, axes, strict=True))
        assert dense[place] == centroids[(*block, int(codes[place]))]


BLOCKS = np.stack([CENTROIDS, CENTROIDS * 3, CENTROIDS - 1])[None]  # one for each output


def test_stock_compile_gives_the_numbers_of_blocks() -> None:
    mod = shared_network(centroids=BLOCKS)
    dense = np.stack([BLOCKS[0, i][CODES[:, i]] for i in range(3)], axis=1)
    expected = np.maximum(X @ dense + np.float32(0.5), 0)
    for made in (mod, *(run()(mod) for run in STOCK.values())):
        assert codebook_of(made).args[1].ty.ndim == 3
        np.testing.assert_allclose(compiled(made, X), expected, rtol=1e-5, atol=1e-6)
    (y,) = reference.run(mod, X).values()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_canonical_form_transposes_codes_and_blocks() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(codebook(edge.constant(CODES), edge.constant(BLOCKS)), "w")
            w = builder.emit(relax.op.permute_dims(w))
            y = builder.emit_output(builder.emit(relax.op.matmul(x, w)), "y")
        builder.emit_func_output(y)
    mod = Canonicalize()(builder.get())
    (parameter,) = ir.parameters(mod).values()
    np.testing.assert_array_equal(parameter.value, codebook_numpy(CODES, BLOCKS).T)
    assert parameter.centroids is not None and parameter.centroids.shape == (3, 1, 4)


def test_canonical_form_leaves_a_reshape_of_blocks() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(codebook(edge.constant(CODES), edge.constant(BLOCKS)), "w")
            w = builder.emit(relax.op.reshape(w, (6, 2)))
            y = builder.emit_output(builder.emit(relax.op.matmul(x, w)), "y")
        builder.emit_func_output(y)
    sample = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    (y,) = reference.run(Canonicalize()(builder.get()), sample).values()
    expected = sample @ codebook_numpy(CODES, BLOCKS).reshape(6, 2)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
