import math

import numpy as np
import pytest

from onnxq.errors import ExportError
from onnxq.export import from_torch
from onnxq.runtime import open_session

torch = pytest.importorskip("torch")


class Scorer(torch.nn.Module):
    """Two outputs, two inputs, a mask, dropout that must be off."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.drop = torch.nn.Dropout(0.5)
        self.out = torch.nn.Linear(8, 4)

    def forward(self, x, mask):
        scores = self.out(self.drop(torch.nn.functional.gelu(self.norm(x))))
        return {"scores": scores * mask[..., None], "total": x.sum(1)}


class TinyLm(torch.nn.Module):
    """RMSNorm, rotary embedding, grouped-query attention, SwiGLU; no cache."""

    def __init__(self, vocabulary=50, hidden=32, heads=4, kv_heads=2, width=48):
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, hidden // heads
        linear = torch.nn.Linear
        self.embed = torch.nn.Embedding(vocabulary, hidden)
        self.norm1, self.norm2 = torch.nn.RMSNorm(hidden), torch.nn.RMSNorm(hidden)
        self.q = linear(hidden, heads * self.size, bias=False)
        self.k = linear(hidden, kv_heads * self.size, bias=False)
        self.v = linear(hidden, kv_heads * self.size, bias=False)
        self.o = linear(hidden, hidden, bias=False)
        self.gate, self.up = linear(hidden, width, bias=False), linear(hidden, width, bias=False)
        self.down = linear(width, hidden, bias=False)

    def rotated(self, x):
        half = self.size // 2
        angles = torch.outer(
            torch.arange(x.shape[2], dtype=torch.float32),
            10000.0 ** (-torch.arange(half, dtype=torch.float32) / half),
        )
        cos, sin = torch.cos(angles), torch.sin(angles)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, input_ids):
        batch, length = input_ids.shape
        x = self.embed(input_ids)
        y = self.norm1(x)
        q, k, v = (
            projection(y).view(batch, length, -1, self.size).transpose(1, 2)
            for projection in (self.q, self.k, self.v)
        )
        repeats = self.heads // self.kv_heads
        attended = torch.nn.functional.scaled_dot_product_attention(
            self.rotated(q),
            self.rotated(k).repeat_interleave(repeats, 1),
            v.repeat_interleave(repeats, 1),
            is_causal=True,
        )
        x = x + self.o(attended.transpose(1, 2).reshape(batch, length, -1))
        y = self.norm2(x)
        x = x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))
        return x @ self.embed.weight.T


def test_outputs_names_and_other_sizes(tmp_path):
    module = Scorer()
    axes = {0: "batch", 1: "length"}
    exported = from_torch(
        module,
        (torch.randn(2, 3, 8), torch.ones(2, 3)),
        tmp_path / "out",
        dynamic_shapes={"x": axes, "mask": axes},
    )
    assert set(exported.errors) == {
        f"{output} of {trial}"
        for output in ("scores", "total")
        for trial in ("example", "sizes + 1", "sizes + 3")
    }
    assert exported.largest_error <= exported.bound < 1e-5
    assert module.training
    assert module.drop.training
    with open_session(exported.models["model"]) as session:
        assert [spec.name for spec in session.inputs] == ["x", "mask"]
        assert [spec.name for spec in session.outputs] == ["scores", "total"]
        assert session.inputs[0].shape == ("batch", "length", 8)


def test_a_language_model_without_cache(tmp_path):
    torch.manual_seed(0)
    module = TinyLm()
    ids = torch.randint(0, 50, (2, 7))
    exported = from_torch(
        module,
        {"input_ids": ids},
        tmp_path / "out",
        dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}},
        output_names=["logits"],
        task="text-generation",
    )
    assert exported.largest_error < 1e-5
    with open_session(exported.models["model"]) as session, torch.no_grad():
        long = torch.randint(0, 50, (1, 40))
        logits = session.run({"input_ids": long.numpy()})["logits"]
        np.testing.assert_allclose(logits, module.eval()(long).numpy(), atol=1e-4)


def test_a_dynamic_batch_may_have_an_example_of_one(tmp_path):
    exported = from_torch(
        torch.nn.Linear(4, 3),
        (torch.randn(1, 4),),
        tmp_path / "out",
        dynamic_shapes={"input": {0: "batch"}},
    )
    with open_session(exported.models["model"]) as session:
        for batch in (1, 5):
            rows = np.ones((batch, 4), np.float32)
            assert session.run({"input": rows})["output"].shape == (batch, 3)


def test_a_half_precision_module_is_exported_in_float32_and_left_alone(tmp_path):
    module = torch.nn.Linear(4, 3).half()
    exported = from_torch(module, (torch.randn(2, 4).half(),), tmp_path / "out")
    assert module.weight.dtype == torch.float16
    with open_session(exported.models["model"]) as session:
        assert session.inputs[0].dtype == np.float32


class Untraceable(torch.nn.Module):
    def forward(self, x):
        return x * (1 if float(x.sum()) > 0 else 2)


class SizeInPython(torch.nn.Module):
    """Reads its batch as a number, so that the axis cannot be dynamic."""

    def forward(self, x):
        return x.reshape(2, -1)


@pytest.mark.parametrize(
    ("module", "inputs", "options", "sentence"),
    [
        (Scorer(), {"y": torch.ones(1)}, {}, r"forward has no input 'y': its inputs are x, mask"),
        (Scorer(), (torch.ones(1),) * 3, {}, "3 example inputs were given, and Scorer.forward"),
        (Scorer(), (torch.ones(1), 3), {}, "'mask' of Scorer is a int, not a tensor"),
        (Scorer(), (), {}, "was given no example input"),
        (
            torch.nn.ReLU(),
            (torch.ones(2, 3),),
            {"dynamic_shapes": {"z": {0: "n"}}},
            "dynamic_shapes names the input 'z', and the inputs are input",
        ),
        (
            torch.nn.ReLU(),
            (torch.ones(2, 3),),
            {"dynamic_shapes": {"input": {2: "n"}}},
            "names axis 2 of input 'input', whose example has 2 axes",
        ),
        (lambda x: x, (torch.ones(3),), {}, "A function was given where a torch.nn.Module"),
        (Untraceable(), (torch.ones(3),), {}, "torch.onnx.export failed on Untraceable"),
    ],
)
def test_what_cannot_be_exported_is_refused(module, inputs, options, sentence, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"an earlier export")
    with pytest.raises(ExportError, match=sentence):
        from_torch(module, inputs, out, overwrite=True, **options)
    assert (out / "model.onnx").read_bytes() == b"an earlier export"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_axis_that_is_not_really_dynamic_is_refused(tmp_path):
    with pytest.raises(ExportError, match="leave that axis out of dynamic_shapes"):
        from_torch(
            SizeInPython(),
            (torch.ones(2, 3),),
            tmp_path / "out",
            dynamic_shapes={"x": {0: "batch"}},
        )
    assert not (tmp_path / "out").exists()


class Forgetful(torch.nn.Module):
    """Computes something else each time, as a network with noise in it does."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return x * type(self).calls


def test_a_module_that_is_not_a_function_is_caught(tmp_path):
    with pytest.raises(ExportError, match="does not compute what the torch module Forgetful"):
        from_torch(Forgetful(), (torch.ones(3),), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_amplifies_rounding_is_judged_by_float64(tmp_path):
    class Chaotic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Linear(16, 16)

        def forward(self, x):
            x = torch.sin(self.mix(x))
            for _ in range(10):
                x = 3.9 * x.abs() * (1 - x.abs())
            return x

    torch.manual_seed(0)
    exported = from_torch(Chaotic(), (torch.randn(4, 16),), tmp_path / "out")
    assert math.isfinite(exported.largest_error)
    assert any("amplifies float32 rounding" in note for note in exported.notes)
