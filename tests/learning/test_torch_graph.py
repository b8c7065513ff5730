"""Sub-graphs as torch functions: cuts, refusals, gradients, and blocks of real models."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxq.errors import UnsupportedGraph, UsageError, ZooError
from onnxq.learning import TorchGraph

LAYER = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (float[b, s, 16] x, float[b, s, 16] r) => (float[b, s, 16] y, float[b, s, 16] sum)
<float[16] scale = {1,1,1,1,2,2,2,2,1,1,1,1,1,1,1,1}> {
    n, , , sum = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.00001> (x, r, scale)
    p = Sigmoid (n)
    h = Mul (n, p)
    y = Identity (h)
}"""


def _text(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def test_weights_taps_and_cuts() -> None:
    model = _text(LAYER)
    graph = TorchGraph(model, inputs=["x", "r"], outputs=["y", "sum"])
    x, r = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    plain = graph({"x": x, "r": r})
    torch.testing.assert_close(plain["sum"], x + r)
    doubled = graph({"x": x, "r": r}, weights={"scale": 2 * graph.weights["scale"]})
    normed = TorchGraph(model, inputs=["x", "r"], outputs=["n"])
    torch.testing.assert_close(
        doubled["y"],
        2 * normed({"x": x, "r": r})["n"] * torch.sigmoid(2 * normed({"x": x, "r": r})["n"]),
    )
    tail = TorchGraph(model, inputs=["n"], outputs=["y"])
    assert set(tail.weights) == set()
    assert tail.values == {"n", "p", "h", "y"}
    n = torch.randn(3, 16)
    torch.testing.assert_close(tail({"n": n})["y"], n * torch.sigmoid(n))
    # A tap stands for the value to every reader, inputs included.
    torch.testing.assert_close(
        tail({"n": n}, taps={"n": lambda v: 2 * v, "p": torch.ones_like})["y"], 2 * n
    )


def test_inputs_before_the_weights_may_be_named_as_outputs() -> None:
    graph = TorchGraph(_text(LAYER), inputs=["x", "r"], outputs=["x", "y", "scale"])
    x = torch.randn(1, 2, 16)
    found = graph({"x": x, "r": x})
    assert found["x"] is x
    assert found["scale"] is graph.weights["scale"]


def test_refusals_name_what_and_where() -> None:
    model = _text(LAYER)
    with pytest.raises(UnsupportedGraph, match=r"need 'r', read by node .* not among the inputs"):
        TorchGraph(model, inputs=["x"], outputs=["y"])
    with pytest.raises(UsageError, match=r"no value named 'yy'. Did you mean 'y'"):
        TorchGraph(model, inputs=["x", "r"], outputs=["yy"])
    graph = TorchGraph(model, inputs=["x", "r"], outputs=["y"])
    with pytest.raises(UsageError, match="input 'r' is not fed"):
        graph({"x": torch.zeros(1, 1, 16)})
    with pytest.raises(UsageError, match=r"no weight named 'scal'. Did you mean 'scale'"):
        graph(
            {"x": torch.zeros(1, 1, 16), "r": torch.zeros(1, 1, 16)},
            weights={"scal": torch.ones(1)},
        )
    with pytest.raises(UsageError, match="no value named 'q'"):
        graph({"x": torch.zeros(1), "r": torch.zeros(1)}, taps={"q": torch.relu})
    with pytest.raises(
        UnsupportedGraph, match=r"SkipSimplified.*com.microsoft.*float32 \[1, 2, 16\]"
    ):
        graph({"x": torch.zeros(1, 2, 16), "r": torch.zeros(1, 2, 7)})
    strange = _text(
        """<ir_version: 10, opset_import: ["" : 21, "my.own" : 3]>
        g (float[n] x) => (float[n] y) { h = Abs (x)
          [here] y = my.own.Twist (h) }"""
    )
    with pytest.raises(UnsupportedGraph, match=r"Twist .*'my.own', opset 3.* node 'here'.*Choose"):
        TorchGraph(strange, inputs=["x"], outputs=["y"])
    assert TorchGraph(strange, inputs=["x"], outputs=["h"])({"x": -torch.ones(2)})["h"].sum() == 2


def test_graphs_inside_are_refused() -> None:
    model = _text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (bool c, float[n] x) => (float[n] y) {
          [fork] y = If (c) <then_branch = t () => (float[n] a) { a = Abs (x) },
                            else_branch = e () => (float[n] b) { b = Neg (x) }> }"""
    )
    with pytest.raises(
        UnsupportedGraph, match=r"If .* node 'fork' has graphs inside.*lie after it"
    ):
        TorchGraph(model, inputs=["c", "x"], outputs=["y"])


def test_functions_are_inlined_and_the_model_is_left_alone() -> None:
    model = _text(
        """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[n] x) => (float[n] y) { y = f.twice <by = 3.0> (x) }
        <domain: "f", opset_import: ["" : 21]>
        twice <by> (a) => (b) { k = Constant <value_float: float = @by> ()
          b = Mul (a, k) }"""
    )
    graph = TorchGraph(model, inputs=["x"], outputs=["y"])
    torch.testing.assert_close(graph({"x": torch.ones(2)})["y"], torch.full((2,), 3.0))
    assert [node.op_type for node in model.graph] == ["twice"]


def test_compute_type_takes_the_place_of_the_floats() -> None:
    model = _text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float16[n] x) => (float16[n] y) <float[1] v = {0.1}> {
          w = Cast <to = 10> (v)
          h = Mul (x, w)
          f = Cast <to = 1> (h)
          y = Cast <to = 10> (f) }"""
    )
    half = TorchGraph(model, inputs=["x"], outputs=["y"])
    assert half({"x": torch.ones(2, dtype=torch.float16)})["y"].dtype == torch.float16
    wide = TorchGraph(model, inputs=["x"], outputs=["f", "y"], compute=torch.float64)
    found = wide({"x": torch.ones(2, dtype=torch.float16)})
    assert found["y"].dtype == found["f"].dtype == torch.float64
    assert float(found["y"][0]) == float(np.float32(0.1))


