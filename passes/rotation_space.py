"""A set of channels that one matrix can be folded into, and folding it.

From one value the channels are followed over every node that gives or reads them
(`channel_region`) until each path ends in a weight that takes the matrix instead. Where it ends in
something unknown, a *bridge* can be put: a product with the matrix, or with its inverse, as the
model runs. A stream that begins behind an activation function (Whisper's convolutions) or leaves
the model (the last hidden states) is rotated inside and left as it is outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.names import unique_value_name
from onnxq.graph.scratch import Scratch
from onnxq.graph.sites import Site
from onnxq.graph.weight_source import stored_weight
from onnxq.passes.base import Samples
from onnxq.passes.channel_attention import ATTENTION
from onnxq.passes.channel_labels import Ids, Labels, Leave, named
from onnxq.passes.channel_norms import NORMS
from onnxq.passes.channel_region import Options, Region, Rule
from onnxq.passes.rotation_weights import Map, RotatedWeights, runs_of

__all__ = ["Build", "Space", "cache_of", "filled_inputs", "find_space"]

_PAST = {"GroupQueryAttention": 4, "MultiHeadAttention": 7, "Attention": 5}
"""At which input each operator reads the values of the tokens before."""

_SAMPLES_READ = 64
"""Samples that are asked whether they fill a cache."""

Build = Callable[[ir.Model, ir.Value, int, bool], ir.Value]
"""Writes a bridge behind a value, along an axis; inwards or outwards. Returns what it gives."""


class Space(Region):
    """The values and weights that one matrix goes through.

    Attributes:
        width: channels that one block of the matrix mixes.
        entries: values that come from something unknown, each with the reason.
        exits: uses by something unknown: (value, node), the node None for a graph output.
    """

    def __init__(
        self, sites: Mapping[ir.Node, Site], rule: Rule, *, width: int, rotate_cache: bool
    ) -> None:
        """Prepare a search; ``sites`` are those of the model by their nodes."""
        options = Options(
            across_norms=False, permute_cache=rotate_cache, cache_option="rotate_cache"
        )
        super().__init__(options, sites, rule)
        self.turned = RotatedWeights(sites)
        self.weights = self.turned
        self.width = width
        self._start: ir.Value | None = None
        self.entries: dict[ir.Value, str] = {}
        self.exits: dict[tuple[ir.Value, ir.Node | None], str] = {}

    @property
    def blocks(self) -> int:
        """How many blocks of channels there are: one, or one for each head."""
        return self.count // self.width

    @property
    def bridges(self) -> list[str]:
        """Why each bridge is needed; uses of one value share one."""
        exits = {v: reason for (v, _), reason in self.exits.items() if v not in self.entries}
        return [*self.entries.values(), *exits.values()]

    def cached(self) -> tuple[ir.Value, ...]:
        """The graph inputs and outputs of attention operators that keep rotated values.

        Raises:
            Leave: a cache is computed in the graph, or holds keys and values in one tensor.
        """
        found: dict[ir.Value, None] = {}
        for value in self.labels:
            node = value.producer()
            if node is None or node.op_type not in ATTENTION or value is not node.outputs[0]:
                continue
            for cache in cache_of(node):
                if cache.uses() if cache.producer() is node else cache.producer() is not None:
                    raise Leave(f"{named(node)} keeps them in {cache.name!r}, which is read here")
                found[cache] = None
        return tuple(found)

    def check(self, bridges: int) -> None:
        """Raise `Leave` unless all blocks stay whole and few enough bridges are needed."""
        for value, labels in self.labels.items():
            runs_of(labels, self.width, f"{value.name!r}")
        self.turned.blocks(self.width)
        self.cached()
        self._check_ends()
        needed = self.bridges
        if len(needed) > bridges:
            more = f"; and {len(needed) - 1} more" if len(needed) > 1 else ""
            raise Leave(f"{needed[0]}{more}")
        for value in (*self.entries, *(value for value, _ in self.exits)):
            labels = self.labels[value]
            whole = np.array_equal(labels.ids, np.arange(self.count))
            if labels.axes not in ((-1,), (-2,)) or not whole or value.dtype is None:
                reason = self.entries.get(value) or next(iter(self.exits.values()))
                raise Leave(f"{reason}, and no bridge fits {value.name!r}")

    def _check_ends(self) -> None:
        """Raise `Leave` where channels end at one side of a node and go on at another."""
        passed = {node for node, _, _ in self._links}
        ends = [(value.producer(), reason) for value, reason in self.entries.items()]
        ends += [(node, reason) for (_, node), reason in self.exits.items()]
        for node, reason in ends:
            if node is not None and node in passed:
                raise Leave(reason)

    def apply(
        self,
        model: ir.Model,
        maps: Sequence[Map],
        build: Build,
        scratch: Scratch | None = None,
    ) -> None:
        """Fold the matrix into every weight, and write the bridges.

        Args:
            model: the model it was found in.
            maps: one for each block: rows x to x Q.
            build: writes a bridge.
            scratch: keeps the new weights; when None they are computed at every read.
        """
        self.turned.rotate(model, self.width, maps, scratch)
        for value in self.entries:
            inside = [use for use in value.uses() if (value, use.node) not in self.exits]
            turned = build(model, value, self.labels[value].axes[0], True)
            for use in inside:
                use.node.replace_input_with(use.idx, turned)
        for value in dict.fromkeys(value for value, _ in self.exits):
            if value not in self.entries:
                self._leave(model, value, build)

    def _leave(self, model: ir.Model, value: ir.Value, build: Build) -> None:
        """Give the unknown readers of a rotated value what it was."""
        readers = [node for found, node in self.exits if found is value]
        uses = [use for use in value.uses() if use.node in readers]
        back = build(model, value, self.labels[value].axes[0], False)
        for use in uses:
            use.node.replace_input_with(use.idx, back)
        if None in readers:
            outputs = model.graph.outputs
            name = value.name or ""
            value.name = unique_value_name(model.graph, f"{name}_turned")
            back.name = name
            for index, output in enumerate(outputs):
                if output is value:
                    outputs[index] = back

    def _follow(self, start: ir.Value, axis: int, ids: Ids) -> None:
        self.entries.clear()
        self.exits.clear()
        self._start = start
        super()._follow(start, axis, ids)

    def _visit(self, value: ir.Value) -> None:
        labels = self.labels[value]
        if stored_weight(value) is not None:
            self._constant(value, labels)
            return
        if value.is_graph_output():
            self.exits[value, None] = f"it is also the graph output {value.name!r}"
        producer = value.producer()
        if producer is None:
            self.entries[value] = f"it comes from the graph input {value.name!r}"
        else:
            self._step(producer, value, labels)
        for node in dict.fromkeys(value.consumers()):
            if producer is not None and node.graph is not producer.graph:
                raise Leave(f"{value.name!r} is read inside the body of another operator")
            self._step(node, value, labels)

    def _step(self, node: ir.Node, value: ir.Value, labels: Labels) -> None:
        """Follow one node, or remember that a bridge is needed there."""
        try:
            self._rule(self, node, value, labels)
        except Leave as left:
            if not self._can_bridge(node, value):
                raise
            if value in node.outputs:
                self.entries[value] = str(left)
            else:
                self.exits[value, node] = str(left)

    def _can_bridge(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether the channels may end at a node that does not take them."""
        if value in self.entries and value not in node.outputs:
            return True  # it reads the value as it was before the bridge
        kind = node.op_type
        if self.site_of(node) is not None or kind in ATTENTION or kind.startswith("Skip"):
            return False
        # In a post-norm network there would be a bridge for every layer.
        writes = kind in NORMS and value is node.outputs[0]
        return not writes or value is self._start

    def _constant(self, value: ir.Value, labels: Labels) -> None:
        """A stored weight that is moved about before it is added takes the matrix itself."""
        for use in value.uses():
            if self._is_inside(use.node, value):
                self.weights.ask(use.node, use.idx, "operand", labels)

    def _is_inside(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether channels of ``value`` go on through a node that reads it."""
        if any(site.node is node and site.input is value for site in self.readers):
            return True
        return any(
            owner is node and value in (source, target) for owner, source, target in self._links
        )


def cache_of(node: ir.Node) -> list[ir.Value]:
    """The values in which an attention operator keeps those of the tokens before, and of these.

    Raises:
        Leave: it keeps keys and values in one tensor.
    """
    own = node.op_type == "Attention" and node.domain == "com.microsoft"
    past, present = (4, 1) if own else (_PAST[node.op_type], 2)
    found = [node.inputs[past]] if len(node.inputs) > past else []
    if len(node.outputs) > present and node.outputs[present].name:
        out = node.outputs[present]
        found += [out] if out.uses() or out.is_graph_output() else []
    caches = [value for value in found if value is not None]
    if own and caches:
        raise Leave(f"{named(node)} keeps keys and values in one cache, {caches[0].name!r}")
    return caches


def filled_inputs(samples: Samples | None) -> set[str]:
    """Inputs that any of the first samples puts numbers into: caches may be empty in the first."""
    given = [] if samples is None else itertools.islice(samples, _SAMPLES_READ)
    return {name for sample in given for name, array in sample.items() if array.size}


def find_space(
    sites: Mapping[ir.Node, Site],
    rule: Rule,
    start: ir.Value,
    *,
    width: int,
    count: int,
    bridges: int = 0,
    rotate_cache: bool = False,
) -> Space | str:
    """Follow the ``count`` channels of ``start`` along its last axis, or say why they stay.

    Args:
        sites: the sites of the model by their nodes.
        rule: what each operator means.
        start: an activation.
        width: channels that one block of the matrix mixes.
        count: channels of the value.
        bridges: how many may be needed.
        rotate_cache: also channels that a key-value cache holds.
    """
    space = Space(sites, rule, width=width, rotate_cache=rotate_cache)
    try:
        space.grow(start, -1, count)
        space.check(bridges)
    except Leave as left:
        return str(left)
    return space
