import dataclasses
import functools
import itertools
import json
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import onnxq
from onnxq.cli import app
from onnxq.errors import OnnxqError, UsageError
from onnxq.models.generated import SEVENTY_BILLION, GeneratedLlama
from onnxq.models.smollm2 import gguf_path
from onnxq.planning import rates
from onnxq.planning.sizes import Sizes
from onnxq.runtime.measured_table import MeasuredTable

GPTQ, NEAREST = "int4_gptq", "int4"
WIDE = GeneratedLlama(layers=1, width=512, hidden=1536, heads=8, kv_heads=4, vocabulary=16000)
TALL = GeneratedLlama(layers=1, width=128, hidden=3584, heads=2, kv_heads=2, vocabulary=1000)

RUN = """
import json, pathlib, sys, threading
import numpy as np
import onnxq

def status(name):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split(name + ":")[1].split()[0]) * 1024

def watch():
    while not done.wait(0.005):
        found[0] = max(found[0], status("RssAnon"))

given = json.loads(sys.argv[1])
found, done = [0], threading.Event()
threading.Thread(target=watch, daemon=True).start()
data = given["data"] and [{k: np.array(v) for k, v in one.items()} for one in given["data"]]
onnxq.quantize(given["model"], given["recipe"], data=data, out=given["out"], check="off",
               memory=given["memory"])
done.set()
print(status("VmHWM"), found[0])
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a generated decoder, by its shape."""
    made = {}

    def write(shape):
        if shape not in made:
            made[shape] = tmp_path_factory.mktemp("model")
            shape.write(made[shape], gguf_path())
        return made[shape]

    return write


def samples(recipe):
    ids = np.random.default_rng(0).integers(0, 1000, (4, 1, 64))
    at = np.arange(64)[None]
    return [{"input_ids": one, "position_ids": at} for one in ids] if recipe == GPTQ else None


@pytest.fixture(scope="module")
def run(written, tmp_path_factory):
    """Peak resident and anonymous memory of a run in a fresh process, and the folder it wrote."""

    @functools.cache
    def measured(shape, recipe, memory=None):
        out = tmp_path_factory.mktemp("run") / "out"
        data = samples(recipe)
        given = {"model": str(written(shape)), "recipe": recipe, "out": str(out), "memory": memory}
        given["data"] = data and [{k: v.tolist() for k, v in one.items()} for one in data]
        command = [sys.executable, "-P", "-c", RUN, json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return (*map(int, done.stdout.split()[-2:]), out)

    return measured


def plan(folder, recipe, **options):
    return onnxq.plan(folder, recipe, data=samples(recipe), check="off", **options)


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("recipe", [NEAREST, GPTQ])
def test_the_peak_is_what_a_fresh_process_takes(written, run, shape, recipe):
    foreseen = plan(written(shape), recipe).resident
    measured, _, _ = run(shape, recipe)
    assert abs(foreseen - measured) <= max(0.15 * measured, 40e6), (foreseen, measured)


def test_a_larger_model_takes_no_less():
    found = []
    for width in (256, 512, 1024):
        shape = GeneratedLlama(layers=2, width=width, hidden=3 * width, heads=4, vocabulary=4000)
        made = onnxq.plan(shape.model(None), GPTQ, check="off", limit=8, window=64)
        found.append((made.memory, made.resident, made.seconds, made.disk))
    for smaller, larger in itertools.pairwise(found):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))


@pytest.mark.parametrize(
    ("recipe", "overrides"), [("quarot_w4a8", ["quantize_weights.solver=nearest"]), (GPTQ, [])]
)
def test_weights_need_no_content(recipe, overrides):
    shape = dataclasses.replace(SEVENTY_BILLION, layers=2)
    made = onnxq.plan(shape.model(None), recipe, set=overrides, check="off", limit=8)
    assert made.memory > 1e9
    assert not made.unforeseen


def test_what_learns_is_said_not_guessed():
    model = WIDE.model(None)
    made = onnxq.plan(model, "ostquant_w4a4", check="off", limit=4)
    assert any("learn_rotation cannot be foreseen" in sentence for sentence in made.unforeseen)
    assert "learn_rotation" not in {stage.step for stage in made.stages}
    with pytest.raises(UsageError, match="--memory cannot be kept"):
        onnxq.plan(model, "ostquant_w4a4", check="off", limit=4, memory="8GB")


