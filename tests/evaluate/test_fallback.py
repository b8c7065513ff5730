"""Searches over sets, against every subset of a few places."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.evaluate.fallback import parting_place, single_effects, smallest_restored

PLACES = ["a", "b", "c", "d", "e"]


def additive(costs, pairs=None):
    """A loss that adds up over what is still quantized, with a term for each pair of them."""

    def loss(restored):
        left = [name for name in PLACES if name not in restored]
        extra = sum((pairs or {}).get(pair, 0.0) for pair in itertools.combinations(left, 2))
        return sum(costs[name] for name in left) + extra

    return loss


def fewest(loss, bound):
    """The size of the smallest set that is enough, by trying all."""
    for size in range(len(PLACES) + 1):
        for tried in itertools.combinations(PLACES, size):
            if loss(frozenset(tried)) <= bound:
                return size
    return None


numbers = st.floats(0, 10, allow_nan=False)
pairs = st.dictionaries(
    st.sampled_from(list(itertools.combinations(PLACES, 2))), st.floats(-3, 3), max_size=6
)


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[numbers] * 5), pairs, st.floats(0, 1))
def test_the_set_is_as_small_as_brute_force_over_all_subsets(costs, pairs, share):
    """With places that help or hurt one another too: five places are few enough to try them all."""
    loss = additive(dict(zip(PLACES, costs, strict=True)), pairs)
    bound = share * loss(frozenset())
    effects = single_effects(PLACES, loss)
    found = smallest_restored(effects, loss, bound)
    if loss(frozenset(PLACES)) > bound:
        assert found is None
        return
    assert found.is_smallest and len(found.places) == fewest(loss, bound)
    assert found.loss == loss(frozenset(found.places)) <= bound


def test_without_trials_no_member_can_be_left_out_but_a_smaller_set_may_exist():
    """Greedy takes the two that help most alone; b alone would do, but only without a and c."""
    costs = {"a": 3.0, "b": 2.0, "c": 3.0, "d": 0.0, "e": 0.0}
    hidden = additive(costs)

    def loss(restored):
        return 0.0 if restored == {"b"} else hidden(restored)

    effects = {"a": 3.0, "c": 3.0, "b": 2.0, "d": 0.0, "e": 0.0}
    greedy = smallest_restored(effects, loss, 2.0, trials=0)
    assert greedy.places == ("a", "c") and greedy.is_minimal and not greedy.is_smallest
    for name in greedy.places:
        assert loss(frozenset(greedy.places) - {name}) > 2.0
    assert smallest_restored(effects, loss, 2.0).places == ("b",)


def test_a_loss_that_is_infinite_goes_with_the_place_that_breaks():
    def loss(restored):
        return 0.1 if "d" in restored else math.inf

    effects = single_effects(PLACES, loss)
    assert next(iter(effects)) == "d"
    assert smallest_restored(effects, loss, 0.2).places == ("d",)


@given(st.integers(0, 40), st.integers(1, 41))
def test_the_search_finds_the_one_jump_in_few_runs(bad, count):
    order = [f"p{number}" for number in range(count)]
    runs = []

    def loss(restored):
        runs.append(restored)
        return 0.5 + (bad < count and order[bad] not in restored)

    found = parting_place(order, loss, 1.0)
    if bad >= count:
        assert found is None
        return
    assert (found.place, found.number) == (order[bad], bad)
    assert found.before <= 1.0 < found.after
    assert len(runs) <= 2 + math.ceil(math.log2(count + 1))


def test_effects_are_sorted_and_are_what_restoring_one_saves():
    loss = additive(dict(zip(PLACES, (1.0, 5.0, 0.0, 2.0, 0.5), strict=True)))
    effects = single_effects(PLACES, loss)
    assert list(effects)[:2] == ["b", "d"]
    assert effects["b"] == pytest.approx(5.0)
