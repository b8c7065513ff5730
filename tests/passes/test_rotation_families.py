# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Norm scales folded, streams centred and rotated, heads rotated: the function stays.

Small decoders of every shape are run in float64, so that what is left of a difference is the
rounding of some hundred products of float64: 1e-10 of the largest logit is thousands of times that,
and thousands of times less than any weight that was forgotten.
"""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.graph import find_sites, read_weight
from onnxq.graph.check import check_graph
from onnxq.graph.norms import find_norms
from onnxq.numerics.rotation import KINDS
from onnxq.passes.base import Context
from onnxq.passes.center_residual import CenterResidual
from onnxq.passes.fold_norm_scales import FoldNormScales
from onnxq.passes.fuse_rms_norm import FuseRmsNorm
from onnxq.passes.rotate_heads import RotateHeads
from onnxq.passes.rotate_residual import RotateResidual
from onnxq.passes.rotation_streams import find_streams, rotate_stream
from onnxq.passes.untie_weights import UntieWeights
from onnxq.runtime import open_session

TOKENS, BATCH, VOCABULARY = 5, 2, 11


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder: see `network`."""

    norm: str = "rms"
    width: int = 12
    kv_heads: int = 2
    groups: int = 2
    head: int = 4
    layers: int = 2
    tied: bool = True
    biases: bool = True
    gated: bool = True
    positions: bool = True


NORMS = {
    "rms": "{y}2 = Mul ({x}, {x})  {y}3 = ReduceMean <axes = [-1]> ({y}2)  {y}4 = Add ({y}3, epsilon)  {y}5 = Sqrt ({y}4)  {y}6 = Div ({x}, {y}5)  {y} = Mul ({y}6, {g})",
    "layer": "{y} = LayerNormalization <axis = -1, epsilon = 0.01> ({x}, {g}, {b})",
    "layer_plain": "{y} = LayerNormalization <axis = -1> ({x}, {g})",
}


