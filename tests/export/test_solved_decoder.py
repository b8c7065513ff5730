"""A decoder whose weights a solver rounded runs in onnxruntime-genai as in ONNX Runtime."""

import numpy as np
import pytest

import onnxq
from onnxq.export import from_gguf
from onnxq.runtime import open_session
from onnxq.runtime.decoder import decoder_feeds


@pytest.fixture(scope="module")
def exported(make_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("solved")
    make_gguf(folder / "tiny.gguf")
    return from_gguf(folder / "tiny.gguf", folder / "out", checkpoint=folder / "checkpoint")


def tokens(count, length=24):
    return np.random.default_rng(5).integers(3, 120, (count, length))


def logits_of(model, ids):
    with open_session(model) as session:
        return session.run(decoder_feeds(session, ids))["logits"]


@pytest.mark.parametrize("recipe", ["int4_gptq", "int4_gptaq"])
def test_a_solved_artifact_generates_what_its_logits_say(recipe, exported, tmp_path, greedy_tokens):
    with open_session(exported.models["model"]) as session:
        samples = [decoder_feeds(session, row[None]) for row in tokens(20)]
    out = tmp_path / "out"
    artifact = onnxq.quantize(
        exported.folder,
        recipe,
        out=out,
        data=samples,
        set=["quantize_weights.format=int4_g16_asym", "quantize_weights.embedding_format=int8_g16"],
    )
    solved = [site for site in artifact.quantized_sites if site.output_error is not None]
    assert len(solved) >= 7  # q, k, v, o, gate, up, down of at least one layer
    prompt = [5, 17, 40]
    ids = greedy_tokens(out, prompt, 32)
    logits = logits_of(out / "model.onnx", np.array([prompt + ids]))[0]
    gap = (
        logits[len(prompt) - 1 : -1].max(axis=1)
        - logits[np.arange(len(prompt) - 1, len(prompt) + 31), ids]
    )
    assert gap.max() < 1e-3 * np.abs(logits).max()  # the largest, or one within float rounding
    exact = logits_of(exported.models["model"], np.array([prompt + ids]))[0]
    assert np.linalg.norm(logits - exact) < 0.35 * np.linalg.norm(exact)
