"""A run that goes on from learned blocks gives the bytes of one that was never interrupted."""

import pytest

pytest.importorskip("torch")

from onnxq.learning.training import Training
from onnxq.passes.flatten_affine import FlattenAffine
from onnxq.passes.migrate_affine import MigrateAffine
from onnxq.passes.quantize_weights import QuantizeWeights
from tests.finished_work import content, decoder_samples, pieces, run_step

FORMAT = {"format": "int3_channel", "write": "dequantize"}
STEPS = {
    "adaround": QuantizeWeights(solver="adaround", solver_options={"steps": 6}, **FORMAT),
    "flexround": QuantizeWeights(solver="flexround", solver_options={"steps": 6}, **FORMAT),
    "lrq, one shot": QuantizeWeights(
        solver="lrq", solver_options={"steps": 6}, flow="one_shot", **FORMAT
    ),
    "affine": MigrateAffine(steps=4, weight_format="int3_channel"),
    "flat": FlattenAffine(steps=4, weight_format="int3_channel"),
}


@pytest.fixture
def samples():
    return decoder_samples(3)


@pytest.fixture
def learned(monkeypatch):
    """Names of blocks that were learned: an empty list means that none was."""
    calls = []
    real = Training.learn
    monkeypatch.setattr(
        Training, "learn", lambda self, learner: calls.append(self._name) or real(self, learner)
    )
    return calls


@pytest.mark.parametrize("step", STEPS.values(), ids=list(STEPS))
def test_a_block_may_be_missing(step, tiny_decoder, samples, learned, tmp_path):
    model = tiny_decoder()
    wanted = content(run_step(model, samples, None, step))
    blocks = len(learned)
    assert blocks > 1
    assert content(run_step(model, samples, tmp_path, step)) == wanted
    assert len(pieces(tmp_path)) == blocks
    learned.clear()
    again = run_step(model, samples, tmp_path, step)
    assert content(again) == wanted and not learned
    assert f"{blocks} blocks were learned in an earlier run" in again.steps[0].report.notes
    for file in pieces(tmp_path):
        file.unlink()
        learned.clear()
        assert content(run_step(model, samples, tmp_path, step)) == wanted
        assert len(learned) == 1


def test_another_format_of_a_late_block_leaves_the_first(tiny_decoder, samples, learned, tmp_path):
    model = tiny_decoder()
    base = STEPS["adaround"]
    run_step(model, samples, tmp_path, base)
    name = next(node.name for node in model.graph if node.outputs[0].name == "o1")
    other = QuantizeWeights(**{**base.options(), "overrides": {name: "int8_channel"}})
    learned.clear()
    wanted = content(run_step(model, samples, None, other))
    blocks = len(learned)
    learned.clear()
    assert content(run_step(model, samples, tmp_path, other)) == wanted
    assert len(learned) == blocks - 1


@pytest.mark.parametrize("change", ["samples", "seed", "options"])
def test_nothing_is_taken_from_other_work(change, tiny_decoder, samples, learned, tmp_path):
    model, step = tiny_decoder(), STEPS["adaround"]
    run_step(model, samples, tmp_path, step)
    blocks = len(learned)
    learned.clear()
    if change == "samples":
        samples = [{"x": sample["x"] + 1} for sample in samples]
    else:
        more = {"seed": 1} if change == "seed" else {"solver_options": {"steps": 5}}
        step = QuantizeWeights(**{**step.options(), **more})
    run_step(model, samples, tmp_path, step)
    assert len(learned) == blocks
