# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Where a rotation, a scale or a mean goes through, where it needs a bridge, and what refuses it."""

import numpy as np
import pytest

from onnxq.errors import CalibrationError, FormatError, UnsupportedGraph
from onnxq.graph import find_sites, read_weight
from onnxq.graph.stage import Stage, mark_stage
from onnxq.passes.base import Context
from onnxq.passes.center_residual import CenterResidual
from onnxq.passes.fold_norm_scales import FoldNormScales
from onnxq.passes.rotate_heads import RotateHeads
from onnxq.passes.rotate_residual import RotateResidual
from onnxq.passes.rotation_rules import follow_rotation
from onnxq.passes.rotation_space import find_space
from onnxq.passes.rotation_streams import find_streams, rotate_stream

RNG = np.random.default_rng(11)
ONE = np.ones(8, np.float32)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def stream(build, *, before="x0 = MatMul (i, w0)", after="", outputs="", norm="RMS", g=ONE, **more):
    """A stream of 8 channels with one block; ``before`` gives x0, ``after`` may read x0 and x1."""
    norms = {
        "RMS": "{y} = SimplifiedLayerNormalization <axis = -1> ({x}, g)",
        "Layer": "{y} = LayerNormalization <axis = -1> ({x}, g, b)",
    }
    body = "  ".join(
        [before, norms[norm].format(y="n0", x="x0"), "h = MatMul (n0, w1)  a = Tanh (h)  d = MatMul (a, w2)",
         "x1 = Add (x0, d)", norms[norm].format(y="n1", x="x1"), "y = MatMul (n1, w3)", after]
    )  # fmt: skip
    weights = {"w1": normal(8, 5), "w2": normal(5, 8), "w3": normal(8, 3), "g": g}
    if "w0" in before:
        weights["w0"] = normal(4, 8)
    if norm == "Layer":
        weights["b"] = normal(8)
    text = f"main (float[2, 6, 4] i) => (float[2, 6, 3] y{outputs}) {{ {body} }}"
    return build(text, opset=17, **weights, **more)


SAMPLE = {"i": normal(2, 6, 4)}


@pytest.mark.parametrize(
    "before, more",
    [
        ("x0 = MatMul (i, w0)", {}),
        ("m = MatMul (i, w0)  x0 = Add (m, c)", {"c": normal(8)}),
        ("m = MatMul (i, w0)  x0 = Add (m, c)", {"c": normal(6, 8)}),
        ("m = MatMul (i, w0)  s = Slice (c, two, eight, zero)  x0 = Add (m, s)", {"c": normal(9, 8), "two": np.array([2]), "eight": np.array([8]), "zero": np.array([0])}),
        ("m = MatMul (i, w0)  f = Concat <axis = 1> (cls, m)  x0 = Slice (f, zero, six, one)", {"cls": normal(2, 1, 8), "zero": np.array([0]), "six": np.array([6]), "one": np.array([1])}),
        ("m = MatMul (i, w0)  f = Mul (m, two)  x0 = Div (f, five)", {"two": np.float32(2), "five": np.float32(5)}),
        ("t = Transpose <perm = [0, 2, 1]> (i)  m = Conv (t, k, kb)  x0 = Transpose <perm = [0, 2, 1]> (m)", {"k": normal(8, 4, 1), "kb": normal(8)}),
    ],
)  # fmt: skip
def test_what_writes_a_stream(build, judge, before, more):
    model = stream(build, before=before, **more)
    report = judge(model, RotateResidual(bridges=0), SAMPLE)
    assert [site.reason for site in report.sites] == [None]


