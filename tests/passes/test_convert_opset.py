import numpy as np
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.passes.base import Context
from onnxq.passes.convert_opset import ConvertOpset

TEXT = "main (float[2, 3] x) => (float[2] y) { y = ReduceMean <axes = [1], keepdims = 0> (x) }"


def test_an_old_model_is_converted_and_a_new_one_left(build, judge):
    model = build(TEXT, opset=11, ir_version=6)
    judge(model, ConvertOpset(minimum=21), {"x": np.ones((2, 3), np.float32)})
    assert model.opset_imports[""] >= 21
    report = ConvertOpset(minimum=17).call(model, Context())
    assert report.left[0].reason == "opset 21 is already 17 or newer"


def test_an_opset_that_no_runtime_takes_is_refused(build):
    with pytest.raises(UnsupportedGraph, match="99"):
        ConvertOpset(minimum=99).call(build(TEXT, opset=11, ir_version=6), Context())
