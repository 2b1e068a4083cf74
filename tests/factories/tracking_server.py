"""MLflow's own tracking server in a thread, with faults that a test turns on."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from werkzeug.serving import WSGIRequestHandler, make_server


class Silent(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        return None


class TrackingServer:
    """A WSGI application around MLflow's.

    Attributes
    ----------
    fault : a status that every request is answered with; ``hang``; ``drop``: the connection is
        closed; ``lose``: so is the first of every kind, after what was asked for was done;
        ``collide``: the first of every kind that logs or sets is refused, as where transactions
        collide; empty: none.
    """

    def __init__(self, application: Callable[..., Any]) -> None:
        self.application, self.fault, self.address = application, "", ""
        self.released = threading.Event()
        self.lost: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if self.fault.isdigit():
            start_response(f"{self.fault} fault", [("Content-Length", "0")])
            return [b""]
        if self.fault == "hang":
            self.released.wait(60)
        path = environ["PATH_INFO"]
        writes = "/log-" in path or "/set-" in path
        if self.fault == "collide" and writes and path not in self.lost:
            self.lost.add(path)
            start_response("400 BAD REQUEST", [("Content-Type", "application/json")])
            return [b'{"error_code": "BAD_REQUEST", "message": "IntegrityError"}']
        lost = self.fault == "lose" and path not in self.lost
        if lost:
            self.lost.add(path)
            list(self.application(environ, lambda *_: None))
        if lost or self.fault in {"drop", "hang"}:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("200 OK", [])
            return [b""]
        return self.application(environ, start_response)


@contextmanager
def tracking_server(store: str, artifacts: Path) -> Iterator[TrackingServer]:
    """Serve a store by its address; figures go to ``artifacts``."""
    settings = {
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": str(artifacts),
    }
    with mock.patch.dict(os.environ, settings):
        from mlflow.server import app, handlers

        with mock.patch.object(handlers, "_tracking_store", None):
            application = TrackingServer(app)
            server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Silent)
            application.address = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            try:
                yield application
            finally:
                application.released.set()
                server.shutdown()
                thread.join()
