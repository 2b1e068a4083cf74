"""Tracking servers that misbehave, each in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ANSWERS = {
    "401": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "garbage": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
    "drops": b"",
}


@contextmanager
def misbehaving(how: str) -> Iterator[str]:
    """Give the address of a server that answers as :data:`ANSWERS` says, hangs or is down."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if how == "down":
            listener.close()
            yield address
            return
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                _serve(listener, how)
            os._exit(0)
    try:
        yield address
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(listener: socket.socket, how: str) -> None:
    held = []
    while True:
        connection, _ = listener.accept()
        if how == "hangs":
            held.append(connection)
            continue
        with connection, suppress(OSError):
            connection.settimeout(5)
            connection.recv(65536)
            connection.sendall(ANSWERS[how])
