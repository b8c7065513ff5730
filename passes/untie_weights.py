"""Give every reader of a shared weight a copy of its own.

A tied embedding, ``Gather(Transpose(W), ids)`` beside ``MatMul(x, W)``, is one tensor with two
meanings. To quantize them differently, or to fold a scale into one of them, each needs its own:
``Gather(W′, ids)`` with W′ = Wᵀ, and ``MatMul(x, W)``. The copy is computed when the model is
saved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weights import add_weight, read_weight, weight_tensor
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport
from onnxq.passes.match import home_of

__all__ = ["UntieWeights"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UntieWeights(Pass):
    """Copy weights that more than one site reads, lazily.

    Matches: weights of at least two sites; the first site that reads the stored tensor directly
        keeps it.
    Writes: for each other site a weight in the orientation its node reads, without transposes.
    Leaves: sites that read the weight as the first does, when ``which`` is
        ``different_orientation``; weights behind reshapes, casts and quantizers.

    Attributes:
        which: ``all`` unties every shared weight; ``different_orientation`` only what is read
            both as it is and transposed, or both looked up and multiplied.
    """

    promise: ClassVar[Promise] = Promise.SAME_BITS
    which: Literal["all", "different_orientation"] = "different_orientation"

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Untie in place; the report says of every shared site whether it got a copy."""
        shared: dict[ir.Value, list[Site]] = {}
        for site in find_sites(model):
            if site.weight is not None:
                shared.setdefault(site.weight, []).append(site)
        reports: list[SiteReport] = []
        for sites in shared.values():
            if len(sites) > 1:
                reports += self._untie(model, sites)
        changed = any(report.reason is None for report in reports)
        return PassReport(modified=changed, sites=tuple(reports))

    def _untie(self, model: ir.Model, sites: Sequence[Site]) -> list[SiteReport]:
        keeper = next((site for site in sites if not site.via), sites[0])
        reports = []
        for site in sites:
            if site is keeper:
                continue
            same = _orientation(site) == _orientation(keeper)
            if self.which == "different_orientation" and same:
                reason: str | None = f"it reads the weight as {keeper.name!r} does"
            else:
                reason = _copy(model, site)
            reports.append(SiteReport(site=site.name, reason=reason))
        return reports


def _orientation(site: Site) -> tuple[object, ...]:
    turned = sum(node.op_type == "Transpose" for node in site.via) % 2
    return site.kind == "Gather", turned, site.in_axis, site.out_axis


def _copy(model: ir.Model, site: Site) -> str | None:
    """Give the site a weight of its own, or return the reason why not."""
    odd = [node.op_type for node in site.via if node.op_type not in ("Transpose", "Identity")]
    source = site.weight
    if odd:
        return f"its weight comes through {odd[0]}: fold constants first"
    if source is None:
        return "it has no weight"
    tensor = weight_tensor(source)
    sizes = [int(size) for size in tensor.shape.numpy()]
    axes = list(range(len(sizes)))
    for node in site.via:
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            order = list(perm.as_ints()) if perm is not None else list(range(len(axes)))[::-1]
            axes = [axes[axis] for axis in order]
    stored = ir.Value(name=source.name, const_value=tensor)
    own = add_weight(
        home_of(model, site.node),
        f"{source.name}_{site.kind.lower()}",
        shape=[sizes[axis] for axis in axes],
        dtype=tensor.dtype,
        compute=lambda: np.ascontiguousarray(read_weight(stored).transpose(axes)),
    )
    site.node.replace_input_with(site.weight_index, own)
    for node in reversed(site.via):
        output = node.outputs[0]
        if node.graph is not None and not output.uses() and not output.is_graph_output():
            node.graph.remove(node, safe=True)
    return None
