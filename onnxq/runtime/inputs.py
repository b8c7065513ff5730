"""Inputs to try a model with when no real ones are at hand: right names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.runtime.decoder import decoder_feeds, is_cache, logits_name
from onnxq.runtime.session import Session, TensorSpec, open_session

_DEFAULT_SIZE = 8
"""Size of a dynamic dimension nobody gave: small, and more than one."""


def random_samples(
    source: Session | ir.Model,
    count: int,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Make ``count`` deterministic samples for every input of a model.

    Floats are N(0, 1); integers are small and non-negative (masks are ones, so that no row of an
    attention is empty; types of tokens are zeros); booleans are True. A decoder with a key/value
    cache gets random tokens and an empty cache. Dimensions of the same name get the same size,
    batch dimensions 1.

    Args:
        source: an open session, or a model to open for its input specs.
        count: number of samples.
        seed: seed of the generator.
        sizes: size of a dynamic dimension by name; others get 8.

    Raises:
        UnsupportedGraph: an input is neither a numeric tensor nor a string tensor.
    """
    if isinstance(source, ir.Model):
        with open_session(source, optimize=False) as session:
            return random_samples(session, count, seed=seed, sizes=sizes)
    generator = np.random.default_rng(seed)
    if any(is_cache(spec) for spec in source.inputs):
        return [_decoder_sample(source, generator, sizes or {}) for _ in range(count)]
    return [
        {spec.name: _fill(spec, generator, sizes or {}) for spec in source.inputs}
        for _ in range(count)
    ]


def _decoder_sample(
    session: Session, generator: np.random.Generator, sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Random tokens of the model's own vocabulary for a first run, with an empty cache."""
    scores = [spec.shape[-1] for spec in session.outputs if spec.name == logits_name(session)]
    vocabulary = scores[0] if scores and isinstance(scores[0], int) else _DEFAULT_SIZE
    length = sizes.get("sequence_length", _DEFAULT_SIZE)
    return decoder_feeds(session, generator.integers(0, vocabulary, (1, length)))


def _fill(spec: TensorSpec, generator: np.random.Generator, sizes: Mapping[str, int]) -> np.ndarray:
    shape = tuple(_size(dim, sizes) for dim in spec.shape)
    if np.issubdtype(spec.dtype, np.floating) or spec.dtype.kind == "V":
        return generator.standard_normal(shape).astype(spec.dtype)
    if "mask" in spec.name:
        return np.ones(shape, spec.dtype)
    if "token_type" in spec.name or "segment" in spec.name:
        return np.zeros(shape, spec.dtype)
    if "position" in spec.name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=spec.dtype), shape).copy()
    if np.issubdtype(spec.dtype, np.integer):
        return generator.integers(0, 8, shape).astype(spec.dtype)
    if spec.dtype == np.bool_:
        return np.ones(shape, np.bool_)
    raise UnsupportedGraph(
        f"No random value can be made for input {spec.name!r} of dtype {spec.dtype}: "
        "give samples of your own."
    )


def _size(dim: int | str | None, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    name = dim or ""
    if name in sizes:
        return sizes[name]
    if "past" in name and "total" not in name:
        return 0
    return 1 if "batch" in name else _DEFAULT_SIZE
