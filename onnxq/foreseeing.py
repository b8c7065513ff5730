"""The verb of the command line that foresees a run: `onnxq plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxq.console import Json, progress_bars, show
from onnxq.errors import UsageError
from onnxq.runtime.remote import local_path

__all__ = ["app"]

app = typer.Typer()


@app.command()
def plan(
    model: Annotated[
        Path,
        typer.Argument(help="As for quantize; no weight is read.", parser=local_path),
    ],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A preset or a .toml.")] = "int8",
    data: Annotated[
        Path | None, typer.Option(help="As for quantize: only shapes count; assumed without.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override: pass.key=value. Repeatable.")
    ] = None,
    check: Annotated[bool, typer.Option(help="As for quantize: run the model to check.")] = True,
    tokenizer: Annotated[Path | None, typer.Option(help="As for quantize.")] = None,
    window: Annotated[int, typer.Option(help="Of a text: tokens in a sample.")] = 512,
    limit: Annotated[int | None, typer.Option(help="Read at most this many samples.")] = None,
    workers: Annotated[
        str, typer.Option(help="Sites solved at once; several numbers compare them: 1,2,4,8.")
    ] = "1",
    memory: Annotated[
        str | None, typer.Option(help="Plan a run that stays below, e.g. 8GB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Foresee memory, time and disk of a run, stage by stage, without running it."""
    from onnxq import foresight, tables

    counts = _counts(workers)
    with progress_bars() as progress:
        progress("plan", 0, len(counts))
        outline = foresight.outlined(
            model,
            recipe,
            data=data,
            set=set_ or (),
            check="auto" if check else "off",
            tokenizer=tokenizer,
            window=window,
            limit=limit,
        )
        plans = []
        for number, count in enumerate(counts):
            progress("plan", number, len(counts))
            plans.append(foresight.planned(outline, count, memory))
    value: Any = [one.to_dict() for one in plans]
    if len(plans) == 1:
        show(value[0], as_json, tables.plan)
    else:
        show(value, as_json, tables.plans)


def _counts(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--workers {text!r}: give one number, or several with commas: 1,2,4.")
    return [int(word) for word in words]
