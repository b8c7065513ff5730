"""Quantize a model, check it for its target, hold it to limits, and say by the exit code.

    python nightly.py MODEL OUT LIMITS.toml [--data INPUTS] [--summary SUMMARY.json]

Exit codes: 0 within every limit, and OUT is built; 1 a limit is exceeded, or onnxq refused.
"""

import argparse
import json
import logging
import operator
import sys
import tomllib
from pathlib import Path

import onnxq

log = logging.getLogger("nightly")


def main() -> int:
    """Run the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, help="folder to deploy")
    parser.add_argument("limits", type=Path, help="recipe, target and limits, TOML")
    parser.add_argument("--data", type=Path, help="calibration and test inputs")
    parser.add_argument("--summary", type=Path, help="where to write the figures, JSON")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    plan = tomllib.loads(options.limits.read_text(encoding="utf-8"))
    try:
        figures, exceeded = run(plan, options.model, options.out, options.data)
    except onnxq.OnnxqError as error:
        log.error("refused: %s", error)
        return 1
    for name, value in figures.items():
        log.info("%s = %.6g", name, value)
    for sentence in exceeded:
        log.error(sentence)
    if options.summary:
        content = {"figures": figures, "exceeded": exceeded}
        options.summary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if exceeded else 0


def run(plan: dict, model: Path, out: Path, data: Path | None) -> tuple[dict, list[str]]:
    """Figures of the new artifact, and a sentence for each limit that it exceeds."""
    artifact = out.with_name(f"{out.name}-artifact")
    quantized = onnxq.quantize(
        model, plan["recipe"], data=data, out=artifact, set=plan.get("set", [])
    )
    verdicts = onnxq.check(artifact, plan["target"], run=True)
    comparison = onnxq.compare(model, artifact, data)
    ratios = [row.deviation.sqnr_db for row in comparison.outputs]
    figures = {
        "megabytes": quantized.artifact.nbytes / 1e6,
        "output_db": min(ratio for ratio in ratios if ratio is not None),
        "sites_quantized": len(quantized.quantized_sites),
        "sites_not_as_meant": sum(bool(site.reason) for site in verdicts.sites),
        "pairs_wasted": len(verdicts.wasted),
        "predictions_wrong": len(verdicts.observed.differences),
    }
    exceeded = [
        f"{name} is {figures[name]:.6g}, and the limit is {way} {limit:.6g}"
        for way, holds in (("at least", operator.ge), ("at most", operator.le))
        for name, limit in plan[way.replace(" ", "_")].items()
        if not holds(figures[name], limit)
    ]
    if not exceeded:
        onnxq.build(artifact, plan["target"], out)
    return figures, exceeded


if __name__ == "__main__":
    sys.exit(main())
