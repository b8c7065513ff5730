"""ONNX Runtime for 64-bit ARM under QEMU runs what the rules say, and computes what it should.

`make test-arm` installs what it takes.
"""

import shutil

import numpy as np
import pytest

import onnxq
from onnxq.export.arm64_machine import CPUS, Job, arm64_machine
from onnxq.export.onnxruntime_kernels import KernelIndex
from onnxq.export.to_arm64 import Arm64
from onnxq.graph import find_sites, load, save
from onnxq.runtime import open_session
from onnxq.runtime.optimized import optimizing_config, read_optimized
from tests.two_layers import two_layers

from .qdq_patterns import build
from .test_onnxruntime_rules import PATTERNS, name_of, unread_codes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("aarch64-linux-gnu-g++") is None
        or shutil.which("qemu-aarch64-static") is None
        or shutil.which("cmake") is None,
        reason="ARM is tested where cmake, g++-aarch64-linux-gnu and qemu-user-static are "
        "installed: make test-arm",
    ),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Each pattern of the rules, and the graph that ONNX Runtime on ARM makes of it."""
    jobs, models = [], []
    for rule, pattern in PATTERNS:
        folder = tmp_path_factory.mktemp("pattern")
        models.append((f"{rule}:{name_of(pattern)}", load(build(pattern))))
        path = save(models[-1][1], folder / "model.onnx")
        jobs.append(Job(model=path, config=optimizing_config(), optimized=folder))
    arm64_machine().run(jobs, "neoverse-n1")
    return [
        (*model, read_optimized(job.optimized)) for model, job in zip(models, jobs, strict=True)
    ]


def test_every_pattern_runs_as_the_rules_say(seen):
    for name, model, optimized in seen:
        verdicts = Arm64().check(model)
        (said,) = (site for site in verdicts.sites if site.site == "site")
        (site,) = (site for site in find_sites(model) if site.name == "site")
        ran = KernelIndex(optimized).kernel(site)
        assert ran == (said.kernel or site.kind) or (said.kernel is None and ran == "MatMul"), name
        ours = {node.name for node in model.graph}
        wasted = {pair.site for pair in verdicts.wasted}
        assert wasted == unread_codes(optimized.model) & ours, name


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return save(two_layers(np.random.default_rng(0)), folder / "model.onnx")


def quantized(source, folder, recipe, *settings):
    return onnxq.quantize(source, recipe, out=folder, set=settings, check="off").artifact


@pytest.mark.parametrize("cpu", CPUS)
def test_integers_are_computed_to_the_last_bit_on_every_processor(cpu, source, tmp_path):
    """Two products of int8 with a Relu between: their sums are of integers, so all bits agree."""
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    artifact = quantized(source, tmp_path / "out", "int8_dynamic")
    target = Arm64(cpu=cpu)
    built = onnxq.build(artifact.folder, target, tmp_path / "built")
    assert built.verified[f"ONNX Runtime on {cpu} under QEMU"] == "ran"
    with open_session(artifact.model) as session:
        wanted = session.run({"x": x})["y"]
    (found,) = target.run(built.folder, [{"x": x}])
    # Scales of activations are quotients: one rounding of float32 each.
    assert np.abs(found["y"] - wanted).max() <= 4 * np.finfo(np.float32).eps * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("fmt", "kernel"), [("lut4_f16", "MatMulLut"), ("vq_d4n256", "MatMulCodebook")]
)
def test_operators_of_the_library_run_there(fmt, kernel, source, tmp_path):
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    artifact = quantized(source, tmp_path / "out", "int4", f"quantize_weights.format={fmt}")
    target = Arm64()
    built = onnxq.build(artifact.folder, target, tmp_path / "built")
    assert built.verified["library"].startswith("cross-compiled; needs ")
    with open_session(artifact.model) as session:
        wanted = session.run({"x": x})["y"]
    (found,) = target.run(built.folder, [{"x": x}])
    assert np.abs(found["y"] - wanted).max() < 1e-5 * np.abs(wanted).max()
    model = load(artifact.model)
    observed = target.observe(model, target.check(model), {"x": x})
    assert observed.differences == []
    assert set(observed.kernels.values()) == {kernel}
