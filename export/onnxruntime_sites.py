"""What ONNX Runtime's CPU provider does with each site of a model, by the rules alone."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.custom_ops.catalog import has_kernels
from onnxq.custom_ops.hadamard import HADAMARD
from onnxq.export import onnxruntime_facts as facts
from onnxq.export.onnxruntime_pairs import reads_codes
from onnxq.export.onnxruntime_rules import fusion_for, kernel_of
from onnxq.export.onnxruntime_view import View, is_standard
from onnxq.export.target import Execution, SiteVerdict
from onnxq.graph import Site, find_sites, is_weight
from onnxq.graph.walk import is_operator_body, site_name, walk_nodes
from onnxq.graph.weights import weight_tensor

__all__ = ["bits_of_products", "quantized_sites", "site_verdict"]

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_INTEGER = frozenset(
    ["QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger"]
).union(["DynamicQuantizeMatMul", "QAttention", "DynamicQuantizeLSTM", "MatMulInteger16"])
_LOW_BIT = ("MatMulBnb4", "GatherBlockQuantized", "QMoE")


def quantized_sites(
    model: ir.Model, *, library: bool, signed: bool = False
) -> Iterator[SiteVerdict]:
    """A verdict for each site, in graph order, and for each operator of onnxq.

    Args:
        model: with shapes, where they can be inferred.
        library: whether the library of operators is there when the model runs.
        signed: whether int8 activations stay int8, as on 64-bit ARM.
    """
    by_node: dict[ir.Node, list[Site]] = {}
    for site in find_sites(model):
        by_node.setdefault(site.node, []).append(site)
    for path, node in walk_nodes(model):
        if is_operator_body(path):
            continue
        if has_kernels(node):
            yield _operator(site_name(path, node), node, library)
        yield from (site_verdict(site, signed=signed) for site in by_node.get(node, ()))


def bits_of_products(model: ir.Model) -> dict[str, int]:
    """Bits of the weight of each MatMulNBits and each dequantized weight, by name of the site."""
    found = {}
    for site in find_sites(model):
        if site.kind == "MatMulNBits":
            found[site.name] = site.node.attributes.get_int("bits", 4)
        elif site.already and site.weight is not None:
            found[site.name] = weight_tensor(site.weight).dtype.bitwidth
    return found


def site_verdict(site: Site, *, signed: bool = False) -> SiteVerdict:
    """What runs for one site."""
    if site.kind in _PRODUCTS and is_standard(site.node):
        return _product(site, signed)
    if site.kind == "MatMulInteger":
        kernel = _dynamic_kernel(site.node)
        return _verdict(site, Execution.INTEGER, "dynamic-integer", kernel)
    if site.kind == "MatMulNBits":
        return _nbits(site)
    if site.kind in _INTEGER:
        return _verdict(site, Execution.INTEGER, "integer-operator", site.kind)
    if site.kind in _LOW_BIT:
        return _verdict(site, Execution.LOW_BIT, "low-bit-operator", site.kind)
    if site.already and site.kind == "Gather":
        return _gather(site, signed)
    if site.already:
        reason = f"ONNX Runtime has no integer {site.kind} on the CPU: its weight is dequantized "
        reason += "on every run. Leave it in float"
        kernel = f"DequantizeLinear, {site.kind}"
        return _verdict(site, Execution.DEQUANTIZED, "no-integer-kernel", kernel, reason)
    return _verdict(site, Execution.FLOAT, "float", None)


def _verdict(
    site: Site, execution: Execution, rule: str, kernel: str | None, reason: str = ""
) -> SiteVerdict:
    return SiteVerdict(site=site.name, execution=execution, rule=rule, kernel=kernel, reason=reason)


def _product(site: Site, signed: bool) -> SiteVerdict:
    view = View.of(site.node, signed=signed)
    fusion = fusion_for(view)
    if fusion is None:
        return _verdict(site, Execution.FLOAT, "float", None)
    rule = fusion.broken(view)
    if rule is not None:
        kernel = None if rule.otherwise is Execution.FLOAT else f"DequantizeLinear, {view.kind}"
        if rule.otherwise is Execution.UNSUPPORTED:
            kernel = kernel_of(fusion, view)
        reason = f"{fusion.kernel} asks: {rule.says} It is not so: {rule.remedy}"
        return _verdict(site, rule.otherwise, rule.name, kernel, reason)
    if fusion.execution is Execution.INTEGER and facts.is_requantized(view):
        reason = "ONNX Runtime quantizes this float weight itself, with one scale for all of it: "
        reason += "quantize it by output channel, or shield the node from the pair before it"
        kernel = kernel_of(fusion, view)
        return _verdict(site, Execution.INTEGER, "weight-requantized", kernel, reason)
    return _verdict(site, fusion.execution, fusion.name, kernel_of(fusion, view))


def _nbits(site: Site) -> SiteVerdict:
    node = site.node
    bits = node.attributes.get_int("bits", 4)
    level = node.attributes.get_int("accuracy_level", 0)
    rule, reason = "low-bit-operator", ""
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        rule = "nbits-order"
        reason = "g_idx makes MatMulNBits hundreds of times slower: fold the order of the columns "
        reason += "into the layer before"
    elif bits != 4 and level != 4:
        rule = "nbits-accuracy-level"
        reason = f"{bits}-bit MatMulNBits without accuracy_level 4 is slower than float32 by "
        reason += "more than ten times: set accuracy_level=4"
    execution = Execution.DEQUANTIZED if reason else Execution.LOW_BIT
    return _verdict(site, execution, rule, "MatMulNBits", reason)


def _gather(site: Site, signed: bool) -> SiteVerdict:
    """A lookup in a dequantized table: on codes when they come out as they went in."""
    if reads_codes(site.node, signed=signed):
        return _verdict(site, Execution.INTEGER, "table-of-codes", "Gather")
    reason = "the whole table is dequantized on every run: write GatherBlockQuantized "
    reason += "(quantize_weights with write=auto does), or leave it in float"
    kernel = "DequantizeLinear, Gather"
    return _verdict(site, Execution.DEQUANTIZED, "table-dequantized", kernel, reason)


def _operator(name: str, node: ir.Node, library: bool) -> SiteVerdict:
    if library:
        kind = Execution.FLOAT if node.op_type == HADAMARD else Execution.LOW_BIT
        return SiteVerdict(site=name, execution=kind, rule="operator-library", kernel=node.op_type)
    return SiteVerdict(
        site=name,
        execution=Execution.FUNCTION,
        rule="operator-function",
        reason="without the library of operators its function runs, in standard operators: ship "
        "the library and register it (session_options.json says how)",
    )


def _dynamic_kernel(node: ir.Node) -> str:
    """What a MatMulInteger becomes with the scaling behind it (matmul_integer_to_float.cc)."""
    cast = _only_reader(node.outputs[0], "Cast")
    scaled = None if cast is None else _only_reader(cast.outputs[0], "Mul")
    if scaled is None:
        return "MatMulInteger"
    factor = next((v for v in scaled.inputs if v is not None and v.producer() is not cast), None)
    scale = None if factor is None else factor.producer()
    if scale is None or scale.op_type != "Mul" or factor is None or len(factor.uses()) != 1:
        return "MatMulInteger"
    source = next((v.producer() for v in node.inputs if v is not None and v.producer()), None)
    if source is None or source.op_type != "DynamicQuantizeLinear":
        return "MatMulIntegerToFloat"
    readers = sum(len(value.uses()) for value in source.outputs)
    stored = all(is_weight(v) for v in (node.inputs[1], *scale.inputs[1:2]))
    alone = readers == len(source.outputs) == 3
    return "DynamicQuantizeMatMul" if alone and stored else "MatMulIntegerToFloat"


def _only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != kind:
        return None
    return uses[0].node
