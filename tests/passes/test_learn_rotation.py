"""learn_rotation: it starts from the closed passes, keeps the function, and lowers the loss."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxq.errors import CalibrationError, RecipeError, UnsupportedGraph
from onnxq.graph import clone_model, read_weight
from onnxq.graph.check import check_graph, name_nodes
from onnxq.graph.stage import Stage, mark_stage
from onnxq.learning import rotation_learning
from onnxq.passes.base import Context
from onnxq.passes.fold_norm_scales import FoldNormScales
from onnxq.passes.learn_rotation import LearnRotation
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.rotate_heads import RotateHeads
from onnxq.passes.rotate_residual import RotateResidual
from onnxq.runtime import open_session
from onnxq.runtime.work_folder import WorkFolder

WIDTH, HEADS, SHARED, HEAD, INNER, VOCABULARY, TOKENS = 32, 4, 2, 16, 40, 50, 12
QUICK = {
    "steps": 12,
    "rate": 5e-3,
    "scale_rate": 5e-3,
    "samples": 8,
    "weight_format": "int4_g16",
    "rotate_cache": True,
}


def _decoder(layers: int = 2, seed: int = 0) -> ir.Model:
    """A decoder as genai's builder writes it, with a few loud channels."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int, scale: float | None = None) -> str:
        size = shape[0] ** -0.5 if scale is None else scale
        weights[name] = (random.standard_normal(shape) * size).astype(np.float32)
        return name

    weight("table", VOCABULARY, WIDTH, scale=1.0)
    weights["table"][:, :3] *= 12.0
    lines, here, normed = ["x = Gather (table, ids)"], "x", "n0"
    weights["n0_g"] = np.exp(random.standard_normal(WIDTH)).astype(np.float32)
    lines.append("n0 = SimplifiedLayerNormalization <axis = -1> (x, n0_g)")
    for i in range(layers):
        weight(f"qkv{i}", WIDTH, (HEADS + 2 * SHARED) * HEAD)
        weight(f"o{i}", HEADS * HEAD, WIDTH)
        weight(f"gate{i}", WIDTH, INNER)
        weight(f"up{i}", WIDTH, INNER)
        weight(f"down{i}", INNER, WIDTH)
        for end in ("m", "n"):
            weights[f"{end}{i + 1}_g"] = np.exp(random.standard_normal(WIDTH)).astype(np.float32)
        lines += [
            f"p{i} = MatMul ({normed}, qkv{i})",
            f"a{i}, k{i}, v{i} = com.microsoft.GroupQueryAttention <num_heads = {HEADS}, "
            f"kv_num_heads = {SHARED}> (p{i}, , , pk{i}, pv{i}, lengths, total)",
            f"b{i} = MatMul (a{i}, o{i})",
            f"m{i + 1}, , , r{i} = com.microsoft.SkipSimplifiedLayerNormalization ({here}, b{i}, "
            f"m{i + 1}_g)",
            f"g{i} = MatMul (m{i + 1}, gate{i})  s{i} = Sigmoid (g{i})  w{i} = Mul (g{i}, s{i})",
            f"u{i} = MatMul (m{i + 1}, up{i})  h{i} = Mul (w{i}, u{i})",
            f"d{i} = MatMul (h{i}, down{i})",
            f"n{i + 1}, , , t{i} = com.microsoft.SkipSimplifiedLayerNormalization (r{i}, d{i}, "
            f"n{i + 1}_g)",
        ]
        here, normed = f"t{i}", f"n{i + 1}"
    weight("head", WIDTH, VOCABULARY)
    lines.append(f"logits = MatMul ({normed}, head)")
    cache = "".join(f", float[1, 2, 0, 16] p{t}{i}" for i in range(layers) for t in "kv")
    present = "".join(f", float[1, 2, s, 16] {t}{i}" for i in range(layers) for t in "kv")
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
        f"g (int64[1, s] ids, int32[1] lengths, int32 total{cache}) "
        f"=> (float[1, s, {VOCABULARY}] logits{present}) {{ {'  '.join(lines)} }}"
    )
    read = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, array in weights.items():
        if name not in read:
            continue
        value = read[name]
        value.const_value, value.shape = ir.tensor(array, name=name), ir.Shape(array.shape)
        value.dtype = ir.DataType.FLOAT
        model.graph.register_initializer(value)
    name_nodes(model)
    FoldNormScales().call(model, Context())
    mark_stage(model, Stage.PREPARED)
    return model


