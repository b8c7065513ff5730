"""Is the exported model the model it was exported from? Compared on several inputs.

The measure is the relative error max|a - b| / max|b| of every output, b being the source
framework's float32 output. What it must stay under follows from float32: two evaluations of one
network that sum in different orders differ, at each dot product of length K, by a random walk of
K roundings of relative size u = 2^-24 (Higham & Mary 2019, "A new approach to probabilistic
rounding error analysis", theorem 2.4: sqrt(K) u), and the layers of a network add theirs
independently: u · sqrt(ΣK). `rounding_bound` allows `AMPLIFICATION` times that; beyond it,
float64 is the judge (`judge`). A wrong export (transposed weight, missed bias, wrong epsilon) is
off by orders of magnitude more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from onnxq.errors import ExportError
from onnxq.runtime import Session, TensorSpec

__all__ = [
    "AMPLIFICATION",
    "Outputs",
    "Verdict",
    "check_decoder",
    "judge",
    "relative_error",
    "rounding_bound",
    "rounding_bound_of_module",
]

AMPLIFICATION = 2.0
"""How much a network may amplify the rounding of its layers before float64 is asked."""

ARBITRATION = 4.0
"""How much farther from float64 than the source an export may be that sums in another order."""

JUDGEABLE = 0.01
"""A source whose float32 is farther than this from its own float64 is not a function, or chaotic:
nothing can be said about an export of it, so it is refused."""

Outputs = dict[str, np.ndarray]
"""Arrays by the name of the comparison."""

_UNIT_ROUNDOFF = 2.0**-24
_PROMPT_LENGTHS = (1, 7, 33)
_BATCH = 2
_BATCH_LENGTH = 9
_DECODE_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The export agrees with its source.

    Attributes:
        errors: relative error of each comparison by name.
        bound: what they are under.
        notes: sentences for the user.
    """

    errors: dict[str, float]
    bound: float
    notes: tuple[str, ...] = ()

    @property
    def largest(self) -> float:
        """The largest error."""
        return max(self.errors.values(), default=0.0)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return max|a - b| / max|b|, computed in float64; inf for NaN or unlike shapes.

    When ``expected`` is all zero the error is absolute. Infinities at the same place agree.
    """
    if actual.shape != expected.shape:
        return math.inf
    if actual.size == 0:
        return 0.0
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    same = a == b
    difference = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
    worst = float(difference.max())
    if not math.isfinite(worst):
        return math.inf
    finite = np.abs(b[np.isfinite(b)])
    scale = float(finite.max()) if finite.size else 0.0
    return worst / scale if scale > 0 else worst


def rounding_bound(reductions: Iterable[int]) -> float:
    """Bound on the relative error between two float32 evaluations of the same network.

    Args:
        reductions: length K of the dot products of each linear layer.
    """
    return AMPLIFICATION * _UNIT_ROUNDOFF * math.sqrt(max(1, sum(reductions)))


def rounding_bound_of_module(module: Any) -> float:
    """`rounding_bound` of a torch module: K of a weight is all its axes but the first."""
    lengths = (math.prod(p.shape[1:]) for p in module.parameters() if p.dim() > 1)
    return rounding_bound(lengths)


def judge(
    ours: Outputs,
    reference: Callable[[], Outputs],
    exact: Callable[[], Outputs],
    *,
    bound: float,
    source: str,
) -> Verdict:
    """Compare the outputs of an export with those of its source framework.

    Args:
        ours: arrays that the exported model computed, by the name of the comparison.
        reference: computes the same in the source framework, float32.
        exact: computes the same in float64; called only when the bound is exceeded.
        bound: see `rounding_bound`. A network that amplifies rounding more than that is still
            accepted when the export is as near to float64 as the source's own float32 is, within
            a factor of `ARBITRATION`, and that is not farther than `JUDGEABLE`.
        source: what to call the source in messages.

    Raises:
        ExportError: an output is farther off than float32 explains, is NaN, or has another shape.
    """
    theirs = reference()
    errors = {name: relative_error(ours[name], theirs[name]) for name in theirs}
    beyond = [name for name, error in errors.items() if not error <= bound]
    if not beyond:
        return Verdict(errors=errors, bound=bound)
    truth = exact()
    for name in beyond:
        own = relative_error(theirs[name], truth[name])
        export = relative_error(ours[name], truth[name])
        if not export <= ARBITRATION * own or not own <= JUDGEABLE:
            raise ExportError(
                f"The export does not compute what {source} computes. {name}: relative error "
                f"{errors[name]:.3g}, where float32 rounding explains {bound:.3g}; measured "
                f"against float64 the export is off by {export:.3g} and the source by {own:.3g}. "
                "Nothing was written; try another exporter or version, and report the model."
            )
    note = (
        f"this network amplifies float32 rounding: {len(beyond)} comparisons are beyond "
        f"{bound:.3g}, and the export is as near to float64 as the source is"
    )
    return Verdict(errors=errors, bound=max(errors.values()), notes=(note,))


def check_decoder(session: Session, module: Any, *, source: str, seed: int = 0) -> Verdict:
    """Compare an exported decoder with its ``transformers`` module, logits of every position.

    Prompts of several lengths, then a batch of two whose prefill is followed by decode steps,
    each side with its own key/value cache.

    Args:
        session: inputs ``input_ids`` [batch, length], optionally ``attention_mask`` and
            ``position_ids``, and ``past_key_values.N.key`` / ``.value``; outputs ``logits`` and
            ``present.N.key`` / ``.value``.
        module: a causal LM in float32 and eval mode.
        source: what to call the source in messages.
        seed: seed of the token ids.

    Raises:
        ExportError: they do not agree, see `judge`.
    """
    runs = _token_runs(int(module.config.vocab_size), seed)
    return judge(
        _replay(runs, lambda: _OnnxDecoder(session, module.config)),
        lambda: _replay(runs, lambda: _TorchDecoder(module)),
        lambda: _replay(runs, lambda: _TorchDecoder(module.double())),
        bound=rounding_bound_of_module(module),
        source=source,
    )


def _token_runs(vocabulary: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Token ids [batch, length] by step name; each run begins with an empty cache."""
    generator = np.random.default_rng(seed)
    runs = [
        {f"prompt of {length}": generator.integers(0, vocabulary, (1, length))}
        for length in _PROMPT_LENGTHS
    ]
    batch = {f"batch of {_BATCH}": generator.integers(0, vocabulary, (_BATCH, _BATCH_LENGTH))}
    for number in range(1, _DECODE_STEPS + 1):
        batch[f"decode step {number}"] = generator.integers(0, vocabulary, (_BATCH, 1))
    return [*runs, batch]


