"""What `learn_rotation` may fold into a model, told in a form that `onnxq.learning` trains.

Matrices of residual streams and of attention heads, and the scales that can move between layers,
each with the stored weights it changes and the values that change with it. They are folded in this
order, in learning as in writing: streams, heads, scales.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxq.graph.opset import infer_shapes
from onnxq.graph.scratch import Scratch
from onnxq.graph.sites import find_sites
from onnxq.graph.topology import Topology
from onnxq.passes.channel_labels import FIXED, Labels, Leave
from onnxq.passes.channel_region import Region
from onnxq.passes.migration import Migration, find_migrations, scale_channels
from onnxq.passes.migration_weights import ScaledWeights
from onnxq.passes.rotation_bridges import matrix_bridge
from onnxq.passes.rotation_rules import follow_rotation
from onnxq.passes.rotation_space import Space, find_space
from onnxq.passes.rotation_streams import find_streams
from onnxq.passes.rotation_weights import runs_of

if TYPE_CHECKING:
    from onnxq.learning.rotation import Edit

__all__ = ["Foldable", "find_foldable"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foldable:
    """Everything that can be learned of one model.

    Attributes:
        spaces: of the streams, then of the heads, by name of what they begin at.
        migrations: scales that can move, by name of the value.
        refused: by name of every other stream, attention block and site, why not.
    """

    spaces: Mapping[str, Space]
    migrations: Mapping[str, Migration]
    refused: Mapping[str, str]

    def blocks(self) -> dict[str, tuple[int, int]]:
        """Number and width of the matrices of each space."""
        return {name: (space.blocks, space.width) for name, space in self.spaces.items()}

    def factors(self) -> dict[str, int]:
        """Number of the scales of each migration."""
        return {name: migration.count for name, migration in self.migrations.items()}

    def edits(self) -> tuple[dict[str, list[Edit]], dict[str, list[Edit]]]:
        """What changes in stored weights, and what in values, both by name."""
        weights: dict[str, list[Edit]] = {}
        values: dict[str, list[Edit]] = {}
        for name, space in self.spaces.items():
            for weight, labels in _listed(space.turned.edits):
                weights.setdefault(weight.name or "", []).append(_turn(name, labels, space.width))
            for value, labels in space.labels.items():
                values.setdefault(value.name or "", []).append(_turn(name, labels, space.width))
        for name, migration in self.migrations.items():
            scaled = _scaled_weights(migration)
            for weight, labels in _listed(scaled.edits):
                power = scaled.power(weight, labels)
                weights.setdefault(weight.name or "", []).append(_scale(name, labels, power))
            for value, labels in migration.region.labels.items():
                values.setdefault(value.name or "", []).append(_scale(name, labels, -1))
        return weights, values

    def fold(
        self,
        model: ir.Model,
        matrices: Mapping[str, np.ndarray[Any, Any]],
        factors: Mapping[str, np.ndarray[Any, Any]],
        scratch: Scratch | None,
    ) -> None:
        """Write matrices and scales into the model they were found in.

        Args:
            model: that model.
            matrices: orthogonal float64 [blocks, width, width] by name of the space.
            factors: positive float64 by name of the migration.
            scratch: keeps the new weights.
        """
        for name, space in self.spaces.items():
            maps = [lambda x, q=q: x @ q for q in matrices[name]]
            space.apply(model, maps, matrix_bridge("rotation", np.eye(1)), scratch)
        for name, migration in self.migrations.items():
            scale_channels(model, migration, factors[name])


def find_foldable(model: ir.Model, *, heads: bool, scales: bool, rotate_cache: bool) -> Foldable:
    """Find what can be learned; weights that are shared for no reason get copies of their own.

    Args:
        model: with fused norms whose scales are folded away.
        heads: matrices for values of attention heads.
        scales: scales between layers.
        rotate_cache: also of values that a key-value cache holds.

    Raises:
        UnsupportedGraph: the model is calibrated or quantized already.
    """
    if scales:
        _own_copies(model, rotate_cache)
    streams = find_streams(model)
    refused = dict(streams.refused)
    spaces = {f"stream {stream.name}": stream.space for stream in streams.found}
    if heads:
        spaces |= _heads(model, rotate_cache, refused)
    for name in [name for name, space in spaces.items() if space.turned.copies]:
        del spaces[name]
        refused[name] = "some of its constants are read elsewhere too"
    migrations = {}
    if scales:
        found = find_migrations(model, through_cache=rotate_cache)
        refused |= {name: why for name, why in found.refused.items() if name not in refused}
        for migration in found.found:
            if not _scaled_weights(migration).copies:
                migrations[f"scale {migration.value.name}"] = migration
    return Foldable(spaces=spaces, migrations=migrations, refused=refused)


def _own_copies(model: ir.Model, through_cache: bool) -> None:
    """Give each norm a scale of its own where exporters share one; the factors are all 1."""
    for migration in find_migrations(model, through_cache=through_cache).found:
        if _scaled_weights(migration).copies:
            scale_channels(model, migration, np.ones(migration.count))


def _heads(model: ir.Model, rotate_cache: bool, refused: dict[str, str]) -> dict[str, Space]:
    """The spaces of attention heads, and reasons for other blocks."""
    infer_shapes(model)
    by_node = {site.node: site for site in find_sites(model)}
    found = {}
    for block in Topology(model).attention:
        site = block.o
        if site is None or block.v is None or block.head_dim is None or site.input is None:
            refused[block.name] = block.unknown or "its values have no projection"
            continue
        space = find_space(
            by_node,
            follow_rotation,
            site.input,
            width=block.head_dim,
            count=site.shape[site.in_axis],
            rotate_cache=rotate_cache,
        )
        if isinstance(space, str):
            refused[block.name] = space
        else:
            found[f"heads {block.name}"] = space
    return found


def _listed(
    edits: Mapping[ir.Value, Sequence[Labels]],
) -> Iterable[tuple[ir.Value, Labels]]:
    return [(weight, labels) for weight, several in edits.items() for labels in several]


def _scaled_weights(migration: Migration) -> ScaledWeights:
    region: Region = migration.region
    if not isinstance(region.weights, ScaledWeights):
        raise TypeError(f"migration {migration.value.name!r} has no scaled weights")
    return region.weights


def _turn(name: str, labels: Labels, width: int) -> Edit:
    from onnxq.learning.rotation import Turn

    try:
        runs = runs_of(labels, width, name)
    except Leave as left:  # checked when the space was found
        raise ValueError(str(left)) from left
    return Turn(name, labels.axes, tuple((run.start, run.block) for run in runs), width)


def _scale(name: str, labels: Labels, power: int) -> Edit:
    from onnxq.learning.rotation import Scale

    ids = np.where(labels.ids == FIXED, -1, labels.ids).astype(np.int64)
    return Scale(name, labels.axes, ids, power)
