# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Activations get smoother, the function stays, and the factors are those of the formulas."""

import numpy as np
import pytest

from onnxq.errors import BrokenPromise, CalibrationError, RecipeError, UnsupportedGraph
from onnxq.graph import find_sites, read_weight
from onnxq.graph.check import check_graph
from onnxq.graph.stage import Stage, mark_stage
from onnxq.passes.base import Context
from onnxq.passes.clean import Clean
from onnxq.passes.promise import PromiseKeeper
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.recipe import Recipe
from onnxq.passes.runner import run_recipe
from onnxq.passes.smooth_activations import SmoothActivations
from onnxq.runtime import open_session

RNG = np.random.default_rng(37)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def outlying(*shape, size=30.0):
    """Normal numbers of which one column in eight is much larger."""
    array = normal(*shape)
    array[..., ::8] *= size
    return array


def run(model, *samples, modified=True, **options):
    """Run the pass; check its promise and the graph. Returns the reports by site."""
    step = SmoothActivations(**options)
    keeper = PromiseKeeper(model, samples)
    report = step.call(model, Context(samples=samples))
    check_graph(model)
    keeper.check(step.key(), step.promise, model, moved=report.moved_outputs)
    assert report.modified is modified
    return {site.site: site for site in report.sites}


def max_to_rms(model, name, *samples):
    with open_session(model, extra_outputs=[name]) as session:
        values = np.concatenate([session.run(sample)[name].reshape(-1) for sample in samples])
    return np.abs(values).max() / np.sqrt(np.mean(values**2.0))


def block(build, **options):
    """A norm read by two layers, and a gated product read by a third."""
    return build(
        "main (float[2, 9, 16] x) => (float[2, 9, 8] y) { n = LayerNormalization <axis = -1> (x, g, b)  p = MatMul (n, wg)  q = MatMul (n, wu)  s = Sigmoid (p)  a = Mul (p, s)  m = Mul (a, q)  y = MatMul (m, wd) }",
        opset=17, g=outlying(16), b=normal(16), wg=normal(16, 24), wu=outlying(16, 24), wd=normal(24, 8), **options,
    )  # fmt: skip


