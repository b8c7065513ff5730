"""What the rules say of a site is what ONNX Runtime runs, whichever way it is quantized."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from onnxq.export.onnxruntime_kernels import KernelIndex
from onnxq.export.onnxruntime_rules import FUSIONS
from onnxq.export.target import Execution
from onnxq.export.to_onnxruntime import OnnxRuntimeCpu
from onnxq.graph import find_sites, load
from onnxq.runtime import open_session
from onnxq.runtime.optimized import optimized_model

from .qdq_patterns import Pattern, build

KERNELS = ("QLinear", "Integer", "QGemm", "NBits")
MOVED = ("DequantizeLinear", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")


def patterns():
    """(the rule that decides, a pattern), every rule broken once and kept in several ways."""
    conv, gemm, nbits = {"kind": "Conv"}, {"kind": "Gemm"}, {"x": None, "w": "i4", "span": "32"}
    both = {"y": "u8"}
    yield from (
        ("float", Pattern(x=None, w=None)),
        ("qdq-matmul", Pattern()),
        ("qdq-matmul", Pattern(**both)),
        ("qdq-matmul", Pattern(x="i8", w="u8", y="i8", zeros="")),
        ("qdq-matmul", Pattern(x="i8", y="u8", span="tensor")),
        ("qdq-matmul", Pattern(after="Clip", **both)),
        ("qdq-matmul", Pattern(after="Relu", zero=0, **both)),
        ("qdq-matmul", Pattern(after="Turn", **both)),
        ("qdq-matmul", Pattern(before="Reshape")),
        ("qdq-matmul", Pattern(shape=("n", 5, 64), bias="float")),
        ("qdq-matmul", Pattern(turned=True)),
        ("qdq-matmul", Pattern(computed_scale=True, **both)),
        ("qdq-gemm", Pattern(bias="i32")),
        ("qdq-gemm", Pattern(bias="float", **both)),
        ("qdq-gemm", Pattern(shape=(2, 5, 64), bias="i32", **both)),
        ("qdq-gemm", Pattern(transposed=True, bias="i32", **gemm)),
        ("qdq-gemm", Pattern(alpha=0.5, **gemm, **both)),
        ("qdq-conv", Pattern(bias="i32", **conv, **both)),
        ("qdq-conv", Pattern(bias="float", x="i8", w="i8", kind="Conv", y="i8")),
        ("weight-requantized", Pattern(w=None, bias="float", **conv, **both)),
        ("weight-requantized", Pattern(w=None, **gemm, **both)),
        ("weight-only-nbits", Pattern(**nbits)),
        ("weight-only-nbits", Pattern(x=None, w="u2", span="64", opset=25, bias="float")),
        ("weight-only-nbits", Pattern(x=None, w="i8", turned=True, bias="float")),
        ("weight-only-nbits", Pattern(before="Relu")),
        ("input-quantized", Pattern(x=None, **conv, **both)),
        ("weight-quantized", Pattern(w=None)),
        ("weight-quantized", Pattern(w=None, **gemm)),
        ("eight-bit-codes", Pattern(x="u16", y="u16")),
        ("eight-bit-codes", Pattern(w="i4", **conv, **both)),
        ("eight-bit-codes", Pattern(w="i4")),
        ("signed-codes-read-once", Pattern(x="i8", x_twice=True)),
        ("signed-codes-read-once", Pattern(x="i8", y="i8", x_twice=True, **conv)),
        ("signed-codes-read-once", Pattern(x="i8", y="i8", x_twice=True, y_twice=True)),
        ("signed-codes-read-once", Pattern(x="i8", x_twice=True, before="Reshape")),
        ("qdq-gemm", Pattern(x="i8", x_twice=True, **gemm)),
        ("qdq-gemm", Pattern(x="i8", y="i8", x_twice=True, y_twice=True, **gemm)),
        ("gemm-signs", Pattern(x="i8", w="u8", x_twice=True, **gemm)),
        ("same-codes", Pattern(x="i8", y="i8", y_twice=True)),
        ("same-codes", Pattern(x="u8", y="i8", y_twice=True, **conv)),
        ("same-codes", Pattern(x="i8", y="i8", x_twice=True, **gemm)),
        ("qdq-matmul", Pattern(x="i8", y="i8", y_twice=True, after="Reshape")),
        ("no-clip-behind", Pattern(after="Relu")),
        ("no-clip-behind", Pattern(after="Relu", **both)),
        ("no-clip-behind", Pattern(after="Clip6", bias="i32", **gemm, **both)),
        ("no-clip-behind", Pattern(after="Relu", **conv, **both)),
        ("result-read-by-quantizer-alone", Pattern(both=True, **both)),
        ("result-read-by-quantizer-alone", Pattern(is_output=True, **conv, **both)),
        ("result-quantized", Pattern(bias="i32", **conv)),
        ("bias-quantized", Pattern(bias="float")),
        ("bias-quantized", Pattern(bias="float", **gemm)),
        ("bias-scale", Pattern(bias="i32", bias_factor=1.5, **conv, **both)),
        ("bias-scale-ignored", Pattern(bias="i32", bias_factor=1.5, **gemm, **both)),
        ("gemm-zero-points", Pattern(zeros="xy", **gemm)),
        ("gemm-factors", Pattern(alpha=0.5, bias="i32", **gemm, **both)),
        ("gemm-weight-scales", Pattern(span="32", **gemm)),
        ("gemm-transpose", Pattern(after="Turn", **gemm)),
        ("weight-scales-by-output", Pattern(wrong_axis=True, width=64)),
        ("weight-scales-by-output", Pattern(span="32", **both)),
        ("weight-scales-by-output", Pattern(wrong_axis=True, **conv, **both)),
        ("nbits-result", Pattern(after="Relu", **nbits)),
        ("nbits-result", Pattern(**nbits, **both)),
        ("nbits-weight-read-once", Pattern(twin=True, **nbits)),
        ("nbits-codes", Pattern(x=None, w="i16")),
        ("nbits-blocks", Pattern(x=None, w="i4", span="48")),
        ("nbits-blocks", Pattern(x=None, w="i8", span="8")),
        ("nbits-blocks", Pattern(wrong_axis=True, **nbits)),
        ("nbits-gemm", Pattern(alpha=0.5, **gemm, **nbits)),
    )


def name_of(pattern):
    shown = [(f.name, getattr(pattern, f.name), f.default) for f in dataclasses.fields(pattern)]
    return ",".join(f"{name}={value}" for name, value, default in shown if value != default)


PATTERNS = list(patterns())


@pytest.mark.parametrize(
    ("rule", "pattern"), PATTERNS, ids=[f"{r}:{name_of(p)}" for r, p in PATTERNS]
)
def test_the_rule_decides_and_onnxruntime_runs_what_it_says(rule, pattern):
    target, model = OnnxRuntimeCpu(), load(build(pattern))
    verdicts = target.check(model)
    verdict = next(site for site in verdicts.sites if site.site == "site")
    assert verdict.rule == rule
    assert target.observe(model, verdicts).differences == []
    wasted = {pair.site for pair in verdicts.wasted}
    ours = {node.name for node in model.graph}  # it adds pairs of its own behind what moves
    assert wasted == unread_codes(optimized_model(model, run=False).model) & ours


def unread_codes(model):
    """The QuantizeLinear nodes that ONNX Runtime left, and whose codes no kernel reads."""

    def reads(value, depth=6):
        return any(
            any(kernel in use.node.op_type for kernel in KERNELS)
            or (depth and use.node.op_type in MOVED and reads(use.node.outputs[0], depth - 1))
            for use in value.uses()
        )

    nodes = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    return {node.name for node in nodes if not reads(node.outputs[0])}


def test_every_rule_is_broken_by_a_pattern_and_every_fusion_is_kept():
    decided = {rule for rule, _ in PATTERNS}
    for fusion in FUSIONS:
        assert {fusion.name, *(rule.name for rule in fusion.rules)} <= decided


def run_both(model):
    """y with the runtime's optimizations and without."""
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    results = []
    for optimize in (True, False):
        with open_session(model, optimize=optimize) as session:
            results.append(session.run({"x": x})["end_out"])
    return results


