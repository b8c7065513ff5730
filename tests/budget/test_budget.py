"""A budget from the front door: asked, reached, never exceeded, and a recipe that repeats it."""

import json

import numpy as np
import pytest

import onnxq
from onnxq.budget.account import ACCOUNT
from onnxq.budget.policy import load_policy, matched, policy_names, together
from onnxq.budget.request import Request, parse_size
from onnxq.errors import BudgetError, CalibrationError, RecipeError, UsageError
from onnxq.graph.sites import find_sites
from tests.two_layers import two_layers

RNG = np.random.default_rng(0)
SAMPLES = [{"x": RNG.standard_normal((16, 64)).astype(np.float32)} for _ in range(16)]
MENU = ("int2", "int3", "int4", "int5", "int8_g64")
BASE = {"recipe": "budget_fast", "data": SAMPLES, "menu": MENU, "policy": "default"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model():
    return two_layers(np.random.default_rng(1))


def test_bits_are_spent_and_not_exceeded(model, tmp_path):
    done = onnxq.quantize(model, bits=3.6, out=tmp_path / "a", **BASE)
    account = json.loads((tmp_path / "a" / ACCOUNT).read_text())
    assert account["reached"]["bits"] <= 3.6
    assert account["asked"] == {"bits": 3.6}
    sites = {site["site"]: site for site in account["sites"]}
    assert set(sites) == {"linear_w0", "linear_w1"}
    reported = {site.site: site for site in done.quantized_sites}
    for name, site in sites.items():
        assert reported[name].format == site["format"]
        assert reported[name].nbytes == site["bytes"]
    assert account["reached"]["bytes"] == done.artifact.nbytes
    by_bytes = sorted(account["uniform"], key=lambda mix: mix["bytes"])
    losses = [mix["loss"] for mix in by_bytes]
    assert losses == sorted(losses, reverse=True)
    smaller = [mix["loss"] for mix in by_bytes if mix["bits"] <= 3.6]
    assert account["reached"]["bound"] <= account["reached"]["predicted_loss"] <= min(smaller)


def test_the_recipe_of_the_artifact_repeats_it(model):
    done = onnxq.quantize(model, bits=3.6, **BASE)
    again = onnxq.quantize(model, done.result.recipe, data=SAMPLES)
    assert [s.format for s in again.quantized_sites] == [s.format for s in done.quantized_sites]
    assert [s.error for s in again.quantized_sites] == [s.error for s in done.quantized_sites]


def test_a_size_is_never_exceeded_by_a_byte(model, tmp_path):
    for number, size in enumerate((11_000, 11_700, 12_321, 13_000)):
        done = onnxq.quantize(model, size=size, out=tmp_path / str(number), **BASE)
        written = sum(f.stat().st_size for f in (tmp_path / str(number)).glob("model.onnx*"))
        assert written == done.artifact.nbytes <= size
        assert done.artifact_values()["budget"]["reached"]["bytes"] == written
    with pytest.raises(BudgetError, match=r"smallest (file|mix).*takes \d+.* or allow smaller"):
        onnxq.quantize(model, size="5kB", **BASE)


def test_the_smallest_model_under_a_loss_is_measured(model):
    done = onnxq.quantize(model, max_loss="2%", **BASE)
    reached = done.budget["reached"]
    assert reached["measured_loss"] <= 0.02
    larger = onnxq.quantize(model, max_loss="0.1%", **BASE).budget["reached"]
    assert larger["bytes"] > reached["bytes"]
    with pytest.raises(BudgetError, match="best mix of this menu is predicted to lose"):
        onnxq.quantize(model, max_loss=1e-7, **BASE)


def test_every_measure_gives_a_mix_and_those_in_units_agree(model):
    losses = {}
    for measure in ("marginal", "fisher", "noise", "kl", "hessian_trace", "h", "weights"):
        done = onnxq.quantize(model, bits=4, measure=measure, **BASE)
        assert done.budget["reached"]["bits"] <= 4
        assert done.budget["measure"] == measure
        losses[measure] = done.budget["uniform"][0]["loss"]
    for measure in ("noise", "kl"):
        assert losses[measure] == pytest.approx(losses["fisher"], rel=0.25)
    # What the solver fits to a few samples does not help others.
    assert losses["marginal"] > losses["fisher"]


def test_a_second_budget_measures_nothing_again(model, monkeypatch):
    onnxq.quantize(model, bits=3, **BASE)
    monkeypatch.setattr(
        "onnxq.budget.measuring.site_costs", lambda *_, **__: pytest.fail("measured again")
    )
    monkeypatch.setattr(
        "onnxq.budget.measuring.marginal_factors", lambda *_, **__: pytest.fail("measured again")
    )
    onnxq.quantize(model, bits=4, **BASE)


def test_latency_is_asked_and_measured(model):
    options = {**BASE, "menu": ("int4", "int8", "float"), "policy": "fast"}
    done = onnxq.quantize(model, latency="1000ms", **options)
    assert done.budget["reached"]["latency_ms"] < 1000
    assert {site["format"] for site in done.budget["sites"]} == {"float"}
    assert all(o["latency_us"] > 0 for s in done.budget["sites"] for o in s["options"])
    with pytest.raises(BudgetError, match=r"fastest mix that was tried takes .* and 1e-06 were"):
        onnxq.quantize(model, latency=1e-6, **options)


def test_wrong_requests_say_what_to_do(model):
    with pytest.raises(UsageError, match="give no other budget with it"):
        onnxq.quantize(model, bits=3, max_loss="1%", **BASE)
    with pytest.raises(UsageError, match="'60 parsecs' is no size"):
        onnxq.quantize(model, size="60 parsecs", **BASE)
    with pytest.raises(UsageError, match="A policy or menu is for a budget"):
        onnxq.quantize(model, menu=("int4",))
    with pytest.raises(RecipeError, match="has no quantize_weights row"):
        onnxq.quantize(model, "int8_dynamic", bits=3)
    with pytest.raises(RecipeError, match="did you mean 'default'"):
        onnxq.quantize(model, bits=3, policy="defualt", data=SAMPLES)
    with pytest.raises(BudgetError, match=r"bits per weight.* takes 2\.\d+"):
        onnxq.quantize(model, bits=1, **BASE)
    with pytest.raises(CalibrationError, match="needs calibration data"):
        onnxq.quantize(model, bits=3)
    assert Request.of() is None


def test_a_model_that_does_not_fit_says_what_to_do(model, monkeypatch):
    monkeypatch.setattr("onnxq.budget.sensitivity.available_memory", lambda: 1000)
    with pytest.raises(BudgetError, match=r"holds all weights in memory.*use --measure h"):
        onnxq.quantize(model, bits=3.1, measure="noise", **{**BASE, "menu": ("int3", "int7")})


@pytest.mark.parametrize(
    ("text", "size"), [("60MB", 60_000_000), ("1.5 GiB", 3 << 29), ("77", 77), ("2k", 2000)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_policies_are_read_and_matched(model, tmp_path):
    assert {"default", "fast", "careful_ends", "experts"} <= set(policy_names())
    for name in policy_names():
        assert load_policy(name).sites
    rows = matched(load_policy("careful_ends"), model, find_sites(model))
    assert {row.match for row in rows.values()} == {("@first", "@last")}
    file = tmp_path / "mine.toml"
    file.write_text('together = ["gate_up"]\n[[sites]]\nmatch = ["*w1"]\nformats = ["int4"]\n')
    policy = load_policy(file)
    assert set(matched(policy, model, find_sites(model))) == {"linear_w1"}
    assert together(policy, model, find_sites(model)) == []
    file.write_text('[[sites]]\nmatch = ["@tail"]\nformats = ["int4"]\n')
    with pytest.raises(RecipeError, match="names '@tail': there is @head, @first, @last"):
        load_policy(file)
