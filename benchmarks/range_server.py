"""Serve a folder over HTTP with byte ranges, as object stores do, and fail on request.

    python benchmarks/range_server.py FOLDER MS  ->  prints its port, answers each request after MS, until it is killed

`http.server` of Python ignores ranges. `faults` makes this one fail as servers do; it is for tests.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class RangeHandler(BaseHTTPRequestHandler):
    """Answer GET and HEAD."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, *arguments: object, folder: Path, faults: list[str], log: list[str]) -> None:
        self.folder, self.faults, self.log = folder, faults, log
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        """Answer with the headers of a file."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer with a file or a part of it."""
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.log.append(
            f"{self.command} {self.path} {self.headers.get('Range', '')} {self.headers.get('Authorization', '')}"
        )
        fault = self.faults.pop(0) if self.faults else ""
        assert isinstance(self.server, RangeServer)
        time.sleep(self.server.latency_ms / 1e3)
        if fault.isdigit():
            self._head(int(fault), 0)
            return
        if fault.startswith("redirect "):
            self._head(302, 0, Location=fault.removeprefix("redirect "))
            return
        if fault == "silence":
            threading.Event().wait(1.0)
            self.close_connection = True
            return
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            self._head(404, 0)
            return
        size = path.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if fault != "no ranges" else None
        first, last = (int(found[1]), min(int(found[2]), size - 1)) if found else (0, size - 1)
        length = last - first + 1
        extra = {"Content-Range": f"bytes {first}-{last}/{size}"} if found else {}
        self._head(206 if found else 200, length, ETag=f'"{size}-{path.stat().st_mtime_ns}"', **extra)
        if not body:
            return
        if fault == "cut":
            length //= 2
            self.close_connection = True
        with path.open("rb") as file:
            self.wfile.flush()
            sent = 0
            while sent < length and (
                more := os.sendfile(self.connection.fileno(), file.fileno(), first + sent, length - sent)
            ):
                sent += more

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class RangeServer(ThreadingHTTPServer):
    """A server on loopback."""

    daemon_threads = True

    def __init__(self, folder: Path, latency_ms: float = 0.0) -> None:
        self.latency_ms = latency_ms
        self.faults: list[str] = []
        """What to do instead of answering the next requests, in order: a status, "redirect URL", "silence", "cut" (half of
        the body) or "no ranges" (the whole file); an empty string answers."""
        self.log: list[str] = []
        """The requests."""
        super().__init__(("127.0.0.1", 0), partial(RangeHandler, folder=folder, faults=self.faults, log=self.log))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """Serve a folder from a thread of this process."""
    with RangeServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with RangeServer(Path(sys.argv[1]), float(sys.argv[2])) as main_server:
        sys.stdout.write(f"{main_server.server_address[1]}\n")
        sys.stdout.flush()
        main_server.serve_forever()
