"""What TensorRT does with each site of a model: the rules, told site by site.

A violation belongs to the sites whose operands it touches; what touches none is told by the name
of its node: a Q/DQ pair that gains nothing, an operator that the parser does not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

import onnx_ir as ir

from onnxq.export.target import Execution, SiteVerdict, Verdicts
from onnxq.export.tensorrt_plugins import is_plugged, plugin_refusal
from onnxq.export.tensorrt_reading import WEIGHTED, Coded, Reading
from onnxq.export.tensorrt_rules import Effect, Violation, find_violations
from onnxq.graph import Site, opset_of

__all__ = ["judge_sites"]

_KERNELS = {
    ir.DataType.INT8: "INT8",
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.INT4: "INT4",
    ir.DataType.FLOAT4E2M1: "FP4",
}
_BAD = (Effect.REFUSED, Effect.MISREAD, Effect.UNDOCUMENTED)
_WORST = (*_BAD, Effect.UNFUSED, Effect.WASTED)


def judge_sites(reading: Reading) -> Verdicts:
    """What TensorRT does with each site of a model that was read for a runtime."""
    violations = find_violations(reading)
    touched = {site.name: _touched(reading, site) for site in reading.sites}
    sites = [
        _site(reading, site, [v for v in violations if v.node in touched[site.name]])
        for site in reading.sites
    ]
    inside = {node for nodes in touched.values() for node in nodes}
    alone = [
        violation
        for violation in violations
        if violation.node not in inside or violation.rule.effect is Effect.WASTED
    ]
    refused = [v for v in alone if v.rule.effect in _BAD]
    return Verdicts(
        target=reading.runtime,
        sites=[*sites, *_bodies(reading, refused), *map(_alone, refused)],
        wasted=[_alone(v) for v in alone if v.rule.effect not in _BAD],
        notes=_notes(reading),
    )


def _touched(reading: Reading, site: Site) -> set[ir.Node]:
    """The node of a site, and the Q and DQ nodes of its operands and its bias."""
    found: set[ir.Node] = {site.node, *site.via}
    for value in site.node.inputs[:3]:
        coded = reading.rounded(value)
        while coded is not None and coded.node not in found - {*site.via}:
            found.add(coded.node)
            second = reading.of(coded.scale.producer())
            if second is not None:
                found.add(second.node)
            coded = reading.quantizer(coded)
    if site.bias_node is not None:
        found |= {c.node for v in site.bias_node.inputs if (c := _bias(reading, v)) is not None}
    return found


def _bias(reading: Reading, value: ir.Value | None) -> Coded | None:
    coded = reading.rounded(value)
    return coded if coded is not None and coded.of_weight else None


def _site(reading: Reading, site: Site, found: list[Violation]) -> SiteVerdict:
    """One site, by the worst violation that touches it."""
    coded = reading.operand(site)
    for effect in _WORST:
        broken = next((v for v in found if v.rule.effect is effect), None)
        if broken is None or (effect is Effect.WASTED and broken.node not in _of_weight(coded)):
            continue
        refused = effect in _BAD
        return SiteVerdict(
            site=site.name,
            execution=Execution.UNSUPPORTED if refused else Execution.DEQUANTIZED,
            rule=broken.rule.name,
            reason=f"{broken.finding.found}; {broken.finding.remedy}",
        )
    if site.kind not in WEIGHTED or coded is None or coded.type not in _KERNELS:
        reason = "" if site.refusal is None or site.weight is None else site.refusal
        return SiteVerdict(
            site=site.name,
            execution=Execution.FLOAT,
            rule="float",
            reason=reason or "it is not quantized",
        )
    return _quantized(reading, site, coded)


def _of_weight(coded: Coded | None) -> tuple[ir.Node, ...]:
    return () if coded is None or not coded.of_weight else (coded.node,)


def _quantized(reading: Reading, site: Site, coded: Coded) -> SiteVerdict:
    """A site that breaks no rule, and is quantized."""
    kind = "GEMM" if site.kind in ("MatMul", "Gemm") else site.kind
    name = _KERNELS[coded.type or ir.DataType.INT8]
    whole = reading.is_quantized(site.node)
    integer = whole and coded.type is ir.DataType.INT8
    return SiteVerdict(
        site=site.name,
        execution=Execution.INTEGER if integer else Execution.LOW_BIT,
        rule="quantized" if whole else "weight-only",
        kernel=f"{name} {kind}" if whole else f"{name} weight-only {kind}",
    )


def _bodies(reading: Reading, refused: Collection[Violation]) -> Iterator[SiteVerdict]:
    """Operators that the model defines itself: a plugin computes them, or their body does."""
    told = {violation.node for violation in refused}
    for name, node in reading.nodes:
        if node in told:
            continue
        if is_plugged(node, reading.plugins):
            reason = plugin_refusal(node)
            yield SiteVerdict(
                site=name,
                execution=Execution.LOW_BIT if reason is None else Execution.UNSUPPORTED,
                rule="plugin",
                kernel="" if reason else f"{node.op_type} plugin",
                reason=reason or "",
            )
        elif node.op_identifier() in reading.model.functions:
            yield SiteVerdict(
                site=name,
                execution=Execution.FUNCTION,
                rule="function-body",
                reason=f"{node.domain}.{node.op_type} runs as its function of standard operators",
            )


_ALONE = {Effect.UNFUSED: Execution.DEQUANTIZED, Effect.WASTED: Execution.FLOAT}


def _alone(violation: Violation) -> SiteVerdict:
    """A violation that is told by the name of its own node."""
    return SiteVerdict(
        site=violation.finding.name,
        execution=_ALONE.get(violation.rule.effect, Execution.UNSUPPORTED),
        rule=violation.rule.name,
        reason=f"{violation.finding.found}; {violation.finding.remedy}",
    )


def _notes(reading: Reading) -> list[str]:
    model = reading.model
    notes = [f"opset {opset_of(model)}"]
    given = Counter(
        f"{node.domain}.{node.op_type}"
        for _, node in reading.nodes
        if node.domain not in ("", "ai.onnx")
    )
    if given:
        notes.append(
            "operators of other domains: "
            + ", ".join(f"{count} {name}" for name, count in sorted(given.items()))
        )
    if reading.capabilities:
        known = ", ".join(f"{c / 10:.1f}" for c in reading.capabilities)
        notes.append(f"for GPUs of compute capability {known}")
    dynamic = sorted(
        {
            str(size.value)
            for v in model.graph.inputs
            for size in v.shape or ()
            if not isinstance(size, int)
        }
    )
    if dynamic:
        notes.append(f"dynamic dimensions, built for a range: {', '.join(dynamic)}")
    plugged = {node.op_type for _, node in reading.nodes if is_plugged(node, reading.plugins)}
    if plugged:
        notes.append(f"plugins must be registered for: {', '.join(sorted(plugged))}")
    return notes
