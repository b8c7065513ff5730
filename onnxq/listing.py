"""Verbs of the command line that list what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxq.console import Json, progress_bars, show

__all__ = ["app"]

app = typer.Typer()


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the presets."""
    from onnxq import tables
    from onnxq.passes.recipe import load_recipe, preset_names

    rows = [load_recipe(name).to_dict() for name in preset_names()]
    show(rows, as_json, tables.recipes)


@app.command()
def passes(as_json: Json = False) -> None:
    """List the passes, their promises and their options."""
    from onnxq import catalog, tables

    show(catalog.pass_values(), as_json, tables.passes)


@app.command()
def solvers(as_json: Json = False) -> None:
    """List the solvers, what they need of calibration data, and their options."""
    from onnxq import catalog, tables

    show(catalog.solver_values(), as_json, tables.solvers)


@app.command()
def formats(
    distortion: Annotated[
        bool, typer.Option(help="Measure the squared error on 2^20 weights of N(0, 1).")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="A name, or a pattern of listed ones. Repeatable.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All spans of integers too.")] = False,
    as_json: Json = False,
) -> None:
    """List the weight formats: bits per weight (4096 x 4096), operators, solvers; or distortion."""
    from onnxq import catalog, tables

    if distortion:
        with progress_bars() as progress:
            rows = catalog.distortion_values(only or (), every=every, progress=progress)
    else:
        rows = catalog.format_values(only or (), every=every)
    show(rows, as_json, tables.formats)


@app.command()
def operators(as_json: Json = False) -> None:
    """List the operators of onnxq that multiply by stored weights, their formats and kernels."""
    from onnxq import catalog, tables

    show(catalog.operator_values(), as_json, tables.operators)


@app.command()
def models(as_json: Json = False) -> None:
    """List the real models and data sets that examples and results use."""
    from onnxq import catalog, tables

    show(catalog.zoo_values(), as_json, tables.zoo)
