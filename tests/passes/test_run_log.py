"""What a run tells of itself: a line of JSON for each event, a row for each stage."""

import json
import logging

import numpy as np
import pytest

from onnxq import quantize
from onnxq.errors import OnnxqError, WorkFolderError
from onnxq.graph import save
from onnxq.runtime.run_log import RunLog, heaviest, note, stage, stages_so_far

SOLVER = ["quantize_weights.solver=gptq"]


@pytest.fixture
def model(tiny_decoder, tmp_path):
    return save(tiny_decoder(), tmp_path / "model.onnx")


@pytest.fixture
def samples():
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal((2, 6, 16)).astype(np.float32)} for _ in range(6)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_stage_and_site_is_told(model, samples, tmp_path):
    log, out = tmp_path / "run.jsonl", tmp_path / "out"
    done = quantize(model, "int4", data=samples, set=SOLVER, out=out, log=log)
    told = lines(log)
    assert told[0]["event"] == "run begins" and told[-1]["outcome"] == "done"
    assert all(line["time"] for line in told)
    solved = [line for line in told if line["event"] == "site solved"]
    assert {line["site"] for line in solved} == {site.site for site in done.quantized_sites}
    assert all(line["seconds"] > 0 and line["stage"] == "quantize_weights" for line in solved)
    rows = json.loads((out / "onnxq.json").read_text())["stages"]
    assert [row["stage"] for row in rows] == [
        "open",
        *(step.step.key() for step in done.result.steps),
        "write",
        "verify",
    ]
    assert all(row["peak_mb"] > 20 and row["cpu_seconds"] >= 0 for row in rows)
    ended = [line["stage"] for line in told if line["event"] == "stage ends"]
    assert ended == [row["stage"] for row in rows]


def test_a_refused_run_says_why_in_its_log(model, samples, tmp_path):
    bad = [{"x": np.full_like(samples[0]["x"], np.nan)}, *samples]
    with pytest.raises(OnnxqError) as refused:
        quantize(model, "int4", data=bad, set=SOLVER, log=tmp_path / "log", check="off")
    last = lines(tmp_path / "log")[-1]
    assert last["outcome"] == type(refused.value).__name__ and last["reason"] == str(refused.value)


def test_a_log_goes_on_until_a_run_is_done(tmp_path):
    path = tmp_path / "log"
    with pytest.raises(KeyError), RunLog(path):
        raise KeyError("killed")
    with RunLog(path):
        note("something")
    assert [line["event"] for line in lines(path)].count("run begins") == 2
    with RunLog(path):
        pass
    assert len(lines(path)) == 2


def test_a_stage_tells_the_memory_it_took():
    with RunLog(None):
        with stage("large"):
            held = np.ones(40_000_000)
        with stage("small"), stage("inner"):
            del held
        rows = {row["stage"]: row for row in stages_so_far()}
    assert list(rows) == ["large", "small"]
    assert rows["large"]["peak_mb"] > 300


def test_without_a_run_nothing_is_measured_or_said(caplog):
    with caplog.at_level(logging.WARNING), stage("work"):
        note("nothing")
    assert not stages_so_far() and not caplog.records


def test_a_profile_names_the_heaviest_functions(model, tmp_path):
    quantize(model, "int4", out=tmp_path / "out", profile=tmp_path / "profile")
    (file,) = (tmp_path / "profile").glob("*_quantize_weights.pstats")
    rows = heaviest(file, 5)
    assert len(rows) == 5 and rows[0]["own seconds"] >= rows[4]["own seconds"]


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkFolderError, match=r"The log of the run cannot be written.*--log"):
        RunLog(tmp_path / "file" / "log")
