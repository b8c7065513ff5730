"""What onnxruntime-web's WebAssembly does with each site: rules by name.

It is ONNX Runtime's CPU provider with all operators and types (its workflow
linux-wasm-ci-build-and-test reduces them for WebGPU only), and other kernels below: integer
products have one (qgemm_kernel_wasmsimd.cpp of MLAS), products of few bits none. MatMulNBits
dequantizes the whole weight in every run (ComputeBUnpacked in matmul_nbits.cc): 2048 x 2048 took 80
to 190 ms, the product in float32 1 to 2 ms (Node.js 20, one thread of an AMD Zen 4). So a page
decodes such weights once (`onnxq.export.web_weights`).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.custom_ops.catalog import SPECS
from onnxq.export.onnxruntime_sites import site_verdict
from onnxq.export.target import Execution, SiteVerdict, Verdicts
from onnxq.export.web_constants import has_quantized_activations
from onnxq.export.web_form import blocks_refusal
from onnxq.graph import (
    Site,
    clone_model,
    find_sites,
    infer_shapes,
    site_name,
    walk_nodes,
    walk_weights,
    weight_tensor,
)
from onnxq.graph.site_slots import integer
from onnxq.graph.walk import OPERATOR_DOMAIN, is_operator_body

__all__ = ["decoded_bytes", "web_refusals", "web_verdicts"]

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_INTEGER = frozenset(
    ["MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger",
     "QLinearMatMul", "QLinearConv", "QGemm"]
)  # fmt: skip
_PRODUCTS = frozenset(spec.name for spec in SPECS)
_LARGEST = 0x7FE00000
"""Bytes of the largest array in Chromium (documentation of onnxruntime-web, "Working with Large
Models")."""


def web_verdicts(model: ir.Model, most_memory: int) -> Verdicts:
    """A verdict for each site and each operator of onnxq.

    Args:
        model: the artifact's.
        most_memory: bytes of decoded weights up to which they are decoded once.
    """
    decoded = decoded_bytes(model)
    once = decoded <= most_memory
    pairs = has_quantized_activations(model)
    if pairs:  # their fusions ask for shapes
        model = clone_model(model)
        infer_shapes(model)
    sites = [_site_verdict(model, site, once=once, pairs=pairs) for site in find_sites(model)]
    operators = [_operator_verdict(name, node, once) for name, node in _operators(model)]
    notes = [f"{decoded} bytes of weights in float32, {'decoded once' if once else 'every time'}"]
    return Verdicts(
        target="web",
        sites=[*web_refusals(model), *sites, *operators],
        notes=notes if decoded else [],
    )


def web_refusals(model: ir.Model) -> list[SiteVerdict]:
    """Why onnxruntime-web does not load the model; empty when it does."""
    found = []
    for path, node in walk_nodes(model):
        if node.domain in _DOMAINS or node.op_identifier() in model.functions:
            continue
        name = site_name(path, node)
        reason = (
            f"Node {name!r} is {node.domain}.{node.op_type}: onnxruntime-web does not know it, "
            "loads no library of operators, and the model carries no function for it."
        )
        found.append(_verdict(name, Execution.UNSUPPORTED, "web-domain", reason))
    size = sum(weight_tensor(value).nbytes for _, value in walk_weights(model))
    if size > _LARGEST:
        reason = (
            f"The weights take {size} bytes, and a browser holds {_LARGEST} in one array: "
            "quantize them to fewer bits."
        )
        found.append(_verdict("model", Execution.UNSUPPORTED, "web-size", reason))
    return found


def decoded_bytes(model: ir.Model) -> int:
    """Bytes of the weights that a page decodes, in float32."""
    elements = 0
    for _, node in walk_nodes(model):
        if node.op_type == "MatMulNBits" and blocks_refusal(model, node) is None:
            elements += integer(node, "K") * integer(node, "N")
    for _, node in _operators(model):
        elements += integer(node, "rows") * integer(node, "columns")
    if not has_quantized_activations(model):
        for site in find_sites(model):
            if _is_dequantized(site) and site.weight is not None:
                elements += weight_tensor(site.weight).size
    return 4 * elements


def _operators(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    for path, node in walk_nodes(model):
        if node.domain == OPERATOR_DOMAIN and not is_operator_body(path):
            yield site_name(path, node), node


def _operator_verdict(name: str, node: ir.Node, once: bool) -> SiteVerdict:
    if node.op_type not in _PRODUCTS:
        return _verdict(name, Execution.FUNCTION, "web-function", kernel=node.op_type)
    if once:
        return _verdict(name, Execution.DECODED, "web-decoded", kernel="MatMul")
    return _every_run(name, f"its function decodes all weights of {node.op_type}")


def _site_verdict(model: ir.Model, site: Site, *, once: bool, pairs: bool) -> SiteVerdict:
    node = site.node
    if site.kind in _INTEGER:
        return _verdict(site.name, Execution.INTEGER, "web-integer", kernel=site.kind)
    if site.kind == "GatherBlockQuantized":
        return _verdict(site.name, Execution.LOW_BIT, "web-lookup", kernel=site.kind)
    if site.kind == "MatMulNBits":
        refusal = blocks_refusal(model, node)
        if refusal is None and once:
            return _verdict(site.name, Execution.DECODED, "web-decoded", kernel="MatMul")
        return _every_run(
            site.name, "MatMulNBits has no kernel" + (f", and {refusal}" if refusal else "")
        )
    if _is_dequantized(site):
        if pairs and _reads_codes(site):
            return _of_pairs(site)
        if pairs:
            return _every_run(site.name, "the model has pairs of QDQ, whose fusion keeps it")
        if once:
            return _verdict(site.name, Execution.DECODED, "web-decoded", kernel=site.kind)
        return _every_run(site.name, "its DequantizeLinear stays")
    return _verdict(site.name, Execution.FLOAT, "web-float", kernel=site.kind)


def _of_pairs(site: Site) -> SiteVerdict:
    """What the fusions of ONNX Runtime make of it: those for x86-64, as only ARM keeps int8."""
    found = site_verdict(site)
    if found.execution is not Execution.INTEGER:
        return _every_run(site.name, found.reason)
    return _verdict(site.name, Execution.INTEGER, "web-qdq", kernel=found.kernel)


def _every_run(name: str, why: str) -> SiteVerdict:
    reason = f"the weight is dequantized in every run: {why}"
    return _verdict(name, Execution.DEQUANTIZED, "web-every-run", reason)


def _is_dequantized(site: Site) -> bool:
    return any(node.op_type == "DequantizeLinear" for node in site.via)


def _reads_codes(site: Site) -> bool:
    producer = None if site.input is None else site.input.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _verdict(
    site: str, execution: Execution, rule: str, reason: str = "", kernel: str | None = None
) -> SiteVerdict:
    return SiteVerdict(site=site, execution=execution, rule=rule, reason=reason, kernel=kernel)
