"""From a map of text probability to turned rectangles around lines of text.

The steps of differentiable binarization (Liao et al., AAAI 2020, section 3.4) as PP-OCR runs them:
threshold, dilate by one pixel, group touching pixels, fit the smallest rectangle, keep those whose
mean probability is high enough, and grow them by area · ratio / perimeter, because the network is
trained on shrunken regions. In NumPy only; growing a rectangle needs no polygon clipper.
"""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["BoxFinder", "label_components", "smallest_rectangle"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxFinder:
    """Post-processing of a text detector; the defaults are PP-OCRv4's.

    Attributes:
        threshold: pixels over it are text.
        keep: least mean probability inside a rectangle.
        growth: how far rectangles are grown, in units of area / perimeter.
        smallest_side: shorter rectangles are dropped, in pixels of the map.
    """

    threshold: float = 0.3
    keep: float = 0.5
    growth: float = 1.6
    smallest_side: float = 3.0

    def __call__(self, probability: np.ndarray, height: int, width: int) -> list[np.ndarray]:
        """Find rectangles.

        Args:
            probability: float map [rows, columns].
            height: of the image the map belongs to.
            width: of the image the map belongs to.

        Returns:
            Corners as float64 [4, 2] in (x, y) of the image, from the upper left clockwise; in
            reading order (lines top to bottom, boxes in a line left to right).
        """
        scale = np.array([width / probability.shape[1], height / probability.shape[0]])
        boxes = []
        for points in label_components(_dilate(probability > self.threshold)):
            corners = smallest_rectangle(points)
            if min(_sides(corners)) < self.smallest_side:
                continue
            if _mean_inside(probability, corners) < self.keep:
                continue
            grown = _grow(corners, self.growth)
            if min(_sides(grown)) < self.smallest_side + 2:
                continue
            limit = np.array([width - 1, height - 1])
            boxes.append(_clockwise(np.clip(np.round(grown * scale), 0, limit)))
        return _reading_order(boxes)


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Grow to the right and downwards by one pixel."""
    grown = mask.copy()
    grown[:, 1:] |= mask[:, :-1]
    grown[1:] |= grown[:-1].copy()
    return grown


def label_components(mask: np.ndarray) -> list[np.ndarray]:
    """Group the pixels of a mask that touch, corners included.

    Args:
        mask: bool [rows, columns].

    Returns:
        For each group the ends of its horizontal runs, as (x, y): int64 [points, 2]. They have
        the same convex hull as all its pixels. Groups are ordered by their first pixel.
    """
    rows, starts, stops = _runs(mask)
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    for y in range(1, mask.shape[0]):
        above, above_end = int(first[y - 1]), int(first[y])
        for run in range(int(first[y]), int(first[y + 1])):
            while above < above_end and stops[above] < starts[run]:
                above += 1
            touching = above
            while touching < above_end and starts[touching] <= stops[run]:
                low, high = sorted((root(touching), root(run)))
                parent[high] = low
                touching += 1
    roots = np.array([root(run) for run in range(len(rows))], np.int64)
    groups = []
    for label in np.unique(roots):
        member = roots == label
        left = np.stack([starts[member], rows[member]], axis=1)
        right = np.stack([stops[member] - 1, rows[member]], axis=1)
        groups.append(np.concatenate([left, right]))
    return groups


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column and column after the last of every horizontal run, row by row."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    return rows, starts, stops


def smallest_rectangle(points: np.ndarray) -> np.ndarray:
    """Corners of the rectangle of least area around points, [4, 2] in order around it.

    One side lies on an edge of the convex hull (Freeman and Shapira, 1975), so each is tried.
    """
    hull = _convex_hull(points).astype(np.float64)
    edges = np.roll(hull, -1, axis=0) - hull
    lengths = np.linalg.norm(edges, axis=1)
    along = edges[lengths > 0] / lengths[lengths > 0, None]
    if len(along) == 0:
        along = np.array([[1.0, 0.0]])
    across = along[:, ::-1] * np.array([-1.0, 1.0])
    u, v = hull @ along.T, hull @ across.T
    areas = (u.max(axis=0) - u.min(axis=0)) * (v.max(axis=0) - v.min(axis=0))
    best = int(np.argmin(areas))
    low_u, high_u = u[:, best].min(), u[:, best].max()
    low_v, high_v = v[:, best].min(), v[:, best].max()
    frame = np.array([[low_u, low_v], [high_u, low_v], [high_u, high_v], [low_u, high_v]])
    corners: np.ndarray = frame @ np.stack([along[best], across[best]])
    return corners


def _convex_hull(points: np.ndarray) -> np.ndarray:
    """Andrew's monotone chain; duplicate and collinear points are left out."""
    ordered = [tuple(point) for point in np.unique(points, axis=0)]
    if len(ordered) < 3:
        return np.array(ordered)

    def half(sequence: list[tuple[int, int]]) -> list[tuple[int, int]]:
        chain: list[tuple[int, int]] = []
        for x, y in sequence:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    return np.array(half(ordered) + half(ordered[::-1]))


def _sides(corners: np.ndarray) -> tuple[float, float]:
    return (
        float(np.linalg.norm(corners[1] - corners[0])),
        float(np.linalg.norm(corners[3] - corners[0])),
    )


def _mean_inside(probability: np.ndarray, corners: np.ndarray) -> float:
    """Mean of the map over the pixels of a rectangle, its outline included."""
    limit = np.array(probability.shape[::-1]) - 1
    x0, y0 = np.clip(np.floor(corners.min(axis=0)), 0, limit).astype(int)
    x1, y1 = np.clip(np.ceil(corners.max(axis=0)), 0, limit).astype(int)
    x, y = np.meshgrid(np.arange(x0, x1 + 1), np.arange(y0, y1 + 1))
    inside = np.ones(x.shape, bool)
    for side in (corners[1] - corners[0], corners[3] - corners[0]):
        length = float(np.linalg.norm(side))
        at = ((x - corners[0][0]) * side[0] + (y - corners[0][1]) * side[1]) / length
        inside &= (at >= -0.5) & (at <= length + 0.5)
    return float(probability[y0 : y1 + 1, x0 : x1 + 1][inside].mean())


def _grow(corners: np.ndarray, ratio: float) -> np.ndarray:
    """Move every side outwards by area · ratio / perimeter."""
    width, height = _sides(corners)
    distance = width * height * ratio / (2 * (width + height))
    along, down = (corners[1] - corners[0]) / width, (corners[3] - corners[0]) / height
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    grown: np.ndarray = corners + distance * (signs[:, :1] * along + signs[:, 1:] * down)
    return grown


def _clockwise(corners: np.ndarray) -> np.ndarray:
    """Start at the upper left: the two leftmost corners by height, then the two rightmost."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left = by_x[:2][np.argsort(by_x[:2, 1], kind="stable")]
    right = by_x[2:][np.argsort(by_x[2:, 1], kind="stable")]
    return np.stack([left[0], right[0], right[1], left[1]])


def _reading_order(boxes: list[np.ndarray]) -> list[np.ndarray]:
    """Group boxes whose tops are under half a height apart into lines, then go left to right."""
    lines: list[list[np.ndarray]] = []
    for box in sorted(boxes, key=lambda corners: (corners[0, 1], corners[0, 0])):
        height = _sides(box)[1]
        if lines and abs(box[0, 1] - lines[-1][0][0, 1]) < height / 2:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda corners: corners[0, 0])]
