import numpy as np
import onnx_ir as ir
import pytest

from onnxq.calibration import FirstTokens, hessian, unreachable_sites, walk_sites
from onnxq.calibration.hessian import Moments
from onnxq.calibration.readings import reading_of
from onnxq.calibration.segment_walk import SegmentWalk
from onnxq.errors import CalibrationError
from onnxq.graph import clone_model, find_sites, read_weight, replace_weight
from onnxq.graph.orientation import from_rows, to_rows
from onnxq.runtime import open_session
from onnxq.runtime.memory_settings import MemorySettings

FLOWS = ("sequential", "one_shot", "asymmetric")
CUTS = ("sites", "blocks", "whole")
TIGHT = MemorySettings(activations=0, single=True, hessians_on_disk=True)
TALL = f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[1, n, 23] x) => (float[1, n, 2] y) <float[23, 2] w = {{{", ".join("1" * 46)}}}>
{{ y = MatMul (x, w) }}"""


def walk(model, samples, change=None, **options):
    """Statistics by site name in the order of the calls; ``change`` gives new rows."""
    found = {}

    def solve(site, statistics):
        found[site.name] = statistics
        return None if change is None else change(site)

    report = walk_sites(model, samples, find_sites(model), solve, **options)
    return found, report


def rough(site):
    """A weight far from the float one: rounded to quarters."""
    rows = to_rows(site, read_weight(site.weight))
    return np.round(rows * 4) / 4


def reachable(model):
    sites = find_sites(model)
    reasons = unreachable_sites(model, sites)
    return [site for site in sites if site.name not in reasons]


def direct(model, samples, float_model=None):
    """Statistics of every site from a run of the whole model."""
    sites = reachable(model)
    moments = {
        site.name: Moments(site.name, reading_of(site), drift=True, mean=True, float_mean=True)
        for site in sites
    }
    names = dict.fromkeys(site.input.name for site in sites)
    inner = [name for name in names if name not in {v.name for v in model.graph.inputs}]
    with (
        open_session(model, extra_outputs=inner) as session,
        open_session(float_model or model, extra_outputs=inner) as float_session,
    ):
        for index, sample in enumerate(samples):
            values = {**sample, **session.run(sample, inner)}
            twins = {**sample, **float_session.run(sample, inner)}
            for site in sites:
                name = site.input.name
                moments[site.name].add(index, values[name], twins[name], None)
    return {name: moment.result() for name, moment in moments.items()}


def edited(model, changes):
    """A copy of the model in which each site of ``changes`` has a weight of its own."""
    copy = clone_model(model)
    for site in find_sites(copy):
        if site.name in changes:
            array = from_rows(site, changes[site.name])
            replace_weight(
                site.weight, shape=array.shape, dtype=ir.DataType.FLOAT, compute=lambda a=array: a
            )
    return copy


def check(found, expected, fields=("hessian", "mean"), atol=1e-5):
    """Equal up to float32 rounding, which a few layers carry on: relative to the largest entry."""
    assert list(found) == list(expected)
    for name, groups in expected.items():
        assert len(found[name]) == len(groups)
        for here, there in zip(found[name], groups, strict=True):
            for field in fields:
                exact = getattr(there, field)
                scale = max(np.abs(exact).max(), np.abs(there.hessian).max() * 1e-2)
                np.testing.assert_allclose(
                    getattr(here, field), exact, atol=atol * scale, err_msg=f"{name} {field}"
                )


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("flow", FLOWS)
def test_unchanged_weights_give_the_statistics_of_the_model(network, flow, cut):
    model, samples = network
    found, report = walk(model, samples, flow=flow, cut=cut, need=("hessian", "mean"))
    check(found, direct(model, samples))
    assert report.samples == len(samples)
    same, _ = walk(model, samples, change=lambda s: to_rows(s, read_weight(s.weight)), flow=flow)
    check(same, found, ("hessian",))


@pytest.mark.parametrize("kind", ["residual", "cnn", "encoder"])
def test_statistics_are_those_of_the_model_quantized_up_to_the_site(make, kind):
    model, samples = make(kind)
    found, _ = walk(
        model, samples, change=rough, flow="asymmetric", need=("hessian", "mean", "drift")
    )
    changes = {site.name: rough(site) for site in reachable(model)}
    expected = direct(edited(model, changes), samples, model)
    check(found, expected, ("hessian", "mean", "float_mean", "drift"))
    assert np.abs(expected[list(expected)[-1]][0].drift).max() > 1e-2  # there is a drift to see
    means, _ = walk(model, samples, change=rough, flow="asymmetric", need=("mean",))
    check(means, expected, ("hessian", "mean", "float_mean"))
    assert all(group.drift is None for groups in means.values() for group in groups)
    alone, _ = walk(model, samples, change=rough, flow="sequential", need=("mean",))
    assert all(group.float_mean is None for groups in alone.values() for group in groups)
    check(alone, expected, ("hessian",))
    untouched, _ = walk(model, samples, change=rough, flow="one_shot")
    check(untouched, direct(model, samples), ("hessian",))


def test_a_shared_weight_changes_for_its_site_only(make):
    model, samples = make("decoder")
    sites = [site for site in reachable(model) if site.name != "logits"]
    found = {}

    def solve(site, statistics):
        found[site.name] = statistics
        return rough(site)

    walk_sites(model, samples, reachable(model), solve)
    changes = {site.name: rough(site) for site in sites}
    expected = direct(edited(model, changes), samples)
    check(found, expected, ("hessian",))


def test_blocks_are_solved_on_their_own_float_weights(make):
    model, samples = make("decoder")
    found, report = walk(
        model, samples, change=rough, cut="blocks", flow="asymmetric", need=("drift", "mean")
    )
    assert report.segments == 3 and not report.notes  # the embedding, and two layers
    first = {s.name: rough(s) for s in reachable(model) if s.name.endswith("0")}
    blocks = direct(edited(model, first), samples, model)
    begin = direct(model, samples)
    expected = {name: (begin if name.endswith("0") else blocks)[name] for name in blocks}
    check(found, expected, ("hessian", "mean", "float_mean", "drift"))


def test_cuts_at_names(make):
    model, samples = make("residual")
    found, report = walk(model, samples, change=rough, cut=["r", "y"])
    assert report.segments == 3
    first = {name: rough(s) for s in reachable(model) if (name := s.name) in ("q", "k", "o")}
    second = {s.name: rough(s) for s in reachable(model) if s.name in ("q", "k", "o", "u", "d")}
    expected = direct(model, samples)
    after, last = (direct(edited(model, c), samples) for c in (first, second))
    expected.update({"u": after["u"], "d": after["d"], "late": last["late"], "out": last["out"]})
    check(found, expected, ("hessian",))
    with pytest.raises(CalibrationError, match="computes no value named 'nowhere', so it cannot"):
        walk(model, samples, cut=["nowhere"])
    with pytest.raises(CalibrationError, match="'layers' is no way to cut: say 'sites'"):
        walk(model, samples, cut="layers")


def test_readers_of_one_activation_get_one_object(make):
    model, samples = make("residual")
    found, report = walk(model, samples)
    assert found["q"] is found["k"]
    assert found["late"][0] is found["q"][0]  # kept until its last reader, far behind
    assert found["o"] is not found["q"]
    assert list(found) == ["q", "k", "o", "u", "d", "late", "out"]
    # One cut before each of o, u, d and the last site; late reads x, which is alive all along.
    assert report.segments == 5


def test_every_node_runs_once_for_a_sample(make, monkeypatch):
    from onnxq.calibration import segment_walk

    model, samples = make("decoder")
    ran = []
    opening = segment_walk.open_segment

    def counted(part, boundary, outputs, replaced, threads):
        ran.append([value.name for value in outputs])
        return opening(part, boundary, outputs, replaced, threads)

    monkeypatch.setattr(segment_walk, "open_segment", counted)
    walk(model, samples)
    outputs = [name for names in ran for name in names]
    assert len(outputs) == len(set(outputs))
    assert not any("present" in name or name == "logits" for name in outputs)


def test_a_segment_lets_go_of_what_it_read(make, monkeypatch):
    model, samples = make("residual")
    alive = []
    advance = SegmentWalk._advance

    def watched(self, segment):
        advance(self, segment)
        alive.append(set(self._now[0]))

    monkeypatch.setattr(SegmentWalk, "_advance", watched)
    walk(model, samples)
    assert alive == [{"x", "a"}, {"x", "r"}, {"x", "r", "h"}, {"s"}]


@pytest.mark.parametrize("flow", ["sequential", "asymmetric"])
def test_spilling_and_small_batches_change_nothing(network, flow):
    model, samples = network
    need = ("hessian", "mean") + (("drift",) if flow == "asymmetric" else ())
    for cut in ("sites", "whole"):
        options = {"flow": flow, "cut": cut, "need": need, "change": rough}
        roomy, _ = walk(model, samples, **options)
        tight, _ = walk(model, samples, memory=TIGHT, **options)
        for name, groups in roomy.items():
            for here, there in zip(groups, tight[name], strict=True):
                for what in need:
                    np.testing.assert_array_equal(getattr(here, what), getattr(there, what))


def test_panels_of_a_large_hessian_are_the_product(monkeypatch):
    monkeypatch.setattr(hessian, "PANEL", 5)
    rng = np.random.default_rng(0)
    x, twin = rng.standard_normal((2, 64, 23), np.float32)
    model = ir.from_onnx_text(TALL)
    reading = reading_of(find_sites(model)[0])
    moments = Moments("x", reading, drift=True, mean=False, float_mean=False, rows=24, on_disk=True)
    moments.add(0, x[None], twin[None], None)
    found = moments.result()[0]
    x, twin = x.astype(np.float64), twin.astype(np.float64)
    # float32 products of 24 rows: 24 u Σ|x_i x_j| at most, u = 2⁻²⁴
    bound = 24 * 2.0**-24 * (np.abs(x).T @ np.abs(x)).max() / 64
    np.testing.assert_allclose(found.hessian, x.T @ x / 64, rtol=0, atol=bound)
    np.testing.assert_allclose(found.drift, (twin - x).T @ x / 64, rtol=0, atol=4 * bound)
    below = np.tril_indices(23, -5)
    assert (found.hessian.T[below] == found.hessian[below]).all()


def test_the_same_bytes_with_one_thread_and_two(network):
    model, samples = network
    one, _ = walk(model, samples, change=rough, threads=1)
    two, _ = walk(model, samples, change=rough, threads=2)
    for name, groups in one.items():
        for here, there in zip(groups, two[name], strict=True):
            np.testing.assert_array_equal(here.hessian, there.hessian)


def test_the_model_is_left_as_it_is(network):
    model, samples = network
    before = ir.to_proto(model).SerializeToString()
    walk(model, samples, change=rough)
    assert ir.to_proto(model).SerializeToString() == before


def test_some_sites_only_and_the_walk_ends_with_them(make):
    model, samples = make("decoder")
    site = next(s for s in find_sites(model) if s.name == "o0")
    found = {}
    report = walk_sites(model, samples, [site], lambda s, h: found.setdefault(s.name, h) and None)
    assert list(found) == ["o0"]
    assert report.segments == 2
    check(found, {"o0": direct(model, samples)["o0"]}, ("hessian",))


def test_progress_is_told_for_each_segment(make):
    calls = []
    model, samples = make("residual")
    walk(model, samples, progress=lambda *call: calls.append(call))
    assert calls == [
        ("q", 0, 5),
        ("o", 1, 5),
        ("u", 2, 5),
        ("d", 3, 5),
        ("out", 4, 5),
        ("out", 5, 5),
    ]


def test_nan_names_the_value_and_the_sample(make):
    model, samples = make("residual")
    samples[2]["x"] = samples[2]["x"] * np.float32(1e20)
    with pytest.raises(CalibrationError, match=r"Activation 'x' holds .* on sample 2: drop that"):
        walk(model, samples)


def test_a_weight_of_the_wrong_shape_is_refused(make):
    model, samples = make("residual")
    with pytest.raises(
        CalibrationError, match=r"gave site 'q' a weight of shape \[3, 8\], and fin"
    ):
        walk(model, samples, change=lambda site: np.zeros((3, 8), np.float32))


def test_wrong_wishes_are_refused(make):
    model, samples = make("residual")
    with pytest.raises(CalibrationError, match="The drift is the difference between two networks"):
        walk(model, samples, need=("drift",))
    with pytest.raises(CalibrationError, match="There is no statistic 'median'"):
        walk(model, samples, need=("median",))
    with pytest.raises(CalibrationError, match="There is no flow 'backwards'"):
        walk(model, samples, flow="backwards")


def test_networks_without_blocks_are_cut_at_sites(make):
    model, samples = make("cnn")
    _, report = walk(model, samples, change=rough, cut="blocks")
    assert report.notes == (
        "no attention or feed-forward block was found: cut at every site instead",
    )
    assert report.segments == 4


def test_sites_out_of_reach_have_a_reason():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]>
    g (bool c, float[N,4] x, int64[M] ids) => (float[N,4] y, float[M,4] e, float[2,4] f)
    <float[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float[2,4] k = {1,2,3,4,5,6,7,8}>
    {
      inside = If (c) <
        then_branch = yes () => (float[N,4] a) { a = MatMul(x, w) },
        else_branch = no () => (float[N,4] b) { b = Neg(x) }
      >
      y = MatMul(inside, w)
      e = Gather(w, ids)
      shape = Shape(k)
      z = ConstantOfShape(shape)
      f = MatMul(z, w)
    }""")
    for node in model.graph:
        node.name = node.outputs[0].name
    samples = [{"c": np.array(True), "x": np.eye(4, dtype=np.float32), "ids": np.array([1])}]
    found, report = walk(model, samples)
    assert list(found) == ["y"]
    reasons = {name.rpartition("/")[2]: reason for name, reason in report.unreachable.items()}
    assert reasons["e"].startswith("it looks up rows of its weight")
    assert reasons["f"].startswith("what it multiplies does not depend on the samples")
    assert any("cannot be observed: inline" in reason for reason in reasons.values())
    np.testing.assert_allclose(found["y"][0].hessian, np.eye(4) / 4)


def test_token_weights_without_tokens_are_refused_not_ignored():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "main (float[n, 4] x) => (float[n, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}>"
        "{ y = MatMul(x, w) }"
    )
    samples = [{"x": np.ones((3, 4), np.float32)}]
    with pytest.raises(CalibrationError, match=r"FirstTokens weighs tokens, and .* hold none"):
        walk_sites(
            model,
            samples,
            find_sites(model),
            lambda site, statistics: None,
            token_weights=FirstTokens(count=2),
        )
