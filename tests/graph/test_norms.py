"""Norms written as arithmetic, and arithmetic that only looks like a norm."""

import numpy as np
import pytest

from onnxq.graph.topology import Topology

CONSTANTS = {
    "two": np.array(2, np.float32),
    "last": np.array([-1]),
    "eps": np.array(1e-6, np.float32),
}


BLOCK_INPUTS = "float two, int64 last, float eps"


LAYER_NORM = """
    m = ReduceMean<keepdims=1>(x, last)
    d = Sub(x, m)
    sq = {square}
    v = ReduceMean<keepdims=1>(sq, last)
    ve = Add(v, eps)
    r = Sqrt(ve)
    n = Div(d, r)
    ns = Mul({scaled})
    z = Add(ns, c)
    y = MatMul(z, w)
"""


@pytest.mark.parametrize("square", ["Pow(d, two)", "Mul(d, d)"])
@pytest.mark.parametrize("scaled", ["n, s", "s, n"])
def test_decomposed_layer_norm(written, square, scaled):
    body = LAYER_NORM.format(square=square, scaled=scaled)
    topology = Topology(
        written(
            f"g (float[N,4] x, {BLOCK_INPUTS}, float s, float c, float w) => (float y) {{{body}}}",
            **CONSTANTS,
            s=(4,),
            c=(4,),
            w=(4, 4),
        )
    )
    (norm,) = topology.norms
    assert norm.kind == "LayerNorm" and norm.inputs[0].name == "x" and norm.output.name == "z"
    assert (norm.scale.name, norm.bias.name) == ("s", "c")
    assert set(norm.nodes) == set(list(topology.sites[0].node.graph)[:-1])
    assert topology.feeding_norm(topology.sites[0]) is norm


def test_a_product_with_the_root_is_no_norm(written):
    model = written(
        f"""g (float[N,4] x, {BLOCK_INPUTS}) => (float y) {{
            sq = Pow(x, two)
            v = ReduceMean<keepdims=1>(sq, last)
            ve = Add(v, eps)
            r = Sqrt(ve)
            y = Mul(x, r)
        }}""",
        **CONSTANTS,
    )
    assert Topology(model).norms == ()


def test_variance_that_divides_something_else_is_no_norm(written):
    model = written(
        f"""g (float[N,4] x, float[N,4] other, {BLOCK_INPUTS}) => (float y) {{
            sq = Pow(x, two)
            v = ReduceMean<keepdims=1>(sq, last)
            ve = Add(v, eps)
            r = Sqrt(ve)
            y = Div(other, r)
        }}""",
        **CONSTANTS,
    )
    assert Topology(model).norms == ()


def test_quantized_activations_are_looked_through(written):
    model = written(
        """g (float[N,4] x, float s, float w, float v, float q) => (float y, float z) {
            n = LayerNormalization(x, s)
            a = QuantizeLinear(n, q)
            b = DequantizeLinear(a, q)
            y = MatMul(b, w)
            c = DequantizeLinear(a, q)
            z = MatMul(c, v)
        }""",
        s=(4,),
        w=(4, 4),
        v=(4, 4),
        q=np.array(0.1, np.float32),
    )
    topology = Topology(model)
    first, second = topology.sites
    assert topology.siblings(first) == (second,)
    assert topology.feeding_norm(first) is topology.feeding_norm(second) is topology.norms[0]
