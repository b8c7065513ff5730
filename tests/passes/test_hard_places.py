"""Disks that are full, folders that cannot be written, another file system: sentences, no losses.

Mounts are made in a mount namespace of their own, which needs root.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from onnxq.graph import save
from onnxq.runtime.work_folder import WorkFolder
from tests.killed_runs import finish, model_bytes, start

pytestmark = pytest.mark.slow
QUANTIZE = ["-r", "int4", "--set", "quantize_weights.solver=gptq", "--no-check"]


@pytest.fixture
def given(tiny_decoder, tmp_path):
    save(tiny_decoder(width=128, heads=4, hidden=384, layers=3), tmp_path / "in" / "model.onnx")
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(12):
        x = rng.standard_normal((2, 6, 128)).astype(np.float32)
        np.savez(tmp_path / "data" / f"{number:02}.npz", x=x)
    finish(quantizing(tmp_path, tmp_path / "whole", "--no-resume"))
    return tmp_path


def quantizing(given, out, *more):
    data = ["--data", given / "data"]
    return start("quantize", given / "in" / "model.onnx", "-o", out, *QUANTIZE, *data, *more)


def mounted(given, *lines):
    """Run lines of a shell with mounts of their own; what each `onnxq` said and how it ended."""
    here = given / "place"
    here.mkdir(exist_ok=True)
    data = f"--data {given}/data {' '.join(QUANTIZE)}"
    onnxq = f'{sys.executable} -P -c "from onnxq.cli import main; main()"'
    script = f"""
set -e
quantize() {{
  n=$((n + 1)); code=0
  {onnxq} quantize {given}/in/model.onnx {data} -o "$1" > /dev/null 2> {given}/said$n || code=$?
  echo $code
}}
n=0
cd {here}
"""
    command = ["unshare", "-m", "sh", "-c", script + "\n".join(lines)]
    environment = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts of our own here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    said = [file.read_text() for file in sorted(given.glob("said*"))]
    return [int(word) for word in done.stdout.split()], said


def test_a_disk_that_is_full_loses_nothing(given):
    codes, said = mounted(
        given,
        "mount -t tmpfs -o size=300k tmpfs $PWD; cd $PWD",
        "quantize out",
        "test ! -e out",
        "mount -o remount,size=50m $PWD",
        "quantize out",
        f"cp -r out out.log.jsonl {given}",
    )
    assert codes == [1, 0]
    assert "No space left on device" in said[0] and "the same command" in said[0]
    assert model_bytes(given / "out") == model_bytes(given / "whole")
    told = [json.loads(line) for line in (given / "out.log.jsonl").read_text().splitlines()]
    assert any(line["event"] == "site found" for line in told)


def test_an_input_that_is_read_only_and_an_output_elsewhere(given):
    codes, said = mounted(
        given,
        f"mount --bind {given}/in {given}/in",
        f"mount -o remount,bind,ro {given}/in",
        "mount -t tmpfs -o size=50m tmpfs $PWD; cd $PWD",
        "quantize out",
        f"cp -r out {given}",
    )
    assert codes == [0], said
    assert model_bytes(given / "out") == model_bytes(given / "whole")


def test_a_place_that_cannot_be_written(given):
    codes, said = mounted(given, "mount -t tmpfs -o ro tmpfs $PWD; cd $PWD", "quantize out")
    assert codes == [1]
    assert "cannot be written" in said[0] and "Read-only file system" in said[0]
    assert "Traceback" not in said[0]


def test_two_runs_in_one_folder(given):
    with WorkFolder(given / "out.work"):  # as a run that is at work holds it
        second = quantizing(given, given / "out")
        _, said = second.communicate(timeout=600)
        assert second.returncode == 1 and "Another run" in said and "Traceback" not in said
        assert not (given / "out").exists()
    finish(quantizing(given, given / "out"))
    assert model_bytes(given / "out") == model_bytes(given / "whole")
