"""Deploy to phones: ONNX Runtime's own format, fixed shapes where asked, a plan of memory.

The providers of phones take QDQ models by rules of their own (onnxruntime.ai, "ORT Mobile: model
usability"; onnxruntime/core/providers/nnapi, coreml, xnnpack). None of them is run here.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.export.genai import copy_companions
from onnxq.export.memory_plan import memory_plan, with_sizes
from onnxq.export.onnxruntime_view import View, value_type
from onnxq.export.same_outputs import NOT_COMPARED, compare_runtimes, random_runs
from onnxq.export.target import Execution, SiteVerdict, Verdicts
from onnxq.export.to_onnxruntime import OnnxRuntimeCpu
from onnxq.graph import Site, find_sites, is_weight, load, read_weight, save
from onnxq.graph.reading import find_model_file
from onnxq.runtime import open_session
from onnxq.runtime.ort_format import Style, write_ort_format

__all__ = ["Mobile"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mobile(OnnxRuntimeCpu):
    """ONNX Runtime on phones: its CPU kernels, XNNPACK, NNAPI or CoreML.

    Attributes:
        sizes: of dynamic dimensions of inputs, by name; empty leaves them dynamic. NNAPI and CoreML
            take fixed shapes only.
        style: ``runtime`` keeps Q and DQ for the provider of the device; ``fixed`` is for the CPU.
        power_of_two: the device is a fixed-point one: all scales must be powers of two.
        library: false: operators of onnxq run by their functions.
    """

    library: bool = False
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    style: Style = "runtime"
    power_of_two: bool = False

    name: ClassVar[str] = "mobile"
    title: ClassVar[str] = "ONNX Runtime Mobile: CPU, XNNPACK, NNAPI, CoreML"

    def check(self, model: ir.Model) -> Verdicts:
        """The verdicts of the CPU provider, and what the other providers would not take."""
        verdicts = super().check(model)
        broken = {verdict.site: verdict for verdict in _device_rules(model, self.power_of_two)}
        sites = [broken.get(site.site, site) for site in verdicts.sites]
        notes = [*verdicts.notes, "NNAPI, CoreML and XNNPACK are not run here"]
        dynamic = [value.name for value in model.graph.inputs if _is_dynamic(value)]
        if dynamic and not self.sizes:
            notes.append(
                f"fixed-shapes: inputs {', '.join(map(repr, dynamic))} have dynamic dimensions, "
                "which NNAPI and CoreML leave to the CPU: give sizes"
            )
        return dataclasses.replace(verdicts, target=self.name, sites=sites, notes=notes)

    def build(self, source: Path, staging: Path) -> Mapping[str, Any]:
        """Write ``model.ort`` and compare it with the model it came from.

        Raises:
            UnsupportedGraph: a dimension has no size, or the runtime does not take the model.
            ArtifactError: what was written computes something else.
        """
        file = find_model_file(source)
        model = load(file)
        if self.sizes:
            model = with_sizes(model, self.sizes)
        target = staging / "model.ort"
        with tempfile.TemporaryDirectory(prefix="onnxq-mobile-") as folder:
            plain = save(model, Path(folder) / "model.onnx")
            write_ort_format(plain, target, self.style)
            verified = _same(plain, target)
        copy_companions(file.parent, staging)
        if self.sizes:
            plan = memory_plan(model, self.sizes)
            verified |= {"activation bytes": plan.peak, "most at": plan.at}
        return verified

    def run(
        self, folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """What ``model.ort`` computes on the CPU provider of this machine."""
        with open_session(folder / "model.ort", custom_ops=self.library) as session:
            return [session.run(sample) for sample in samples]


def _device_rules(model: ir.Model, power_of_two: bool) -> Iterator[SiteVerdict]:
    """Sites whose quantization the providers of devices do not take, each with the rule."""
    for site in find_sites(model):
        if site.node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        view = View.of(site.node)
        if view.x.dequantize is None or view.w.dequantize is None:
            continue
        fixed_point = _not_fixed_point(view) if power_of_two else ()
        for rule, reason in (*fixed_point, *_broken(view)):
            yield _elsewhere(site, rule, reason)
            break


def _not_fixed_point(view: View) -> Iterator[tuple[str, str]]:
    """(rule, reason) when a scale of a site is no power of two."""
    nodes = (view.x.dequantize, view.w.dequantize, view.quantize)
    for scale in (node.inputs[1] for node in nodes if node is not None):
        if scale is None or not is_weight(scale):
            continue
        mantissas = np.frexp(read_weight(scale).astype(np.float64))[0]
        if (mantissas != 0.5).any():
            yield (
                "device-power-of-two",
                f"scale {scale.name!r} is no power of two: use insert_qdq.power_of_two=true",
            )


def _broken(view: View) -> Iterator[tuple[str, str]]:
    """(rule, reason) of what is broken (nnapi/builders/helper.cc: IsQuantizedIOSupported)."""
    weight = view.w.dequantize
    scale, zero = (weight.inputs[1], _third(weight)) if weight is not None else (None, None)
    by_output = is_weight(scale) and scale is not None and read_weight(scale).size > 1
    if by_output and view.w.codes != ir.DataType.INT8:
        yield "device-channel-int8", "scales by output go with int8 weights only: use int8_channel"
    if by_output and is_weight(zero) and zero is not None and read_weight(zero).any():
        yield "device-channel-symmetric", "scales by output go with zero points 0 only"
    if view.quantize is None:
        yield "device-result", "devices compute in integers only what is quantized behind, too"
    if view.bias.exists and view.bias.codes != ir.DataType.INT32:
        yield "device-bias", "the bias must be int32 behind DequantizeLinear"
    point = None if view.x.dequantize is None else _third(view.x.dequantize)
    if point is not None and value_type(point) not in (ir.DataType.UINT8, ir.DataType.INT8):
        yield "device-eight-bits", "activations must be uint8 or int8"


def _third(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _elsewhere(site: Site, rule: str, reason: str) -> SiteVerdict:
    return SiteVerdict(
        site=site.name,
        execution=Execution.ELSEWHERE,
        rule=rule,
        kernel=None,
        reason=f"{reason}; NNAPI and CoreML leave this site to the CPU",
    )


def _is_dynamic(value: ir.Value) -> bool:
    return value.shape is None or not value.shape.is_static()


def _same(source: Path, target: Path) -> dict[str, Any]:
    """Run both files on the same inputs; the two are optimized differently."""
    with open_session(source, custom_ops=False) as before, open_session(target) as after:
        runs = random_runs(before, 1)
        if not runs:
            return {"loaded": True, "outputs": NOT_COMPARED}
        ((feeds, wanted),) = runs
        found = after.run(feeds)
    pairs = {name: (wanted[name], found[name]) for name in wanted}
    return {"outputs": compare_runtimes("The .ort file", pairs)}
