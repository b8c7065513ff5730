# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""One range for all channels behind a norm, and codes that are those of a step for each channel."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.errors import CalibrationError, RecipeError, UnsupportedGraph
from onnxq.graph import read_weight
from onnxq.graph.check import check_graph
from onnxq.graph.stage import Stage, mark_stage
from onnxq.passes.base import Context, Promise
from onnxq.passes.promise import PromiseKeeper
from onnxq.passes.reparameterize_norm import ReparameterizeNorm
from onnxq.runtime import open_session

RNG = np.random.default_rng(61)
SETTINGS = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def spread(count):
    return np.exp(RNG.uniform(-2.5, 2.5, count)).astype(np.float32)


def fold(model, step, samples, modified=True):
    """Run the pass; its promise must hold, its second application be the identity."""
    keeper = PromiseKeeper(model, samples)
    context = Context(samples=samples)
    report = step.call(model, context)
    check_graph(model)
    keeper.check(step.key(), Promise.SAME_FUNCTION, model)
    assert report.modified is modified
    assert step.call(model, context).modified is False
    return report


def seen(model, name, samples):
    """All values of an activation, float64 [tokens, channels]."""
    with open_session(model, extra_outputs=[name]) as session:
        found = [session.run(sample)[name] for sample in samples]
    return np.concatenate([a.reshape(-1, a.shape[-1]) for a in found]).astype(np.float64)


def encoder(build, norm="n = LayerNormalization (x, g, b)", width=12, **weights):
    return build(
        f"main (float[2, 5, {width}] x) => (float[2, 5, 4] q, float[2, 5, 7] k) {{ {norm}  h = MatMul (n, w1)  q = Add (h, b1)  k = MatMul (n, w2) }}",
        g=spread(width), b=normal(width) * spread(width), c=normal(width), w1=normal(width, 4), b1=normal(4), w2=normal(width, 7), **weights,
    )  # fmt: skip


def inputs(count=4, width=12):
    return [{"x": normal(2, 5, width)} for _ in range(count)]


def test_two_channels_by_hand(build):
    """Values −1, 1 times γ plus β: ranges [0, 2] and [2, 10], s ∝ 2 and 8, z ∝ 0 and −1/4.

    The common width is 5 and the common z of −1/8 puts it at [5/8, 45/8].
    """
    model = build(
        "main (float[2, 2] x) => (float[2, 1] y) { n = LayerNormalization <epsilon = 0.0> (x, g, b)  y = Gemm (n, w, c) }",
        g=np.float32([1, 4]), b=np.float32([1, 6]), w=np.float32([[1], [2]]), c=np.float32([3]),
    )  # fmt: skip
    sample = {"x": np.float32([[-1, 1], [1, -1]])}
    fold(model, ReparameterizeNorm(), [sample])
    n = seen(model, "n", [sample])
    np.testing.assert_allclose(np.sort(n, axis=0), [[0.625, 0.625], [5.625, 5.625]], rtol=1e-5)
    weights = {name: read_weight(value) for name, value in model.graph.initializers.items()}
    np.testing.assert_allclose(weights["g"], [2.5, 2.5], rtol=1e-6)
    np.testing.assert_allclose(weights["b_moved"], [3.125, 3.125], rtol=1e-6)
    np.testing.assert_allclose(weights["w"], [[0.4], [3.2]], rtol=1e-6)
    # y = 1·n₁ + 2·n₂ + 3 is 0 + 20 + 3 and 2 + 4 + 3 for the two tokens.
    np.testing.assert_allclose(
        weights["c_moved"], [3 + 0.4 * -0.625 + 3.2 * (1.25 - 0.625)], rtol=1e-5
    )


