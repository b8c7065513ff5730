"""Learned affine maps of activations, folded into the weights on both sides.

For the sites that read x, with rows w, a shift z and an invertible matrix A,

    x wᵀ + b  =  ((x − z) A⁻¹) (w Aᵀ)ᵀ + (b + z wᵀ)

and what gives x takes z and A⁻¹. Which A can be folded there depends on what that is; the paper
(section 3.3 and its code) draws the line where this pass does:

==========================  =======================================================================
norm → q, k, v; gate, up    diagonal A, in the scale and bias of the norm; a full A does not commute
                            with the scale of the norm. (For weights alone the paper also keeps a
                            full A here, and computes A⁻¹ as the model runs; this pass does not:
                            `flatten_affine` has a cheaper map for that.)
v → o                       full A for each key-value head: attention is linear in its values
up → down                   diagonal A: the product with the gate is by channel
gelu, silu → down           nothing: the nonlinearity commutes with no scale; left, with the reason
==========================  =======================================================================

Diagonal first: D starts from the balance of SmoothQuant, and a gradual mask lets in what is beside
the diagonal, from the band next to it outward, held small by the stability factor α. A stays
strictly diagonally dominant on the whole way (rows that would not are scaled back), hence
invertible (Levy–Desplanques). z is taken where producer and readers have, or can take, a bias.

AffineQuant: Ma et al., ICLR 2024, arXiv:2403.12544.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.graph.activation_clip import record_clip
from onnxq.graph.opset import infer_shapes
from onnxq.graph.sites import find_sites
from onnxq.passes.affine_heads import HeadPlan, fold_heads, head_map, plan_heads
from onnxq.passes.affine_learning import Learned, learn_points
from onnxq.passes.affine_pass import AffinePass
from onnxq.passes.affine_points import PointPlan, find_points
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.migration import Migration, find_migrations, scale_channels
from onnxq.passes.migration_shift import shift_channels, unshiftable

if TYPE_CHECKING:
    from onnxq.learning.affine import AffinePoint
    from onnxq.learning.head_maps import HeadMap

__all__ = ["MigrateAffine"]

_MARK = "onnxq.migrated_affine"
_ONCE = "an affine map was migrated here already"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MigrateAffine(AffinePass):
    """Learn a diagonal, or a matrix for each head, between producers and the sites behind them.

    Matches: MatMul and Gemm with a float weight of their own, in the layers of the main graph,
        whose activation comes from a norm, a value projection, or up_proj.
    Writes: weights, biases and norm scales; nothing is computed as the model runs.
    Leaves: what no map can be folded into, layers where nothing learned is better than plain
        rounding, sites that were migrated before; each with its reason.

    Attributes:
        weight_format: what the weights will be rounded to, an integer format such as
            ``int4_g64``; in learning they are rounded to nearest.
        activation_bits: what the activations will be rounded to, with a scale for each token.
        symmetric: activations are rounded without a zero point.
        steps: gradient steps for each layer; 0 leaves the model as it is.
        batch: samples for each step.
        samples: at most how many calibration samples are learned on, the first ones.
        rate: learning rate of the maps; clips learn at ten times this rate.
        balance: exponent of SmoothQuant that the diagonal starts from, 0 to 1.
        stability: α of the gradual mask, above 0.
        shift: also learn z.
        clip: learn what share of the range of an activation is kept; it is recorded for
            `quantize_activations`.
        inputs: what a layer is learned on: its inputs in the model ``quantized`` so far, or in
            the ``float`` model.
        through_cache: also where a key-value cache holds the values; ``present`` outputs change.
        exclude: name patterns of sites to leave alone.
        seed: of the order of samples.
        threads: of torch; with one thread the same bytes come out every time.
    """

    stability: float = 0.1
    shift: bool = True
    through_cache: bool = False

    def __post_init__(self) -> None:
        """Refuse what no model could be run with, before any work."""
        super().__post_init__()
        if not self.stability > 0.0:
            raise RecipeError(f"stability is {self.stability}: it must be above 0.")

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Learn on a copy, layer by layer; then fold what was learned.

        Raises:
            CalibrationError: there are no samples, or they do not fit.
        """
        if not self.steps:
            return PassReport(modified=False, notes=("steps is 0: nothing was learned",))
        self.require_samples(context)
        infer_shapes(model)
        plans, reasons = find_points(model, exclude=self.exclude)
        heads, stay = plan_heads(model, plans, through_cache=self.through_cache)
        migrations, unmoved = self._migrations(model, plans, heads)
        for plan, why in {**unmoved, **stay}.items():
            reasons |= {site.name: why for site in plan.sites}
        free = [p for p in plans if (p in migrations or p in heads) and p not in unmoved]
        if not free:
            sites = tuple(SiteReport(site=name, reason=why) for name, why in reasons.items())
            return PassReport(modified=False, sites=sites)
        points = self._points(model, plans, migrations)
        maps = {plan: head_map(found, self.stability) for plan, found in heads.items()}
        learned = learn_points(model, plans, points, self, context, maps)
        reasons |= {n: why for n, why in learned.refused.items() if n not in reasons}
        kept = [plan for plan in free if plan in learned.points]
        moved = self._write(model, kept, learned, migrations, heads, maps)
        reports = [SiteReport(site=name, reason=why) for name, why in reasons.items()]
        for plan in kept:
            note = _note(learned, plan, maps.get(plan))
            reports += [SiteReport(site=site.name, note=note) for site in plan.sites]
        return PassReport(
            modified=bool(kept),
            sites=tuple(reports),
            notes=learned.notes,
            moved_outputs=tuple(dict.fromkeys(moved)),
        )

    def _migrations(
        self, model: ir.Model, plans: Sequence[PointPlan], heads: Mapping[PointPlan, HeadPlan]
    ) -> tuple[dict[PointPlan, Migration], dict[PointPlan, str]]:
        """Where a diagonal can be folded, and why not elsewhere."""
        found = find_migrations(model, through_cache=self.through_cache)
        chosen: dict[PointPlan, Migration] = {}
        refused: dict[PointPlan, str] = {}
        for plan in plans:
            if plan.sites[0].node.metadata_props.get(_MARK):
                refused[plan] = _ONCE
                continue
            if plan in heads:
                continue
            migration = found.of(plan.sites[0])
            ours = {site.node for site in plan.sites}
            if migration is None:
                refused[plan] = found.refused.get(plan.sites[0].name, "its scale cannot move")
            elif {site.node for site in migration.readers} != ours:
                refused[plan] = "sites that stay as they are read the same activation"
            else:
                chosen[plan] = migration
        return chosen, refused

    def _points(
        self,
        model: ir.Model,
        plans: Sequence[PointPlan],
        migrations: Mapping[PointPlan, Migration],
    ) -> dict[PointPlan, AffinePoint]:
        """What is learned at each plan; those without a map are rounded all the same."""
        from onnxq.learning.affine import AffinePoint, Reader

        by_node = {site.node: site for site in find_sites(model)}
        points = {}
        for plan in plans:
            migration = migrations.get(plan)
            points[plan] = AffinePoint(
                plan.value.name or "",
                [
                    Reader(s.weight.name or "", s.in_axis == 0, s.output.name or "")
                    for s in plan.sites
                    if s.weight is not None
                ],
                ids=None if migration is None else migration.channels(plan.sites[0]),
                is_shifted=self.shift
                and migration is not None
                and unshiftable(migration, by_node) is None,
            )
        return points

    def _write(
        self,
        model: ir.Model,
        kept: Sequence[PointPlan],
        learned: Learned,
        migrations: Mapping[PointPlan, Migration],
        heads: Mapping[PointPlan, HeadPlan],
        maps: Mapping[PointPlan, HeadMap],
    ) -> list[str]:
        """Fold shifts, then scales, then heads; gives the names of outputs that moved."""
        moved: list[str] = []
        for plan in kept:
            shift = learned.points[plan].shift
            if plan in migrations and shift is not None:
                shift_channels(model, migrations[plan], shift.detach().numpy().astype(np.float64))
        # Biases may be new.
        again = find_migrations(model, through_cache=self.through_cache)
        heads, _ = plan_heads(model, list(heads), through_cache=self.through_cache)
        for plan in kept:
            point = learned.points[plan]
            migration = again.of(plan.sites[0])
            if plan in migrations and migration is not None:
                scale_channels(model, migration, 1.0 / point.factors())
                moved += migration.caches
            if plan in heads:
                progress = learned.results[plan].progress or 0.0
                fold_heads(heads[plan], maps[plan].folded(progress))
                moved += [v.name or "" for v in heads[plan].space.cached() if v.is_graph_output()]
            share = point.kept_share()
            if share < 1.0:
                record_clip(plan.value, share)
            for site in plan.sites:
                site.node.metadata_props[_MARK] = f"{self.steps} steps"
        return moved


def _note(learned: Learned, plan: PointPlan, heads: HeadMap | None) -> str:
    """What was folded, its condition number, and what it brought to the layer."""
    point, result = learned.points[plan], learned.results[plan]
    if heads is None:
        factors = point.factors()
        what = f"diagonal of {len(factors)}"
        condition = float(factors.max() / factors.min())
    else:
        matrices = heads.folded(result.progress or 0.0)
        what = f"{len(matrices)} matrices of {matrices.shape[-1]} x {matrices.shape[-1]}"
        condition = max(float(np.linalg.cond(matrix)) for matrix in matrices)
    shift = ", shifted" if point.shift is not None else ""
    return (
        f"{what}{shift}, condition {condition:.3g}; keeps {point.kept_share():.3f} of the range; "
        f"error of the layer {result.before:.4g} before, {result.after:.4g} after"
    )
