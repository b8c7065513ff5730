"""Learned Kronecker-factored maps before linear layers, their inverse folded into the weights.

For the sites that read x, with rows w, scales s and a map P = L ⊗ R of two small matrices::

    MatMul(x, W)  →  MatMul(KroneckerMatMul(x ∘ s, L, R), (L ⊗ R)⁻¹ diag(1/s) W)

which is the same function for every invertible L, R. They are learned, layer by layer, such that
the layer with weights and activations rounded gives what the float layer gave. s is folded into
what computes x (a norm's scale, the rows of up_proj) where that is possible, and left out where it
is not; P is computed as the model runs: a + b multiplications for each of a · b channels. Before
o_proj, L mixes the heads and R the channels of a head.

The share of its range that is best kept when the mapped activation is rounded is learned too. It
would change the function, so it is not applied here: it is recorded at the value, and
`quantize_activations` applies it. (The paper learns thresholds of weights as well; the solvers of
`quantize_weights` search these anew, and a weight clipped before would be another function.)

FlatQuant: Sun et al., arXiv:2410.09426, sections 3.1 and 3.2. Here L and R are free square matrices
that start orthogonal, where the paper's are kept as singular value decompositions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from onnxq.graph.activation_clip import record_clip
from onnxq.passes.affine_learning import Learned, learn_points
from onnxq.passes.affine_pass import AffinePass
from onnxq.passes.affine_points import PointPlan, find_points
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.kronecker_writing import FUNCTION_OPSET, insert_kronecker, unapply_kronecker
from onnxq.passes.migration import Migration, find_migrations, scale_channels
from onnxq.passes.preconditions import need_opset

if TYPE_CHECKING:
    from onnxq.learning.affine import AffinePoint

__all__ = ["FlattenAffine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlattenAffine(AffinePass):
    """Learn a map for every activation that linear sites of a layer read.

    Matches: MatMul and Gemm with a float weight of their own, in the layers of the main graph.
    Writes: KroneckerMatMul, a function in standard operators, one for all sites that read a value.
    Leaves: convolutions, heads outside the layers, shared weights, bodies, sites excluded, layers
    where nothing learned is better than plain rounding; each with its reason.

    Attributes:
        weight_format: what the weights will be rounded to, an integer format such as
            ``int4_g64``; in learning they are rounded to nearest.
        activation_bits: what the activations will be rounded to, with a scale for each token.
        symmetric: activations are rounded without a zero point.
        steps: gradient steps for each layer; 0 leaves the model as it is.
        batch: samples for each step.
        samples: at most how many calibration samples are learned on, the first ones.
        rate: learning rate of the maps and, logarithmic, of the scales; clips learn at ten times
            this rate.
        balance: exponent of SmoothQuant that scales start from, 0 to 1.
        clip: learn what share of the range of an activation is kept.
        inputs: what a layer is learned on: its inputs in the ``float`` model (FlatQuant), or in
            the model ``quantized`` so far.
        exclude: name patterns of sites to leave alone.
        seed: of the starting maps and of the order of samples.
        threads: of torch; with one thread the same bytes come out every time.
    """

    balance: float = 0.3
    inputs: Literal["float", "quantized"] = "float"

    def requires(self, model: ir.Model) -> None:
        """Raise unless the model is still in float and its opset can express the map."""
        super().requires(model)
        need_opset(model, FUNCTION_OPSET, "KroneckerMatMul")

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Learn on a copy, layer by layer; then write what was learned.

        Raises:
            CalibrationError: there are no samples, or they do not fit.
        """
        if not self.steps:
            return PassReport(modified=False, notes=("steps is 0: nothing was learned",))
        self.require_samples(context)
        plans, reasons = find_points(model, exclude=self.exclude)
        if not plans:
            sites = tuple(SiteReport(site=name, reason=why) for name, why in reasons.items())
            return PassReport(modified=False, sites=sites)
        migrations = self._migrations(model, plans)
        learned = learn_points(model, plans, self._points(plans, migrations), self, context)
        reports = {
            name: SiteReport(site=name, reason=why)
            for name, why in {**reasons, **learned.refused}.items()
        }
        for plan in plans:
            if plan in learned.points:
                notes = self._write(model, plan, learned, migrations.get(plan))
                reports |= {s.name: SiteReport(site=s.name, note=notes) for s in plan.sites}
        return PassReport(
            modified=bool(learned.points), sites=tuple(reports.values()), notes=learned.notes
        )

    def _migrations(self, model: ir.Model, plans: list[PointPlan]) -> Mapping[PointPlan, Migration]:
        """Where the scales of a point can move into what computes it, and nobody else reads it."""
        found = find_migrations(model)
        chosen = {}
        for plan in plans:
            migration = found.of(plan.sites[0])
            ours = {site.node for site in plan.sites}
            if migration is not None and {site.node for site in migration.readers} == ours:
                chosen[plan] = migration
        return chosen

    def _points(
        self, plans: list[PointPlan], migrations: Mapping[PointPlan, Migration]
    ) -> dict[PointPlan, AffinePoint]:
        """What is learned for each plan, at its start."""
        from onnxq.learning.affine import AffinePoint, Reader
        from onnxq.learning.matrices import KroneckerMatrix, factor_pair, mixing_matrix

        points = {}
        for number, plan in enumerate(plans):
            first, second = plan.heads or factor_pair(plan.width)
            seeds = self.seed + 2 * number, self.seed + 2 * number + 1
            matrix = KroneckerMatrix(
                mixing_matrix(first, seeds[0]), mixing_matrix(second, seeds[1])
            )
            migration = migrations.get(plan)
            points[plan] = AffinePoint(
                plan.value.name or "",
                [Reader(s.weight.name or "", s.in_axis == 0) for s in plan.sites if s.weight],
                ids=None if migration is None else migration.channels(plan.sites[0]),
                matrix=matrix,
            )
        return points

    def _write(
        self, model: ir.Model, plan: PointPlan, learned: Learned, migration: Migration | None
    ) -> str:
        """Scale, map, and fold back; gives the note for the report."""
        point = learned.points[plan]
        if migration is not None:
            scale_channels(model, migration, 1.0 / point.factors())
        if point.matrix is None or plan.sites[0].weight is None:
            raise ValueError(f"point {plan.value.name!r} has no map")
        kept = plan.sites[0].weight.dtype or ir.DataType.FLOAT
        left, right = (f.astype(kept.numpy()).astype(np.float64) for f in point.matrix.factors())
        for site in plan.sites:
            unapply_kronecker(site, left, right)
        mapped = insert_kronecker(model, plan.value, plan.sites, left, right)
        share = point.kept_share()
        if share < 1.0:
            record_clip(mapped, share)
        result = learned.results[plan]
        return (
            f"mapped by {len(left)} x {len(left)} and {len(right)} x {len(right)}, condition "
            f"{point.matrix.condition():.3g}; keeps {share:.3f} of the range; error of the layer "
            f"{result.before:.4g} before, {result.after:.4g} after"
        )
