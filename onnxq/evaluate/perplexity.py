"""Perplexity of a decoder on ONNX Runtime, over windows of text that do not overlap.

Each window is run from an empty cache with no special token in front, and predicts its own tokens
2..n from those before them; the figure is exp of the mean negative log-likelihood over all
predictions. It is a protocol, not the only one (sliding windows give lower figures), so the result
carries every number needed to repeat it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from onnxq.errors import CalibrationError
from onnxq.runtime import Session
from onnxq.runtime.decoder import decoder_feeds, logits_name

__all__ = ["Perplexity", "perplexity", "token_losses"]

_ROWS = 128
"""Rows of logits in float64 at a time: 128 × 49152 × 8 bytes are 50 MB."""


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """A perplexity with its protocol.

    Attributes:
        perplexity: exp(loss).
        loss: mean negative log-likelihood of a prediction, in nats.
        tokens: tokens read.
        windows: windows they were cut into.
        window: tokens in each window.
        predictions: tokens predicted; the first of each window is not.
    """

    perplexity: float
    loss: float
    tokens: int
    windows: int
    window: int
    predictions: int

    def __str__(self) -> str:
        """The figure and its protocol on one line."""
        return (
            f"perplexity {self.perplexity:.4g} ({self.predictions} predictions in {self.windows} "
            f"windows of {self.window} tokens, no overlap, no special tokens)"
        )


def perplexity(
    session: Session,
    ids: np.ndarray,
    *,
    window: int = 512,
    batch: int = 1,
    head_size: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of a decoder on token ids.

    Logits are reduced as they come: memory is one batch of windows, [batch, window, vocabulary]
    in the model's dtype, and a few rows in float64.

    Args:
        session: an open decoder with an output ``logits``.
        ids: integer token ids. [tokens] is cut into windows, and what is left over at the end is
            dropped; [windows, window] is taken as it is.
        window: tokens in a window, for ``ids`` of one dimension.
        batch: windows run at once.
        head_size: see `onnxq.runtime.decoder.decoder_feeds`.
        progress: called with ("perplexity", windows done, windows).

    Raises:
        CalibrationError: there is no full window, or a window predicts nothing.
        UnsupportedGraph: the session is not a decoder.
        OnnxqError: the runtime failed.
    """
    rows = _windows(np.asarray(ids), window)
    name = logits_name(session)
    total = 0.0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        logits = session.run(decoder_feeds(session, part, head_size=head_size), [name])[name]
        for scores, targets in zip(logits, part, strict=True):
            total += float(token_losses(scores[:-1], targets[1:]).sum())
        if progress is not None:
            progress("perplexity", min(start + batch, len(rows)), len(rows))
    return _summary(total, *rows.shape)


def _summary(total: float, windows: int, window: int) -> Perplexity:
    predictions = windows * (window - 1)
    loss = total / predictions
    return Perplexity(
        perplexity=math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.inf,
        loss=loss,
        tokens=windows * window,
        windows=windows,
        window=window,
        predictions=predictions,
    )


def token_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each target under a softmax of its row, in float64 nats.

    Args:
        logits: scores, [rows, vocabulary], any float dtype.
        targets: the index that is right for each row, [rows].

    Returns:
        float64 [rows]; infinite or NaN where a row is not finite.
    """
    losses = np.empty(len(targets))
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        right = targets[start : start + _ROWS]
        picked = rows[np.arange(len(right)), right]
        peak = rows.max(axis=1)
        normalizer = np.log(np.exp(rows - peak[:, None]).sum(axis=1)) + peak
        losses[start : start + _ROWS] = normalizer - picked
    return losses


def _windows(ids: np.ndarray, window: int) -> np.ndarray:
    if ids.ndim == 1 and window > 0:
        ids = ids[: len(ids) // window * window].reshape(-1, window)
    if ids.ndim != 2 or ids.shape[0] == 0 or ids.shape[1] < 2:
        raise CalibrationError(
            f"Perplexity needs at least one full window of two tokens or more, and was given ids "
            f"that make {list(ids.shape)} (windows, tokens in each): give more text or a smaller "
            "window."
        )
    return ids
