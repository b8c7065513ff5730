"""Residual streams as spaces that one orthogonal matrix can be folded into.

    x Q = (embedding Q) + Σ (o_proj Q) + Σ (down_proj Q),    W (x / ‖x‖) = (W Q) (Qᵀ x / ‖x‖)

Everything that writes into the stream is multiplied by Q along its outputs, everything that reads
it behind an RMS norm without scales by Qᵀ along its inputs; the norm sees the same length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibration import walk_sites
from onnxq.errors import UnsupportedGraph
from onnxq.graph.opset import infer_shapes
from onnxq.graph.scratch import Scratch
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.topology import ResidualStream, Topology
from onnxq.numerics.rotation import Rotation, as_rotation
from onnxq.passes.base import Samples
from onnxq.passes.centered_norms import open_skip_norm
from onnxq.passes.migration import refuse_calibrated
from onnxq.passes.rotation_bridges import matrix_bridge
from onnxq.passes.rotation_rules import SCALE_OF, follow_rotation, is_uniform
from onnxq.passes.rotation_space import Space, find_space

__all__ = ["Stream", "Streams", "covariance_of", "find_streams", "open_skip_norms", "rotate_stream"]

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """A residual stream that can be rotated.

    Attributes:
        name: of the value that its first norm reads.
        norm: the first node that normalizes it.
        width: channels.
        space: everything that takes the matrix.
    """

    name: str
    norm: ir.Node
    width: int
    space: Space

    @property
    def readers(self) -> tuple[Site, ...]:
        """The sites whose input channels are rotated, in the order they were met."""
        return tuple(self.space.readers)

    @property
    def bridges(self) -> int:
        """Products with the matrix that have to be written as the model runs."""
        return len(self.space.bridges)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streams:
    """What `find_streams` found.

    Attributes:
        found: the streams that can be rotated, the one with the most additions first.
        refused: by name of every other stream, why it cannot be.
    """

    found: tuple[Stream, ...]
    refused: dict[str, str]


def find_streams(model: ir.Model, *, bridges: int = 0) -> Streams:
    """Find the residual streams of the main graph that a rotation can be folded into.

    Shapes are inferred; nothing else of the model is touched.

    Args:
        model: with fused norms, and their scales folded away.
        bridges: how many products with the matrix may be written for one stream, where it begins
            behind something that is not linear, leaves the model, or a norm keeps its scale.

    Raises:
        UnsupportedGraph: the model is calibrated or quantized already.
    """
    refuse_calibrated(model, "a rotation")
    infer_shapes(model)
    topology = Topology(model)
    by_node = {site.node: site for site in find_sites(model)}
    found: list[Stream] = []
    refused: dict[str, str] = {}
    for stream in topology.residual:
        outcome = _stream(stream, by_node, bridges, found)
        if isinstance(outcome, Stream):
            found.append(outcome)
        elif outcome is not None:
            name, reason = outcome
            refused[name] = reason
    return Streams(found=tuple(found), refused=refused)


def open_skip_norms(model: ir.Model) -> int:
    """Write Skip norms that keep their scales as an addition and a norm; returns how many.

    A product with the matrix can be put between the two.
    """
    nodes = [
        norm.node
        for norm in Topology(model).norms
        if norm.node is not None
        and norm.node.op_type.startswith("Skip")
        and not is_uniform(norm.node.inputs[SCALE_OF[norm.node.op_type]])
    ]
    for node in nodes:
        open_skip_norm(model, node)
    return len(nodes)


def rotate_stream(
    model: ir.Model,
    stream: Stream,
    matrix: Rotation | Array,
    *,
    scratch: Scratch | None = None,
) -> None:
    """Fold an orthogonal matrix into everything that writes or reads a stream.

    Weights keep their type; they are computed in float64.

    Args:
        model: the model the stream was found in; find streams anew for another rotation.
        stream: one of `find_streams`.
        matrix: Q, or [width, width] float64.
        scratch: keeps the new weights; when None they are computed at every read, or save.

    Raises:
        FormatError: the matrix is not orthogonal.
        UnsupportedGraph: it is of another size.
    """
    rotation = as_rotation(matrix)
    if rotation.size != stream.width:
        raise UnsupportedGraph(
            f"a matrix of {rotation.size} channels does not fit the stream {stream.name!r} of "
            f"{stream.width}: give [{stream.width}, {stream.width}]."
        )
    dense = rotation.matrix if stream.bridges else np.eye(1)
    stream.space.apply(model, [rotation.apply], matrix_bridge("rotation", dense), scratch)


def covariance_of(
    model: ir.Model, sites: Sequence[Site], samples: Samples, channels: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Mean outer product of the input of each site, by its name; float64 [channels, channels].

    Sites whose input has other columns (convolutions) or cannot be observed are left out.

    Raises:
        CalibrationError: the samples do not fit the model.
    """
    fits = [site for site in sites if site.kind in ("MatMul", "Gemm")]
    moments: dict[str, npt.NDArray[np.float64]] = {}

    def keep(site: Site, statistics: Sequence[Any]) -> None:
        hessian = np.asarray(statistics[0].hessian, np.float64)
        if hessian.shape == (channels, channels):
            moments[site.name] = hessian

    walk_sites(model, samples, fits, keep, flow="one_shot", cut="whole")
    return moments


def _stream(
    stream: ResidualStream, by_node: dict[ir.Node, Site], bridges: int, found: Sequence[Stream]
) -> Stream | tuple[str, str] | None:
    """The stream with its space, or its name and why it has none; None when it is in another."""
    fused = [norm for norm in stream.norms if norm.node is not None]
    if not fused:
        name = stream.values[0].name or ""
        if stream.norms:
            return name, "its norms are written as arithmetic: run fuse_rms_norm first"
        return name, "no norm reads it"
    start = fused[0].inputs[0]
    if any(start in other.space.labels for other in found):
        return None
    name = start.name or ""
    if stream.width is None:
        return name, "its width is not known"
    space = find_space(
        by_node, follow_rotation, start, width=stream.width, count=stream.width, bridges=bridges
    )
    if isinstance(space, str):
        return name, space
    node = fused[0].node
    if node is None or not space.readers:
        return name, "no linear layer reads it"
    return Stream(name=name, norm=node, width=stream.width, space=space)