@pytest.mark.parametrize(
    "pattern",
    [
        Pattern(wrong_axis=True, width=64),
        Pattern(kind="Gemm", bias="i32", bias_factor=40.0),
    ],
)
def test_what_is_called_unsupported_is_computed_wrongly(pattern):
    model = load(build(pattern))
    (verdict,) = OnnxRuntimeCpu().check(model).sites
    assert verdict.execution is Execution.UNSUPPORTED
    fused, exact = run_both(model)
    assert np.abs(fused - exact).max() > 0.05 * np.abs(exact).max()
    right, exact = run_both(load(build(dataclasses.replace(
        pattern, wrong_axis=False, bias_factor=1.0
    ))))  # fmt: skip
    assert np.abs(right - exact).max() < 1e-5 * np.abs(exact).max()


def test_taking_a_quantization_away_is_told_where_and_why():
    model = load(build(Pattern(kind="Conv", bias="i32", y="u8")))
    assert OnnxRuntimeCpu().check(model).is_clean
    quantize = next(node for node in model.graph if node.name == "y_Q")
    back = next(iter(quantize.outputs[0].uses())).node
    back.outputs[0].replace_all_uses_with(quantize.inputs[0])
    model.graph.remove([back, quantize], safe=True)
    verdicts = OnnxRuntimeCpu().check(model)
    (verdict,) = verdicts.sites
    assert (verdict.rule, verdict.execution) == ("result-quantized", Execution.DEQUANTIZED)
    assert "QLinearConv asks: The result is read by one QuantizeLinear" in verdict.reason
    assert [pair.site for pair in verdicts.wasted] == ["x_Q"]
    assert not verdicts.is_clean


def test_a_site_is_found_again_under_any_name():
    model = load(build(Pattern(**{"bias": "float"}, shape=(2, 5, 64), y="u8")))
    index = KernelIndex(optimized_model(model, run=False))
    (site,) = (site for site in find_sites(model) if site.kind == "MatMul")
    assert index.kernel(site) == "QGemm"


def test_the_page_tells_every_rule():
    page = Path(__file__).parents[2] / "docs" / "targets" / "onnxruntime-cpu.md"
    text = page.read_text(encoding="utf-8")
    for fusion in FUSIONS:
        section = text.partition(f"### `{fusion.name}`")[2].partition("\n### ")[0]
        for rule in fusion.rules:
            row = f"| `{rule.name}` | {rule.says} | {rule.otherwise.value} | {rule.remedy} |"
            assert row in section
