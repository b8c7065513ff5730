import json

import numpy as np
import pytest

from onnxq.errors import ExportError
from onnxq.export.gguf_file import open_gguf
from onnxq.export.gguf_llama import converts_directly, write_checkpoint


def llama3_factors(theta=20000.0, head_size=16, factor=32.0, context=8192):
    """The formula of transformers' modeling_rope_utils, written as llama.cpp computes it."""
    factors = []
    for index in range(0, head_size, 2):
        wavelength = 2 * np.pi * theta ** (index / head_size)
        if wavelength < context / 4.0:
            factors.append(1.0)
        elif wavelength > context / 1.0:
            factors.append(factor)
        else:
            smooth = (context / wavelength - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quantized": True},
        {"tied": False},
        {"architecture": "qwen2", "biases": True},
        # transformers' reader takes the head size of any Qwen3 for 128.
        {"architecture": "qwen3", "head_norms": True, "head_size": 128},
    ],
    ids=str,
)
def test_same_bits_as_transformers_own_reader(options, make_gguf, gguf_recipe, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from onnxq.export.hf_folder import load_module, quiet_transformers

    path = make_gguf(tmp_path / "tiny.gguf", gguf_recipe(**options))
    file = open_gguf(path)
    assert converts_directly(file)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_checkpoint(file, folder)
    ours = load_module("AutoModelForCausalLM", folder)
    with quiet_transformers():
        theirs = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=path.name, dtype=torch.float32
        )
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_large_models_are_written_in_shards(make_gguf, tmp_path, monkeypatch):
    from onnxq.export import gguf_llama
    from onnxq.export.hf_folder import load_module

    file = open_gguf(make_gguf(tmp_path / "tiny.gguf"))
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    for folder, limit in ((whole, 1 << 30), (sharded, 50_000)):
        folder.mkdir()
        monkeypatch.setattr(gguf_llama, "_SHARD_BYTES", limit)
        write_checkpoint(file, folder)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    a, b = (load_module("AutoModelForCausalLM", f).state_dict() for f in (whole, sharded))
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_llama3_rope_is_recovered_from_the_divisors(make_gguf, gguf_recipe, tmp_path):
    recipe = gguf_recipe(rope_factors=llama3_factors())
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_checkpoint(open_gguf(make_gguf(tmp_path / "tiny.gguf", recipe)), folder)
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    assert rope["rope_type"] == "llama3"
    assert rope["factor"] == 32.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from onnxq.export.hf_folder import load_module

    module = load_module("AutoModelForCausalLM", folder)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](module.config, "cpu")
    plain = 20000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / scaled.numpy(), llama3_factors(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rope_factors": np.linspace(1, 7, 8)}, "are not those of Llama 3.x"),
        ({"metadata": (("rope.scaling.type", "yarn"),)}, "scales its rotary embedding by 'yarn'"),
        ({"leave_out": ("embedding_length",)}, "does not state llama.embedding_length"),
    ],
)
def test_what_would_be_lost_is_refused(options, sentence, make_gguf, gguf_recipe, tmp_path):
    file = open_gguf(make_gguf(tmp_path / "tiny.gguf", gguf_recipe(**options)))
    with pytest.raises(ExportError, match=sentence):
        write_checkpoint(file, tmp_path)
