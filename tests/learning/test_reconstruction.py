"""Block reconstruction: the best that was seen is kept, on the same inputs as the runtime's."""

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from onnxq.errors import CalibrationError, RecipeError  # noqa: E402
from onnxq.learning.blocks import find_blocks  # noqa: E402
from onnxq.learning.quantizers import round_through  # noqa: E402
from onnxq.learning.reconstruction import Learner, Schedule, Setting, reconstruct  # noqa: E402
from onnxq.runtime import open_session  # noqa: E402

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
chain (float[n, 16] x) => (float[n, 16] y) {
    h1 = MatMul(x, w1)
    r1 = Relu(h1)
    h2 = MatMul(r1, w2)
    r2 = Tanh(h2)
    y = MatMul(r2, w3)
}
"""


def chain(seed=0):
    rng = np.random.default_rng(seed)
    model = ir.from_onnx_text(MODEL)
    for name in ("w1", "w2", "w3"):
        weight = rng.standard_normal((16, 16)).astype(np.float32) / 4
        value = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(weight, name=name)
        value.shape, value.dtype = ir.Shape([16, 16]), ir.DataType.FLOAT
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"node_{index}"
    return model


def samples(count=6, seed=1):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((8, 16)).astype(np.float32)} for _ in range(count)]


class Stretch(Learner):
    """Weights on whole multiples of a quarter of a learned factor."""

    def __init__(self, graph, rate=0.02):
        self.names = [name for name in graph.weights if name.startswith("w")]
        self.floats = dict(graph.weights)
        self.factor = torch.ones(len(self.names), requires_grad=True)
        self.rate = rate

    def groups(self):
        return [{"params": [self.factor], "lr": self.rate}]

    def setting(self, progress):
        weights = {
            name: round_through(self.floats[name] / (factor * 0.25)) * factor * 0.25
            for name, factor in zip(self.names, self.factor, strict=True)
        }
        return Setting(weights, {})

    def plain(self):
        return Setting({n: torch.round(self.floats[n] / 0.25) * 0.25 for n in self.names}, {})


def run(schedule, learn=None, data=None):
    model = chain()
    blocks, _ = find_blocks(model, cut="sites")
    learners = {}

    def make(block, graph):
        learners[block.name] = Stretch(graph)
        return learners[block.name]

    results = reconstruct(model, data or samples(), blocks, learn or make, schedule)
    return results, learners


def test_no_loss_ends_above_its_start():
    results, _ = run(Schedule(steps=24, batch=2, checks=6))
    assert len(results) == 3
    assert all(result.after <= result.before for result in results)
    assert any(result.after < 0.9 * result.before for result in results)


def test_a_rate_that_ruins_everything_keeps_the_plain_block():
    def make(block, graph):
        return Stretch(graph, rate=1e4)

    results, _ = run(Schedule(steps=3, batch=1, checks=1), make)
    assert all(result.after == result.before or result.progress == 0.0 for result in results)


def test_no_steps_learn_nothing():
    results, learners = run(Schedule(steps=0))
    assert all(r.after == r.before and r.progress is None and r.steps == 0 for r in results)
    assert all((learner.factor == 1).all() for learner in learners.values())


def test_same_seed_same_bytes_and_another_seed_others():
    def factors(seed):
        _, learners = run(Schedule(steps=10, batch=2, seed=seed))
        return b"".join(x.factor.detach().numpy().tobytes() for x in learners.values())

    assert factors(3) == factors(3)
    assert factors(3) != factors(4)


def test_kept_parameters_give_the_loss_that_is_reported():
    model, data = chain(), samples()
    blocks, _ = find_blocks(model, cut="whole")
    kept = []

    def make(block, graph):
        kept.append((Stretch(graph), graph))
        return kept[0][0]

    (result,) = reconstruct(model, data, blocks, make, Schedule(steps=12, checks=3))
    learner, graph = kept[0]
    setting = learner.setting(result.progress) if result.progress else learner.plain()
    with open_session(model) as session:
        wanted = [session.run(sample)["y"] for sample in data]
    with torch.no_grad():
        found = [
            graph({"x": torch.from_numpy(s["x"])}, weights=setting.weights)["y"].numpy()
            for s in data
        ]
    loss = np.mean(
        [
            np.mean(np.square(f - w).sum(-1) / np.square(w).sum(-1))
            for f, w in zip(found, wanted, strict=True)
        ]
    )
    # Each row's energy is taken with 1e-4 of the mean beside it, which small rows feel.
    assert result.after == pytest.approx(loss, rel=1e-2)


def test_blocks_without_a_learner_stay_float_and_later_ones_see_the_quantized_model():
    seen = []

    def make(block, graph):
        seen.append(block.name)
        return Stretch(graph) if len(seen) == 1 else None

    results, _ = run(Schedule(steps=4), make)
    assert [r.name for r in results] == seen[:1]
    assert len(seen) == 3


def test_float_and_quantized_inputs_differ_from_the_second_block_on():
    quantized, _ = run(Schedule(steps=0, inputs="quantized"))
    exact, _ = run(Schedule(steps=0, inputs="float"))
    assert quantized[0].before == exact[0].before
    assert quantized[2].before > exact[2].before


def test_nonsense_is_refused():
    with pytest.raises(RecipeError, match="batch is 0: it must be 1 or more"):
        Schedule(batch=0)

    class Broken(Stretch):
        def plain(self):
            return Setting({n: self.floats[n] * float("nan") for n in self.names}, {})

    with pytest.raises(CalibrationError, match="gives NaN or infinity on the samples"):
        run(Schedule(steps=1), lambda block, graph: Broken(graph))


def test_activations_beyond_the_budget_go_to_a_file_and_change_nothing():
    data = [{"x": np.random.default_rng(i).standard_normal((600, 16)).astype(np.float32)}
            for i in range(3)]  # fmt: skip
    model = chain()
    blocks, _ = find_blocks(model, cut="sites")

    def losses(budget):
        found = reconstruct(
            model, data, blocks, lambda b, g: Stretch(g), Schedule(steps=3), memory_budget=budget
        )
        return [result.after for result in found]

    assert losses(1 << 29) == losses(0)