def network(shape, seed=0, dtype=np.float64):
    """A text of a decoder of pre-norm blocks, and its weights."""
    rng = np.random.default_rng(seed)
    weights, lines, n = {}, [], shape.width

    def normal(name, *sizes, scale=1.0):
        weights[name] = (rng.standard_normal(sizes) * scale).astype(dtype)
        return name

    def norm(y, x):
        scale, bias = normal(f"{y}_g", n), normal(f"{y}_b", n)
        weights[scale][:2] = (0.0, -1.5)  # a scale may be 0 or negative
        if shape.norm == "layer_plain" or shape.norm == "rms":
            del weights[bias]
        lines.append(NORMS[shape.norm].format(y=y, x=x, g=scale, b=bias))

    def linear(y, x, outputs, inputs):
        normal(f"{y}_w", inputs, outputs, scale=inputs**-0.5)
        plain = f"{y}_p" if shape.biases else y
        lines.append(f"{plain} = MatMul ({x}, {y}_w)")
        if shape.biases:
            lines.append(f"{y} = Add ({plain}, {normal(f'{y}_c', outputs)})")

    heads = shape.kv_heads * shape.groups
    for name, sizes in (
        ("split_q", (BATCH, TOKENS, heads, shape.head)),
        ("split_k", (BATCH, TOKENS, shape.kv_heads, shape.head)),
        ("wide", (BATCH, shape.kv_heads, shape.groups, TOKENS, shape.head)),
        ("many", (BATCH, heads, TOKENS, shape.head)),
        ("flat", (BATCH, TOKENS, heads * shape.head)),
        ("two", (2,)),
    ):
        weights[name] = np.array(sizes, np.int64)
    weights["epsilon"] = dtype(0.01)
    normal("E", VOCABULARY, n)
    lines.append("x = Gather (E, ids)")
    here = "x"
    if shape.positions:
        lines.append(f"xp = Add (x, {normal('P', TOKENS, n)})")
        here = "xp"
    for i in range(shape.layers):
        norm(f"a{i}", here)
        linear(f"q{i}", f"a{i}", heads * shape.head, n)
        linear(f"k{i}", f"a{i}", shape.kv_heads * shape.head, n)
        linear(f"v{i}", f"a{i}", shape.kv_heads * shape.head, n)
        lines.append(
            f"qs{i} = Reshape (q{i}, split_q)  qt{i} = Transpose <perm = [0, 2, 1, 3]> (qs{i})"
        )
        for t in "kv":
            lines.append(
                f"{t}s{i} = Reshape ({t}{i}, split_k)  {t}t{i} = Transpose <perm = [0, 2, 1, 3]> ({t}s{i})"
                f"  {t}u{i} = Unsqueeze ({t}t{i}, two)  {t}e{i} = Expand ({t}u{i}, wide)  {t}m{i} = Reshape ({t}e{i}, many)"
            )
        lines.append(
            f"kT{i} = Transpose <perm = [0, 1, 3, 2]> (km{i})  s{i} = MatMul (qt{i}, kT{i})  p{i} = Softmax (s{i})"
            f"  c{i} = MatMul (p{i}, vm{i})  ct{i} = Transpose <perm = [0, 2, 1, 3]> (c{i})  cf{i} = Reshape (ct{i}, flat)"
        )
        linear(f"o{i}", f"cf{i}", n, heads * shape.head)
        lines.append(f"y{i} = Add ({here}, o{i})")
        norm(f"b{i}", f"y{i}")
        linear(f"u{i}", f"b{i}", 7, n)
        inner = f"u{i}"
        if shape.gated:
            linear(f"g{i}", f"b{i}", 7, n)
            lines.append(
                f"gs{i} = Sigmoid (g{i})  gg{i} = Mul (g{i}, gs{i})  h{i} = Mul (gg{i}, u{i})"
            )
        else:
            lines.append(f"h{i} = Tanh ({inner})")
        linear(f"d{i}", f"h{i}", n, 7)
        lines.append(f"z{i} = Add (y{i}, d{i})")
        here = f"z{i}"
    norm("f", here)
    if shape.tied:
        lines.append("ET = Transpose <perm = [1, 0]> (E)  logits = MatMul (f, ET)")
    else:
        lines.append(f"logits = MatMul (f, {normal('H', n, VOCABULARY)})")
    kind = {np.float64: "double", np.float32: "float", np.float16: "float16"}[dtype]
    text = f"main (int64[{BATCH}, {TOKENS}] ids) => ({kind}[{BATCH}, {TOKENS}, {VOCABULARY}] logits) {{ {'  '.join(lines)} }}"
    return text, weights


def feed(seed=0):
    return {"ids": np.random.default_rng(seed).integers(0, VOCABULARY, (BATCH, TOKENS))}


def run(model):
    with open_session(model, optimize=False) as session:
        return session.run(feed())["logits"]


def step(model, one, expected, *, bound=1e-10):
    """Run a pass; the logits stay, the graph is sound, and a second run changes nothing."""
    report = one.call(model, Context(samples=[feed(s) for s in range(3)]))
    check_graph(model)
    found = run(model)
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max(), one
    again = one.call(model, Context(samples=[feed()]))
    assert not again.modified
    return report


shapes = st.builds(
    Shape,
    norm=st.sampled_from(list(NORMS)),
    width=st.sampled_from([6, 9, 12, 20, 36]),
    kv_heads=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 2, 3]),
    head=st.sampled_from([2, 3, 4, 6]),
    layers=st.sampled_from([1, 2]),
    tied=st.booleans(),
    biases=st.booleans(),
    gated=st.booleans(),
    positions=st.booleans(),
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=shapes, matrix=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_any_decoder_is_folded_centred_and_rotated(build, shape, matrix, seed):
    text, weights = network(shape, seed)
    model = build(text, opset=17, **weights)
    FuseRmsNorm().call(model, Context())
    expected = run(model)
    UntieWeights().call(model, Context())
    folded = step(model, FoldNormScales(), expected)
    assert len(folded.changed) == 2 * shape.layers + 1
    centred = step(model, CenterResidual(), expected)
    assert centred.modified is (shape.norm != "rms")
    assert {norm.kind for norm in find_norms(model)} == {"RMSNorm"}
    turned = step(model, RotateResidual(matrix=matrix, seed=seed), expected)
    assert [site.reason for site in turned.sites] == [None]
    heads = step(model, RotateHeads(matrix=matrix, seed=seed), expected)
    assert [site.reason for site in heads.sites] == [None] * shape.layers
    assert "MatMul" in {site.kind for site in find_sites(model)}


