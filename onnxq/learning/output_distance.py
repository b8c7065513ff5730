"""The loss of `onnxq.evaluate.losses` between two outputs of a model, in torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from onnxq.evaluate.output_loss import OutputLoss
from onnxq.evaluate.perplexity import token_losses

__all__ = ["are_probabilities", "next_token_rise", "output_distance"]


def output_distance(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], loss: OutputLoss
) -> torch.Tensor:
    """How far the outputs of one sample are from those of the float model, as one number.

    Scores of tokens too are compared by their KL divergence, which is smoother than the loss of the
    next token and has the same expectation where the float model is right about its own doubt.

    Args:
        before: outputs of the float model, by name.
        after: outputs of the other one; gradients flow to them.
        loss: which outputs are judged, and how.

    Returns:
        KL divergence in nats, a mean over rows of scores; or the squared error relative to the
        size of the outputs; a mean over outputs.
    """
    shares = []
    for name in loss.outputs:
        wanted, given = before[name].double(), after[name].double()
        if loss.kind == "vectors":
            size = wanted.square().sum().clamp_min(1e-30)
            shares.append((given - wanted).square().sum() / size)
            continue
        is_given = are_probabilities(wanted)
        wanted, given = (
            _log(rows) if is_given else rows.log_softmax(-1) for rows in (wanted, given)
        )
        shares.append((wanted.exp() * (wanted - given)).sum(-1).mean())
    return torch.stack(shares).mean()


def next_token_rise(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    tokens: torch.Tensor,
    loss: OutputLoss,
) -> float:
    """The rise of −ln p of the token that follows, a mean over the tokens of one sample.

    Args:
        before: outputs of the float model, by name.
        after: outputs of the other one.
        tokens: ids ``[batch, tokens]``.
        loss: names the output, ``[batch, tokens, vocabulary]``.
    """
    name = loss.outputs[0]
    rises = [
        token_losses(given[:-1], ids[1:]) - token_losses(wanted[:-1], ids[1:])
        for wanted, given, ids in zip(
            before[name].detach().numpy(),
            after[name].detach().numpy(),
            tokens.numpy(),
            strict=True,
        )
    ]
    found = np.concatenate(rises)
    return float(found.mean()) if found.size else 0.0


def are_probabilities(rows: torch.Tensor) -> bool:
    """Whether rows along the last axis sum to 1: they came out of a softmax."""
    sums = rows.detach().sum(-1)
    return bool((rows >= 0).all()) and bool(((sums - 1).abs() <= 1e-3).all())


def _log(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.clamp_min(1e-30).log()
