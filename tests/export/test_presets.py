"""Every preset from end to end: of a builder's decoder, a traced transformer and a found model."""

import numpy as np
import pytest

import onnxq
from onnxq.export import from_gguf, from_torch
from onnxq.models import zoo
from onnxq.passes.recipe import preset_names
from onnxq.runtime import open_session, random_samples
from onnxq.runtime.decoder import decoder_feeds

pytestmark = pytest.mark.slow

MODELS = ("builder", "dynamo", "package")


@pytest.fixture(scope="module")
def sources(make_gguf, tmp_path_factory):
    """A model and calibration samples of each kind, made once."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        "builder": _decoder(make_gguf, folder / "builder"),
        "dynamo": _transformer(folder / "dynamo"),
        "package": _found(),
    }


def _decoder(make_gguf, folder):
    folder.mkdir()
    make_gguf(folder / "tiny.gguf")
    exported = from_gguf(folder / "tiny.gguf", folder / "out", checkpoint=folder / "checkpoint")
    tokens = np.random.default_rng(0).integers(3, 120, (12, 24))
    with open_session(exported.models["model"]) as session:
        samples = [decoder_feeds(session, row[None]) for row in tokens]
    return exported.models["model"], samples


def _transformer(folder):
    import torch

    from onnxq.models.families.vit import VisionTransformer, VitConfig

    torch.manual_seed(0)
    config = VitConfig(
        image=8, patch=2, channels=1, width=48, depth=2, heads=3, inner=96, classes=10
    )
    exported = from_torch(
        VisionTransformer(config).eval(),
        {"pixels": torch.randn(2, 1, 8, 8)},
        folder,
        dynamic_shapes={"pixels": {0: "batch"}},
        output_names=["logits"],
    )
    rng = np.random.default_rng(1)
    samples = [{"pixels": rng.standard_normal((4, 1, 8, 8)).astype(np.float32)} for _ in range(12)]
    return exported.models["model"], samples


def _found():
    path = zoo.fetch("pp-ocrv4") / "direction.onnx"
    with open_session(path) as session:
        return path, random_samples(session, 8, sizes=_sizes(session))


def _sizes(session):
    """Pictures of 48 × 192 pixels in three colours, whatever the file calls its dimensions."""
    named = [dim for dim in session.inputs[0].shape if isinstance(dim, str)]
    return dict(zip(reversed(named), (192, 48, 3, 1), strict=False))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_runs_end_to_end(preset, kind, sources, tmp_path):
    path, samples = sources[kind]
    artifact = onnxq.quantize(path, preset, out=tmp_path / "out", data=samples)
    with open_session(path) as exact, open_session(tmp_path / "out" / "model.onnx") as stored:
        names = [spec.name for spec in exact.outputs if "present" not in spec.name]
        wanted, got = (session.run(samples[0], names) for session in (exact, stored))
    # two bits to nearest, without data, leave nothing of a network of random weights
    slack = 2.0 if (preset, kind) == ("int2", "builder") else 1.0
    for name in names:
        assert np.isfinite(got[name]).all()
        assert np.linalg.norm(got[name] - wanted[name]) < slack * np.linalg.norm(wanted[name])
    if (preset, kind) == ("qtip_w2", "package"):
        # Convolutions have no operator, and the one MatMul has rows that no path fits.
        assert {site.reason.split(":")[0] for site in artifact.left_sites} == {
            "an operator of onnxq replaces MatMul and Gemm, and this is a Conv",
            "trellis2_hyb_l12 cannot store it",
        }
        return
    assert artifact.quantized_sites, "nothing was quantized"
    assert all(site.format for site in artifact.quantized_sites)
