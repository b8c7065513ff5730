"""What sites add to a loss: the whole of it where the model is linear, else its derivative."""

import pytest

from onnxq.evaluate.losses import LossMeter
from onnxq.evaluate.output_loss import OutputLoss, find_output_loss
from onnxq.graph import read_weight
from onnxq.graph.sites import find_sites
from onnxq.learning.site_marginals import site_marginals
from tests.five_layers import SITES, five_layers, five_samples, with_noise

SAMPLES = five_samples(3)
NOISE = dict(zip(SITES, (0.02, 0.05, 0.03, 0.08, 0.04), strict=True))


def _rounded(model, noise):
    changed = with_noise(model, noise)
    return {site.name: read_weight(site.weight).T for site in find_sites(changed)}


def test_the_last_site_alone_has_the_whole_loss():
    model = five_layers()
    rounded = _rounded(model, {"layer_4": 0.3})
    sites = [site for site in find_sites(model) if site.name == "layer_4"]
    found = site_marginals(model, SAMPLES, sites, rounded, find_output_loss(model))
    assert found.halves["layer_4"] == pytest.approx(found.losses, rel=1e-5)
    measured = LossMeter(model, SAMPLES, find_output_loss(model))
    changed = with_noise(model, {"layer_4": 0.3})
    assert found.losses.mean() == pytest.approx(measured.excess(changed), rel=1e-5)


def test_they_are_derivatives_by_the_size_of_each_error():
    model, loss = five_layers(), find_output_loss(five_layers())
    meter = LossMeter(model, SAMPLES, loss)
    found = site_marginals(model, SAMPLES, find_sites(model), _rounded(model, NOISE), loss)
    assert found.losses.mean() == pytest.approx(meter.excess(with_noise(model, NOISE)), rel=1e-4)
    for name in SITES:
        up, down = (
            meter.excess(with_noise(model, {**NOISE, name: NOISE[name] * (1 + step)}))
            for step in (0.05, -0.05)
        )
        assert found.halves[name].mean() == pytest.approx((up - down) / 0.2, rel=0.02)
    together = sum(found.halves[name].mean() for name in SITES)
    assert together == pytest.approx(found.losses.mean(), rel=0.05)


def test_what_is_not_rounded_or_not_reached_is_left_out():
    model = five_layers()
    rounded = _rounded(model, NOISE)
    del rounded["layer_2"]
    loss = OutputLoss(outputs=("h1",), kind="vectors")
    found = site_marginals(model, SAMPLES, find_sites(model), rounded, loss)
    assert set(found.halves) == {"layer_0", "layer_1"}
