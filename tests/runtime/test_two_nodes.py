"""A cluster of two nodes that see each other only over a network: two network namespaces here."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAD, OTHER, PORT = "10.77.0.1", "10.77.0.2", 6399
STARTS = 20.0
"""Seconds that a node is given."""
RAY = "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"
DRIVER = """
import json, os, sys, pathlib
import numpy as np
import onnxq
from onnxq.graph import save
from onnxq.runtime.workers import Workers
from tests.five_layers import five_layers, five_samples
from tests.runtime.where import where
cluster = Workers(count=2, backend="ray", address=sys.argv[1])
nodes = []
cluster.map(where, list(range(8)), lambda number, node: nodes.append(node), None)
out = pathlib.Path(sys.argv[2])
changes = ["quantize_weights.solver=gptq", "quantize_weights.cut=whole"]
how = {"data": five_samples(8), "set": changes}
model = five_layers()
for name, workers in (("here", Workers()), ("cluster", cluster)):
    onnxq.quantize(model, "int4", out=out / name, workers=workers, check="off",
                   log=out / f"{name}.jsonl", **how)
same = (out / "here" / "model.onnx").read_bytes() == (out / "cluster" / "model.onnx").read_bytes()
print(json.dumps({"nodes": sorted(set(nodes)), "same": same}))
"""


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def two_namespaces():
    """Names of two network namespaces joined by a cable."""
    names = [f"onnxq-{os.getpid()}-{side}" for side in "ab"]
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError:
        pytest.skip("network namespaces are not permitted here")
    try:
        ip("netns", "add", names[1])
        cables = [f"oq{os.getpid()}{side}" for side in "ab"]
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for name, cable, address in zip(names, cables, (HEAD, OTHER), strict=True):
            ip("link", "set", cable, "netns", name)
            for words in (
                ("addr", "add", f"{address}/24", "dev", cable),
                ("link", "set", cable, "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", name, *words)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def inside(name, *words, **options):
    command = ["ip", "netns", "exec", name, sys.executable, "-P", *words]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAY_AUTH_MODE": "disabled",  # nobody else is on this network
    }
    return subprocess.Popen(command, start_new_session=True, text=True, env=environment, **options)


def node(name, address, *words):
    shared = ["--node-ip-address", address, "--num-cpus", "1", "--block", "--disable-usage-stats"]
    shared += ["--object-store-memory", str(200 << 20)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return inside(name, "-c", RAY, "start", *shared, *words, **quiet)


@pytest.mark.slow
def test_a_cluster_of_two_nodes_gives_the_bytes_of_one_process(tmp_path):
    pytest.importorskip("ray")
    with two_namespaces() as (first, second), contextlib.ExitStack() as stack:
        address = f"{HEAD}:{PORT}"
        head = node(first, HEAD, "--head", "--port", str(PORT), "--include-dashboard=false")
        stack.callback(end, head)
        time.sleep(STARTS)
        stack.callback(end, node(second, OTHER, "--address", address))
        time.sleep(STARTS)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        driver = inside(first, "-c", DRIVER, address, str(tmp_path), **pipes)
        stack.callback(end, driver)
        told, errors = driver.communicate(timeout=900)
        assert driver.returncode == 0, errors
        found = json.loads(told.splitlines()[-1])
        assert OTHER in found["nodes"] and found["same"]


def end(process):
    """End a process and all that it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
