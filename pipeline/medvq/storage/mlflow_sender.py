"""Send a journal to MLflow, event by event, in a thread beside the work.

The store is SQLite under ``artifacts/`` unless MLFLOW_TRACKING_URI says otherwise. Sending an event
a second time changes nothing: a run is found by the tag of its key, and metrics have the times of
the journal.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from tqdm import tqdm

from medvq.storage.journal import Event, Journal

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# Before MLflow is imported: nothing is sent to anybody else, and a server that does not answer is
# given up after seconds instead of minutes. Only where the user has not said otherwise.
for _name, _value in (
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("DO_NOT_TRACK", "true"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
):
    os.environ.setdefault(_name, _value)

KEPT = ".tracking"
"""The folder under the artifacts with journals that could not be sent."""
_FIGURES = "mlflow-artifacts"
_KEY = "medvq.key"
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0


def tracking_uri(artifacts: Path) -> str:
    """Return where runs are tracked: MLFLOW_TRACKING_URI, else ``artifacts/mlflow.db``."""
    address = os.environ.get("MLFLOW_TRACKING_URI")
    return address or f"sqlite:///{(artifacts / 'mlflow.db').absolute()}"


class Sender:
    """Sends the events of one journal.

    Parameters
    ----------
    artifacts : folder of all artifacts.
    """

    def __init__(self, journal: Journal, artifacts: Path) -> None:
        self.journal, self.artifacts = journal, artifacts
        self.uri = tracking_uri(artifacts)
        self.problem = ""
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Send what is written down from now on, in a thread of its own."""
        self._thread.start()

    def close(self, patience: float) -> bool:
        """Wait so many seconds at most for the rest; return whether all was sent."""
        self._closing.set()
        self._thread.join(patience)
        self._abandoned.set()
        return self.journal.is_sent

    def send_all(self) -> None:
        """Send what is left, in this thread.

        Raises
        ------
        Exception
            Whatever MLflow raises.
        """
        while (event := self.journal.next(timeout=0)) is not None:
            self._send(event)
            self.journal.mark_sent()

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while not (self._closing.is_set() and self.journal.is_sent):
            event = self.journal.next(timeout=0.2)
            if event is None:
                continue
            last_try = self._closing.is_set()
            try:
                self._send(event)
                if self._abandoned.is_set():
                    return  # the journal was moved meanwhile, and may be another's to send
                self.journal.mark_sent()
                pause = _FIRST_PAUSE
            except Exception as error:  # tracking never stops the work, whatever MLflow raises
                self._say(error)
                if last_try:
                    return
                self._closing.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _say(self, error: Exception) -> None:
        """Say once that tracking is behind; never with an address, which may hold a password."""
        if not self.problem:
            tqdm.write(
                f"medvq: MLflow does not take what it is sent ({type(error).__name__}); the work "
                "goes on, and what could not be sent is kept for `make mlflow-sync`",
                file=sys.stderr,
            )
        self.problem = type(error).__name__

    def _send(self, event: Event) -> None:
        send = {
            "run": self._send_run,
            "params": self._send_params,
            "metrics": self._send_metrics,
            "files": self._send_files,
            "again": self._send_again,
            "end": self._send_end,
        }[event["kind"]]
        send(event)

    def _send_run(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, Param

        client, experiment = self._connected(), self._experiment(event["experiment"])
        found = client.search_runs([experiment], f"tags.`{_KEY}` = '{event['key']}'")
        if found:
            identity = str(found[0].info.run_id)
        else:
            tags = event["tags"] | {_KEY: event["key"]}
            run = client.create_run(experiment, event["time"], tags, run_name=event["name"])
            identity = str(run.info.run_id)
        self.journal.runs[event["key"]] = identity
        client.log_batch(identity, params=[Param(k, v) for k, v in event["params"].items()])
        data = Dataset(event["experiment"], event["digest"], "medvq", event["source"])
        client.log_inputs(identity, datasets=[DatasetInput(data)])

    def _send_params(self, event: Event) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in event["params"].items()]
        self._connected().log_batch(self._run(event), params=params)

    def _send_metrics(self, event: Event) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, event["time"], event["step"])
            for name, value in event["metrics"].items()
        ]
        self._connected().log_batch(self._run(event), metrics=metrics)

    def _send_files(self, event: Event) -> None:
        home = self.artifacts / event["artifact"]
        folder = home if home.exists() else home.with_name(f"{home.name}.partial")
        for name in event["files"]:
            if (file := folder / name).exists():
                parent = Path(name).parent.as_posix()
                inside = None if parent == "." else parent
                self._connected().log_artifact(self._run(event), str(file), inside)

    def _send_again(self, event: Event) -> None:
        self._connected().update_run(self._run(event), status="RUNNING")

    def _send_end(self, event: Event) -> None:
        self._connected().set_terminated(self._run(event), event["status"], event["time"])

    def _run(self, event: Event) -> str:
        return self.journal.runs[event["key"]]

    def _connected(self) -> MlflowClient:
        if self._client is None:
            from mlflow.tracking import MlflowClient

            # It logs the creation of its tables, and whole tracebacks of what is handled here.
            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            self.artifacts.mkdir(parents=True, exist_ok=True)
            # MLflow creates its tables on first use, and fails where another run is doing so.
            local = self.uri.startswith("sqlite")
            lock = FileLock(self.artifacts / ".mlflow.lock") if local else nullcontext()
            with lock:
                if local:
                    relocate(self.artifacts)
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)
            self._client = client
        return self._client

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            self._experiments[name] = self._find_or_create(name)
        return self._experiments[name]

    def _find_or_create(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        client = self._connected()
        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        location = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            location = _location(self.artifacts, name)
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another run was quicker.
            if (found := client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)


def relocate(artifacts: Path) -> None:
    """Let the store under ``artifacts`` point to the files beside it, wherever it was moved.

    MLflow stores the places of figures as absolute paths. A store that cannot be written is left as
    it is.
    """
    file = artifacts / "mlflow.db"
    if not file.exists():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(file, timeout=5)) as store, store:
        query = "SELECT experiment_id, name, artifact_location FROM experiments"
        for identity, name, before in store.execute(query).fetchall():
            now = _location(artifacts, name)
            if before == now or not before.endswith(f"/{_FIGURES}/{now.rpartition('/')[2]}"):
                continue
            store.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (now, identity),
            )
            store.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (now, len(before) + 1, identity, len(before), before),
            )


def _location(artifacts: Path, experiment: str) -> str:
    return (artifacts / _FIGURES / experiment).absolute().as_uri()


def sync(artifacts: Path) -> tuple[int, int]:
    """Send the journals that were kept; return how many were sent, and how many events.

    A store that was moved with its folder is mended on the way.

    Raises
    ------
    Exception
        Whatever MLflow raises; what was not sent is kept.
    """
    relocate(artifacts)
    files = sorted((artifacts / KEPT).glob("*.jsonl"))
    events = 0
    for file in files:
        journal = Journal(file)
        events += len(journal.events) - journal.sent
        Sender(journal, artifacts).send_all()
        journal.remove()
    return len(files), events


def now() -> int:
    """Return the time as MLflow counts it, in milliseconds."""
    return time.time_ns() // 1_000_000


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names."""
    names: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            names |= flat(value, f"{prefix}{key}.")
        else:
            names[prefix + key] = value
    return names
