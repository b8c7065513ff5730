"""``python -m onnxq.models.report_pictures PAGES FOLDER``: how pages of reports look.

The upper part of every page of a folder, in headless Chromium, as a small picture; needs the
packages of the extra ``web``, and chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from onnxq.errors import MissingDependency

__all__ = ["main"]

_WIDTH, _HEIGHT, _SCALE = 1040, 1560, 0.6
_COLORS = 128


def main() -> None:
    """Take the pictures; those of other pages are left alone."""
    parser = argparse.ArgumentParser(prog="python -m onnxq.models.report_pictures")
    parser.add_argument("pages", type=Path, help="folder of HTML files")
    parser.add_argument("folder", type=Path, help="where NAME.png goes")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    pages = sorted(path for path in options.pages.glob("*.html") if path.stem != "index")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise MissingDependency("playwright", "web", "Taking pictures of pages") from error
    with sync_playwright() as driver:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        view = browser.new_page(
            viewport={"width": _WIDTH, "height": _HEIGHT}, device_scale_factor=_SCALE
        )
        for page in pages:
            view.goto(page.absolute().as_uri())
            _small(view.screenshot()).save(options.folder / f"{page.stem}.png", optimize=True)
        browser.close()


def _small(content: bytes) -> Any:
    from PIL import Image

    picture = Image.open(io.BytesIO(content)).convert("RGB")
    return picture.quantize(_COLORS, method=Image.Quantize.FASTOCTREE)


if __name__ == "__main__":
    main()
