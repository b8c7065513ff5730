"""Losses of the options of every site, measured once and kept."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.budget.cache import LossCache, fingerprint
from onnxq.budget.marginals import PROBES, marginal_factors, probe_of
from onnxq.budget.menu import SiteMenu, measure_losses
from onnxq.budget.plan import Problem
from onnxq.budget.sensitivity import site_costs
from onnxq.calibration.samples import few_samples, samples_within
from onnxq.errors import CalibrationError
from onnxq.evaluate.output_loss import OutputLoss
from onnxq.graph.sites import Site
from onnxq.passes.base import Progress, Samples
from onnxq.passes.quantize_weights import QuantizeWeights

__all__ = ["Measuring"]

_TOKENS, _SAMPLES = 4096, 16
"""Of the samples that gradients are taken on, at most so many tokens and samples."""
_VERSION = 3
"""Of what is measured: what an earlier version has kept is not read."""
_MORE = 2
"""Times as many, but a quarter of all at most, for what is measured where all sites are rounded:
there a sample is one number a site. The solver does not see them, nor their neighbours, which are
of the same subjects, as what it fits to its own samples helps no others."""


@dataclasses.dataclass(frozen=True)
class Measuring:
    """What losses are measured with.

    Attributes:
        model: as the quantizing pass will find it; left as it is.
        step: that pass.
        loss: what the model is judged by.
        samples: calibration inputs.
        progress: called as work proceeds.
    """

    model: ir.Model
    step: QuantizeWeights
    loss: OutputLoss
    samples: Samples | None
    progress: Progress

    def with_losses(
        self, sites: Sequence[Site], menus: Mapping[str, SiteMenu], measure: str
    ) -> dict[str, SiteMenu]:
        """The menus with the losses of all options; what is kept is not measured again.

        Raises:
            CalibrationError: the solver or the measure needs samples.
            OnnxqError: as the measure.
        """
        if self.samples is None and self.step.needs_samples:
            raise CalibrationError(
                f"Solver {self.step.solver!r} needs calibration data: give some (--data), or set "
                "solver=nearest and --measure weights."
            )
        # What is corrected afterwards is what ``fisher`` says.
        cache = self._cache("fisher" if measure == "marginal" else measure, sites)
        known = cache.known()
        more = PROBES if measure == "marginal" else ()
        missing = {
            site.name: [
                name
                for name in (*menus[site.name].formats, *more)
                if name not in known.get(site.name, {})
            ]
            for site in sites
        }
        # A site that no gradient reaches has an entry without formats.
        asked = [s for s in sites if known.get(s.name, {"": 0.0}) and missing[s.name]]
        if asked:
            self._measure(asked, missing, measure, cache)
            known = cache.known()
        return {name: _with_losses(menu, known.get(name, {})) for name, menu in menus.items()}

    def corrected(self, sites: Sequence[Site], problem: Problem) -> Problem:
        """The problem with losses as `onnxq.budget.marginals` corrects them."""
        told = self._cache("fisher", sites).known()
        able = [site for site in sites if told.get(site.name)]  # not where no gradient reaches
        probe = probe_of([told[site.name] for site in able], self.loss.kind)
        cache = self._cache("marginal", sites, probe=probe, on="last")
        known = cache.known()
        if not known and self._seen is not None:
            rest, few = self._parted()
            found = marginal_factors(
                self.model,
                rest,
                few,
                able,
                {site.name: told[site.name][probe] for site in able},
                probe,
                self.loss,
                self.step,
                self.progress,
            )
            known = {name: {"factor": factor} for name, factor in found.items()}
            cache.keep(known)
        return dataclasses.replace(
            problem,
            menus=tuple(
                _scaled(menu, known.get(menu.site, {}).get("factor", 1.0)) for menu in problem.menus
            ),
        )

    def _measure(
        self,
        sites: Sequence[Site],
        missing: Mapping[str, Sequence[str]],
        measure: str,
        cache: LossCache,
    ) -> None:
        """Keep the losses of the formats that are missing."""
        few = None if self._seen is None else self._few()
        costs = site_costs(
            measure, self.model, few, sites, self.loss, seed=self.step.seed, progress=self.progress
        )
        cache.keep({site.name: {} for site in sites if site.name not in costs})
        able = [site for site in sites if site.name in costs]
        cache.keep(
            measure_losses(self.model, self._seen, missing, able, costs, self.step, self.progress)
        )

    @functools.cached_property
    def _seen(self) -> list[Mapping[str, np.ndarray]] | None:
        if self.samples is None:
            return None
        return list(itertools.islice(iter(self.samples), self.step.samples))

    def _few(self) -> Sequence[Mapping[str, np.ndarray]]:
        """Samples for gradients, spread over all."""
        return few_samples(self._seen or [], most=_SAMPLES, tokens=_TOKENS)

    def _parted(
        self,
    ) -> tuple[Sequence[Mapping[str, np.ndarray]], Sequence[Mapping[str, np.ndarray]]]:
        """Samples for the solver, and others: the last, so that neighbours are not torn apart."""
        samples = self._seen or []
        count = max(1, min(_MORE * _SAMPLES, len(samples) // 4))
        others = samples_within(samples[-count:], _MORE * _TOKENS)
        return samples[:-count] or samples, others

    def _cache(self, measure: str, sites: Sequence[Site], **more: Any) -> LossCache:
        step = self.step
        about = {
            "version": _VERSION,
            "measure": measure,
            "solver": step.solver,
            "options": dict(step.solver_options),
            "tokens": step.token_weights,
            "samples": step.samples,
            "seed": step.seed,
            "loss": dataclasses.asdict(self.loss),
            "sites": [site.name for site in sites],
            **more,
        }
        return LossCache(fingerprint(self.model, self._seen, about))


def _with_losses(menu: SiteMenu, losses: Mapping[str, float]) -> SiteMenu:
    """The menu with losses; a site that has none to tell keeps its first option alone."""
    if len(menu.options) == 1:
        return menu
    if any(option.format not in losses for option in menu.options):
        return dataclasses.replace(menu, options=menu.options[-1:])
    options = tuple(
        dataclasses.replace(option, loss=max(0.0, losses[option.format])) for option in menu.options
    )
    return dataclasses.replace(menu, options=options)


def _scaled(menu: SiteMenu, factor: float) -> SiteMenu:
    options = tuple(dataclasses.replace(o, loss=factor * o.loss) for o in menu.options)
    return dataclasses.replace(menu, options=options)
