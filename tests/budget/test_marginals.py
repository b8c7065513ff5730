"""Losses corrected where all sites are rounded: they sum to the loss that there is."""

import numpy as np
import pytest

from onnxq.budget.marginals import PROBES, _predicted, probe_of
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
SAMPLES, OTHERS = five_samples(16), five_samples(8, seed=6)


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
    return LossMeter(model, OTHERS, find_output_loss(model)).excess(changed)


def test_the_probe_is_the_smallest_format_that_may_be_lost():
    def losses(*values):
        return [dict(zip(PROBES, (v / 2 for v in values), strict=True))] * 2

    assert probe_of(losses(3.0, 0.4, 0.1, 0.01), "next_token") == "int3_g64"
    assert probe_of(losses(3.0, 0.4, 0.04, 0.01), "vectors") == "int4_g64"
    assert probe_of(losses(3.0, 2.0, 1.5, 1.0), "scores") == "int6_g64"


def test_a_mix_loses_what_is_told_of_it_on_other_samples(problems):
    rng = np.random.default_rng(3)
    names = problems["fisher"].menus[0].formats[1:]
    off = {"fisher": [], "marginal": []}
    for _ in range(20):
        mix = {site: str(rng.choice(names)) for site in SITES}
        measured = _measured(mix)
        for measure, problem in problems.items():
            told = solution_of(problem, mix, 0.0).loss
            off[measure].append(abs(np.log(told / measured)))
    assert np.mean(off["marginal"]) < np.mean(off["fisher"])
    assert max(off["marginal"]) < np.log(1.25)


def test_what_samples_disagree_on_follows_its_kind_and_its_place():
    rng = np.random.default_rng(0)
    names = [f"layer.{layer}.{kind}" for layer in range(30) for kind in ("up", "down")]
    truth = np.array([(1.8 - layer / 30) * kind for layer in range(30) for kind in (0.8, 1.2)])
    noise = np.where(np.arange(60) % 10 == 0, 5.0, 0.3)
    predicted = rng.uniform(0.5, 2.0, 60)
    added = (truth[:, None] + noise[:, None] * rng.standard_normal((60, 8))) * predicted[:, None]
    factors, common = _predicted(names, added, predicted)
    assert common == pytest.approx(truth @ predicted / predicted.sum(), rel=0.15)
    off = np.abs(factors / truth - 1)
    assert off.max() < 0.3 and off.mean() < 0.07
    assert np.abs(added.mean(axis=1) / predicted / truth - 1).max() > 1
    sure, _ = _predicted(["a", "b"], np.array([[2.0, 2.0], [0.5, 0.5]]), np.ones(2))
    assert sure == pytest.approx([2.0, 0.5])
