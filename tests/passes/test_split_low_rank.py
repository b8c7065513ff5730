"""Halves of a site: the same function, shared activations, formats by name, what stays whole."""

import numpy as np
import pytest

from onnxq.errors import FormatError, RecipeError, UnsupportedGraph
from onnxq.graph import find_sites
from onnxq.graph.stage import Stage, mark_stage
from onnxq.graph.topology import Topology
from onnxq.numerics.rotation import make_rotation, orthogonal
from onnxq.passes.base import Context
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.rotate_residual import RotateResidual
from onnxq.passes.split_low_rank import SplitLowRank
from onnxq.runtime import open_session

RNG = np.random.default_rng(8)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def run(model, **feeds):
    with open_session(model, optimize=False) as session:
        return session.run(feeds)


def kinds(model):
    return [node.op_type for node in model.graph]


def reasons(report):
    return {site.site: site.reason for site in report.left}


PAIR = """main (float[n, s, 12] x) => (float[n, s, 5] y, float[n, s, 7] z)
    { h = MatMul(x, w) y = Add(h, b) z = MatMul(x, v) }"""


def pair(build):
    return build(PAIR, w=normal(12, 5), b=normal(5), v=normal(12, 7))


@pytest.mark.parametrize("rank", [1, 4, 11])
def test_two_halves_are_the_whole(build, judge, rank):
    m = pair(build)
    weight = m.graph.initializers["w"].const_value.numpy()
    report = judge(m, SplitLowRank(rank=rank), {"x": normal(2, 3, 12)})
    assert report.changed[0].note == f"{rank} channels of 12 in MatMul_0_high"
    assert kinds(m).count("Split") == 1 and kinds(m).count("MatMul") == 4
    stored = m.graph.initializers
    np.testing.assert_array_equal(stored["w_high"].const_value.numpy(), weight[:rank])
    np.testing.assert_array_equal(stored["w_low"].const_value.numpy(), weight[rank:])
    assert "w" not in stored
    topology = Topology(m)
    sites = {site.name: site for site in topology.sites}
    siblings = topology.siblings(sites["MatMul_0_high"])
    assert [site.name for site in siblings] == ["MatMul_2_high"]


@pytest.mark.parametrize("flipped", [0, 1])
def test_gemm_keeps_factors_and_bias(build, judge, flipped):
    m = build(
        "main (float[3, 12] x) => (float[3, 5] y)"
        f" {{ y = Gemm<alpha = 0.5, beta = 2.0, transB = {flipped}>(x, w, b) }}",
        w=normal(5, 12) if flipped else normal(12, 5),
        b=normal(5),
    )
    judge(m, SplitLowRank(rank=4), {"x": normal(3, 12)})
    assert kinds(m) == ["Split", "Gemm", "Gemm", "Add"]


def test_a_weight_behind_a_transpose_is_sliced_as_it_is_read(build, judge):
    m = build(
        "main (float[3, 12] x) => (float[3, 5] y) { t = Transpose(w) y = MatMul(x, t) }",
        w=normal(5, 12),
    )
    judge(m, SplitLowRank(rank=4), {"x": normal(3, 12)})
    assert "Transpose" not in kinds(m)


def test_bodies_split_in_the_graph_of_the_value(build, judge):
    m = build(
        "main (float[3, 12] x, bool c) => (float[3, 5] y) { y = If(c) <"
        "then_branch = t () => (float[3, 5] p) { p = MatMul(x, w) },"
        "else_branch = e () => (float[3, 5] q) { q = MatMul(x, v) }> }",
        w=normal(12, 5),
        v=normal(12, 5),
    )
    samples = [{"x": normal(3, 12), "c": np.array(c)} for c in (True, False)]
    judge(m, SplitLowRank(rank=4), *samples)
    assert kinds(m) == ["Split", "If"]


@pytest.mark.parametrize(
    ("columns", "options", "rank"),
    [(576, {}, 64), (1536, {}, 192), (576, {"multiple": 64}, 64), (64, {"share": 0.5}, 32)],
)
def test_the_share_is_rounded_to_whole_groups(build, columns, options, rank):
    m = build(
        f"main (float[n, {columns}] x) => (float[n, 8] y) {{ y = MatMul(x, w) }}",
        w=normal(columns, 8),
    )
    SplitLowRank(**options).call(m, Context())
    assert find_sites(m)[0].shape == (rank, 8)