def _replay(runs: Sequence[Mapping[str, np.ndarray]], make: Callable[[], _Decoder]) -> Outputs:
    outputs: Outputs = {}
    for run in runs:
        decoder = make()
        outputs.update({name: decoder.step(ids) for name, ids in run.items()})
    return outputs


class _Decoder(Protocol):
    def step(self, ids: np.ndarray) -> np.ndarray: ...


class _OnnxDecoder:
    """An ONNX decoder that carries its cache from step to step."""

    def __init__(self, session: Session, config: Any) -> None:
        self._session = session
        heads = int(config.num_attention_heads)
        self._heads = int(getattr(config, "num_key_value_heads", None) or heads)
        self._head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self._past: dict[str, np.ndarray] = {}
        self._seen = 0

    def step(self, ids: np.ndarray) -> np.ndarray:
        batch, length = ids.shape
        total = self._seen + length
        known = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, total)),
            "position_ids": np.broadcast_to(np.arange(self._seen, total), (batch, length)),
            **self._past,
        }
        feeds: dict[str, np.ndarray] = {}
        for spec in self._session.inputs:
            value = known.get(spec.name)
            if value is None:
                value = self._empty_cache(spec, batch)
            feeds[spec.name] = np.ascontiguousarray(value, dtype=spec.dtype)
        outputs = self._session.run(feeds)
        self._seen = total
        self._past = {
            name.replace("present", "past_key_values", 1): value
            for name, value in outputs.items()
            if name.startswith("present")
        }
        return outputs["logits"]

    def _empty_cache(self, spec: TensorSpec, batch: int) -> np.ndarray:
        """A cache that holds nothing yet: [batch, heads, 0, head size]."""
        if not spec.name.startswith("past_key_values") or len(spec.shape) != 4:
            raise ExportError(
                f"The exported decoder has an input {spec.name!r} of shape {spec.shape} that is "
                "neither tokens, mask, positions nor a key/value cache, so it cannot be checked. "
                "Export with another exporter."
            )
        _, heads, _, head_size = spec.shape
        return np.zeros(
            (
                batch,
                heads if isinstance(heads, int) else self._heads,
                0,
                head_size if isinstance(head_size, int) else self._head_size,
            )
        )


class _TorchDecoder:
    """A transformers causal LM that carries its cache from step to step."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._cache: Any = None

    def step(self, ids: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            outputs = self._module(
                input_ids=torch.from_numpy(ids), past_key_values=self._cache, use_cache=True
            )
        self._cache = outputs.past_key_values
        return np.asarray(outputs.logits.numpy())
