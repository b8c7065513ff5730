"""The tasks on the real models: the float figures that everything else is compared with."""

import numpy as np
import pytest

from onnxq.errors import ZooError
from onnxq.evaluate.similarity import mean_pool
from onnxq.models import registry, zoo
from onnxq.models.task import Task
from onnxq.runtime import open_session


def test_every_model_of_the_zoo_has_its_task():
    models = {entry.name for entry in zoo.entries() if entry.kind == "model"}
    assert registry.tasks().keys() == models | {"digits-vit"}
    for name, task in registry.tasks().items():
        assert isinstance(task, Task)
        assert task.name == name
        assert task.title
        assert task.primary


def test_an_unknown_task_suggests_the_nearest():
    with pytest.raises(ZooError, match=r"No task named 'silero'\. Did you mean 'silero-vad'"):
        registry.task("silero")


def test_mean_pool_leaves_padding_out():
    hidden = np.array([[[1, 2], [3, 4], [99, 99]], [[5, 6], [99, 99], [99, 99]]], np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    assert mean_pool(hidden, mask).tolist() == [[2, 3], [5, 6]]


def _content(feeds):
    return hash(tuple((name, array.tobytes()) for name, array in sorted(feeds.items())))


def _check(name, folder, fetched, *data):
    """Build, look at the feeds, run one of each; return the metrics."""
    fetched(name, *data)
    task = registry.task(name)
    models = task.build(folder / "source")
    calibration, held_back = task.calibration(models), task.held_back(models)
    assert calibration.keys() == held_back.keys() == models.keys()
    for role, path in models.items():
        assert len(calibration[role]) >= 4
        assert len(held_back[role]) >= 1
        with open_session(path) as session:
            for feeds in (calibration[role][0], calibration[role][-1], held_back[role][0]):
                assert feeds.keys() == {spec.name for spec in session.inputs}
                session.run(feeds)
        seen = {_content(feeds) for feeds in calibration[role]}
        assert not any(_content(feeds) in seen for feeds in held_back[role])
    metrics = task.evaluate(models)
    assert isinstance(metrics[task.primary], float)
    return metrics


def test_silero_vad(tmp_path, fetched):
    metrics = _check("silero-vad", tmp_path, fetched, "speech")
    assert metrics["speech_probability"] == pytest.approx(0.888, abs=0.01)
    assert metrics["noise_probability"] < 0.05
    assert metrics["decision_agreement"] == 1.0


def test_glassllm(tmp_path, fetched):
    pytest.importorskip("torch")
    metrics = _check("glassllm", tmp_path, fetched)
    assert metrics["perplexity"] == pytest.approx(39.47, abs=0.05)


@pytest.mark.slow
def test_pp_ocr(tmp_path, fetched):
    metrics = _check("pp-ocrv4", tmp_path, fetched, "photos", "text")
    assert metrics["text"].splitlines()[0] == "Region-based segmentation"
    assert len(metrics["text"].splitlines()) == 6
    assert metrics["rendered_error_rate"] < 0.02


@pytest.mark.slow
def test_quire_tagger(tmp_path, fetched):
    metrics = _check("quire-tagger", tmp_path, fetched, "text")
    assert metrics["kept"] == pytest.approx(0.991, abs=0.01)


@pytest.mark.slow
def test_efficientnet(tmp_path, fetched):
    metrics = _check("efficientnet-lite0", tmp_path, fetched, "photos", "digits")
    assert metrics["photos_right"] == metrics["photos"] == 5


@pytest.mark.slow
def test_digits_vit(tmp_path, fetched):
    pytest.importorskip("torch")
    metrics = _check("digits-vit", tmp_path, fetched, "digits")
    assert metrics["images"] == 597
    assert metrics["accuracy"] > 0.97


@pytest.mark.slow
def test_minilm(tmp_path, fetched):
    metrics = _check("minilm", tmp_path, fetched, "text")
    assert metrics["lee50_pearson"] == pytest.approx(0.656, abs=0.002)
    assert metrics["wordsim353_spearman"] == pytest.approx(0.729, abs=0.002)
    assert metrics["simlex999_spearman"] == pytest.approx(0.446, abs=0.002)


@pytest.mark.slow
def test_whisper(tmp_path, fetched):
    metrics = _check("whisper-tiny-en", tmp_path, fetched, "speech")
    assert (metrics["word_errors"], metrics["words"]) == (3.0, 71.0)


@pytest.mark.slow
def test_smollm2(tmp_path, fetched):
    metrics = _check("smollm2", tmp_path, fetched, "text")
    assert metrics["perplexity"] == pytest.approx(27.69, abs=0.05)
    assert metrics["predictions"] == 8176
