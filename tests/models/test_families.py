"""Families: shapes, causality, and checkpoints that land where they belong."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxq.models.families.efficientnet_lite import (  # noqa: E402
    LITE0,
    EfficientNetLite,
    LiteConfig,
    Stage,
    rename_checkpoint,
)
from onnxq.models.families.glass_decoder import (  # noqa: E402
    GlassConfig,
    GlassDecoder,
    load_arrays,
)
from onnxq.models.families.vit import VisionTransformer, VitConfig  # noqa: E402

TINY = GlassConfig(
    vocab_size=17, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, max_len=12,
    rope_base=10000.0, eps=1e-6,
)  # fmt: skip


@pytest.fixture
def glass():
    torch.manual_seed(0)
    return GlassDecoder(TINY).eval()


def test_lite0_has_the_published_size():
    module = EfficientNetLite(LITE0)
    assert sum(parameter.numel() for parameter in module.parameters()) == 4_652_008


def test_a_small_lite_halves_at_each_stride():
    config = LiteConfig(stages=(Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 2, 12)), image=32, stem=8,
                        head=16, classes=5)  # fmt: skip
    module = EfficientNetLite(config).eval()
    seen = []
    for block in module.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[1:])))
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert seen == [(8, 16, 16), (12, 8, 8), (12, 8, 8)]


def test_checkpoint_names_lose_their_underscores():
    state = {"_conv_stem.weight": 1, "_blocks.0._bn1.running_var": 2, "_fc.bias": 3}
    assert rename_checkpoint(state) == {
        "conv_stem.weight": 1,
        "blocks.0.bn1.running_var": 2,
        "fc.bias": 3,
    }


@pytest.mark.parametrize(("pool", "tokens"), [("class", 17), ("mean", 16)])
def test_a_vision_transformer_sees_every_patch_and_where_it_is(pool, tokens):
    config = VitConfig(image=8, patch=2, channels=1, width=16, depth=2, heads=4, inner=32,
                       classes=5, pool=pool)  # fmt: skip
    torch.manual_seed(0)
    module = VisionTransformer(config).eval()
    assert config.tokens == module.positions.shape[1] == tokens
    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        logits = module(image)
        assert logits.shape == (1, 5)
        for row, column in ((0, 0), (3, 6), (7, 7)):
            changed = image.clone()
            changed[..., row, column] += 1
            assert not torch.allclose(module(changed), logits, atol=1e-6)
        assert not torch.allclose(module(image.flip(-1)), logits, atol=1e-6)


def test_the_attention_of_a_vision_transformer_is_torchs():
    config = VitConfig(image=8, patch=2, channels=1, width=16, depth=1, heads=4, inner=32,
                       classes=5)  # fmt: skip
    torch.manual_seed(0)
    ours = VisionTransformer(config).eval().blocks[0].attention
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
        x = torch.randn(2, 7, 16)
        assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)


def test_a_glass_decoder_never_looks_ahead(glass):
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    other = torch.tensor([[1, 2, 3, 9, 8]])
    with torch.no_grad():
        first, second = glass(ids), glass(other)
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:])


def test_a_glass_decoder_knows_the_order(glass):
    with torch.no_grad():
        first = glass(torch.tensor([[1, 2, 3]]))[0, -1]
        second = glass(torch.tensor([[2, 1, 3]]))[0, -1]
    assert not torch.allclose(first, second)


def test_glass_arrays_are_transposed_into_place(glass):
    arrays = {}
    for name, tensor in glass.state_dict().items():
        if name == "embed.weight":
            arrays["E"] = tensor.numpy()
        elif tensor.ndim == 2:
            arrays[name.removesuffix(".weight")] = tensor.numpy().T
        else:
            arrays[name] = tensor.numpy()
    torch.manual_seed(1)
    copy = GlassDecoder(TINY).eval()
    load_arrays(copy, arrays)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(copy(ids), glass(ids))
    with pytest.raises(RuntimeError, match="Missing key"):
        load_arrays(copy, {name: arrays[name] for name in arrays if name != "E"})


def test_whisper_arrays_make_the_module_they_came_from(tmp_path):
    pytest.importorskip("transformers")
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from onnxq.models.families import whisper

    config = WhisperConfig(
        vocab_size=60, d_model=16, num_mel_bins=8, encoder_layers=2, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_source_positions=1500, max_target_positions=448,
        decoder_start_token_id=1, bos_token_id=2, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    source = WhisperForConditionalGeneration(config).eval()
    state = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    arrays = {ours: state[f"model.{theirs}"] for ours, theirs in whisper._OUTSIDE.items()}
    for side, layers in (("encoder", 2), ("decoder", 1)):
        for layer in range(layers):
            for part, targets in whisper._IN_LAYER.items():
                for leaf in ("weight", "bias"):
                    names = [f"model.{side}.layers.{layer}.{t}.{leaf}" for t in targets]
                    present = [name for name in names if name in state]
                    if not present:
                        continue
                    width = state[present[0]].shape[0]
                    pieces = [state.get(name, np.zeros(width, np.float32)) for name in names]
                    norm = {"weight": "gamma", "bias": "beta"}[leaf] if "norm" in part else leaf
                    arrays[f"{side}/layer_{layer}/{part}/{norm}"] = np.concatenate(pieces)
    arrays |= {"encoder/num_heads": np.array(2, np.int16), "decoder/num_heads": np.array(2)}
    rebuilt = dict(whisper.transformers_arrays(arrays))
    assert rebuilt.keys() == state.keys() - {"proj_out.weight"}
    for name, array in rebuilt.items():
        assert np.array_equal(array, state[name])
    made = whisper._config(arrays)
    for key in ("d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "vocab_size"):
        assert getattr(made, key) == getattr(config, key)
