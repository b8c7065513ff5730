"""The command line: a thin layer over `onnxq.api`, with progress, tables and exit codes.

Exit codes: 0 done; 1 refused, with the reason on standard error; 2 wrong usage.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from onnxq import deploying, explaining, foreseeing, listing, searching, working
from onnxq.console import Json, progress_bars, say_error, show
from onnxq.errors import OnnxqError, UsageError
from onnxq.quality import METRICS
from onnxq.runtime.remote import local_path
from onnxq.working import beside

app = typer.Typer(
    name="onnxq",
    help="Turn trained models into verified, quantized ONNX artifacts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(listing.app)
app.add_typer(deploying.app)
app.add_typer(working.app)
app.add_typer(explaining.app)
app.add_typer(foreseeing.app)
app.add_typer(searching.app)

Model = Annotated[
    Path,
    typer.Argument(
        help="An ONNX file, a folder that holds one, or a URL (s3://, hf://, https://).",
        parser=local_path,
        metavar="MODEL",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Inputs: a folder of .npz, texts, images or audio, or one such file."),
]
Tokenizer = Annotated[
    Path | None, typer.Option(help="tokenizer.json; the one beside the model when not given.")
]
Overwrite = Annotated[bool, typer.Option(help="Replace a folder that holds another model.")]


def main() -> None:
    """Run the command line; refusals print their sentence and exit with 1."""
    try:
        app()
    except OnnxqError as error:
        is_usage = isinstance(error, UsageError)
        say_error(error, "wrong usage" if is_usage else "refused")
        sys.exit(2 if is_usage else 1)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A .gguf or .onnx file, a folder, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    task: Annotated[str, typer.Option(help="E.g. text-generation; found out when auto.")] = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX and check it against the framework it came from."""
    from onnxq import export as room
    from onnxq import tables

    with progress_bars() as progress:
        progress(f"export {source}", 0, 0)  # exporters do not tell how far they are
        exported = room.export_model(source, out, task=task, overwrite=overwrite)
    show(tables.exported_values(exported), as_json, tables.exported)