NORMS = {
    "layer": "n = LayerNormalization <axis = -1> (x, g, b)",
    "layer_without_bias": "n = LayerNormalization <axis = 2> (x, g)",
    "skip": "n = com.microsoft.SkipLayerNormalization (x, x, g, b, c)",
    "skip_without_bias": "n = com.microsoft.SkipLayerNormalization (x, x, g)",
}


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("norm", list(NORMS))
def test_all_channels_get_one_range(build, norm, centre):
    model, samples = encoder(build, NORMS[norm]), inputs()
    before = seen(model, "n", samples)
    report = fold(model, ReparameterizeNorm(centre=centre), samples)
    assert {site.site for site in report.changed} == {"MatMul_1", "MatMul_3"}
    after = seen(model, "n", samples)
    low, high = after.min(axis=0), after.max(axis=0)
    pick = getattr(np, centre)
    np.testing.assert_allclose(high - low, pick(before.max(axis=0) - before.min(axis=0)), rtol=1e-4)
    np.testing.assert_allclose(low, low[0], atol=1e-4 * (high - low)[0])
    assert "ranges of channels differed by up to" in report.changed[0].note


def codes(values, step, zero, bits):
    return np.clip(np.round(values / step + zero), 0, 2**bits - 1)


@pytest.mark.parametrize("bits", [4, 8])
@SETTINGS
@given(seed=st.integers(0, 99))
def test_one_step_gives_the_codes_of_a_step_for_each_channel(build, bits, seed):
    """Real zero points, as the reparameterization has them; the last bit of float32 aside."""
    samples = [{"x": np.random.default_rng(seed).standard_normal((2, 5, 12)).astype(np.float32)}]
    model = encoder(build)
    before = seen(model, "n", samples)
    step = (before.max(axis=0) - before.min(axis=0)) / (2**bits - 1)
    own = codes(before, step, -before.min(axis=0) / step, bits)
    for centre in ("mean", "median"):
        ReparameterizeNorm(centre=centre).call(model, Context(samples=samples))
        after = seen(model, "n", samples)
        common = (after.max() - after.min()) / (2**bits - 1)
        same = codes(after, common, -after.min() / common, bits)
        assert np.abs(own - same).max() <= 1
        assert np.mean(own != same) < 0.02


@pytest.mark.parametrize(
    "norm",
    [
        "n = RMSNormalization (x, g)",
        "n = SimplifiedLayerNormalization (x, g)",
        "n, u, v, r = com.microsoft.SkipSimplifiedLayerNormalization (x, x, g)",
        "n = LayerNormalization (x, g, b)",
    ],
)
def test_symmetric_only_scales(build, norm):
    model, samples = encoder(build, norm), inputs()
    if "RMS" in norm:
        model.opset_imports[""] = 23
    keys = set(model.graph.initializers)
    before = np.abs(seen(model, "n", samples)).max(axis=0)
    fold(model, ReparameterizeNorm(symmetric=True), samples)
    assert set(model.graph.initializers) == keys
    after = np.abs(seen(model, "n", samples)).max(axis=0)
    np.testing.assert_allclose(after, before.mean(), rtol=1e-4)


def test_where_no_shift_can_be_taken_the_scale_is_moved_and_said(build):
    model, samples = encoder(build, "n = RMSNormalization (x, g)"), inputs()
    model.opset_imports[""] = 23
    report = fold(model, ReparameterizeNorm(), samples)
    assert (
        "scaled without a shift: RMSNormalization 'RMSNormalization_0' has no bias"
        in report.changed[0].note
    )
    clipped = build(
        "main (float[2, 5, 12] x) => (float[2, 5, 4] y) { n = LayerNormalization (x, g, b)  a = Relu (n)  y = MatMul (a, w1) }",
        g=spread(12), b=normal(12), w1=normal(12, 4),
    )  # fmt: skip
    report = fold(clipped, ReparameterizeNorm(), samples)
    assert report.changed[0].note.endswith("Relu lies between 'LayerNormalization_0' and it")


def test_the_middle_of_the_range_can_be_zero(build):
    model, samples = encoder(build), inputs()
    fold(model, ReparameterizeNorm(middle=True), samples)
    after = seen(model, "n", samples)
    np.testing.assert_allclose(after.min(axis=0), -after.max(axis=0), rtol=1e-3)


