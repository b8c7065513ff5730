"""Learn rotations and scales for a network that will be rounded, and fold them into its weights.

From the rotations of `rotate_residual` (Q₀ for a stream) and `rotate_heads`, further orthogonal
matrices Q and positive scales s are learned such that the network with weights and activations
rounded gives what the float network gives::

    W₀ = Q₀ᵀ W,  E₀ = E Q₀      →      diag(s) Qᵀ W₀,  E₀ Q,  norm 1 → 1/s        (streams, norms)
    V₀ = V H                    →      V₀ Q diag(1/s),  diag(s) Qᵀ W_o            (heads)
    U, D                        →      U diag(1/s),  diag(s) D                    (gated MLP)

Q stays orthogonal: it moves along the Stiefel manifold, by Riemannian Adam (OSTQuant, Hu et al.,
arXiv:2501.13987, sections 3.2 and 3.3) or by the Cayley transform (SpinQuant, Liu et al.,
arXiv:2405.16406, section 3.2). So the float network is the same at every step, and without any it
is exactly the rotated one.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, ClassVar, Literal

import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.formats import parse_integers
from onnxq.numerics.rotation import KINDS
from onnxq.passes.affine_points import find_points, learning_copy
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.rotate_heads import RotateHeads
from onnxq.passes.rotate_residual import RotateResidual
from onnxq.passes.rotation_problem import Foldable, find_foldable
from onnxq.runtime.work_folder import hash_of

if TYPE_CHECKING:
    from onnxq.learning.rotation_learning import RotationResult

__all__ = ["LearnRotation"]

_MARK = "onnxq.learned_rotation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnRotation(FloatTransform):
    """Rotate, then learn what more to rotate and to scale.

    Matches: the streams of `rotate_residual`, the heads of `rotate_heads`, and wherever a scale can
        move between the weights around an activation.
    Writes: weights, biases, embeddings, scales of norms.
    Leaves: what these passes leave, with their reasons; a model where it was learned already.

    Attributes:
        start: the matrix of the streams that learning starts from, see `rotate_residual`; ``none``
            starts from the model as it is, which may be rotated already.
        start_heads: that of the heads, see `rotate_heads`; ``none`` likewise.
        heads: learn matrices of heads.
        scales: learn scales.
        rotate_cache: also values and scales that a key-value cache holds; ``present`` changes.
        weight_format: what the weights will be rounded to, such as ``int4_g64``.
        activation_bits: what the activations will be rounded to, with a scale for each token.
        symmetric: activations are rounded without a zero point.
        clip: share of the range of a token that is kept.
        loss: ``blocks`` compares the outputs of every block fed by the float model; ``outputs`` the
            final outputs, by the divergence of their ``top`` likeliest entries, as OSTQuant does:
            a gradient then costs the whole network.
        top: entries compared by ``outputs``.
        descent: ``riemannian`` or ``cayley``.
        steps: gradient steps; 0 learns nothing.
        batch: pairs of a block and a sample (``blocks``), or samples, for each step.
        samples: at most how many calibration samples, the first ones.
        rate: how far a step turns a matrix, as a part of its norm.
        scale_rate: learning rate of the logarithms of the scales.
        exclude: name patterns of sites that will not be rounded.
        seed: of the start and of the order.
        threads: of torch; with one thread the same bytes come out every time.
    """

    start: str = "randomized_hadamard"
    start_heads: str = "hadamard"
    heads: bool = True
    scales: bool = True
    rotate_cache: bool = False
    weight_format: str = "int4_g64"
    activation_bits: int = 4
    symmetric: bool = True
    clip: float = 1.0
    loss: Literal["blocks", "outputs"] = "blocks"
    top: int = 1000
    descent: Literal["riemannian", "cayley"] = "riemannian"
    steps: int = 100
    batch: int = 4
    samples: int = 8
    rate: float = 1e-3
    scale_rate: float = 1e-3
    exclude: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 1

    change: ClassVar[str] = "a rotation"

    def __post_init__(self) -> None:
        """Refuse what no model could be run with, before any work."""
        parse_integers(self.weight_format)
        for kind in (self.start, self.start_heads):
            if kind != "none" and kind not in KINDS:
                raise RecipeError(
                    f"There is no rotation {kind!r}: choose none, {', '.join(KINDS)}."
                )
        if self.loss not in ("blocks", "outputs") or self.descent not in ("riemannian", "cayley"):
            raise RecipeError(
                f"loss={self.loss!r} must be 'blocks' or 'outputs', and descent={self.descent!r} "
                "'riemannian' or 'cayley'."
            )
        if not 2 <= self.activation_bits <= 8 or not 0.0 < self.clip <= 1.0:
            raise RecipeError(
                f"activation_bits={self.activation_bits} must be 2 to 8, and clip={self.clip} "
                "above 0 and at most 1."
            )
        counts = (self.batch, self.samples, self.top, self.threads)
        if self.steps < 0 or min(counts) < 1 or min(self.rate, self.scale_rate) <= 0.0:
            raise RecipeError("steps must not be negative; all other numbers must be above 0.")

    @property
    def needs_samples(self) -> bool:
        """Whether anything is learned, or a covariance taken."""
        return self.steps > 0 or "klt" in self.start + self.start_heads

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Rotate, learn on a copy, fold.

        Raises:
            CalibrationError: there are no samples, or they do not fit.
            UnsupportedGraph: an operator of a block that torch does not run here.
        """
        marked = [node.name or "" for node in model.graph if _MARK in node.metadata_props]
        if marked:
            reason = "rotations of this model were learned already"
            return PassReport(modified=False, sites=(SiteReport(site=marked[0], reason=reason),))
        begun = self._begin(model, context)
        modified = any(report.modified for report in begun)
        sites = [site for report in begun for site in report.sites]
        moved = [name for report in begun for name in report.moved_outputs]
        if not self.steps:
            notes = ("steps is 0: the start is kept as it is",)
            return PassReport(
                modified=modified, sites=tuple(sites), notes=notes, moved_outputs=tuple(moved)
            )
        foldable = find_foldable(
            model, heads=self.heads, scales=self.scales, rotate_cache=self.rotate_cache
        )
        if not foldable.spaces and not foldable.migrations:
            sites += [SiteReport(site=n, reason=why) for n, why in foldable.refused.items()]
            return PassReport(modified=modified, sites=tuple(sites), moved_outputs=tuple(moved))
        result, was_kept = self._learned(model, foldable, context)
        foldable.fold(model, result.matrices, result.factors, context.scratch)
        self._mark(foldable)
        notes = (
            f"{len(foldable.spaces)} groups of rotations and {len(foldable.migrations)} of scales "
            f"learned in {result.steps} steps: loss of {self.loss} {result.before:.4g} before, "
            f"{result.after:.4g} after",
            *(("they were learned in an earlier run",) if was_kept else ()),
        )
        return PassReport(
            modified=True, sites=tuple(sites), notes=notes, moved_outputs=tuple(moved)
        )

    def _begin(self, model: ir.Model, context: Context) -> list[PassReport]:
        """Apply the rotations that learning starts from."""
        reports = []
        if self.start != "none":
            streams = RotateResidual(matrix=self.start, seed=self.seed)  # type: ignore[arg-type]
            reports.append(streams.call(model, context))
        if self.heads and self.start_heads != "none":
            heads = RotateHeads(
                matrix=self.start_heads,  # type: ignore[arg-type]
                seed=self.seed,
                rotate_cache=self.rotate_cache,
            )
            reports.append(heads.call(model, context))
        return reports

    def _learned(
        self, model: ir.Model, foldable: Foldable, context: Context
    ) -> tuple[RotationResult, bool]:
        """What is learned, and whether an earlier run had learned it already."""
        from onnxq.learning.rotation_learning import RotationResult

        if context.work is None:
            return self._learn(model, foldable, context), False
        key = hash_of(context.origin, self.key(), self.options())
        piece = context.work.read(key)
        if piece is not None:
            matrices, factors = (
                {n.removeprefix(kind): a for n, a in piece.arrays.items() if n.startswith(kind)}
                for kind in ("matrices ", "factors ")
            )
            return RotationResult(matrices=matrices, factors=factors, **piece.about), True
        result = self._learn(model, foldable, context)
        about = {"before": result.before, "after": result.after, "steps": result.steps}
        arrays = {f"matrices {name}": array for name, array in result.matrices.items()}
        arrays |= {f"factors {name}": array for name, array in result.factors.items()}
        context.work.keep(key, about, arrays)
        return result, False

    def _learn(self, model: ir.Model, foldable: Foldable, context: Context) -> RotationResult:
        from onnxq.learning.affine import Reader
        from onnxq.learning.quantizers import TokenQuantizer, WeightQuantizer
        from onnxq.learning.rotation_learning import Problem, RotationSchedule, learn_rotations

        given = context.needed_samples(
            "learn_rotation learns on samples, and the recipe was run without data: give some "
            "(a folder of .npz files, texts, images or audio), or set steps=0."
        )
        plans, _ = find_points(model, exclude=self.exclude)
        copy, points = learning_copy(model, plans)
        weights, values = foldable.edits()
        read = [site for plan in plans for site in plan.sites if site.weight is not None]
        problem = Problem(
            model=copy,
            blocks=foldable.blocks(),
            factors=foldable.factors(),
            weights=weights,
            values=values,
            readers=[Reader(s.weight.name or "", s.in_axis == 0) for s in read if s.weight],
            points=points,
            weight_quantizer=WeightQuantizer(fmt=parse_integers(self.weight_format)),
            activation_quantizer=TokenQuantizer(
                bits=self.activation_bits, symmetric=self.symmetric
            ),
            clip=self.clip,
        )
        schedule = RotationSchedule(
            steps=self.steps,
            batch=self.batch,
            rate=self.rate,
            scale_rate=self.scale_rate,
            descent=self.descent,
            loss=self.loss,
            top=self.top,
            seed=self.seed,
            threads=self.threads,
        )
        samples = itertools.islice(iter(given), self.samples)
        return learn_rotations(problem, samples, schedule, progress=context.progress)

    def _mark(self, foldable: Foldable) -> None:
        """Remember at the layers that read what was learned."""
        regions = [*foldable.spaces.values(), *(m.region for m in foldable.migrations.values())]
        for region in regions:
            for site in region.readers:
                site.node.metadata_props[_MARK] = self.descent
