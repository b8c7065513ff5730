"""``python -m tests.bench scale``: a decoder larger than memory, generated and quantized.

Generates a float16 decoder of the shape of Llama-2-7B (13.5 GB; `onnxq.models.generated`), then
quantizes it by recipes, each in a fresh process, and prints peak resident memory, seconds and bytes
written: ``int4`` to nearest; rotated, then 4 bits to nearest; and GPTQ of the first blocks, on
random tokens. Nothing is run in ONNX Runtime as a whole: that would take the memory of the model.

Beside each figure is what `onnxq.plan` foresaw. Then plans of the shape of Llama-2-70B are printed,
which has no weights here: the same recipes, all blocks, and GPTQ within 10 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import onnxq
from onnxq.errors import UsageError
from onnxq.models.generated import SEVEN_BILLION, SEVENTY_BILLION, GeneratedLlama
from onnxq.models.smollm2 import gguf_path
from onnxq.runtime.machine import machine

RUN = """
import json, pathlib, sys, threading, time
from onnxq import quantize

def status(name):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split(name + ":")[1].split()[0]) * 1024

def watch():
    while not ended.wait(0.1):
        anon[0] = max(anon[0], status("RssAnon"))

anon, ended = [0], threading.Event()
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
given = json.loads(sys.argv[1])
out = pathlib.Path(given["out"])
data = given.pop("data", None)
if data is not None:
    import numpy
    stored = numpy.load(data)
    count = len(stored["input_ids"])
    data = [{name: stored[name][i : i + 1] for name in stored.files} for i in range(count)]
done = quantize(given["model"], given["recipe"], out=out, set=given["set"], data=data, check="off")
seconds = time.perf_counter() - start
ended.set()
print(json.dumps({"seconds": seconds, "peak": status("VmHWM"), "anon": anon[0],
                  "bytes": done.artifact.nbytes, "sites": len(done.quantized_sites)}))
