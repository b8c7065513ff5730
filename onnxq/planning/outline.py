"""A run in outline: what every pass will do, found on a model without content, before memory.

Passes that only rewrite the graph run on the outline of the model itself. Rotations and roundings
are described by their shapes. How much of it is in memory at once is decided later (`Outline.plan`)
for any settings and number of workers, so that trying several costs nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxq.graph.sites import Site, find_sites
from onnxq.graph.topology import Topology
from onnxq.graph.weights import replace_weight, weight_tensor
from onnxq.passes.base import Context, Pass, Promise
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.recipe import Recipe
from onnxq.passes.runner import Check
from onnxq.passes.site_patterns import name_roles
from onnxq.planning.advice import hints_of
from onnxq.planning.checks import check_stage, write_stage
from onnxq.planning.ledger import Entry, ledger
from onnxq.planning.quantizing import entries_of
from onnxq.planning.rates import Rates
from onnxq.planning.results import Plan
from onnxq.planning.sizes import Sizes, WeightWasRead, held_in_memory, refuse_reading, shadow_of
from onnxq.planning.walks import weight_of
from onnxq.planning.weight_memory import Need, Weight, rotating
from onnxq.runtime.memory_settings import MemorySettings

__all__ = ["Outline", "outline_of"]

_ROTATIONS = ("rotate_residual", "rotate_heads", "rotate_weights")
"""Passes that compute new weights at once and keep them in the scratch file."""

_SHARED = (
    "Each worker is taken to have as many cores as this machine to itself, as on a cluster: "
    "workers of one machine share them."
)

Entries = Callable[[MemorySettings, int], list[Entry]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outline:
    """What a run will do, before its memory is settled.

    Attributes:
        recipe: its name.
        parts: entries of each pass for given settings and workers.
        base: what is taken all the time.
        unforeseen: sentences on what has no numbers.
        assumptions: sentences on what was taken for granted.
    """

    recipe: str
    parts: Sequence[Entries]
    base: Need
    unforeseen: tuple[str, ...]
    assumptions: tuple[str, ...]

    def plan(self, settings: MemorySettings | None = None, workers: int = 1) -> Plan:
        """The plan for what is kept in memory, and how many sites are solved at once."""
        settings = settings or MemorySettings()
        entries = [entry for part in self.parts for entry in part(settings, workers)]
        stages = ledger(entries, self.base, settings.scratch)
        plan = Plan(
            recipe=self.recipe,
            stages=tuple(stages),
            unforeseen=self.unforeseen,
            assumptions=self.assumptions + (_SHARED,) * (workers > 1),
            settings=settings,
            workers=workers,
        )
        return dataclasses.replace(plan, hints=hints_of(plan))


def outline_of(
    model: ir.Model,
    recipe: Recipe,
    sizes: Sizes,
    *,
    check: Check = "auto",
    rates: Rates | None = None,
) -> Outline:
    """Go through a recipe without reading a weight.

    Args:
        model: left as it is.
        recipe: what is going to be done.
        sizes: of the calibration samples.
        check: whether the run will check every pass and the artifact.
        rates: of this machine; those in the cache when None.

    Raises:
        UnsupportedGraph: a pass refuses the model, as it would in the run.
    """
    rates = rates or Rates()
    drawn = _Drawing(shadow_of(model), sizes, rates)
    parts: list[Entries] = []
    for step in recipe.steps:
        parts.append(drawn.part(step))
        if check == "auto":
            parts.append(drawn.check(step))
    parts.append(drawn.write(check))
    runs = check == "auto" or any(step.needs_samples for step in recipe.steps)
    over = rates.overhead
    base = int(over.idle + runs * over.runtime) + held_in_memory(model)
    assumptions = list(drawn.assumptions)
    if sizes.is_assumed and any(step.needs_samples for step in recipe.steps):
        shape = max(sizes.samples[0].values(), default=())
        assumptions.append(
            f"No data were given: {sizes.count} samples of shape {list(shape)} are assumed. Give "
            "--data for real ones."
        )
    return Outline(
        recipe=recipe.name,
        parts=parts,
        base=Need(base - int(over.mapped), base),
        unforeseen=tuple(drawn.unforeseen),
        assumptions=tuple(assumptions),
    )


class _Drawing:
    """The model without content on its way through a recipe."""

    def __init__(self, model: ir.Model, sizes: Sizes, rates: Rates) -> None:
        self.model, self.sizes, self.rates = model, sizes, rates
        self.unforeseen: list[str] = []
        self.assumptions: list[str] = []
        self.written: int = 0
        self.is_mapped = held_in_memory(model) < sum(map(_nbytes, _weights(model)))

    def part(self, step: Pass) -> Entries:
        """Entries of one pass, which has been gone through after."""
        acting = name_roles(step, self.model)
        if isinstance(acting, QuantizeWeights):
            return self._quantize(acting)
        if step.needs_samples:
            return self._unknown(step, "it looks at activations, or learns from them")
        if step.key() in _ROTATIONS:
            return self._rotate(step)
        if step.promise is Promise.CLOSE:
            return self._unknown(step, "it rounds in a way that is not described yet")
        start = time.perf_counter()
        try:
            acting.requires(self.model)
            acting.call(self.model, Context())
        except WeightWasRead:
            return self._unknown(step, "it reads weights as it goes")
        seconds = time.perf_counter() - start
        return lambda settings, workers: [Entry(step=step.key(), seconds=seconds)]

    def check(self, step: Pass) -> Entries:
        """Running the model after a pass, to see whether it kept its promise."""
        return check_stage(self.model, self.sizes, self.rates, step.key(), self.written)

    def write(self, check: Check) -> Entries:
        """Writing the artifact, and running it beside the original."""
        rest = sum(map(_nbytes, _weights(self.model))) if not self.written else 0
        return write_stage(self.model, self.sizes, self.rates, self.written or rest, check)

    def _unknown(self, step: Pass, why: str) -> Entries:
        self.unforeseen.append(
            f"The pass {step.key()} cannot be foreseen: {why}. What comes after it is planned as "
            "if it changed nothing."
        )
        return lambda settings, workers: []

    def _quantize(self, step: QuantizeWeights) -> Entries:
        step.requires(self.model)
        found = entries_of(self.model, step, self.sizes, self.rates, self.is_mapped)
        if isinstance(found, str):
            return self._unknown(step, found)
        self.written = found.written
        return found.entries

    def _rotate(self, step: Pass) -> Entries:
        """Every weight that a rotation multiplies is computed, and kept."""
        entries = []
        for value, weight in self._turned(step.key()):
            seconds = weight.size * (self.rates.rotate + 6 * weight.itemsize * self.rates.copy)
            need = Need(rotating(weight), rotating(weight))
            entries.append(
                Entry(
                    step=step.key(),
                    part=f"{weight.rows}×{weight.columns}",
                    need=need,
                    seconds=seconds,
                    scratch=weight.nbytes,
                )
            )
            tensor = weight_tensor(value)
            shape = [int(size) for size in tensor.shape.numpy()]
            replace_weight(value, shape=shape, dtype=tensor.dtype, compute=refuse_reading)
        return lambda settings, workers: entries

    def _turned(self, key: str) -> list[tuple[ir.Value, Weight]]:
        topology = Topology(self.model)
        sites: Sequence[Site | None] = find_sites(self.model)
        if key == "rotate_heads":
            sites = [one for block in topology.attention for one in (block.v, block.o)]
        weights = {s.weight: s for s in sites if s is not None and s.weight is not None}
        return [(value, weight_of(site, self.is_mapped)) for value, site in weights.items()]


def _weights(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.initializers.values() if value.const_value is not None]


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
