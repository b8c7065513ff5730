"""Models for phones: ONNX Runtime's format, fixed shapes, what providers of devices do not take."""

import pytest

import onnxq
from onnxq.errors import UnsupportedGraph
from onnxq.export.target import Execution
from onnxq.export.to_mobile import Mobile
from onnxq.graph import load, save
from onnxq.runtime import open_session

from .qdq_patterns import Pattern, build

CONV = Pattern(kind="Conv", bias="i32", y="u8")


@pytest.fixture
def model(tmp_path):
    return save(load(build(CONV)), tmp_path / "source.onnx")


@pytest.mark.parametrize("style", ["runtime", "fixed"])
def test_a_build_holds_one_file_that_computes_the_same(model, tmp_path, style):
    built = onnxq.build(model, "mobile", tmp_path / "out", set=["sizes={n=2}", f"style={style}"])
    assert list(built.files) == ["model.ort"]
    compared = built.verified["outputs"]
    assert compared["compared"] == 1
    assert compared["sqnr_db"] is None or compared["sqnr_db"] > 60
    assert built.verified["activation bytes"] >= 2 * 32 * 16 * 4  # the result of the convolution
    assert built.verdicts.is_clean
    with open_session(built.folder / "model.ort") as session:
        assert session.inputs[0].shape == (2, 8, 6, 6)


def test_shapes_stay_dynamic_unless_sizes_are_given(model, tmp_path):
    built = onnxq.build(model, "mobile", tmp_path / "out")
    assert any(note.startswith("fixed-shapes: inputs 'x'") for note in built.verdicts.notes)
    with open_session(built.folder / "model.ort") as session:
        assert session.inputs[0].shape[0] == "n"
    with pytest.raises(UnsupportedGraph, match="dimension 'n' without a size"):
        onnxq.build(model, "mobile", tmp_path / "out", set=["sizes={m=2}"])


@pytest.mark.parametrize(
    ("rule", "pattern"),
    [
        ("device-channel-int8", Pattern(kind="Conv", w="u8", y="u8")),
        ("device-result", Pattern(kind="Gemm")),
        ("device-bias", Pattern(kind="Conv", bias="float", y="u8")),
        ("device-eight-bits", Pattern(kind="Conv", x="u16", y="u16")),
    ],
)
def test_what_devices_leave_to_the_cpu_is_told_by_the_rule(rule, pattern):
    (site,) = onnxq.check(load(build(pattern)), "mobile").sites
    assert (site.rule, site.execution) == (rule, Execution.ELSEWHERE)
    assert "leave this site to the CPU" in site.reason


def test_fixed_point_devices_ask_for_powers_of_two(model):
    assert Mobile().check(load(model)).is_clean
    (site,) = Mobile(power_of_two=True).check(load(model)).unclean
    assert site.rule == "device-power-of-two"
    assert "use insert_qdq.power_of_two=true" in site.reason
