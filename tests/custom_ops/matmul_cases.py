"""One operator in a model of its own, run by its kernel or by its function."""

import contextlib
import os

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.weights import add_weight
from onnxq.runtime import open_session

INSTRUCTIONS = ("generic", "avx2", "avx512", "vnni", "amx")
TOKENS = (1, 2, 7, 128)
UNIT = 2.0**-24


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def activations(columns):
    """Tokens of every number: with outliers, of zeros, tiny."""
    found = []
    for count in TOKENS:
        x = draw(count, columns, seed=count)
        x[0, 0] *= 50
        if count > 2:
            x[1] = 0
            x[2] *= 1e-25
        found.append(x)
    return found


def one_node_model(spec, fmt, packed, shape, *, dtype=ir.DataType.FLOAT, opset=21, leading=("n",)):
    """x [*leading, columns] → y [*leading, rows] through one node of ``spec``."""
    columns = shape[1]
    x = ir.Value(name="x", shape=ir.Shape([*leading, columns]), type=ir.TensorType(dtype))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": opset}, name="g")
    model = ir.Model(graph, ir_version=10)
    values = {
        name: add_weight(
            graph,
            name,
            shape=array.shape,
            dtype=ir.DataType.from_numpy(array.dtype),
            compute=array,
        )
        for name, array in spec.stored(packed).items()
    }
    node = spec.node(model, x, values, fmt, shape, name="product")
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    return model


@contextlib.contextmanager
def at_most(instructions):
    """Sessions opened inside use these instructions at most."""
    with pytest.MonkeyPatch.context() as patch:
        if instructions:
            patch.setenv("ONNXQ_INSTRUCTIONS", instructions)
        else:
            patch.delenv("ONNXQ_INSTRUCTIONS", raising=False)
        yield os.environ.get("ONNXQ_INSTRUCTIONS")


def run(model, *inputs, instructions=None, custom_ops=True, **options):
    """What the model gives for each of ``inputs``, one session for all of them."""
    with (
        at_most(instructions),
        open_session(model, custom_ops=custom_ops, **options) as session,
    ):
        results = [next(iter(session.run({"x": x}).values())) for x in inputs]
    return results[0] if len(results) == 1 else results
