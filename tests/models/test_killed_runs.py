"""GPTQ of SmolLM2, killed again and again, or read from a server that fails: the same bytes.

Few and short samples, so that a run is mostly solving: the sites are all there.
``ONNXQ_TEST_SMOLLM2`` may name an exported model, else one is exported.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from onnxq.models.smollm2 import SmolLm2
from onnxq.models.wikipedia import corpus
from tests.faulty_server import faulty_server
from tests.killed_runs import finish, killed_after, model_bytes, pieces, start

KILLS = 20
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def given(tmp_path_factory, request):
    """The exported model, a text, and the artifact of a run without disturbance."""
    folder = tmp_path_factory.mktemp("killed")
    source = os.environ.get("ONNXQ_TEST_SMOLLM2")
    model = Path(source) if source else SmolLm2().build(folder / "float")["model"]
    (folder / "text.txt").write_text(corpus()[:20_000])
    shutil.copy(model.parent / "tokenizer.json", folder)
    finish(quantizing(folder, model, folder / "whole", "--no-resume"))
    return folder, model


def quantizing(folder, model, out, *more, **environment):
    data = ["--data", folder / "text.txt", "--window", 128, "--limit", 8]
    return start(
        "quantize", model, "-r", "int4_gptq", "-o", out, "--no-check", *data, *more, **environment
    )


def test_twenty_kills_at_random_moments(given, tmp_path):
    """Between sites as long as some are left, then while the rest is found, written and checked."""
    folder, model = given
    chance, out, work = random.Random(0), tmp_path / "out", tmp_path / "work"
    finished = (folder / "whole.log.jsonl").read_text().count('"site solved"')
    kills = 0
    while kills < KILLS:
        left = finished - pieces(work)
        count = chance.randint(1, max(1, 2 * left // (KILLS - kills))) if left else 0
        delay = chance.uniform(0, 2) if left else chance.uniform(0, 20)
        process = quantizing(folder, model, out, "--work", work)
        kills += killed_after(min(count, left), process, work, delay)
    finish(quantizing(folder, model, out, "--work", work))
    assert pieces(work) == finished
    assert model_bytes(out) == model_bytes(folder / "whole")


def test_a_server_that_fails_one_read_in_ten(given, tmp_path):
    pytest.importorskip("aiohttp")
    folder, model = given
    with faulty_server(model.parent) as (url, counts):
        place = {"ONNXQ_CACHE": str(tmp_path / "cache")}
        finish(quantizing(folder, f"{url}/{model.name}", tmp_path / "out", "--no-resume", **place))
    assert counts["failed"] > 0
    assert model_bytes(tmp_path / "out") == model_bytes(folder / "whole")


def test_workers_of_ray_of_which_one_is_killed(given, tmp_path):
    pytest.importorskip("ray.util.joblib")
    folder, model = given
    out, work = tmp_path / "out", tmp_path / "work"
    process = quantizing(folder, model, out, "--work", work, "--workers", 2, "--backend", "ray")
    killer = threading.Thread(target=kill_a_worker, args=(process, work))
    killer.start()
    finish(process)
    killer.join()
    assert model_bytes(out) == model_bytes(folder / "whole")
    told = [json.loads(line) for line in (tmp_path / "out.log.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in told if line["event"] == "worker lost"]


def kill_a_worker(process, work):
    """Kill a process of Ray that works for this run, until one was at work."""
    log = work.with_name("out.log.jsonl")
    while process.poll() is None:
        if pieces(work) > 10:
            for worker in workers_of(process.pid):
                os.kill(worker, signal.SIGKILL)
                break
            time.sleep(2)
            if log.is_file() and "worker lost" in log.read_text():
                return
        time.sleep(0.2)


def workers_of(pid):
    """Processes below this one that are actors of Ray's pool."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    rows = [line.split(None, 1) for line in listed.stdout.splitlines()[1:]]
    return [
        int(number)
        for number, words in rows
        if words.startswith("ray::PoolActor") and is_below(int(number), pid)
    ]


def is_below(process, ancestor):
    """Whether a process was started by another, or by one that was."""
    while process > 1:
        if process == ancestor:
            return True
        try:
            status = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return False
        process = int(status.rpartition(")")[2].split()[1])
    return False
