"""Trials of recipe options: the best is found, refusals are kept, a second run goes on."""

import numpy as np
import pytest

from onnxq.errors import BudgetError, UsageError
from onnxq.tuning import choices_of, tune
from tests.two_layers import two_layers

pytest.importorskip("optuna")
RNG = np.random.default_rng(0)
SAMPLES = [{"x": RNG.standard_normal((16, 64)).astype(np.float32)} for _ in range(12)]
FORMAT = "quantize_weights.format"


def test_the_best_option_is_found_and_a_second_run_goes_on(tmp_path):
    model = two_layers(np.random.default_rng(1))
    choices = choices_of([f"{FORMAT}=int3_g32 | int8_g32 | int4_g7"])
    how = {"data": SAMPLES, "storage": tmp_path / "trials.log"}
    first = tune(model, "int4", choices, trials=6, **how)
    assert len(first.trials) == 6
    assert first.best.options == {FORMAT: "int8_g32"}
    assert {site.format for site in first.quantized.quantized_sites} == {"int8_g32"}
    by_format = {trial.options[FORMAT]: trial for trial in first.trials}
    assert by_format["int3_g32"].loss > by_format["int8_g32"].loss
    second = tune(model, "int4", choices, trials=8, out=tmp_path / "best", **how)
    assert second.trials[:6] == first.trials
    assert len(second.trials) == 8
    assert (tmp_path / "best" / "onnxq.json").exists()


def test_refusals_say_why(tmp_path):
    model = two_layers(np.random.default_rng(1))
    with pytest.raises(BudgetError, match=r"Every trial was refused; the first: 'int\d+' is not"):
        tune(
            model,
            "int4",
            {FORMAT: ["int9", "int10"]},
            trials=2,
            data=SAMPLES,
            storage=tmp_path / "trials.log",
        )
    with pytest.raises(UsageError, match=r"not of the form pass\.key=first\|second"):
        choices_of(["solver=gptq"])
    with pytest.raises(UsageError, match="nothing to try"):
        choices_of([])
