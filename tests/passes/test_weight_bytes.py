"""Bytes told before a weight is quantized are those that the pass reports afterwards."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.formats import parse_format
from onnxq.graph.sites import find_sites
from onnxq.passes.base import Context
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.weight_bytes import stored_bytes
from onnxq.passes.weight_forms import site_refusal

FORMATS = (
    "int8_g64", "int4_g32_asym", "int4_g128", "int3_g64_asym", "int2_g64_asym_f16", "int5", "int6",
    "int4_g16_two", "int8_tensor", "trellis2_hyb_l12_tensor", "trellis2.5_hyb_l12", "lut3",
    "lut4_g32", "nf4_g64", "vq_d4n256", "aq_m2d8n256", "higgs_d2n256_g32", "e8p2", "e8p3_tensor",
    "ternary_g64_f16", "ternary2_g128_f16",
)  # fmt: skip


def one_layer(rows=48, columns=96):
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 25]>'
        f"main (float[n, {columns}] x) => (float[n, {rows}] y) {{ y = MatMul(x, w) }}"
    )
    weight = np.random.default_rng(0).standard_normal((columns, rows)).astype(np.float32)
    value = model.graph[0].inputs[1]
    value.const_value = ir.tensor(weight, name="w")
    value.shape, value.dtype = ir.Shape(weight.shape), ir.DataType.FLOAT
    model.graph.register_initializer(value)
    model.graph[0].name = "layer"
    return model


@pytest.mark.parametrize("write", ["auto", "dequantize", "operator"])
def test_bytes_told_are_bytes_stored(write):
    told = {}
    for name in FORMATS:
        model = one_layer()
        fmt = parse_format(name)
        (site,) = find_sites(model)
        if site_refusal(site, fmt, write) is not None:
            continue
        told[name] = stored_bytes(site, fmt, write)
        report = QuantizeWeights(format=name, write=write).call(model, Context())
        assert told[name] == report.changed[0].nbytes, name
    assert len(told) >= 15