@pytest.mark.parametrize(
    "before, after, outputs, bridges",
    [
        ("m = MatMul (i, w0)  x0 = Tanh (m)", "", "", 1),
        ("m = MatMul (i, w0)  x0 = Tanh (m)", "z = Relu (x1)", ", float[2, 6, 8] z", 2),
        ("x0 = MatMul (i, w0)", "z = Identity (n1)  v = Softmax (n1)", ", float[2, 6, 8] v", 1),
        ("x0 = MatMul (i, w0)", "", ", float[2, 6, 8] n1", 1),
        ("t = Transpose <perm = [0, 2, 1]> (i)  m = Conv (t, k)  e = Relu (m)  x0 = Transpose <perm = [0, 2, 1]> (e)", "", "", 1),
    ],
)  # fmt: skip
def test_bridges_where_a_stream_begins_or_leaves(
    build, judge, kinds, before, after, outputs, bridges
):
    more = {"k": normal(8, 4, 1)} if "Conv" in before else {}
    model = stream(build, before=before, after=after, outputs=outputs, **more)
    count = kinds(model).count("MatMul")
    refused = find_streams(model, bridges=bridges - 1).refused
    assert len(refused) == 1
    report = judge(model, RotateResidual(bridges=bridges), SAMPLE)
    assert f"{bridges} products as the model runs" in report.sites[0].note
    assert kinds(model).count("MatMul") == count + bridges


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"before": "m = MatMul (i, w0)  x0 = Tanh (m)"}, "Tanh 'Tanh_1' does not commute with a rotation"),
        ({"norm": "Layer"}, "subtracts the mean of all channels: run center_residual"),
        ({"g": np.linspace(0.5, 2, 8).astype(np.float32)}, "has a scale for each channel: run fold_norm_scales"),
        ({"after": "z = Softmax (x1)", "outputs": ", float[2, 6, 8] z"}, "Softmax 'Softmax_8' does not commute"),
        ({"outputs": ", float[2, 6, 8] x1"}, "it is also the graph output 'x1'"),
        ({"before": "m = MatMul (i, w0)  x0 = Mul (m, c)", "c": normal(8)}, "multiplies or divides channels by numbers that differ"),
        ({"before": "m = MatMul (i, w0)  x0 = Add (m, c)", "c": normal(6, 1)}, "adds 'c' to all channels alike"),
        ({"after": "p, q = Split <axis = -1> (x1)  z = Add (p, q)", "outputs": ", float[2, 6, 4] z"}, "has only some of the 8 channels that turn together"),
    ],
)  # fmt: skip
def test_what_refuses_a_rotation(build, change, sentence):
    model = stream(build, **change)
    report = RotateResidual(bridges=0).call(model, Context())
    assert not report.modified
    assert sentence in report.left[0].reason


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"after": "z = MatMul (x1, w4)", "outputs": ", float[2, 6, 2] z", "w4": normal(8, 2)}, "reads the stream without a norm, and would miss the mean"),
        ({"outputs": ", float[2, 6, 8] x1"}, "the mean is seen by others: it is also the graph output 'x1'"),
    ],
)  # fmt: skip
def test_what_refuses_to_be_centred(build, change, sentence):
    model = stream(build, norm="Layer", **change)
    report = CenterResidual().call(model, Context())
    assert not report.modified
    assert sentence in report.left[0].reason


def test_a_post_norm_network_is_not_centred(build):
    text = "main (float[2, 6, 8] i) => (float[2, 6, 8] y) { m = MatMul (i, w0)  n0 = LayerNormalization <axis = -1> (m, g, b)  h = MatMul (n0, w1)  s = Add (n0, h)  n1 = LayerNormalization <axis = -1> (s, g, b)  k = MatMul (n1, w1)  t = Add (n1, k)  y = LayerNormalization <axis = -1> (t, g, b) }"
    model = build(text, opset=17, w0=normal(8, 8), w1=normal(8, 8), g=normal(8), b=normal(8))
    report = CenterResidual().call(model, Context())
    assert not report.modified
    assert all("writes the stream (a post-norm network)" in site.reason for site in report.left)


def test_a_stream_behind_a_nonlinearity_is_centred_as_it_runs(build, judge, kinds):
    model = stream(build, before="m = MatMul (i, w0)  x0 = Relu (m)", norm="Layer")
    judge(model, CenterResidual(), SAMPLE)
    assert {"ReduceMean", "Sub"} <= set(kinds(model))
    assert "LayerNormalization" not in kinds(model)


def test_a_norm_is_folded_into_all_readers_or_none(build, judge):
    scale = np.linspace(-1, 2, 8).astype(np.float32)
    model = stream(
        build, norm="Layer", g=scale, after="z = Relu (n1)", outputs=", float[2, 6, 8] z"
    )
    report = judge(model, FoldNormScales(), SAMPLE)
    assert [site.reason is None for site in report.sites] == [True, False]
    assert "Relu 'Relu_8' reads it, and is no linear layer" in report.left[0].reason


@pytest.mark.parametrize(
    "pooled",
    ["p = Gather <axis = 1> (n1, first)", "p = ReduceMean <axes = [1], keepdims = 0> (n1)"],
)
def test_a_norm_before_pooling_is_folded_and_rotated(build, judge, pooled):
    model = stream(
        build, norm="Layer", g=np.linspace(-1, 2, 8).astype(np.float32),
        after=f"{pooled}  z = MatMul (p, w4)", outputs=", float[2, 2] z", w4=normal(8, 2), first=np.int64(0),
    )  # fmt: skip
    for step in (FoldNormScales(), CenterResidual(), RotateResidual(bridges=0)):
        report = judge(model, step, SAMPLE)
        assert not report.left


