"""What one step for all tokens costs: against float64, where sums hide it, and who acts on it."""

import dataclasses

import numpy as np
import pytest

from onnxq.errors import RecipeError, UnsupportedGraph
from onnxq.graph import find_sites
from onnxq.passes.activation_grid import Grid
from onnxq.passes.base import Context
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.dynamic_int8 import DynamicInt8
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.token_noise import TokenNoise, loud_reasons, token_noise
from onnxq.runtime import open_session

WIDTH = 32


def two_layers(build):
    """One input that two layers read, and one that a third reads."""
    draw = np.random.default_rng(1)
    weights = {name: draw.standard_normal((WIDTH, 16)).astype(np.float32) for name in "abc"}
    text = (
        f"main (float[n, s, {WIDTH}] x, float[n, s, {WIDTH}] t) => (float[n, s, 16] y, "
        "float[n, s, 16] z, float[n, s, 16] u) "
        "{ y = MatMul(x, a) z = MatMul(x, b) u = MatMul(t, c) }"
    )
    return build(text, **weights), weights


def tokens(loud, count=40, seed=2):
    """Samples whose input ``x`` holds one token ``loud`` times as large as the others."""
    draw = np.random.default_rng(seed)
    given = []
    for _ in range(3):
        x, t = draw.standard_normal((2, 1, count, WIDTH)).astype(np.float32)
        x[0, 0] *= loud
        given.append({"x": x, "t": t})
    return given


def grid_for(rows):
    """Symmetric, 8 bits, of the largest magnitude."""
    scale = float(np.float32(np.abs(rows).max() / 127))
    return Grid(scale=scale, zero=0, lowest=-127, highest=127)


def db(noise):
    return -10 * np.log10(noise)


def ratios(rows, rounded, weight):
    """‖(x̂ − x) W‖² / ‖x W‖² by row, in float64."""
    rows, rounded, weight = (np.asarray(a, np.float64) for a in (rows, rounded, weight))
    return np.sum(((rounded - rows) @ weight) ** 2, 1) / np.sum((rows @ weight) ** 2, 1)


def test_noise_is_the_mean_over_tokens_of_float64(build):
    model, weights = two_layers(build)
    samples = tokens(loud=50.0)
    every = {name: np.concatenate([s[name][0] for s in samples]) for name in "xt"}
    grids = {site: grid_for(every[site.input.name]) for site in find_sites(model)}
    found = token_noise(model, grids, samples)
    assert set(found) == set(grids)
    for site in grids:
        rows, weight = every[site.input.name], weights[site.node.inputs[1].name]
        steps = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
        static = ratios(rows, grids[site].rounded(rows), weight).mean()
        token = ratios(rows, np.rint(rows / steps) * steps, weight).mean()
        # Codes are the same; sums of 32 float32 products are off by less than 32 ulps, squared.
        assert found[site].static == pytest.approx(static, rel=64 * 2.0**-23)
        assert found[site].token == pytest.approx(token, rel=64 * 2.0**-23)


def test_a_loud_token_shows_in_the_mean_and_not_in_the_sums(build):
    model, weights = two_layers(build)
    samples = tokens(loud=100.0)
    rows = np.concatenate([s["x"][0] for s in samples])
    site = next(s for s in find_sites(model) if s.node.inputs[1].name == "a")
    grid = grid_for(rows)
    exact = rows.astype(np.float64) @ weights["a"]
    off = (grid.rounded(rows).astype(np.float64) - rows) @ weights["a"]
    found = token_noise(model, {site: grid}, samples)[site]
    assert db(np.sum(off**2) / np.sum(exact**2)) > 25
    assert db(found.static) < 5
    assert db(found.token) > 35


def test_rows_of_zeros_are_no_tokens(build):
    model, _ = two_layers(build)
    samples = tokens(loud=1.0)
    grids = {site: grid_for(samples[0]["x"]) for site in find_sites(model)}
    before = token_noise(model, grids, samples)
    padded = [
        {k: np.concatenate([v, np.zeros_like(v)], axis=1) for k, v in s.items()} for s in samples
    ]
    after = token_noise(model, grids, padded)
    assert {s: pytest.approx(dataclasses.astuple(n)) for s, n in before.items()} == {
        s: dataclasses.astuple(n) for s, n in after.items()
    }
    silent = [{k: np.zeros_like(v) for k, v in s.items()} for s in samples]
    assert token_noise(model, grids, silent) == {}


