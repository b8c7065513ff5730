import math

import numpy as np
import pytest

from onnxq.errors import ExportError
from onnxq.export.check import (
    check_decoder,
    judge,
    relative_error,
    rounding_bound,
    rounding_bound_of_module,
)


def test_relative_error_is_the_largest_difference_over_the_largest_value():
    assert relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(np.full(2, 0.5), np.zeros(2)) == 0.5
    assert relative_error(np.zeros((0, 4)), np.zeros((0, 4))) == 0.0


@pytest.mark.parametrize(
    ("actual", "expected"),
    [([math.nan], [1.0]), ([math.inf], [1.0]), ([1.0], [math.nan]), ([1.0, 1.0], [1.0])],
)
def test_what_is_not_comparable_is_infinitely_wrong(actual, expected):
    assert relative_error(np.array(actual), np.array(expected)) == math.inf


def test_masked_infinities_agree_with_themselves():
    masked = np.array([-np.inf, 2.0])
    assert relative_error(masked, masked.copy()) == 0.0
    assert relative_error(np.array([-np.inf, 1.0]), masked) == 0.5


@pytest.mark.parametrize("depth", [1, 4, 16])
@pytest.mark.parametrize("width", [64, 512])
def test_bound_holds_for_another_order_of_summation_and_not_for_a_lost_bit(width, depth):
    """The honest baseline: the same float32 network with its sums taken in another order."""
    generator = np.random.default_rng(width + depth)
    weights = [
        generator.standard_normal((width, width), dtype=np.float32) / np.float32(width**0.5)
        for _ in range(depth)
    ]
    order = generator.permutation(width)
    forward = permuted = generator.standard_normal((8, width), dtype=np.float32)
    for weight in weights:
        forward = np.tanh(forward @ weight)
        permuted = np.tanh((permuted[:, order, None] * weight[order]).sum(1, dtype=np.float32))
    bound = rounding_bound([width] * depth)
    assert relative_error(permuted, forward) <= bound
    assert relative_error(np.tanh(forward * np.float32(1.001)), np.tanh(forward)) > bound


def agree(ours, theirs, exact, bound=1e-6):
    def constant(values):
        return lambda: {"y": np.array(values)}

    return judge(
        {"y": np.array(ours)}, constant(theirs), constant(exact), bound=bound, source="the source"
    )


def test_judge_accepts_what_is_within_the_bound():
    verdict = agree([1.0000001], [1.0], [5.0])
    assert verdict.largest == pytest.approx(1e-7, rel=1e-6)
    assert verdict.notes == ()


def test_judge_asks_float64_when_a_network_amplifies_rounding():
    verdict = agree([1.0001], [1.0003], [1.0])
    assert "amplifies float32 rounding" in verdict.notes[0]


@pytest.mark.parametrize("ours", [1.01, math.nan, -1.0])
def test_judge_refuses_what_is_farther_from_float64_than_the_source(ours):
    with pytest.raises(ExportError, match=r"does not compute what the source computes. y: rel"):
        agree([ours], [1.0001], [1.0])


def test_a_decoder_with_one_changed_weight_is_caught(llama_folder, llama_export, tmp_path):
    """One row of one weight, by a thousandth of its size."""
    from onnxq.export.hf_folder import load_module
    from onnxq.graph import load, read_weight, replace_weight, save, walk_weights
    from onnxq.runtime import open_session

    module = load_module("AutoModelForCausalLM", llama_folder)
    model = load(llama_export.models["model"])
    value = next(v for _, v in walk_weights(model) if "down_proj" in v.name)
    changed = read_weight(value)
    changed[0] *= 1.001
    replace_weight(value, shape=changed.shape, dtype=value.dtype, compute=lambda: changed)
    with (
        open_session(save(model, tmp_path / "model.onnx")) as session,
        pytest.raises(ExportError, match="does not compute what the checkpoint computes"),
    ):
        check_decoder(session, module, source="the checkpoint")


def test_bound_of_a_module_counts_the_inputs_of_each_sum():
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5), torch.nn.Linear(100, 7))
    assert rounding_bound_of_module(module) == rounding_bound([3 * 25, 100])
