"""A stage is a promise that can be checked."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.graph import (
    Stage,
    check_stage,
    clone_model,
    mark_stage,
    name_nodes,
    require_stage,
    stage_of,
)


@dataclasses.dataclass(frozen=True)
class Low:
    low: float
    high: float


def model_at(stage: Stage, body: str = "y = Relu (x)", opset: int = 21) -> ir.Model:
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[4] x) => (float[4] y) '
        f"{{ {body} }}"
    )
    name_nodes(model)
    mark_stage(model, stage)
    return model


def test_stages_only_go_forward_and_survive_a_clone() -> None:
    model = model_at(Stage.QUANTIZED)
    mark_stage(model, Stage.PREPARED)
    assert stage_of(model) == Stage.QUANTIZED
    assert stage_of(clone_model(model)) == Stage.QUANTIZED
    assert stage_of(ir.from_proto(ir.to_proto(model))) == Stage.FLOAT


def test_a_pass_that_comes_too_early_is_told_what_is_missing() -> None:
    model = model_at(Stage.PREPARED)
    require_stage(model, Stage.PREPARED, "insert_qdq")
    with pytest.raises(UnsupportedGraph, match="insert_qdq needs a model at stage CALIBRATED"):
        require_stage(model, Stage.CALIBRATED, "insert_qdq")


@pytest.mark.parametrize("stage", [s for s in Stage if s != Stage.CALIBRATED])
def test_a_plain_model_is_legal_where_nothing_more_is_asked(stage: Stage) -> None:
    check_stage(model_at(stage))


@pytest.mark.parametrize("stage", list(Stage))
def test_no_stage_takes_a_dangling_value(stage: Stage) -> None:
    model = model_at(stage)
    model.graph.node(0).replace_input_with(0, ir.Value(name="ghost"))
    with pytest.raises(UnsupportedGraph, match=f"marked {stage.name} but is not: .*'ghost'"):
        check_stage(model)


def test_large_constants_are_gone_once_prepared() -> None:
    body = "w = Constant <value = float[1] {1}> () y = Mul (x, w)"
    model = model_at(Stage.PREPARED, body)
    check_stage(model)
    constant = model.graph.node(0)
    big = ir.tensor(np.zeros(256, np.float32))
    constant.attributes["value"] = ir.AttrTensor("value", big)
    with pytest.raises(UnsupportedGraph, match="'node_Constant_0' holds 1024 bytes"):
        check_stage(model)
    as_loaded = model_at(Stage.FLOAT, body)
    as_loaded.graph.node(0).attributes["value"] = ir.AttrTensor("value", big)
    check_stage(as_loaded)


def test_names_are_asked_for_once_prepared() -> None:
    for stage in (Stage.FLOAT, Stage.PREPARED):
        model = model_at(stage)
        model.graph.node(0).name = ""
        if stage == Stage.FLOAT:
            check_stage(model)
        else:
            with pytest.raises(UnsupportedGraph, match="a Relu node has no name"):
                check_stage(model)


def test_calibrated_means_ranges_that_are_fresh_and_finite() -> None:
    model = model_at(Stage.CALIBRATED)
    with pytest.raises(UnsupportedGraph, match="no value has an activation range"):
        check_stage(model)
    value = model.graph.inputs[0]
    value.meta["onnxq.range"] = Low(-1.0, 2.0)
    check_stage(model)
    value.meta.invalidate("onnxq.range")
    with pytest.raises(UnsupportedGraph, match="the range of 'x' is stale"):
        check_stage(model)
    for low, high in ((2.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))):
        value.meta["onnxq.range"] = Low(low, high)
        with pytest.raises(UnsupportedGraph, match="not low <= high and finite"):
            check_stage(model)


def test_quantizers_must_be_what_the_opset_knows() -> None:
    body = "q = Cast <to = 22> (x) s = Constant <value_float = 1.0> () y = DequantizeLinear (q, s)"
    for opset, legal in ((21, True), (19, False)):
        model = model_at(Stage.QUANTIZED, body, opset)
        model.graph.node(0).outputs[0].dtype = ir.DataType.INT4
        if legal:
            check_stage(model)
        else:
            with pytest.raises(UnsupportedGraph, match="INT4 needs opset 21, the model has 19"):
                check_stage(model)


def test_a_zero_point_has_the_type_of_the_codes() -> None:
    body = """q = Cast <to = 3> (x) s = Constant <value_float = 1.0> ()
              z = Constant <value = uint8 {0}> () y = DequantizeLinear (q, s, z)"""
    model = model_at(Stage.QUANTIZED, body)
    model.graph.node(0).outputs[0].dtype = ir.DataType.INT8
    model.graph.node(2).outputs[0].dtype = ir.DataType.UINT8
    with pytest.raises(UnsupportedGraph, match="stores INT8 but the zero point 'z' is UINT8"):
        check_stage(model)
