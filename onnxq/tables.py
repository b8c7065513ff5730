"""How the command line shows things: plain values in, rich tables out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from onnxq.outliers import moved_outliers

Console = rich.console.Console
Row = Mapping[str, Any]


_OUTPUTS_SHOWN = 8
_SITES_SHOWN = 5
_SHORT = 0.1
"""Seconds; stages that take less are not shown."""


def table(
    console: Console, rows: Sequence[Row], columns: Sequence[str] = (), title: str | None = None
) -> None:
    """Print rows as a table; numbers to the right, missing values as a dash."""
    names = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    shown = rich.table.Table(title=title, title_justify="left")
    for name in names:
        numeric = all(isinstance(row.get(name), (int, float, type(None))) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_text(row.get(name)) for name in names))
    console.print(shown)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return str(value)


def values(console: Console, value: Mapping[str, Any]) -> None:
    """Print one mapping, a line each."""
    table(console, [{"": key, "value": _text(item)} for key, item in value.items()])


def megabytes(nbytes: float) -> str:
    """Bytes as megabytes (10⁶) with one decimal."""
    return f"{nbytes / 1e6:.1f} MB"


def exported_values(exported: Any) -> dict[str, Any]:
    """What `onnxq export` did, as plain values."""
    return {
        "folder": str(exported.folder),
        "task": exported.task,
        "source": exported.source,
        "models": {role: str(path) for role, path in exported.models.items()},
        "largest relative error": exported.largest_error,
        "bound": exported.bound,
        "errors": dict(exported.errors),
        "notes": list(exported.notes),
    }


def exported(console: Console, value: Mapping[str, Any]) -> None:
    """Print what `onnxq export` did."""
    values(console, value)


def artifact(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report of an artifact: steps, what was quantized, what was left and why."""
    steps = []
    for step in report["steps"]:
        left = [site for site in step["sites"] if site["reason"]]
        kept = step["kept"] or {}
        steps.append(
            {
                "pass": step["use"],
                "changed": len(step["sites"]) - len(left),
                "left": len(left),
                "promise": kept.get("promise", "–"),
                "SQNR dB": kept.get("sqnr_db"),
                "seconds": step["seconds"],
            }
        )
    table(console, steps, title=f"recipe {report['recipe']['name']}")
    stages = [
        {key.replace("_", " "): value for key, value in row.items()}
        for row in report.get("stages", ())
        if row["seconds"] >= _SHORT
    ]
    if stages:
        table(console, stages, title="where time and memory went")
    moved = list(moved_outliers(report["steps"]))
    if moved:
        table(console, moved, title="outliers before → after: middle of the sites (worst)")
    sites = [site for step in report["steps"] for site in step["sites"]]
    for line in _formats(sites):
        console.print(line, markup=False)
    reasons = Counter(
        site["reason"]
        for step in report["steps"]
        if (step["kept"] or {}).get("promise") == "close"
        for site in step["sites"]
        if site["reason"]
    )
    for reason, count in reasons.most_common(8):
        console.print(f"{count} left: {reason}", markup=False)
    for note in dict.fromkeys(note for step in report["steps"] for note in step["notes"]):
        console.print(f"note: {note}", markup=False)
    files = [{"file": name, "size": megabytes(f["bytes"])} for name, f in report["files"].items()]
    table(console, files, title="written")
    if "budget" in report:
        budget_account(console, report["budget"])
    outputs = report["verification"]["outputs"]
    if isinstance(outputs, str):
        console.print(f"verification: {outputs}")
    else:
        comparison(console, outputs)


