"""Every example of the README and of docs/ runs as it stands there.

Commands on models and data that take minutes to get are only parsed: words, options, recipe.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from onnxq.budget.policy import load_policy
from onnxq.cli import app
from onnxq.graph import save
from onnxq.passes.recipe import load_recipe
from tests.two_layers import two_layers

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [
    (page.name, language, text)
    for page in PAGES
    for language, text in re.findall(r"```(\w+)\n(.*?)```", TEXTS[page], re.S)
]
ELSEWHERE = ("make ", "pip install")
"""Set-up commands: CI and the slow tests run them."""
REAL = ("decoder/", "whisper/", "whisper-int8/", "whisper-tiny-en")
"""Models that are exported or fetched first: commands with these words are only parsed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    save(two_layers(rng), place / "model.onnx")
    (place / "calibration").mkdir()
    for index in range(8):
        x = rng.standard_normal((4, 64)).astype(np.float32)
        np.savez(place / "calibration" / f"{index}.npz", x=x)
    return place


def examples(language):
    return [(page, text) for page, written, text in BLOCKS if written == language]


def commands():
    for page, text in examples("sh"):
        for line in text.splitlines():
            command = line.partition("#")[0].strip()
            if command and not command.startswith(ELSEWHERE):
                yield page, command


def is_real(command):
    return any(word in REAL for word in command.split())


@pytest.mark.parametrize(
    ("page", "command"), [example for example in commands() if not is_real(example[1])]
)
def test_shell_examples(page, command, folder):
    assert command.startswith("onnxq "), "only onnxq commands are run here"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("page", "command"), [example for example in commands() if is_real(example[1])]
)
def test_examples_on_real_models_are_at_least_well_formed(page, command):
    program, name, *words = shlex.split(command)
    assert program == "onnxq"
    parsed = typer.main.get_command(app).commands[name].make_context(name, words)
    if name == "quantize":
        load_recipe(parsed.params["recipe"] or "budget", parsed.params["set_"] or ())


@pytest.mark.parametrize(("page", "text"), examples("python"))
def test_python_examples(page, text, folder):
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "text"), examples("toml"))
def test_recipe_and_policy_examples(page, text, tmp_path):
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    if "[[sites]]" in text:
        assert load_policy(tmp_path / "mine.toml").sites
    else:
        assert load_recipe(tmp_path / "mine.toml").steps


def test_every_block_is_in_a_language_that_is_tried():
    assert {language for _, language, _ in BLOCKS} <= {"sh", "python", "toml", "text"}


def test_make_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", TEXTS[ROOT / "README.md"]):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[page]):
        assert (page.parent / target).exists(), target
