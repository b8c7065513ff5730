"""Load, round to int4 by groups, save: onnxq against onnxruntime's MatMulNBits quantizer."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.graph import save
from tests.bench.measure import measure, report

OURS = """
import sys, onnxq
onnxq.quantize(sys.argv[1], sys.argv[3], out=sys.argv[2], check="off",
               set=["quantize_weights.format=int4_g128", "quantize_weights.search=minmax"])
"""

THEIRS = """
import logging, sys, onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
logging.disable(logging.CRITICAL)
model = onnx.load(sys.argv[1])
quantizer = MatMulNBitsQuantizer(model, block_size=128, is_symmetric=True, accuracy_level=4)
quantizer.process()
quantizer.model.save_model_to_file(sys.argv[2], use_external_data_format=True)
"""

RECIPE = """
summary = "Only rounding, as the peer does"
[[pass]]
use = "quantize_weights"
format = "int4_g128"
"""


def generate(folder: Path, layers: int, width: int) -> Path:
    """A chain of ``layers`` MatMuls of width × width in float32, streamed to disk."""
    x = ir.Value(name="x", shape=ir.Shape(["n", width]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, weights, value = [], [], x
    for layer in range(layers):
        tensor = ir.LazyTensor(
            lambda seed=layer: ir.tensor(
                np.random.default_rng(seed).standard_normal((width, width), np.float32)
            ),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape([width, width]),
            name=f"w{layer}",
        )
        weight = ir.Value(name=f"w{layer}", const_value=tensor, shape=tensor.shape, type=x.type)
        node = ir.node("MatMul", [value, weight], name=f"MatMul_{layer}")
        value = node.outputs[0]
        value.name, value.type, value.shape = f"h{layer}", x.type, x.shape
        nodes.append(node)
        weights.append(weight)
    graph = ir.Graph(
        [x], [value], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="chain"
    )
    folder.mkdir(parents=True, exist_ok=True)
    return save(ir.Model(graph, ir_version=10), folder / "model.onnx")


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench rtn")
    parser.add_argument("--layers", type=int, default=51, help="MatMuls of 67 MB each")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        source = generate(folder / "float", options.layers, options.width)
        recipe = folder / "rtn.toml"
        recipe.write_text(RECIPE)
        samples = {"onnxq": [], "onnxruntime": []}
        for _ in range(options.rounds):
            (folder / "theirs").mkdir(exist_ok=True)
            samples["onnxq"].append(measure(OURS, str(source), str(folder / "ours"), str(recipe)))
            samples["onnxruntime"].append(
                measure(THEIRS, str(source), str(folder / "theirs" / "model.onnx"))
            )
        size = options.layers * options.width**2 * 4 / 1e9
        report(f"load, int4 g128 RTN, save: {size:.2f} GB of float32", samples, "onnxq")
