# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""What an activation always has goes into the next bias; the function stays where that was seen."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.errors import CalibrationError, RecipeError, UnsupportedGraph
from onnxq.graph import find_sites, read_weight
from onnxq.graph.check import check_graph
from onnxq.graph.stage import Stage, mark_stage
from onnxq.passes.absorb_bias import AbsorbBias
from onnxq.passes.base import Context, Promise
from onnxq.passes.promise import PromiseKeeper
from onnxq.runtime import open_session

RNG = np.random.default_rng(67)
SETTINGS = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def fold(model, step, samples, modified=True):
    """Run the pass; its promise must hold on every sample, its second application do nothing."""
    keeper = PromiseKeeper(model, samples)
    report = step.call(model, Context(samples=samples))
    check_graph(model)
    keeper.check(step.key(), Promise.SAME_FUNCTION, model)
    assert report.modified is modified
    assert step.call(model, Context(samples=samples)).modified is False
    return report


def test_two_layers_by_hand(build):
    """h = x + 5 over x in [-1, 3] is 4 to 8: with no margin, 4 goes into the next bias."""
    model = build(
        "main (float[1, 1] x) => (float[1, 1] y) { h = Gemm (x, w1, b1)  a = Relu (h)  y = Gemm (a, w2, b2) }",
        w1=np.float32([[1]]), b1=np.float32([5]), w2=np.float32([[3]]), b2=np.float32([-1]),
    )  # fmt: skip
    report = fold(
        model, AbsorbBias(margin=0.0), [{"x": np.float32([[-1]])}, {"x": np.float32([[3]])}]
    )
    first, second = (read_weight(site.bias) for site in find_sites(model))
    assert (first.item(), second.item()) == (1.0, 11.0)
    assert report.changed[0].note == "1 of 1 channels, by up to 50% of their largest value"


RECTIFIERS = {
    "relu": "a = Relu (h)",
    "leaky": "a = LeakyRelu <alpha = 0.3> (h)",
    "prelu": "a = PRelu (h, slope)",
    "clip": "a = Clip (h, zero)",
}


@pytest.mark.parametrize("rectifier", list(RECTIFIERS))
@SETTINGS
@given(inner=st.integers(2, 12), readers=st.integers(1, 2), own=st.booleans())
def test_linear_layers(build, rectifier, inner, readers, own):
    """Half of the channels have a large bias; the others stay, whatever reads them."""
    bias = np.where(np.arange(inner) % 2, 8.0, 0.0).astype(np.float32)
    second = "z = Gemm (a, w3)" if readers == 2 else "z = Identity (x)"
    last = "t = MatMul (a, w2)  y = Add (t, b2)" if own else "y = MatMul (a, w2)"
    model = build(
        f"main (float[9, 4] x) => (float[9, 3] y, float[9, 4] z) {{ f = MatMul (x, w1)  h = Add (f, b1)  {RECTIFIERS[rectifier]}  {last}  {second} }}",
        w1=normal(4, inner) / 4, b1=bias, w2=normal(inner, 3), b2=normal(3), w3=normal(inner, 4), slope=np.abs(normal(inner)), zero=np.float32(0),
    )  # fmt: skip
    samples = [{"x": normal(9, 4)} for _ in range(4)]
    with open_session(model, extra_outputs=["h"]) as session:
        before = np.concatenate([session.run(sample)["h"] for sample in samples])
    report = fold(model, AbsorbBias(), samples)
    assert [site.site for site in report.changed] == ["MatMul_0"]
    with open_session(model, extra_outputs=["a"]) as session:
        after = np.concatenate([session.run(sample)["a"] for sample in samples])
    large = before.min(axis=0) > 0.3 * np.ptp(before, axis=0)
    assert np.all(after.max(axis=0)[large] < before.max(axis=0)[large])
    untouched = before.min(axis=0) <= 0
    np.testing.assert_array_equal(
        after[:, untouched].max(axis=0),
        np.maximum(before[:, untouched], after[:, untouched]).max(axis=0),
    )


