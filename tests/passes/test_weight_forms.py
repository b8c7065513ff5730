"""Forms that weights are written in."""

import numpy as np
import pytest

from onnxq.formats import parse_format
from onnxq.graph.sites import find_sites
from onnxq.passes.base import Context
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.weight_bytes import stored_bytes
from onnxq.passes.weight_forms import site_refusal, written_form


@pytest.fixture
def network(build):
    rng = np.random.default_rng(0)
    return build(
        "main (float[1, 4, 6, 6] x) => (float[1, 8, 6, 5] y)"
        "{ c = Conv <pads = [1, 1, 1, 1]> (x, k)  y = MatMul (c, w) }",
        k=rng.standard_normal((8, 4, 3, 3)).astype(np.float32),
        w=rng.standard_normal((6, 5)).astype(np.float32),
    )


def test_operators_leave_integers_of_convolutions_to_dequantize_linear(network, kinds):
    convolution, product = find_sites(network)
    fmt = parse_format("int4_channel")
    assert written_form(convolution, fmt, "operator") == "dequantize"
    assert written_form(product, fmt, "operator") == "operator"
    step = QuantizeWeights(format="int4_channel", write="operator", accuracy_level=0)
    step.requires(network)
    size = stored_bytes(convolution, fmt, "operator")
    report = step.call(network, Context())
    assert [site.reason for site in report.sites] == [None, None]
    assert kinds(network)[:3] == ["DequantizeLinear", "Conv", "MatMulInt"]
    assert report.sites[0].nbytes == size


def test_a_convolution_has_no_form_for_points(network):
    convolution = find_sites(network)[0]
    reason = site_refusal(convolution, parse_format("lut4"), "operator")
    assert reason == "an operator of onnxq replaces MatMul and Gemm, and this is a Conv"
