"""Topology: norms, attention, feed-forward blocks, residual streams and shared weights."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.topology import Topology

RMS = """
    sq{n} = Pow({x}, two)
    ms{n} = ReduceMean<keepdims=1>(sq{n}, last)
    me{n} = Add(ms{n}, eps)
    rt{n} = Sqrt(me{n})
    iv{n} = Reciprocal(rt{n})
    nn{n} = Mul({x}, iv{n})
    {y} = Mul(nn{n}, {scale})
"""
CONSTANTS = {
    "two": np.array(2, np.float32),
    "last": np.array([-1]),
    "eps": np.array(1e-6, np.float32),
}
BLOCK_INPUTS = "float two, int64 last, float eps"


def names(*sites):
    return [None if site is None else site.weight.name for site in sites]


def decoder_block(written):
    """A pre-norm decoder layer with grouped-query attention and SwiGLU: 4 heads, 2 KV, width 2."""
    weights = {"wq": (8, 8), "wk": (8, 4), "wv": (8, 4), "wo": (8, 8)}
    weights |= {"wg": (8, 12), "wu": (8, 12), "wd": (12, 8), "s0": (8,), "s1": (8,), "e": (50, 8)}
    shapes = {
        "split_q": np.array([0, 0, 4, 2]),
        "split_k": np.array([0, 0, -1, 2]),
        "grow": np.array([1, 2, 2, 7, 2]),
        "many": np.array([0, 4, -1, 2]),
        "flat": np.array([0, 0, 8]),
        "at": np.array([2]),
        "factor": np.array(0.7, np.float32),
    }
    text = f"""g (int64[1,7] ids, float[1,1,7,2] cos, float[1,1,7,2] sin, float mask,
        {BLOCK_INPUTS},
        float wq, float wk, float wv, float wo, float wg, float wu, float wd, float s0, float s1,
        float e, int64 split_q, int64 split_k, int64 grow, int64 many, int64 flat, int64 at,
        float factor) => (float[1,7,8] y) {{
        x = Gather(e, ids)
        {RMS.format(x="x", y="a", n=0, scale="s0")}
        q = MatMul(a, wq)
        k = MatMul(a, wk)
        v = MatMul(a, wv)
        q4 = Reshape(q, split_q)
        k4 = Reshape(k, split_k)
        v4 = Reshape(v, split_k)
        qh = Transpose<perm=[0,2,1,3]>(q4)
        kh = Transpose<perm=[0,2,1,3]>(k4)
        vh = Transpose<perm=[0,2,1,3]>(v4)
        qc = Mul(qh, cos)
        qn = Neg(qh)
        qs = Mul(qn, sin)
        qr = Add(qc, qs)
        k5 = Unsqueeze(kh, at)
        ke = Expand(k5, grow)
        kf = Reshape(ke, many)
        v5 = Unsqueeze(vh, at)
        ve = Expand(v5, grow)
        vf = Reshape(ve, many)
        kt = Transpose<perm=[0,1,3,2]>(kf)
        sc = MatMul(qr, kt)
        ss = Mul(sc, factor)
        sm = Add(ss, mask)
        p = Softmax<axis=-1>(sm)
        c = MatMul(p, vf)
        ct = Transpose<perm=[0,2,1,3]>(c)
        cf = Reshape(ct, flat)
        o = MatMul(cf, wo)
        h = Add(x, o)
        {RMS.format(x="h", y="b", n=1, scale="s1")}
        gate = MatMul(b, wg)
        sig = Sigmoid(gate)
        act = Mul(gate, sig)
        up = MatMul(b, wu)
        both = Mul(act, up)
        down = MatMul(both, wd)
        y = Add(h, down)
    }}"""
    return Topology(written(text, **CONSTANTS, **weights, **shapes))


def test_decomposed_grouped_query_attention(written):
    (block,) = decoder_block(written).attention
    assert names(block.q, block.k, block.v, block.o) == ["wq", "wk", "wv", "wo"]
    assert (block.heads, block.kv_heads, block.head_dim) == (4, 2, 2)
    assert block.kind == "decomposed" and block.node.op_type == "Softmax"
    assert (block.scores.outputs[0].name, block.context.outputs[0].name) == ("sc", "c")
    assert not block.is_fused_qkv and block.unknown is None


def test_gated_mlp(written):
    (block,) = decoder_block(written).mlps
    assert names(block.gate, block.up, block.down) == ["wg", "wu", "wd"]
    assert block.activation == "SiLU" and block.is_gated


def test_norms_feed_their_readers(written):
    topology = decoder_block(written)
    by_name = {site.weight.name: site for site in topology.sites if site.weight is not None}
    fed = {name: topology.feeding_norm(site) for name, site in by_name.items()}
    assert [fed[name].scale.name for name in ("wq", "wk", "wv")] == ["s0"] * 3
    assert [fed[name].scale.name for name in ("wg", "wu")] == ["s1"] * 2
    assert fed["wo"] is fed["wd"] is fed["e"] is None
    assert {norm.kind for norm in topology.norms} == {"RMSNorm"}
    assert all(norm.is_decomposed and len(norm.nodes) == 7 for norm in topology.norms)


def test_siblings_and_other_readers(written):
    topology = decoder_block(written)
    by_name = {site.weight.name: site for site in topology.sites if site.weight is not None}
    assert names(*topology.siblings(by_name["wq"])) == ["wk", "wv"]
    assert names(*topology.siblings(by_name["wu"])) == ["wg"]
    assert topology.siblings(by_name["wo"]) == ()
    assert topology.other_readers(by_name["wq"]) == ()


def test_residual_stream_has_writers_and_norms(written):
    (stream,) = decoder_block(written).residual
    assert names(*stream.writers) == ["e", "wo", "wd"]
    assert [norm.scale.name for norm in stream.norms] == ["s0", "s1"]
    assert {value.name for value in stream.values} == {"x", "o", "h", "down", "y"}
    assert stream.width == 8 and len(stream.adds) == 2 and stream.readers == ()


def genai_block(written):
    weights = {"qkv": (8, 16), "wo": (8, 8), "wg": (8, 12), "wu": (8, 12), "wd": (12, 8)}
    weights |= {"s0": (8,), "s1": (8,), "s2": (8,), "head": (8, 50)}
    text = """g (int64[1,N] ids, float[1,2,P,2] pk, float[1,2,P,2] pv, int32 sl, int32 tl,
        float qkv, float wo, float wg, float wu, float wd, float s0, float s1, float s2, float head
        ) => (float logits) {
        t = Transpose<perm=[1,0]>(head)
        x = Gather(t, ids)
        a = SimplifiedLayerNormalization(x, s0)
        p = MatMul(a, qkv)
        c, ck, cv = com.microsoft.GroupQueryAttention<num_heads=4,kv_num_heads=2>(
            p, , , pk, pv, sl, tl)
        o = MatMul(c, wo)
        b, n1, n2, h = com.microsoft.SkipSimplifiedLayerNormalization(x, o, s1)
        gate = MatMul(b, wg)
        sig = Sigmoid(gate)
        act = Mul(gate, sig)
        up = MatMul(b, wu)
        both = Mul(act, up)
        down = MatMul(both, wd)
        f = com.microsoft.SkipSimplifiedLayerNormalization(h, down, s2)
        logits = MatMul(f, head)
    }"""
    return Topology(written(text, **weights))


def test_genai_decoder(written):
    topology = genai_block(written)
    (block,) = topology.attention
    assert block.kind == "GroupQueryAttention" and block.is_fused_qkv
    assert names(*block.sites) == ["qkv", "wo"]
    assert (block.heads, block.kv_heads, block.head_dim) == (4, 2, 2)
    (mlp,) = topology.mlps
    assert names(mlp.gate, mlp.up, mlp.down) == ["wg", "wu", "wd"]
    (stream,) = topology.residual
    assert names(*stream.writers) == ["head", "wo", "wd"]
    assert [norm.scale.name for norm in stream.norms] == ["s0", "s1", "s2"]
    assert stream.width == 8


def test_tied_weight_is_shared_in_one_orientation(written):
    topology = genai_block(written)
    embedding = topology.sites[0]
    shared = topology.shared(embedding)
    assert [site.kind for site in shared.sites] == ["MatMul"]
    assert shared.orientations_agree and shared.is_shared and shared.nodes == ()
    assert not topology.shared(topology.sites[1]).is_shared


def test_shared_weight_of_other_orientation_and_other_readers(written):
    model = written(
        """g (float[N,4] x, float w) => (float y, float z) {
            h = MatMul(x, w)
            y = Gemm<transB=1>(h, w)
            z = Neg(w)
        }""",
        w=(4, 4),
    )
    topology = Topology(model)
    shared = topology.shared(topology.sites[0])
    assert not shared.orientations_agree
    assert [node.op_type for node in shared.nodes] == ["Neg"]


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


FUSED = {
    "along the features, as GPT-2": (
        """q0, k0, v0 = Split<axis=-1, num_outputs=3>(p)
        q4 = Reshape(q0, each)
        k4 = Reshape(k0, each)
        v4 = Reshape(v0, each)""",
        (6, 6, 2),
    ),
    "inside each head, as GPT-NeoX": (
        """p4 = Reshape(p, together)
        q4, k4, v4 = Split<axis=-1, num_outputs=3>(p4)""",
        (6, 6, 2),
    ),
    "inside each head on an axis of its own, as BLOOM": (
        """p5 = Reshape(p, apart)
        q4 = Gather<axis=3>(p5, i0)
        k4 = Gather<axis=3>(p5, i1)
        v4 = Gather<axis=3>(p5, i2)""",
        (6, 6, 2),
    ),
    "on an axis before the heads, as timm": (
        """p5 = Reshape(p, before)
        q4 = Gather<axis=2>(p5, i0)
        k4 = Gather<axis=2>(p5, i1)
        v4 = Gather<axis=2>(p5, i2)""",
        (6, 6, 2),
    ),
    "along one axis of heads, which tells nothing": (
        """p4 = Reshape(p, all)
        q4, k4, v4 = Split<axis=2, num_outputs=3>(p4)""",
        (None, None, None),
    ),
}


@pytest.mark.parametrize("layout", FUSED)
def test_fused_projection_split_into_heads(written, layout):
    split, expected = FUSED[layout]
    text = f"""g (float[1,N,12] x, float w, float wo, int64 each, int64 together, int64 apart,
        int64 before, int64 all, int64 flat, int64 i0, int64 i1, int64 i2) => (float y) {{
        p = Gemm(x, w)
        {split}
        qh = Transpose<perm=[0,2,1,3]>(q4)
        kt = Transpose<perm=[0,2,3,1]>(k4)
        vh = Transpose<perm=[0,2,1,3]>(v4)
        sc = MatMul(qh, kt)
        s = Softmax(sc)
        c = MatMul(s, vh)
        ct = Transpose<perm=[0,2,1,3]>(c)
        cf = Reshape(ct, flat)
        y = MatMul(cf, wo)
    }}"""
    model = written(
        text,
        w=(12, 36),
        wo=(12, 12),
        each=np.array([1, -1, 6, 2]),
        together=np.array([1, -1, 6, 6]),
        apart=np.array([1, -1, 6, 3, 2]),
        before=np.array([1, -1, 3, 6, 2]),
        all=np.array([1, -1, 18, 2]),
        i0=np.array(0),
        i1=np.array(1),
        i2=np.array(2),
        flat=np.array([1, -1, 12]),
    )
    (block,) = Topology(model).attention
    assert block.is_fused_qkv and names(*block.sites) == ["w", "wo"]
    assert (block.heads, block.kv_heads, block.head_dim) == expected
    assert (block.unknown is None) == (expected[0] is not None)


def test_heads_from_a_reshape_that_tells_only_their_width(written):
    """TorchScript writes view(.., -1, width), and rotary code slices after it."""
    model = written(
        """g (float[1,N,8] x, float w, float b, float wk, float wo, int64 each, int64 flat, int64 k,
        int64 a, int64 z, int64 at) => (float y) {
            p = MatMul(x, w)
            pb = Add(p, b)
            q4 = Reshape(pb, each)
            qh = Transpose<perm=[0,2,1,3]>(q4)
            half = Slice(qh, a, z, at)
            qn = Neg(half)
            qr = Concat<axis=-1>(qn, qn)
            pk = MatMul(x, wk)
            k4 = Reshape(pk, each)
            kt = Transpose<perm=[0,2,3,1]>(k4)
            sc = MatMul(qr, kt)
            s = Softmax(sc)
            vh = Transpose<perm=[0,2,1,3]>(k4)
            c = MatMul(s, vh)
            cf = Reshape(c, flat)
            y = MatMul(cf, wo)
        }""",
        w=(8, 8),
        b=(8,),
        wk=(8, 2),
        wo=(8, 8),
        each=np.array([0, 0, -1, 2]),
        flat=np.array([0, -1, 8]),
        k=np.array([0]),
        a=np.array([0]),
        z=np.array([1]),
        at=np.array([3]),
    )
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    (block,) = Topology(model).attention
    assert (block.heads, block.kv_heads, block.head_dim) == (4, 1, 2)


def test_multi_query_attention_from_one_projection(written):
    """Falcon: the last two entries of the axis of heads are the only key and the only value."""
    model = written(
        """g (float[1,7,12] x, float w, float wo, int64 all, int64 flat, int64 k, int64 v,
        int64 zero, int64 four, int64 two, int64 many) => (float y) {
            p = Gemm(x, w)
            p4 = Reshape(p, all)
            q4 = Slice(p4, zero, four, two)
            k4 = GatherND(p4, k)
            v4 = GatherND(p4, v)
            qh = Transpose<perm=[0,2,1,3]>(q4)
            ke = Expand(k4, many)
            ve = Expand(v4, many)
            sc = MatMul(qh, ke)
            s = Softmax(sc)
            c = MatMul(s, ve)
            cf = Reshape(c, flat)
            y = MatMul(cf, wo)
        }""",
        w=(12, 18),
        wo=(12, 12),
        all=np.array([1, 7, 6, 3]),
        flat=np.array([1, 7, 12]),
        k=np.array([[-2]]),
        v=np.array([[-1]]),
        zero=np.array([0]),
        four=np.array([4]),
        two=np.array([2]),
        many=np.array([1, 4, 7, 3]),
    )
    heads = next(node for node in model.graph if node.op_type == "Transpose").outputs[0]
    heads.shape = ir.Shape([1, 4, 7, 3])
    (block,) = Topology(model).attention
    assert (block.heads, block.kv_heads, block.head_dim) == (4, 1, 3)


def test_cross_attention_from_a_cache_says_what_is_missing(written):
    model = written(
        """g (float[1,N,8] x, float[1,2,M,4] pk, float[1,2,M,4] pv, float wq, float wo)
        => (float y) {
            q = MatMul(x, wq)
            c = com.microsoft.MultiHeadAttention<num_heads=2>(q, pk, pv)
            y = MatMul(c, wo)
        }""",
        wq=(8, 8),
        wo=(8, 8),
    )
    (block,) = Topology(model).attention
    assert names(block.q, block.k, block.v, block.o) == ["wq", None, None, "wo"]
    assert (block.heads, block.head_dim) == (2, 4)
    assert block.unknown == (
        "the key has no projection: it comes from 'pk'; "
        "the value has no projection: it comes from 'pv'"
    )


def test_a_classifier_softmax_is_no_attention(written):
    model = written(
        "g (float[N,4] x, float w) => (float y) { h = MatMul(x, w)\n y = Softmax(h) }", w=(4, 6)
    )
    assert Topology(model).attention == ()


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
