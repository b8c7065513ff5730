"""A run that goes on from finished sites gives the bytes of one that was never interrupted."""

import errno
import random

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import UsageError, WorkerError, WorkFolderError
from onnxq.graph.weights import walk_weights
from onnxq.passes import weight_solving
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.runtime import work_folder
from onnxq.runtime.work_folder import WorkFolder, work_folders
from onnxq.runtime.workers import Workers
from tests.finished_work import content, decoder_samples, pieces, run_step

BASE = {"format": "int3_channel", "solver": "gptq", "write": "dequantize"}
SETTINGS = {
    "gptq": BASE,
    "one shot": {**BASE, "flow": "one_shot"},
    "asymmetric": {**BASE, "solver": "gptaq", "flow": "asymmetric"},
    "blocks": {**BASE, "cut": "blocks"},
    "biases": {**BASE, "correct_bias": True},
    "columns": {**BASE, "keep_columns": 2},
    "points": {**BASE, "format": "lut2", "write": "auto"},
    "refit": {**BASE, "refit_scales": True},
}


@pytest.fixture
def samples():
    return decoder_samples(5)


@pytest.fixture
def solved(monkeypatch):
    """Calls of the solver: an empty list means that nothing was solved."""
    calls = []
    real = weight_solving.solve_site
    monkeypatch.setattr(
        weight_solving, "solve_site", lambda p, threads: calls.append(p) or real(p, threads)
    )
    return calls


def quantized(model, samples, folder, settings=BASE, workers=None):
    return run_step(model, samples, folder, QuantizeWeights(**settings), workers)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_any_part_of_the_work_may_be_missing(settings, tiny_decoder, samples, solved, tmp_path):
    model = tiny_decoder(biased=True)
    wanted = content(quantized(model, samples, None, settings))
    assert content(quantized(model, samples, tmp_path / "w", settings)) == wanted
    assert len(pieces(tmp_path / "w")) == 14
    solved.clear()
    again = quantized(model, samples, tmp_path / "w", settings)
    assert content(again) == wanted and not solved
    assert "14 of 14 sites were solved in an earlier run" in again.steps[0].report.notes
    chance = random.Random(3)
    for missing in (1, 5, 9):
        for file in chance.sample(pieces(tmp_path / "w"), missing):
            file.unlink()
        solved.clear()
        assert content(quantized(model, samples, tmp_path / "w", settings)) == wanted
        assert len(solved) == missing


def test_a_shared_weight_is_found_with_each_of_its_sites(build, solved, tmp_path):
    rng = np.random.default_rng(0)
    model = build(
        "main (float[n, 8] x) => (float[n, 8] y)"
        "{ h = MatMul (x, w)  r = Relu (h)  y = MatMul (r, w) }",
        w=rng.standard_normal((8, 8)).astype(np.float32),
    )
    samples = [{"x": rng.standard_normal((9, 8)).astype(np.float32)} for _ in range(3)]
    wanted = content(quantized(model, samples, tmp_path / "w"))
    solved.clear()
    assert content(quantized(model, samples, tmp_path / "w")) == wanted
    assert not solved


def test_another_format_of_a_late_site_leaves_what_came_before(
    tiny_decoder, samples, solved, tmp_path
):
    model = tiny_decoder()
    quantized(model, samples, tmp_path / "w")
    solved.clear()
    name = next(node.name for node in model.graph if node.outputs[0].name == "o1")
    other = {**BASE, "overrides": {name: "int8_channel"}}
    wanted = content(quantized(model, samples, None, other))
    solved.clear()
    assert content(quantized(model, samples, tmp_path / "w", other)) == wanted
    assert len(solved) == 4  # the site itself, gate, up and down behind it


@pytest.mark.parametrize("change", ["samples", "weight", "seed", "damping"])
def test_nothing_is_taken_from_other_work(change, tiny_decoder, samples, solved, tmp_path):
    model, settings = tiny_decoder(), BASE
    quantized(model, samples, tmp_path / "w")
    solved.clear()
    if change == "samples":
        samples = [{"x": sample["x"] + 1} for sample in samples]
    elif change == "weight":
        value = next(v for _, v in walk_weights(model) if v.name == "w_down1")
        value.const_value = ir.tensor(value.const_value.numpy() * 1.5, name="w_down1")
    elif change == "seed":
        settings = {**BASE, "seed": 1}
    else:
        settings = {**BASE, "solver_options": {"damping": 0.5}}
    quantized(model, samples, tmp_path / "w", settings)
    assert len(solved) == 14


