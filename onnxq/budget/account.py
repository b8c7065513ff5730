"""The account of a budget, ``onnxq-budget.json`` in the artifact, which `onnxq report` reads.

What was asked and reached, the options of every site, uniform mixes, the front and the groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxq.budget.allocate import front
from onnxq.budget.menu import Option, SiteMenu
from onnxq.budget.plan import Problem, Solution, option_of, solution_of
from onnxq.budget.request import Request

__all__ = ["ACCOUNT", "account_of", "uniform_mixes", "with_bytes"]

ACCOUNT = "onnxq-budget.json"
"""Name of the file."""


def uniform_mixes(problem: Problem) -> dict[str, Solution]:
    """By name of the format: it for all counted sites that have a choice, the rest at its least.

    Formats count that can store half of these weights; a site that cannot take one, such as a
    convolution, takes what is nearest to it in bits.
    """
    free = [menu for menu in problem.menus if menu.counted and len(menu.options) > 1]
    weights = sum(menu.weights for menu in free)
    found = {}
    for name in dict.fromkeys(name for menu in free for name in menu.formats):
        able = [menu for menu in free if name in menu.formats]
        stored = sum(menu.weights for menu in able)
        if 2 * stored < weights:
            continue
        bits = 8 * sum(option_of(menu, name).nbytes for menu in able) / stored
        mix = {menu.site: _nearest(menu, name, bits) for menu in free}
        rest = {m.site: _least(m).format for m in problem.menus if m.site not in mix}
        found[name] = solution_of(problem, {**rest, **mix}, 0.0)
    return found


def _nearest(menu: SiteMenu, name: str, bits: float) -> str:
    """The format of this name, or the one nearest in bits."""
    if name in menu.formats:
        return name
    apart = {o.format: abs(8 * o.nbytes / menu.weights - bits) for o in menu.options}
    return min(apart, key=apart.__getitem__)


def _least(menu: SiteMenu) -> Option:
    return min(menu.options, key=lambda option: option.nbytes)


def account_of(
    problem: Problem, request: Request, solution: Solution, reached: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of ``onnxq-budget.json``.

    Args:
        problem: what there was to choose from.
        request: what was asked.
        solution: what was chosen.
        reached: what was measured of the written model; merged into ``reached``.
    """
    losses = [[option.loss for option in menu.options] for menu in problem.menus]
    sizes = [[problem.nbytes(m, option) for option in m.options] for m in problem.menus]
    weights = max(problem.counted_weights, 1)
    return {
        "version": 1,
        "asked": request.to_dict(),
        "reached": {
            "bits": 8 * solution.counted_bytes / weights,
            "bytes": solution.nbytes + problem.fixed_bytes,
            "latency_ms": solution.latency_ms,
            "predicted_loss": solution.loss,
            "bound": solution.bound,
            **reached,
        },
        "loss": problem.loss_name,
        "measure": problem.measure,
        "sites": [_row(problem, menu, solution.formats[menu.site]) for menu in problem.menus],
        "uniform": [
            {
                "format": name,
                "bytes": mix.nbytes + problem.fixed_bytes,
                "bits": 8 * mix.counted_bytes / weights,
                "latency_ms": mix.latency_ms,
                "loss": mix.loss,
            }
            for name, mix in uniform_mixes(problem).items()
        ],
        "front": [
            {"bytes": use + problem.fixed_bytes, "loss": loss} for use, loss in front(losses, sizes)
        ],
        "groups": [list(group) for group in problem.groups],
    }


def with_bytes(account: Mapping[str, Any], nbytes: int) -> dict[str, Any]:
    """The account of a model whose files take so many bytes, as they were written.

    Bytes of other mixes, which were predicted, are moved by what the prediction was off.
    """
    off = nbytes - account["reached"]["bytes"]
    moved = {
        key: [{**row, "bytes": row["bytes"] + off} for row in account[key]]
        for key in ("uniform", "front")
    }
    return {**account, **moved, "reached": {**account["reached"], "bytes": nbytes}}


def _row(problem: Problem, menu: SiteMenu, fmt: str) -> dict[str, Any]:
    chosen = option_of(menu, fmt)
    return {
        "site": menu.site,
        "weights": menu.weights,
        "counted": menu.counted,
        "format": fmt,
        "bytes": problem.nbytes(menu, chosen),
        "loss": chosen.loss,
        "options": [
            {
                "format": option.format,
                "bytes": option.nbytes,
                "latency_us": option.latency_us,
                "loss": option.loss,
            }
            for option in menu.options
        ],
    }
