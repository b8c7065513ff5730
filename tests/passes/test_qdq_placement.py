"""Scales and zero points, and where Q/DQ pairs go by target."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calibration import Range
from onnxq.errors import RecipeError
from onnxq.graph import find_sites
from onnxq.passes.activation_grid import activation_parameters
from onnxq.passes.qdq_placement import Placement
from onnxq.passes.qdq_targets import TARGETS, target_of

LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}
ENDS = st.floats(-1e6, 1e6, width=32)


def plan(text, ranges, target="onnxruntime-cpu"):
    """The points of a text graph with ``ranges`` of its values, and the model."""
    m = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : 17]>\n{text}')
    rules = target_of(target)
    placement = Placement(
        m,
        rules,
        ranges={name: Range(*ends) for name, ends in ranges.items()},
        dtype=rules.activation,
        symmetric=rules.symmetric,
    )
    sites = [site for site in find_sites(m) if site.weight is not None]
    for site in sites:
        assert placement.refusal(site) is None
        placement.add_site(site)
    placement.spread(sites)
    return {value.name: point for value, point in placement.points.items()}


@given(ends=st.tuples(ENDS, ENDS).map(sorted), dtype=st.sampled_from(["uint8", "int8"]))
def test_zero_is_exact_and_the_range_is_covered(ends, dtype):
    low, high = ends
    found = activation_parameters(low, high, dtype=dtype, symmetric=False)
    qmin, qmax = LIMITS[dtype]
    assert qmin <= found.zero <= qmax and found.scale > 0
    # Rounding the zero point to an integer shifts the grid by at most half a step.
    slack = found.scale * 0.5 * (1 + 1e-4)
    assert found.scale * (qmin - found.zero) <= min(low, 0.0) + slack
    assert found.scale * (qmax - found.zero) >= max(high, 0.0) - slack


@given(ends=st.tuples(ENDS, ENDS).map(sorted))
def test_symmetric_has_its_zero_in_the_middle(ends):
    low, high = ends
    found = activation_parameters(low, high, dtype="int8", symmetric=True)
    assert found.zero == 0
    assert found.scale * 127 >= max(-low, high, 0.0) * (1 - 1e-6)


def test_a_range_of_zero_has_a_usable_scale():
    found = activation_parameters(0.0, 0.0, dtype="uint8", symmetric=False)
    assert (found.scale, found.zero) == (1.0, 0)


CONV = "Conv<pads = [1, 1, 1, 1]>"
FILTER = "float[2, 2, 3, 3] w = {" + ", ".join(["0.1"] * 36) + "}"


def test_relu_is_absorbed_and_only_then():
    text = (
        f"main (float[1, 2, 5, 5] x) => (float[1, 2, 5, 5] y) <{FILTER}>"
        f" {{ a = {CONV}(x, w) r = Relu(a) y = Neg(r) }}"
    )
    points = plan(text, {"x": (-1, 1), "a": (-2, 2), "r": (0, 2)})
    assert set(points) == {"x", "r"} and points["r"].all
    assert points["r"].parameters.zero == 0
    text = text.replace("y = Neg(r)", "y = Add(r, a)")
    assert set(plan(text, {"x": (-1, 1), "a": (-2, 2), "r": (0, 2)})) == {"x", "a"}


def test_clip_cuts_a_range_that_overshoots():
    text = (
        f"main (float[1, 2, 5, 5] x) => (float[1, 2, 5, 5] y)"
        f" <{FILTER}, float low = {{0}}, float high = {{6}}>"
        f" {{ a = {CONV}(x, w) y = Clip(a, low, high) }}"
    )
    points = plan(text, {"x": (-1, 1), "a": (-9, 9), "y": (0, 6.5)})
    assert points["y"].parameters.scale == np.float32(6 / 255)


def test_an_add_between_quantized_values_runs_in_int8():
    text = (
        f"main (float[1, 2, 5, 5] x) => (float[1, 2, 5, 5] y) <{FILTER}>"
        f" {{ a = {CONV}(x, w) s = Add(a, x) y = {CONV}(s, w) }}"
    )
    points = plan(text, dict.fromkeys("xasy", (-1, 1)))
    assert set(points) == {"x", "a", "s", "y"} and points["s"].all
    assert {node.op_type for node, _ in points["x"].readers} == {"Conv", "Add"}


def test_an_add_of_float_values_stays_float():
    text = (
        "main (float[3, 2] x, float[3, 2] v) => (float[3, 2] y)"
        " <float[2, 2] w = {1, 2, 3, 4}> { s = Add(x, v) y = MatMul(s, w) }"
    )
    points = plan(text, dict.fromkeys("xvsy", (-1, 1)))
    assert set(points) == {"s"} and not points["s"].all


def test_what_only_moves_values_keeps_their_codes():
    text = (
        f"main (float[1, 2, 5, 5] x) => (float[1, 2, 5, 5] y) <{FILTER}>"
        f" {{ a = {CONV}(x, w) m = MaxPool<kernel_shape = [1, 1]>(a) y = {CONV}(m, w) }}"
    )
    points = plan(text, {"x": (-1, 1), "a": (-4, 4), "m": (-3, 3), "y": (-9, 9)})
    assert points["m"].parameters == points["a"].parameters


def test_tensorrt_has_no_quantized_outputs():
    text = (
        f"main (float[1, 2, 5, 5] x) => (float[1, 2, 5, 5] y) <{FILTER}>"
        f" {{ a = {CONV}(x, w) r = Relu(a) y = {CONV}(r, w) }}"
    )
    points = plan(text, dict.fromkeys("xary", (-1, 1)), target="tensorrt")
    assert set(points) == {"x", "r"}
    assert all(point.parameters.zero == 0 for point in points.values())


def test_a_site_without_a_range_says_so():
    m = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 17]>\nmain (float[3, 2] x) => (float[3, 2] y)'
        " <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    )
    rules = target_of("onnxruntime-cpu")
    placement = Placement(m, rules, ranges={}, dtype="uint8", symmetric=False)
    (site,) = find_sites(m)
    assert placement.refusal(site) == (
        "no range was observed for 'x': run the calibrate pass on it"
    )


def test_targets_are_named():
    assert set(TARGETS) == {"onnxruntime-cpu", "tensorrt"}
    with pytest.raises(RecipeError, match="no QDQ placement rules for target 'tpu'"):
        target_of("tpu")
