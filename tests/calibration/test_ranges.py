import numpy as np
import onnx_ir as ir
import pytest

from onnxq.calibration import (
    ChannelRange,
    Range,
    channel_range_of,
    check_ranges,
    invalidate_ranges,
    range_of,
    ranges_of,
    set_range,
    stamp_ranges,
)
from onnxq.errors import CalibrationError

CHAIN = """<ir_version: 9, opset_import: ["" : 19]>
g (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {1, 0, 0, 1}>
{
  h = MatMul(x, w)
  r = Relu(h)
  y = MatMul(r, v)
}"""


@pytest.fixture
def model():
    model = ir.from_onnx_text(CHAIN)
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
        set_range(node.outputs[0], Range(-1, index))
    set_range(model.graph.inputs[0], Range(0, 1))
    stamp_ranges(model)
    return model


def value(model, name):
    return next(v for node in model.graph for v in node.outputs if v.name == name)


def test_ranges_are_read_back(model):
    assert range_of(value(model, "r")) == Range(-1, 1)
    assert channel_range_of(value(model, "r")) is None
    assert list(ranges_of(model)) == ["x", "h", "r", "y"]


def test_ranges_survive_a_clone_and_new_names(model):
    clone = model.clone()
    value(clone, "h").name = "hidden"
    assert ranges_of(clone)["hidden"] == Range(-1, 0)


def test_a_value_that_was_never_observed_has_no_range():
    assert range_of(ir.Value(name="v")) is None


def test_per_channel_ranges_give_the_overall_range_too(model):
    channels = ChannelRange(np.float32([-1, -2]), np.float32([3, 1]), axis=-1)
    set_range(value(model, "r"), channels)
    assert channel_range_of(value(model, "r")) is channels
    assert range_of(value(model, "r")) == Range(-2, 3)
    np.testing.assert_array_equal(channels.symmetric().low, [-3, -2])


def test_a_replaced_weight_makes_what_lies_behind_it_stale(model):
    model.graph.initializers["w"].const_value = ir.tensor(np.eye(2, dtype=np.float32))
    with pytest.raises(CalibrationError, match=r"'h' \(output of MatMul node 'n0'\) was measured"):
        check_ranges(model)


def test_what_lies_before_an_edit_stays_true(model):
    model.graph.initializers["v"].const_value = ir.tensor(np.eye(2, dtype=np.float32))
    with pytest.raises(CalibrationError, match="The range of 'y'"):
        check_ranges(model)


def test_an_inserted_node_makes_ranges_stale(model):
    node = ir.node("Neg", [model.graph.inputs[0]], name="turn")
    first = model.graph.node(0)
    model.graph.insert_before(first, node)
    first.replace_input_with(0, node.outputs[0])
    with pytest.raises(CalibrationError, match="Put the calibrate pass after every pass that"):
        check_ranges(model)


def test_a_changed_attribute_makes_ranges_stale():
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
    g (float[N] x) => (float[N] y) { y = LeakyRelu <alpha = 0.1> (x) }""")
    node = model.graph.node(0)
    set_range(node.outputs[0], Range(0, 1))
    stamp_ranges(model)
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.2)
    with pytest.raises(CalibrationError, match="The range of 'y'"):
        check_ranges(model)


def test_an_edit_inside_a_body_makes_its_output_stale():
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
    g (bool c, float[N] x) => (float[N] y)
    {
      y = If (c) <
        then_branch = yes () => (float[N] a) { a = Relu(x) },
        else_branch = no () => (float[N] b) { b = Neg(x) }
      >
    }""")
    node = model.graph.node(0)
    set_range(node.outputs[0], Range(0, 1))
    stamp_ranges(model)
    check_ranges(model)
    node.attributes["else_branch"].as_graph().node(0).op_type = "Abs"
    with pytest.raises(CalibrationError, match="The range of 'y'"):
        check_ranges(model)


def test_an_edit_inside_a_function_makes_its_calls_stale():
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19, "local" : 1]>
    g (float[N] x) => (float[N] y) { y = local.twice(x) }
    <domain: "local", opset_import: ["" : 19]>
    twice (a) => (b) { b = Add(a, a) }""")
    set_range(model.graph.node(0).outputs[0], Range(0, 1))
    stamp_ranges(model)
    check_ranges(model)
    next(iter(next(iter(model.functions.values())))).op_type = "Mul"
    with pytest.raises(CalibrationError, match="The range of 'y'"):
        check_ranges(model)


def test_stamping_again_says_that_ranges_still_hold(model):
    model.graph.initializers["w"].const_value = ir.tensor(np.eye(2, dtype=np.float32))
    stamp_ranges(model)
    check_ranges(model)


def test_a_constant_that_becomes_an_initializer_changes_nothing():
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
    g (float[N] x) => (float[N] y) { c = Constant <value = float {2}> ()  y = Mul(x, c) }""")
    constant, product = model.graph
    set_range(product.outputs[0], Range(0, 1))
    stamp_ranges(model)
    tensor = constant.attributes["value"].as_tensor()
    weight = ir.Value(name="c2", const_value=tensor)
    model.graph.register_initializer(weight)
    product.replace_input_with(1, weight)
    model.graph.remove(constant, safe=True)
    check_ranges(model)


def test_an_invalidated_range_is_refused_with_what_happened(model):
    invalidate_ranges([value(model, "h")], "it was rotated after calibrating")
    with pytest.raises(CalibrationError, match="no longer holds: it was rotated after calibrat"):
        range_of(value(model, "h"))
    with pytest.raises(CalibrationError, match="'h'"):
        check_ranges(model)


def test_a_model_without_ranges_is_refused():
    with pytest.raises(CalibrationError, match="carries no activation ranges"):
        check_ranges(ir.from_onnx_text(CHAIN))


@pytest.mark.parametrize(("low", "high"), [(1, 0), (float("nan"), 1), (0, float("inf"))])
def test_what_is_no_range_is_refused(low, high):
    with pytest.raises(CalibrationError, match="is not a range"):
        Range(low, high)
