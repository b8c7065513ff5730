"""The verb of the command line that searches over options of recipes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxq.console import Json, progress_bars, show

__all__ = ["app"]

app = typer.Typer()


@app.command()
def tune(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or a folder that holds one.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the best artifact.")],
    data: Annotated[Path, typer.Option(help="Inputs, as for quantize.")],
    try_: Annotated[list[str], typer.Option("--try", help="pass.key=first|second|... Repeatable.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="A preset or a .toml.")
    ] = None,
    trials: Annotated[int, typer.Option(help="At most, those of an earlier run among them.")] = 12,
    bits: Annotated[float | None, typer.Option(help="Budget, as for quantize.")] = None,
    size: Annotated[str | None, typer.Option(help="Budget, as for quantize.")] = None,
    storage: Annotated[
        Path | None, typer.Option(help="File of finished trials; one in the cache when left out.")
    ] = None,
    window: Annotated[int, typer.Option(help="Of a text: tokens in a sample.")] = 512,
    limit: Annotated[int | None, typer.Option(help="Read at most this many samples.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a folder of another model.")] = False,
    as_json: Json = False,
) -> None:
    """Try options of a recipe and keep the best by the loss on inputs it has not seen."""
    from onnxq import tables, tuning

    choices = tuning.choices_of(try_)
    how: dict[str, Any] = {"window": window, "limit": limit, "overwrite": overwrite}
    with progress_bars() as progress:
        found = tuning.tune(
            model,
            recipe,
            choices,
            data=data,
            trials=trials,
            out=out,
            storage=storage,
            progress=progress,
            **{**how, "bits": bits, "size": size},
        )
    value = {
        "loss": found.loss,
        "best": dataclasses.asdict(found.best),
        "trials": [dataclasses.asdict(trial) for trial in found.trials],
    }
    show(value, as_json, tables.trials)
