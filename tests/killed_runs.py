"""The command line in processes of their own, which are killed at chosen moments."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_CODE = "from onnxq.cli import main; main()"


def start(*arguments, **environment):
    """`onnxq` with these arguments, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _CODE, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def finish(process, timeout=1800):
    """Wait for its end, which must be a good one."""
    _, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors


def pieces(work: Path) -> int:
    """How many finished sites a folder of work holds."""
    return len(list(work.glob("pieces/*/*.npz")))


def killed_after(count, process, work, delay=0.0):
    """Kill the process once so many more pieces are there; False when it was done before."""
    before = pieces(work)
    while process.poll() is None and pieces(work) < before + count:
        time.sleep(0.01)
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    process.communicate()
    return False


def model_bytes(folder):
    """The content of the model files of an artifact, by name."""
    return {file.name: file.read_bytes() for file in folder.glob("model.onnx*")}
