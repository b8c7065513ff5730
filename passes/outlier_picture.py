"""What a site reads, or its weight, by channel: panels for a picture before and after a pass."""

from __future__ import annotations

from collections.abc import Sequence

from onnxq.evaluate.channel_picture import Panel
from onnxq.evaluate.outliers import OutlierMeter
from onnxq.graph import read_weight
from onnxq.graph.orientation import to_rows
from onnxq.graph.sites import Site
from onnxq.passes.site_outliers import SiteOutliers

__all__ = ["activation_panels", "weight_panel"]


def activation_panels(sides: Sequence[SiteOutliers], labels: Sequence[str]) -> list[Panel] | None:
    """A panel for each side: the activation by channel; None when one was not measured.

    Args:
        sides: one site, as measured on one or several models.
        labels: what stands above each, in front of its max-to-RMS.
    """
    panels = []
    for side, label in zip(sides, labels, strict=True):
        if side.activation is None or side.peaks is None or side.roots is None:
            return None
        ratio = f"max/rms of a token {side.activation.row_max_to_rms:.3g}"
        panels.append(Panel(label=f"{label} {ratio}".strip(), peaks=side.peaks, roots=side.roots))
    return panels


def weight_panel(site: Site, label: str) -> Panel:
    """The weight of a site by output channel.

    Args:
        site: with a float weight.
        label: what stands above it, in front of its max-to-RMS.
    """
    if site.weight is None:
        raise ValueError(f"site {site.name!r} has no weight to draw")
    channels = to_rows(site, read_weight(site.weight)).T
    meter = OutlierMeter(channels.shape[1], wants_qsur=False)
    meter.add(channels)
    found = meter.result()
    ratio = "" if isinstance(found, str) else f"max/rms {found.max_to_rms:.3g}"
    return Panel(label=f"{label} {ratio}".strip(), peaks=meter.peaks, roots=meter.roots)
