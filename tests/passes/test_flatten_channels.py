# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Large channels are read several times, and the function stays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import CalibrationError, RecipeError, UnsupportedGraph
from onnxq.graph import find_sites
from onnxq.graph.check import check_graph
from onnxq.graph.stage import Stage, mark_stage
from onnxq.passes.base import Context
from onnxq.passes.flatten_channels import FlattenChannels, copies_of
from onnxq.passes.migration import find_migrations, scale_channels
from onnxq.passes.promise import PromiseKeeper
from onnxq.runtime import open_session

RNG = np.random.default_rng(43)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def outlying(*shape):
    array = normal(*shape)
    array[..., 3] *= 20
    array[..., 7] *= 9
    return array


def run(model, *samples, modified=True, **options):
    step = FlattenChannels(**options)
    keeper = PromiseKeeper(model, samples)
    report = step.call(model, Context(samples=samples))
    check_graph(model)
    keeper.check(step.key(), step.promise, model)
    assert report.modified is modified
    return {site.site: site for site in report.sites}


def block(build):
    return build(
        "main (float[2, 9, 32] x) => (float[2, 9, 8] y, float[2, 9, 5] z) { n = LayerNormalization <axis = -1> (x, g, b)  p = MatMul (n, wg)  z = MatMul (n, w2)  r = Relu (p)  f = Reshape (r, flat)  k = Gemm <transB = 1> (f, wd, bd)  y = Reshape (k, back) }",
        opset=17, g=outlying(32), b=normal(32), wg=outlying(32, 24), w2=normal(32, 5), wd=normal(8, 24), bd=normal(8),
        flat=np.array([-1, 24]), back=np.array([2, 9, 8]),
    )  # fmt: skip


def peaks(model, name, sample):
    with open_session(model, extra_outputs=[name]) as session:
        values = session.run(sample)[name]
    return np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)


def test_the_range_falls_to_that_of_the_other_channels(build):
    model = block(build)
    sample = {"x": normal(2, 9, 32)}
    before = np.sort(peaks(model, "n", sample))
    sites = run(model, sample, percentile=90.0, growth=2.0, multiple=8)
    assert sites["MatMul_1"].note == sites["MatMul_2"].note
    (gather,) = [
        node for node in model.graph if node.op_type == "Gather" and node.inputs[0].name == "n"
    ]
    after = peaks(model, gather.outputs[0].name, sample)
    limit = before[before <= np.percentile(before, 90.0, method="lower")].max()
    assert after.max() <= limit * (1 + 1e-5)
    assert before[-1] > 3 * limit
    assert len(after) % 8 == 0
    assert sites["MatMul_1"].note == f"32 channels read as {len(after)}"
    reader = next(site for site in find_sites(model) if site.name == "Gemm_5")
    assert reader.shape[0] == 8
    assert reader.shape[1] > 24
    again = run(model, sample, modified=False, percentile=90.0, growth=2.0, multiple=8)
    assert all(
        site.reason.startswith("its channels are repeated already") for site in again.values()
    )


def test_scales_still_move_through_it(build):
    """Copies of a channel share their factor."""
    model = block(build)
    sample = {"x": normal(2, 9, 32)}
    run(model, sample, percentile=90.0, growth=2.0)
    keeper = PromiseKeeper(model, [sample])
    found = find_migrations(model).found
    assert [migration.count for migration in found] == [32, 24]
    for migration in found:
        scale_channels(model, migration, np.exp(RNG.uniform(-1, 1, migration.count)))
    keeper.check("scale_channels", FlattenChannels.promise, model)


def test_copies_solved_by_hand():
    found = copies_of(np.array([1.0, 1.0, 3.5, 1.0]), 75.0, growth=1.0, multiple=1)
    np.testing.assert_array_equal(found, [1, 1, 4, 1])
    filled = copies_of(np.array([1.0, 1.0, 3.5, 1.0]), 75.0, growth=1.0, multiple=8)
    np.testing.assert_array_equal(filled, [2, 1, 4, 1])
    assert copies_of(np.ones(4), 75.0, growth=1.0, multiple=16) is None
    assert copies_of(np.zeros(4), 75.0, growth=1.0, multiple=16) is None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 1e4), min_size=2, max_size=50),
    st.floats(1, 99),
    st.floats(0.1, 2),
    st.integers(1, 16),
)
def test_copies_stay_within_their_bounds(numbers, percentile, growth, multiple):
    array = np.array(numbers)
    counts = copies_of(array, percentile, growth=growth, multiple=multiple)
    if counts is None:
        return
    assert counts.min() >= 1
    assert counts.sum() % multiple == 0
    assert counts.sum() - len(array) < max(1, int(growth * len(array))) + multiple
    assert (array / counts).max() <= array.max()


def test_what_is_left_says_why(build):
    model = build(
        "main (float[1, 3, 9, 9] x) => (float[1, 5, 9, 9] y) { h = Conv (x, w1)  y = Conv (h, w2) }",
        w1=normal(8, 3, 1, 1), w2=normal(5, 8, 1, 1),
    )  # fmt: skip
    sites = run(model, {"x": normal(1, 3, 9, 9)}, modified=False)
    assert (
        sites["Conv_1"].reason
        == "Conv cannot take repeated channels: only MatMul and Gemm from the left"
    )
    model = build(
        "main (float[7, 6] x) => (float[7, 4] y) { h = MatMul (x, w1)  t = Transpose (w2)  y = MatMul (h, t) }",
        w1=outlying(6, 8),
        w2=normal(4, 8),
    )
    assert "comes through Transpose: fold constants first" in next(
        r.reason
        for name, r in run(model, {"x": normal(7, 6)}, modified=False).items()
        if "Transpose" in (r.reason or "")
    )
    for options, sentence in (
        ({"percentile": 100.0}, "percentile is 100.0"),
        ({"growth": 0.0}, "growth must be above 0"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            FlattenChannels(**options)
    with pytest.raises(CalibrationError, match="was run without: give calibration samples"):
        FlattenChannels().call(model, Context())
    mark_stage(model, Stage.CALIBRATED)
    with pytest.raises(UnsupportedGraph, match="flatten_channels changes the activations"):
        FlattenChannels().requires(model)
