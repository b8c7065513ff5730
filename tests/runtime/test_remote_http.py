"""A real HTTP server on this machine, of which one answer in ten is an error."""

import functools
import http.server
import random
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from onnxq.graph import load, save
from onnxq.runtime import remote
from onnxq.runtime.remote import local_path
from tests.one_product import one_product

pytest.importorskip("aiohttp")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves ranges; one answer in ten is 503, one in ten of the rest breaks off in the middle."""

    protocol_version = "HTTP/1.1"
    chance = random.Random(0)
    counts: ClassVar[dict[str, int]] = {"answered": 0, "failed": 0}

    def do_GET(self):
        if self.chance.random() < 0.1:
            self.counts["failed"] += 1
            self.send_error(503)
            return
        path = self.translate_path(self.path)
        try:
            content = Path(path).read_bytes()
        except OSError:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        first, last = 0, len(content) - 1
        if asked:
            first, last = (int(word) for word in asked.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.counts["answered"] += 1
        if self.chance.random() < 0.1:
            self.counts["failed"] += 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.wfile.write(part)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def served(tmp_path):
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_fails_one_read_in_ten(served, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAIT", 0.0)
    monkeypatch.setattr(remote, "_CHUNK", 200)
    model = save(one_product(), tmp_path / "zoo" / "model.onnx")
    copied = local_path(f"{served}/zoo/model.onnx")
    assert copied.read_bytes() == model.read_bytes()
    load(copied)
    assert Handler.counts["failed"] > 0 and Handler.counts["answered"] > 80
