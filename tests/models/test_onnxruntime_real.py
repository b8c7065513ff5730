"""On every model of the zoo and every recipe, ONNX Runtime runs what the rules say."""

import pytest

import onnxq
from onnxq.errors import UnsupportedGraph
from onnxq.export.to_onnxruntime import OnnxRuntimeCpu
from onnxq.graph import load
from onnxq.models import registry

RECIPES = ("int8", "int4", "int8_dynamic", "int8_static", "w4a8")
SAMPLES = 4


def agreement(path, held_back):
    """The verdicts, and where ONNX Runtime does otherwise on held-back inputs."""
    target, model = OnnxRuntimeCpu(), load(path)
    verdicts = target.check(model)
    return verdicts, target.observe(model, verdicts, held_back).differences


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(registry.tasks()))
def test_the_rules_say_what_runs_on_real_models(name, tmp_path, fetched):
    if name != "digits-vit":
        fetched(name)
    task = registry.task(name)
    models = task.build(tmp_path / "source")
    calibration, held_back = task.calibration(models), task.held_back(models)
    for role, path in models.items():
        assert agreement(path, held_back[role][0])[1] == []
        for recipe in RECIPES:
            settings = ["insert_qdq.min_output_db=0"] if recipe == "int8_static" else []
            try:
                artifact = onnxq.quantize(
                    path,
                    recipe,
                    data=calibration[role][:SAMPLES],
                    out=tmp_path / recipe,
                    set=settings,
                    check="off",
                    overwrite=True,
                ).artifact
            except UnsupportedGraph:  # already quantized, or no stream to rotate
                continue
            verdicts, differences = agreement(artifact.model, held_back[role][0])
            assert differences == [], f"{role} {recipe}"
            assert len(verdicts.sites) > 0
