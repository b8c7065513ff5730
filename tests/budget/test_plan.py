"""Uniform mixes beside a mix of formats."""

import pytest

from onnxq.budget.account import uniform_mixes
from onnxq.budget.menu import Option, SiteMenu
from onnxq.budget.plan import Problem, fastest_mix, retimed, solution_of


def menu(site, weights, **nbytes):
    options = tuple(
        Option(format=name, nbytes=size, loss=1 / size) for name, size in nbytes.items()
    )
    return SiteMenu(site=site, weights=weights, options=options)


def test_a_site_that_cannot_take_the_format_takes_what_is_nearest_in_bits():
    linear = menu("linear", 800, int3=300, int4=400, int8=800)
    convolution = menu("convolution", 80, int4_channel=42, int8_channel=82)
    mixes = uniform_mixes(Problem(menus=(linear, convolution)))
    assert list(mixes) == ["int3", "int4", "int8"]
    assert {name: mix.formats["convolution"] for name, mix in mixes.items()} == {
        "int3": "int4_channel",
        "int4": "int4_channel",
        "int8": "int8_channel",
    }
    assert mixes["int8"].nbytes == 882
    assert mixes["int8"].loss == pytest.approx(1 / 800 + 1 / 82)


def test_what_does_not_count_stays_at_its_least():
    head = menu("head", 100, int8=100)
    mixes = uniform_mixes(Problem(menus=(menu("linear", 800, int4=400, int8=800), head)))
    assert mixes["int4"].formats == {"linear": "int4", "head": "int8"}


def test_two_runs_tell_the_rest_and_how_fast_operators_are():
    def timed(site):
        options = tuple(
            Option(format=name, nbytes=8, latency_us=us)
            for name, us in {"int8": 400.0, "float": 1000.0}.items()
        )
        return SiteMenu(site=site, weights=8, options=options)

    # Alone an operator took two thirds of what it takes in a run, so the rest was overestimated.
    problem = Problem(menus=(timed("a"), timed("b")), fixed_ms=6.0, float_ms=8.0)
    mix = solution_of(problem, {"a": "int8", "b": "float"}, 0.0)
    assert mix.latency_ms == pytest.approx(7.4)
    assert fastest_mix(problem) == pytest.approx(6.8, abs=1e-5)
    found = retimed(problem, mix, mix_ms=5.0 + 1.5 * 1.4, float_ms=5.0 + 1.5 * 2.0)
    assert found.fixed_ms == pytest.approx(5.0)
    assert found.float_ms == pytest.approx(8.0)
    assert fastest_mix(found) == pytest.approx(5.0 + 1.5 * 0.8, abs=1e-5)