@pytest.mark.parametrize("keep", [0, 7, 300])
def test_a_spoilt_piece_is_made_again(keep, tiny_decoder, samples, solved, tmp_path):
    model = tiny_decoder()
    wanted = content(quantized(model, samples, tmp_path / "w"))
    file = pieces(tmp_path / "w")[4]
    file.write_bytes(file.read_bytes()[:keep])
    solved.clear()
    assert content(quantized(model, samples, tmp_path / "w")) == wanted
    assert len(solved) == 1


def test_a_flipped_byte_is_seen(tmp_path):
    with WorkFolder(tmp_path / "w") as work:
        work.keep("ab" * 32, {"n": 1}, {"a": np.arange(1000)})
        (file,) = pieces(tmp_path / "w")
        content = bytearray(file.read_bytes())
        content[content.index(bytes(np.arange(1000)[400:402])) + 3] ^= 1
        file.write_bytes(content)
        assert work.read("ab" * 32) is None
        assert not pieces(tmp_path / "w")


def test_a_full_disk_leaves_what_is_finished(tiny_decoder, samples, solved, tmp_path, monkeypatch):
    model = tiny_decoder()
    wanted = content(quantized(model, samples, None))
    real, left = work_folder.os.fsync, [6]

    def fsync(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(work_folder.os, "fsync", fsync)
    with pytest.raises(WorkFolderError, match=r"No space left on device\. 6 pieces"):
        quantized(model, samples, tmp_path / "w")
    assert len(pieces(tmp_path / "w")) == 6 and not list(tmp_path.glob("w/pieces/*/*.part"))
    monkeypatch.undo()
    assert content(quantized(model, samples, tmp_path / "w")) == wanted


def test_two_runs_do_not_share_a_folder(tmp_path):
    with WorkFolder(tmp_path / "w"), pytest.raises(WorkFolderError, match="Another run"):
        WorkFolder(tmp_path / "w")
    WorkFolder(tmp_path / "w").close()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="is no work folder: it holds other things"):
        WorkFolder(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_work_folders_are_listed_with_their_size(tiny_decoder, samples, tmp_path):
    quantized(tiny_decoder(), samples, tmp_path / "a" / "w")
    ((path, count, size),) = work_folders(tmp_path)
    assert path == tmp_path / "a" / "w" and count == 14
    assert size == sum(file.stat().st_size for file in pieces(path))


@pytest.mark.parametrize("backend", ["processes", "threads"])
def test_workers_give_the_bytes_of_one(backend, tiny_decoder, samples, tmp_path):
    model = tiny_decoder()
    wanted = content(quantized(model, samples, None))
    workers = Workers(count=2, backend=backend)
    assert content(quantized(model, samples, tmp_path / "w", workers=workers)) == wanted


def failing(monkeypatch, names):
    """A solver that raises on the weights of some shapes."""
    real = weight_solving.solve_site

    def solve(problem, threads):
        if problem.rows.shape in names:
            raise ZeroDivisionError("a group is empty")
        return real(problem, threads)

    monkeypatch.setattr(weight_solving, "solve_site", solve)


def test_a_run_stops_at_a_site_that_fails(tiny_decoder, samples, tmp_path, monkeypatch):
    model = tiny_decoder()
    wanted = content(quantized(model, samples, None))
    down = next(v.const_value.shape for _, v in walk_weights(model) if v.name == "w_down1")
    failing(monkeypatch, {(down[1], down[0])})
    with pytest.raises(WorkerError) as stopped:
        quantized(model, samples, tmp_path / "w")
    told = str(stopped.value)
    assert "could not be solved by 'gptq': ZeroDivisionError: a group is empty" in told
    assert "--on-failure leave" in told and "quantize_weights.exclude" in told
    assert len(pieces(tmp_path / "w")) == 6
    monkeypatch.undo()
    assert content(quantized(model, samples, tmp_path / "w")) == wanted


@pytest.mark.parametrize("count", [1, 2])
def test_a_site_that_fails_may_stay_in_float(count, tiny_decoder, samples, tmp_path, monkeypatch):
    model = tiny_decoder()
    down = next(v.const_value.shape for _, v in walk_weights(model) if v.name == "w_down0")
    failing(monkeypatch, {(down[1], down[0])})
    workers = Workers(count=count, backend="threads", on_failure="leave")
    result = quantized(model, samples, tmp_path / "w", workers=workers)
    left = [site.reason for site in result.steps[0].report.left if "failed" in site.reason]
    assert len(left) == 2 and len(result.steps[0].report.changed) == 12
    assert all(reason.startswith("gptq failed on it: ZeroDivisionError: a") for reason in left)
    assert len(pieces(tmp_path / "w")) == 6  # behind it, sites saw a float weight
    weights = {v.name: v for _, v in walk_weights(result.model)}
    assert weights["w_down0"].const_value.dtype == ir.DataType.FLOAT