def _samples(count: int = 8, layers: int = 2) -> list[dict[str, np.ndarray]]:
    empty = np.zeros((1, SHARED, 0, HEAD), np.float32)
    fixed = {f"p{t}{i}": empty for i in range(layers) for t in "kv"}
    fixed |= {"lengths": np.array([TOKENS - 1], np.int32), "total": np.array(TOKENS, np.int32)}
    random = np.random.default_rng(1)
    return [{**fixed, "ids": random.integers(0, VOCABULARY, (1, TOKENS))} for _ in range(count)]


def _logits(model: ir.Model) -> np.ndarray:
    with open_session(model) as session:
        return np.concatenate([session.run(sample)["logits"] for sample in _samples()])


def _weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: read_weight(value) for name, value in model.graph.initializers.items()}


def test_without_steps_it_is_exactly_the_start() -> None:
    model = _decoder()
    other = clone_model(model)
    report = LearnRotation(steps=0, seed=3, rotate_cache=True).call(model, Context())
    assert report.modified
    assert report.notes == ("steps is 0: the start is kept as it is",)
    RotateResidual(seed=3).call(other, Context())
    RotateHeads(seed=3, rotate_cache=True).call(other, Context())
    mine, want = _weights(model), _weights(other)
    assert set(mine) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(mine[name], array)


@pytest.mark.parametrize("descent", ["riemannian", "cayley"])
@pytest.mark.parametrize("loss", ["blocks", "outputs"])
def test_the_float_function_stays_and_the_loss_falls(descent: str, loss: str) -> None:
    model = _decoder()
    before = _logits(model)
    step = LearnRotation(descent=descent, loss=loss, **QUICK)
    report = step.call(model, Context(samples=_samples()))
    check_graph(model)
    assert report.modified
    # float32 sums in another order: some hundred roundings, of the largest logit.
    np.testing.assert_allclose(_logits(model), before, atol=1e-4 * np.abs(before).max())
    (note,) = report.notes
    first, last = map(float, re.findall(r"([0-9.e+-]+) (?:before|after)", note))
    assert last < first
    assert set(report.moved_outputs) == {"v0", "v1"}
    assert not step.call(model, Context(samples=_samples())).modified


def test_what_an_earlier_run_has_learned_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [_decoder() for _ in range(4)]
    step = LearnRotation(**QUICK)
    step.call(models[0], Context(samples=_samples()))
    with WorkFolder(tmp_path) as work:
        kept = Context(samples=_samples(), work=work, origin="here")
        step.call(models[1], kept)
        monkeypatch.setattr(rotation_learning, "learn_rotations", None)
        report = step.call(models[2], kept)
        with pytest.raises(TypeError):  # another origin: nothing is found
            step.call(models[3], dataclasses.replace(kept, origin="elsewhere"))
    assert report.notes[1] == "they were learned in an earlier run"
    wanted = _weights(models[0])
    for model in models[1:3]:
        for name, array in _weights(model).items():
            np.testing.assert_array_equal(array, wanted[name])


def test_starting_from_nothing_the_rotation_is_what_helps() -> None:
    """Loud channels in the stream: learning finds a better basis than the given one."""
    plain, learned = _decoder(), _decoder()
    exact = _logits(plain)
    options = {**QUICK, "steps": 80, "rate": 0.01, "scale_rate": 0.02, "loss": "outputs"}
    step = LearnRotation(start="none", start_heads="none", **options)
    step.call(learned, Context(samples=_samples()))
    errors = []
    for model in (plain, learned):
        QuantizeActivations(bits=4).call(model, Context())
        QuantizeWeights(format="int4_g16").call(model, Context())
        errors.append(float(np.square(_logits(model) - exact).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_the_same_seed_gives_the_same_bytes() -> None:
    found = []
    for _ in range(2):
        model = _decoder()
        LearnRotation(**{**QUICK, "steps": 4}).call(model, Context(samples=_samples()))
        found.append(_weights(model))
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name])


