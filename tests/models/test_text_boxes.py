"""Text boxes: components against SciPy's, rectangles and growth against geometry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxq.models.text_boxes import BoxFinder, label_components, smallest_rectangle


@settings(max_examples=200, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_components_are_those_of_scipy(mask):
    ndimage = pytest.importorskip("scipy.ndimage")
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    groups = label_components(mask)
    assert len(groups) == count
    found = {frozenset(map(tuple, group)) for group in groups}
    for number in range(1, count + 1):
        y, x = np.nonzero(labels == number)
        pixels = {(px, py) for px, py in zip(x, y, strict=True)}
        (ends,) = [group for group in found if group <= pixels]
        for row in set(y):
            assert (x[y == row].min(), row) in ends
            assert (x[y == row].max(), row) in ends


@pytest.mark.parametrize("degrees", [0, 10, 37, 90, 135])
def test_smallest_rectangle_of_a_turned_rectangle(degrees):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = np.array([[-300, -50], [300, -50], [300, 50], [-300, 50]]) @ turn
    inner = np.random.default_rng(0).uniform(-1, 1, (200, 2)) * [300, 50] @ turn
    points = np.round(np.concatenate([inner, corners])).astype(np.int64)
    sides = np.linalg.norm(np.diff(smallest_rectangle(points), axis=0), axis=1)
    # Corners are rounded to whole pixels: each side moves by at most one diagonal of a pixel.
    assert sorted(sides)[0] == pytest.approx(100, abs=np.sqrt(2))
    assert sorted(sides)[-1] == pytest.approx(600, abs=np.sqrt(2))


@pytest.mark.parametrize("points", [[[3, 4]], [[3, 4], [9, 4]]])
def test_degenerate_groups_have_a_rectangle(points):
    corners = smallest_rectangle(np.array(points))
    assert corners.shape == (4, 2)
    assert corners.min(axis=0).tolist() == [3, 4]


def test_boxes_are_grown_scaled_and_in_reading_order():
    probability = np.zeros((100, 200), np.float32)
    probability[40:50, 120:180] = 0.9
    probability[41:51, 20:80] = 0.9
    probability[10:20, 20:180] = 0.9
    probability[70:80, 20:60] = 0.4  # over the threshold, and not sure enough to keep
    probability[90:92, 20:22] = 0.9  # too small
    boxes = BoxFinder()(probability, height=200, width=400)
    starts = [box[0].tolist() for box in boxes]
    assert len(boxes) == 3
    assert starts[0][1] < starts[1][1]
    assert starts[1][0] < starts[2][0]
    # Pixels 20..180 by 10..20 after dilation; growth = area * 1.6 / perimeter; scale 2.
    width, height = 160.0, 10.0
    grown = width * height * 1.6 / (2 * (width + height))
    expected = np.array([[20 - grown, 10 - grown], [180 + grown, 20 + grown]]) * 2
    assert boxes[0][[0, 2]] == pytest.approx(np.round(expected), abs=1)


def test_an_empty_map_has_no_boxes():
    assert BoxFinder()(np.zeros((32, 32), np.float32), 64, 64) == []
