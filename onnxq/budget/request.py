"""What was asked for: bits, bytes, milliseconds, a loss, or several of them at once."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxq.budget.policy import Policy, load_policy
from onnxq.errors import UsageError
from onnxq.evaluate.output_loss import Kind

__all__ = ["Request", "chosen_policy", "default_recipe", "parse_size"]

_SIZE = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kKmMgG]?i?[bB]?)\s*")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A budget; at least one of the four, and ``max_loss`` only alone.

    Attributes:
        bits: mean bits per weight of the sites that count.
        size: bytes of the model files, all of them.
        latency_ms: of one run on the first calibration sample, on this machine.
        max_loss: of the model; see `Request.of`.
        is_share: ``max_loss`` was written as a percentage.
    """

    bits: float | None = None
    size: int | None = None
    latency_ms: float | None = None
    max_loss: float | None = None
    is_share: bool = False

    @classmethod
    def of(
        cls,
        *,
        bits: float | None = None,
        size: str | int | None = None,
        latency: str | float | None = None,
        max_loss: str | float | None = None,
    ) -> Request | None:
        """Read a budget as it is written on the command line; None when nothing is asked.

        Args:
            bits: mean bits per weight.
            size: bytes, or a text such as ``60MB``, ``1.5GiB``.
            latency: milliseconds, or a text such as ``40ms``.
            max_loss: the loss of the model, or a text such as ``1%``: of a language model the rise
                of its perplexity; of others the loss itself as a share of 1.

        Raises:
            UsageError: a value that means nothing, or values that do not go together.
        """
        if bits is None and size is None and latency is None and max_loss is None:
            return None
        if max_loss is not None and (bits, size, latency) != (None, None, None):
            raise UsageError(
                "--max-loss asks for the smallest model under a loss: give no other budget with it."
            )
        text = str(max_loss).strip()
        loss = None
        if max_loss is not None:
            loss = _number(text.rstrip("%"), "--max-loss", "1% or 0.02")
            loss = loss / 100 if text.endswith("%") else loss
        return cls(
            bits=None if bits is None else _positive(bits, "--bits"),
            size=None if size is None else parse_size(size),
            latency_ms=None
            if latency is None
            else _number(str(latency).removesuffix("ms"), "--latency", "40ms"),
            max_loss=loss,
            is_share=text.endswith("%"),
        )

    def allowed_loss(self, kind: Kind) -> float | None:
        """The largest loss, in the unit of the loss of the model."""
        if self.max_loss is None or not (self.is_share and kind == "next_token"):
            return self.max_loss
        return math.log1p(self.max_loss)

    def to_dict(self) -> dict[str, Any]:
        """What was asked, as plain values."""
        values = dataclasses.asdict(self)
        del values["is_share"]
        return {name: value for name, value in values.items() if value is not None}


def default_recipe(request: Request | None) -> str:
    """The preset that is run when none is named."""
    if request is None:
        return "int8"
    return "budget_fast" if _is_fast(request) else "budget"


def chosen_policy(
    request: Request | None, policy: str | Path | None, menu: Sequence[str]
) -> Policy | None:
    """The policy of a budget; None without a budget.

    Raises:
        UsageError: a policy or a menu without a budget.
    """
    if request is None:
        if policy is not None or menu:
            raise UsageError(
                "A policy or menu is for a budget: give --bits, --size, --latency or --max-loss."
            )
        return None
    rules = load_policy(policy or ("fast" if _is_fast(request) else "default"))
    return rules.with_menu(menu) if menu else rules


def _is_fast(request: Request) -> bool:
    return request.latency_ms is not None


def parse_size(text: str | int, option: str = "--size") -> int:
    """Bytes of ``60MB`` (10⁶), ``1.5GiB`` (2³⁰), ``60000000``.

    Raises:
        UsageError: it is no size; the message names the option.
    """
    if isinstance(text, int):
        return int(_positive(text, option))
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{option} {text!r} is no size: write bytes, or 60MB, or 1.5GiB.")
    unit = match["unit"].lower().removesuffix("b")
    return int(_positive(float(match["number"]) * _UNITS[unit], option))


def _number(text: str, option: str, example: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is no number: write {example}.") from None
    return _positive(value, option)


def _positive(value: float, option: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{option} is {value}: it must be above 0.")
    return value
