"""MLflow's own server on this machine, and the page of it that shows the runs of a data set."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from medvq.errors import UserError
from medvq.storage.mlflow_client import set_client_defaults
from medvq.storage.mlflow_pages import address

HOST = "127.0.0.1"
_PATIENCE = 180.0  # seconds; a first use makes the tables of the store


@dataclass(frozen=True)
class Server:
    """A server of this machine."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """Its address, without a path."""
        return f"http://{HOST}:{self.port}"

    def wait(self) -> None:
        """Wait until it ends."""
        self.process.wait()


def is_free(port: int) -> bool:
    """Say whether nothing listens at a port of this machine."""
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            connection.bind((HOST, port))
        except OSError:
            return False
    return True


@contextmanager
def serve(artifacts: Path, store: str, port: int) -> Iterator[Server]:
    """Run MLflow's server, for this machine alone, and end it with the block.

    Parameters
    ----------
    store : the address of a store; empty for that in the folder of artifacts.

    Raises
    ------
    UserError
        It does not start.
    """
    # From the folder, whose name may hold what has a meaning in an address; an address of a store
    # may hold a password, which all processes could read in a command line.
    settings = {
        "MLFLOW_BACKEND_STORE_URI": store or "sqlite:///mlflow.db",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", HOST]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=artifacts,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it would end before us at Ctrl-C
    )
    server = Server(port, process)
    try:
        _wait_for(server)
        yield server
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + _PATIENCE
    while server.process.poll() is None and time.monotonic() < deadline:
        with (
            suppress(OSError, HTTPException),
            closing(HTTPConnection(HOST, server.port, timeout=5)) as connection,
        ):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise UserError(
        "MLflow's server does not start; its own words: "
        "mlflow server --backend-store-uri sqlite:///mlflow.db, in the folder of artifacts"
    )


def runs_of(server: str, name: str) -> str:
    """Return the address of the runs of a data set, or of the newest run's data set.

    Parameters
    ----------
    name : of the data set; empty for that of the newest run.

    Raises
    ------
    UserError
        The server does not answer, or has no runs of this data set.
    """
    set_client_defaults()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.CRITICAL + 1)
    client, place = MlflowClient(server), _without_password(server)
    try:
        experiments = {e.experiment_id: e for e in client.search_experiments()}
        order = ["attributes.start_time DESC"]
        newest = client.search_runs([*experiments], order_by=order, max_results=1)
    except MlflowException as error:
        raise UserError(
            f"MLflow's server at {place} does not answer ({error.error_code})"
        ) from error
    if name:
        found = next((e for e in experiments.values() if e.name == name), None)
        if found is None:
            known = ", ".join(sorted(e.name for e in experiments.values())) or "none"
            raise UserError(f"MLflow has no runs of the data set '{name}'; it has: {known}")
    elif newest:
        found = experiments[newest[0].info.experiment_id]
    else:
        return f"{place}/#/experiments"
    return address(place, found.experiment_id, found.tags)


def _without_password(server: str) -> str:
    parts = urlsplit(server.rstrip("/"))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
