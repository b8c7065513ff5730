"""debug: the broken place is found, the set to restore is the smallest, the recipe cures it."""

import itertools
import json

import pytest
from typer.testing import CliRunner

import onnxq
from onnxq.cli import app
from onnxq.debugging import debug, parse_loss
from onnxq.errors import UsageError
from onnxq.evaluate.hybrid import Hybrid
from onnxq.evaluate.losses import PairedLoss
from onnxq.graph import save
from onnxq.runtime import open_session
from tests.five_layers import SITES, five_layers, five_samples, with_noise


@pytest.fixture
def original(tmp_path):
    return save(five_layers(), tmp_path / "model.onnx")


@pytest.mark.parametrize("broken", SITES)
def test_the_site_that_is_broken_on_purpose_is_found(original, tmp_path, broken):
    sizes = {**dict.fromkeys(SITES, 0.003), broken: 1.0}
    changed = save(with_noise(five_layers(), sizes), tmp_path / "changed.onnx")
    found = debug(original, changed, data=five_samples(), max_loss="20dB")
    assert found.parting.place == broken
    assert found.restored.places == (broken,) and found.restored.is_smallest
    assert next(iter(found.effects)) == broken
    assert found.restored.loss <= 0.01 < found.quantized_loss


def test_the_set_is_the_smallest_of_all_subsets_of_a_model(original, tmp_path):
    sizes = dict(zip(SITES, (0.05, 0.3, 0.1, 0.25, 0.2), strict=True))
    changed = with_noise(five_layers(), sizes)
    samples = five_samples()
    with open_session(original) as session:
        loss = PairedLoss(session, samples)
    losses = {}
    with Hybrid(five_layers(), changed) as hybrid:
        for size in range(6):
            for kept in itertools.combinations(SITES, size):
                chosen = set(SITES) - set(kept)
                losses[kept] = loss.of(lambda sample, names, c=chosen: hybrid.run(sample, c, names))
    for bound in (0.2, 0.1, 0.05, 0.02, 0.005):
        found = debug(
            original, save(changed, tmp_path / "changed.onnx"), data=samples, max_loss=bound
        )
        fewest = min(len(kept) for kept, value in losses.items() if value <= bound)
        assert len(found.restored.places) == fewest, bound
        assert found.restored.loss <= bound


@pytest.mark.parametrize("recipe", ["int4", "int8_static"])
def test_the_recipe_that_is_written_reaches_the_loss(original, tmp_path, recipe):
    samples = five_samples(8)
    onnxq.quantize(original, recipe, data=samples, out=tmp_path / "made")
    before = debug(original, tmp_path / "made", data=samples)
    bound = 0.6 * before.quantized_loss
    found = debug(
        original, tmp_path / "made", data=samples, max_loss=bound, out=tmp_path / "cured.toml"
    )
    assert 0 < len(found.restored.places) < 5 and len(found.rows) == 1
    again = onnxq.quantize(original, tmp_path / "cured.toml", data=samples, out=tmp_path / "cured")
    left = {site.site for site in again.left_sites}
    assert left == set(found.restored.places)
    with open_session(original) as session:
        loss = PairedLoss(session, samples[-4:])
    with open_session(tmp_path / "cured" / "model.onnx") as session:
        assert loss.of_session(session) <= 1.01 * bound


def test_the_command_prints_the_place_and_the_row(original, tmp_path):
    artifact = onnxq.quantize(original, "int4", out=tmp_path / "made").artifact.folder
    arguments = ["debug", str(original), str(artifact), "--max-loss", "0.1%"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "they part at layer_" in shown.output and "exclude = [" in shown.output
    assert "random inputs" in shown.output
    values = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert values["restored"]["loss"] <= 0.001


def test_models_without_an_artifact_and_bad_arguments_are_refused(original, tmp_path):
    changed = save(with_noise(five_layers(), {"layer_1": 0.1}), tmp_path / "changed.onnx")
    with pytest.raises(UsageError, match="an artifact of onnxq"):
        debug(original, changed, max_loss=0.1, out=tmp_path / "recipe.toml")
    with pytest.raises(UsageError, match="give a number such as"):
        debug(original, changed, max_loss="small")
    with pytest.raises(UsageError, match="Did you mean 'noise'"):
        debug(original, changed, loss="nois")
    out = CliRunner().invoke(app, ["debug", str(original), str(original)])
    assert out.exit_code == 1 or "differ nowhere" in str(out.exception)


def test_losses_are_read_as_written():
    assert parse_loss("1%") == pytest.approx(0.01)
    assert parse_loss("20dB") == pytest.approx(0.01)
    assert parse_loss("0.5") == parse_loss(0.5) == 0.5