def test_halves_take_formats_of_their_own(build):
    """The largest channels in 8 bits, the others in 4: far closer than 4 bits for all."""
    x = normal(64, 64)
    x[:, :8] *= 30
    errors = []
    for options in ({"*_high": 8}, {}):
        m = build(
            "main (float[n, 64] x) => (float[n, 16] y) { y = MatMul(x, w) }", w=normal(64, 16)
        )
        before = run(m, x=x)["y"]
        SplitLowRank(rank=32).call(m, Context())
        report = QuantizeActivations(bits=4, overrides=options).call(m, Context())
        assert len(report.changed) == 2
        weights = {"*_high": "int8_g32"} if options else {}
        stored = QuantizeWeights(format="int4_g32", overrides=weights).call(m, Context())
        names = [site.format for site in stored.changed]
        assert names == (["int8_g32", "int4_g32"] if options else ["int4_g32", "int4_g32"])
        errors.append(np.linalg.norm(run(m, x=x)["y"] - before) / np.linalg.norm(before))
    assert errors[0] < errors[1] / 5


def test_what_stays_whole_says_why(build):
    m = build(
        "main (float[n, 12] x, float[12, n] t, int64[n] i, float[12, 5] c) => (float[n, 5] y,"
        " float[n, 5] z, float[n, 5] g, float[n, 5] k, float[n, 12] e, float[n, 5] o)"
        " { y = MatMul(x, w) z = MatMul(x, w) g = Gemm<transA = 1>(t, v) k = MatMul(x, c)"
        " e = Gather(u, i) o = MatMul(x, p) }",
        w=normal(12, 5),
        v=normal(12, 5),
        u=normal(7, 12),
        p=normal(12, 5),
    )
    left = reasons(SplitLowRank(rank=4, exclude=("MatMul_5",)).call(m, Context()))
    assert left["MatMul_0"] == "its weight 'w' is read by others too: untie weights first"
    assert left["Gemm_2"] == "it reads its activation transposed"
    assert left["MatMul_3"] == "its weight is the input 'c' of the graph 'main'"
    assert left["Gather_4"] == "Gather is not split: MatMul and Gemm are"
    assert left["MatMul_5"] == "the recipe leaves it whole"
    left = reasons(SplitLowRank(rank=12, sites=("MatMul_5",)).call(m, Context()))
    assert left["MatMul_5"] == "it has 12 input channels, and the first half alone is to hold 12"
    assert left["MatMul_0"] == "the recipe does not name it"


def test_refusals_say_what_to_do(build):
    for options, message in (
        ({"rank": 0}, "at least one channel"),
        ({"share": 1.0}, r"a part of the channels, in \(0, 1\)"),
        ({"multiple": 0}, "a number of channels, from 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            SplitLowRank(**options)
    m = pair(build)
    mark_stage(m, Stage.QUANTIZED)
    with pytest.raises(UnsupportedGraph, match="Put the transform before calibration"):
        SplitLowRank().requires(m)
    with pytest.raises(UnsupportedGraph, match="convert_opset with minimum=13"):
        SplitLowRank().requires(
            build("main (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }", opset=11)
        )


def test_rounded_activations_are_not_split(build):
    m = pair(build)
    QuantizeActivations().call(m, Context())
    assert "halves are made before that" in SplitLowRank(rank=4).call(m, Context()).left[0].reason


def test_components_apart_are_uncorrelated_with_the_others_and_alike_among_themselves():
    """Qᵀ C Q: the variance of each half is spread evenly over its channels, none is between."""
    basis = normal(96, 96)
    covariance = (basis @ np.diag(np.geomspace(100, 0.01, 96)) @ basis.T).astype(np.float64)
    q = orthogonal("klt_hadamard", 96, covariance=covariance)
    apart = make_rotation("klt_hadamard", 96, covariance=covariance, apart=32).matrix
    np.testing.assert_allclose(apart @ apart.T, np.eye(96), atol=1e-12)
    turned = apart.T @ covariance @ apart
    values = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(np.diag(turned)[:32], values[:32].mean(), rtol=1e-9)
    np.testing.assert_allclose(np.diag(turned)[32:], values[32:].mean(), rtol=1e-6)
    np.testing.assert_allclose(turned[:32, 32:], 0, atol=1e-9 * values[0])
    np.testing.assert_allclose(np.diag(q.T @ covariance @ q), values.mean(), rtol=1e-9)
    with pytest.raises(FormatError, match="cannot be mixed apart"):
        make_rotation("klt_hadamard", 96, covariance=covariance, apart=96)
    with pytest.raises(FormatError, match="choose matrix='klt_hadamard'"):
        RotateResidual(matrix="klt", apart=32)
