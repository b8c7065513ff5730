"""The table of the CUDA provider: what is fast there, what falls to the CPU; nothing is run."""

import json

import pytest

import onnxq
from onnxq.errors import UsageError
from onnxq.export.session_options import OPTIONS
from onnxq.export.target import Execution
from onnxq.graph import load, save

from .qdq_patterns import Pattern, build


@pytest.mark.parametrize(
    ("rule", "execution", "pattern"),
    [
        ("weight-only-nbits", Execution.LOW_BIT, Pattern(x=None, w="i4", span="32")),
        ("cuda-no-integer-fusion", Execution.DEQUANTIZED, Pattern(y="u8")),
        ("cuda-no-integer-fusion", Execution.DEQUANTIZED, Pattern(kind="Conv", y="u8")),
        ("float", Execution.FLOAT, Pattern(x=None, w=None)),
    ],
)
def test_the_table_decides(rule, execution, pattern):
    verdicts = onnxq.check(load(build(pattern)), "onnxruntime-cuda")
    (site,) = verdicts.sites
    assert (site.rule, site.execution) == (rule, execution)
    pairs = {"x_Q"} | ({"y_Q"} if pattern.y else set()) if pattern.x else set()
    assert {pair.site for pair in verdicts.wasted} == pairs
    assert "not run here: the CUDA provider needs a GPU" in verdicts.notes


def test_a_build_names_the_provider_and_says_that_it_was_not_run(tmp_path):
    save(load(build(Pattern(x=None, w="i4", span="32"))), tmp_path / "model.onnx")
    built = onnxq.build(tmp_path / "model.onnx", "onnxruntime-cuda", tmp_path / "out")
    assert built.verified["cuda"] == "not run here"
    options = json.loads((built.folder / OPTIONS).read_text())
    assert options["providers"] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(UsageError, match="'onnxruntime-cuda' is not run here"):
        onnxq.check(tmp_path / "model.onnx", "onnxruntime-cuda", run=True)
