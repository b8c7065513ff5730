"""Blocks of a model that are learned one after the other, each between values that are known.

The cuts are those of `onnxq.calibration.segments`: before the first attention site after each
feed-forward block, so that a block is one layer; in a network without attention before every site.
The first block begins at the inputs of the model. The last one ends at what the sites outside all
blocks read (a head), or at the result of its last site where there is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from onnxq.calibration.course import unreachable_sites
from onnxq.calibration.readings import reading_of
from onnxq.calibration.segments import Cut, Segment, Visit, cut_segments
from onnxq.calibration.wiring import Wiring
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.topology import Topology

__all__ = ["Block", "find_blocks"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Nodes from one cut to the next, as `onnxq.learning.TorchGraph` takes them.

    Attributes:
        name: of its first site, or first node where it has no site.
        inputs: names of the values it reads from before: results of earlier blocks and inputs of
            the model.
        outputs: names of the values it computes that later blocks read, or, of the last block,
            that stand for its result.
        passed: names of the values that are alive behind it, its own among them.
        sites: the sites in it, in execution order.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    passed: frozenset[str]
    sites: tuple[Site, ...]


def find_blocks(model: ir.Model, *, cut: Cut = "blocks") -> tuple[list[Block], tuple[str, ...]]:
    """The blocks of the main graph in execution order, and notes on cuts made otherwise.

    Args:
        model: its values have names; it is left as it is.
        cut: ``blocks``, ``sites``, ``whole``, or names of values to cut behind.

    Raises:
        CalibrationError: a name in ``cut`` is no value of the main graph.
    """
    sites = find_sites(model)
    unreachable = unreachable_sites(model, sites)
    visits = []
    for site in sites:
        reading = reading_of(site)
        if site.name in unreachable or site.input is None or isinstance(reading, str):
            continue
        visits.append(Visit(site=site, copy=site, input=site.input, reading=reading))
    heads = _heads(Topology(model), visits)
    wanted = [visit.input for visit in visits]
    wanted += [visit.site.result for visit in visits if visit.site not in heads]
    wiring = Wiring(model.graph, wanted, [visit.copy.node for visit in visits])
    segments, notes = cut_segments(model, wiring, visits, cut)
    return [_block(segment, heads) for segment in segments], notes


def _heads(topology: Topology, visits: Sequence[Visit]) -> set[Site]:
    """Sites after the last one of a layer: their result is no activation of the network."""
    layered = {site for block in topology.attention for site in block.sites}
    for mlp in topology.mlps:
        layered.update(site for site in (mlp.gate, mlp.up, mlp.down) if site is not None)
    outputs = {site.output for site in layered}
    last = max((at for at, v in enumerate(visits) if v.site.output in outputs), default=None)
    return set() if last is None else {visit.site for visit in visits[last + 1 :]}


def _block(segment: Segment, heads: set[Site]) -> Block:
    inside = [visit.site for visit in segment.visits if visit.site not in heads]
    outputs = [value.name or "" for value in segment.gives]
    if not outputs:
        ends = [visit.input for visit in segment.visits if visit.site in heads]
        ends = ends or [site.result for site in inside[-1:]]
        outputs = list(dict.fromkeys(value.name or "" for value in ends))
    return Block(
        name=segment.label,
        inputs=tuple(value.name or "" for value in segment.alive),
        outputs=tuple(outputs),
        passed=segment.passes,
        sites=tuple(inside),
    )
