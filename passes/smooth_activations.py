"""Move the scale of activation channels into the weights that read them.

For a linear site and positive factors s, one for each input channel::

    y = W x = (W diag(s)) (diag(1/s) x)

The channels of x that are far larger than the others, and make the steps of a quantizer coarse for
all of them, become alike; the columns of W take what they lose. diag(1/s) costs nothing, because it
is folded into what gives x (`onnxq.passes.migration`): the scale and bias of a norm, the rows of
the layer before, through the product of a gated MLP and through attention. Sites that read one
activation, such as query, key and value, share their factors. How s is chosen:

============  ====================================================================================
objective     factors (see `onnxq.passes.smoothing_factors` for the algebra)
============  ====================================================================================
smoothquant   max|x_j|^α / max|w_j|^(1−α); α given, or of each activation the one that makes the
              output error least, with weights and activations rounded (Xiao et al.,
              arXiv:2211.10438)
gain          √(√E[x_j²] / ‖w_j‖), the least expected error in closed form (after PTQ4ARVG, Liu et
              al., arXiv:2601.21238)
percentile    max(1, max|x_j| / t): only what is beyond a percentile t of the peaks is moved (DGQ,
              Zhang et al., arXiv:2310.04836)
awq           E|x_j|^β; β given, or that of the least output error with only the weights rounded
              (Lin et al., arXiv:2306.00978): important columns become large, and are rounded finely
============  ====================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxq.calibration.channel_profile import ChannelProfile, profile_channels
from onnxq.calibration.samples import Samples
from onnxq.errors import RecipeError
from onnxq.formats import parse_integers
from onnxq.graph.sites import Site, find_sites
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.migration import Migration, find_migrations, scale_channels
from onnxq.passes.migration_shift import shift_channels, unshiftable
from onnxq.passes.shortcut_factors import add_shortcut_factors, drop_unused_factors
from onnxq.passes.site_patterns import recipe_refusal
from onnxq.passes.smoothing_choice import (
    Choice,
    Objective,
    Smoothing,
    choices_by_moments,
    input_name,
    middles_of,
    searched_reading,
)
from onnxq.solvers.nearest import Search

__all__ = ["SmoothActivations"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothActivations(FloatTransform):
    """Balance activations and weights channel by channel.

    Matches: MatMul, Gemm and Conv whose input comes from a norm or another layer, with only what
    commutes with positive factors between.
    Writes: the same graph with other weights, norm scales and biases.
    Leaves: activations that a graph output, an addition or a nonlinearity reads; tied and quantized
    weights; bodies and functions; what no factors make better; each with its reason.

    Attributes:
        objective: how factors are chosen; see the module.
        alpha: the exponent α of smoothquant (None: 0.5) or β of awq (None: ``search``), 0 to 1;
            ``search`` tries ``steps`` + 1 of them for each activation.
        percentile: of the peaks, for ``percentile``.
        format: format of the weights that a search rounds to; give that of `quantize_weights`.
        activation_bits: bits of the activations that a search rounds to; 0 leaves them in float.
        granularity: of these: a step for each ``token``, or one for the whole ``tensor``.
        search: how a search finds scales of weights, as in `quantize_weights`.
        steps: candidates of a search, besides 0.
        rows: rows of each activation that a search looks at; AWQ sees all of them, through H.
        shift: first take (max x_j + min x_j) / 2 out of each channel, within the bias of the norm
            or layer that gives it and those of the readers (Outlier Suppression+, Wei et al.,
            arXiv:2304.09145); readers without a bias get one.
        shortcuts: also take activations that layers and a shortcut read, as behind the norms of a
            post-norm network: the shortcut then multiplies by the factors as the model runs
            (Outlier Suppression, Wei et al., arXiv:2209.13325).
        through_cache: also scale values that a key-value cache holds. The function of the tokens
            is the same when the cache is only fed back; ``present`` outputs of values change.
        sites: name patterns of the sites to look at.
        exclude: name patterns of sites whose activation stays as it is.
        samples: at most how many calibration samples are looked at, the first ones.
    """

    objective: Objective = "smoothquant"
    alpha: float | Literal["search"] | None = None
    percentile: float = 99.5
    format: str = "int8_channel"
    activation_bits: int = 8
    granularity: Literal["token", "tensor"] = "token"
    search: Search = "minmax"
    steps: int = 20
    rows: int = 512
    shift: bool = False
    shortcuts: bool = False
    through_cache: bool = False
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    samples: int = 128

    moves_outliers: ClassVar[bool] = True
    reads_activations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what no model could be run with, before any work."""
        parse_integers(self.format)
        if isinstance(self.alpha, float | int) and not 0.0 <= self.alpha <= 1.0:
            raise RecipeError(f"alpha is {self.alpha}: it is an exponent between 0 and 1.")
        if self.alpha is not None and self.objective in ("gain", "percentile"):
            raise RecipeError(
                f"alpha is the exponent of smoothquant and awq, and objective={self.objective!r} "
                "has none: leave it out."
            )
        if not 0.0 < self.percentile <= 100.0:
            raise RecipeError(f"percentile is {self.percentile}: it lies between 0 and 100.")
        if self.activation_bits and not 2 <= self.activation_bits <= 16:
            raise RecipeError(
                f"activation_bits is {self.activation_bits}: give 2 to 16, or 0 for activations "
                "that stay in float."
            )
        if self.steps < 1 or self.rows < 1 or self.samples < 1:
            raise RecipeError("steps, rows and samples must be at least 1.")

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Find what can move, measure it, choose factors and fold them in.

        Raises:
            CalibrationError: there are no samples, or they do not fit the model.
        """
        given = context.needed_samples(
            "smooth_activations balances weights with what flows through them, and the recipe "
            "was run without data: give calibration samples."
        )
        samples = Samples.of(given, limit=self.samples)
        shortcuts = add_shortcut_factors(model) if self.shortcuts else []
        shifts = self._shift(model, samples) if self.shift else {}
        found = find_migrations(model, through_cache=self.through_cache, wants=self._unwanted)
        reports = [SiteReport(site=name, reason=reason) for name, reason in found.refused.items()]
        modified, moved = any(text is None for text in shifts.values()), list[str]()
        for migration, choice in self._choices(model, found.found, samples, context):
            if choice.factors is not None:
                scale_channels(model, migration, choice.factors)
                modified = True
                moved += migration.caches
            for site in migration.readers:
                reports.append(_report(site, migration, choice, shifts.get(site.name, "")))
        count = drop_unused_factors(shortcuts)
        notes = (f"{count} shortcuts multiply by the factors of their norm",) if count else ()
        return PassReport(
            modified=modified,
            sites=tuple(reports),
            notes=notes,
            moved_outputs=tuple(dict.fromkeys(moved)),
        )

    def _choices(
        self,
        model: ir.Model,
        migrations: Sequence[Migration],
        samples: Samples,
        context: Context,
    ) -> Iterator[tuple[Migration, Choice]]:
        """The factors of each migration; the caller folds them before it asks for the next."""
        how = self._smoothing()
        profiles = self._profiles(model, migrations, samples, how)
        choices: dict[Migration, Choice] = {}
        if how.objective == "awq" and how.alpha is None:
            choices = choices_by_moments(model, migrations, samples, how, profiles)
        # The last first: factors of a layer's rows are then known when its columns are measured.
        for number, migration in enumerate(reversed(migrations)):
            context.progress("smooth activations", number, len(migrations))
            yield migration, choices.get(migration) or how.choose(migration, profiles)

    def _smoothing(self) -> Smoothing:
        alpha = self.alpha
        if alpha is None and self.objective == "smoothquant":
            alpha = 0.5
        return Smoothing(
            objective=self.objective,
            alpha=None if alpha == "search" else alpha,
            percentile=self.percentile,
            fmt=parse_integers(self.format),
            activation_bits=self.activation_bits,
            granularity=self.granularity,
            search=self.search,
            steps=self.steps,
        )

    def _shift(self, model: ir.Model, samples: Samples) -> dict[str, str | None]:
        """Take the middles out of activations; for each reader None, or why it was left."""
        found = find_migrations(model, through_cache=self.through_cache, wants=self._unwanted).found
        by_node = {site.node: site for site in find_sites(model)}
        reasons = {migration: unshiftable(migration, by_node) for migration in found}
        able = [migration for migration, reason in reasons.items() if reason is None]
        axes = {input_name(site): m.axis(site) for m in able for site in m.readers}
        profiles = profile_channels(model, axes, samples)
        for migration in reversed(able):
            middles = middles_of(migration, profiles)
            if middles is None:
                reasons[migration] = "its channels lie around 0 already"
            else:
                shift_channels(model, migration, middles)
        return {site.name: reason for m, reason in reasons.items() for site in m.readers}

    def _unwanted(self, site: Site) -> str | None:
        return recipe_refusal(site.name, sites=self.sites, exclude=self.exclude)

    def _profiles(
        self,
        model: ir.Model,
        migrations: Sequence[Migration],
        samples: Samples,
        how: Smoothing,
    ) -> dict[str, ChannelProfile]:
        axes = {input_name(site): m.axis(site) for m in migrations for site in m.readers}
        readings = {
            input_name(site): tuple(
                dict.fromkeys(
                    reading
                    for other in m.readers
                    if other.input is site.input and (reading := searched_reading(other))
                )
            )
            for m in migrations
            for site in m.readers
        }
        rows = self.rows if how.searches_rows else 0
        return profile_channels(
            model, axes, samples, readings=readings if rows else None, rows=rows
        )


def _report(site: Site, migration: Migration, choice: Choice, shifted: str | None) -> SiteReport:
    """What happened to a site; ``shifted`` is why it was not shifted, "" when nobody asked."""
    note = "" if shifted is None else f"not shifted: {shifted}" if shifted else ""
    if shifted is None:
        note = "shifted to the middle of every channel"
    if choice.factors is None and shifted is not None:
        return SiteReport(site=site.name, reason="; ".join(filter(None, (choice.text, note))))
    if choice.factors is not None:
        into = ", ".join(sorted({producer.name for producer in migration.producers}))
        note = "; ".join(filter(None, (f"{choice.text}, folded into {into}", note)))
    return SiteReport(site=site.name, note=note)