@app.command()
def quantize(
    model: Model,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the artifact, or a URL.")],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="A preset or a .toml; int8, or budget with a budget."),
    ] = None,
    data: Data = None,
    bits: Annotated[
        float | None, typer.Option(help="Budget: mean bits per weight of the sites counted.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Budget: of the model files, e.g. 60MB.")] = None,
    latency: Annotated[
        str | None, typer.Option(help="Budget: of a run on the first sample, e.g. 40ms.")
    ] = None,
    max_loss: Annotated[
        str | None, typer.Option(help="Smallest model under a loss, e.g. 1% or 0.02.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Which sites may take which formats: a name or a .toml.")
    ] = None,
    menu: Annotated[
        str | None, typer.Option(help="Formats to choose from, e.g. int4_g128,lut3,trellis2_hyb.")
    ] = None,
    measure: Annotated[
        str,
        typer.Option(
            help="Of sensitivity: marginal, fisher, noise, kl, hessian_trace, h, weights."
        ),
    ] = "marginal",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override: pass.key=value. Repeatable.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Run the model to check every pass and the artifact.")
    ] = True,
    overwrite: Overwrite = False,
    tokenizer: Tokenizer = None,
    window: Annotated[int, typer.Option(help="Of a text: tokens in a sample.")] = 512,
    limit: Annotated[int | None, typer.Option(help="Read at most this many samples.")] = None,
    workers: Annotated[int, typer.Option(help="Sites solved at once, a process each.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads of all workers together; the cores when not given.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Where workers are: processes, threads, ray or dask.")
    ] = "processes",
    address: Annotated[str | None, typer.Option(help="Of the ray or dask cluster.")] = None,
    on_failure: Annotated[
        str, typer.Option(help="At a site whose solver fails: stop, or leave it in float.")
    ] = "stop",
    work: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps finished sites; OUT.work, until all is done."),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Keep finished sites, and go on where a killed run stopped.")
    ] = True,
    log: Annotated[
        Path | None,
        typer.Option(help="File for what happens, a line of JSON each; OUT.log.jsonl."),
    ] = None,
    profile: Annotated[
        bool, typer.Option(help="Profile each stage into OUT.profile; print what took most.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(help="Stay below, e.g. 8GB: more on disk, fewer workers, the same bytes."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Quantize a model by a recipe and write a verified artifact."""
    from onnxq import api, tables

    chosen = working.chosen_workers(workers, threads, backend, address, on_failure)
    here = working.local_place(out)
    with working.work_beside(here, work, resume) as kept, progress_bars() as progress:
        quantized = api.quantize(
            model,
            recipe,
            bits=bits,
            size=size,
            latency=latency,
            max_loss=max_loss,
            policy=policy,
            menu=tuple(word.strip() for word in (menu or "").split(",") if word.strip()),
            measure=measure,
            data=data,
            out=out,
            set=set_ or (),
            check="auto" if check else "off",
            overwrite=overwrite,
            tokenizer=tokenizer,
            window=window,
            limit=limit,
            workers=chosen,
            work=kept,
            log=log or beside(here, "log.jsonl"),
            profile=beside(here, "profile") if profile else None,
            memory=memory,
            progress=progress,
        )
    if profile:
        working.show_profiles(beside(here, "profile"))
    assert quantized.artifact is not None
    show(quantized.artifact_values(), as_json, tables.artifact)


@app.command()
def inspect(
    model: Model,
    sites: Annotated[bool, typer.Option(help="List every site.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is in a model: inputs, operators, linear sites, attention, MLPs."""
    from onnxq import tables
    from onnxq.graph import describe, load

    show(
        describe(load(model)),
        as_json,
        lambda console, value: tables.description(console, value, all_sites=sites),
    )


@app.command()
def compare(
    reference: Model,
    candidate: Annotated[Path, typer.Argument(help="The model to measure.")],
    data: Data = None,
    layers: Annotated[
        bool, typer.Option(help="Also compare inner values, layer by layer.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run two models on the same inputs and measure how far apart they are."""
    from onnxq import api, tables

    with progress_bars() as progress:
        comparison = api.compare(reference, candidate, data, layers=layers, progress=progress)
    show(comparison.to_dict(), as_json, tables.comparison)


@app.command()
def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(help="An ONNX file or folder; may be left out with --task."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", "-m", help=f"One of {', '.join(METRICS)}; else perplexity."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Data and metrics of a packaged model: onnxq models.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", "-r", help="The model to agree with.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", "--text", help="A text (perplexity), clips with .txt (wer), or inputs."
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    window: Annotated[int, typer.Option(help="Tokens in a window of perplexity.")] = 512,
    windows: Annotated[int, typer.Option(help="Windows at most, from the end of the text.")] = 16,
    limit: Annotated[int | None, typer.Option(help="Samples or clips at most.")] = None,
    output: Annotated[str | None, typer.Option(help="Name of the output to judge.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Right classes: .npy, or text with one on a line.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least probability that counts as yes, or as a box.")
    ] = None,
    boxes: Annotated[str | None, typer.Option(help="Layout of boxes: xyxy or cxcywh.")] = None,
    blank: Annotated[int | None, typer.Option(help="CTC's blank symbol.")] = None,
    as_json: Json = False,
) -> None:
    """Measure quality: perplexity, similarity, agreement, detection, reading, word errors."""
    from onnxq import api, tables

    given = {
        "output": output,
        "labels": labels,
        "threshold": threshold,
        "layout": boxes,
        "blank": blank,
    }
    options = {name: value for name, value in given.items() if value is not None}
    with progress_bars() as progress:
        result = api.evaluate(
            model,
            metric=metric,
            task=task,
            reference=reference,
            data=data,
            tokenizer=tokenizer,
            window=window,
            windows=windows,
            limit=limit,
            progress=progress,
            **options,
        )
    show(result.to_dict(), as_json, tables.evaluation)


@app.command()
def outliers(
    model: Model,
    data: Annotated[Path, typer.Option(help="Inputs, as for quantize.")],
    after: Annotated[
        Path | None, typer.Argument(help="The model after a change, to compare with.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Only this site.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Magnitude by channel as .svg or .html: of --site or worst.")
    ] = None,
    tokenizer: Tokenizer = None,
    window: Annotated[int, typer.Option(help="Of a text: tokens in a sample.")] = 512,
    limit: Annotated[int, typer.Option(help="Read at most this many samples.")] = 4,
    as_json: Json = False,
) -> None:
    """Measure outliers by site: max-to-RMS, kurtosis, QSUR; of one model, or before and after."""
    from onnxq import tables
    from onnxq.outliers import outlier_rows

    with progress_bars() as progress:
        progress("measure outliers", 0, 0)
        rows = outlier_rows(
            model,
            after,
            data=data,
            site=site,
            plot=plot,
            tokenizer=tokenizer,
            window=window,
            limit=limit,
        )
    show(rows, as_json, tables.outliers)


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(help="Models to time against one another.")],
    data: Data = None,
    rounds: Annotated[int, typer.Option(help="Alternating rounds.")] = 20,
    threads: Annotated[int | None, typer.Option(help="Threads inside an operator.")] = None,
    as_json: Json = False,
) -> None:
    """Measure latency (alternating), tokens per second, memory, size and bits per weight."""
    from onnxq import api, tables

    with progress_bars() as progress:
        rows = api.bench(models, data, rounds=rounds, threads=threads, progress=progress)
    show(rows, as_json, tables.bench)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the models are written.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """The main job on a real model: export, quantize three ways, measure, generate."""
    from onnxq import tables
    from onnxq.demo import run_demo

    with progress_bars() as progress:
        rows = run_demo(folder, progress)
    show(rows, as_json, tables.demo)
