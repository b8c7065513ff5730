"""What the matmuls of onnxq are held to, and whether a run of the benchmark shows it."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

SET = "set"
"""Shape of the many weights that no cache holds."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """``ours`` takes at most ``1 / least`` of the time of the fastest of ``theirs``.

    Attributes:
        ours: sides whose names begin so, each for itself.
        theirs: names of sides; those that were not measured are left out.
        tokens: rows of activations.
        least: wanted ratio of their time to ours.
        threads: numbers of threads it is about.
        shapes: it is about, or all but the set.
    """

    ours: str
    theirs: tuple[str, ...]
    tokens: int
    least: float
    threads: tuple[int, ...] = (2,)
    shapes: tuple[str, ...] = ()


def ggml(*types: str) -> tuple[str, ...]:
    """Sides of ggml with their layouts: the faster of both counts."""
    return tuple(f"ggml {kind}{layout}" for kind in types for layout in ("", " repacked"))


NBITS_4 = tuple(f"MatMulNBits 4-bit g{block}" for block in (32, 64, 128))
BOTH = (1, 2)
GOALS = (
    Goal("MatMulCodebook vq_d4n256", ("MatMulNBits 2-bit g64",), 1, 1),
    Goal("MatMulCodebook vq_d4n256", ("MatMulNBits 2-bit g128",), 1, 1),
    Goal("MatMulLut lut2", ("MatMulNBits 2-bit g64",), 1, 1),
    Goal("MatMulLut lut2", ("MatMulNBits 2-bit g128",), 1, 1),
    Goal("MatMulLut lut4", ("MatMulNBits 4-bit g32",), 1, 1),
    Goal("MatMulLut lut4", ("MatMulNBits 4-bit g128",), 1, 1),
    Goal("MatMulLut lut3", ("MatMulNBits 4-bit g32",), 1, 1),
    Goal("MatMulLut lut3", ("MatMulNBits 4-bit g128",), 1, 1),
    Goal("MatMulCodebook aq_m2d8n256", ("aqlm 2x8",), 1, 4, (1,)),
    Goal("MatMulE8P e8p2", ("MatMulNBits 4-bit g128",), 1, 1 / 3),
    Goal("MatMulTrellis trellis", ("MatMulNBits 4-bit g128",), 1, 1 / 4),
    Goal("MatMulInt int4", NBITS_4, 128, 5),
    Goal("MatMulInt int4", ("dynamic int8",), 128, 0.6),
    Goal("MatMulCodebook", ("fp32",), 128, 1),
    Goal("MatMulTrellis", ("fp32",), 128, 1),
    Goal("MatMulCodebook vq_d4n256", ggml("q2_K"), 1, 1.3, BOTH),
    Goal("MatMulCodebook vq_d4n256", ggml("iq2_xxs"), 1, 3, BOTH),
    Goal("MatMulTernary ternary", ggml("tq2_0"), 1, 0.9, BOTH),
    Goal("MatMulInt int4", ggml("q4_0", "q4_K", "iq4_xs"), 128, 3, BOTH),
)
TWO_BITS = ("lut2", "vq_d4n256", "aq_m2d8n256", "e8p2", "trellis2", "ternary", "int2")
SET_GOALS = tuple(
    Goal(f"{operator} {name}", ("MatMulNBits 4-bit g128",), 1, 1, shapes=(SET,))
    for operator, name in zip(
        ("MatMulLut", "MatMulCodebook", "MatMulCodebook", "MatMulE8P", "MatMulTrellis",
         "MatMulTernary", "MatMulInt"), TWO_BITS, strict=True
    )
)  # fmt: skip


def judged(rows: Sequence[dict]) -> Iterable[dict]:
    """Each goal on each case that was measured: ratio, its range, whether it is reached.

    Args:
        rows: of the benchmark: ``threads``, ``shape``, ``tokens``, ``side`` and microseconds of
            the rounds, ``us``; rounds with the same place were measured one after the other.
    """
    cases = {(row["threads"], row["shape"], row["tokens"]) for row in rows}
    for goal in (*GOALS, *SET_GOALS):
        for threads, shape, tokens in sorted(cases):
            is_meant = shape in goal.shapes if goal.shapes else shape != SET
            if threads not in goal.threads or tokens != goal.tokens or not is_meant:
                continue
            case = [row for row in rows if (row["threads"], row["shape"]) == (threads, shape)]
            sides = {row["side"]: row for row in case if row["tokens"] == tokens}
            theirs = [sides[name] for name in goal.theirs if name in sides]
            if not theirs:
                continue
            best = min(theirs, key=lambda row: statistics.median(row["us"]))
            for name in (name for name in sides if name.startswith(goal.ours)):
                yield _judged(goal, sides[name], best)


def _judged(goal: Goal, ours: dict, best: dict) -> dict:
    # The set is measured in pairs: each side has its own rounds of the side it is compared with.
    base = ours["base_us"] if ours["shape"] == SET else best["us"]
    ratios = [theirs / mine for theirs, mine in zip(base, ours["us"], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "threads": ours["threads"],
        "shape": ours["shape"],
        "tokens": ours["tokens"],
        "ours": ours["side"],
        "theirs": best["side"],
        "theirs / ours": ratio,
        "range": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "wanted": goal.least,
        "reached": ratio >= goal.least,
    }
