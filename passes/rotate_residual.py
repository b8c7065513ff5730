"""Rotate the residual stream, within the weights.

For an orthogonal Q and RMSNorm(x) = x / √(mean(x²) + ε), whose scale was folded into its readers:

    W RMSNorm(x)  =  (W Q) RMSNorm(Qᵀ x),       x = E[token] + Σ W_o a + Σ W_d h + ...

so that embeddings, output and down projections with their biases and added positions, multiplied by
Q along their outputs, and every layer that reads the stream, multiplied by Q along its inputs, give
the same function of activations x Q: R1 of QuaRot (Ashkboos et al. 2024, arXiv:2404.00456, section
4) and of SpinQuant (Liu et al. 2024, arXiv:2405.16406), from the computational invariance of
SliceGPT (Ashkboos et al. 2024, arXiv:2401.15024, section 3). Outlier channels are spread over all
channels; nothing is computed as the model runs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxq.errors import CalibrationError, FormatError
from onnxq.graph.stage import clone_model
from onnxq.numerics.rotation import Kind, Rotation, first_part, make_rotation
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.rotation_pass import RotationPass
from onnxq.passes.rotation_streams import (
    Stream,
    Streams,
    covariance_of,
    find_streams,
    open_skip_norms,
    rotate_stream,
)

__all__ = ["RotateResidual"]

_MARK = "onnxq.rotated"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotateResidual(RotationPass):
    """Fold an orthogonal matrix into every writer and reader of each residual stream.

    Matches: streams between RMS norms without scales (``fold_norm_scales``, and before it
        ``center_residual`` for LayerNorm), through casts, views, sums, positions and class tokens.
    Writes: weights, biases, embeddings and added constants, rotated; where a stream begins behind
        an activation function or leaves the model, a product with the matrix.
    Leaves: streams with a reader or writer that does not commute with a rotation; those rotated
        already.

    Attributes:
        matrix: how it is made, see `onnxq.numerics.rotation`; the ``klt`` kinds take the
            covariance of what the norms put out, from calibration samples.
        seed: of the random kinds.
        block: of ``block_hadamard``; 0 takes the largest power of two that divides the width.
        apart: of ``klt_hadamard``: so many of the largest components become the first channels
            and are mixed among themselves only, for `split_low_rank` to cut off; below 1 a share
            of the channels, as ``share`` of that pass counts them. 0 mixes all, and so does a
            number that leaves no channel.
        bridges: how many products with the matrix may be written for one stream.
    """

    matrix: Kind = "randomized_hadamard"
    block: int = 0
    apart: float = 0
    bridges: int = 2

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            FormatError: one is out of range.
        """
        super().__post_init__()
        if min(self.block, self.bridges, self.apart) < 0:
            raise FormatError("block, apart and bridges are at least 0.")
        if self.apart and self.matrix != "klt_hadamard":
            raise FormatError(
                f"apart={self.apart} keeps the largest components apart, which matrix="
                f"{self.matrix!r} does not find or mix: choose matrix='klt_hadamard'."
            )

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Rotate every stream that can be.

        Raises:
            CalibrationError: a covariance is needed, and there are no samples.
        """
        streams = self._streams(model)
        reports = [SiteReport(site=name, reason=why) for name, why in streams.refused.items()]
        modified = False
        for stream in streams.found:
            before = stream.norm.metadata_props.get(_MARK)
            if before is not None:
                reports.append(SiteReport(site=stream.name, reason=f"it is rotated: {before}"))
                continue
            rotation = self._rotation(model, stream, context)
            note = _said(stream, rotation)
            rotate_stream(model, stream, rotation, scratch=context.scratch)
            stream.norm.metadata_props[_MARK] = rotation.label
            reports.append(SiteReport(site=stream.name, note=note))
            modified = True
        return PassReport(modified=modified, sites=tuple(reports))

    def _streams(self, model: ir.Model) -> Streams:
        """The streams, with Skip norms taken apart where that makes one more possible."""
        streams = find_streams(model, bridges=self.bridges)
        if streams.refused and self.bridges:
            trial = clone_model(model)
            if open_skip_norms(trial):
                again = find_streams(trial, bridges=self.bridges)
                if len(again.found) > len(streams.found):
                    open_skip_norms(model)
                    return find_streams(model, bridges=self.bridges)
        return streams

    def _rotation(self, model: ir.Model, stream: Stream, context: Context) -> Rotation:
        covariance = None
        if self.needs_samples:
            samples = context.needed_samples(
                f"rotate_residual with matrix={self.matrix!r} takes the covariance of the "
                "stream, and the recipe was run without data: give calibration samples."
            )
            found = covariance_of(model, stream.readers, samples, stream.width)
            if not found:
                raise CalibrationError(
                    f"no layer that reads the stream {stream.name!r} can be observed: choose "
                    "matrix='randomized_hadamard', which needs no data."
                )
            covariance = np.mean([moment / np.trace(moment) for moment in found.values()], axis=0)
        return make_rotation(
            self.matrix,
            stream.width,
            seed=self.seed,
            block=self.block or None,
            covariance=covariance,
            apart=self._apart(stream.width),
        )

    def _apart(self, width: int) -> int:
        """How many components are mixed apart in a stream of this width."""
        count = first_part(width, self.apart) if 0 < self.apart < 1 else int(self.apart)
        return count if count < width else 0


def _said(stream: Stream, rotation: Rotation) -> str:
    """What the report says of a stream."""
    edits = len(stream.space.turned.edits) + len(stream.space.turned.copies)
    text = f"{rotation.label}, folded into {edits} weights; {len(stream.readers)} layers read it"
    if stream.bridges:
        cost = stream.bridges * stream.width**2
        text += f"; {stream.bridges} products as the model runs ({cost:,} a token)"
    return text
