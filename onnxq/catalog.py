"""What there is to choose from, as plain values: passes, solvers, formats, models."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import inspect
import re
import time
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq.formats import Format
    from onnxq.passes.base import Progress

__all__ = [
    "distortion_values",
    "format_choice",
    "format_values",
    "operator_values",
    "operators_of",
    "pass_values",
    "solver_values",
    "solvers_of",
    "target_values",
    "zoo_values",
]

_SHAPE = (4096, 4096)
_COMMON = re.compile(r"(?!int).*|int[1-8](_g128)?")
"""Names that are listed without being asked for: of integers, two spans of each."""


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


def target_values() -> list[dict[str, Any]]:
    """Every deployment target with its options."""
    from onnxq.export.targets import TARGETS, target_class

    return [
        {
            "target": name,
            "what": cls.title,
            "summary": (inspect.getdoc(cls) or "").partition("\n")[0],
            "options": [f"{f.name}={_default(f)!r}" for f in dataclasses.fields(cls)],
        }
        for name, cls in ((name, target_class(name)) for name in TARGETS)
    ]


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


def format_values(only: Sequence[str] = (), *, every: bool = False) -> list[dict[str, Any]]:
    """Weight formats with bits per weight of 4096 × 4096, operators and solvers.

    Args:
        only: names, or patterns of listed names; all that are listed when empty.
        every: list all names in common use, not only two spans of each integer.

    Raises:
        FormatError: a name is not a format, or no listed name is like the pattern.
    """
    from onnxq.formats import parse_format

    rows = []
    for name in format_choice(only, every=every):
        fmt = parse_format(name)
        rows.append(
            {
                "format": name,
                "family": type(fmt).__name__.removesuffix("Format").lower(),
                "bits per weight": round(fmt.bits_per_weight(_SHAPE), 4),
                "operators": operators_of(fmt),
                "solvers": solvers_of(fmt),
            }
        )
    return rows


def distortion_values(
    only: Sequence[str] = (), *, every: bool = False, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Mean squared errors of formats on 2^20 weights of N(0, 1), beside the least of any code.

    Arguments and errors are those of `format_values`.
    """
    from onnxq.formats import parse_format
    from onnxq.formats.distortion import gaussian_distortion

    rows = []
    names = format_choice(only, every=every)
    for done, name in enumerate(names):
        if progress is not None:
            progress("measure distortion", done, len(names))
        start = time.perf_counter()
        found = gaussian_distortion(parse_format(name))
        rows.append(
            {
                "format": name,
                "bits": round(found.bits, 4),
                "squared error": found.squared_error,
                "2^(-2R)": found.bound,
                "ratio": found.ratio,
                "seconds": round(time.perf_counter() - start, 2),
            }
        )
    return rows


def format_choice(only: Sequence[str] = (), *, every: bool = False) -> list[str]:
    """Names of formats that are listed, see `format_values`."""
    from onnxq.errors import FormatError
    from onnxq.formats import format_names, parse_format

    names = format_names()
    if not only:
        return [name for name in names if every or _COMMON.fullmatch(name)]
    chosen: list[str] = []
    for pattern in only:
        if any(sign in pattern for sign in "*?["):
            found = fnmatch.filter(names, pattern)
            if not found:
                raise FormatError(
                    f"no listed format is like {pattern!r}: `onnxq formats --all` lists them."
                )
            chosen += found
        else:
            parse_format(pattern)
            chosen.append(pattern)
    return list(dict.fromkeys(chosen))


def operators_of(fmt: Format) -> list[str]:
    """Operators that multiply by 4096 × 4096 weights of this format, ours last."""
    from onnxq.custom_ops.catalog import SPECS
    from onnxq.errors import FormatError
    from onnxq.formats import IntFormat, matmul_nbits_block

    found = []
    if isinstance(fmt, IntFormat):
        with contextlib.suppress(FormatError):
            matmul_nbits_block(fmt, _SHAPE[1])
            found.append("MatMulNBits")
        found.append("DequantizeLinear")
    for spec in SPECS:
        if isinstance(fmt, spec.formats) and spec.refusal(fmt, _SHAPE) is None:
            found.append(spec.name)
    return found


def operator_values() -> list[dict[str, Any]]:
    """Every operator that multiplies by stored weights, with what its spec says."""
    from onnxq.custom_ops.catalog import SPECS

    rows = format_values()
    return [
        {
            "operator": spec.name,
            "summary": spec.summary,
            "inputs": ["A", *spec.arrays],
            "attributes": re.findall(r"\w+", spec.body.partition("<")[2].partition(">")[0]),
            "formats": [row["format"] for row in rows if spec.name in row["operators"]],
            "opset": spec.lowest_opset,
            "kernels": list(spec.kernels),
        }
        for spec in SPECS
    ]


def solvers_of(fmt: Format) -> list[str]:
    """Solvers that choose codes of this format: what their ``fmt`` is declared to be."""
    from onnxq.formats import IntFormat
    from onnxq.passes.learned_rounding import all_solvers

    return [
        name
        for name, one in all_solvers().items()
        if isinstance(fmt, typing.get_type_hints(one.solve).get("fmt", IntFormat))
    ]


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
