"""Damping by the number of tokens: none with many, and less error on tokens not seen with few."""

import numpy as np
import pytest

from onnxq.formats import IntFormat, parse_format
from onnxq.solvers.registry import solvers
from onnxq.solvers.shrinkage import enough_damping
from onnxq.solvers.statistics import Statistics


def inputs(tokens, columns=64, seed=0):
    """Correlated tokens, and the moment they are drawn from."""
    rng = np.random.default_rng(7)
    basis, _ = np.linalg.qr(rng.standard_normal((columns, columns)))
    root = basis * np.sqrt(np.exp(-0.1 * np.arange(columns)))
    x = np.random.default_rng(seed).standard_normal((tokens, columns)) @ root.T
    return x.T @ x / tokens, root @ root.T


def shrunk(hessian, damping):
    part = damping / (1 + damping)
    return (1 - part) * hessian + part * np.trace(hessian) / len(hessian) * np.eye(len(hessian))


@pytest.mark.parametrize("tokens", (16, 48, 200))
def test_shrinking_comes_nearer_to_the_true_moment(tokens):
    before = after = best = 0.0
    for seed in range(20):
        seen, true = inputs(tokens, seed=seed)
        found = enough_damping(Statistics(hessian=seen, weight=tokens), 1e-9)
        before += np.square(seen - true).sum()
        after += np.square(shrunk(seen, found) - true).sum()
        # In closed form, knowing the true one: the best part on the line to the mean.
        mean = np.trace(seen) / len(seen) * np.eye(len(seen))
        part = np.sum((seen - true) * (seen - mean)) / np.square(seen - mean).sum()
        best += np.square((1 - part) * seen + part * mean - true).sum()
    assert best <= after < before
    assert after < 1.15 * best


def test_many_tokens_or_an_unknown_number_ask_for_nothing():
    seen, _ = inputs(20000)
    assert enough_damping(Statistics(hessian=seen, weight=20000), 0.01) == 0.01
    few, _ = inputs(10)
    assert enough_damping(Statistics(hessian=few), 0.01) == 0.01
    assert enough_damping(Statistics(hessian=few, weight=10), 0) == 0
    assert enough_damping(Statistics(hessian=np.eye(4), weight=10), 0.01) == 0.01


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        ("gptq", "int3_channel"),
        ("coordinate_descent", "int3_channel"),
        ("gptq", "trellis2_hyb_l10"),
        ("lnq", "lut3"),
        ("beam_search", "vq_d4n256"),
    ],
)
def test_errors_on_tokens_not_seen_are_smaller(solver, name):
    rng = np.random.default_rng(3)
    fmt = IntFormat(bits=3) if name.startswith("int") else parse_format(name)
    known = blind = 0.0
    for seed in range(3):
        seen, true = inputs(24, seed=seed)
        weight = rng.standard_normal((32, 64)).astype(np.float32)
        for tokens in (24, 1):
            statistics = Statistics(hessian=seen, weight=tokens)
            error = weight - fmt.decode(solvers()[solver].solve(weight, fmt, statistics))
            cost = float(np.einsum("ri,ij,rj->", error, true, error))
            known, blind = known + cost * (tokens == 24), blind + cost * (tokens == 1)
    assert known < 0.97 * blind
