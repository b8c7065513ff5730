"""Pictures of magnitudes by channel: the heights are the numbers, the file is small."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from onnxq.errors import MissingDependency
from onnxq.evaluate import channel_picture
from onnxq.evaluate.channel_picture import Panel, channel_svg, write_picture

rng = np.random.default_rng(0)


def panel(channels, tall=None, label="before"):
    peaks = np.abs(rng.standard_normal(channels)) + 1
    if tall is not None:
        peaks[tall] = 80.0
    return Panel(label=label, peaks=peaks, roots=peaks / 3)


def heights(svg):
    """Of each area: how far its steps reach above the axis, left to right."""
    found = []
    for path in re.findall(r'd="M\d+ (\d+)((?:[vh]-?\d+)+)V\d+z"', svg):
        level, steps = 0, []
        for kind, amount in re.findall(r"([vh])(-?\d+)", path[1]):
            level -= int(amount) if kind == "v" else 0
            if kind == "h":
                steps.append(level)
        found.append(np.array(steps))
    return found


@pytest.mark.parametrize("channels", [3, 64, 576, 9000])
def test_the_tall_channel_stands_out_and_all_panels_have_one_scale(channels):
    svg = channel_svg("title", [panel(channels, tall=1), panel(channels, label="after")])
    ElementTree.fromstring(svg)
    before, _, after, _ = heights(svg)
    full = channel_picture._BOTTOM - channel_picture._TOP
    assert before.max() == full
    assert np.argmax(before) == (1 if channels < 600 else 0)
    assert after.max() < full / 12
    assert len(svg.encode()) < 60_000


def test_heights_are_those_of_the_channels():
    one = Panel(label="", peaks=np.array([1.0, 4.0, 2.0]), roots=np.array([1.0, 2.0, 1.0]))
    full = channel_picture._BOTTOM - channel_picture._TOP
    peaks, roots = heights(channel_svg("", [one]))
    np.testing.assert_allclose(peaks, full * np.array([0.25, 1, 0.5]), atol=1)
    np.testing.assert_allclose(roots, full * np.array([0.25, 0.5, 0.25]), atol=1)


def test_names_are_escaped_and_zeros_are_drawn():
    nothing = Panel(label="a < b & c", peaks=np.zeros(4), roots=np.zeros(4))
    ElementTree.fromstring(channel_svg("x<y>", [nothing]))


def test_html_holds_every_channel(tmp_path):
    pytest.importorskip("plotly")
    path = tmp_path / "pictures" / "one.html"
    write_picture(path, "title", [panel(8, tall=2)])
    text = path.read_text()
    assert "title" in text
    assert "80.0" in text


def test_html_without_plotly_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.graph_objects", None)
    with pytest.raises(MissingDependency, match=r"onnxq\[plots\]"):
        write_picture(tmp_path / "one.html", "title", [panel(8)])
