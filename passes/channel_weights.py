"""The stored weights that a permutation of channels reorders, and who else reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.graph.sites import Site
from onnxq.graph.weight_source import trace
from onnxq.graph.weights import weight_tensor
from onnxq.passes.channel_labels import Ids, Labels, Leave, named, order_of

__all__ = ["Demands", "Use", "drop_unread"]

Use = tuple[ir.Node, int]
"""A node and the index of one of its inputs."""


class Demands:
    """What one permutation asks of stored weights.

    Attributes:
        edits: weights to reorder in their place, each with its labels; after `settle`.
        copies: inputs of nodes to give a reordered copy of what they read; after `settle`.
    """

    def __init__(self, sites: Mapping[ir.Node, Site]) -> None:
        """Ask nothing yet; ``sites`` are those of the model by their nodes."""
        self.edits: dict[ir.Value, list[Labels]] = {}
        self.copies: dict[Use, list[Labels]] = {}
        self._sites = sites
        self._asked: dict[ir.Value, dict[Use, dict[str, Labels]]] = {}

    def clear(self) -> None:
        """Ask nothing any more."""
        self._asked.clear()

    def ask(self, node: ir.Node, index: int, role: str, labels: Labels) -> None:
        """Ask that the stored weight behind an input be reordered.

        Args:
            node: the reader.
            index: which of its inputs.
            role: tells apart several demands of one input: a matrix reads and writes channels.
            labels: axes counted from the end of what the node reads.

        Raises:
            Leave: there is no stored weight that could be.
        """
        value = node.inputs[index]
        source = trace(value)
        name = "" if value is None else value.name
        if source.value is None or source.reason is not None or source.already is not None:
            why = source.reason or f"{name!r} is already quantized ({source.already})"
            raise Leave(f"{named(node)} is on their way: {why}")
        rank = len(source.axes)
        axes = [source.axes[rank + axis] if rank + axis >= 0 else None for axis in labels.axes]
        stored = [axis for axis in axes if axis is not None]
        if len(stored) < len(axes):
            raise Leave(f"{named(node)} is on their way, and {name!r} has fewer axes than they")
        turned = Labels(tuple(sorted(stored)), labels.ids.transpose(np.argsort(stored)))
        self.ask_stored(source.value, node, index, role, turned)

    def ask_stored(
        self, weight: ir.Value, node: ir.Node, index: int, role: str, labels: Labels
    ) -> None:
        """The same, with axes of the stored weight, counted from its start."""
        shape = weight_tensor(weight).shape.numpy()
        if any(shape[axis] != size for axis, size in labels.sizes.items()):
            raise Leave(f"weight {weight.name!r} of {named(node)} has another size")
        self._asked.setdefault(weight, {}).setdefault((node, index), {})[role] = labels

    def settle(self) -> None:
        """Fix what is reordered in place and what is copied.

        Biases and factors that others read too, as exporters share equal ones, are copied.

        Raises:
            Leave: somebody else reads a matrix, or two readers want different things of it.
        """
        for weight, by_use in self._asked.items():
            ways = [_way(weight, *use) for use in by_use]
            if any(value.is_graph_output() for way in ways for value in way):
                raise Leave(f"weight {weight.name!r} is also a graph output")
            if any(len(value.uses()) > 1 for way in ways for value in way):
                if all(self._is_operand(way) for way in ways):
                    self.copies.update({use: [*roles.values()] for use, roles in by_use.items()})
                    continue
                _check_readers(weight, ways)
            wanted = [_by_axes(roles.values()) for roles in by_use.values()]
            if any(other != wanted[0] for other in wanted[1:]):
                raise Leave(f"weight {weight.name!r} is used twice, in different ways")
            distinct = {labels.axes: labels for labels in next(iter(by_use.values())).values()}
            self.edits[weight] = list(distinct.values())

    def check(self, order: Ids) -> None:
        """Raise `Leave` if ``order`` cannot be brought into all of them."""
        for edits in (*self.edits.values(), *self.copies.values()):
            for labels in edits:
                order_of(labels, order)

    def _is_operand(self, way: Mapping[ir.Value, Use]) -> bool:
        """Whether a weight is used as it is stored, and as a bias or factor: not as a matrix."""
        (node, index), *views = way.values()
        site = self._sites.get(node)
        is_matrix = site is not None and index == site.weight_index
        return not is_matrix and all(view.op_type == "Identity" for view, _ in views)


def drop_unread(value: ir.Value | None) -> None:
    """Remove a weight that nothing reads any more, and what led from it to its reader."""
    while value is not None and not value.uses() and not value.is_graph_output():
        node = value.producer()
        if node is None:
            if isinstance(value.graph, ir.Graph) and value.is_initializer():
                del value.graph.initializers[value.name or ""]
            return
        value = node.inputs[0] if node.inputs else None
        if node.graph is not None:
            node.graph.remove(node, safe=True)


def _way(weight: ir.Value, node: ir.Node, index: int) -> dict[ir.Value, Use]:
    """The values from an input back to the stored weight, each with how it is used on the way."""
    way: dict[ir.Value, Use] = {}
    here, use = node.inputs[index], (node, index)
    while here is not None:
        way[here] = use
        producer = here.producer()
        if here is weight or producer is None:
            break
        here, use = producer.inputs[0], (producer, 0)
    return way


def _check_readers(weight: ir.Value, ways: Iterable[Mapping[ir.Value, Use]]) -> None:
    """Raise `Leave` when a node that asks nothing reads the weight or a view of it."""
    ours = {use for way in ways for use in way.values()}
    for value in dict.fromkeys(value for way in ways for value in way):
        for use in value.uses():
            if (use.node, use.idx) not in ours:
                raise Leave(
                    f"weight {weight.name!r} is also read by {named(use.node)}: run untie_weights "
                    "first"
                )


def _by_axes(demands: Iterable[Labels]) -> dict[tuple[int, ...], bytes]:
    """Labels by their axes, in a form that compares."""
    return {labels.axes: labels.ids.tobytes() for labels in demands}
