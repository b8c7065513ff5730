"""The page that `Web` builds, in headless Chromium: what it shows is what ONNX Runtime computes.

`make test-web` installs Chromium, npm and playwright, and runs this.
"""

import contextlib
import functools
import http.server
import re
import shutil
import threading

import numpy as np
import pytest

import onnxq
from onnxq.evaluate.similarity import mean_pool
from onnxq.export.to_web import Web
from onnxq.export.web_form import spell_out_blocks
from onnxq.graph import load
from onnxq.runtime import open_session
from onnxq.runtime.decoder import decoder_feeds

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
PROMPT = "The capital of France is"
TEXT = "A quantized model says nearly what the model says that it was made from."
PATIENCE = 400_000
"""Milliseconds."""

pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(
        CHROMIUM is None or shutil.which("npm") is None,
        reason="pages are tested where chromium and npm are installed: make test-web",
    ),
]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, with the headers that a page needs for threads."""

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served(folder):
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="make test-web installs playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page()
    yield page
    page.close()


def built(source, folder):
    folder.mkdir()
    verified = Web().build(source, folder)
    assert "ran in Node.js" in verified.values()
    return folder


def settled(page):
    """What the page says once it is at rest."""
    page.wait_for_selector("#status:not([data-state=busy])", timeout=PATIENCE)
    status = page.locator("#status")
    assert status.get_attribute("data-state") == "ready", status.text_content()
    return status.text_content()


def run(page, text, most=16):
    page.fill("#text", text)
    page.fill("#most", str(most))
    page.click("#run")
    return settled(page)


DROP = """async ([folder, names]) => {
  const moved = new DataTransfer();
  for (const name of names) {
    const blob = await (await fetch(`${folder}/${name}`)).blob();
    moved.items.add(new File([blob], name));
  }
  for (const kind of ["dragover", "drop"]) {
    const event = new DragEvent(kind, { dataTransfer: moved, bubbles: true, cancelable: true });
    document.getElementById("drop").dispatchEvent(event);
  }
}"""


def drop(page, folder, names):
    """Drag files into the page, as a person would; they are fetched from the page's own server."""
    page.evaluate(DROP, [folder, names])


def numbers(page, name, convert):
    return [convert(word) for word in page.locator("#output").get_attribute(name).split()]


def greedy(path, ids, count):
    """Tokens by ONNX Runtime on the CPU, operators of onnxq by their functions.

    MatMulNBits is spelled out: its kernel rounds activations to int8, which the page does not.
    """
    made, model = [], load(path)
    spell_out_blocks(model)
    with open_session(model, custom_ops=False) as session:
        feeds = decoder_feeds(session, np.array([ids]))
        while len(made) < count:
            results = session.run(feeds)
            made.append(int(results["logits"][0, -1].argmax()))
            seen = len(ids) + len(made)
            feeds = {name: results[name.replace("past_key_values", "present")]
                     if "past" in name else value for name, value in feeds.items()}  # fmt: skip
            feeds["input_ids"] = np.array([[made[-1]]], feeds["input_ids"].dtype)
            feeds["attention_mask"] = np.ones((1, seen), feeds["attention_mask"].dtype)
            if "position_ids" in feeds:
                feeds["position_ids"] = np.array([[seen - 1]], feeds["position_ids"].dtype)
    return made


def assert_writes(page, path, text, count):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path.parent / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    status = run(page, text, count)
    assert status.startswith(f"{len(ids)} tokens read")
    made = greedy(path, ids, count)
    assert numbers(page, "data-ids", int) == made
    assert page.locator("#output").text_content() == text + tokenizer.decode(made)
    return status


def assert_embeds(page, path, text):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path.parent / "tokenizer.json"))
    tokenizer.no_padding()
    encoded = tokenizer.encode(text)
    known = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask,
             "token_type_ids": encoded.type_ids}  # fmt: skip
    model, vectors = load(path), []
    spell_out_blocks(model)  # its kernel rounds activations to int8, which the page does not
    for optimize in (False, True):
        with open_session(model, optimize=optimize, custom_ops=False) as session:
            feeds = {spec.name: np.array([known[spec.name]], spec.dtype) for spec in session.inputs}
            hidden = session.run(feeds)[session.outputs[0].name]
        (vector,) = mean_pool(hidden, np.array([encoded.attention_mask]))
        vectors.append(vector / np.linalg.norm(vector))
    run(page, text)
    assert numbers(page, "data-ids", int) == encoded.ids
    found = np.array(numbers(page, "data-vector", float))
    return float(np.linalg.norm(found - vectors[0])), float(np.linalg.norm(vectors[1] - vectors[0]))


