"""A budget of latency on a real model; and its table."""

import pytest

from onnxq.models.budget_latency import LatencyBudgets, latency_table

CELL = {
    "asked_ms": 10.0,
    "reached_ms": 9.5,
    "reached_float_ms": 21.0,
    "ms": {"float": 20.0, "int8": 9.0, "mix": 10.5},
    "loss": {"float": 0.0, "int8": 2e-3, "mix": 1e-3},
    "metric": {"float": 0.656, "int8": 0.65, "mix": 0.654},
    "formats": {"int8": 30, "float": 6},
    "machine": "a machine",
}


def test_the_table_says_what_was_asked_and_what_it_takes():
    lines = latency_table([CELL])
    assert lines[-1].startswith(
        "| 10.00 ms | 9.50 ms (-5%; 21.0 ms) | 30 × int8, 6 × float | 1.00e-03 (0."
    )
    assert latency_table([]) == []


@pytest.mark.slow
def test_a_budget_between_int8_and_float_is_met_and_loses_less_than_int8(tmp_path):
    budgets = LatencyBudgets(tmp_path)
    budgets.measure([0.5])
    (cell,) = budgets.finished()
    # As the budget measured it, beside the float model; later a busy machine may be slower.
    assert 0.9 * cell["asked_ms"] <= cell["reached_ms"] <= cell["asked_ms"]
    assert cell["loss"]["mix"] < cell["loss"]["int8"]
    assert cell["metric"]["mix"] > cell["metric"]["float"] - 0.01
