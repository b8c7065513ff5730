"""Learned affine maps folded into the weights: the same function, invertible, better rounded."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from onnxq.errors import CalibrationError, RecipeError, UnsupportedGraph
from onnxq.graph import read_weight
from onnxq.graph.check import check_graph
from onnxq.graph.opset import infer_shapes
from onnxq.graph.stage import Stage, mark_stage
from onnxq.learning.head_maps import HeadMap
from onnxq.passes.affine_heads import fold_heads, head_map, plan_heads
from onnxq.passes.affine_points import find_points
from onnxq.passes.base import Context, Promise
from onnxq.passes.migrate_affine import MigrateAffine
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
    step = MigrateAffine(**{"steps": 6, "weight_format": "int4_g8", **options})
    step.requires(model)
    report = step.call(model, Context(samples=samples))
    check_graph(model)
    keeper.check(step.key(), step.promise, model, moved=report.moved_outputs)
    return report


def kinds(model):
    return [node.op_type for node in model.graph]


SHAPES = [
    {"width": 16, "heads": 2, "kv_heads": 1, "hidden": 24},
    {"width": 15, "heads": 3, "kv_heads": 3, "hidden": 22, "biased": True},
    {"width": 12, "heads": 1, "kv_heads": 1, "hidden": 7, "layers": 1},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_function_stays_and_nothing_is_added_to_the_graph(tiny_decoder, shape):
    model = tiny_decoder(**shape)
    before = kinds(model)
    report = learn(model, inputs(width=shape["width"]), shift=False)
    layers = shape.get("layers", 2)
    assert kinds(model) == before
    assert len(report.changed) == 7 * layers
    notes = [site.note for site in report.changed]
    assert sum("matrices of" in note for note in notes) == layers
    assert all("condition" in note and "error of the layer" in note for note in notes)


@pytest.mark.parametrize("shape", SHAPES)
def test_shifts_are_folded_into_biases(tiny_decoder, shape):
    model = tiny_decoder(**shape)
    report = learn(model, inputs(width=shape["width"]), shift=True)
    assert any("shifted" in site.note for site in report.changed)


def test_rounding_hurts_less_after_it(tiny_decoder):
    samples = inputs(8)
    plain, moved = tiny_decoder(seed=3), tiny_decoder(seed=3)
    learn(moved, samples, steps=40)
    with open_session(plain) as session:
        wanted = np.stack([session.run(s)["y"] for s in samples])

    def error(model):
        QuantizeActivations(bits=4).call(model, Context())
        QuantizeWeights(format="int4_g8", write="dequantize").call(model, Context())
        with open_session(model) as session:
            found = np.stack([session.run(s)["y"] for s in samples])
        return np.square(found - wanted).mean()

    assert error(moved) < 0.9 * error(plain)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_any_invertible_matrix_can_go_between_values_and_output(
    tiny_decoder, heads, kv_heads, biased
):
    rng = np.random.default_rng(heads)
    model = tiny_decoder(width=4 * heads, heads=heads, kv_heads=kv_heads, biased=biased, layers=1)
    samples = inputs(2, width=4 * heads)
    keeper = PromiseKeeper(model, samples)
    infer_shapes(model)
    plans, _ = find_points(model)
    found, refused = plan_heads(model, plans, through_cache=False)
    (plan,) = found.values()
    assert not refused and plan.space.blocks == kv_heads
    matrices = rng.standard_normal((kv_heads, 4, 4)) + 3 * np.eye(4)
    before = {w: read_weight(w) for w in plan.space.turned.edits}
    learned = head_map(plan, 0.1)
    fold_heads(plan, matrices)
    keeper.check("fold_heads", Promise.SAME_FUNCTION, model)

    class Fixed:
        def matrices(self, progress):
            return torch.from_numpy(matrices.astype(np.float32))

    floats = {w.name: torch.from_numpy(a) for w, a in before.items()}
    simulated = HeadMap(Fixed(), learned.weights).moved(floats, 1.0)
    for weight in before:
        np.testing.assert_allclose(
            simulated[weight.name].numpy(), read_weight(weight), rtol=1e-4, atol=1e-5
        )


def test_without_steps_the_bytes_stay_and_a_second_run_rests(tiny_decoder):
    model = tiny_decoder(layers=1)
    before = {name: read_weight(v).tobytes() for name, v in model.graph.initializers.items()}
    report = MigrateAffine(steps=0).call(model, Context())
    assert not report.modified and report.notes == ("steps is 0: nothing was learned",)
    assert before == {n: read_weight(v).tobytes() for n, v in model.graph.initializers.items()}
    assert learn(model, inputs()).modified
    again = MigrateAffine(steps=2).call(model, Context(samples=inputs()))
    assert not again.modified
    assert "an affine map was migrated here already" in {site.reason for site in again.left}


def test_same_seed_same_bytes(tiny_decoder):
    def stored(seed):
        model = tiny_decoder(layers=1)
        learn(model, inputs(), steps=5, batch=1, seed=seed)
        arrays = [read_weight(v).tobytes() for _, v in sorted(model.graph.initializers.items())]
        return b"".join(arrays)

    assert stored(1) == stored(1)
    assert stored(1) != stored(2)


def test_a_nonlinearity_takes_no_map_and_says_so(build):
    rng = np.random.default_rng(0)
    model = build(
        "main (float[6, 8] x) => (float[6, 8] y) { n = LayerNormalization <axis = -1> (x, g, c)"
        "  u = MatMul (n, w1)  a = Gelu (u)  d = MatMul (a, w2)  y = Add (x, d) }",
        g=np.ones(8, np.float32),
        c=np.zeros(8, np.float32),
        w1=rng.standard_normal((8, 12)).astype(np.float32),
        w2=rng.standard_normal((12, 8)).astype(np.float32),
    )
    samples = [{"x": rng.standard_normal((6, 8)).astype(np.float32)} for _ in range(3)]
    report = learn(model, samples, weight_format="int3_g8", activation_bits=3, steps=30)
    reasons = {site.site: site.reason for site in report.left}
    assert "f(x / s) is not f(x) / s" in reasons["MatMul_3"]


def test_refusals_are_sentences(tiny_decoder):
    with pytest.raises(RecipeError, match=r"stability is 0.0: it must be above 0"):
        MigrateAffine(stability=0.0)
    model = tiny_decoder(layers=1)
    with pytest.raises(CalibrationError, match="migrate_affine learns on samples"):
        MigrateAffine().call(model, Context())
    mark_stage(model, Stage.CALIBRATED)
    with pytest.raises(UnsupportedGraph, match="migrate_affine changes the activations"):
        MigrateAffine().requires(model)


def test_weights_of_half_precision_keep_their_type(tiny_decoder):
    model = tiny_decoder(layers=1)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            array = read_weight(value).astype(np.float16)
            value.const_value = ir.tensor(array, name=value.name)
            value.dtype = ir.DataType.FLOAT16
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = ir.DataType.FLOAT16
    for node in model.graph:
        for value in node.outputs:
            value.dtype = ir.DataType.FLOAT16 if value.dtype == ir.DataType.FLOAT else value.dtype
    samples = [{"x": sample["x"].astype(np.float16)} for sample in inputs()]
    report = MigrateAffine(steps=3, weight_format="int4_g8").call(model, Context(samples=samples))
    assert report.modified
    dtypes = {value.dtype for value in model.graph.initializers.values()}
    assert dtypes == {ir.DataType.FLOAT16, ir.DataType.INT64}
