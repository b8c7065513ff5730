"""Built folders run by what is in them: options, library, configuration of genai."""

import json

import numpy as np
import pytest

import onnxq
from onnxq.errors import ExportError
from onnxq.export.session_options import OPTIONS, open_built
from onnxq.graph import load, save
from onnxq.runtime import open_session
from onnxq.runtime.decoder import decoder_feeds

from .qdq_patterns import Pattern, build


@pytest.fixture(scope="module")
def artifact(llama_export, tmp_path_factory):
    """A tiny decoder whose layers are operators of onnxq."""
    out = tmp_path_factory.mktemp("deployed") / "int4"
    options = ["write=operator", "format=int4_g32_two", "embedding_format=int8_g16"]
    options += ['overrides={"@head"="int8_g16"}']
    onnxq.quantize(
        llama_export.folder,
        "int4",
        out=out,
        set=[f"quantize_weights.{option}" for option in options],
    )
    return out


def test_a_folder_opens_by_its_own_options_and_library(artifact, tmp_path):
    built = onnxq.build(artifact, "onnxruntime-cpu", tmp_path / "out")
    options = json.loads((built.folder / OPTIONS).read_text())
    assert options["custom_ops_library"] in built.files
    assert built.verified["largest relative difference"] <= 1e-5
    assert {site.kernel for site in built.verdicts.sites} == {"MatMulInt", "GatherBlockQuantized"}
    assert built.verdicts.is_clean
    ids = np.array([[5, 17, 40]])
    with open_built(built.folder) as session, open_session(artifact / "model.onnx") as before:
        feeds = decoder_feeds(session, ids, head_size=16)
        assert np.array_equal(session.run(feeds)["logits"], before.run(feeds)["logits"])


def test_without_the_library_the_functions_run_and_the_check_says_so(artifact, tmp_path):
    built = onnxq.build(artifact, "onnxruntime-cpu", tmp_path / "out", set=["library=false"])
    assert json.loads((built.folder / OPTIONS).read_text())["custom_ops_library"] is None
    assert not any(name.startswith("libonnxq") for name in built.files)
    verdicts = onnxq.check(artifact, "onnxruntime-cpu", set=["library=false"], run=True)
    assert {site.rule for site in verdicts.sites} == {"operator-function", "low-bit-operator"}
    assert verdicts.observed.differences == []
    assert set(verdicts.observed.kernels.values()) == {"function", "GatherBlockQuantized"}


def test_options_say_what_must_be_set_and_why(tmp_path):
    for pattern, key in (
        (Pattern(x=None, w="i4", span="32"), "session.qdq_matmulnbits_accuracy_level"),
        (Pattern(y="u8"), "session.x64quantprecision"),
        (Pattern(x=None, w=None), None),
    ):
        (tmp_path / "model").mkdir(exist_ok=True)
        save(load(build(pattern)), tmp_path / "model" / "model.onnx")
        built = onnxq.build(tmp_path / "model", "onnxruntime-cpu", tmp_path / "out")
        options = json.loads((built.folder / OPTIONS).read_text())
        assert list(options["config"]) == list(options["reasons"]) == ([key] if key else [])


@pytest.mark.parametrize("has_config", [True, False])
def test_genai_generates_what_greedy_decoding_says(artifact, tmp_path, has_config):
    pytest.importorskip("onnxruntime_genai")
    source = tmp_path / "source"
    source.mkdir()
    for file in artifact.iterdir():
        if has_config or file.name != "genai_config.json":
            (source / file.name).symlink_to(file)
    built = onnxq.build(source, "genai", tmp_path / "out")
    assert built.verified["equal to greedy decoding"] is True
    assert len(built.verified["generated"]) >= 1
    wanted = "taken from the source" if has_config else "written from the graph"
    assert built.verified["config"] == wanted
    config = json.loads((built.folder / "genai_config.json").read_text())
    options = config["model"]["decoder"]["session_options"]
    assert options["custom_ops_library"] in built.files
    assert config["search"]["past_present_share_buffer"] is True  # GroupQueryAttention


def test_genai_refuses_what_has_no_cache(tmp_path):
    pytest.importorskip("onnxruntime_genai")
    save(load(build(Pattern(x=None, w=None))), tmp_path / "model.onnx")
    verdicts = onnxq.check(tmp_path / "model.onnx", "genai")
    assert "has no key/value cache" in verdicts.notes[-1]
    with pytest.raises(ExportError, match=r"no key/value cache that onnxruntime-genai understands"):
        onnxq.build(tmp_path / "model.onnx", "genai", tmp_path / "out")
