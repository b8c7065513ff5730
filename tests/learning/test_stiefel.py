"""Descent on the Stiefel manifold stays on it and goes down."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxq.learning.rotation import Scale, Turn, Unknowns, edited, returned
from onnxq.learning.stiefel import CayleySgd, StiefelAdam


@pytest.mark.parametrize("kind", [StiefelAdam, CayleySgd])
@pytest.mark.parametrize("size", [1, 2, 7, 24])
def test_steps_stay_orthogonal_and_find_a_rotation(kind: type, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    target = torch.linalg.matrix_exp(0.5 * (noise - noise.T) / size**0.5)
    matrix, descent = torch.eye(size, dtype=torch.float64), kind()
    losses = []
    for step in range(200):
        x = matrix.clone().requires_grad_()
        loss = ((x - target) ** 2).sum()
        loss.backward()
        losses.append(float(loss.detach()))
        matrix = descent.step(matrix, x.grad, 0.05 * (1 - step / 200))
    off = matrix @ matrix.T - torch.eye(size, dtype=torch.float64)
    assert float(off.abs().max()) < 1e-12
    assert losses[-1] <= 0.05 * losses[0] + 1e-12


def test_no_gradient_is_no_step() -> None:
    one = torch.eye(5, dtype=torch.float64)
    for descent in (StiefelAdam(), CayleySgd()):
        torch.testing.assert_close(
            descent.step(one, torch.zeros_like(one), 0.1), one, rtol=0, atol=0
        )
        symmetric = torch.ones(5, 5, dtype=torch.float64)  # no part along the manifold
        torch.testing.assert_close(descent.step(one, symmetric, 0.1), one, rtol=0, atol=0)


def test_edits_are_undone() -> None:
    generator = torch.Generator().manual_seed(0)
    unknowns = Unknowns.neutral({"q": (2, 3)}, {"s": 4})
    for index in range(2):
        noise = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        unknowns.matrices["q"][index] = torch.linalg.matrix_exp(noise - noise.T)
    unknowns.log_factors["s"] = torch.randn(4, generator=generator, dtype=torch.float64)
    ids = np.array([[0, 1, -1, 2, 3, 0, 0, -1]])
    edits = [Turn("q", (-1,), ((1, 1), (5, 0)), 3), Scale("s", (0, 2), ids, -1)]
    x = torch.randn(1, 4, 8, generator=generator, dtype=torch.float64)
    moved = edited(x, edits, unknowns)
    torch.testing.assert_close(returned(moved, edits, unknowns), x)
    want = x.clone()
    want[..., 1:4] = x[..., 1:4] @ unknowns.matrices["q"][1]
    want[..., 5:8] = x[..., 5:8] @ unknowns.matrices["q"][0]
    factors = torch.exp(-torch.cat([unknowns.log_factors["s"], torch.zeros(1).double()]))
    torch.testing.assert_close(moved, want * factors[torch.from_numpy(ids[0])])
    neutral = Unknowns.neutral({"q": (2, 3)}, {"s": 4})
    torch.testing.assert_close(edited(x, edits, neutral), x, rtol=0, atol=0)


def test_two_axes_are_one_row_of_channels() -> None:
    unknowns = Unknowns.neutral({"q": (1, 6)}, {})
    noise = torch.randn(6, 6, dtype=torch.float64)
    unknowns.matrices["q"][0] = torch.linalg.matrix_exp(noise - noise.T)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    moved = edited(x, [Turn("q", (0, 2), ((0, 0),), 6)], unknowns)
    rows = x.permute(1, 0, 2).reshape(5, 6) @ unknowns.matrices["q"][0]
    torch.testing.assert_close(moved, rows.reshape(5, 2, 3).permute(1, 0, 2))
