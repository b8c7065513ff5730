"""Two runtimes agree to 20 dB, or are as far from the truth as each other."""

import numpy as np
import pytest

from onnxq.errors import ArtifactError
from onnxq.export.same_outputs import compare_runtimes

TRUTH = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)


def noisy(level, seed):
    noise = np.random.default_rng(seed).standard_normal(TRUTH.size).astype(np.float32)
    return TRUTH + np.float32(level) * noise


def test_equal_and_close_outputs_agree():
    assert compare_runtimes("other", {"y": (TRUTH, TRUTH)})["sqnr_db"] is None
    found = compare_runtimes("other", {"x": (TRUTH, TRUTH), "y": (TRUTH, noisy(0.01, 1))})
    assert found["sqnr_db"] == pytest.approx(40, abs=0.2)
    assert (found["compared"], found["least"]) == (2, "y")


@pytest.mark.parametrize(("own", "other", "agree"), [(0.2, 0.2, True), (0.2, 0.8, False),
                                                     (0.01, 0.2, False)])  # fmt: skip
def test_far_outputs_agree_when_they_are_equally_far_from_the_truth(own, other, agree):
    outputs = {"y": (noisy(own, 1), noisy(other, 2))}
    with pytest.raises(ArtifactError, match="other computes another output 'y' than ONNX Runtime"):
        compare_runtimes("other", outputs)
    if agree:
        compare_runtimes("other", outputs, lambda: {"y": TRUTH})
        return
    with pytest.raises(ArtifactError, match="signal to noise"):
        compare_runtimes("other", outputs, lambda: {"y": TRUTH})