"""


def steps(layers: int, blocks: int, data: Path) -> dict[str, dict]:
    """Recipe and overrides of each step."""
    nearest = ["quantize_weights.solver=nearest"]
    per_layer = 7
    rest = [f"node_MatMul_{i}" for i in range(blocks * per_layer, layers * per_layer + 1)]
    some = [f"quantize_weights.exclude={json.dumps(rest)}"]
    return {
        "int4": {"recipe": "int4", "set": []},
        "rotated, 4 bits": {"recipe": "quarot_w4a8", "set": nearest},
        f"GPTQ of {blocks} blocks": {"recipe": "int4_gptq", "set": some, "data": str(data)},
    }


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench scale", description=__doc__)
    parser.add_argument("--folder", type=Path, help="holds the model: 13.5 GB")
    parser.add_argument("--plans", action="store_true", help="print plans only, run nothing")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=11008)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--blocks", type=int, default=3, help="rounded by GPTQ")
    parser.add_argument("--steps", nargs="*", help="some of the steps, by their first letters")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.plans:
        extrapolate()
        compare_workers()
        return
    if options.folder is None:
        parser.error("give --folder, or --plans")
    shape = GeneratedLlama(
        layers=options.layers,
        width=options.width,
        hidden=options.hidden,
        heads=options.width // 128,
        kv_heads=options.width // 128,
        vocabulary=options.vocabulary,
    )
    model = generated(shape, options.folder)
    data = options.folder / "tokens.npz"
    rng = np.random.default_rng(0)
    ids = rng.integers(0, options.vocabulary, (8, 128))
    np.savez(data, input_ids=ids, position_ids=np.tile(np.arange(128), (8, 1)))
    rows = []
    for name, how in steps(options.layers, options.blocks, data).items():
        if options.steps and not name.startswith(tuple(options.steps)):
            continue
        rows.append({"step": name, **foreseen(model, how), **one(model, how, options.folder)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    size = sum(file.stat().st_size for file in model.parent.iterdir())
    print(f"{shape.parameters / 1e9:.2f} billion weights, {size / 1e9:.1f} GB; {machine()}")
    print("| step | sites | written GB | peak GB | foreseen | s | foreseen |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        sizes = f"{row['bytes'] / 1e9:.2f} | {row['peak'] / 1e9:.2f} | {row['plan'] / 1e9:.2f}"
        times = f"{row['seconds']:.0f} | {row['plan_seconds']:.0f}"
        print(f"| {row['step']} | {row['sites']} | {sizes} | {times} |")
    extrapolate()
    if options.json:
        options.json.write_text(json.dumps({"machine": str(machine()), "rows": rows}, indent=1))


def foreseen(model: Path, how: dict) -> dict:
    """Peak memory and seconds of a step, from shapes."""
    data = samples(Path(how["data"])) if "data" in how else None
    plan = onnxq.plan(model, how["recipe"], set=how["set"], data=data, check="off")
    return {"plan": plan.resident, "plan_anon": plan.memory, "plan_seconds": plan.seconds}


def samples(file: Path) -> list[dict[str, np.ndarray]]:
    """Calibration samples, as the steps take them."""
    stored = np.load(file)
    count = len(stored["input_ids"])
    return [{name: stored[name][i : i + 1] for name in stored.files} for i in range(count)]


def extrapolate() -> None:
    """Print the plans of 70 billion weights."""
    model = SEVENTY_BILLION.model(None)
    print(f"\n{SEVENTY_BILLION.parameters / 1e9:.0f} billion weights, planned:")
    print("| recipe | peak GB | of it memory | hours | disk GB | largest stage |")
    print("|---|---:|---:|---:|---:|---|")
    nearest = ["quantize_weights.solver=nearest"]
    for name, recipe, overrides, memory in (
        ("`int4`", "int4", [], None),
        ("rotated, 4 bits", "quarot_w4a8", nearest, None),
        ("`int4_gptq`", "int4_gptq", [], None),
        ("`int4_gptq --memory 10GB`", "int4_gptq", [], "10GB"),
    ):
        try:
            plan = onnxq.plan(model, recipe, set=overrides, check="off", memory=memory)
        except UsageError as error:
            print(f"{name}: {error}")
            continue
        sizes = f"{plan.resident / 1e9:.1f} | {plan.memory / 1e9:.1f}"
        times = f"{plan.seconds / 3600:.1f} | {plan.disk / 1e9:.0f}"
        print(f"| {name} | {sizes} | {times} | {plan.peak.part or plan.peak.step} |")


def compare_workers() -> None:
    """Print how long GPTQ takes with more and more workers, by the plan."""
    smollm2 = GeneratedLlama(
        layers=30, width=576, hidden=1536, heads=9, kv_heads=3, vocabulary=49152
    )
    models = {"SmolLM2-135M": smollm2, "7B": SEVEN_BILLION, "70B": SEVENTY_BILLION}
    counts = (1, 2, 4, 8, 16, 32, 64)
    free = ["quantize_weights.flow=one_shot", "quantize_weights.cut=blocks"]
    print(f"\nHours of GPTQ on 128 windows of 512 tokens, planned; a worker is {machine()}")
    print(f"| model | statistics | {' | '.join(map(str, counts))} |")
    print("|---|---|" + "---:|" * len(counts))
    for name, shape in models.items():
        model = shape.model(None)
        for how, overrides in (("sequential", []), ("one_shot, blocks", free)):
            hours = []
            for count in counts:
                plan = onnxq.plan(model, "int4_gptq", set=overrides, check="off", workers=count)
                hours.append(f"{plan.seconds / 3600:.3g}")
            print(f"| {name} | {how} | {' | '.join(hours)} |", flush=True)


def generated(shape: GeneratedLlama, folder: Path) -> Path:
    """The model, generated unless this very one is there."""
    place = folder / "float"
    mark = place / "shape.txt"
    if not (mark.is_file() and mark.read_text() == repr(shape)):
        start = time.perf_counter()
        shape.write(place, gguf_path(), progress=lambda what, done, total: None)
        mark.write_text(repr(shape))
        print(f"generated in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return place / "model.onnx"


def one(model: Path, how: dict, folder: Path) -> dict:
    """Quantize in a fresh process; what is written goes again."""
    with tempfile.TemporaryDirectory(prefix="out-", dir=folder) as scratch:
        given = {**how, "model": str(model), "out": f"{scratch}/artifact"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", RUN, json.dumps(given)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "TMPDIR": scratch},
        )
    if done.returncode != 0:
        sys.exit(f"{how['recipe']} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