def budget_account(console: Console, account: Mapping[str, Any]) -> None:
    """Print what was asked and reached, uniform mixes beside it, and where the loss comes from."""
    reached, asked = account["reached"], account["asked"]
    keys = ("bits", "bytes", "latency_ms", "loss")
    mix = {"format": "this mix", **reached, "loss": reached["predicted_loss"]}
    rows = [mix, *account["uniform"]]
    shown = [{"format": row["format"], **{key: row.get(key) for key in keys}} for row in rows]
    used = [key for key in ("format", *keys) if any(row[key] is not None for row in shown)]
    wanted = ", ".join(f"{name} {value:.6g}" for name, value in asked.items())
    table(console, shown, used, title=f"budget: {wanted}")
    least = "bytes" if "max_loss" in asked else "predicted loss"
    console.print(
        f"loss: {account['loss']}; by {account['measure']}. No mix within the budget has less "
        f"{least} than {reached['bound']:.4g}.",
        markup=False,
    )
    if "measured_loss" in reached:
        console.print(f"measured on held-back inputs: {reached['measured_loss']:.4g}", markup=False)
    sites = sorted(account["sites"], key=lambda site: -site["loss"])[:_SITES_SHOWN]
    columns = ("site", "format", "bytes", "loss")
    table(console, sites, columns, title="where the loss comes from: the most sensitive sites")