def test_a_rotation_moves_activations_and_not_only_names(build):
    text, weights = network(Shape())
    model = build(text, opset=17, **weights)
    FuseRmsNorm().call(model, Context())
    UntieWeights().call(model, Context())
    FoldNormScales().call(model, Context())
    before = {s.name: read_weight(s.weight) for s in find_sites(model) if s.weight is not None}
    RotateResidual().call(model, Context())
    RotateHeads().call(model, Context())
    after = {s.name: read_weight(s.weight) for s in find_sites(model) if s.weight is not None}
    moved = [name for name, old in before.items() if not np.allclose(old, after[name])]
    assert len(moved) == len(before)  # every weight writes the stream, reads it, or is of a head


def test_a_tied_head_stays_tied_where_no_scale_is_folded(build):
    """Rows of the embedding and of the head turn alike, E Q and E Q Qᵀ = E."""
    text, weights = network(Shape(tied=True))
    for name in ("f_g", "a0_g", "b0_g", "a1_g", "b1_g"):
        weights[name] = np.full(12, 0.5)
    model = build(text, opset=17, **weights)
    FuseRmsNorm().call(model, Context())
    expected = run(model)
    report = step(model, RotateResidual(), expected)
    assert report.modified
    sites = [site for site in find_sites(model) if site.weight is not None]
    assert sum(site.weight.name == "E" for site in sites) == 2


def test_a_tied_head_keeps_the_scale_of_its_norm_until_it_is_untied(build):
    text, weights = network(Shape(tied=True))
    model = build(text, opset=17, **weights)
    FuseRmsNorm().call(model, Context())
    report = FoldNormScales().call(model, Context())
    (left,) = report.left
    assert "run untie_weights first" in left.reason
    turned = RotateResidual().call(model, Context())
    assert "run untie_weights first" in turned.left[0].reason


@pytest.mark.parametrize("matrix", ["hadamard", "randomized_hadamard", "orthogonal"])
def test_turning_back_gives_the_weights_back(build, matrix):
    text, weights = network(Shape(norm="rms"))
    model = build(text, opset=17, **weights)
    FuseRmsNorm().call(model, Context())
    UntieWeights().call(model, Context())
    FoldNormScales().call(model, Context())
    named = {v.name: read_weight(v) for v in model.graph.initializers.values()}
    from onnxq.numerics.rotation import make_rotation

    rotation = make_rotation(matrix, 12, seed=3)
    for one in (rotation, rotation.inverse):
        (stream,) = find_streams(model).found
        rotate_stream(model, stream, one)
    for name, value in model.graph.initializers.items():
        old = named[name]
        if old.dtype == np.float64:
            assert np.abs(read_weight(value) - old).max() <= 1e-13 * max(np.abs(old).max(), 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_keep_their_type(build, dtype):
    text, weights = network(Shape(norm="layer", tied=False), dtype=dtype)
    model = build(text, opset=17, **weights)
    FuseRmsNorm().call(model, Context())
    types = {v.name: v.dtype for v in model.graph.initializers.values()}
    for one in (FoldNormScales(), CenterResidual(), RotateResidual(), RotateHeads()):
        assert one.call(model, Context()).modified
    for name, value in model.graph.initializers.items():
        if name in types:
            assert value.dtype == types[name] == ir.DataType(value.dtype)
            assert read_weight(value).dtype == value.dtype.numpy()