def test_a_shared_scale_is_copied_and_set_to_one(build, judge):
    model = stream(build, norm="RMS", g=np.full(8, 3, np.float32))
    judge(model, FoldNormScales(), SAMPLE)
    for node in model.graph:
        if node.op_type == "SimplifiedLayerNormalization":
            assert (read_weight(node.inputs[1]) == 1).all()


def test_bodies_are_left_alone(build):
    text = "main (float[2, 6, 4] i, bool c) => (float[2, 6, 3] y) { x0 = MatMul (i, w0)  d = Identity (x0)  x1 = Add (x0, d)  n1 = SimplifiedLayerNormalization <axis = -1> (x1, g)  y = If (c) <then_branch = t () => (float[2, 6, 3] u) { u = MatMul (n1, w3) }, else_branch = e () => (float[2, 6, 3] v) { v = MatMul (n1, w4) }> }"
    model = build(
        text,
        opset=17,
        w0=normal(4, 8),
        w3=normal(8, 3),
        w4=normal(8, 3),
        g=np.linspace(1, 2, 8).astype(np.float32),
    )
    before = {s.name: read_weight(s.weight) for s in find_sites(model)}
    for step in (FoldNormScales(), RotateResidual()):
        report = step.call(model, Context())
        assert not report.modified
    assert all("body" in site.reason for site in FoldNormScales().call(model, Context()).left)
    for site in find_sites(model):
        assert np.array_equal(read_weight(site.weight), before[site.name])


GQA = "main (float[1, 5, 8] x, int32[1, 1] past, int32[1] total, float[1, 1, 0, 8] pk, float[1, 1, 0, 8] pv) => (float[1, 5, 8] y, float[1, 1, 5, 8] k2, float[1, 1, 5, 8] v2) { q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)  a, k2, v2 = com.microsoft.GroupQueryAttention <num_heads = 3, kv_num_heads = 1> (q, k, v, pk, pv, past, total)  y = MatMul (a, wo) }"


def _attention(build):
    weights = {"wq": normal(8, 24), "wk": normal(8, 8), "wv": normal(8, 8), "wo": normal(24, 8)}
    sample = {"x": normal(1, 5, 8), "past": np.array([[4]], np.int32), "total": np.array([5], np.int32),
              "pk": np.zeros((1, 1, 0, 8), np.float32), "pv": np.zeros((1, 1, 0, 8), np.float32)}  # fmt: skip
    return build(GQA, opset=17, **weights), sample


def test_a_cache_is_rotated_only_when_asked(build):
    model, _ = _attention(build)
    report = RotateHeads().call(model, Context())
    assert not report.modified
    assert "set rotate_cache if it is only ever fed back" in report.left[0].reason


def test_a_cache_that_the_samples_fill_is_not_rotated(build):
    model, sample = _attention(build)
    sample["pv"] = np.ones((1, 1, 2, 8), np.float32)
    report = RotateHeads(rotate_cache=True).call(model, Context(samples=[sample]))
    assert not report.modified
    assert "the samples put values into its cache 'pv'" in report.left[0].reason


def test_three_query_heads_share_the_matrix_of_one_value_head(build):
    from onnxq.runtime import open_session

    model, sample = _attention(build)
    with open_session(model, optimize=False) as session:
        before = session.run(sample)
    report = RotateHeads(rotate_cache=True, matrix="orthogonal").call(model, Context())
    assert report.moved_outputs == ("v2",)
    with open_session(model, optimize=False) as session:
        after = session.run(sample)
    assert np.abs(after["y"] - before["y"]).max() < 1e-5 * np.abs(before["y"]).max()
    assert np.array_equal(after["k2"], before["k2"])
    assert np.abs(after["v2"] - before["v2"]).max() > 0.1
    assert np.allclose(np.square(after["v2"]).sum(-1), np.square(before["v2"]).sum(-1), rtol=1e-4)


PACKED = {
    "gqa": "a, k2, v2 = com.microsoft.GroupQueryAttention <num_heads = 3, kv_num_heads = 1> (p, , , , , past, total)",
    "own": "a = com.microsoft.Attention <num_heads = 3> (x, wi, bi)",
    "mha": "a = com.microsoft.MultiHeadAttention <num_heads = 3> (q, k, v, bi)",
}


