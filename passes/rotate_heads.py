"""Rotate the values of every attention head, within the weights.

The result of head h is Σ_t p_t v_t, linear in the values of its key-value head g, so that for an
orthogonal Q_g of the width of a head

    W_o,h (Σ_t p_t v_t)  =  (W_o,h Q_g) (Σ_t p_t Qᵀ_g v_t):

the rows of the value projection (and its bias) of one key-value head are multiplied by Q_g, the
columns of the output projection of all its query heads likewise. R2 of SpinQuant (Liu et al. 2024,
arXiv:2405.16406) and of QuaRot (Ashkboos et al. 2024, arXiv:2404.00456, section 4). The input of
the output projection and the value cache lose their outliers; nothing is computed as the model
runs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.errors import CalibrationError
from onnxq.graph.opset import infer_shapes
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.topology import AttentionBlock, Topology
from onnxq.numerics.rotation import Rotation, make_rotation
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.rotation_bridges import matrix_bridge
from onnxq.passes.rotation_pass import RotationPass
from onnxq.passes.rotation_rules import follow_rotation
from onnxq.passes.rotation_space import Space, filled_inputs, find_space
from onnxq.passes.rotation_streams import covariance_of
from onnxq.passes.rotation_weights import runs_of

__all__ = ["RotateHeads"]

_MARK = "onnxq.rotated_heads"

Found = dict[str, tuple[Site, Space]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotateHeads(RotationPass):
    """Fold an orthogonal matrix into values and output projection, head by head.

    Matches: attention, fused (GroupQueryAttention, MultiHeadAttention, Attention) or written out,
        with values from a projection of their own or packed with queries and keys; query heads
        that share a key-value head share its matrix.
    Writes: the value projection, its bias, and the output projection.
    Leaves: blocks whose heads are not known, whose result is not read by one projection alone, or
        whose values a cache holds, unless ``rotate_cache``; those rotated already.

    Attributes:
        matrix: how it is made, see `onnxq.numerics.rotation`; the ``klt`` kinds take for each
            key-value head the covariance of what the output projection reads of it.
        seed: of the random kinds; each key-value head has a matrix of its own.
        rotate_cache: also where a key-value cache holds the values. The function of the tokens is
            the same when the cache is only fed back, but ``present`` outputs hold rotated values.
    """

    rotate_cache: bool = False

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Rotate every block that can be.

        Raises:
            CalibrationError: a covariance is needed, and there are no samples.
        """
        infer_shapes(model)
        by_node = {site.node: site for site in find_sites(model)}
        reports: list[SiteReport] = []
        found: Found = {}
        filled = filled_inputs(context.samples)
        for block in Topology(model).attention:
            outcome = self._space(block, by_node, filled)
            if isinstance(outcome, str):
                reports.append(SiteReport(site=block.name, reason=outcome))
            elif block.o is not None:
                found[block.name] = block.o, outcome
        moments = self._moments(model, found, context)
        moved: list[str] = []
        for number, (name, (site, space)) in enumerate(found.items()):
            rotations = self._rotations(site, space, moments.get(site.name), number)
            moved += [v.name or "" for v in space.cached() if v.is_graph_output()]
            maps = [one.apply for one in rotations]
            space.apply(model, maps, matrix_bridge("head", np.eye(1)), context.scratch)
            site.node.metadata_props[_MARK] = rotations[0].label
            note = f"{space.blocks} key-value heads of {space.width}: {rotations[0].label}"
            reports.append(SiteReport(site=name, note=note))
        return PassReport(modified=bool(found), sites=tuple(reports), moved_outputs=tuple(moved))

    def _space(
        self, block: AttentionBlock, by_node: dict[ir.Node, Site], filled: set[str]
    ) -> Space | str:
        """What the matrices of a block go through, or why it has none."""
        site = block.o
        if site is None or block.v is None or block.head_dim is None or site.input is None:
            return block.unknown or "its values have no projection"
        before = site.node.metadata_props.get(_MARK)
        if before is not None:
            return f"it is rotated: {before}"
        if site.already is not None or site.refusal is not None:
            return f"its output projection {site.name!r}: {site.already or site.refusal}"
        space = find_space(
            by_node,
            follow_rotation,
            site.input,
            width=block.head_dim,
            count=site.shape[site.in_axis],
            rotate_cache=self.rotate_cache,
        )
        if isinstance(space, Space):
            kept = next((value.name for value in space.cached() if value.name in filled), None)
            if kept is not None:
                return (
                    f"the samples put values into its cache {kept!r} that the float model made, "
                    "and they would not fit rotated ones: give samples with empty caches"
                )
        return space

    def _moments(
        self, model: ir.Model, found: Found, context: Context
    ) -> dict[str, npt.NDArray[np.float64]]:
        """The covariance of what each output projection reads, where it is needed."""
        if not self.needs_samples:
            return {}
        samples = context.needed_samples(
            f"rotate_heads with matrix={self.matrix!r} takes the covariance of the values, and "
            "the recipe was run without data: give calibration samples."
        )
        sites = [site for site, _ in found.values()]
        moments: dict[str, npt.NDArray[np.float64]] = {}
        for channels in {site.shape[site.in_axis] for site in sites}:
            moments.update(covariance_of(model, sites, samples, channels))
        return moments

    def _rotations(
        self, site: Site, space: Space, moment: npt.NDArray[np.float64] | None, number: int
    ) -> list[Rotation]:
        """One for each key-value head."""
        if self.needs_samples and moment is None:
            raise CalibrationError(
                f"what the output projection {site.name!r} reads cannot be observed: choose "
                "matrix='hadamard', which needs no data."
            )
        covariances = [None] * space.blocks if moment is None else _by_head(site, space, moment)
        return [
            make_rotation(
                self.matrix,
                space.width,
                seed=self.seed + number * space.blocks + head,
                covariance=covariance,
            )
            for head, covariance in enumerate(covariances)
        ]


def _by_head(
    site: Site, space: Space, moment: npt.NDArray[np.float64]
) -> list[npt.NDArray[np.float64]]:
    """The covariance of each key-value head, summed over its query heads."""
    sums = [np.zeros((space.width, space.width)) for _ in range(space.blocks)]
    if site.input is not None:
        for run in runs_of(space.labels[site.input], space.width, site.name):
            part = slice(run.start, run.start + space.width)
            sums[run.block] += moment[part, part]
    return sums
