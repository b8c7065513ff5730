"""Everything that a reordering of one site's input channels touches, or why it cannot be done.

From the input of a site the channels are followed over every node that gives or reads them,
until each path has ended in a weight that can be reordered instead. What one node means for the
channels is said in `channel_rules`; here is the search, the constraints it gathers, and the
reordering of the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.sites import Site
from onnxq.graph.weights import is_weight
from onnxq.passes.channel_labels import (
    FIXED,
    Ids,
    Labels,
    Leave,
    Link,
    Same,
    merged,
    unified,
)
from onnxq.passes.channel_weights import Demands

__all__ = ["Options", "Region", "Rule"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What may be moved.

    Attributes:
        across_norms: channels that a layer norm or RMS norm reads.
        permute_cache: value channels that are stored in a key-value cache.
        cache_option: what the last is called by the pass that asks.
    """

    across_norms: bool
    permute_cache: bool
    cache_option: str = "permute_cache"


class Region:
    """The values, weights and sites that one permutation goes through.

    Attributes:
        options: what may be moved.
        labels: the channels in each value, values without them left out.
        readers: the sites whose input channels the permutation reorders, with the axis of their
            input (from its end).
        weights: the stored weights to reorder with them.
    """

    def __init__(self, options: Options, sites: Mapping[ir.Node, Site], rule: Rule) -> None:
        """Prepare a search; ``sites`` are those of the model by their nodes."""
        self.options = options
        self.labels: dict[ir.Value, Labels] = {}
        self.readers: dict[Site, int] = {}
        self.weights = Demands(sites)
        self._sites = sites
        self._rule = rule
        self._queue: list[ir.Value] = []
        self._links: dict[tuple[ir.Node, ir.Value, ir.Value], Link] = {}
        self._constants: dict[ir.Value, Labels] = {}
        self._held: dict[tuple[ir.Value, int, int], None] = {}
        self._groups: Ids = np.zeros(0, dtype=np.int64)

    def grow(self, start: ir.Value, axis: int, count: int) -> None:
        """Follow the ``count`` channels along ``axis`` of ``start``.

        Raises:
            Leave: something on the way cannot take another order of channels.
        """
        ids: Ids = np.arange(count)
        for _ in range(_ATTEMPTS):
            try:
                self._follow(start, axis, ids)
            except Same as same:
                ids = unified(ids, same)
                continue
            break
        else:
            raise Leave("they are tied to one another in too many ways")
        self.weights.settle()
        self._groups = self._free_groups(int(ids.max()) + 1)
        for held in self._held:
            self._hold(*held)

    def _follow(self, start: ir.Value, axis: int, ids: Ids) -> None:
        """One search from the beginning."""
        self._queue.clear()
        state: tuple[dict[Any, Any], ...] = (self.labels, self.readers, self._links, self._held)
        for found in (*state, self._constants):
            found.clear()
        self.weights.clear()
        self.assign(start, Labels((axis,), ids))
        while self._queue:
            self._visit(self._queue.pop(0))

    @property
    def count(self) -> int:
        """The number of channels."""
        return len(self._groups)

    def site_of(self, node: ir.Node) -> Site | None:
        """The site whose node this is, when it has one."""
        return self._sites.get(node)

    def assign(self, value: ir.Value, labels: Labels) -> None:
        """Learn which channels lie in a value."""
        if not np.any(labels.ids != FIXED):
            return
        old = self.labels.get(value)
        new = labels.narrowed() if old is None else merged(old, labels)
        if old is not None and old.axes == new.axes and np.array_equal(old.ids, new.ids):
            return
        self.labels[value] = new
        if value not in self._queue:
            self._queue.append(value)

    def link(self, node: ir.Node, link: Link) -> None:
        """Say that ``node`` moves channels like this; labels go both ways."""
        self._links[node, link.source, link.target] = link
        if link.source in self.labels:
            self.assign(link.target, link.forward(self.labels[link.source]))
        if link.target in self.labels:
            self.assign(link.source, link.backward(self.labels[link.target]))

    def constant(
        self, node: ir.Node, index: int, link: Link, labels: Labels, *, of: ir.Value
    ) -> None:
        """Reorder the constant operand ``of``, whose channels are linked to those of a value."""
        self._constants[of] = labels
        self._links[node, link.source, link.target] = link
        self.weights.ask(node, index, "operand", labels)

    def hold(self, value: ir.Value, axis: int, width: int = 1) -> None:
        """Keep every channel of ``value`` within its block of ``width`` along ``axis``."""
        self._held[value, axis, width] = None

    def read(self, site: Site, axis: int) -> None:
        """Note that the permutation reorders the input channels of ``site``."""
        self.readers[site] = axis

    def order(self, importance: npt.NDArray[np.float64], *, ascending: bool) -> Ids:
        """Which channel comes to each place: sorted where channels may be exchanged.

        Args:
            importance: float64 [channels].
            ascending: the least important first.

        Raises:
            Leave: the copies of a channel do not move alike.
        """
        key = importance if ascending else -importance
        order = np.arange(len(key))
        for group in range(int(self._groups.max(initial=-1)) + 1):
            members = np.flatnonzero(self._groups == group)
            order[members] = members[np.argsort(key[members], kind="stable")]
        for link in self._links.values():
            ends = (link.source, link.target)
            source, target = (self.labels.get(e) or self._constants.get(e) for e in ends)
            if source is None or target is None:
                continue
            if not link.keeps(source, target, order):
                raise Leave(f"the copies of a channel in {link.source.name!r} do not move alike")
        self.weights.check(order)
        return order

    def in_order(self, importance: npt.NDArray[np.float64], *, ascending: bool) -> bool:
        """Whether every group is sorted, but for differences that mean nothing."""
        key = importance if ascending else importance[::-1]
        groups = self._groups if ascending else self._groups[::-1]
        for group in range(int(groups.max(initial=-1)) + 1):
            members = key[groups == group]
            if np.any(members < np.maximum.accumulate(members) * (1.0 - _TIE)):
                return False
        return True

    def _visit(self, value: ir.Value) -> None:
        if is_weight(value):
            raise Leave(f"they come from the constant {value.name!r}: run fold_constants first")
        if value.is_graph_output():
            raise Leave(f"they are also the graph output {value.name!r}")
        producer = value.producer()
        if producer is None:
            raise Leave(f"they come from the graph input {value.name!r}")
        labels = self.labels[value]
        nodes = dict.fromkeys((producer, *value.consumers()))
        for node in nodes:
            if node.graph is not producer.graph:
                raise Leave(f"{value.name!r} is read inside the body of another operator")
            self._rule(self, node, value, labels)

    def _free_groups(self, count: int) -> Ids:
        """Channels that some value lacks stay apart from those it has."""
        groups = np.zeros(count, dtype=np.int64)
        for labels in self.labels.values():
            copies = np.bincount(labels.ids[labels.ids != FIXED].reshape(-1), minlength=count)
            _, groups = np.unique(np.stack([groups, copies]), axis=1, return_inverse=True)
        return groups.reshape(-1)

    def _hold(self, value: ir.Value, axis: int, width: int) -> None:
        labels = self.labels.get(value)
        if labels is None or axis not in labels.axes:
            return
        rows = np.moveaxis(labels.ids, labels.axes.index(axis), 0)
        rows = rows.reshape(rows.shape[0] // width, -1)
        count = len(self._groups)
        copies = [np.bincount(row[row != FIXED], minlength=count) for row in rows]
        _, groups = np.unique(np.stack([self._groups, *copies]), axis=1, return_inverse=True)
        self._groups = groups.reshape(-1)


Rule = Callable[[Region, ir.Node, ir.Value, Labels], None]
"""What a node means for the channels of one of its inputs or outputs."""

_ATTEMPTS = 8
"""Searches until all copies are known: one for each kind of copying on the way, and the last."""

_TIE = 1e-3
"""Channels whose importance differs by less are in order either way: the same model measured
again differs by float rounding, and no group of weights gains from exchanging them."""
