"""Pictures of transforms: the layer that stood out, before and after, in parts, or its weight."""

import numpy as np
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.graph import find_sites, load, read_weight
from onnxq.models import transform_pictures
from onnxq.models.registry import tasks
from onnxq.models.transform_grid import PREPARE, recipe_of
from onnxq.models.transform_pictures import PICTURES, Picture, draw, panels_of
from onnxq.passes.registry import all_passes


def drawn(task, folder, key, **options):
    return panels_of(key, Picture(task="tiny", **options), task, task.built(folder))


def test_an_activation_before_and_after(loud_task, tmp_path):
    title, (before, after) = drawn(loud_task, tmp_path, "smooth_activations")
    assert title == "smooth_activations on One layer: what MatMul reads"
    assert np.argmax(before.peaks) == 0
    assert before.peaks[0] > 20 * np.median(before.peaks)
    assert after.peaks.max() < 10 * np.median(after.peaks)
    assert before.label.startswith("before max/rms of a token ")


def test_a_weight_by_output_channel(loud_task, tmp_path):
    _, (before, after) = drawn(loud_task, tmp_path, "smooth_activations", shows="weight")
    (weight,) = (
        read_weight(site.weight) for site in find_sites(load(loud_task.built(tmp_path)["model"]))
    )
    np.testing.assert_array_equal(before.peaks, np.abs(weight).max(axis=0))
    assert len(after.peaks) == 32
    assert not np.allclose(after.peaks, before.peaks)


def test_a_site_in_parts(loud_task, tmp_path):
    _, panels = drawn(loud_task, tmp_path, "split_low_rank")
    assert [len(panel.peaks) for panel in panels] == [64, 32, 32]
    assert panels[1].label.startswith("high: ")
    np.testing.assert_allclose(np.r_[panels[1].peaks, panels[2].peaks], panels[0].peaks)


def test_a_weight_in_parts_that_add_up(loud_task, tmp_path):
    _, panels = drawn(loud_task, tmp_path, "split_layer", shows="weight")
    assert [panel.label.split(" max")[0] for panel in panels[1:]] == ["part 1", "part 2", "part 3"]
    np.testing.assert_allclose(np.max([p.peaks for p in panels[1:]], axis=0), panels[0].peaks)


def test_nothing_changed_is_a_sentence_with_the_reasons(loud_task, tmp_path):
    with pytest.raises(UnsupportedGraph, match="smooth_activations changed no activation that can"):
        drawn(loud_task, tmp_path, "smooth_activations", options={"exclude": ("*",)})
    with pytest.raises(UnsupportedGraph, match="changed no activation"):
        drawn(loud_task, tmp_path, "smooth_activations", sites="another*")


def test_the_file_is_written(loud_task, tmp_path, monkeypatch):
    monkeypatch.setattr(transform_pictures, "task", lambda name: loud_task)
    monkeypatch.setattr(transform_pictures, "task_folder", lambda name: tmp_path)
    monkeypatch.setitem(PICTURES, "smooth_activations", Picture(task="tiny"))
    draw("smooth_activations", tmp_path / "docs" / "one.svg")
    assert (tmp_path / "docs" / "one.svg").read_text().startswith("<svg")


def test_every_picture_is_of_a_task_and_takes_the_options_of_its_passes():
    known = all_passes()
    for key, picture in PICTURES.items():
        assert picture.task in tasks()
        rows = [*PREPARE, *picture.before, (key, dict(picture.options))]
        recipe_of(key, [row for row in rows if row[0] in known])