@pytest.mark.parametrize("kind", list(PACKED))
def test_fused_attention_packed_or_with_a_bias_of_its_own(build, judge, kind):
    projections = {
        "gqa": "p = MatMul (x, wp)",
        "own": "",
        "mha": "q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)",
    }[kind]
    text = f"main (float[1, 5, 24] x, int32[1, 1] past, int32[1] total) => (float[1, 5, 24] y) {{ {projections}  {PACKED[kind]}  y = MatMul (a, wo) }}"
    weights = {
        "gqa": {"wp": normal(24, 40)},
        "own": {"wi": normal(24, 72), "bi": normal(72)},
        "mha": {"wq": normal(24, 24), "wk": normal(24, 24), "wv": normal(24, 24), "bi": normal(72)},
    }[kind]
    model = build(text, opset=17, wo=normal(24, 24), **weights)
    before = {site.name: read_weight(site.weight) for site in find_sites(model)}
    sample = {
        "x": normal(1, 5, 24),
        "past": np.array([[4]], np.int32),
        "total": np.array([5], np.int32),
    }
    report = judge(model, RotateHeads(matrix="orthogonal"), sample)
    assert [site.reason for site in report.sites] == [None]
    for site in find_sites(model):
        if site.name.startswith(("Attention", "MatMul_0")) and kind != "mha":
            kept = 32 if kind == "gqa" else 48  # queries and keys stay, bit for bit
            assert np.array_equal(read_weight(site.weight)[:, :kept], before[site.name][:, :kept])
            assert not np.allclose(read_weight(site.weight)[:, kept:], before[site.name][:, kept:])


SCORES = "qt = Transpose <perm = [0, 2, 1, 3]> (q)  kt = Transpose <perm = [0, 2, 3, 1]> (k)  vt = Transpose <perm = [0, 2, 1, 3]> (v)"
TAKEN_APART = {
    "between heads and channels": (72, f"r = Reshape (p, shape)  q = Gather <axis = 3> (r, i0)  k = Gather <axis = 3> (r, i1)  v = Gather <axis = 3> (r, i2)  {SCORES}",
        {"shape": [1, 5, 3, 3, 8]}),
    "in front of all": (72, "r = Reshape (p, shape)  t = Transpose <perm = [2, 0, 3, 1, 4]> (r)  qt = Gather <axis = 0> (t, i0)  k = Gather <axis = 0> (t, i1)  vt = Gather <axis = 0> (t, i2)  kt = Transpose <perm = [0, 1, 3, 2]> (k)",
        {"shape": [1, 5, 3, 3, 8]}),
    "by lists, heads shared": (64, f"r = Reshape (p, shape)  q5 = Slice (r, i0v, m2, i3)  q = Reshape (q5, heads)  k5 = Gather <axis = 3> (r, m2)  ke = Expand (k5, many)  k = Reshape (ke, heads)  v5 = Gather <axis = 3> (r, m1)  ve = Expand (v5, many)  v = Reshape (ve, heads)  {SCORES}",
        {"shape": [1, 5, 2, 4, 8], "heads": [1, 5, 4, 8], "many": [1, 5, 2, 2, 8], "i0v": [0], "m2": [-2], "m1": [-1], "i3": [3]}),
}  # fmt: skip


def _taken_apart(build, kind):
    wide, body, numbers = TAKEN_APART[kind]
    heads = 4 if "heads" in numbers else 3
    text = f"main (float[1, 5, 24] x) => (float[1, 5, 24] y) {{ p = MatMul (x, wp)  {body}  s = MatMul (qt, kt)  w = Softmax <axis = -1> (s)  a = MatMul (w, vt)  b = Transpose <perm = [0, 2, 1, 3]> (a)  c = Reshape (b, flat)  y = MatMul (c, wo) }}"
    used = {f"i{n}": np.array(n) for n in range(3)} if heads == 3 else {}
    numbers = {name: np.array(given) for name, given in numbers.items()}
    flat = np.array([1, 5, heads * 8])
    return build(
        text, opset=17, wp=normal(24, wide), wo=normal(heads * 8, 24), flat=flat, **used, **numbers
    )


@pytest.mark.parametrize("kind", list(TAKEN_APART))
def test_values_taken_out_of_one_product_are_rotated_alone(build, judge, kind):
    model = _taken_apart(build, kind)
    site = next(site for site in find_sites(model) if site.name == "MatMul_0")
    before = read_weight(site.weight)
    report = judge(model, RotateHeads(matrix="orthogonal"), {"x": normal(1, 5, 24)})
    assert [one.reason for one in report.sites] == [None]
    site = next(site for site in find_sites(model) if site.name == "MatMul_0")
    changed = np.any(read_weight(site.weight) != before, axis=0).reshape(-1, 8)
    assert (changed == changed[:, :1]).all()
    changed = changed[:, 0].reshape(TAKEN_APART[kind][2]["shape"][2:4])
    values = changed[-1] if kind == "in front of all" else changed[:, -1]
    assert values.all() and changed.sum() == values.size


