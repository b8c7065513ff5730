"""A real HTTP server on this machine, of which one answer in ten is an error."""

import contextlib
import functools
import http.server
import random
import threading
from pathlib import Path
from typing import ClassVar


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
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        asked, size = self.headers.get("Range"), path.stat().st_size
        first, last = 0, size - 1
        if asked:
            first, last = (int(word) for word in asked.removeprefix("bytes=").split("-"))
        with path.open("rb") as file:
            file.seek(first)
            part = file.read(last + 1 - first)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
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


@contextlib.contextmanager
def faulty_server(folder):
    """Serve a folder; gives the address and how often it answered and failed."""
    handler = functools.partial(Handler, directory=str(folder))
    Handler.counts.update(answered=0, failed=0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", Handler.counts
        finally:
            server.shutdown()
            thread.join()
