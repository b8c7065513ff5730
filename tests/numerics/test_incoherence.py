"""Two-sided rotations keep what a weight computes and what its rounding costs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.numerics.incoherence import incoherence, two_sided

RNG = np.random.default_rng(3)


def _weight() -> np.ndarray:
    """With an outlier channel at each side and one outlier entry."""
    weight: np.ndarray = RNG.standard_normal((96, 72))
    weight[5] *= 20
    weight[:, 7] *= 20
    weight[1, 1] = 400
    return weight


@pytest.mark.parametrize("kind", ["hadamard", "randomized_hadamard", "orthogonal"])
def test_the_product_stays(kind: str) -> None:
    weight, x = _weight(), RNG.standard_normal(72)
    both = two_sided(96, 72, kind=kind, seed=4)
    turned = both.rotate(weight)
    found = both.rows.undo(turned @ both.columns.apply(x))
    scale = np.abs(weight).max() * np.abs(x).max() * 72
    assert np.abs(found - weight @ x).max() < 1e-13 * scale
    assert np.abs(both.restore(turned) - weight).max() < 1e-13 * scale
    assert np.isclose(np.linalg.norm(turned), np.linalg.norm(weight), rtol=1e-13)


def test_the_cost_of_an_error_stays() -> None:
    weight, error = _weight(), RNG.standard_normal((96, 72))
    x = RNG.standard_normal((200, 72))
    hessian = x.T @ x
    both = two_sided(96, 72)
    turned, hat = both.rotate(weight), both.rotate(weight + error)
    before = np.trace(error @ hessian @ error.T)
    after = np.trace((turned - hat) @ both.rotate_hessian(hessian) @ (turned - hat).T)
    assert np.isclose(before, after, rtol=1e-10)


def test_random_rotations_make_a_weight_incoherent() -> None:
    weight = _weight()
    assert incoherence(weight) > 15
    for seed in range(10):
        turned = two_sided(96, 72, seed=seed).rotate(weight)
        # QuIP, lemma 5, with δ = 0.01; Gaussian entries have about 4.3.
        assert incoherence(turned) < 2 * np.log(4 * 96 * 72 / 0.01)
        assert incoherence(turned) < 8
    assert incoherence(np.zeros((2, 2))) == 0
    assert incoherence(np.ones((3, 5))) == pytest.approx(1)


def test_shapes_are_checked() -> None:
    with pytest.raises(FormatError, match=r"\[72, 96\] does not fit rotations of \[96, 72\]"):
        two_sided(96, 72).rotate(np.ones((72, 96)))
    with pytest.raises(FormatError, match="does not fit 72 inputs"):
        two_sided(96, 72).rotate_hessian(np.ones((96, 96)))
