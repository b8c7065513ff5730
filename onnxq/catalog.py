"""What there is to choose from, as plain values: passes, solvers, formats, models."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

__all__ = ["format_values", "pass_values", "solver_values", "zoo_values"]


def pass_values() -> list[dict[str, Any]]:
    """Every pass with its promise and options."""
    from onnxq.passes.registry import all_passes

    return [
        {
            "pass": key,
            "promise": cls.promise.value,
            "summary": (inspect.getdoc(cls) or "").partition("\n")[0],
            "options": [f"{f.name}={_default(f)!r}" for f in dataclasses.fields(cls)],
        }
        for key, cls in all_passes().items()
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def solver_values() -> list[dict[str, Any]]:
    """Every solver with what it needs of the data and its options."""
    from onnxq.passes.learned_rounding import all_solvers

    return [
        {
            "solver": name,
            "needs": sorted(one.needs),
            "summary": (inspect.getdoc(one.solve) or "").partition("\n")[0],
            "options": dict(one.options),
        }
        for name, one in all_solvers().items()
    ]


def format_values() -> list[dict[str, Any]]:
    """Every weight format with its bits per weight on a 4096 × 4096 matrix."""
    from onnxq.formats import format_names, parse_format

    rows = []
    for name in format_names():
        fmt = parse_format(name)
        bits = fmt.bits_per_weight((4096, 4096))
        rows.append({"format": name, "bits per weight (4096 x 4096)": round(bits, 4)})
    return rows


def zoo_values() -> list[dict[str, Any]]:
    """Every packaged model and data set."""
    from onnxq.models.zoo import entries

    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "what": entry.title,
            "package": f"{entry.package}=={entry.version}",
            "licence": entry.licence,
            "MB": entry.megabytes,
            "cached": entry.is_cached,
        }
        for entry in entries()
    ]
