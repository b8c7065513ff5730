"""Write a projection that several parts are cut from as one projection for each part.

For a weight whose output channels are those of several layers, side by side,

    [q, k, v] = x [W_q, W_k, W_v] + [b_q, b_k, b_v]    →    q = x W_q + b_q,  k = ...,  v = ...

which changes nothing but that the parts are sites of their own: a budget can give the values, which
mind errors most, more bits than the queries. Packed projections are one product for speed (and in
some checkpoints by habit); at few bits the mix is worth more. Also of gate and up projections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from onnxq.graph.names import unique_value_name
from onnxq.graph.site_slots import integer
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weights import is_weight, read_weight
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.channel_weights import drop_unread
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.match import home_of
from onnxq.passes.projection_parts import channels_of, part_refusal, width_of
from onnxq.passes.rotary_outside import separate_packed
from onnxq.passes.site_patterns import recipe_refusal

__all__ = ["SplitProjections"]

_PACKED = ("qkv", "gate_up")
_PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitProjections(FloatTransform):
    """A projection for each part that is read of a packed one.

    Matches: MatMul and Gemm with a constant weight of their own, whose output, or its sum with a
        constant bias, is read by one Split of its channels into constant sizes, or by a
        GroupQueryAttention as packed queries, keys and values.
    Writes: a product for each part, named ``q``, ``k``, ``v`` in the place of ``qkv``, ``gate``,
        ``up`` in the place of ``gate_up``, else numbered; weights and biases sliced.
    Leaves: projections that nothing cuts, or something else reads too; shared weights.

    Attributes:
        sites: name patterns of the projections to look at.
        exclude: name patterns of projections to leave whole.
    """

    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Split site by site; weights are sliced when they are read."""
        reports = []
        for site in find_sites(model):
            if site.kind not in ("MatMul", "Gemm"):
                continue
            reason = recipe_refusal(site.name, sites=self.sites, exclude=self.exclude)
            reason = reason or part_refusal(site)
            cut = reason or _cut(model, site)
            if isinstance(cut, str):
                reports.append(SiteReport(site=site.name, reason=cut))
                continue
            names = _split(model, site, *cut)
            reports.append(SiteReport(site=site.name, note=f"now {', '.join(names)}"))
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))


def _cut(model: ir.Model, site: Site) -> tuple[ir.Node | None, ir.Node] | str:
    """The Add of a bias, if any, and the Split behind the site; or why there is none."""
    value, adding = site.output, _only_reader(site.output)
    if adding is not None and adding.op_type == "Add":
        bias = next((v for v in adding.inputs if v is not value), None)
        if bias is None or not is_weight(bias) or width_of(bias) != site.shape[site.out_axis]:
            return "nothing cuts its output"
        value = adding.outputs[0]
    else:
        adding = None
    cutting = _only_reader(value)
    if cutting is not None and _is_packed(cutting, value):
        heads, keys = integer(cutting, "num_heads"), integer(cutting, "kv_num_heads")
        separate_packed(model, cutting, value, site.shape[site.out_axis] // (heads + 2 * keys))
        cutting = _only_reader(value)
    if cutting is None or cutting.op_type != "Split":
        return "nothing cuts its output"
    rank = len(value.shape) if value.shape is not None else None
    if integer(cutting, "axis") not in (-1, None if rank is None else rank - 1):
        return "what cuts its output cuts no channels"
    if _sizes(cutting, site.shape[site.out_axis]) is None:
        return "the sizes of its parts are not constant"
    return adding, cutting


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = value.consumers()
    return readers[0] if len(value.uses()) == 1 and not value.is_graph_output() else None


def _is_packed(node: ir.Node, value: ir.Value) -> bool:
    """Whether an attention reads queries, keys and values side by side."""
    if node.op_type != "GroupQueryAttention" or node.inputs[0] is not value:
        return False
    return node.inputs[1] is None and node.inputs[2] is None


def _sizes(split: ir.Node, whole: int) -> list[int] | None:
    given = split.inputs[1] if len(split.inputs) > 1 else None
    if given is not None:
        return [int(n) for n in read_weight(given)] if is_weight(given) else None
    count = len(split.outputs)
    part = -(-whole // count)
    return [min(part, whole - part * at) for at in range(count)]


def _split(model: ir.Model, site: Site, adding: ir.Node | None, split: ir.Node) -> list[str]:
    """Put the projections in the place of the site, its bias and the Split; give their names."""
    node, graph = site.node, site.node.graph
    sizes = _sizes(split, site.shape[site.out_axis]) or []
    tags = _tags(site.name, len(sizes))
    names, start = [], 0
    for (old, new), output, size in zip(tags, split.outputs, sizes, strict=True):
        name = site.name.replace(old, new) if old else f"{site.name}_{new}"
        part = slice(start, start + size)
        inputs = [
            value if at == 0 or value is None else channels_of(model, node, value, site, part, at)
            for at, value in enumerate(node.inputs)
        ]
        made = [ir.Node("", node.op_type, inputs, list(node.attributes.values()), name=name)]
        if adding is not None:
            bias = next(v for v in adding.inputs if v is not None and v is not site.output)
            own = channels_of(model, node, bias, site, part, 2)
            made.append(ir.Node("", "Add", [made[0].outputs[0], own], name=f"{name}_bias"))
        last, shown = made[-1].outputs[0], output.name
        last.type, last.shape = output.type, output.shape
        output.replace_all_uses_with(last, replace_graph_outputs=True)
        output.name = None
        last.name = shown
        if adding is not None:
            made[0].outputs[0].name = unique_value_name(home_of(model, node), f"{name}_output")
            made[0].outputs[0].type, made[0].outputs[0].shape = output.type, output.shape
        if graph is not None:
            graph.insert_before(split, made)
        names.append(name)
        start += size
    spent = [value for gone in (node, adding, split) if gone is not None for value in gone.inputs]
    for gone in (split, adding, node):
        if gone is not None and gone.graph is not None:
            gone.graph.remove(gone, safe=True)
    for value in spent:
        if value is not None and is_weight(value):
            drop_unread(value)
    return names


def _tags(name: str, count: int) -> Sequence[tuple[str, str]]:
    """What each part is called in the place of what."""
    for word in _PACKED:
        if word in name and len(_PARTS[word]) == count:
            return [(word, part) for part in _PARTS[word]]
    return [("", f"part{at + 1}") for at in range(count)]