def test_less_strength_leaves_more_in_the_activation(build):
    ratios = []
    for strength in (0.25, 0.5, 1.0):
        generator = np.random.default_rng(5)
        model = build(
            "main (float[2, 5, 12] x) => (float[2, 5, 4] y) { n = LayerNormalization (x, g, b)  y = MatMul (n, w) }",
            g=np.exp(generator.uniform(-2, 2, 12)).astype(np.float32), b=generator.standard_normal(12).astype(np.float32), w=generator.standard_normal((12, 4)).astype(np.float32),
        )  # fmt: skip
        samples = [{"x": generator.standard_normal((2, 5, 12)).astype(np.float32)}]
        keeper = PromiseKeeper(model, samples)
        ReparameterizeNorm(strength=strength).call(model, Context(samples=samples))
        keeper.check("strength", Promise.SAME_FUNCTION, model)
        after = seen(model, "n", samples)
        width = after.max(axis=0) - after.min(axis=0)
        ratios.append(width.max() / width.min())
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2] == pytest.approx(1, rel=1e-4)


def test_a_channel_that_never_moves_stays(build):
    gamma = spread(12)
    gamma[3] = 0
    model, samples = encoder(build), inputs()
    model.graph.initializers["g"].const_value = type(model.graph.initializers["g"].const_value)(
        gamma, name="g"
    )
    fold(model, ReparameterizeNorm(), samples)
    assert np.isfinite(seen(model, "n", samples)).all()


def test_shared_biases_are_left_to_the_others(build):
    model = build(
        "main (float[2, 5, 6] x) => (float[2, 5, 6] y, float[2, 5, 6] z) { n = LayerNormalization (x, g, b)  h = MatMul (n, w)  y = Add (h, b)  z = Add (x, b) }",
        g=spread(6), b=normal(6), w=normal(6, 6),
    )  # fmt: skip
    fold(model, ReparameterizeNorm(), inputs(width=6))


LEFT = {
    "two_readers": ("n = LayerNormalization (x, g, b)  h = MatMul (n, w)  y = Add (h, n)", "Add 'Add_2' is on their way|joins them with another activation"),
    "no_norm": ("n = Relu (x)  y = MatMul (n, w)", "its scale cannot move: they come from the graph input 'x'"),
    "a_layer": ("n = MatMul (x, w)  r = Relu (n)  y = MatMul (r, u)", "its input comes from 'MatMul_0', and not from one norm"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(LEFT))
def test_an_obstacle_is_named_and_the_graph_left(build, case):
    body, sentences = LEFT[case]
    model = build(
        f"main (float[2, 5, 6] x) => (float[2, 5, 6] y) {{ {body} }}",
        g=spread(6),
        b=normal(6),
        w=normal(6, 6),
        u=normal(6, 6),
    )
    report = fold(model, ReparameterizeNorm(), inputs(width=6), modified=False)
    assert any(sentence in report.left[-1].reason for sentence in sentences.split("|"))


def test_the_recipe_chooses(build):
    model, samples = encoder(build), inputs()
    report = ReparameterizeNorm(exclude=("MatMul_3",)).call(model, Context(samples=samples))
    assert [site.reason for site in report.left] == [
        "the recipe excludes it (of 'MatMul_3', which shares it)",
    ] * 2
    report = ReparameterizeNorm(sites=("q*",)).call(model, Context(samples=samples))
    assert "the recipe does not name it" in report.left[0].reason


def test_what_it_needs(build):
    model = encoder(build)
    with pytest.raises(CalibrationError, match="which calibration data have to show"):
        ReparameterizeNorm().call(model, Context())
    with pytest.raises(RecipeError, match=r"strength is 1\.5"):
        ReparameterizeNorm(strength=1.5)
    mark_stage(model, Stage.CALIBRATED)
    with pytest.raises(UnsupportedGraph, match="reparameterize_norm changes the activations"):
        ReparameterizeNorm().requires(model)
