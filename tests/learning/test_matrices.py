"""Matrices stay invertible whatever is learned, and weights take their inverse."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxq.learning.matrices import (  # noqa: E402
    DominantBlocks,
    KroneckerMatrix,
    factor_pair,
    mixing_matrix,
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 24, 36, 64, 96])
def test_mixing_matrices_are_orthogonal_and_repeat(size):
    matrix = mixing_matrix(size, seed=3)
    assert np.allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    assert matrix.tobytes() == mixing_matrix(size, seed=3).tobytes()


@pytest.mark.parametrize(("size", "pair"), [(576, (24, 24)), (1536, (32, 48)), (7, (1, 7))])
def test_factors_are_the_nearest(size, pair):
    assert factor_pair(size) == pair


@pytest.mark.parametrize(("a", "b"), [(1, 5), (3, 4), (6, 6), (2, 9)])
def test_kronecker_is_the_kronecker_product_and_weights_take_its_inverse(a, b):
    rng = np.random.default_rng(a * b)
    left = rng.standard_normal((a, a)) + 2 * np.eye(a)
    right = rng.standard_normal((b, b)) + 2 * np.eye(b)
    matrix = KroneckerMatrix(left, right)
    x = rng.standard_normal((2, 3, a * b)).astype(np.float32)
    rows = rng.standard_normal((5, a * b)).astype(np.float32)
    dense = np.kron(*matrix.factors())
    moved = matrix.apply(torch.from_numpy(x)).detach().numpy()
    folded = matrix.unapply_weight(torch.from_numpy(rows)).detach().numpy()
    assert np.allclose(moved, x @ dense, atol=1e-4 * np.abs(x @ dense).max())
    wanted = x.astype(np.float64) @ rows.T
    condition = matrix.condition()
    assert condition == pytest.approx(np.linalg.cond(dense), rel=1e-6)
    bound = 8 * condition * a * b * np.finfo(np.float32).eps * np.abs(wanted).max()
    assert np.abs(moved @ folded.T - wanted).max() <= bound


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 100.0])
def test_dominant_whatever_was_learned(seed, progress, spread):
    rng = np.random.default_rng(seed)
    blocks = DominantBlocks(3, 11, stability=0.3)
    with torch.no_grad():
        blocks.log_diagonal.copy_(torch.from_numpy(rng.standard_normal((3, 11))))
        blocks.beside.copy_(torch.from_numpy(rng.standard_normal((3, 11, 11)) * spread))
    found = blocks.matrices(progress).detach().numpy().astype(np.float64)
    diagonal = np.abs(np.diagonal(found, axis1=1, axis2=2))
    beside = np.abs(found).sum(-1) - diagonal
    assert (beside < diagonal).all()
    assert np.isfinite(np.linalg.inv(found)).all()


def test_the_mask_widens_from_the_diagonal():
    blocks = DominantBlocks(1, 5, stability=0.01)
    with torch.no_grad():
        blocks.beside.fill_(1.0)
    widths = []
    for progress in (0.0, 0.3, 0.6, 1.0):
        matrix = blocks.matrices(progress)[0].detach().numpy()
        rows, columns = np.nonzero(matrix)
        widths.append(int(np.abs(rows - columns).max()))
    assert widths == [0, 1, 2, 4]


def test_nothing_learned_is_the_identity():
    assert np.array_equal(
        DominantBlocks(2, 4, 0.1).matrices(1.0).detach().numpy(), np.tile(np.eye(4), (2, 1, 1))
    )
