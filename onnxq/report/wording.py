"""Figures as a reader meets them: megabytes, losses, shares, and the sentence on top."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from onnxq.report.facts import Facts
from onnxq.report.measures import Measures

__all__ = ["figure", "format_mix", "loss_text", "megabytes", "verdict"]


def megabytes(nbytes: float | None) -> str:
    """Bytes as megabytes (10⁶), small ones with decimals."""
    if nbytes is None:
        return "–"
    size = nbytes / 1e6
    return f"{size:,.1f} MB" if size >= 1 else f"{nbytes / 1e3:.3g} kB"


def figure(value: Any) -> str:
    """A number with three digits; infinity as ∞; nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return "∞" if value == "inf" else value
    if isinstance(value, float):
        if not math.isfinite(value):
            return "∞" if value > 0 else "not finite"
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def loss_text(name: str, value: float) -> str:
    """A loss of `onnxq.evaluate.losses` in its own words."""
    if not math.isfinite(value):
        return "not finite"
    if name == "noise":
        decibels = math.inf if value == 0 else -10 * math.log10(value)
        return f"{figure(decibels)} dB"
    return f"{figure(value)} nats" if name == "kl" else figure(value)


def format_mix(facts: Facts) -> str:
    """How many sites are in each format, the most frequent first."""
    counts = Counter(str(site.get("format") or "activations only") for site in facts.sites)
    return ", ".join(f"{count} × {name}" for name, count in counts.most_common())


def verdict(facts: Facts, measures: Measures | None) -> str:
    """What a stranger should know, in three sentences or fewer."""
    said = [_size_sentence(facts)]
    if measures is not None and measures.loss is not None:
        said.append(_loss_sentence(measures))
    if measures is not None and len(measures.bench) == 2:
        said.append(_speed_sentence(measures))
    return " ".join(said)


def _size_sentence(facts: Facts) -> str:
    size = megabytes(facts.nbytes)
    if facts.original_bytes:
        ratio = facts.original_bytes / facts.nbytes
        how = f", {ratio:.1f} times smaller" if ratio >= 1.05 else ", no smaller"
        size += f" instead of {megabytes(facts.original_bytes)}{how}"
    count = len(facts.sites)
    if not count:
        return f"{size}. No site is quantized."
    sites = f"{count} {'site is' if count == 1 else 'sites are'} quantized ({format_mix(facts)})"
    left = f" and {len(facts.left)} were left in float" if facts.left else ""
    return f"{size}. {sites}{left}."


def _loss_sentence(measures: Measures) -> str:
    loss = dict(measures.loss or {})
    name, value = str(loss["name"]), float(loss["whole"])
    where = f"On {measures.samples}"
    if not math.isfinite(value):
        return f"{where} its outputs are not finite: it cannot be used."
    if name == "noise":
        return f"{where} its outputs are off by {math.sqrt(value):.2%} of their size (RMS)."
    if name == "kl":
        top1 = [row["top1"] for row in measures.outputs if row.get("top1") is not None]
        same = f", and the likeliest choice is the same in {top1[0]:.1%} of the places" * bool(top1)
        return f"{where} its scores are {value:.3g} nats (KL) from the original's{same}."
    return f"{where} it loses {value:.2%} of {name}."


def _speed_sentence(measures: Measures) -> str:
    first, second = measures.bench
    ratio = float(first["latency_ms"]) / float(second["latency_ms"])
    if "decode_tokens_s" in second:
        rates = float(second["decode_tokens_s"]), float(first["decode_tokens_s"])
        return f"It writes {rates[0]:.0f} tokens per second here, the original {rates[1]:.0f}."
    if abs(ratio - 1) < 0.05:
        return "Here it is as fast as the original."
    how = f"{ratio:.1f} times faster" if ratio > 1 else f"{1 / ratio:.1f} times slower"
    return f"Here a run is {how} than the original's."
