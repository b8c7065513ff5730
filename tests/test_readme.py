"""Every example of the README runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph import save

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
ELSEWHERE = ("make ", "pip install")
"""Set-up commands: CI and the slow tests run them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[n, 64] x) => (float[n, 64] y)"
        "{ h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) }"
    )
    for node, name in zip([model.graph[0], model.graph[2]], ["w0", "w1"], strict=True):
        value = node.inputs[1]
        value.const_value = ir.tensor(rng.standard_normal((64, 64)).astype(np.float32), name=name)
        value.shape, value.dtype = ir.Shape((64, 64)), value.const_value.dtype
        model.graph.register_initializer(value)
        node.name = f"linear_{name}"
    save(model, place / "model.onnx")
    (place / "calibration").mkdir()
    for index in range(8):
        x = rng.standard_normal((4, 64)).astype(np.float32)
        np.savez(place / "calibration" / f"{index}.npz", x=x)
    return place


def commands():
    for language, text in BLOCKS:
        if language == "sh":
            for line in text.splitlines():
                command = line.partition("#")[0].strip()
                if command and not command.startswith(ELSEWHERE):
                    yield command


@pytest.mark.parametrize("command", list(commands()))
def test_shell_examples(command, folder):
    assert command.startswith("onnxq "), "only onnxq commands are run here"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "python"])
def test_python_examples(text, folder):
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
