"""What closed-form transforms gain on real models: the figures of their pages in docs/passes."""

import numpy as np
import pytest

from onnxq.errors import BrokenPromise
from onnxq.graph import load
from onnxq.graph.topology import Topology
from onnxq.models import registry
from onnxq.passes.clean import Clean
from onnxq.passes.constants_to_initializers import ConstantsToInitializers
from onnxq.passes.convert_opset import ConvertOpset
from onnxq.passes.equalize_layers import EqualizeLayers
from onnxq.passes.fold_batch_norm import FoldBatchNorm
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fuse_gelu import FuseGelu
from onnxq.passes.fuse_layer_norm import FuseLayerNorm
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.recipe import Recipe
from onnxq.passes.reparameterize_norm import ReparameterizeNorm
from onnxq.passes.runner import run_recipe
from onnxq.runtime import open_session

PREPARE = (
    ConstantsToInitializers(),
    FoldConstants(),
    ConvertOpset(minimum=21),
    FoldBatchNorm(),
    FuseLayerNorm(),
    FuseGelu(),
    Clean(),
)
PER_TENSOR = QuantizeWeights(format="int8_tensor", write="dequantize")


class Measured:
    """One task, its float model prepared, and the metrics of what passes make of it."""

    def __init__(self, name, folder):
        self.task = registry.task(name)
        self.built = self.task.built(folder)
        self.samples = self.task.calibration(self.built)["model"][:16]
        self.model = self.run(load(self.built["model"]), *PREPARE)

    def run(self, model, *steps, check="auto"):
        recipe = Recipe(name="measured", steps=steps)
        return run_recipe(model, recipe, samples=self.samples, check=check).model

    def metrics(self, *steps, check="auto"):
        model = self.run(self.model, *steps, check=check)
        return self.task.evaluate({"model": model}, source=self.built)

    def sqnr(self, *steps):
        """Of the outputs on held-back inputs, in dB."""
        feeds = self.task.held_back(self.built)["model"]
        outputs = []
        for model in (self.model, self.run(self.model, *steps)):
            with open_session(model) as session:
                outputs.append([next(iter(session.run(feed).values())) for feed in feeds])
        exact, found = (np.concatenate(given).astype(np.float64) for given in outputs)
        return 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2))


@pytest.mark.slow
def test_one_scale_for_a_weight_is_enough_for_silero_once_layers_are_even(tmp_path, fetched):
    fetched("silero-vad", "speech")
    measured = Measured("silero-vad", tmp_path)
    plain = measured.metrics(PER_TENSOR, check="off")
    even = measured.metrics(EqualizeLayers(), PER_TENSOR)
    assert plain["decision_agreement"] < 0.5
    assert even["decision_agreement"] > 0.98


@pytest.mark.slow
def test_efficientnet_needs_its_clips_opened(tmp_path, fetched):
    fetched("efficientnet-lite0", "photos", "digits")
    measured = Measured("efficientnet-lite0", tmp_path)
    plain = measured.metrics(PER_TENSOR)
    even = measured.metrics(EqualizeLayers(clips="open"), PER_TENSOR)
    assert plain["top1_agreement"] < 0.8
    assert even["top1_agreement"] > 0.92
    with pytest.raises(BrokenPromise):
        measured.metrics(QuantizeWeights(format="int4_channel", write="dequantize"))


@pytest.mark.slow
def test_one_step_behind_the_norms_of_a_vision_transformer(tmp_path, fetched):
    fetched("digits")
    pytest.importorskip("torch")
    measured = Measured("digits-vit", tmp_path)
    topology = Topology(measured.model)
    others = [site.name for site in topology.sites if topology.feeding_norm(site) is None]
    for bits, gain in ((8, 1.5), (6, 2.0), (4, 2.5), (3, 3.5)):
        rounded = QuantizeActivations(
            bits=bits, granularity="tensor", symmetric=False, exclude=tuple(others)
        )
        before, after = measured.sqnr(rounded), measured.sqnr(ReparameterizeNorm(), rounded)
        assert after > before + gain, bits
