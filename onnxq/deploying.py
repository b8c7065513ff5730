"""Verbs of the command line about where a model runs: what there is, what it does, a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.console import Json, progress_bars, show
from onnxq.runtime.remote import local_path

__all__ = ["app"]

app = typer.Typer()

_Artifact = Annotated[
    Path,
    typer.Argument(
        help="An artifact or any model: folder, .onnx or URL.",
        parser=local_path,
        metavar="ARTIFACT",
    ),
]
_Target = Annotated[str, typer.Option("--target", "-t", help="A name: `onnxq targets`.")]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Option of the target: key=value. Repeatable.")
]


@app.command()
def targets(as_json: Json = False) -> None:
    """List where models can be deployed, and the options of each."""
    from onnxq import catalog, tables

    show(catalog.target_values(), as_json, tables.targets)


@app.command()
def check(
    artifact: _Artifact,
    target: _Target,
    set_: _Settings = None,
    run: Annotated[
        bool, typer.Option(help="Also run it, and compare with the kernels that really ran.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="What to run it on; random inputs when not given.")
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Exit with 1 when a site does not run as it was meant.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a target will do with each site of a model, before it is deployed."""
    from onnxq import api, tables

    with progress_bars() as progress:
        progress(f"check for {target}", 0, 0)
        verdicts = api.check(artifact, target, set=set_ or (), run=run, data=data)
    show(verdicts.to_dict(), as_json, tables.verdicts)
    agrees = verdicts.observed is None or not verdicts.observed.differences
    if strict and not (verdicts.is_clean and agrees):
        raise typer.Exit(1)


@app.command()
def build(
    artifact: _Artifact,
    target: _Target,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    set_: _Settings = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a folder with another model.")] = False,
    as_json: Json = False,
) -> None:
    """Write a folder that runs on a target, verified."""
    from onnxq import api, tables

    with progress_bars() as progress:
        progress(f"build for {target}", 0, 0)
        built = api.build(artifact, target, out, set=set_ or (), overwrite=overwrite)
    show(built.to_dict(), as_json, tables.built)
