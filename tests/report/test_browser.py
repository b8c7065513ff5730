"""The page in headless Chromium: no network, no error, both themes, copying, printing."""

import pytest

import onnxq
from onnxq.api import report
from onnxq.graph import save
from tests.five_layers import five_layers, five_samples

pytestmark = pytest.mark.web


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    folder = tmp_path_factory.mktemp("browser")
    onnxq.quantize(save(five_layers(), folder / "model.onnx"), "int4", out=folder / "int4")
    report([folder / "int4"], folder / "report.html", data=five_samples(4))
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        context = browser.new_context(color_scheme="dark", permissions=["clipboard-read"])
        shown = context.new_page()
        shown.messages, shown.requests = [], []
        shown.on("console", lambda message: shown.messages.append(message.text))
        shown.on("pageerror", lambda error: shown.messages.append(str(error)))
        shown.on("request", lambda request: shown.requests.append(request.url))
        shown.goto((folder / "report.html").as_uri())
        yield shown
        browser.close()


def test_one_file_and_no_complaint(page):
    assert [url for url in page.requests if not url.startswith("file:")] == []
    assert len(page.requests) == 1 and page.messages == []
    assert page.locator("svg").count() >= 2


def test_the_theme_follows_the_system_and_the_button(page):
    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert background() == "rgb(20, 22, 27)"
    page.click("#theme")
    assert background() == "rgb(255, 255, 255)"
    page.click("#theme")
    assert background() == "rgb(20, 22, 27)"


def test_a_button_copies_its_row(page):
    button = page.locator("button[data-copy]").first
    button.click()
    page.wait_for_function("document.querySelector('button[data-copy]').textContent == 'copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == button.get_attribute("data-copy") and "quantize_weights" in copied


def test_nothing_is_wider_than_the_page_and_it_prints(page, tmp_path):
    page.set_viewport_size({"width": 420, "height": 900})
    over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(over) <= 0
    page.emulate_media(media="print")
    assert not page.locator("#theme").is_visible()
    page.pdf(path=str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").read_bytes()[:5] == b"%PDF-"
