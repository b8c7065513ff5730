"""Take a constant out of an activation: subtracted by what gives it, added where it is read.

For a migration between a norm, or a layer, and the layers that read it with nothing but views in
between, and a constant z for each channel::

    W x + b  =  W (x − z) + (b + W z)

so the bias of the producer falls by z and that of every reader grows by W z: channels that lie
around a value far from 0 are brought to it, at no cost as the model runs. Wei et al., "Outlier
Suppression+" (arXiv:2304.09145), with z = (max x + min x) / 2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.sites import Site, find_sites
from onnxq.passes.channel_labels import FIXED, along, named
from onnxq.passes.migration import Migration
from onnxq.passes.site_shift import (
    norm_refusal,
    output_refusal,
    shift_input,
    shift_norm,
    shift_output,
    shift_refusal,
)

__all__ = ["shift_channels", "unshiftable"]

Vector = npt.NDArray[np.float64]

_VIEWS = frozenset(
    ["Cast", "Dropout", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
     "Unsqueeze", "Shape", "Size"]
)  # fmt: skip
"""f(x − z) = f(x) − f(z), with the same z at other places."""


def unshiftable(migration: Migration, sites: dict[ir.Node, Site]) -> str | None:
    """Why no constant can be taken out of an activation; None when it can.

    Args:
        migration: where its scale could move.
        sites: the sites of the model by their nodes.
    """
    ours = {producer.node for producer in migration.producers}
    for producer in migration.producers:
        reason = _producer_refusal(producer.node, sites)
        if reason is not None:
            return reason
    for reader in migration.readers:
        reason = shift_refusal(reader)
        if reason is not None:
            return reason
    biases = {sites[node].bias_node for node in ours if node in sites}
    known = {*ours, *biases, *(reader.node for reader in migration.readers)}
    for value in migration.region.labels:
        for node in (value.producer(), *value.consumers()):
            if node is not None and node not in known and node.op_type not in _VIEWS:
                return f"{named(node)} is on the way, and f(x - z) is not f(x) - z there"
    return None


def shift_channels(model: ir.Model, migration: Migration, shift: npt.ArrayLike) -> None:
    """Subtract a constant from an activation; what reads it adds it back within its bias.

    Other migrations of the model are to be found anew: biases may have been added.

    Args:
        model: the model the migration was found in.
        migration: one that `unshiftable` has nothing against.
        shift: z, [count].

    Raises:
        ValueError: the shift is not of that shape, or not finite.
    """
    given = np.append(np.asarray(shift, dtype=np.float64), 0.0)  # channels without one: FIXED
    if given.shape != (migration.count + 1,) or not np.isfinite(given).all():
        raise ValueError(f"the shift of {migration.value.name!r} must be {migration.count} numbers")
    for producer in migration.producers:
        site = _now(model, producer.node)
        taken = _lazy(-given, _ids(migration, producer.node, site))
        if site is None:
            shift_norm(model, producer.node, taken)
        else:
            shift_output(model, site, taken)
    for reader in migration.readers:
        site = _now(model, reader.node)
        if site is not None:
            shift_input(model, site, _lazy(given, migration.channels(reader)))


def _producer_refusal(node: ir.Node, sites: dict[ir.Node, Site]) -> str | None:
    site = sites.get(node)
    if site is None:
        return norm_refusal(node)
    if site.is_embedding:
        return f"{named(node)} looks it up, and has no bias"
    if site.kind == "Attention":
        return f"{named(node)} is attention, whose bias is of queries and keys too"
    return output_refusal(site)


def _now(model: ir.Model, node: ir.Node) -> Site | None:
    """The site of a node as the model has it now."""
    return next((site for site in find_sites(model) if site.node is node), None)


def _ids(migration: Migration, node: ir.Node, site: Site | None) -> npt.NDArray[np.int64]:
    """The channel of each number of a producer's bias."""
    axis = -1
    if site is not None and site.kind == "Conv":
        axis = 1 - len(site.shape)
    elif site is not None and site.weight_index == 0:
        axis = -2
    return along(migration.region.labels[node.outputs[0]], axis, node)


def _lazy(values: Vector, ids: npt.NDArray[np.int64]) -> Callable[[], Vector]:
    placed = values[np.where(ids == FIXED, len(values) - 1, ids)]
    return lambda: placed