def _formats(sites: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How many sites are in each format, by which solver, and what it costs at their outputs."""
    done = [site for site in sites if site["format"]]
    for (name, solver), count in Counter((s["format"], s["solver"]) for s in done).items():
        by = f" by {solver}" if solver else ""
        same = [s for s in done if (s["format"], s["solver"]) == (name, solver)]
        errors = sorted(s["output_error"] for s in same if s["output_error"] is not None)
        seen = f", output error {errors[len(errors) // 2]:.1%} (median)" if errors else ""
        yield f"{count} sites in {name}{by}{seen}"


def comparison(console: Console, value: Mapping[str, Any]) -> None:
    """Print a comparison of two models: of many outputs (caches) the first and the worst."""
    outputs = value["outputs"]
    shown = outputs
    if len(outputs) > _OUTPUTS_SHOWN:
        rest = sorted(outputs[1:], key=lambda row: _decibels(row["sqnr_db"]))
        shown = [outputs[0], *rest[: _OUTPUTS_SHOWN - 1]]
    table(console, shown, title="outputs against the original")
    if shown is not outputs:
        console.print(f"and {len(outputs) - len(shown)} outputs that moved less")
    if value.get("layers"):
        table(console, value["layers"], title="inner values")


def _decibels(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("inf")


def description(console: Console, value: Mapping[str, Any], *, all_sites: bool = False) -> None:
    """Print what is in a model."""
    plain = {
        key: item for key, item in value.items() if isinstance(item, (str, int, float, type(None)))
    }
    values(console, plain)
    for key in ("inputs", "outputs"):
        table(console, value[key][:12], title=key)
    sites = value["sites"]
    if all_sites:
        table(console, sites, title="sites")
    else:
        kinds = Counter(
            (site["kind"], str(site.get("already") or site.get("refusal") or "float"))
            for site in sites
        )
        rows = [{"kind": k, "state": s, "sites": n} for (k, s), n in kinds.most_common()]
        table(console, rows, title="linear sites (--sites lists them)")
    for key in ("attention", "mlps"):
        if value.get(key):
            table(console, value[key] if all_sites else value[key][:2], title=key)


def recipes(console: Console, rows: Sequence[Row]) -> None:
    """Print the presets."""
    table(
        console,
        [
            {
                "recipe": row["name"],
                "summary": row["summary"],
                "passes": [step["use"] for step in row["pass"]],
            }
            for row in rows
        ],
    )


def passes(console: Console, rows: Sequence[Row]) -> None:
    """Print the passes."""
    table(console, rows)


def solvers(console: Console, rows: Sequence[Row]) -> None:
    """Print the solvers."""
    shown = [
        {
            **row,
            "needs": row["needs"] or "no data",
            "options": [f"{name}={default!r}" for name, default in row["options"].items()],
        }
        for row in rows
    ]
    table(console, shown)


def formats(console: Console, rows: Sequence[Row]) -> None:
    """Print the formats, or their distortion; solvers once for formats that share them."""
    table(console, rows, [name for name in rows[0] if name != "solvers"] if rows else ())
    by_solvers: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if "solvers" in row:
            families = by_solvers.setdefault(tuple(row["solvers"]), [])
            families += [] if row["family"] in families else [row["family"]]
    for solvers, families in by_solvers.items():
        console.print(f"solvers of {', '.join(families)}: {', '.join(solvers)}", markup=False)


def operators(console: Console, rows: Sequence[Row]) -> None:
    """Print the operators."""
    table(console, rows, ("operator", "inputs", "attributes", "formats", "kernels"))


def zoo(console: Console, rows: Sequence[Row]) -> None:
    """Print the zoo."""
    table(console, rows)


def evaluation(console: Console, value: Mapping[str, Any]) -> None:
    """Print what was measured, the figure that decides first, and how."""
    figures = value["figures"]
    primary = value["primary"]
    values(console, {primary: figures[primary], **figures})
    console.print(f"{value['metric']}: {value['protocol']}", markup=False)


def outliers(console: Console, rows: Sequence[Row]) -> None:
    """Print the outliers of sites, those that are not measured last, by reason."""
    measured = [row for row in rows if "not measured" not in row]
    table(console, measured, title="outliers, the tallest first")
    for reason, count in Counter(r["not measured"] for r in rows if r not in measured).items():
        console.print(f"{count} not measured: {reason}", markup=False)


def bench(console: Console, rows: Sequence[Row]) -> None:
    """Print timings."""
    table(console, rows)


def demo(console: Console, rows: Sequence[Row]) -> None:
    """Print the demo: the figures in a table, then a sentence from each model."""
    table(console, [{k: v for k, v in row.items() if k != "text"} for row in rows])
    for row in rows:
        console.print(f"[bold]{row['model']}[/]: {row['text']}", highlight=False)


def debugged(console: Console, value: Mapping[str, Any]) -> None:
    """Print where two models part, what each site costs, and the rows that leave some in float."""
    console.print(f"loss: {value['loss']}", markup=False)
    values(
        console,
        {
            "quantized model": value["quantized_loss"],
            f"float twin with its {value['places']} differences": value["replaced_loss"],
            "float twin": value["twin_loss"],
        },
    )
    parting = value["parting"]
    if parting is None:
        console.print("the loss never exceeds the threshold")
    else:
        console.print(
            f"they part at {parting['place']}, place {parting['number'] + 1} of {value['places']}: "
            f"the loss goes from {parting['before']:.4g} to {parting['after']:.4g}, over "
            f"{parting['threshold']:.4g}",
            markup=False,
        )
    effects = list(value["effects"].items())[:10]
    if effects:
        rows = [{"site": name, "loss goes down by": effect} for name, effect in effects]
        table(console, rows, title="restored alone, the ten that help most")
    _restored(console, value)
    for name, reason in list(value["fixed"].items())[:8]:
        console.print(f"not replaced: {name}: {reason}", markup=False)
    for note in value["notes"]:
        console.print(f"note: {note}", markup=False)


def _restored(console: Console, value: Mapping[str, Any]) -> None:
    found = value["restored"]
    if found is None:
        return
    if not found["places"]:
        console.print(f"nothing to restore: the loss is {found['loss']:.4g} already")
        return
    how = (
        "no smaller set is enough"
        if found["is_smallest"]
        else "none of them can be left out; not every smaller set was tried"
    )
    console.print(
        f"restore {len(found['places'])} for a loss of {found['loss']:.4g} ({how}): "
        f"{', '.join(found['places'])}",
        markup=False,
    )
    if value["rows"]:
        console.print("in the recipe:", markup=False)
    for row in value["rows"]:
        console.print(row, markup=False, highlight=False, soft_wrap=True)
    if value["recipe"]:
        console.print(f"written to {value['recipe']}", markup=False)


def trials(console: Console, value: Mapping[str, Any]) -> None:
    """Print the trials of a search, the best first."""
    ranked = sorted(value["trials"], key=lambda t: (t["loss"] is None, t["loss"] or 0.0))
    rows = [
        {"trial": t["number"], **t["options"], "loss": t["loss"], "bytes": t["nbytes"]}
        for t in ranked
    ]
    table(console, rows, title=f"loss: {value['loss']}")
    for trial in ranked:
        if trial["refused"]:
            console.print(f"trial {trial['number']} refused: {trial['refused']}", markup=False)


def reported(console: Console, value: Mapping[str, Any]) -> None:
    """Print where the page is, and what it lacks."""
    size = value["nbytes"] / 1e3
    console.print(f"{', '.join(value['artifacts'])}: {value['page']} ({size:.0f} kB)", markup=False)
    for note in value["notes"]:
        console.print(f"note: {note}", markup=False)


def targets(console: Console, rows: Sequence[Row]) -> None:
    """Print the deployment targets."""
    table(console, rows)


def verdicts(console: Console, value: Mapping[str, Any]) -> None:
    """Print what a target will do: sites counted by what runs, then everything that is amiss."""
    counts = Counter((s["execution"], s["kernel"], s["rule"]) for s in value["sites"])
    rows = [
        {"runs as": execution, "kernel": kernel, "rule": rule, "sites": count}
        for (execution, kernel, rule), count in counts.most_common()
    ]
    table(console, rows, title=f"{value['target']}: linear sites")
    amiss = [row for row in (*value["sites"], *value["wasted"]) if row["reason"]]
    for (rule, reason), count in Counter((r["rule"], r["reason"]) for r in amiss).items():
        first = next(row["site"] for row in amiss if row["reason"] == reason)
        others = f" and {count - 1} more" if count > 1 else ""
        console.print(f"{rule}: {reason} ({first}{others})", markup=False)
    for note in value["notes"]:
        console.print(f"note: {note}", markup=False)
    observed = value["observed"]
    if observed is not None:
        kernels = Counter(observed["kernels"].values())
        ran = [{"ran": kernel, "sites": count} for kernel, count in kernels.most_common()]
        table(console, ran, title=observed["note"])
        for sentence in observed["differences"]:
            console.print(f"differs: {sentence}", markup=False)
    console.print("clean" if value["is_clean"] else "not clean")


def built(console: Console, value: Mapping[str, Any]) -> None:
    """Print what was built: files, how they were verified, what will run."""
    files = [{"file": name, "size": megabytes(size)} for name, size in value["files"].items()]
    table(console, files, title=f"{value['target']} in {value['folder']}")
    values(console, value["verified"])
    verdicts(console, value["check"])


def plan(console: Console, value: Mapping[str, Any]) -> None:
    """Print a plan: its stages, what they add up to, and sentences."""
    rows = [
        {
            "stage": stage["step"],
            "part": stage["part"] or "–",
            "times": stage["count"],
            "memory": _size(stage["memory"]),
            "resident": _size(stage["resident"]),
            "seconds": round(stage["seconds"], 1),
            "disk": _size(stage["disk"] + stage["spilled"]),
        }
        for stage in value["stages"]
        if stage["seconds"] >= 0.05 or stage["memory"] == value["memory"] or stage["part"]
    ]
    table(console, rows, title=f"plan of {value['recipe']}")
    peak = value["peak"]
    console.print(
        f"Peak {_size(value['memory'])} ({_size(value['resident'])} resident) in {peak['step']}"
        f"{': ' + peak['part'] if peak['part'] else ''}; {duration(value['seconds'])}; "
        f"{_size(value['disk'])} of disk.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for sentence in (*value["hints"], *value["assumptions"], *value["unforeseen"]):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def plans(console: Console, values: Sequence[Mapping[str, Any]]) -> None:
    """Print what several numbers of workers take, beside the first of them."""
    first = values[0]
    rows = [
        {
            "workers": value["workers"],
            "time": duration(value["seconds"]),
            "times as fast": round(first["seconds"] / max(value["seconds"], 1e-9), 2),
            "memory": _size(value["memory"]),
        }
        for value in values
    ]
    table(console, rows, title=f"plan of {first['recipe']}")
    for sentence in (*first["assumptions"], *first["unforeseen"]):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"
