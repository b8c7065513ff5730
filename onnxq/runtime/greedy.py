"""Greedy decoding with a session of ONNX Runtime and its key/value cache: what genai must equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.errors import UnsupportedGraph
from onnxq.runtime.decoder import decoder_feeds, is_cache, logits_name
from onnxq.runtime.session import Session

__all__ = ["greedy_tokens"]


def greedy_tokens(session: Session, prompt: Sequence[int], count: int) -> list[int]:
    """The ``count`` most likely tokens after a prompt, one at a time, through the cache.

    Args:
        session: an open decoder with inputs ``past...`` and outputs ``present...``.
        prompt: token ids, at least one.
        count: new tokens.

    Raises:
        UnsupportedGraph: it has no cache, or an input no decoder is known to have.
    """
    scores = logits_name(session)
    caches = [spec.name for spec in session.inputs if is_cache(spec)]
    grown = [spec.name for spec in session.outputs if "present" in spec.name]
    if not caches or len(caches) != len(grown):
        raise UnsupportedGraph(
            f"The model has {len(caches)} inputs for past keys and values and {len(grown)} outputs "
            "for present ones, so it cannot decode token by token: export it with a cache."
        )
    feeds = decoder_feeds(session, np.asarray([prompt], np.int64))
    tokens: list[int] = []
    seen = 0
    while True:
        seen += feeds["input_ids"].shape[1]
        results = session.run(feeds)
        tokens.append(int(results[scores][0, -1].argmax()))
        if len(tokens) == count:
            return tokens
        feeds = _next_feeds(feeds, tokens[-1], seen)
        feeds.update({past: results[present] for past, present in zip(caches, grown, strict=True)})


def _next_feeds(feeds: dict[str, np.ndarray], token: int, seen: int) -> dict[str, np.ndarray]:
    """Feeds of one more token after ``seen`` of them, without the cache."""
    following = {"input_ids": np.full((1, 1), token, feeds["input_ids"].dtype)}
    if "attention_mask" in feeds:
        following["attention_mask"] = np.ones((1, seen + 1), feeds["attention_mask"].dtype)
    if "position_ids" in feeds:
        following["position_ids"] = np.full((1, 1), seen, feeds["position_ids"].dtype)
    if "use_cache_branch" in feeds:
        following["use_cache_branch"] = np.ones_like(feeds["use_cache_branch"])
    return following
