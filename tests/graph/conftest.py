"""Models written as text, with weights filled in by shape."""

import numpy as np
import onnx_ir as ir
import pytest


def _written(
    text, header='<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>', **weights
):
    """Parse a graph; an input named in ``weights`` becomes an initializer.

    A weight is given by its shape (filled with small random floats) or as an array.
    """
    model = ir.from_onnx_text(f"{header}\n{text}")
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs):
        given = weights.pop(value.name, None)
        if given is None:
            continue
        if isinstance(given, tuple):
            given = random.standard_normal(given).astype(np.float32)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(given, name=value.name)
        value.shape = ir.Shape(given.shape)
        value.dtype = value.const_value.dtype
        model.graph.register_initializer(value)
    assert not weights, f"not in the graph: {sorted(weights)}"
    return model


@pytest.fixture
def written():
    return _written
