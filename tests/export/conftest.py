"""Tiny checkpoints made on the spot: random weights, a tokenizer trained on one sentence."""

import dataclasses

import numpy as np
import pytest

VOCABULARY = 120


def save_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def randomized(module, seed=0):
    """Fill every parameter, biases and norms too, so that none can be dropped unnoticed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        offset = 1.0 if parameter.dim() == 1 else 0.0
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = offset + 0.2 * noise
    return module


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("checkpoints") / "llama"
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    randomized(LlamaForCausalLM(config)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def llama_export(llama_folder, tmp_path_factory):
    from onnxq.export import from_hf

    return from_hf(llama_folder, tmp_path_factory.mktemp("exports") / "llama")


@dataclasses.dataclass
class GgufRecipe:
    """What to write into a tiny GGUF file of the llama family."""

    architecture: str = "llama"
    quantized: bool = False
    biases: bool = False
    head_norms: bool = False
    tied: bool = True
    rope_factors: np.ndarray | None = None
    metadata: tuple = ()
    leave_out: tuple = ()
    head_size: int = 16


def write_gguf(path, recipe=None):
    """Write a two-layer model: hidden 64, four heads, two of them for keys and values."""
    import gguf

    recipe = recipe or GgufRecipe()
    generator = np.random.default_rng(0)
    hidden, heads, kv_heads, width = 64, 4, 2, 96
    writer = gguf.GGUFWriter(path, recipe.architecture)
    prefix = recipe.architecture
    numbers = {
        "block_count": 2,
        "context_length": 256,
        "embedding_length": hidden,
        "feed_forward_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "vocab_size": VOCABULARY,
    }
    for key, value in numbers.items():
        if key not in recipe.leave_out:
            writer.add_uint32(f"{prefix}.{key}", value)
    writer.add_float32(f"{prefix}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{prefix}.rope.freq_base", 20000.0)
    writer.add_uint32(f"{prefix}.attention.key_length", recipe.head_size)
    if recipe.architecture == "llama":
        writer.add_uint32(f"{prefix}.rope.dimension_count", recipe.head_size)
    for key, value in recipe.metadata:
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{prefix}.{key}", value)
    _add_tokenizer(writer)

    def tensor(name, *shape):
        offset = 1.0 if len(shape) == 1 else 0.0
        values = (offset + 0.2 * generator.standard_normal(shape)).astype(np.float32)
        if recipe.quantized and len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    q, kv = heads * recipe.head_size, kv_heads * recipe.head_size
    tensor("token_embd.weight", VOCABULARY, hidden)
    tensor("output_norm.weight", hidden)
    if not recipe.tied:
        tensor("output.weight", VOCABULARY, hidden)
    if recipe.rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", recipe.rope_factors.astype(np.float32))
    for layer in range(2):
        block = f"blk.{layer}"
        tensor(f"{block}.attn_norm.weight", hidden)
        tensor(f"{block}.ffn_norm.weight", hidden)
        for name, rows, columns in (
            ("attn_q", q, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, q),
            ("ffn_gate", width, hidden),
            ("ffn_up", width, hidden),
            ("ffn_down", hidden, width),
        ):
            tensor(f"{block}.{name}.weight", rows, columns)
            if recipe.biases and name in ("attn_q", "attn_k", "attn_v"):
                tensor(f"{block}.{name}.bias", rows)
        if recipe.head_norms:
            tensor(f"{block}.attn_q_norm.weight", recipe.head_size)
            tensor(f"{block}.attn_k_norm.weight", recipe.head_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer):
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 5]
    tokens = ["<s>", "</s>", "<unk>", *letters, "th", "the"]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_array("tokenizer.ggml.merges", ["t h", "th e"])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.unknown_token_id", 2)
    writer.add_uint32("tokenizer.ggml.padding_token_id", 1)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)


@pytest.fixture(scope="session")
def make_gguf():
    return write_gguf


@pytest.fixture(scope="session")
def gguf_recipe():
    return GgufRecipe


@pytest.fixture(scope="session")
def randomize():
    return randomized


@pytest.fixture(scope="session")
def add_tokenizer():
    return save_tokenizer


def transformers_greedy(folder, prompt, count):
    import torch

    from onnxq.export.hf_folder import load_module

    module = load_module("AutoModelForCausalLM", folder)
    ids = torch.tensor([prompt])
    out = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=1,
    )
    return out[0, len(prompt) :].tolist()


@pytest.fixture(scope="session")
def reference_greedy():
    return transformers_greedy


def genai_greedy(folder, prompt, count):
    from onnxq.runtime.generation import TextGenerator

    with TextGenerator(folder) as generator:
        return list(generator.generate(prompt, count, stop_at_end=False).ids)


@pytest.fixture(scope="session")
def greedy_tokens():
    return genai_greedy
