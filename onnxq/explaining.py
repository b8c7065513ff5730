"""Verbs of the command line that explain a quantized model: where it is wrong, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.console import Json, progress_bars, show

__all__ = ["app"]

app = typer.Typer()

_Data = Annotated[
    Path | None,
    typer.Option(help="Inputs, as for quantize; those of the artifact, else random ones."),
]
_Tokenizer = Annotated[
    Path | None, typer.Option(help="tokenizer.json; the one beside the model when not given.")
]
_Window = Annotated[
    int | None, typer.Option(help="Of a text: tokens in a sample; as the artifact's data.")
]
_Limit = Annotated[
    int | None, typer.Option(help="Read at most this many samples; as the artifact's data.")
]


@app.command()
def debug(
    original: Annotated[Path, typer.Argument(help="The float model: folder or .onnx.")],
    quantized: Annotated[Path, typer.Argument(help="An artifact made from it, or any form of it.")],
    data: _Data = None,
    max_loss: Annotated[
        str | None,
        typer.Option(help="Restore as few sites as reach this loss: 0.01, 1%, or 20dB."),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(help="They part where the loss exceeds this; --max-loss, else half of it."),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(help="auto, kl, noise, similarity, agreement, detection or reading."),
    ] = "auto",
    output: Annotated[str | None, typer.Option(help="Name of the output to judge.")] = None,
    tokenizer: _Tokenizer = None,
    window: _Window = None,
    limit: _Limit = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the changed recipe here (.toml).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find where a quantized model parts from its float model, and which sites to restore."""
    from onnxq import api, tables

    with progress_bars() as progress:
        found = api.debug(
            original,
            quantized,
            data=data,
            max_loss=max_loss,
            threshold=threshold,
            loss=loss,
            output=output,
            tokenizer=tokenizer,
            window=window,
            limit=limit,
            out=out,
            progress=progress,
        )
    show(found.to_dict(), as_json, tables.debugged)


@app.command()
def report(
    artifacts: Annotated[
        list[Path], typer.Argument(help="One artifact to explain, or several to compare.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page: report.html.")],
    original: Annotated[
        Path | None, typer.Option(help="The float model; the one the artifact was made from.")
    ] = None,
    data: _Data = None,
    run: Annotated[
        bool, typer.Option(help="Measure losses, speed and outputs; or only what is written.")
    ] = True,
    sites: Annotated[
        int, typer.Option(help="Measure what restoring a site brings, of so many sites.", min=0)
    ] = 48,
    labels: Annotated[
        Path | None, typer.Option(help="Names of classes: a text with one on a line.")
    ] = None,
    tokenizer: _Tokenizer = None,
    window: _Window = None,
    limit: _Limit = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page that explains an artifact, or compares several."""
    from onnxq import api, tables

    with progress_bars() as progress:
        written = api.report(
            artifacts,
            out,
            original=original,
            data=data,
            run=run,
            sites=sites,
            labels=labels or (),
            tokenizer=tokenizer,
            window=window,
            limit=limit,
            progress=progress,
        )
    show(written.to_dict(), as_json, tables.reported)
