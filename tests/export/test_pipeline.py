"""The example pipeline hands a folder on within its limits; beyond them it fails and does not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxq.graph import save
from tests.two_layers import two_layers

PIPELINE = Path(__file__).resolve().parents[2] / "docs" / "pipeline"
LIMITS = (PIPELINE / "limits.toml").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "model").mkdir()
    save(two_layers(rng), tmp_path / "model" / "model.onnx")
    (tmp_path / "inputs").mkdir()
    for index in range(8):
        x = rng.standard_normal((16, 64)).astype(np.float32)
        np.savez(tmp_path / "inputs" / f"{index}.npz", x=x)
    return tmp_path


def run(folder, limits):
    (folder / "limits.toml").write_text(limits)
    command = [sys.executable, "-P", PIPELINE / "nightly.py", "model", "out", "limits.toml"]
    command += ["--data", "inputs", "--summary", "summary.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    summary = folder / "summary.json"
    return done, json.loads(summary.read_text()) if summary.exists() else None


def test_within_the_limits_the_folder_is_built(folder):
    done, summary = run(folder, LIMITS)
    assert done.returncode == 0, done.stderr
    assert summary["exceeded"] == []
    assert summary["figures"]["sites_quantized"] == 2
    assert (folder / "out" / "onnxq-build.json").exists()
    assert done.stdout == ""  # what it says goes through logging


def test_a_limit_that_is_exceeded_fails_and_nothing_is_handed_on(folder):
    done, summary = run(folder, LIMITS.replace("output_db = 25.0", "output_db = 90.0"))
    assert done.returncode == 1
    (sentence,) = summary["exceeded"]
    assert sentence.startswith("output_db is ") and sentence.endswith("the limit is at least 90")
    assert sentence in done.stderr
    assert not (folder / "out").exists()


def test_a_refusal_is_a_sentence_and_fails(folder):
    done, summary = run(folder, LIMITS.replace('"int8_static"', '"int5"'))
    assert (done.returncode, summary) == (1, None)
    assert "refused: There is no recipe 'int5'" in done.stderr


def test_the_workflow_runs_the_script_that_is_tested():
    text = (PIPELINE / "nightly.yml").read_text(encoding="utf-8")
    assert "python docs/pipeline/nightly.py model out docs/pipeline/limits.toml" in text
