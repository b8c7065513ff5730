# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""A layer in parts whose outputs add up, each with one range of the weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import RecipeError, UnsupportedGraph
from onnxq.formats import parse_format
from onnxq.graph import find_sites, read_weight
from onnxq.graph.stage import Stage, mark_stage
from onnxq.passes.base import Context
from onnxq.passes.split_layer import SplitLayer, cluster_edges

RNG = np.random.default_rng(41)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def heavy(*shape):
    """Mostly small numbers, a few large ones of both signs."""
    array = normal(*shape) * 0.05
    array.reshape(-1)[:: max(7, array.size // 40)] *= 60
    return array


def parts_of(model, count):
    return [read_weight(site.weight) for site in find_sites(model)][:count]


LAYERS = {
    "matmul": "h = MatMul (x, w)  y = Add (h, b)",
    "gemm": "y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)",
    "turned": "y = Gemm <transB = 1> (x, t, b)",
    "left": "z = Transpose (x)  h = MatMul (t, z)  y = Transpose (h)",
}


@pytest.mark.parametrize("by", ["values", "columns"])
@pytest.mark.parametrize("layer", list(LAYERS))
def test_the_parts_add_up(build, judge, layer, by):
    w = heavy(12, 20)
    model = build(
        f"main (float[7, 12] x) => (float[7, 20] y) {{ {LAYERS[layer]} }}",
        w=w,
        t=np.ascontiguousarray(w.T),
        b=normal(20),
    )
    report = judge(model, SplitLayer(by=by), {"x": normal(7, 12)})
    assert report.changed[0].note == f"3 parts by {by}"
    parts = parts_of(model, 3)
    exact = w.T if layer in ("turned", "left") else w
    np.testing.assert_array_equal(sum(parts), exact)
    assert np.all(sum((part != 0).astype(int) for part in parts) <= 1)
    again = SplitLayer(by=by).call(model, Context())
    assert {site.reason for site in again.sites} == {f"it is part {n}/3 already" for n in (1, 2, 3)}


def test_convolutions(build, judge):
    model = build(
        "main (float[1, 4, 9, 9] x) => (float[1, 8, 9, 9] y) { h = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w, b)  y = Relu (h) }",
        w=heavy(8, 2, 3, 3), b=normal(8),
    )  # fmt: skip
    judge(model, SplitLayer(parts=2), {"x": normal(1, 4, 9, 9)})


def test_the_bias_is_added_once_and_names_stay(build, judge, kinds):
    model = build(
        "main (float[7, 12] x) => (float[7, 20] y) { y = Gemm (x, w, b) }",
        w=heavy(12, 20),
        b=normal(20),
    )
    judge(model, SplitLayer(), {"x": normal(7, 12)})
    assert kinds(model) == ["Gemm", "Gemm", "Gemm", "Sum"]
    assert [len(node.inputs) for node in model.graph] == [3, 2, 2, 3]
    assert [node.name for node in model.graph] == [
        "Gemm_0",
        "Gemm_0_part2",
        "Gemm_0_part3",
        "Gemm_0_sum",
    ]


@pytest.mark.parametrize(("scale", "share"), [("row", 0.25), ("tensor", 0.6)])
def test_few_bits_err_less(build, scale, share):
    """With a few large weights, the small ones no longer share their steps: most of the error goes."""
    w = heavy(64, 32)
    model = build("main (float[7, 64] x) => (float[7, 32] y) { y = MatMul (x, w) }", w=w)
    SplitLayer(scale=scale).call(model, Context())
    fmt = parse_format("int3_channel_asym" if scale == "row" else "int3_tensor_asym")
    stored = lambda a: fmt.decode(fmt.encode(np.ascontiguousarray(a.T))).T  # noqa: E731
    whole = np.square(stored(w) - w).sum()
    split = np.square(sum(stored(part) for part in parts_of(model, 3)) - w).sum()
    assert split < share * whole


def test_clusters_solved_by_hand():
    values = np.sort(np.array([-9.0, -8.5, -8.0, -0.1, 0.0, 0.1, 7.0, 8.0]))
    edges = cluster_edges(values, 3)
    np.testing.assert_allclose(edges, [(-8.5 + 0.0) / 2, (0.0 + 7.5) / 2])
    assert cluster_edges(np.zeros(9), 3) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=60), st.integers(2, 5))
def test_every_cluster_has_members(numbers, count):
    values = np.sort(np.array(numbers, np.float64))
    edges = cluster_edges(values, count)
    if edges is None:
        assert len(np.unique(values)) < count
        return
    assert np.all(np.diff(edges) >= 0)
    found = np.searchsorted(edges, values, side="right")
    assert set(found) == set(range(count))


def test_what_is_left_says_why(build):
    model = build(
        "main (float[7, 12] x, float[12, 5] v) => (float[7, 20] y, float[7, 20] z, float[7, 5] u, float[7, 3] k) { y = MatMul (x, w)  z = MatMul (x, w)  u = MatMul (x, v)  t = Transpose (s)  k = MatMul (x, t) }",
        w=heavy(12, 20), s=heavy(3, 12),
    )  # fmt: skip
    step = SplitLayer(exclude=("Nothing*",))
    reasons = {site.site: site.reason for site in step.call(model, Context()).sites}
    assert reasons["MatMul_0"] == "its weight 'w' is read elsewhere too: run untie_weights first"
    assert "its weight comes through Transpose: fold constants first" in reasons.values()
    model = build(
        "main (float[7, 12] x) => (float[7, 20] y) { y = MatMul (x, w) }",
        w=np.ones((12, 20), np.float32),
    )
    assert (
        step.call(model, Context()).left[0].reason == "its weight has fewer than 3 different values"
    )
    with pytest.raises(RecipeError, match="parts is 1: a layer is split into 2 to 16"):
        SplitLayer(parts=1)
    mark_stage(model, Stage.QUANTIZED)
    with pytest.raises(UnsupportedGraph, match="split_layer changes the activations"):
        step.requires(model)
