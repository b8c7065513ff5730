"""What a network is made of: sites, norms, attention, feed-forward blocks, residual streams.

Everything is found from the graph alone, by operators and constants, never by names, and nothing
is changed. A `Topology` describes the model at the time it was made: make a new one after a pass.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import onnx_ir as ir

from onnxq.graph.attention import AttentionBlock, find_attention
from onnxq.graph.flow import SAME_VALUES, SiteIndex, origin
from onnxq.graph.mlp import MlpBlock, find_mlps
from onnxq.graph.norms import Norm, find_norms
from onnxq.graph.residual import ResidualStream, find_residual
from onnxq.graph.sites import Site, find_sites

__all__ = [
    "AttentionBlock",
    "MlpBlock",
    "Norm",
    "ResidualStream",
    "SharedWeight",
    "Site",
    "Topology",
    "find_sites",
]

_TO_NORM = SAME_VALUES | {"Reshape", "Squeeze", "Unsqueeze", "Flatten"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedWeight:
    """Who else reads the weight of a site.

    Attributes:
        sites: the other sites with the same stored weight.
        orientations_agree: whether they all use its axes as this site does, so that one
            quantized tensor can serve them all.
        nodes: other nodes that read it and are no sites.
    """

    sites: tuple[Site, ...]
    orientations_agree: bool
    nodes: tuple[ir.Node, ...]

    @property
    def is_shared(self) -> bool:
        """Whether anybody else reads the weight."""
        return bool(self.sites or self.nodes)


class Topology:
    """The structure of one model, found on first use."""

    def __init__(self, model: ir.Model) -> None:
        """Remember the model; nothing is searched yet."""
        self._model = model

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site, in graph order."""
        return tuple(find_sites(self._model))

    @cached_property
    def norms(self) -> tuple[Norm, ...]:
        """Every layer norm and RMS norm, fused or decomposed."""
        return tuple(find_norms(self._model))

    @cached_property
    def attention(self) -> tuple[AttentionBlock, ...]:
        """The attention blocks, in graph order."""
        return tuple(find_attention(self._model, self._index))

    @cached_property
    def mlps(self) -> tuple[MlpBlock, ...]:
        """The feed-forward blocks, in the order of their last projection."""
        taken = {site for block in self.attention for site in (block.q, block.k, block.v)}
        found = find_mlps(self._index, self._before_norm)
        return tuple(block for block in found if block.up not in taken)

    @cached_property
    def residual(self) -> tuple[ResidualStream, ...]:
        """The residual streams, the one with the most additions first."""
        return tuple(find_residual(self._model, self._index, self.norms))

    def feeding_norm(self, site: Site) -> Norm | None:
        """The norm whose output the site reads, over casts, QDQ pairs and reshapes; or None."""
        value = site.input
        for _ in range(16):
            if value is None or site.is_embedding:
                return None
            norm = self._norm_by_output.get(value)
            if norm is not None:
                return norm
            node = value.producer()
            if node is None or node.op_type not in _TO_NORM:
                return None
            value = node.inputs[0]
        return None

    def siblings(self, site: Site) -> tuple[Site, ...]:
        """The other sites that read the same activation (q, k and v; gate and up).

        Casts and quantize-dequantize pairs before them are looked through.
        """
        value = origin(site.input)
        if value is None:
            return ()
        return tuple(s for s in self._by_origin.get(value, ()) if s is not site)

    def other_readers(self, site: Site) -> tuple[ir.Node, ...]:
        """Nodes besides sites that read the same activation value."""
        if site.input is None:
            return ()
        ours = {s.node for s in self.sites if s.input is site.input}
        return tuple(node for node in site.input.consumers() if node not in ours)

    def shared(self, site: Site) -> SharedWeight:
        """Who else reads the stored weight of the site, and whether in the same orientation."""
        if site.weight is None:
            return SharedWeight(sites=(), orientations_agree=True, nodes=())
        others = tuple(s for s in self._by_weight[site.weight] if s is not site)
        agree = all(
            (s.in_axis, s.out_axis, s.groups) == (site.in_axis, site.out_axis, site.groups)
            for s in others
        )
        through = {s.via[0] if s.via else s.node for s in (site, *others)}
        nodes = tuple(node for node in site.weight.consumers() if node not in through)
        return SharedWeight(sites=others, orientations_agree=agree, nodes=nodes)

    @cached_property
    def _index(self) -> SiteIndex:
        return SiteIndex(self.sites)

    @cached_property
    def _norm_by_output(self) -> dict[ir.Value, Norm]:
        return {norm.output: norm for norm in self.norms}

    @cached_property
    def _by_origin(self) -> dict[ir.Value, list[Site]]:
        found: dict[ir.Value, list[Site]] = {}
        for site in self.sites:
            value = origin(site.input)
            if value is not None:
                found.setdefault(value, []).append(site)
        return found

    @cached_property
    def _by_weight(self) -> dict[ir.Value, list[Site]]:
        found: dict[ir.Value, list[Site]] = {}
        for site in self.sites:
            if site.weight is not None:
                found.setdefault(site.weight, []).append(site)
        return found

    def _before_norm(self, value: ir.Value) -> ir.Value | None:
        norm = self._norm_by_output.get(value)
        # Through a Skip norm there is no single way back.
        return norm.inputs[0] if norm is not None and len(norm.inputs) == 1 else None
