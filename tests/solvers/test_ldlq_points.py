"""LDLQ on formats of points: no worse than nearest, GPTQ where points are numbers."""

import dataclasses

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import IntFormat, VectorFormat, parse_format
from onnxq.solvers.gptaq import gptaq
from onnxq.solvers.gptq import gptq
from onnxq.solvers.nearest import nearest
from onnxq.solvers.objective import objective
from onnxq.solvers.refit_scales import refit_scales
from onnxq.solvers.registry import solvers
from onnxq.solvers.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class Rounded:
    """Whole multiples of a step for each row, rounded ``width`` columns at a time."""

    steps: np.ndarray
    width: int

    def round(self, values, start, metric=None):
        codes = np.clip(np.rint(values / self.steps), -8, 7).astype(np.int8)
        return codes, codes * self.steps

    def arrays(self, codes):
        return {"codes": codes, "scales": self.steps}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole(VectorFormat):
    """Integers of 4 bits that pretend to be points of several columns."""

    width: int = 1

    def __str__(self):
        return f"whole{self.width}"

    @classmethod
    def parse(cls, text):
        return None

    @classmethod
    def names(cls):
        return []

    def grid(self, weight, *, importance=None, seed=0, threads=None):
        return Rounded(np.abs(weight).max(axis=1, keepdims=True) / np.float32(7), self.width)

    def decode(self, arrays):
        return arrays["codes"] * arrays["scales"].astype(np.float32)

    def pack(self, arrays):
        return arrays

    def unpack(self, packed, shape):
        return packed

    def bits_per_weight(self, shape):
        return 8.0

    def refusal(self, rows, columns):
        return (
            f"{columns} columns are no multiple of {self.width}" if columns % self.width else None
        )


def layer(rows=24, columns=48, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * columns, columns)) @ rng.standard_normal((columns, columns))
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    return weight, Statistics(hessian=x.T @ x / len(x))


def cost(weight, fmt, arrays, statistics):
    return float(objective(weight, fmt.decode(arrays), statistics).sum())


@pytest.mark.parametrize("order", ("natural", "activation", "reverse"))
@pytest.mark.parametrize("width", (1, 2, 8, 16))
def test_feedback_beats_nearest_and_codes_stay_in_their_places(width, order):
    weight, statistics = layer()
    fmt = Whole(width=width)
    arrays = gptq(weight, fmt, statistics, order=order)
    assert arrays["codes"].shape == weight.shape
    plain = nearest(weight, fmt)
    # Feedback stops inside a run: three runs of 16 columns have two occasions for it.
    part = 0.8 if width == 16 else 0.7
    assert cost(weight, fmt, arrays, statistics) < part * cost(weight, fmt, plain, statistics)
    # Codes out of their places would be no better than codes of another weight.
    assert np.abs(fmt.decode(arrays) - weight).max() < 8 * plain["scales"].max()


@pytest.mark.parametrize(
    ("name", "part"), [("trellis2_hyb_l12", 0.9), ("trellis3_1mad_l10", 0.9), ("vq_d4n256", 0.98)]
)
def test_errors_within_a_run_make_up_for_each_other(name, part, monkeypatch):
    weight, statistics = layer(rows=32, columns=64)
    fmt = parse_format(name)
    shaped = cost(weight, fmt, gptq(weight, fmt, statistics), statistics)
    monkeypatch.setattr("onnxq.solvers.ldlq._metric", lambda *_: None)
    alike = cost(weight, fmt, gptq(weight, fmt, statistics), statistics)
    assert shaped < part * alike


def test_points_of_one_column_are_gptq():
    weight, statistics = layer()
    wanted = gptq(weight, IntFormat(bits=4), statistics, order="natural", search="minmax")
    scaled = dataclasses.replace(statistics)
    fmt = Whole()

    class Given(Whole):
        def grid(self, weight, *, importance=None, seed=0, threads=None):
            return Rounded(wanted["scales"], 1)

    arrays = gptq(weight, Given(), scaled, order="natural")
    assert (arrays["codes"] != wanted["codes"]).any(axis=1).mean() <= 0.05  # near ties alone
    assert fmt.decode(arrays).shape == weight.shape


def test_without_correlations_feedback_is_nearest():
    weight, _ = layer()
    statistics = Statistics(hessian=np.diag(np.arange(1.0, 49.0)))
    fmt = Whole(width=4)
    arrays = gptq(weight, fmt, statistics)
    assert np.array_equal(arrays["codes"], nearest(weight, fmt)["codes"])


def test_asymmetric_rounding_comes_nearer_to_the_output_of_the_float_model():
    weight, statistics = layer()
    drift = 0.05 * np.random.default_rng(5).standard_normal(statistics.hessian.shape)
    known = dataclasses.replace(statistics, drift=drift @ statistics.hessian)
    fmt = Whole(width=2)
    towards = fmt.decode(gptaq(weight, fmt, known, strength=1.0))
    plain = fmt.decode(gptq(weight, fmt, known))
    assert (
        objective(weight, towards, known, asymmetric=True).sum()
        < objective(weight, plain, known, asymmetric=True).sum()
    )


def test_scales_of_rows_are_refitted_to_the_least_error():
    weight, statistics = layer()
    fmt = Whole(width=2)
    arrays = gptq(weight, fmt, statistics)
    fitted = refit_scales(weight, arrays, fmt, statistics)
    before = objective(weight, fmt.decode(arrays), statistics)
    after = objective(weight, fmt.decode(fitted), statistics)
    assert (after <= before * (1 + 1e-6)).all() and after.sum() < before.sum()
    for factor in (0.999, 1.001):  # a least value: no scale beside it is better
        moved = {**fitted, "scales": fitted["scales"] * np.float32(factor)}
        assert (objective(weight, fmt.decode(moved), statistics) >= after * (1 - 1e-5)).all()


def test_a_shape_that_does_not_fit_is_refused_with_its_reason():
    weight, statistics = layer(columns=47)
    with pytest.raises(FormatError, match="47 columns are no multiple of 2"):
        gptq(weight, Whole(width=2), statistics)
    with pytest.raises(FormatError, match="NaN or infinity"):
        Whole().encode(np.full((2, 2), np.nan, np.float32))


@pytest.mark.parametrize("name", ("coordinate_descent", "decoupleq", "easyquant"))
def test_solvers_of_integers_say_so(name):
    weight, statistics = layer()
    with pytest.raises(FormatError, match="chooses integer codes, and whole1 has none"):
        solvers()[name].solve(weight, Whole(), statistics)
