import pytest

from onnxq.errors import ExportError
from onnxq.export import from_gguf


@pytest.fixture(scope="module")
def exported(make_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    make_gguf(folder / "tiny.gguf")
    return from_gguf(folder / "tiny.gguf", folder / "out", checkpoint=folder / "checkpoint")


def test_the_folder_is_whole(exported):
    names = {path.name for path in exported.folder.iterdir()}
    assert {"model.onnx", "genai_config.json", "tokenizer.json", "config.json"} <= names
    assert exported.models == {"model": exported.folder / "model.onnx"}
    assert exported.task == "text-generation"
    assert not list(exported.folder.parent.glob("*.partial"))


def test_every_comparison_is_within_rounding(exported):
    assert {"prompt of 1", "prompt of 33", "batch of 2", "decode step 3"} <= set(exported.errors)
    assert 0 < exported.largest_error <= exported.bound < 1e-4


def test_generates_the_tokens_of_transformers(exported, greedy_tokens, reference_greedy):
    checkpoint = exported.folder.parent / "checkpoint"
    for prompt in ([5, 17, 40], [99]):
        tokens = greedy_tokens(exported.folder, prompt, 64)
        assert tokens == reference_greedy(checkpoint, prompt, 64)
        assert len(tokens) == 64


def test_the_tokenizer_of_the_file_comes_along(exported):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    ids = tokenizer("the")["input_ids"]
    assert len(ids) == 1
    assert tokenizer.decode(ids) == "the"


def test_an_occupied_folder_is_refused_and_left_alone(make_gguf, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    path = make_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ExportError, match="exists and is not empty"):
        from_gguf(path, out)
    with pytest.raises(ExportError, match="holds no ONNX model, so it is not replaced"):
        from_gguf(path, out, overwrite=True)
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]
    assert (out / "thesis.txt").read_text() == "mine"


def test_an_unknown_architecture_is_refused_and_nothing_is_lost(make_gguf, gguf_recipe, tmp_path):
    path = make_gguf(tmp_path / "odd.gguf", gguf_recipe(architecture="neverheard"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"an earlier export")
    with pytest.raises(ExportError, match=r"'neverheard', which transformers does not read"):
        from_gguf(path, out, overwrite=True)
    assert (out / "model.onnx").read_bytes() == b"an earlier export"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.gguf", "out"]


@pytest.mark.slow
def test_smollm2_generates_the_64_greedy_tokens_of_transformers(
    tmp_path, greedy_tokens, reference_greedy
):
    from transformers import AutoTokenizer

    from onnxq.models import zoo

    (path,) = zoo.fetch("smollm2").rglob("*.gguf")
    exported = from_gguf(path, tmp_path / "out", checkpoint=tmp_path / "checkpoint")
    assert exported.largest_error < 2e-5
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    for text in ("The capital of France is", "Water boils at", "In 1969,"):
        prompt = tokenizer(text)["input_ids"]
        expected = reference_greedy(tmp_path / "checkpoint", prompt, 64)
        assert greedy_tokens(exported.folder, prompt, 64) == expected
