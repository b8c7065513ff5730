"""The measure ``marginal``: losses corrected by what every site adds when all are rounded.

Second-order predictions are made at the float model and for one site alone. Here all sites are
rounded at once, to one format everywhere, and one backward pass gives what each adds to the loss
that there is (`onnxq.learning.site_marginals`). The losses of a site are multiplied by

    κ = what it adds there / what ``fisher`` says of it there.

What a few samples tell of one site is uncertain, so κ is drawn to the ratio of all sites by how far
samples disagree: the mean of a normal prior of that ratio, with a spread of half of it, and of the
samples. That site and format count for little else (the loss is nearly quadratic) lets one format
stand for every mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.budget.account import uniform_mixes
from onnxq.budget.menu import FLOAT, SiteMenu, rounded_weights
from onnxq.budget.plan import Problem, option_of
from onnxq.evaluate.output_loss import Kind, OutputLoss
from onnxq.graph.sites import Site
from onnxq.passes.base import Progress, Samples
from onnxq.passes.quantize_weights import QuantizeWeights

__all__ = ["marginal_factors", "probe_of"]

Array = np.ndarray[Any, Any]

_PROBED = {"vectors": 0.05, "scores": 0.5, "next_token": 0.5}
"""The most that the probe is predicted to lose, by kind of the loss: a share, or nats. Beyond it
outputs that are wrong anyway can hardly become worse."""
_SPREAD = 0.5
"""Of κ among sites, as a share of its mean."""
_LEAST, _MOST = 0.25, 4.0


def probe_of(problem: Problem, kind: Kind) -> dict[str, str]:
    """The format of every site that losses are measured in: the least within a predicted loss.

    Args:
        problem: menus with the losses that are to be corrected.
        kind: of the loss.

    Returns:
        By name of the site; a single format as far as menus have it.
    """
    mixes = sorted(uniform_mixes(problem).values(), key=lambda mix: mix.nbytes)
    mixes = [mix for mix in mixes if set(mix.formats.values()) != {FLOAT}]
    fitting = [mix for mix in mixes if mix.loss <= _PROBED[kind]]
    if mixes:
        return dict((fitting or mixes[-1:])[0].formats)
    middle = {}
    for menu in problem.menus:
        ordered = sorted(menu.options, key=lambda option: option.nbytes)
        middle[menu.site] = ordered[(len(ordered) - 1) // 2].format
    return middle


def marginal_factors(
    model: ir.Model,
    samples: Samples,
    few: Sequence[Mapping[str, Array]],
    sites: Sequence[Site],
    menus: Sequence[SiteMenu],
    probe: Mapping[str, str],
    loss: OutputLoss,
    step: QuantizeWeights,
    progress: Progress,
) -> dict[str, float]:
    """κ of every site.

    Args:
        model: the float model as the quantizing pass will find it; left as it is.
        samples: calibration inputs, for the solver.
        few: those that gradients are taken on.
        sites: that are rounded.
        menus: of all of them, with the losses that are to be corrected.
        probe: a format for every site.
        loss: what the model is judged by.
        step: the pass that will quantize: its solver and options are used.
        progress: called as work proceeds.

    Raises:
        UnsupportedGraph: torch does not run an operator of the model.
    """
    from onnxq.learning.site_marginals import site_marginals

    rounded = rounded_weights(model, samples, probe, sites, step, progress)
    told = {menu.site: option_of(menu, probe[menu.site]).loss for menu in menus}
    found = site_marginals(model, few, sites, rounded, loss, progress=progress)
    names = [name for name in found.halves if told.get(name, 0.0) > 0.0]
    added = np.array([found.halves[name] for name in names]).reshape(len(names), -1)
    predicted = np.array([told[name] for name in names])
    if not names or added.sum() <= 0.0:
        return {}
    factors, common = _shrunk(added, predicted)
    return dict.fromkeys(told, common) | dict(zip(names, factors.tolist(), strict=True))


def _shrunk(added: Array, predicted: Array) -> tuple[Array, float]:
    """κ of every site and of all together, of ``added`` ``[sites, samples]``."""
    count = added.shape[1]
    common = float(added.mean(axis=1).sum() / predicted.sum())
    ratios = added / predicted[:, None]
    prior = (_SPREAD * common) ** 2
    doubt = ratios.var(axis=1, ddof=1) / count if count > 1 else np.full(len(ratios), prior)
    weight = prior / (prior + doubt)
    drawn = weight * ratios.mean(axis=1) + (1.0 - weight) * common
    return np.clip(drawn, _LEAST * common, _MOST * common), common
