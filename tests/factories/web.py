"""A web server on this machine that misbehaves as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Request(BaseHTTPRequestHandler):
    """One request; the server's ``answer`` says what becomes of it."""

    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Range")))
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        """Tests look at ``seen``."""

    def start_response(self, headers: dict[str, object]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    @property
    def start(self) -> int:
        """Where the asked range begins."""
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0

    def give(self, body: bytes, *, only: int | None = None, length: int | None = None) -> None:
        """Answer with ``body`` from the asked range on, breaking off after ``only`` bytes."""
        start = self.start
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start if length is None else length))
        self.end_headers()
        self.wfile.write(body[start:][:only])
        self.wfile.flush()
        self.close_connection = True

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Callable[[Request], None]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.seen: list[tuple[str, str | None]] = []
        self.released = threading.Event()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up on a wrong file is no news."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def hang(self, _: Request) -> None:
        """Say nothing until the test is over."""
        self.released.wait(30)


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def drip(request: Request, body: bytes, pieces: int, pause: float) -> None:
    """Slowly, but it comes."""
    request.start_response({"Content-Length": len(body)})
    step = -(-len(body) // pieces)
    for at in range(0, len(body), step):
        request.wfile.write(body[at : at + step])
        request.wfile.flush()
        time.sleep(pause)
