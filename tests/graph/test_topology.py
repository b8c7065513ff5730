"""Topology of whole decoder layers: decomposed as torch writes them, and fused as genai does."""

import numpy as np

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