def test_convolutions_have_no_tokens(build):
    kernel = np.ones((4, 3, 1, 1), np.float32)
    text = "main (float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y) { y = Conv(x, k) }"
    model = build(text, k=kernel)
    grid = Grid(scale=0.1, zero=0, lowest=-127, highest=127)
    samples = [{"x": np.ones((1, 3, 8, 8), np.float32)}]
    assert token_noise(model, dict.fromkeys(find_sites(model), grid), samples) == {}


def test_the_sentence_says_both_and_what_is_asked_for(build):
    model, _ = two_layers(build)
    site = find_sites(model)[0]
    noise = {site: TokenNoise(static=0.01, token=0.0001)}
    assert loud_reasons(noise, 20.0) == {}
    assert loud_reasons(noise, 20.5) == {
        site.name: "one step for all tokens would leave 20.0 dB of its product, mean over tokens, "
        "a step for each 40.0 dB, and 20.5 dB are to be kept"
    }
    assert site.name in loud_reasons({site: TokenNoise(static=np.nan, token=0.0)}, 1.0)


def by_weight(model, report):
    names = {site.name: site.node.inputs[1].name for site in find_sites(model)}
    return {names.get(row.site, row.site): row for row in report.sites}


def test_loud_sites_get_a_scale_for_each_token(build):
    model, weights = two_layers(build)
    samples = tokens(loud=100.0)
    step = QuantizeActivations(granularity="tensor", min_token_db=25)
    rows = by_weight(model, step.call(model, Context(samples=samples)))
    assert {name: row.format for name, row in rows.items()} == {
        "a": "a8_token",
        "b": "a8_token",
        "c": "a8_tensor",
    }
    assert rows["a"].note.startswith("one step for all tokens would leave ")
    assert "25 dB are to be kept: so each token has a scale; simulated" in rows["a"].note
    feeds = tokens(loud=100.0, seed=3)[0]
    with open_session(model) as session:
        given = session.run(feeds)
    exact = feeds["x"][0].astype(np.float64) @ weights["a"]
    noise = np.sum((given["y"][0] - exact) ** 2, 1) / np.sum(exact**2, 1)
    assert db(noise.mean()) > 35


@pytest.mark.parametrize(("loud", "wanted"), [(100.0, 0), (1.0, 25)])
def test_without_a_bound_or_a_loud_token_all_share_one(build, loud, wanted):
    model, _ = two_layers(build)
    step = QuantizeActivations(granularity="tensor", min_token_db=wanted)
    report = step.call(model, Context(samples=tokens(loud)))
    assert {row.format for row in report.changed} == {"a8_tensor"}


def test_a_scale_for_each_token_has_nothing_to_measure():
    with pytest.raises(RecipeError, match="leave it out, or set granularity=tensor"):
        QuantizeActivations(min_token_db=20)


def run_static(model, samples, **options):
    Calibrate().call(model, Context(samples=samples))
    step = InsertQdq(min_output_db=0, **options)
    step.requires(model)
    return step.call(model, Context(samples=samples))


def test_what_static_int8_leaves_becomes_dynamic(build):
    model, weights = two_layers(build)
    samples = tokens(loud=100.0)
    report = run_static(model, samples, min_token_db=25)
    assert [bool(row.reason) for row in report.sites] == [True, True, False]
    assert "25 dB are to be kept" in report.left[0].reason
    behind = DynamicInt8(granularity="token", rest=True)
    behind.requires(model)
    rest = behind.call(model, Context())
    assert {row.site for row in rest.changed} == {row.site for row in report.left}
    assert "already quantized" in rest.left[0].reason
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMulInteger") == 2
    assert kinds.count("DequantizeLinear") == 2  # one input and its weight
    feeds = tokens(loud=100.0, seed=3)[0]
    with open_session(model) as session:
        given = session.run(feeds)
    for output, value, name in (("y", "x", "a"), ("z", "x", "b"), ("u", "t", "c")):
        exact = feeds[value][0].astype(np.float64) @ weights[name]
        noise = np.sum((given[output][0] - exact) ** 2, 1) / np.sum(exact**2, 1)
        assert db(noise.mean()) > 30, output


def test_nothing_left_is_right_for_the_rest_and_else_a_mistake(build):
    model, _ = two_layers(build)
    run_static(model, tokens(loud=1.0))
    with pytest.raises(UnsupportedGraph, match="no float weight is left"):
        DynamicInt8(granularity="token").requires(model)
    behind = DynamicInt8(granularity="token", rest=True)
    behind.requires(model)
    report = behind.call(model, Context())
    assert not report.modified
    assert len(report.left) == 3
