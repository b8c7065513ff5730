import json

import pytest

from onnxq.errors import ExportError
from onnxq.export import export_model, from_hf
from onnxq.export.from_hf import detect_task
from onnxq.runtime import open_session

transformers = pytest.importorskip("transformers")

_BERT = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory, randomize, add_tokenizer):
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(**_BERT)
    randomize(transformers.BertModel(config)).save_pretrained(folder)
    add_tokenizer(folder)
    return folder


def test_a_decoder_agrees_at_every_step(llama_export):
    assert llama_export.task == "text-generation"
    assert {"prompt of 1", "batch of 2", "decode step 3"} <= set(llama_export.errors)
    assert llama_export.largest_error <= llama_export.bound < 1e-4


def test_a_decoder_generates_the_tokens_of_transformers(
    llama_folder, llama_export, greedy_tokens, reference_greedy
):
    prompt = [3, 50, 7, 7]
    expected = reference_greedy(llama_folder, prompt, 64)
    assert greedy_tokens(llama_export.folder, prompt, 64) == expected


def test_an_encoder_with_padding_keeps_its_tokenizer(bert, tmp_path):
    exported = export_model(bert, tmp_path / "out")
    assert exported.task == "feature-extraction"
    assert exported.largest_error <= exported.bound < 1e-5
    assert (exported.folder / "tokenizer.json").is_file()
    with open_session(exported.models["model"]) as session:
        names = [spec.name for spec in session.inputs]
        assert names == ["input_ids", "attention_mask", "token_type_ids"]
        assert session.inputs[0].shape == ("batch", "sequence")
        assert session.outputs[0].name == "last_hidden_state"


def test_an_image_classifier(tmp_path, randomize):
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    module = randomize(transformers.ViTForImageClassification(config))
    module.save_pretrained(tmp_path / "vit")
    exported = from_hf(tmp_path / "vit", tmp_path / "out")
    assert exported.task == "image-classification"
    assert exported.largest_error <= exported.bound < 1e-5
    with open_session(exported.models["model"]) as session:
        assert session.inputs[0].shape == ("batch", 3, 32, 32)
        assert session.outputs[0].shape == ("batch", 5)


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"crop_size": {"height": 48, "width": 32}, "size": {"shortest_edge": 64}}, (48, 32)),
        ({"do_center_crop": False, "crop_size": 48, "size": {"shortest_edge": 64}}, (64, 64)),
        ({"size": 40}, (40, 40)),
        ({}, (32, 32)),
    ],
)
def test_the_image_size_is_the_processors_or_the_configurations(processor, size, tmp_path):
    from onnxq.export.from_hf import _image_size

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert _image_size(transformers.ViTConfig(image_size=32), tmp_path) == size


def test_a_head_that_the_checkpoint_lacks_is_not_made_up(bert, tmp_path):
    with pytest.raises(ExportError, match=r"has no value for \d+ weights.*'classifier\.bias'"):
        from_hf(bert, tmp_path / "out", task="text-classification")
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_names_the_known_ones(bert, tmp_path):
    with pytest.raises(ExportError, match="There is no task 'translation': choose one of automat"):
        from_hf(bert, tmp_path / "out", task="translation")


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("BertForSequenceClassification", "text-classification"),
        ("ResNetForImageClassification", "image-classification"),
        ("BertModel", "feature-extraction"),
    ],
)
def test_tasks_by_architecture(architecture, task, tmp_path):
    assert detect_task({"architectures": [architecture]}, tmp_path) == task


def test_an_architecture_without_a_task_is_refused(tmp_path):
    with pytest.raises(ExportError, match="the architecture 'T5ForConditionalGeneration'"):
        detect_task({"architectures": ["T5ForConditionalGeneration"]}, tmp_path)


def test_a_folder_without_config_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ExportError, match=r"has no config\.json"):
        from_hf(tmp_path / "in", tmp_path / "out")


def test_a_checkpoint_without_weights_or_tokenizer_is_refused(llama_folder, tmp_path):
    checkpoint = tmp_path / "in"
    checkpoint.mkdir()
    for name, sentence in (
        ("config.json", r"has a config\.json and no weights"),
        ("model.safetensors", "has no tokenizer"),
    ):
        (checkpoint / name).write_bytes((llama_folder / name).read_bytes())
        with pytest.raises(ExportError, match=sentence):
            from_hf(checkpoint, tmp_path / "out")


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ExportError, match="cannot be read as JSON"):
        from_hf(tmp_path, tmp_path / "out")


def test_a_truncated_checkpoint_is_refused(bert, tmp_path):
    for path in bert.iterdir():
        content = path.read_bytes()
        keep = len(content) // 2 if path.suffix == ".safetensors" else len(content)
        (tmp_path / path.name).write_bytes(content[:keep])
    with pytest.raises(ExportError, match="transformers cannot load"):
        from_hf(tmp_path, tmp_path.parent / "never")


def test_a_hub_id_without_network_says_so(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ExportError, match=r"no folder 'acme/model', and it cannot be fetched"):
        from_hf("acme/model", tmp_path / "out")


def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    for name in ("nowhere", "./nowhere/at/all", str(tmp_path / "no")):
        with pytest.raises(ExportError, match="neither a folder nor a hub id"):
            from_hf(name, tmp_path / "out")


def test_an_architecture_that_the_builder_does_not_know_is_traced(
    tmp_path, randomize, add_tokenizer, greedy_tokens, reference_greedy
):
    config = transformers.GPTNeoXConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    randomize(transformers.GPTNeoXForCausalLM(config)).save_pretrained(tmp_path / "in")
    add_tokenizer(tmp_path / "in")
    exported = from_hf(tmp_path / "in", tmp_path / "out")
    assert "torch.onnx.export" in exported.notes[0]
    assert exported.largest_error <= exported.bound < 1e-5
    with open_session(exported.models["model"]) as session:
        names = [spec.name for spec in session.inputs]
    assert names[:4] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]
    prompt = [3, 50, 7]
    expected = reference_greedy(tmp_path / "in", prompt, 64)
    assert greedy_tokens(exported.folder, prompt, 64) == expected


def test_a_decoder_without_keys_and_values_is_refused(tmp_path, randomize, add_tokenizer):
    config = transformers.MambaConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=1, state_size=4
    )
    randomize(transformers.MambaForCausalLM(config)).save_pretrained(tmp_path / "in")
    add_tokenizer(tmp_path / "in")
    with pytest.raises(ExportError, match="something else than one key and one value per layer"):
        from_hf(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bare_torch_checkpoint_is_explained(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02")
    with pytest.raises(ExportError, match="holds weights without the network"):
        export_model(tmp_path / "weights.pth", tmp_path / "out")
