"""R4 before the last layer of MLPs and R3 behind q and k: the function stays, reasons are given."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.custom_ops.hadamard import is_hadamard
from onnxq.errors import RecipeError, UnsupportedGraph
from onnxq.graph.check import check_graph
from onnxq.graph.stage import Stage, clone_model, mark_stage
from onnxq.graph.weights import read_weight
from onnxq.numerics.hadamard import fast_apply, hadamard
from onnxq.passes.base import Context
from onnxq.passes.insert_online_hadamard import InsertOnlineHadamard
from onnxq.passes.promise import PromiseKeeper
from onnxq.runtime import open_session


def draw(*shape, seed=0, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.5).astype(dtype)


def hadamards(model):
    return [node for node in model.graph if is_hadamard(node)]


def nodes(model, kind):
    return [node for node in model.graph if node.op_type == kind]


def reasons(report):
    return {site.site: site.reason for site in report.left}


def ran(model, feeds, **options):
    with open_session(model, **options) as session:
        return session.run(feeds)


PLAIN = """
g (float[n, 16] x) => (float[n, 8] y) {
    up = MatMul(x, w_up)
    act = Relu(up)
    y = MatMul(act, w_down)
}
"""
GATED = """
g (float[n, 16] x) => (float[n, 8] y) {
    gate = MatMul(x, w_gate)
    up = MatMul(x, w_up)
    sigmoid = Sigmoid(gate)
    act = Mul(gate, sigmoid)
    hidden = Mul(act, up)
    y = MatMul(hidden, w_down)
}
"""
GEMM = """
g (float[n, 16] x) => (float[n, 8] y) {
    up = Gemm<transB = 1>(x, w_up, b_up)
    act = Tanh(up)
    y = Gemm<transB = 1>(act, w_down, b_down)
}
"""


@pytest.mark.parametrize("width", [2, 6, 12, 18, 24, 40, 64, 96])
def test_r4_keeps_the_function_of_plain_and_gated_blocks(build, judge, width):
    plain = build(PLAIN, w_up=draw(16, width), w_down=draw(width, 8, seed=1))
    report = judge(plain, InsertOnlineHadamard(), {"x": draw(5, 16)})
    assert len(report.changed) == len(hadamards(plain)) == 1
    gated = build(GATED, w_up=draw(16, width), w_gate=draw(16, width, seed=2),
                  w_down=draw(width, 8, seed=1))  # fmt: skip
    judge(gated, InsertOnlineHadamard(), {"x": draw(5, 16)})
    assert hadamards(gated)[0].inputs[0].name == "hidden"


def test_r4_rotates_the_input_channels_of_either_orientation(build, judge):
    weight = draw(8, 24, seed=1)
    model = build(GEMM, w_up=draw(24, 16), b_up=draw(24), w_down=weight, b_down=draw(8))
    report = judge(model, InsertOnlineHadamard(), {"x": draw(5, 16)})
    assert report.changed[0].note == "its input is rotated by H12 ⊗ S2"
    turned = read_weight(model.graph.initializers["w_down"])
    assert np.abs(turned - weight @ hadamard(24) / np.sqrt(24)).max() < 1e-6


def test_r4_spreads_an_outlier(build):
    model = build(PLAIN, w_up=draw(16, 64), w_down=draw(64, 8))
    model.graph.initializers["w_up"].const_value = ir.tensor(
        draw(16, 64) * np.where(np.arange(64) == 5, 100, 1).astype(np.float32)
    )
    InsertOnlineHadamard(which=("r4",)).call(model, Context())
    node = hadamards(model)[0]
    names = [node.inputs[0].name, node.outputs[0].name]
    with open_session(model, extra_outputs=names) as session:
        seen = session.run({"x": draw(100, 16)}, names)
    before, after = (np.abs(seen[name]).max() / np.sqrt((seen[name] ** 2).mean()) for name in names)
    assert after < before / 3


def test_float16_weights_stay_float16(build):
    text = PLAIN.replace("float[", "float16[")
    model = build(text, w_up=draw(16, 48, dtype=np.float16), w_down=draw(48, 8, dtype=np.float16))
    before = ran(model, {"x": draw(4, 16, dtype=np.float16)})["y"]
    assert InsertOnlineHadamard().call(model, Context()).modified
    assert model.graph.initializers["w_down"].dtype == ir.DataType.FLOAT16
    after = ran(model, {"x": draw(4, 16, dtype=np.float16)})["y"]
    assert np.abs(after - before).max() <= 2.0**-11 * 8 * np.abs(before).max()


def test_what_others_read_is_left_alone(build, judge):
    shared = """
    g (float[n, 16] x) => (float[n, 8] y, float[16, 8] z) {
        up = MatMul(x, w_up)
        act = Relu(up)
        y = MatMul(act, w_down)
        z = Identity(w_down)
    }
    """
    model = build(shared, w_up=draw(16, 16), w_down=draw(16, 8))
    report = judge(model, InsertOnlineHadamard(), {"x": draw(3, 16)}, modified=False)
    (reason,) = reasons(report).values()
    assert reason.startswith("its weight 'w_down' is shared with 'Identity_3': run untie_weights")
    # The activation itself may be an output, or read elsewhere: only the edge is rotated.
    seen = PLAIN.replace("(float[n, 8] y)", "(float[n, 8] y, float[n, 24] act)")
    model = build(seen, w_up=draw(16, 24), w_down=draw(24, 8))
    judge(model, InsertOnlineHadamard(), {"x": draw(3, 16)})


READ = """
g (float[n, 32] x) => (float[n, 8] y, float[n, 8] z, float[n, 8] v, float[n, 32] seen) {
    seen = Tanh(x)
    y = MatMul(seen, w_key)
    z = Gemm<transB = 1>(seen, w_value)
    v = MatMul(seen, w_plain)
}
"""


def test_the_rest_are_layers_whose_rows_have_outliers(build, judge):
    def spiky(*shape, axis):
        far = np.ones(32, np.float32)
        far[3] = 30
        return draw(*shape) * np.expand_dims(far, 1 - axis)

    weights = {"w_key": spiky(32, 8, axis=0), "w_value": spiky(8, 32, axis=1)}
    model = build(READ, **weights, w_plain=draw(32, 8))
    report = judge(model, InsertOnlineHadamard(which=("rest",)), {"x": draw(5, 32)})
    assert [row.site for row in report.changed] == ["MatMul_1", "Gemm_2"]
    (node,) = hadamards(model)  # shared by both, and not by the one without outliers
    assert len(node.outputs[0].uses()) == 2
    for name in weights:
        turned = read_weight(model.graph.initializers[name])
        assert np.abs(turned).max() < 0.5 * np.abs(weights[name]).max()
    again = InsertOnlineHadamard(which=("rest",)).call(model, Context())
    assert not again.modified


def test_names_choose_the_sites(build):
    def fresh():
        return build(PLAIN, w_up=draw(16, 24), w_down=draw(24, 8))

    report = InsertOnlineHadamard(exclude=("MatMul_2",)).call(fresh(), Context())
    assert reasons(report) == {"MatMul_2": "the recipe excludes it"}
    report = InsertOnlineHadamard(sites=("other*",)).call(fresh(), Context())
    assert reasons(report) == {"MatMul_2": "the recipe does not name it"}
    assert InsertOnlineHadamard(which=("r3",)).call(fresh(), Context()).sites == ()


def test_a_second_run_says_that_it_is_done(build):
    model = build(PLAIN, w_up=draw(16, 24), w_down=draw(24, 8))
    InsertOnlineHadamard().call(model, Context())
    report = InsertOnlineHadamard().call(model, Context())
    assert not report.modified
    assert reasons(report) == {"MatMul_2": "its input is rotated already"}


def test_refusals_of_the_whole_pass(build):
    model = build(PLAIN, w_up=draw(16, 24), w_down=draw(24, 8))
    for which in ((), ("r2",)):
        with pytest.raises(RecipeError, match="give some of 'r3', 'r4' and 'rest'"):
            InsertOnlineHadamard(which=which).requires(model)
    mark_stage(model, Stage.CALIBRATED)
    with pytest.raises(UnsupportedGraph, match="this model is already CALIBRATED"):
        InsertOnlineHadamard().requires(model)


WRITTEN = """
g (float[b, s, 32] x) => (float[b, s, 32] y) {
    q0 = MatMul(x, w_q)
    k0 = MatMul(x, w_k)
    v0 = MatMul(x, w_v)
    q1 = Reshape(q0, split)
    k1 = Reshape(k0, split)
    v1 = Reshape(v0, split)
    q = Transpose<perm = [0, 2, 1, 3]>(q1)
    KEYS
    v = Transpose<perm = [0, 2, 1, 3]>(v1)
    scores = MatMul(q, kt)
    scaled = Mul(scores, scale)
    p = Softmax<axis = -1>(scaled)
    c = MatMul(p, v)
    c0 = Transpose<perm = [0, 2, 1, 3]>(c)
    c1 = Reshape(c0, join)
    y = MatMul(c1, w_o)
}
"""
KEYS = {
    "at once": "kt = Transpose<perm = [0, 2, 3, 1]>(k1)",
    "in two steps": "k = Transpose<perm = [0, 2, 1, 3]>(k1) kt = Transpose<perm = [0, 1, 3, 2]>(k)",
    "scaled": "k2 = Transpose<perm = [0, 2, 3, 1]>(k1) kt = Mul(k2, scale)",
}


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_r3_in_attention_written_out(build, judge, keys, heads):
    weights = {f"w_{role}": draw(32, 32, seed=index) for index, role in enumerate("qkvo")}
    model = build(
        WRITTEN.replace("KEYS", KEYS[keys]),
        split=np.array([0, 0, heads, 32 // heads]),
        join=np.array([0, 0, 32]),
        scale=np.float32(0.3),
        **weights,
    )
    report = judge(model, InsertOnlineHadamard(), {"x": draw(2, 5, 32)})
    assert report.changed[0].note == f"queries and keys are rotated by S{32 // heads}"
    assert [node.attributes["size"].as_int() for node in hadamards(model)] == [32 // heads] * 2


def test_keys_that_are_not_turned_by_a_transpose_are_left(build, judge):
    keys = "k = Transpose<perm = [0, 2, 3, 1]>(k1) kt = Clip(k)"
    weights = {f"w_{role}": draw(32, 32, seed=index) for index, role in enumerate("qkvo")}
    model = build(WRITTEN.replace("KEYS", keys), split=np.array([0, 0, 2, 16]),
                  join=np.array([0, 0, 32]), scale=np.float32(0.3), **weights)  # fmt: skip
    report = judge(model, InsertOnlineHadamard(), {"x": draw(2, 5, 32)}, modified=False)
    for reason in reasons(report).values():
        assert reason.startswith("its keys are not turned by a Transpose right before")


def test_r3_before_fused_multi_head_attention(build, judge):
    text = """
    g (float[b, s, 32] x) => (float[b, s, 32] y) {
        q = MatMul(x, w_q)
        k = MatMul(x, w_k)
        v = MatMul(x, w_v)
        c = com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, vBIAS)
        y = MatMul(c, w_o)
    }
    """
    weights = {f"w_{role}": draw(32, 32, seed=index) for index, role in enumerate("qkvo")}
    model = build(text.replace("BIAS", ""), **weights)
    report = judge(model, InsertOnlineHadamard(), {"x": draw(2, 5, 32)})
    assert report.changed[0].note == "queries and keys are rotated by S16"
    model = build(text.replace("BIAS", ", bias"), bias=draw(96), **weights)
    report = judge(model, InsertOnlineHadamard(), {"x": draw(2, 5, 32)}, modified=False)
    assert "it adds biases to queries and keys inside" in next(iter(reasons(report).values()))


@dataclasses.dataclass
class Decoder:
    """One layer with GroupQueryAttention: 4 query heads and 2 key heads of ``head`` channels."""

    head: int = 16
    packed: bool = True
    turned: int = 16
    interleaved: int = 0
    rotary: int = 1

    def build(self, build):
        cache = f"float[b, 2, t, {self.head}]"
        wide, narrow = 4 * self.head, 2 * self.head
        qkv = "qkv, , " if self.packed else "q, k, v"
        text = f"""
        g (float[b, s, 32] x, int32[b] lengths, int32 total, float[b, 2, p, {self.head}] past_k,
           float[b, 2, p, {self.head}] past_v)
          => (float[b, s, 32] y, {cache} now_k, {cache} now_v)
        {{
            qkv = MatMul(x, w)
            q, k, v = Split<axis = -1>(qkv, parts)
            c, now_k, now_v = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2,
                do_rotary = {self.rotary}, rotary_interleaved = {self.interleaved}>
                ({qkv}, past_k, past_v, lengths, total{", cos, sin" if self.rotary else ""})
            y = MatMul(c, w_o)
        }}
        """
        if self.packed:
            text = text.replace("q, k, v = Split<axis = -1>(qkv, parts)", "")
        angles = np.outer(np.arange(64), 0.5 ** np.arange(self.turned // 2)).astype(np.float32)
        tables = {"cos": np.cos(angles), "sin": np.sin(angles)} if self.rotary else {}
        parts = {} if self.packed else {"parts": np.array([wide, narrow, narrow])}
        return build(text, w=draw(32, wide + 2 * narrow), w_o=draw(wide, 32, seed=1), **tables,
                     **parts)  # fmt: skip

    def feeds(self, tokens, past=None, lengths=None):
        batch, new, _ = tokens.shape
        if past is None:
            past = [np.zeros((batch, 2, 0, self.head), np.float32)] * 2
        total = past[0].shape[2] + new
        lengths = np.full(batch, total) if lengths is None else np.asarray(lengths)
        return {
            "x": tokens,
            "lengths": (lengths - 1).astype(np.int32),
            "total": np.array(total, np.int32),
            "past_k": past[0],
            "past_v": past[1],
        }


DECODERS = [
    Decoder(),
    Decoder(packed=False),
    Decoder(interleaved=1),
    Decoder(head=32),  # half of each head is turned
    Decoder(head=48, turned=48, packed=False),
    Decoder(rotary=0),
    Decoder(rotary=0, packed=False),
]


@pytest.mark.parametrize("decoder", DECODERS, ids=str)
def test_r3_takes_the_rotary_embedding_out_of_group_query_attention(build, decoder):
    plain = decoder.build(build)
    model = clone_model(plain)
    keeper = PromiseKeeper(plain, [decoder.feeds(draw(1, 7, 32))])
    step = InsertOnlineHadamard(rotate_cache=True)
    report = step.call(model, Context())
    check_graph(model)
    assert report.moved_outputs == ("now_k",)
    assert report.changed[0].note.endswith(", in the cache too")
    keeper.check(step.key(), step.promise, model, moved=report.moved_outputs)
    assert not step.call(model, Context()).modified
    assert len(nodes(model, "RotaryEmbedding")) == 2 * decoder.rotary
    with open_session(plain) as before, open_session(model) as after:
        # a prompt, one token, several tokens behind a cache, one more
        pasts = [None, None]
        for step_size in (6, 1, 3, 1):
            tokens = draw(1, step_size, 32, seed=step_size)
            results = [
                session.run(decoder.feeds(tokens, past))
                for session, past in zip((before, after), pasts, strict=True)
            ]
            pasts = [[result["now_k"], result["now_v"]] for result in results]
            bound = 2e-6 * 16 * np.abs(results[0]["y"]).max()
            assert np.abs(results[0]["y"] - results[1]["y"]).max() <= bound
            rotated = fast_apply(results[0]["now_k"].astype(np.float64))
            assert np.abs(results[1]["now_k"] - rotated).max() < 1e-5
            assert np.allclose(results[0]["now_v"], results[1]["now_v"], rtol=0, atol=1e-6)


def test_positions_of_sequences_of_several_lengths(build):
    decoder = Decoder()
    plain = decoder.build(build)
    model = clone_model(plain)
    InsertOnlineHadamard(rotate_cache=True).call(model, Context())
    lengths = np.array([6, 3, 1])  # padded on the right to 6
    first = decoder.feeds(draw(3, 6, 32), lengths=lengths)
    results = [ran(which, first) for which in (plain, model)]
    for row, length in enumerate(lengths):
        gap = np.abs(results[0]["y"][row, :length] - results[1]["y"][row, :length])
        assert gap.max() < 1e-5
    token = draw(3, 1, 32, seed=4)
    seconds = [
        ran(which, decoder.feeds(token, [old["now_k"], old["now_v"]], lengths + 1))["y"]
        for which, old in zip((plain, model), results, strict=True)
    ]
    assert np.abs(seconds[0] - seconds[1]).max() < 1e-5


def test_a_cache_is_rotated_only_when_asked_and_when_it_is_empty(build):
    decoder = Decoder()
    model = decoder.build(build)
    report = InsertOnlineHadamard().call(model, Context())
    assert not report.modified
    assert next(iter(reasons(report).values())) == (
        "its keys go to a cache, which would hold them rotated: set rotate_cache"
    )
    filled = decoder.feeds(draw(1, 1, 32), [draw(1, 2, 4, 16), draw(1, 2, 4, 16)])
    report = InsertOnlineHadamard(rotate_cache=True).call(model, Context(samples=[filled]))
    assert next(iter(reasons(report).values())) == (
        "the samples hold keys in 'past_k' that are not rotated: empty the cache"
    )
    empty = decoder.feeds(draw(1, 3, 32))
    assert InsertOnlineHadamard(rotate_cache=True).call(model, Context(samples=[empty])).modified


def test_layers_share_one_computation_of_positions(build):
    text = """
    g (float[b, s, 32] x, int32[b] lengths, int32 total) => (float[b, s, 32] y) {
        one = MatMul(x, w)
        a = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2, do_rotary = 1>
            (one, , , , , lengths, total, cos, sin)
        two = MatMul(a, w)
        y = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2, do_rotary = 1>
            (two, , , , , lengths, total, cos, sin)
    }
    """
    angles = np.outer(np.arange(64), 0.5 ** np.arange(8)).astype(np.float32)
    model = build(text, w=draw(32, 96), cos=np.cos(angles), sin=np.sin(angles))
    feeds = {"x": draw(2, 5, 32), "lengths": np.array([4, 4], np.int32),
             "total": np.array(5, np.int32)}  # fmt: skip
    before = ran(model, feeds)["y"]
    report = InsertOnlineHadamard().call(model, Context())
    check_graph(model)
    assert len(report.changed) == 2
    assert len(nodes(model, "Range")) == 1
    for custom_ops in (True, False):
        after = ran(model, feeds, custom_ops=custom_ops)["y"]
        assert np.abs(after - before).max() < 1e-5
