"""Shares of equal decisions, and the refusal to compare what does not match."""

import numpy as np
import pytest

from onnxq.errors import CalibrationError
from onnxq.evaluate.classification import decision_agreement, top1_accuracy, top1_agreement


def test_shares():
    scores = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]])
    assert top1_accuracy(scores, np.array([1, 0, 0, 0])) == 0.75
    assert top1_agreement(scores, scores * 10) == 1.0
    assert top1_agreement(scores, -scores) == 0.0
    assert decision_agreement(np.array([0.5, 0.4, 0.9]), np.array([0.49, 0.1, 0.6])) == 2 / 3


@pytest.mark.parametrize(("first", "second"), [((2, 3), (3, 3)), ((0, 3), (0, 3))])
def test_what_cannot_be_compared_is_refused(first, second):
    with pytest.raises(CalibrationError, match="run both models on the same inputs"):
        top1_agreement(np.zeros(first), np.zeros(second))