def test_one_token_of_many_is_no_part_of_a_product(build):
    text = "main (float[2, 6, 8] x) => (float[2, 8] y, float[2, 6, 8] z) { p = MatMul (x, w0)  t = Gather <axis = 1> (p, i0)  y = MatMul (t, w1)  z = MatMul (p, w2) }"
    model = build(text, opset=17, w0=normal(8, 8), w1=normal(8, 8), w2=normal(8, 8), i0=np.array(0))
    value = next(node for node in model.graph if node.op_type == "MatMul").outputs[0]
    space = find_space(
        {site.node: site for site in find_sites(model)}, follow_rotation, value, width=8, count=8
    )
    assert not isinstance(space, str), space
    assert {site.node.inputs[1].name for site in space.readers} == {"w1", "w2"}


@pytest.mark.parametrize("layer", [True, False])
def test_skip_norms_of_genai_are_folded_centred_and_rotated(build, judge, kinds, layer):
    op = "SkipLayerNormalization" if layer else "SkipSimplifiedLayerNormalization"
    more = "g, b" if layer else "g"
    first = (
        "LayerNormalization <axis = -1> (x, g, b)"
        if layer
        else "SimplifiedLayerNormalization <axis = -1> (x, g)"
    )
    text = f"main (float[2, 5, 4] i) => (float[2, 5, 3] y) {{ x = MatMul (i, w0)  n0 = {first}  d0 = MatMul (n0, w1)  n1, m1, v1, x1 = com.microsoft.{op} (x, d0, {more}, c)  t = Tanh (n2)  n2 = MatMul (n1, w2)  d1 = MatMul (t, w3)  n3, m3, v3, x3 = com.microsoft.{op} (x1, d1, {more})  y = MatMul (n3, w4) }}"
    text = text.replace(
        "t = Tanh (n2)  n2 = MatMul (n1, w2)", "n2 = MatMul (n1, w2)  t = Tanh (n2)"
    )
    weights = {
        "w0": normal(4, 8),
        "w1": normal(8, 8),
        "w2": normal(8, 6),
        "w3": normal(6, 8),
        "w4": normal(8, 3),
        "c": normal(8),
        "g": normal(8),
    }
    if layer:
        weights["b"] = normal(8)
    model = build(text, opset=17, **weights)
    steps = [FoldNormScales(), CenterResidual(), RotateResidual(bridges=0)]
    for step in steps if layer else [steps[0], steps[2]]:
        report = judge(model, step, {"i": normal(2, 5, 4)})
        assert not report.left
    assert "SkipLayerNormalization" not in kinds(model)


def test_rotation_after_calibration_is_refused(build):
    for step in (FoldNormScales(), CenterResidual(), RotateResidual(), RotateHeads()):
        model = stream(build)
        mark_stage(model, Stage.CALIBRATED)
        with pytest.raises(UnsupportedGraph, match="this model is already CALIBRATED"):
            step.requires(model)
    with pytest.raises(UnsupportedGraph, match="a rotation changes the activations"):
        find_streams(model)


def test_options_and_matrices_are_checked(build):
    with pytest.raises(FormatError, match="there is no rotation 'dct'"):
        RotateResidual(matrix="dct")
    with pytest.raises(FormatError, match="there is no rotation 'dct'"):
        RotateHeads(matrix="dct")
    with pytest.raises(CalibrationError, match="matrix='klt' takes the covariance"):
        RotateResidual(matrix="klt").call(stream(build), Context())
    model = stream(build)
    (found,) = find_streams(model).found
    with pytest.raises(UnsupportedGraph, match=r"does not fit the stream 'x0' of 8"):
        rotate_stream(model, found, np.eye(6))
    with pytest.raises(FormatError, match="not orthogonal"):
        rotate_stream(model, found, np.ones((8, 8)))


@pytest.mark.parametrize(("width", "apart", "expected"), [(576, 0.125, 64), (48, 0.125, 32)])
def test_a_share_apart_counts_as_split_low_rank_does(width, apart, expected):
    from onnxq.passes.rotate_residual import RotateResidual

    step = RotateResidual(matrix="klt_hadamard", apart=apart)
    assert step._apart(width) == expected
    assert step._apart(32) == 0  # no channel would be left
