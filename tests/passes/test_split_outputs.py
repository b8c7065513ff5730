"""Layers by what their output channels matter: the same function, the right channels, reasons."""

import numpy as np
import pytest

from onnxq.calibration.received_attention import ReceivedAttention
from onnxq.errors import RecipeError
from onnxq.graph import find_sites
from onnxq.graph.check import check_graph
from onnxq.graph.topology import Topology
from onnxq.passes.base import Context
from onnxq.passes.promise import PromiseKeeper
from onnxq.passes.split_outputs import SplitOutputs

pytest.importorskip("torch")

RNG = np.random.default_rng(7)
SCALED = """main (float[n, s, 12] x) => (float[n, s, 192] y)
    { h = MatMul(x, w) y = Mul(h, factors) }"""
GEMM = """main (float[n, 12] x) => (float[n, 192] y)
    { h = Gemm<alpha = 0.5, transB = 1>(x, w, bias) y = Mul(h, factors) }"""


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def factors(loud):
    """10 for the channels that are loud, 1 for the others: f_i is the square of it."""
    found = np.ones(192, np.float32)
    found[loud] = 10
    return found


def run(model, step, *samples):
    keeper = PromiseKeeper(model, samples)
    report = step.call(model, Context(samples=samples))
    check_graph(model)
    keeper.check(step.key(), step.promise, model)
    return report


@pytest.mark.parametrize("text", [SCALED, GEMM])
def test_channels_that_matter_are_a_layer_of_their_own(build, text):
    loud = np.sort(RNG.permutation(192)[:96])
    w, is_gemm = normal(12, 192), text is GEMM
    more = {"bias": normal(192)} if is_gemm else {}
    m = build(text, w=np.ascontiguousarray(w.T) if is_gemm else w, factors=factors(loud), **more)
    m.graph[0].name = "up"
    samples = [{"x": normal(*((4,) if is_gemm else (2, 3)), 12)} for _ in range(3)]
    report = run(m, SplitOutputs(exclude=()), *samples)
    assert report.changed[0].note.startswith("now up_part1, up_part2; the half that matters more")
    sites = {site.name: site for site in find_sites(m)}
    stored = {name: site.weight.const_value.numpy() for name, site in sites.items()}
    first = stored["up_part1"].T if is_gemm else stored["up_part1"]
    np.testing.assert_array_equal(first, w[:, loud])
    assert "w" not in m.graph.initializers and len(sites) == 2
    again = SplitOutputs(exclude=()).call(m, Context(samples=samples))
    assert [site.reason for site in again.left] == [
        "it is part 1/2 already",
        "it is part 2/2 already",
    ]


@pytest.mark.parametrize(("parts", "sizes"), [(3, [64, 64, 64]), (4, [64, 32, 32, 64]), (9, 6)])
def test_parts_have_whole_panels_of_channels_in_order_of_what_they_matter(build, parts, sizes):
    loud = np.arange(192)
    m = build(SCALED, w=np.ones((12, 192), np.float32), factors=1.05 ** loud.astype(np.float32))
    run(m, SplitOutputs(parts=parts, exclude=()), {"x": normal(2, 3, 12)})
    found = [site.shape[1] for site in find_sites(m)]
    assert sum(found) == 192 and all(size % 32 == 0 for size in found)
    assert found == sizes or len(found) == sizes


def test_the_attention_that_tokens_receive_is_found_through_parts(tiny_decoder):
    m = tiny_decoder(layers=2, width=64, heads=2, kv_heads=2, hidden=64)
    run(m, SplitOutputs(least_share=0.5, exclude=()), {"x": normal(2, 6, 64)})
    first, second = Topology(m).attention
    assert first.q is None and len(first.q_parts) == len(first.k_parts) == 2
    received = ReceivedAttention(m)
    layers = [received.of([site.node for site in block.q_parts]) for block in (first, second)]
    assert None not in layers and layers[0] is not layers[1]


REASONS = {
    "its channels matter alike": {},
    "too few for two parts": {"w": normal(12, 48)},
    "shows on calibration data, and there is none": {"samples": None},
    "the recipe excludes it": {"step": SplitOutputs(exclude=("*",))},
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_stays_whole_says_why(build, reason):
    given = REASONS[reason]
    w = given.get("w", np.sign(normal(12, 192)))
    m = build(SCALED.replace("192", str(w.shape[1])), w=w, factors=np.ones(w.shape[1], np.float32))
    samples = given.get("samples", [{"x": normal(2, 3, 12)}])
    report = given.get("step", SplitOutputs(exclude=())).call(m, Context(samples=samples))
    assert not report.modified and reason in report.left[0].reason


def test_a_model_that_memory_does_not_hold_stays_whole(build, monkeypatch):
    monkeypatch.setattr("onnxq.passes.split_outputs.available_memory", lambda: 1000)
    m = build(SCALED, w=normal(12, 192), factors=factors(np.arange(96)))
    report = SplitOutputs(exclude=()).call(m, Context(samples=[{"x": normal(2, 3, 12)}]))
    assert "take 0.0 GB of memory" in report.left[0].reason and not report.modified


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parts": 1}, "split into 2 to 16"),
        ({"least_share": 1.0}, "0.5 to 1 of all"),
        ({"samples": 0}, "look at 1 or more"),
    ],
)
def test_options_that_split_nothing_are_refused(options, words):
    with pytest.raises(RecipeError, match=words):
        SplitOutputs(**options)