def test_a_tiny_decoder_beside_the_page_and_dropped_into_it(page, llama_export, tmp_path):
    artifact = onnxq.quantize(llama_export.folder, "int4", out=tmp_path / "artifact").artifact
    folder = built(artifact.folder, tmp_path / "web")
    with served(folder) as address:
        page.goto(address)
        assert "threads" in settled(page)
        assert_writes(page, artifact.model, "the quick brown", 12)
        other = onnxq.quantize(
            llama_export.folder,
            "int4",
            out=tmp_path / "other",
            set=["quantize_weights.format=lut2_f16"],
        ).artifact
        shutil.copytree(other.folder, folder / "other")
        drop(page, "other", [path.name for path in other.folder.iterdir() if path.is_file()])
        assert "Loaded in" in settled(page)
        told = page.locator("#model").text_content()
        assert re.fullmatch(r"model\.onnx, \d+\.\d MB, continues a text\.", told)
        assert_writes(page, other.model, "the lazy dog", 12)


def test_what_is_no_artifact_is_refused_with_a_sentence(page, llama_export, tmp_path):
    artifact = onnxq.quantize(llama_export.folder, "int4", out=tmp_path / "artifact").artifact
    folder = built(artifact.folder, tmp_path / "web")
    with served(folder) as address:
        page.goto(address)
        settled(page)
        page.set_input_files("#files", [folder / "tokenizer.json"])
        page.wait_for_selector("#status[data-state=failed]")
        assert page.locator("#status").text_content() == "One .onnx file was expected, not 0."
        assert page.locator("#run").is_disabled()


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    from onnxq.models.minilm import MiniLm

    folder = tmp_path_factory.mktemp("minilm") / "float"
    MiniLm().build(folder)
    return folder


@pytest.mark.parametrize("recipe", ["int8", "int8_dynamic"])
def test_minilm_gives_the_vectors_of_the_cpu(recipe, page, minilm, tmp_path):
    artifact = onnxq.quantize(minilm, recipe, out=tmp_path / "artifact").artifact
    folder = built(artifact.folder, tmp_path / "web")
    with served(folder) as address:
        page.goto(address)
        settled(page)
        distance, own = assert_embeds(page, artifact.model, TEXT)
    # Vectors have length one. Activations in the middle between two int8 steps fall to either side
    # by the last bit of a sum: what that does is measured on the CPU, its sums in another order.
    assert own < 0.05  # or the test would say nothing
    assert distance <= max(1e-4, 4 * own)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    from onnxq.export import from_gguf
    from onnxq.models.smollm2 import gguf_path

    folder = tmp_path_factory.mktemp("smollm2")
    return from_gguf(gguf_path(), folder / "float", checkpoint=folder / "checkpoint").folder


def two_bits(smollm2, fmt, folder):
    """To nearest in two bits no model keeps its promises, so none is asked."""
    settings = [f"quantize_weights.format={fmt}"]
    return onnxq.quantize(smollm2, "int4", out=folder, set=settings, check="off").artifact


def test_smollm2_at_two_bits_writes_the_tokens_of_the_cpu(page, smollm2, tmp_path):
    artifact = two_bits(smollm2, "lut2_f16", tmp_path / "artifact")
    folder = built(artifact.folder, tmp_path / "web")
    with served(folder) as address:
        page.goto(address)
        settled(page)
        assert_writes(page, artifact.model, PROMPT, 16)


def scores_behind(path, ids, made, optimize):
    """Scores of the CPU at each place of a text that was written before: [made, vocabulary]."""
    with open_session(path, custom_ops=False, optimize=optimize) as session:
        feeds = decoder_feeds(session, np.array([[*ids, *made[:-1]]]))
        return session.run(feeds, ["logits"])["logits"][0, len(ids) - 1 :]


def test_a_codebook_with_rounded_activations_writes_a_best_token(page, smollm2, tmp_path):
    """Each token of the page is as good on the CPU as its own best, within its own uncertainty.

    An activation that lies in the middle between two steps of its int8 grid is rounded to either
    side by the last bit of a sum, and layers carry that on. What this does to scores is measured:
    the same model on the same CPU, its sums in another order (with and without optimizations).
    """
    from tokenizers import Tokenizer

    artifact = two_bits(smollm2, "vq_d4n256", tmp_path / "artifact")
    folder = built(artifact.folder, tmp_path / "web")
    with served(folder) as address:
        page.goto(address)
        settled(page)
        run(page, PROMPT, 16)
        made = numbers(page, "data-ids", int)
    tokenizer = Tokenizer.from_file(str(artifact.folder / "tokenizer.json"))
    ids = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    plain, other = (scores_behind(artifact.model, ids, made, way) for way in (True, False))
    assert len(made) == 16 and plain.shape[0] == 16
    uncertain = np.sqrt(np.square(plain - other).mean(axis=1))  # at each place, over all tokens
    lost = plain.max(axis=1) - plain[np.arange(16), made]
    # Both of two scores may be off, each by as much in the page as between two ways on the CPU.
    assert (lost <= 4 * uncertain).all()
    spread = plain.std(axis=1).mean()
    assert uncertain.max() < spread / 4  # or the test would say nothing