def test_it_says_what_it_needs() -> None:
    with pytest.raises(CalibrationError, match=r"learns on samples.*or set steps=0"):
        LearnRotation(rotate_cache=True).call(_decoder(), Context())
    with pytest.raises(RecipeError, match="no rotation 'hadmard'"):
        LearnRotation(start="hadmard")
    with pytest.raises(RecipeError, match="loss='kl' must be"):
        LearnRotation(loss="kl")  # type: ignore[arg-type]
    model = _decoder()
    mark_stage(model, Stage.CALIBRATED)
    with pytest.raises(UnsupportedGraph, match="already CALIBRATED"):
        LearnRotation().requires(model)


def test_values_of_a_cache_are_left_alone_unless_told() -> None:
    model = _decoder()
    step = LearnRotation(**{**QUICK, "rotate_cache": False, "steps": 2})
    report = step.call(model, Context(samples=_samples()))
    assert report.moved_outputs == ()
    assert any("cache" in (site.reason or "") for site in report.sites)
    assert torch.get_num_threads() >= 1


def _masked(layers: int = 2) -> ir.Model:
    """A decoder written out, whose first block computes the causal mask that all blocks read."""
    random = np.random.default_rng(5)
    weights = {"table": random.standard_normal((VOCABULARY, WIDTH)), "ones": np.ones(WIDTH)}
    lines = [
        "x0 = Gather (table, ids)  sh = Shape (ids)  n = Gather (sh, i1v)"
        "  nn = Concat <axis = 0> (n, n)"
        "  full = Expand (never, nn)  mask = Trilu <upper = 1> (full, i1)"
    ]
    for i in range(layers):
        for name in "qkvo":
            weights[f"{name}{i}"] = random.standard_normal((WIDTH, WIDTH)) * WIDTH**-0.5
        weights[f"up{i}"] = random.standard_normal((WIDTH, INNER)) * WIDTH**-0.5
        weights[f"down{i}"] = random.standard_normal((INNER, WIDTH)) * INNER**-0.5
        lines.append(
            f"a{i} = SimplifiedLayerNormalization <axis = -1> (x{i}, ones)"
            f"  Q{i} = MatMul (a{i}, q{i})  K{i} = MatMul (a{i}, k{i})  V{i} = MatMul (a{i}, v{i})"
            f"  T{i} = Transpose <perm = [0, 2, 1]> (K{i})  s{i} = MatMul (Q{i}, T{i})"
            f"  c{i} = Add (s{i}, mask)  p{i} = Softmax <axis = -1> (c{i})"
            f"  h{i} = MatMul (p{i}, V{i})  O{i} = MatMul (h{i}, o{i})  r{i} = Add (x{i}, O{i})"
            f"  m{i} = SimplifiedLayerNormalization <axis = -1> (r{i}, ones)"
            f"  u{i} = MatMul (m{i}, up{i})  e{i} = Relu (u{i})  d{i} = MatMul (e{i}, down{i})"
            f"  x{i + 1} = Add (r{i}, d{i})"
        )
    weights["head"] = random.standard_normal((WIDTH, VOCABULARY)) * WIDTH**-0.5
    lines.append(
        f"z = SimplifiedLayerNormalization <axis = -1> (x{layers}, ones)  logits = MatMul (z, head)"
    )
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]> g (int64[1, s] ids) '
        f"=> (float[1, s, {VOCABULARY}] logits) {{ {'  '.join(lines)} }}"
    )
    arrays = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    arrays |= {"never": np.array(-np.inf, np.float32), "i1": np.array(1), "i1v": np.array([1])}
    read = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, array in arrays.items():
        value = read[name]
        value.const_value, value.shape = ir.tensor(array, name=name), ir.Shape(array.shape)
        value.dtype = value.const_value.dtype
        model.graph.register_initializer(value)
    name_nodes(model)
    mark_stage(model, Stage.PREPARED)
    return model


def test_a_mask_between_blocks_is_not_compared() -> None:
    random = np.random.default_rng(6)
    samples = [{"ids": random.integers(0, VOCABULARY, (1, TOKENS))} for _ in range(4)]
    step = LearnRotation(**{**QUICK, "steps": 4, "heads": False})
    report = step.call(_masked(), Context(samples=samples))
    first, last = map(float, re.findall(r"([0-9.e+-]+) (?:before|after)", report.notes[0]))
    assert 0 < last <= first < 1