def test_a_bound_is_kept_and_changes_no_byte(written, run):
    free = plan(written(TALL), GPTQ)
    bound = free.memory - 50_000_000
    assert plan(written(TALL), GPTQ, memory=bound).settings.hessians_on_disk
    _, roomy, first = run(TALL, GPTQ)
    _, bounded, second = run(TALL, GPTQ, bound)
    assert bounded < bound < roomy
    for name in ("model.onnx", "model.onnx.data"):
        files = [folder / name for folder in (first, second)]
        assert files[0].exists() == files[1].exists()
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()


def test_a_bound_that_nothing_fits_says_what_would(written):
    with pytest.raises(UsageError, match=r"does not fit 50 MB: .* Give --memory (\d+)MB\.") as told:
        plan(written(TALL), GPTQ, memory="50MB")
    enough = str(told.value).split("Give --memory ")[1].split(".")[0]
    assert plan(written(TALL), GPTQ, memory=enough).settings.hessians_on_disk


def test_workers_take_memory_and_save_time(written):
    one, four = (plan(written(WIDE), GPTQ, workers=count) for count in (1, 4))
    assert four.memory > one.memory
    walk = [sum(s.seconds for s in p.stages if s.part.startswith("solve")) for p in (one, four)]
    assert walk[1] < walk[0]


def test_checks_are_part_of_the_plan(written):
    checked = onnxq.plan(written(WIDE), "int4")
    plain = onnxq.plan(written(WIDE), "int4", check="off")
    assert {"check", "compare"} <= {stage.step for stage in checked.stages}
    assert not {"check", "compare"} & {stage.step for stage in plain.stages}
    assert checked.memory > plain.memory


def test_the_command_line(written):
    runner = CliRunner()
    folder = str(written(TALL))
    shown = runner.invoke(app, ["plan", folder, "-r", "int4_gptq", "--limit", "4"])
    assert shown.exit_code == 0, shown.output
    assert "Peak" in shown.output
    assert "are assumed" in shown.output
    told = runner.invoke(app, ["plan", folder, "-r", "int4", "--no-check", "--json"])
    value = json.loads(told.output)
    assert value["memory"] == max(stage["memory"] for stage in value["stages"])
    several = runner.invoke(
        app, ["plan", folder, "-r", "int4_gptq", "--limit", "4", "--workers", "1,2", "--json"]
    )
    assert [one["workers"] for one in json.loads(several.output)] == [1, 2]
    with pytest.raises(OnnxqError, match="several with commas"):
        runner.invoke(app, ["plan", folder, "--workers", "two"], catch_exceptions=False)


def test_rates_are_measured_once(tmp_path, monkeypatch):
    table = MeasuredTable("rates", tmp_path)
    first = rates.Rates(table).multiply
    monkeypatch.setattr(rates, "_seconds", lambda run: pytest.fail("measured again"))
    assert rates.Rates(MeasuredTable("rates", tmp_path)).multiply == first


def with_zeros(text, **shapes):
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    for name, shape in shapes.items():
        tensor = ir.tensor(np.zeros(shape, np.float32), name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(shape))
        value.dtype = tensor.dtype
        for node in model.graph:
            for index, other in enumerate(node.inputs):
                if other is not None and other.name == name:
                    node.replace_input_with(index, value)
        model.graph.register_initializer(value)
    return model


def test_a_cache_is_no_token_and_a_convolution_multiplies_once_a_pixel():
    text = """
    g (int64[n, t] ids, float[n, 3, past, 64] keys)
        => (float[n, t, 32] y, float[n, 3, past, 64] k) {
        x = Gather(table, ids)
        y = MatMul(x, w)
        k = Identity(keys)
    }
    """
    model = with_zeros(text, table=(100, 16), w=(16, 32))
    sample = {"ids": np.zeros((1, 20), np.int64), "keys": np.zeros((1, 3, 500, 64), np.float32)}
    for sizes in (Sizes.of([sample]), Sizes.assumed(model, 1, 20)):
        assert sizes.tokens == 20
        assert sizes.bound(model).products(model.graph) == 20 * 16 * 32
    assert Sizes.assumed(model, 1, 20).samples[0]["keys"] == (1, 3, 0, 64)
    picture = """
    g (float[1, 3, 8, 8] x) => (float[1, 5, 4, 4] y) {
        y = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w)
    }
    """
    model = with_zeros(picture, w=(5, 3, 3, 3))
    values = Sizes.of([{"x": np.zeros((1, 3, 8, 8), np.float32)}]).bound(model)
    assert values.products(model.graph) == 4 * 4 * 5 * 27
