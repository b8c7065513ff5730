"""onnxruntime-web and a tokenizer in JavaScript, from npm: pinned, fetched once, put beside a page.

``export/web/package-lock.json`` names every package with its hash; ``npm ci`` installs just these.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import shutil
import subprocess
from pathlib import Path

from onnxq.errors import ExportError, MissingProgram
from onnxq.runtime.cache import cache_folder, in_cache

__all__ = ["PAGE_FILES", "place_page", "verifier", "web_packages", "web_version"]

PAGE_FILES = (
    "index.html",
    "page.js",
    "artifact.js",
    "session.js",
    "generate.js",
    "embed.js",
)
"""Files of the page, in ``export/web``."""

_RUNTIME = {
    "onnxruntime-web": (
        "dist/ort.wasm.min.mjs",
        "dist/ort-wasm-simd-threaded.mjs",
        "dist/ort-wasm-simd-threaded.wasm",
    ),
    "@huggingface/tokenizers": ("dist/tokenizers.min.mjs",),
}
"""Files of each package that a page loads."""


def page_source() -> Path:
    """The folder with the sources of the page."""
    return Path(str(importlib.resources.files("onnxq.export"))) / "web"


def verifier() -> Path:
    """The script that runs a built folder in Node.js."""
    return page_source() / "verify.mjs"


def web_version(package: str = "onnxruntime-web") -> str:
    """The pinned version of a package."""
    pins = json.loads((page_source() / "package.json").read_text(encoding="utf-8"))
    return str(pins["dependencies"][package])


def web_packages() -> Path:
    """The folder ``node_modules`` with the pinned packages, installed into the cache once.

    Raises:
        MissingProgram: npm is not installed.
        ExportError: npm could not install them; its last lines are in the message.
    """
    pins = (page_source() / "package-lock.json").read_bytes()
    place = cache_folder() / "web" / hashlib.sha256(pins).hexdigest()[:16]
    return in_cache(place, _install) / "node_modules"


def _install(scratch: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise MissingProgram("npm", "npm", "Fetching onnxruntime-web for the first time")
    folder = scratch / "packages"
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(page_source() / name, folder / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise ExportError(
            f"npm could not install onnxruntime-web {web_version()}; its last lines:\n{tail}\n"
            f"Check that `npm view onnxruntime-web@{web_version()}` works here, or copy the folder "
            f"{cache_folder() / 'web'} from a machine that has it."
        )
    return folder


def place_page(folder: Path) -> None:
    """Put the page and what it runs on into a folder.

    Raises:
        MissingProgram: see `web_packages`.
        ExportError: see `web_packages`.
    """
    packages = web_packages()
    for name in PAGE_FILES:
        shutil.copyfile(page_source() / name, folder / name)
    runtime = folder / "runtime"
    runtime.mkdir()
    notes = []
    for package, files in _RUNTIME.items():
        for file in files:
            shutil.copyfile(packages / package / file, runtime / Path(file).name)
        about = json.loads((packages / package / "package.json").read_text(encoding="utf-8"))
        notes.append(f"{package} {about['version']}, licence {about['license']}")
    text = "Files of these npm packages, unchanged:\n" + "\n".join(notes) + "\n"
    (runtime / "NOTICE").write_text(text, encoding="utf-8")