def _gradcheck(text: str, sizes: dict[str, tuple[int, ...]], outputs: list[str], **fixed) -> None:
    model = _text(text)
    graph = TorchGraph(
        model, inputs=[v.name for v in model.graph.inputs], outputs=outputs, compute=torch.float64
    )
    generator = torch.Generator().manual_seed(0)
    free = [torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes.values()]
    names = list(sizes)

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, tensors, strict=True)) | fixed
        weights = {n: given.pop(n) for n in names if n in graph.weights}
        found = graph(given, weights=weights)
        return tuple(found[name] for name in outputs)

    assert torch.autograd.gradcheck(function, tuple(t.requires_grad_() for t in free))


def test_gradients_of_a_decoder_block_equal_finite_differences() -> None:
    _gradcheck(
        """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[1, 4, 8] x, float[1, 1, 2, 4] k, float[1, 1, 2, 4] v, int32[1] n, int32 t,
           float[16, 2] c, float[16, 2] d, float[8, 16] w, float[8, 8] o)
          => (float[1, 4, 8] y) <float[8] u = {1,1,1,1,1,1,1,1}> {
          a = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001> (x, u)
          qkv = MatMul (a, w)
          h, k1, v1 = com.microsoft.GroupQueryAttention
            <num_heads = 2, kv_num_heads = 1, do_rotary = 1> (qkv, , , k, v, n, t, c, d)
          p = MatMul (h, o)
          s, , , r = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.00001> (x, p, u)
          g = Sigmoid (s)
          m = Mul (s, g)
          y = Add (m, r) }""",
        {
            "x": (1, 4, 8),
            "w": (8, 16),
            "o": (8, 8),
            "u": (8,),
            "k": (1, 1, 2, 4),
            "v": (1, 1, 2, 4),
        },
        ["y", "k1"],
        n=torch.tensor([5], dtype=torch.int32),
        t=torch.tensor(6, dtype=torch.int32),
        c=torch.randn(16, 2, dtype=torch.float64),
        d=torch.randn(16, 2, dtype=torch.float64),
    )


def test_gradients_of_a_convolution_block_equal_finite_differences() -> None:
    _gradcheck(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 2, 5, 5] x, float[4, 2, 3, 3] w, float[4] b, float[4] s, float[4] m,
           float[2, 4] q)
          => (float[1, 2] y) <float[4] u = {1, 2, 1, 2}> {
          h = Conv <pads = [1, 0, 0, 1], strides = [2, 1]> (x, w, b)
          n = BatchNormalization (h, s, b, m, u)
          a = HardSwish (n)
          p = AveragePool <kernel_shape = [2, 2], ceil_mode = 1> (a)
          l = GlobalAveragePool (p)
          f = Flatten (l)
          z = Gemm <transB = 1> (f, q)
          y = LogSoftmax (z) }""",
        {"x": (1, 2, 5, 5), "w": (4, 2, 3, 3), "b": (4,), "s": (4,), "m": (4,), "q": (2, 4)},
        ["y"],
    )


def test_quantizers_pass_gradients_straight_through_inside_their_range() -> None:
    model = _text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[n] x) => (float[n] y) <float s = {0.5}, int8 z = {0}> {
          q = QuantizeLinear (x, s, z)
          y = DequantizeLinear (q, s, z) }"""
    )
    x = torch.tensor([0.3, -20.0, 100.0], requires_grad=True)
    y = TorchGraph(model, inputs=["x"], outputs=["y"])({"x": x})["y"]
    torch.testing.assert_close(y, torch.tensor([0.5, -20.0, 63.5]))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 1.0, 0.0]))


def test_attention_without_a_visible_key_has_finite_gradients() -> None:
    model = _text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[1, 1, 2, 4] q, float[1, 1, 3, 4] k, bool[2, 3] m) => (float[1, 1, 2, 4] y) {
          y = Attention (q, k, k, m) }"""
    )
    q, k = torch.randn(1, 1, 2, 4, requires_grad=True), torch.randn(1, 1, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    y = TorchGraph(model, inputs=["q", "k", "m"], outputs=["y"])({"q": q, "k": k, "m": mask})["y"]
    assert not y[0, 0, 1].any()
    y.sum().backward()
    assert q.grad.isfinite().all() and k.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "efficientnet-lite0", "whisper-tiny-en", "smollm2"])
def test_real_models_equal_the_runtime(name: str, tmp_path) -> None:
    """Whole models on their own data; the tolerance is that of float32 sums in another order."""
    from onnxq.graph import load
    from onnxq.models import registry
    from onnxq.runtime import open_session

    task = registry.task(name)
    try:
        built = task.build(tmp_path)
        samples = task.calibration(built)
    except ZooError as error:
        pytest.skip(str(error))
    for role, path in built.items():
        model = load(path)
        sample = next(iter(samples[role]))
        outputs = [v.name for v in model.graph.outputs]
        graph = TorchGraph(model, inputs=[v.name for v in model.graph.inputs], outputs=outputs)
        with open_session(path) as session, torch.no_grad():
            want = session.run(sample)
            got = graph({n: torch.from_numpy(np.array(a)) for n, a in sample.items()})
        for output in outputs:
            size = float(np.abs(want[output]).max())
            np.testing.assert_allclose(got[output].numpy(), want[output], rtol=0, atol=1e-4 * size)
