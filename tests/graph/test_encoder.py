"""Post-norm encoders, feed-forward blocks and residual streams."""

import numpy as np
import pytest

from onnxq.graph.topology import Topology


def names(*sites):
    return [None if site is None else site.weight.name for site in sites]


def post_norm_block(written, activation):
    """BERT's order: attention, add, norm, feed-forward, add, norm."""
    weights = {"wq": (6, 6), "wk": (6, 6), "wv": (6, 6), "wo": (6, 6), "w1": (6, 10), "w2": (10, 6)}
    weights |= {"bq": (6,), "b1": (10,), "g0": (6,), "c0": (6,)}
    shapes = {"split": np.array([0, -1, 3, 2]), "flat": np.array([0, -1, 6])}
    text = f"""g (float[1,N,6] x, float mask, float wq, float wk, float wv, float wo, float w1,
        float w2, float bq, float b1, float g0, float c0, int64 split, int64 flat, float half,
        float one, float root) => (float y) {{
        q = MatMul(x, wq)
        qb = Add(bq, q)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        q4 = Reshape(qb, split)
        k4 = Reshape(k, split)
        v4 = Reshape(v, split)
        qh = Transpose<perm=[0,2,1,3]>(q4)
        qd = Div(qh, root)
        kt = Transpose<perm=[0,2,3,1]>(k4)
        vh = Transpose<perm=[0,2,1,3]>(v4)
        sc = MatMul(qd, kt)
        sm = Where(mask, sc, half)
        p = Softmax(sm)
        c = MatMul(p, vh)
        ct = Transpose<perm=[0,2,1,3]>(c)
        cf = Reshape(ct, flat)
        o = MatMul(cf, wo)
        h = Add(o, x)
        n = LayerNormalization(h, g0, c0)
        u = MatMul(n, w1)
        ub = Add(u, b1)
        {activation}
        d = MatMul(act, w2)
        h2 = Add(d, n)
        y = LayerNormalization(h2, g0, c0)
    }}"""
    scalars = {"half": np.float32(0.5), "one": np.float32(1), "root": np.float32(2**0.5)}
    scalars = {name: np.array(value) for name, value in scalars.items()}
    return Topology(written(text, **weights, **shapes, **scalars))


ERF = "e0 = Div(ub, root)\n e1 = Erf(e0)\n e2 = Add(e1, one)\n e3 = Mul(ub, e2)\n"


ERF += "act = Mul(e3, half)"


@pytest.mark.parametrize(
    ("activation", "name"),
    [(ERF, "GELU"), ("act = Relu(ub)", "ReLU"), ("act = com.microsoft.Gelu(ub)", "GELU")],
)
def test_post_norm_encoder(written, activation, name):
    topology = post_norm_block(written, activation)
    (block,) = topology.attention
    assert names(*block.sites) == ["wq", "wk", "wv", "wo"]
    assert (block.heads, block.kv_heads, block.head_dim) == (3, 3, 2)
    (mlp,) = topology.mlps
    assert names(mlp.up, mlp.down) == ["w1", "w2"]
    assert mlp.activation == name and mlp.gate is None
    first, second = topology.residual
    assert {value.name for value in first.values} == {"o", "x", "h"}
    assert names(*second.writers) == ["w2"] and names(*second.readers) == ["w1"]


def test_two_projections_without_a_nonlinearity_are_no_mlp(written):
    topology = Topology(
        written(
            """g (float[N,4] x, float a, float b) => (float y) {
                h = MatMul(x, a)
                y = MatMul(h, b)
            }""",
            a=(4, 8),
            b=(8, 4),
        )
    )
    assert topology.mlps == () and topology.attention == () and topology.residual == ()


def test_the_gate_is_the_arm_with_the_nonlinearity(written):
    for product in ("Mul(act, u)", "Mul(u, act)"):
        model = written(
            f"""g (float[N,4] x, float wg, float wu, float wd) => (float y) {{
                gate = MatMul(x, wg)
                u = MatMul(x, wu)
                act = com.microsoft.Gelu(gate)
                both = {product}
                y = MatMul(both, wd)
            }}""",
            wg=(4, 8),
            wu=(4, 8),
            wd=(8, 4),
        )
        (block,) = Topology(model).mlps
        assert names(block.gate, block.up, block.down) == ["wg", "wu", "wd"]


def test_the_sum_inside_a_tanh_gelu_is_no_residual(written):
    model = written(
        """g (float[N,4] x, float w, float v, float three, float k, float one) => (float y) {
            u = MatMul(x, w)
            c = Pow(u, three)
            ck = Mul(c, k)
            t = Add(u, ck)
            th = Tanh(t)
            o = Add(th, one)
            act = Mul(u, o)
            y = MatMul(act, v)
        }""",
        w=(4, 8),
        v=(8, 4),
        three=np.array(3, np.float32),
        k=np.array(0.044715, np.float32),
        one=np.array(1, np.float32),
    )
    topology = Topology(model)
    assert topology.residual == ()
    assert topology.mlps[0].activation == "GELU"


def test_a_stream_names_everything_else_that_touches_it(written):
    """A norm on a branch writes the stream; a Concat in front of it is no projection."""
    model = written(
        """g (float[1,N,8] x, float first, float w, float s) => (float y, float z) {
            c = Concat<axis=1>(first, x)
            h = MatMul(c, w)
            n = LayerNormalization(h, s)
            t = Add(c, n)
            m = MatMul(t, w)
            y = Add(t, m)
            z = Exp(y)
        }""",
        first=(1, 1, 8),
        w=(8, 8),
        s=(8,),
    )
    (stream,) = Topology(model).residual
    assert [norm.output.name for norm in stream.norm_writers] == ["n"] and stream.norms == ()
    assert names(*stream.writers) == ["w"] and len(stream.readers) == 2
    assert sorted(node.op_type for node in stream.others) == ["Concat", "Exp"]
