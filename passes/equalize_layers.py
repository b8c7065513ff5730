"""Make the channels between two layers use the range of both weights alike.

With f(x / s) = f(x) / s (ReLU, LeakyReLU, PReLU, pooling, nothing at all) and one s_i > 0 for each
channel i between two layers::

    W₂ f(W₁ x + b₁)  =  (W₂ S) f(S⁻¹ W₁ x + S⁻¹ b₁)

Let r₁ᵢ be the largest |weight| that gives channel i and r₂ᵢ the largest that reads it. One scale
for a whole weight wastes bits on channels that are much smaller than the largest one, and the share
of both ranges that the channels use, Σᵢ (r₁ᵢ / maxⱼ r₁ⱼ)(r₂ᵢ / maxⱼ r₂ⱼ), is greatest for::

    sᵢ = √(r₁ᵢ / r₂ᵢ),        after which both ranges are √(r₁ᵢ r₂ᵢ)

Nagel, van Baalen, Blankevoort and Welling, "Data-Free Quantization Through Weight Equalization and
Bias Correction" (arXiv:1906.04721), section 4.1; in a chain of layers the pairs are
equalized one after another until nothing changes. No data are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.sites import Site
from onnxq.graph.stage import clone_model
from onnxq.graph.weights import read_weight
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.channel_labels import FIXED, Labels
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.migration import Migration, find_migrations, scale_channels
from onnxq.passes.migration_weights import factors_at
from onnxq.passes.open_clips import open_clips
from onnxq.passes.site_patterns import is_named, recipe_refusal

__all__ = ["EqualizeLayers"]

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualizeLayers(FloatTransform):
    """Give each channel between two layers the same weight range on both sides.

    Matches: Conv (depthwise too), ConvTranspose, MatMul and Gemm whose input channels come from
        the weights of other layers, with operators between them that a positive factor passes:
        ReLU, LeakyReLU, PReLU, pooling, constant factors, views, products with gates, attention.
    Writes: rows of the first weight and its bias divided, columns of the second multiplied.
    Leaves: inputs that come from a norm (nothing is gained: its scale is not quantized) or an
        operator that factors do not pass (GELU, a Clip with bounds); shared weights; graph
        inputs and outputs; channels that no weight gives or reads.

    Attributes:
        sites: name patterns of the layers to look at, by the second of each pair.
        exclude: name patterns of layers whose weights and inputs stay as they are.
        clips: ``open`` writes a Clip (ReLU6) that stands between two layers as a ReLU and a Min,
            which takes a bound for each channel: ReLU6 costs one operator more as the model runs,
            and integer kernels do not absorb it. ``leave`` leaves such pairs alone.
        tolerance: ranges that differ by a smaller share are equal, and a chain has converged.
        rounds: over all pairs of a chain, at most.
    """

    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    clips: Literal["leave", "open"] = "leave"
    tolerance: float = 1e-3
    rounds: int = 200

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Choose the factors of every chain of layers, then fold them."""
        if self.clips == "open":
            trial = clone_model(model)
            open_clips(trial)
            plan = self._plan(trial, context)
            open_clips(model, [name for pair in self._moved(plan) for name in _nodes_in(pair)])
        plan = self._plan(model, context)
        moved = self._moved(plan)
        for pair in moved:
            scale_channels(model, pair, plan.factors[pair])
        even = "its channels have the same range on both sides already"
        for pair, note in plan.changes.items():
            row = SiteReport(site="", note=note)
            if pair not in moved:
                row = SiteReport(site="", reason=even)
            for site in pair.readers:
                plan.reports[site.name] = dataclasses.replace(row, site=site.name)
        return PassReport(
            modified=bool(moved), sites=tuple(plan.reports.values()), notes=tuple(plan.notes)
        )

    def _moved(self, plan: _Plan) -> list[Migration]:
        """The pairs whose ranges differ."""
        return [
            pair
            for pair, factors in plan.factors.items()
            if np.abs(np.log(factors)).max() > self.tolerance
        ]

    def _plan(self, model: ir.Model, context: Context) -> _Plan:
        """Find the pairs, and the factors that make their ranges alike."""
        migrations = find_migrations(model, wants=self._unwanted)
        plan = _Plan()
        for name, why in migrations.refused.items():
            plan.reports[name] = SiteReport(site=name, reason=why)
        pairs: list[Migration] = []
        for migration in migrations.found:
            reason = self._not_a_pair(migration)
            if reason is None:
                pairs.append(migration)
            for site in migration.readers:
                plan.reports[site.name] = SiteReport(site=site.name, reason=reason)
        chains = _chains(pairs)
        for number, chain in enumerate(chains):
            context.progress("equalize layers", number, len(chains))
            balance = _Balance(chain)
            before = {pair: balance.use(pair) for pair in chain}
            if not balance.settle(self.rounds, self.tolerance):
                plan.notes.append(
                    f"the {len(chain)} pairs up to {chain[-1].readers[0].name!r} were still "
                    f"changing after {self.rounds} rounds"
                )
            plan.factors.update(balance.factors)
            for pair, share in before.items():
                change = f"{share:.0%} to {balance.use(pair):.0%}"
                plan.changes[pair] = f"channels use {change} of the range of both weights"
        return plan

    def _unwanted(self, site: Site) -> str | None:
        return recipe_refusal(site.name, sites=self.sites, exclude=self.exclude)

    def _not_a_pair(self, migration: Migration) -> str | None:
        """Why the two sides are not two weights that are to share their ranges."""
        for producer in migration.producers:
            if is_named(producer.name, self.exclude):
                return f"the recipe excludes {producer.name!r}, which gives its input"
            if producer.node.op_type == "BatchNormalization":
                return f"its input comes from {producer.name!r}: run fold_batch_norm first"
            if producer.kind == "norm":
                return (
                    f"its input comes from the norm {producer.name!r}, whose scale is not "
                    "quantized: smooth_activations or reparameterize_norm can use it"
                )
            if producer.kind == "factor":
                return (
                    f"its input is scaled by the constants of {producer.name!r}, and not by the "
                    "weight of a layer"
                )
        return None


