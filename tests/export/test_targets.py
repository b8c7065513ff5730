"""Targets by name, with checked options; a folder is built whole or not at all."""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import onnxq
from onnxq.cli import app
from onnxq.errors import ExportError, UsageError
from onnxq.export import targets as room
from onnxq.export.target import DeploymentTarget, Execution, SiteVerdict, Verdicts
from onnxq.graph import save


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper(DeploymentTarget):
    """Prints models on paper.

    Attributes:
        sheets: most of them.
    """

    name: ClassVar[str] = "paper"
    title: ClassVar[str] = "paper, any desk"
    sheets: int = 3
    torn: bool = False

    def check(self, model):
        site = SiteVerdict(
            site="site",
            execution=Execution.UNSUPPORTED if self.torn else Execution.FLOAT,
            rule="paper-is-whole",
            reason="the paper is torn: take another" if self.torn else "",
        )
        return Verdicts(target=self.name, sites=[site])

    def build(self, source, staging):
        (staging / "pages").mkdir()
        (staging / "pages" / "1.txt").write_text("one")
        if self.torn:
            raise ExportError("the paper is torn: take another")
        return {"sheets": self.sheets}


@pytest.fixture(autouse=True)
def paper(monkeypatch):
    monkeypatch.setattr(room, "TARGETS", {**room.TARGETS, "paper": (__name__, "Paper")})


@pytest.fixture
def model(tmp_path):
    built = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[n, 8] x) => (float[n, 4] y) { y = MatMul(x, w) }"
    )
    value = built.graph[0].inputs[1]
    value.const_value = ir.tensor(np.ones((8, 4), np.float32), name="w")
    value.shape, value.dtype = ir.Shape((8, 4)), value.const_value.dtype
    built.graph.register_initializer(value)
    return save(built, tmp_path / "model.onnx")


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_listed_target_exists_and_is_called_as_it_is_listed():
    for name in room.TARGETS:
        cls = room.target_class(name)
        assert cls.name == name and cls.title
        assert dataclasses.is_dataclass(cls) and cls() == cls()


def test_options_are_fields_and_their_types_are_checked():
    assert room.target_with("paper", ["sheets=5"]) == Paper(sheets=5)
    with pytest.raises(UsageError, match="has no key 'sheet'; did you mean 'sheets'"):
        room.target_with("paper", ["sheet=5"])
    with pytest.raises(UsageError, match="sheets = 'many' is not valid"):
        room.target_with("paper", ["sheets=many"])
    with pytest.raises(UsageError, match="not of the form key=value"):
        room.target_with("paper", ["sheets"])
    with pytest.raises(UsageError, match="There is no target 'papre'; did you mean 'paper'"):
        room.target_with("papre")


def test_a_folder_holds_the_account_of_what_is_in_it(model, tmp_path):
    built = onnxq.build(model, Paper(), tmp_path / "out")
    account = json.loads((tmp_path / "out" / room.ACCOUNT).read_text())
    assert account["files"] == dict(built.files) == {"pages/1.txt": 3}
    assert account["verified"] == {"sheets": 3}
    assert account["check"]["is_clean"] is True
    onnxq.build(model, Paper(sheets=4), tmp_path / "out")  # replaced without asking
    assert json.loads((tmp_path / "out" / room.ACCOUNT).read_text())["verified"] == {"sheets": 4}


def test_a_build_that_fails_leaves_what_was_there(model, tmp_path):
    onnxq.build(model, Paper(), tmp_path / "out")
    before = (tmp_path / "out" / room.ACCOUNT).read_bytes()
    with pytest.raises(ExportError, match="torn"):
        onnxq.build(model, Paper(torn=True), tmp_path / "out")
    assert (tmp_path / "out" / room.ACCOUNT).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out"]


def test_a_foreign_folder_is_never_replaced(model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="not empty"):
            onnxq.build(model, Paper(), tmp_path / "thesis", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_the_command_line_checks_builds_and_lists(model, tmp_path):
    clean = command("check", model, "--target", "paper", "--strict", "--json")
    assert clean.exit_code == 0, clean.output
    assert json.loads(clean.stdout)["sites"][0]["execution"] == "float"
    torn = command("check", model, "-t", "paper", "--set", "torn=true", "--strict")
    assert torn.exit_code == 1
    assert "paper-is-whole: the paper is torn: take another (site)" in torn.stdout
    assert command("check", model, "-t", "paper", "--set", "torn=true").exit_code == 0
    done = command("build", model, "-t", "paper", "-o", tmp_path / "out")
    assert done.exit_code == 0 and "pages/1.txt" in done.stdout
    rows = json.loads(command("targets", "--json").stdout)
    assert {"target": "paper", "what": "paper, any desk"}.items() <= rows[-1].items()
    assert "sheets=3" in rows[-1]["options"]


def test_a_target_that_cannot_be_asked_says_so(model):
    with pytest.raises(UsageError, match="'paper' cannot be asked what it runs"):
        onnxq.check(model, Paper(), run=True)