RULES = {
    "smoothquant": {},
    "all of it": {"alpha": 1.0},
    "search": {"alpha": "search"},
    "search for int4": {"alpha": "search", "format": "int4_g16", "activation_bits": 4, "granularity": "tensor"},
    "gain": {"objective": "gain"},
    "percentile": {"objective": "percentile", "percentile": 80.0},
    "awq": {"objective": "awq", "format": "int3_g16"},
    "awq, given": {"objective": "awq", "alpha": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("rule", list(RULES))
def test_the_function_stays_and_activations_become_smoother(build, rule):
    model = block(build)
    samples = [{"x": normal(2, 9, 16)} for _ in range(4)]
    before = [max_to_rms(model, name, *samples) for name in ("n", "m")]
    sites = run(model, *samples, **RULES[rule])
    assert len(sites) == 3
    if "awq" in rule or rule == "search":  # they may choose anything that lowers the error
        return
    after = [max_to_rms(model, name, *samples) for name in ("n", "m")]
    assert all(new < 0.9 * old for old, new in zip(before, after, strict=True))
    assert "folded into" in sites["MatMul_1"].note
    assert sites["MatMul_1"].note == sites["MatMul_2"].note


@pytest.mark.parametrize("rule", ["smoothquant", "search", "gain", "percentile", "all of it"])
def test_a_second_application_rests(build, rule):
    model = block(build)
    samples = [{"x": normal(2, 9, 16)} for _ in range(4)]
    run(model, *samples, **RULES[rule])
    sites = run(model, *samples, modified=False, **RULES[rule])
    reasons = {site.reason for site in sites.values()}
    assert reasons <= {
        "its activation and its weights are balanced already",
        "no factors lower its output error",
    }


def test_smoothquant_gives_both_sides_one_profile(build):
    """With α = ½, max|x_j| / s_j = c √(max|x_j| max|w_j|) = s_j max|w_j| · c²."""
    model = block(build)
    sample = {"x": normal(2, 9, 16)}
    run(model, sample)
    with open_session(model, extra_outputs=["n", "m"]) as session:
        values = session.run(sample)
    weights = model.graph.initializers
    for name, readers in (("n", ("wg", "wu")), ("m", ("wd",))):
        peaks = np.abs(values[name]).reshape(-1, values[name].shape[-1]).max(axis=0)
        columns = np.max([np.abs(read_weight(weights[w])).max(axis=1) for w in readers], axis=0)
        ratio = peaks / columns
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_gain_is_the_least_of_its_loss(build):
    """Σ s² ‖w‖² + E[x²] / s² grows in every direction from the factors found."""
    model = block(build)
    sample = {"x": normal(2, 9, 16)}
    run(model, sample, objective="gain")
    with open_session(model, extra_outputs=["m"]) as session:
        square = np.mean(session.run(sample)["m"].reshape(-1, 24) ** 2.0, axis=0)
    norm = np.square(read_weight(model.graph.initializers["wd"])).sum(axis=1)
    scale = np.sqrt(np.mean(norm) / np.mean(square))  # the free common factor, σ_w / σ_x
    loss = lambda t: np.sum(t**2 * norm / scale + scale * square / t**2)  # noqa: E731
    best = loss(np.ones(24))
    for _ in range(20):
        assert loss(np.exp(0.1 * RNG.standard_normal(24))) > best


def test_percentile_leaves_the_channels_within_it(build):
    model = block(build)
    before = read_weight(model.graph.initializers["wd"])
    run(model, {"x": normal(2, 9, 16)}, objective="percentile", percentile=50.0)
    after = read_weight(model.graph.initializers["wd"])
    ratio = (after / before).max(axis=1)
    assert np.sum(ratio == 1.0) == 12
    assert np.sum(ratio > 1.0) == 12


def test_a_search_that_is_solved_by_hand(build):
    """Two columns, one of which is 64 times the other in x and 1/64 in w: in 2 bits a step for the
    token, only α with s = (64, 1) makes both exact; any other α rounds one of them to zero."""
    x = np.array([[64.0, 1.0], [-64.0, 1.0], [64.0, -1.0]], np.float32)
    model = build(
        "main (float[3, 2] x) => (float[3, 2] y) { h = MatMul (x, w1)  y = MatMul (h, w2) }",
        w1=np.eye(2, dtype=np.float32), w2=np.array([[1.0, -1.0], [64.0, 64.0]], np.float32),
    )  # fmt: skip
    sites = run(model, {"x": x}, alpha="search", format="int2_channel", activation_bits=2, steps=4)
    assert sites["MatMul_1"].note.startswith("alpha 0.")
    weight = read_weight(model.graph.initializers["w2"])
    np.testing.assert_allclose(np.abs(weight), np.abs(weight[0, 0]), rtol=1e-6)
    assert sites["MatMul_0"].reason == "its scale cannot move: they come from the graph input 'x'"


def test_awq_lowers_the_error_of_rounded_weights(build):
    """The important columns, those of large inputs, are rounded more finely."""
    shapes = {"w1": normal(12, 64), "w2": normal(64, 32)}
    shapes["w1"][:, ::8] *= 20
    text = "main (float[40, 12] x) => (float[40, 32] y) { h = MatMul (x, w1)  a = Relu (h)  y = MatMul (a, w2) }"
    samples = [{"x": normal(40, 12)} for _ in range(4)]
    steps = (
        Clean(),
        SmoothActivations(objective="awq", format="int3_g32"),
        QuantizeWeights(format="int3_g32", exclude=("MatMul_0",)),
    )
    errors = []
    for recipe in (steps[::2], steps):
        model = build(text, opset=21, **shapes)
        with open_session(model) as session:
            exact = session.run(samples[0])["y"]
        done = run_recipe(
            model, Recipe(name="r", summary="", sources=(), steps=recipe), samples=samples
        )
        with open_session(done.model) as session:
            errors.append(np.square(session.run(samples[0])["y"] - exact).sum())
    assert errors[1] < 0.6 * errors[0]


def test_dead_channels_stay(build):
    w1 = normal(6, 16)
    w1[:, 3] = 0
    w2 = normal(16, 4)
    w2[5] = 0
    model = build(
        "main (float[7, 6] x) => (float[7, 4] y) { h = MatMul (x, w1)  y = MatMul (h, w2) }",
        w1=w1,
        w2=w2,
    )
    run(model, {"x": normal(7, 6)})
    after = read_weight(model.graph.initializers["w2"])
    np.testing.assert_array_equal(after[3], w2[3])
    assert np.isfinite(after).all()


def test_convolutions_with_depthwise_ones(build):
    text = "main (float[1, 3, 9, 9] x) => (float[1, 5, 9, 9] y) { h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  r = Relu (h)  d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, wd)  y = Conv (d, w2, b2) }"
    for rule in (
        {},
        {"alpha": "search"},
        {"objective": "gain"},
        {"objective": "awq", "format": "int4"},
    ):
        model = build(
            text, w1=normal(8, 3, 3, 3) * np.exp(RNG.uniform(-2, 2, (8, 1, 1, 1))).astype(np.float32),
            b1=normal(8), wd=normal(8, 1, 3, 3), w2=normal(5, 8, 1, 1), b2=normal(5),
        )  # fmt: skip
        sites = run(model, {"x": normal(1, 3, 9, 9)}, **rule)
        names = [site.name for site in find_sites(model)]
        assert "graph input 'x'" in sites[names[0]].reason
        if rule.get("alpha") == "search":
            assert "without a search: 'Conv_2' works on groups of channels" in sites[names[1]].note
        if rule.get("objective") == "awq":
            assert sites[names[1]].reason == "'Conv_2' works on groups of channels"


def test_named_and_excluded_sites(build):
    sites = run(block(build), {"x": normal(2, 9, 16)}, exclude=("MatMul_2",))
    assert sites["MatMul_1"].reason == "the recipe excludes it (of 'MatMul_2', which shares it)"
    assert sites["MatMul_6"].reason is None
    sites = run(block(build), {"x": normal(2, 9, 16)}, sites=("MatMul_6",))
    assert sites["MatMul_1"].reason.startswith("the recipe does not name it")


def test_a_cache_is_scaled_on_demand_and_the_promise_is_about_the_rest(build):
    text = "main (float[1, 5, 12] x, float[1, 2, 0, 8] pk, float[1, 2, 0, 8] pv) => (float[1, 5, 4] y, float[1, 2, t, 8] nk, float[1, 2, t, 8] nv) { n = SimplifiedLayerNormalization <axis = -1> (x, g)  p = MatMul (n, wp)  o, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 6, kv_num_heads = 2> (p, , , pk, pv, lens, total)  y = MatMul (o, wo) }"
    weights = {
        "g": normal(12),
        "wp": outlying(12, 80),
        "wo": normal(48, 4),
        "lens": np.array([4], np.int32),
        "total": np.array([5], np.int32),
    }
    empty = np.zeros((1, 2, 0, 8), np.float32)
    samples = [{"x": normal(1, 5, 12), "pk": empty, "pv": empty}]
    recipe = Recipe(
        name="r", summary="", sources=(), steps=(Clean(), SmoothActivations(through_cache=True))
    )
    done = run_recipe(build(text, **weights), recipe, samples=samples)
    assert done.steps[1].report.moved_outputs == ("nv",)
    assert done.steps[1].kept.sqnr_db > 80
    with pytest.raises(BrokenPromise):
        step = recipe.steps[1]
        model = build(text, **weights)
        keeper = PromiseKeeper(model, samples)
        step.call(model, Context(samples=samples))
        keeper.check("smooth_activations", step.promise, model)


def test_what_makes_no_sense_is_refused(build):
    for options, sentence in (
        ({"alpha": 1.5}, "alpha is 1.5: it is an exponent between 0 and 1"),
        ({"alpha": 0.5, "objective": "gain"}, "objective='gain' has none: leave it out"),
        ({"percentile": 0.0}, "percentile is 0.0"),
        ({"activation_bits": 1}, "activation_bits is 1: give 2 to 16, or 0"),
        ({"rows": 0}, "must be at least 1"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            SmoothActivations(**options)
    model = block(build)
    with pytest.raises(CalibrationError, match="run without data: give calibration samples"):
        SmoothActivations().call(model, Context())
    mark_stage(model, Stage.QUANTIZED)
    with pytest.raises(UnsupportedGraph, match="this model is already QUANTIZED"):
        SmoothActivations().requires(model)


def test_activations_that_are_not_finite_are_named(build):
    model = build(
        "main (float[7, 6] x) => (float[7, 4] y) { h = MatMul (x, w1)  y = MatMul (h, w2) }",
        w1=normal(6, 8),
        w2=normal(8, 4),
    )
    x = np.full((7, 6), 3e38, np.float32)
    with pytest.raises(CalibrationError, match="Activation 'h' holds NaN or infinity"):
        SmoothActivations().call(model, Context(samples=[{"x": x}]))


@pytest.mark.parametrize(
    "rule", [{}, {"objective": "gain"}, {"objective": "awq", "format": "int4"}]
)
def test_a_shift_puts_every_channel_around_zero(build, rule):
    model = build(
        "main (float[2, 9, 16] x) => (float[2, 9, 8] y, float[2, 9, 5] z) { n = LayerNormalization <axis = -1> (x, g, b)  h = MatMul (n, w1)  k = Add (h, b1)  y = Gelu (k)  z = MatMul (n, w2) }",
        opset=20, g=normal(16), b=outlying(16), w1=normal(16, 8), b1=normal(8), w2=normal(16, 5),
    )  # fmt: skip
    samples = [{"x": normal(2, 9, 16)} for _ in range(3)]
    sites = run(model, *samples, shift=True, **rule)
    assert "shifted to the middle of every channel" in sites["MatMul_1"].note
    with open_session(model, extra_outputs=["n"]) as session:
        n = np.concatenate([session.run(sample)["n"].reshape(-1, 16) for sample in samples])
    reach = n.max(axis=0) - n.min(axis=0)
    # What is left is rounding, of the bias and of the values: relative to the values before.
    np.testing.assert_allclose((n.max(axis=0) + n.min(axis=0)) / reach, 0, atol=1e-3)
    assert run(model, *samples, modified=rule.get("objective") == "awq", shift=True, **rule)


def test_what_has_no_bias_to_shift_says_so(build):
    model = build(
        "main (float[2, 9, 16] x) => (float[2, 9, 8] y) { n = SimplifiedLayerNormalization <axis = -1> (x, g)  h = MatMul (n, w1)  r = Relu (h)  y = MatMul (r, w2) }",
        g=outlying(16), w1=outlying(16, 24), w2=normal(24, 8),
    )  # fmt: skip
    sites = run(model, {"x": normal(2, 9, 16)}, shift=True)
    assert (
        "not shifted: SimplifiedLayerNormalization 'SimplifiedLayerNormalization_0' has no bias"
        in sites["MatMul_1"].note
    )
    assert (
        "not shifted: Relu 'Relu_2' is on the way, and f(x - z) is not f(x) - z"
        in sites["MatMul_3"].note
    )


def test_convolutions_are_shifted_where_they_do_not_pad(build):
    text = "main (float[1, 3, 9, 9] x) => (float[1, 5, a, b] y) { h = Conv (x, w1, b1)  i = Identity (h)  y = Conv <PADS> (i, w2) }"
    for pads, shifted in (("dilations = [1, 1]", True), ("pads = [1, 1, 1, 1]", False)):
        model = build(
            text.replace("PADS", pads), w1=normal(8, 3, 3, 3), b1=outlying(8), w2=normal(5, 8, 3, 3)
        )
        note = run(model, {"x": normal(1, 3, 9, 9)}, shift=True)["Conv_2"].note
        assert ("shifted to the middle" in note) is shifted
        assert ("pads its input with zeros" in note) is not shifted


def post_norm(build):
    return build(
        "main (float[2, 9, 16] x) => (float[2, 9, 8] y) { n = LayerNormalization <axis = -1> (x, g, b)  h = MatMul (n, w1)  a = Gelu (h)  k = MatMul (a, w2)  r = Add (n, k)  m = LayerNormalization <axis = -1> (r, g2, b2)  y = MatMul (m, w3) }",
        opset=20, g=outlying(16), b=normal(16), w1=normal(16, 24), w2=normal(24, 16), g2=outlying(16), b2=normal(16), w3=normal(16, 8),
    )  # fmt: skip


@pytest.mark.parametrize("rule", [{}, {"shift": True}, {"objective": "awq", "format": "int3_g16"}])
def test_a_shortcut_gets_its_activation_back(build, kinds, rule):
    model = post_norm(build)
    samples = [{"x": normal(2, 9, 16)} for _ in range(3)]
    sites = run(model, *samples, shortcuts=False, **rule)
    assert "Add 'Add_4' joins them with another activation" in sites["MatMul_1"].reason
    before = max_to_rms(model, "n", *samples)
    sites = run(model, *samples, shortcuts=True, **rule)
    assert sites["MatMul_1"].reason is None
    assert kinds(model).count("Mul") == 1
    if "awq" not in str(rule):
        assert max_to_rms(model, "n", *samples) < before
        run(model, *samples, modified=False, shortcuts=True, **rule)
        assert kinds(model).count("Mul") == 1


def test_a_shortcut_whose_factors_are_not_used_stays_as_it_was(build, kinds):
    model = post_norm(build)
    before = kinds(model)
    run(model, {"x": normal(2, 9, 16)}, modified=False, shortcuts=True, exclude=("*",))
    assert kinds(model) == before
    assert not [name for name in model.graph.initializers if "shortcut" in name]
