"""What lowers the peak of a plan, in a sentence or two."""

from __future__ import annotations

from onnxq.planning.results import Plan

__all__ = ["hints_of", "said"]


def said(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def hints_of(plan: Plan) -> tuple[str, ...]:
    """Sentences on the stage that sets the peak."""
    if not plan.stages:
        return ()
    peak = plan.peak
    hints = []
    if peak.step in ("check", "compare"):
        rest = [s.memory for s in plan.stages if s.step not in ("check", "compare")]
        hints.append(
            "The peak is a run of the whole model, which checks what was done: with --no-check "
            f"the run takes {said(max(rest, default=0))}."
        )
    if peak.part.startswith("solve"):
        if plan.workers > 1:
            hints.append("Fewer --workers solve fewer sites at once.")
        if not plan.settings.hessians_on_disk:
            hints.append("--memory keeps Hessians and activations on disk, as far as it must.")
    if peak.part.startswith("write") or peak.step.startswith("rotate"):
        hints.append("The largest weight sets the peak: exclude it, and it stays as it is.")
    return tuple(hints)