@dataclasses.dataclass
class _Plan:
    """What is known of a model before it is changed.

    Attributes:
        factors: of every pair, in graph order.
        changes: what they do, for the report.
        reports: of the sites that are in no pair.
        notes: on chains that did not come to rest.
    """

    factors: dict[Migration, Array] = dataclasses.field(default_factory=dict)
    changes: dict[Migration, str] = dataclasses.field(default_factory=dict)
    reports: dict[str, SiteReport] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def _nodes_in(pair: Migration) -> set[str]:
    """Names of the nodes that give one of the activations that are divided."""
    producers = [value.producer() for value in pair.region.labels]
    return {node.name for node in producers if node is not None and node.name}


class _Balance:
    """The ranges of the weights of one chain, and the factors that make them alike."""

    def __init__(self, chain: Sequence[Migration]) -> None:
        self.factors = {pair: np.ones(pair.count) for pair in chain}
        self._parts: dict[Migration, dict[str, list[tuple[ir.Value, Labels]]]] = {}
        axes: dict[ir.Value, set[int]] = {}
        for pair in chain:
            sides = self._parts[pair] = {"in": [], "out": []}
            for weight, role, labels in pair.matrices():
                sides[role].append((weight, labels))
                axes.setdefault(weight, set()).update(labels.axes)
        self._sizes = {weight: _magnitudes(weight, kept) for weight, kept in axes.items()}

    def settle(self, rounds: int, tolerance: float) -> bool:
        """Equalize pair by pair until no factor moves by more than a share; False when cut off."""
        for _ in range(rounds):
            moved = max(self._equalize(pair) for pair in self.factors)
            if len(self.factors) == 1 or moved <= tolerance / 4:
                return True
        return False

    def use(self, pair: Migration) -> float:
        """Mean over the channels of the share of both ranges that each uses: 0 to 1."""
        shares = []
        for side in ("in", "out"):
            ranges = self._ranges(pair, side)
            shares.append(ranges / (ranges.max() or 1.0))
        return float(np.mean(shares[0] * shares[1]))

    def _equalize(self, pair: Migration) -> float:
        giving, reading = self._ranges(pair, "out"), self._ranges(pair, "in")
        both = (giving > 0) & (reading > 0)  # others carry nothing: any factor will do
        step = np.ones(pair.count)
        step[both] = np.sqrt(giving[both] / reading[both])
        self.factors[pair] *= step
        for side, by in (("in", step), ("out", 1 / step)):
            for weight, labels in self._parts[pair][side]:
                sizes = self._sizes[weight]
                sizes *= factors_at(labels, by, sizes.ndim)
        return float(np.abs(np.log(step)).max())

    def _ranges(self, pair: Migration, side: str) -> Array:
        """The largest magnitude of each channel, float64 [count]."""
        largest = np.zeros(pair.count)
        for weight, labels in self._parts[pair][side]:
            sizes = self._sizes[weight]
            rest = tuple(axis for axis in range(sizes.ndim) if axis not in labels.axes)
            found = sizes.max(axis=rest)
            held = labels.ids != FIXED
            np.maximum.at(largest, labels.ids[held], found[held])
        return largest


def _magnitudes(weight: ir.Value, axes: set[int]) -> Array:
    """|W|, the largest along all other axes, which stay with length 1."""
    array = np.abs(read_weight(weight).astype(np.float64))
    rest = tuple(axis for axis in range(array.ndim) if axis not in axes)
    return np.asarray(array.max(axis=rest, keepdims=True))


def _chains(pairs: Sequence[Migration]) -> list[list[Migration]]:
    """Pairs that share a weight, directly or through others, in one list each, in graph order."""
    chains: list[tuple[set[ir.Value], list[Migration]]] = []
    for pair in pairs:
        weights = {weight for weight, _, _ in pair.matrices()}
        joined = [chain for chain in chains if chain[0] & weights]
        chains = [chain for chain in chains if not chain[0] & weights]
        members = [member for _, chain in joined for member in chain]
        chains.append((weights.union(*(one for one, _ in joined)), [*members, pair]))
    return [chain for _, chain in chains]
