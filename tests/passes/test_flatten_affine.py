"""Learned maps before linear layers: the function stays, and rounding hurts less."""

import numpy as np
import pytest

pytest.importorskip("torch")

from onnxq.errors import CalibrationError, RecipeError, UnsupportedGraph
from onnxq.graph import read_weight
from onnxq.graph.activation_clip import clip_of
from onnxq.graph.check import check_graph
from onnxq.graph.stage import Stage, clone_model, mark_stage
from onnxq.passes.base import Context
from onnxq.passes.flatten_affine import FlattenAffine
from onnxq.passes.promise import PromiseKeeper
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.runtime import open_session


def inputs(count=4, width=16, seed=9):
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.standard_normal(width)).astype(np.float32)
    return [
        {"x": rng.standard_normal((2, 6, width)).astype(np.float32) * spread} for _ in range(count)
    ]


def learn(model, samples, **options):
    """Run the pass, hold it to its promise; gives the report."""
    keeper = PromiseKeeper(model, samples[:2])
    options = {"steps": 6, "weight_format": "int4_g8", **options}
    step = FlattenAffine(**options)
    step.requires(model)
    report = step.call(model, Context(samples=samples))
    check_graph(model)
    keeper.check(step.key(), step.promise, model)
    return report


SHAPES = [
    {"width": 16, "heads": 2, "kv_heads": 1, "hidden": 24},
    {"width": 15, "heads": 3, "kv_heads": 3, "hidden": 22, "biased": True},
    {"width": 12, "heads": 1, "kv_heads": 1, "hidden": 7, "layers": 1},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_function_stays_and_every_site_of_a_layer_is_mapped(tiny_decoder, shape):
    model = tiny_decoder(**shape)
    report = learn(model, inputs(width=shape["width"]))
    layers = shape.get("layers", 2)
    assert len(report.changed) == 7 * layers
    assert sum(node.op_type == "KroneckerMatMul" for node in model.graph) == 4 * layers
    assert all("condition" in site.note for site in report.changed)


def test_rounding_hurts_less_after_it(tiny_decoder):
    samples = inputs(8)
    plain, flat = tiny_decoder(seed=3), tiny_decoder(seed=3)
    learn(flat, samples, steps=40)
    with open_session(plain) as session:
        wanted = np.stack([session.run(s)["y"] for s in samples])

    def error(model):
        QuantizeActivations(bits=4).call(model, Context())
        QuantizeWeights(format="int4_g8", write="dequantize").call(model, Context())
        with open_session(model) as session:
            found = np.stack([session.run(s)["y"] for s in samples])
        return np.square(found - wanted).mean()

    assert error(flat) < 0.8 * error(plain)


def test_the_learned_share_of_the_range_reaches_the_pass_that_rounds(tiny_decoder):
    model = tiny_decoder(layers=1)
    learn(model, inputs(), steps=8)
    mapped = [n.outputs[0] for n in model.graph if n.op_type == "KroneckerMatMul"]
    shares = [clip_of(value) for value in mapped]
    assert all(0.0 < share < 1.0 for share in shares)
    copy = clone_model(model)
    QuantizeActivations(bits=4).call(copy, Context())
    written = [n.attributes.get_float("clip") for n in copy.graph if "Fake" in n.op_type]
    assert np.allclose(sorted(written), sorted(shares), rtol=1e-6)


def test_without_steps_or_gain_the_bytes_stay(tiny_decoder):
    model = tiny_decoder()
    before = {name: read_weight(v).tobytes() for name, v in model.graph.initializers.items()}
    kinds = [node.op_type for node in model.graph]
    report = FlattenAffine(steps=0).call(model, Context())
    assert not report.modified and report.notes == ("steps is 0: nothing was learned",)
    # Eight bits with rounding this fine: a rate that ruins every map leaves nothing better.
    report = learn(model, inputs(), steps=1, rate=1e3, weight_format="int8_g8", activation_bits=8)
    if not report.modified:
        assert any("beat plain rounding" in site.reason for site in report.left)
        assert [node.op_type for node in model.graph] == kinds
        after = {name: read_weight(v).tobytes() for name, v in model.graph.initializers.items()}
        assert after == before


def test_same_seed_same_bytes(tiny_decoder):
    def stored(seed):
        model = tiny_decoder(layers=1)
        learn(model, inputs(), steps=3, seed=seed)
        arrays = [read_weight(v).tobytes() for _, v in sorted(model.graph.initializers.items())]
        return b"".join(arrays)

    assert stored(1) == stored(1)
    assert stored(1) != stored(2)


def test_mapped_sites_are_not_mapped_again(tiny_decoder):
    model = tiny_decoder(layers=1)
    learn(model, inputs())
    report = FlattenAffine(steps=2).call(model, Context(samples=inputs()))
    assert not report.modified
    assert {site.reason for site in report.left} >= {"what it reads is mapped already"}


def test_a_shared_weight_and_what_is_excluded_stay(tiny_decoder):
    model = tiny_decoder(layers=1)
    nodes = {node.outputs[0].name: node for node in model.graph}
    nodes["up0"].replace_input_with(1, nodes["gate0"].inputs[1])
    report = learn(model, inputs(), exclude=("MatMul_0*", nodes["down0"].name))
    reasons = {site.site: site.reason for site in report.left}
    assert "run untie_weights first" in reasons[nodes["up0"].name]
    assert reasons[nodes["down0"].name] == "the recipe leaves it as it is"


def test_refusals_are_sentences(tiny_decoder):
    with pytest.raises(RecipeError, match=r"balance is 2\.0: it is an exponent from 0 to 1"):
        FlattenAffine(balance=2.0)
    with pytest.raises(RecipeError, match="activation_bits is 9: it must be 2 to 8"):
        FlattenAffine(activation_bits=9)
    model = tiny_decoder(layers=1)
    with pytest.raises(CalibrationError, match="flatten_affine learns on samples"):
        FlattenAffine().call(model, Context())
    mark_stage(model, Stage.CALIBRATED)
    with pytest.raises(UnsupportedGraph, match="flatten_affine changes the activations"):
        FlattenAffine().requires(model)
