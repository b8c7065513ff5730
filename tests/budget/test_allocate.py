"""The allocator is exact: brute force over all choices agrees with it for every budget."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.budget.allocate import allocate, front, joined
from onnxq.errors import BudgetError


def every_choice(losses, uses):
    """Loss and uses of all choices, as arrays."""
    choices = list(itertools.product(*(range(len(options)) for options in losses)))
    total = sum(np.array(losses[s])[[c[s] for c in choices]] for s in range(len(losses)))
    used = sum(np.array(uses[s])[[c[s] for c in choices]] for s in range(len(losses)))
    return total, used


def least(total, used, budgets):
    """The least loss within all budgets; None when there is none."""
    fits = (used <= np.array(budgets)).all(axis=1)
    return total[fits].min() if fits.any() else None


def problem(rng, sites, options, resources=1):
    losses, uses = [], []
    for _ in range(sites):
        use = rng.integers(1, 40, (options, resources))
        loss = rng.uniform(0.5, 2) * 2.0 ** (-use[:, 0] / 10) * rng.uniform(0.8, 1.2, options)
        losses.append(loss.tolist())
        uses.append(use.tolist())
    return losses, uses


def test_six_sites_agree_with_brute_force_for_every_budget():
    losses, uses = problem(np.random.default_rng(0), sites=6, options=4)
    total, used = every_choice(losses, uses)
    smallest = int(used.min())
    for budget in range(smallest, int(used.max()) + 2):
        found = allocate(losses, uses, [budget])
        assert found.loss == pytest.approx(least(total, used, [budget]), rel=1e-12)
        assert found.uses[0] <= budget
        assert found.bound <= found.loss
        assert found.uses[0] == sum(uses[s][o][0] for s, o in enumerate(found.choice))
    with pytest.raises(
        BudgetError, match=rf"use {smallest} together, and its budget is {smallest - 1}"
    ):
        allocate(losses, uses, [smallest - 1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 2), st.data())
def test_any_problem_agrees_with_brute_force(seed, sites, options, resources, data):
    losses, uses = problem(np.random.default_rng(seed), sites, options, resources)
    budgets = [data.draw(st.integers(1, 40 * sites)) for _ in range(resources)]
    wanted = least(*every_choice(losses, uses), budgets)
    if wanted is None:
        with pytest.raises(BudgetError):
            allocate(losses, uses, budgets)
        return
    found = allocate(losses, uses, budgets)
    assert found.loss == pytest.approx(wanted, rel=1e-12)
    assert all(use <= budget for use, budget in zip(found.uses, budgets, strict=True))
    assert found.bound <= found.loss


def test_ties_zeros_and_useless_options_do_no_harm():
    found = allocate([[1.0, 1.0, 0.0, 0.0]], [[[5], [4], [9], [7]]], [8])
    assert (found.choice, found.loss, found.uses) == ((3,), 0.0, (7,))


def test_a_large_problem_is_solved_exactly_enough_to_touch_its_bound():
    rng = np.random.default_rng(1)
    losses, uses = [], []
    for _ in range(200):
        weights = int(rng.integers(1, 20)) * 36864
        scale = weights * np.exp(rng.normal(0, 0.7))
        bits = [1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0]
        uses.append([[int(weights * b / 8) + 2 * int(rng.integers(500, 2000))] for b in bits])
        losses.append([float(scale * 4.0**-b) for b in bits])
    budget = sum(options[3][0] for options in uses)
    found = allocate(losses, uses, [budget])
    assert found.uses[0] <= budget
    assert found.loss - found.bound < 1e-4 * found.loss


def test_the_front_is_convex_and_its_corners_are_optimal():
    losses, uses = problem(np.random.default_rng(3), sites=5, options=4)
    points = front(losses, [[use[0] for use in options] for options in uses])
    slopes = [(b - a) / (v - u) for (u, a), (v, b) in itertools.pairwise(points)]
    assert slopes == sorted(slopes)
    for use, loss in points:
        assert allocate(losses, uses, [use]).loss == pytest.approx(loss, rel=1e-9, abs=1e-12)


def test_sites_that_share_a_format_are_one_choice():
    names = [["a", "b"], ["b", "c"], ["b", "a"]]
    assert joined(names, [[0, 2]]) == [[{0: 0, 2: 1}, {0: 1, 2: 0}], [{1: 0}, {1: 1}]]
    assert joined([["a"], ["c"]], [[0, 1]]) == [[]]
