import json

import pytest

from onnxq.errors import ExportError
from onnxq.export import from_hf
from onnxq.export.speech import check_speech
from onnxq.runtime import open_session

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory, randomize, add_tokenizer):
    folder = tmp_path_factory.mktemp("speech") / "whisper"
    config = transformers.WhisperConfig(
        vocab_size=120,
        num_mel_bins=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_target_positions=48,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        decoder_start_token_id=0,
    )
    module = randomize(transformers.WhisperForConditionalGeneration(config))
    module.save_pretrained(folder)
    add_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def exported(whisper):
    return from_hf(whisper, whisper.parent / "out")


def test_encoder_and_decoder_agree(exported):
    assert exported.task == "automatic-speech-recognition"
    assert set(exported.models) == {"encoder", "decoder"}
    assert {"encoder", "prompt", "decode step 3"} <= set(exported.errors)
    assert exported.largest_error <= exported.bound < 1e-4


def test_runtime_files_come_along(exported):
    names = {path.name for path in exported.folder.iterdir()}
    assert {"genai_config.json", "audio_processor_config.json", "tokenizer.json"} <= names


def test_a_foreign_decoder_is_caught(exported, whisper, randomize):
    from onnxq.export.hf_folder import load_module

    other = randomize(load_module("AutoModelForSpeechSeq2Seq", whisper), seed=1)
    with (
        open_session(exported.models["encoder"]) as encoder,
        open_session(exported.models["decoder"]) as decoder,
        pytest.raises(ExportError, match="does not compute what the other checkpoint computes"),
    ):
        check_speech(encoder, decoder, other.eval(), source="the other checkpoint")


def test_unequal_depths_are_refused_before_any_work(whisper, tmp_path):
    config = json.loads((whisper / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "decoder_layers": 1}))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(whisper / name)
    with pytest.raises(ExportError, match="2 encoder and 1 decoder layers"):
        from_hf(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
