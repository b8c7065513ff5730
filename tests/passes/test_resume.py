"""The command line, killed and started again: the same bytes, and nothing left behind."""

import json
import random
import signal
import subprocess
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from onnxq.cli import app
from onnxq.errors import UsageError
from onnxq.graph import save
from onnxq.runtime.work_folder import WorkFolder
from onnxq.working import work_beside
from tests import killed_runs
from tests.killed_runs import finish, killed_after, model_bytes

SETTINGS = ["--set", "quantize_weights.solver=gptq", "--no-check"]


@pytest.fixture
def given(tiny_decoder, tmp_path):
    save(tiny_decoder(width=128, heads=4, hidden=384, layers=3), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(24):
        x = rng.standard_normal((2, 6, 128)).astype(np.float32)
        np.savez(tmp_path / "data" / f"{number:02}.npz", x=x)
    return tmp_path


def start(given, out, *more, data="data"):
    what = ["-r", "int4", "--data", given / data, "-o", out, *SETTINGS]
    return killed_runs.start("quantize", given / "model.onnx", *what, *more)


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(given):
    finish(start(given, given / "whole", "--no-resume"))
    out = given / "out"
    assert killed_after(6, start(given, out), given / "out.work")
    assert not out.exists()
    finish(start(given, out))
    assert model_bytes(out) == model_bytes(given / "whole")
    steps = json.loads((out / "onnxq.json").read_text())["steps"]
    notes = [note for step in steps for note in step["notes"]]
    assert any("of 21 sites were solved in an earlier run" in note for note in notes)
    assert not (given / "out.work").exists()
    left = [path.name for path in given.iterdir() if path.name.startswith(".")]
    assert not left


def test_a_failing_run_says_what_is_finished(given):
    bad = given / "bad"
    bad.mkdir()
    for number in range(3):
        np.savez(bad / f"{number}.npz", x=np.full((2, 6, 128), np.nan if number else 1, np.float32))
    process = start(given, given / "out", data="bad")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "Sample 1 of folder 'bad'" in errors
    assert not (given / "out.work").exists()  # nothing was finished


def test_options_that_contradict_each_other(given):
    chosen = work_beside(given / "out", given / "w", False)
    with pytest.raises(UsageError, match="--work keeps finished sites and --no-resume"), chosen:
        pass


@pytest.mark.parametrize("remove", [False, True])
def test_clean_lists_and_frees(remove, tmp_path):
    with WorkFolder(tmp_path / "a" / "out.work") as work:
        work.keep("ab" * 32, {}, {"codes": np.zeros(5000, np.uint8)})
    options = ["--remove"] if remove else []
    result = CliRunner().invoke(app, ["clean", str(tmp_path), "--json", *options])
    (row,) = json.loads(result.output)
    assert row["pieces"] == 1 and row["folder"] == str(tmp_path / "a" / "out.work")
    assert row["state"] == ("removed" if remove else "kept")
    assert (tmp_path / "a" / "out.work").exists() is not remove


def test_clean_leaves_a_folder_in_use(tmp_path):
    with WorkFolder(tmp_path / "out.work"):
        result = CliRunner().invoke(app, ["clean", str(tmp_path), "--json", "--remove"])
        assert "left: Another run" in json.loads(result.output)[0]["state"]
    assert (tmp_path / "out.work").exists()


@pytest.mark.slow
def test_twenty_kills_at_random_moments(given):
    finish(start(given, given / "whole", "--no-resume"))
    chance, out, kills = random.Random(0), given / "out", 0
    begun = time.perf_counter()
    finish(start(given, given / "timed", "--no-resume"))
    takes = time.perf_counter() - begun
    while kills < 20:
        process = start(given, out, "--work", str(given / "w"))
        try:
            process.wait(timeout=chance.uniform(0.2, 1.0) * takes)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    finish(start(given, out, "--work", str(given / "w")))
    assert model_bytes(out) == model_bytes(given / "whole")