@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions(build, groups):
    rng = np.random.default_rng(5)  # how often RNG was asked before is up to hypothesis

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    model = build(
        f"main (float[2, 3, 7, 7] x) => (float[2, 4, 4, 4] y) {{ h = Conv (x, w1, b1)  a = Relu (h)  y = Conv <group = {groups}> (a, w2) }}",
        w1=normal(4, 3, 2, 2) / 4, b1=np.float32([6, 0, 9, 7]), w2=normal(4, 4 // groups, 3, 3),
    )  # fmt: skip
    report = fold(model, AbsorbBias(), [{"x": normal(2, 3, 7, 7)} for _ in range(3)])
    assert "3 of 4 channels" in report.changed[0].note


def test_a_chain_takes_part_pair_by_pair(build):
    model = build(
        "main (float[3, 4] x) => (float[3, 4] y) { a = Gemm (x, w1, b)  r = Relu (a)  c = Gemm (r, w2, b)  s = Relu (c)  y = Gemm (s, w3, b) }",
        w1=normal(4, 4) / 8, w2=np.abs(normal(4, 4)) / 8, w3=normal(4, 4), b=np.full(4, 9, np.float32),
    )  # fmt: skip
    report = fold(model, AbsorbBias(), [{"x": normal(3, 4)} for _ in range(3)])
    assert len(report.changed) == 2


LEFT = {
    "pads": ("h = Conv (x, k, b)  a = Relu (h)  y = Conv <pads = [1, 1, 1, 1]> (a, k3)", "its reader cannot take a shift: 'Conv_2' pads its input with zeros, which have no bias"),
    "relu6": ("h = Conv (x, k, b)  a = Clip (h, low, high)  y = Conv (a, k)", "Clip 'Clip_1' has another bound than 0"),
    "gelu": ("h = Conv (x, k, b)  a = Gelu (h)  y = Conv (a, k)", "its output is read by Gelu, and not by one ReLU"),
    "pool": ("h = Conv (x, k, b)  a = Relu (h)  p = MaxPool <kernel_shape = [1, 1]> (a)  y = Conv (p, k)", "MaxPool 'MaxPool_2' reads 'a', and is no layer"),
    "output": ("z = Conv (x, k, b)  a = Relu (z)  y = Conv (a, k)", "its output 'z' is a graph output"),
    "residual": ("h = Conv (x, k, b)  a = Relu (h)  c = Conv (a, k)  y = Add (c, a)", "Add 'Add_3' reads 'a', and is no layer"),
    "low": ("h = Conv (x, k)  a = Relu (h)  y = Conv (a, k3)", "all its channels come near 0 or fall under it"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(LEFT))
def test_an_obstacle_is_named_and_the_graph_left(build, case):
    body, sentence = LEFT[case]
    outputs = "float[1, 4, q, r] y" + (", float[1, 4, s, t] z" if case == "output" else "")
    model = build(
        f"main (float[1, 4, 6, 6] x) => ({outputs}) {{ {body} }}",
        k=normal(4, 4, 1, 1), k3=normal(4, 4, 3, 3), b=np.full(4, 30, np.float32), low=np.float32(0), high=np.float32(6),
    )  # fmt: skip
    report = fold(model, AbsorbBias(), [{"x": normal(1, 4, 6, 6)}], modified=False)
    assert sentence in report.left[0].reason


def test_the_promise_is_about_values_like_those_that_were_seen(build):
    """Below the margin the ReLU cuts: the documented limit of the promise."""
    model = build(
        "main (float[1, 1] x) => (float[1, 1] y) { h = Gemm (x, w, b)  a = Relu (h)  y = Gemm (a, w) }",
        w=np.float32([[1]]), b=np.float32([5]),
    )  # fmt: skip
    AbsorbBias(margin=0.5).call(model, Context(samples=[{"x": np.float32([[v]])} for v in (0, 2)]))
    with open_session(model) as session:
        for x, y in ((0, 5), (-1, 4), (-3, 4)):
            assert session.run({"x": np.float32([[x]])})["y"].item() == y


def test_what_it_needs(build):
    model = build("main (float[3, 4] x) => (float[3, 5] y) { y = MatMul (x, w) }", w=normal(4, 5))
    with pytest.raises(CalibrationError, match="which calibration data have to show"):
        AbsorbBias().call(model, Context())
    with pytest.raises(RecipeError, match=r"margin is -0\.1"):
        AbsorbBias(margin=-0.1)
    mark_stage(model, Stage.QUANTIZED)
    with pytest.raises(UnsupportedGraph, match="absorb_bias changes the activations"):
        AbsorbBias().requires(model)


def test_the_recipe_chooses(build):
    model = build(
        "main (float[3, 4] x) => (float[3, 4] y) { h = Gemm (x, w, b)  a = Relu (h)  y = Gemm (a, w) }",
        w=normal(4, 4), b=np.full(4, 50, np.float32),
    )  # fmt: skip
    samples = [{"x": normal(3, 4)}]
    for options, sentence in (
        ({"exclude": ("Gemm_2",)}, "the recipe excludes 'Gemm_2', which reads it"),
        ({"exclude": ("Gemm_0",)}, "the recipe excludes it"),
        ({"sites": ("head",)}, "the recipe does not name it"),
    ):
        assert (
            AbsorbBias(**options).call(model, Context(samples=samples)).left[0].reason == sentence
        )
