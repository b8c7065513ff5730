"""The stored weights that a scaling of channels multiplies or divides, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.sites import Site
from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import add_weight, read_weight, replace_weight, weight_tensor
from onnxq.passes.channel_labels import FIXED, Labels, Leave
from onnxq.passes.channel_weights import Demands, Use, drop_unread
from onnxq.passes.match import home_of

__all__ = ["ScaledWeights", "factors_at"]

_BESIDE = frozenset(["Add", "Sub", "Min", "Max"])
"""Operators whose constants follow the channels and do not give them."""

Factors = npt.NDArray[np.float64]
Axes = tuple[int, ...]


class ScaledWeights(Demands):
    """What one scaling of channels asks of stored weights.

    Those that read the channels (role ``in``) are multiplied, all others divided.

    Attributes:
        writers: the nodes whose weights are divided, without those that only add a bias.
    """

    def __init__(self, sites: Mapping[ir.Node, Site]) -> None:
        """Ask nothing yet; ``sites`` are those of the model by their nodes."""
        super().__init__(sites)
        self.writers: tuple[ir.Node, ...] = ()
        self._powers: dict[ir.Value | Use, dict[Axes, int]] = {}

    def settle(self) -> None:
        """Fix what is scaled in place and what in a copy.

        Raises:
            Leave: as `Demands.settle`, or a weight would be multiplied and divided along one axis.
        """
        super().settle()
        writers: dict[ir.Node, None] = {}
        for weight, by_use in self._asked.items():
            for use, roles in by_use.items():
                for role, labels in roles.items():
                    power = 1 if role == "in" else -1
                    powers = self._powers.setdefault(use if use in self.copies else weight, {})
                    if powers.setdefault(labels.axes, power) != power:
                        raise Leave(f"weight {weight.name!r} both reads and gives them")
                    if power < 0 and role != "bias" and use[0].op_type not in _BESIDE:
                        writers[use[0]] = None
        self.writers = tuple(writers)

    def power(self, weight: ir.Value, labels: Labels) -> int:
        """What an edit of a weight does: 1 multiplies by the factors, -1 divides; after `settle`.

        Args:
            weight: one of `edits`.
            labels: one of its edits.
        """
        return self._powers[weight][labels.axes]

    def matrices(self) -> list[tuple[ir.Value, str, Labels]]:
        """The weights that multiply: each with ``in`` or ``out`` and its channels; after `settle`.

        Weights that only scale or shift, of norms and biases, are left out. The axes of the
        labels are counted from the start of the stored weight.
        """
        found: dict[tuple[ir.Value, str], Labels] = {}
        for weight, by_use in self._asked.items():
            for roles in by_use.values():
                for role in roles.keys() & {"in", "out"}:
                    found[weight, role] = roles[role]
        return [(weight, role, labels) for (weight, role), labels in found.items()]

    def scale(self, model: ir.Model, factors: Factors) -> None:
        """Multiply what reads the channels by ``factors``, divide what gives them.

        Args:
            model: the model that holds the weights; they are computed when it is saved.
            factors: float64 [channels], positive.
        """
        for weight, edits in self.edits.items():
            replace_weight(weight, **_scaled(weight, edits, self._powers[weight], factors))
        for use, edits in self.copies.items():
            node, index = use
            shared = node.inputs[index]
            source = stored_weight(shared)
            if source is None:
                continue
            own = _scaled(source, edits, self._powers[use], factors)
            name = f"{source.name}_{node.name}"
            node.replace_input_with(index, add_weight(home_of(model, node), name, **own))
            drop_unread(shared)


class _Content(TypedDict):
    """What `replace_weight` and `add_weight` take."""

    shape: list[int]
    dtype: ir.DataType
    compute: Callable[[], np.ndarray[Any, Any]]


def factors_at(labels: Labels, factors: Factors, rank: int) -> Factors:
    """The factor at each labelled position, 1 where there is none; broadcasts to ``rank`` axes.

    The axes of the labels are counted from the start.
    """
    known = np.append(factors, 1.0)  # FIXED is -1: the last
    placed = known[np.where(labels.ids == FIXED, len(factors), labels.ids)]
    shape = [labels.sizes.get(axis, 1) for axis in range(rank)]
    return np.asarray(placed.reshape(shape), dtype=np.float64)


def _scaled(
    weight: ir.Value, edits: Sequence[Labels], powers: Mapping[Axes, int], factors: Factors
) -> _Content:
    """The weight with its channels scaled, computed when it is read."""
    tensor = weight_tensor(weight)
    stored = ir.Value(name=weight.name, const_value=tensor)
    shape = [int(size) for size in tensor.shape.numpy()]

    def compute() -> np.ndarray[Any, Any]:
        array = read_weight(stored)
        for labels in edits:
            by = factors_at(labels, factors, len(shape)) ** powers[labels.axes]
            # In float64, a few thousand elements at a time: no wide copy of a large weight.
            np.multiply(array, by, out=array, casting="unsafe", dtype=np.float64)
        return array

    if math.prod(shape) == 0:
        raise Leave(f"weight {weight.name!r} is empty")
    return {"shape": shape, "dtype": tensor.dtype, "compute": compute}
