"""Target arm64 without QEMU: its rules, what it writes, what it says when something is missing."""

import json
import shutil
import sys

import numpy as np
import pytest

import onnxq
from onnxq.errors import ExportError, MissingProgram
from onnxq.export import to_arm64
from onnxq.export.arm64_library import needs_of, require_arm64
from onnxq.export.target import Execution
from onnxq.export.to_arm64 import Arm64
from onnxq.export.to_onnxruntime import OnnxRuntimeCpu
from onnxq.graph import load, save
from tests.two_layers import two_layers

from .qdq_patterns import Pattern, build


@pytest.fixture
def no_qemu(monkeypatch):
    def missing():
        raise MissingProgram("qemu-aarch64-static", "qemu-user-static", "Running a model")

    monkeypatch.setattr(to_arm64, "arm64_machine", missing)


@pytest.fixture
def source(tmp_path):
    return save(two_layers(np.random.default_rng(0)), tmp_path / "source" / "model.onnx")


@pytest.mark.parametrize(
    ("pattern", "x86", "arm"),
    [
        (Pattern(x="i8", x_twice=True), "signed-codes-read-once", "qdq-matmul"),
        (Pattern(x="i8", y="u8", span="tensor"), "qdq-matmul", "same-codes"),
        (Pattern(x="i8", y="i8", y_twice=True), "same-codes", "qdq-matmul"),
        (Pattern(x="i8", w="u8"), "qdq-matmul", "signed-codes-read-once"),
        (Pattern(), "qdq-matmul", "qdq-matmul"),
    ],
)
def test_int8_activations_stay_int8(pattern, x86, arm):
    model = load(build(pattern))
    for target, rule in ((OnnxRuntimeCpu(), x86), (Arm64(), arm)):
        (verdict,) = (site for site in target.check(model).sites if site.site == "site")
        assert verdict.rule == rule


@pytest.mark.parametrize(
    ("fmt", "write", "broken"),
    [("int2_g64", "auto", 2), ("int4_g64", "auto", 0), ("int8_g64", "auto", 2),
     ("int8_channel", "dequantize", 1), ("int4_g64", "dequantize", 0)],
)  # fmt: skip
def test_two_and_eight_bits_ask_for_products_of_four_bytes(fmt, write, broken, source, tmp_path):
    """Behind DequantizeLinear one site is fused; the other has a Relu behind it."""
    settings = [f"quantize_weights.format={fmt}", f"quantize_weights.write={write}"]
    out = tmp_path / "out"
    model = load(onnxq.quantize(source, "int4", out=out, set=settings, check="off").artifact.model)
    found = [site for site in Arm64(cpu="cortex-a72").check(model).unclean
             if site.rule == "arm-nbits-without-dot"]  # fmt: skip
    assert len(found) == broken
    assert all(site.execution is Execution.DEQUANTIZED for site in found)
    assert not any(site.rule == "arm-nbits-without-dot" for site in Arm64().check(model).sites)


def test_a_folder_is_written_and_says_that_it_was_not_run(no_qemu, source, tmp_path):
    artifact = onnxq.quantize(source, "int8_dynamic", out=tmp_path / "out", check="off").artifact
    built = onnxq.build(artifact.folder, "arm64", tmp_path / "built")
    assert built.verified["library"] == "not needed"
    assert "qemu-user-static" in built.verified["ONNX Runtime on neoverse-n1 under QEMU"]
    options = json.loads((built.folder / "session_options.json").read_text())
    assert options["config"] == {} and options["custom_ops_library"] is None


def test_a_library_for_another_processor_is_refused(no_qemu, source, tmp_path):
    settings = ["quantize_weights.format=lut4_f16"]
    artifact = onnxq.quantize(
        source, "int4", out=tmp_path / "out", set=settings, check="off"
    ).artifact
    mine = tmp_path / "libonnxq_ops.so"
    shutil.copy(sys.executable, mine)
    for wrong in (mine, tmp_path / "absent.so", source):
        with pytest.raises(ExportError, match="is no library for 64-bit ARM Linux: give libonnxq"):
            onnxq.build(artifact.folder, Arm64(built_library=wrong), tmp_path / "built")
    with pytest.raises(MissingProgram, match=r"needs the program 'nowhere-g\+\+'"):
        onnxq.build(artifact.folder, Arm64(compiler="nowhere-g++"), tmp_path / "built")
    assert not (tmp_path / "built").exists()
    built = onnxq.build(artifact.folder, Arm64(library=False), tmp_path / "built")
    assert built.verified["library"] == "not needed"
    assert {site.execution for site in built.verdicts.sites} == {Execution.FUNCTION}


def test_versions_of_system_libraries_are_read_from_the_file(tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(
        b"\x7fELF" + bytes(14) + (183).to_bytes(2, "little")
        + b"\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_2.4\0GLIBCXX_3.4.29\0"
    )  # fmt: skip
    require_arm64(path)
    assert needs_of(path) == ("GLIBC 2.34", "GLIBCXX 3.4.29")
