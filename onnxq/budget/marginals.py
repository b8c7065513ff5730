"""The measure ``marginal``: losses corrected by what every site adds when all are rounded.

Second-order predictions are made at the float model and for one site alone. Here all sites are
rounded at once, to integers that are quickly found, and one backward pass gives what each adds to
the loss that there is (`onnxq.learning.site_marginals`), on samples the solver has not seen. The
losses of a site are multiplied by

    κ = what it adds there / what ``fisher`` says of it there.

Both are of the divergence from the float model's probabilities. Where a language model is judged
by the tokens that follow, κ is also multiplied by the rise of their −ln p over that divergence,
both of the rounded model: they are the same only where the float model knows how much it doubts.

What a few samples tell of one site is uncertain, and a part of it is chance: what errors of two
sites cost together depends on the codes, which other formats do not share. What does not depend on
them is common to sites of a kind and to neighbours. So κ is a Gaussian process over the sites (the
best linear prediction, as in kriging): around the ratio of all sites, a part for the kind, whose
names are alike but for numbers; a part that changes smoothly with the place in the graph; a small
one of the site itself; and the doubt, by how far samples disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.budget.menu import rounded_weights
from onnxq.evaluate.output_loss import Kind, OutputLoss
from onnxq.graph.sites import Site
from onnxq.passes.base import Progress, Samples
from onnxq.passes.quantize_weights import QuantizeWeights

__all__ = ["PROBES", "marginal_factors", "probe_of"]

Array = np.ndarray[Any, Any]

PROBES = ("int2_g64", "int3_g64", "int4_g64", "int6_g64")
"""Formats that are quickly solved, the smallest first; none need be in the menu."""
_PROBED = {"vectors": 0.05, "scores": 0.5, "next_token": 0.5}
"""The most that the probe is predicted to lose, by kind of the loss: a share, or nats. Beyond it
outputs that are wrong anyway can hardly become worse."""
_OF_KIND, _OF_PLACE, _OWN = 0.3, 0.3, 0.1
"""Spreads of the parts of κ, as shares of its mean."""
_REACH = 0.3
"""How far apart places still go together, as a share of the sites."""
_LEAST, _MOST = 0.25, 4.0
_SHARE = 0.5, 2.0
"""The least and the most that the rise can be of the divergence: few tokens tell little."""
_DIGITS = re.compile(r"\d+")


def probe_of(losses: Sequence[Mapping[str, float]], kind: Kind) -> str:
    """The format that all sites are rounded to: the smallest within a predicted loss.

    Args:
        losses: of every site, by format, `PROBES` among them.
        kind: of the loss.
    """
    fitting = [n for n in PROBES if sum(one[n] for one in losses) <= _PROBED[kind]]
    return (*fitting, PROBES[-1])[0]


def marginal_factors(
    model: ir.Model,
    samples: Samples,
    few: Sequence[Mapping[str, Array]],
    sites: Sequence[Site],
    told: Mapping[str, float],
    probe: str,
    loss: OutputLoss,
    step: QuantizeWeights,
    progress: Progress,
) -> dict[str, float]:
    """κ of every site.

    Args:
        model: the float model as the quantizing pass will find it; left as it is.
        samples: calibration inputs, for the solver.
        few: others, that gradients are taken on.
        sites: that are rounded.
        told: what is predicted of the probe at each of them.
        probe: a format.
        loss: what the model is judged by.
        step: the pass that will quantize: its solver and options are used.
        progress: called as work proceeds.

    Raises:
        UnsupportedGraph: torch does not run an operator of the model.
    """
    from onnxq.learning.site_marginals import site_marginals

    mix = dict.fromkeys(told, probe)
    rounded = rounded_weights(model, samples, mix, sites, step, progress)
    found = site_marginals(model, few, sites, rounded, loss, progress=progress)
    names = [name for name in found.halves if told.get(name, 0.0) > 0.0]
    added = np.array([found.halves[name] for name in names]).reshape(len(names), -1)
    predicted = np.array([told[name] for name in names])
    if not names or added.sum() <= 0.0:
        return {}
    factors, common = _predicted(names, added, predicted)
    share = float(np.clip(found.rises.sum() / found.losses.sum(), *_SHARE))
    factors, common = share * factors, share * common
    return dict.fromkeys(told, common) | dict(zip(names, factors.tolist(), strict=True))


def _predicted(names: Sequence[str], added: Array, predicted: Array) -> tuple[Array, float]:
    """κ of every site and of all together, of ``added`` ``[sites, samples]``."""
    sites, count = added.shape
    common = float(added.mean(axis=1).sum() / predicted.sum())
    ratios = added / (common * predicted[:, None])
    doubt = ratios.var(axis=1, ddof=1) / count if count > 1 else np.ones(sites)
    kinds = np.array([_DIGITS.sub("#", name) for name in names])
    places = np.arange(sites) / sites
    alike = _OF_KIND**2 * (kinds[:, None] == kinds)
    near = _OF_PLACE**2 * np.exp(-np.abs(places[:, None] - places) / _REACH)
    prior = alike + near + _OWN**2 * np.eye(sites)
    found = 1.0 + prior @ np.linalg.solve(prior + np.diag(doubt), ratios.mean(axis=1) - 1.0)
    return common * np.clip(found, _LEAST, _MOST), common
