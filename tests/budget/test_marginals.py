"""Losses corrected where all sites are rounded: they sum to the loss that there is."""

import numpy as np
import pytest

from onnxq.budget.marginals import _shrunk, probe_of
from onnxq.budget.menu import rounded_weights
from onnxq.budget.plan import solution_of
from onnxq.budget.policy import load_policy
from onnxq.budget.problem import planned
from onnxq.budget.request import Request
from onnxq.evaluate.losses import LossMeter
from onnxq.evaluate.output_loss import find_output_loss
from onnxq.graph.sites import find_sites
from onnxq.graph.weights import replace_weight
from onnxq.passes.base import no_progress
from onnxq.passes.quantize_weights import QuantizeWeights
from tests.five_layers import SITES, five_layers, five_samples

MENU = ("int2", "int3", "int4", "int6")
STEP = QuantizeWeights(format="int4", write="operator", solver="gptq")
SAMPLES = five_samples(8)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """By measure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {
            measure: planned(
                five_layers(),
                STEP,
                Request(bits=3.0),
                load_policy("default").with_menu(MENU),
                samples=SAMPLES,
                measure=measure,
                progress=no_progress,
            ).problem
            for measure in ("fisher", "marginal")
        }


def _measured(mix):
    model = five_layers()
    rounded = rounded_weights(model, SAMPLES, mix, find_sites(model), STEP)
    changed = five_layers()
    for site in find_sites(changed):
        new = np.ascontiguousarray(rounded[site.name].T)
        replace_weight(
            site.weight, shape=new.shape, dtype=site.weight.dtype, compute=lambda new=new: new
        )
    return LossMeter(model, SAMPLES, find_output_loss(model)).excess(changed)


def test_the_probe_is_the_smallest_format_that_may_be_lost(problems):
    probe = probe_of(problems["fisher"], "vectors")
    (name,) = set(probe.values())
    smaller = MENU[MENU.index(name.partition("_")[0]) - 1]
    losses = {
        fmt: solution_of(problems["fisher"], dict.fromkeys(SITES, fmt), 0.0).loss
        for fmt in problems["fisher"].menus[0].formats
    }
    assert losses[name] <= 0.05
    assert smaller == MENU[-1] or losses[f"{smaller}_channel"] > 0.05


def test_a_mix_loses_what_is_told_of_it(problems):
    rng = np.random.default_rng(3)
    names = problems["fisher"].menus[0].formats[1:]
    off = {"fisher": [], "marginal": []}
    for _ in range(6):
        mix = {site: str(rng.choice(names)) for site in SITES}
        measured = _measured(mix)
        for measure, problem in problems.items():
            told = solution_of(problem, mix, 0.0).loss
            off[measure].append(abs(np.log(told / measured)))
    assert np.mean(off["marginal"]) < np.mean(off["fisher"])
    assert max(off["marginal"]) < np.log(1.25)


def test_what_samples_disagree_on_is_drawn_to_the_ratio_of_all():
    predicted = np.array([1.0, 1.0, 1.0])
    sure, unsure = np.full(4, 2.0), np.array([8.0, -4.0, 6.0, -2.0])
    factors, common = _shrunk(np.stack([sure, unsure, np.full(4, 1.0)]), predicted)
    assert common == pytest.approx(5 / 3)
    assert factors[0] == 2.0 and factors[2] == 1.0
    assert abs(factors[1] - common) < 0.1 * abs(unsure.mean() - common)
