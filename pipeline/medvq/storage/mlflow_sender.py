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
import uuid
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock
from tqdm import tqdm

from medvq.storage.journal import Event, Journal
from medvq.storage.mlflow_client import set_client_defaults
from medvq.storage.mlflow_pages import experiment_tags

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

set_client_defaults()

# Places of files in the store, of runs and of models; they are renamed with their experiment's.
_MOVE = (
    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
    "WHERE substr(artifact_uri, 1, ?) = ?",
    "UPDATE logged_models SET artifact_location = ? || substr(artifact_location, ?) "
    "WHERE substr(artifact_location, 1, ?) = ?",
    "UPDATE model_versions SET source = ? || substr(source, ?) WHERE substr(source, 1, ?) = ?",
    "UPDATE model_versions SET storage_location = ? || substr(storage_location, ?) "
    "WHERE substr(storage_location, 1, ?) = ?",
)
KEPT = ".tracking"
"""The folder under the artifacts with journals that could not be sent."""
_FIGURES = "mlflow-artifacts"
_KEY = "medvq.key"
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
# What a server answers where transactions of several writers collide, too: tried again at once.
_COLLISION, _COLLISIONS, _SHORT_PAUSE = "BAD_REQUEST", 6, 0.1
_LOCK_TIMEOUT, _STORE_TIMEOUT = 30.0, 5.0
# MLflow's limits of one request, and of the name of a metric (mlflow.utils.validation).
_BATCH, _LONGEST_NAME = 100, 250


def tracking_uri(artifacts: Path) -> str:
    """Return where runs are tracked: MLFLOW_TRACKING_URI, else ``artifacts/mlflow.db``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _address(store_file(artifacts))


def _address(file: Path) -> str:
    """Return the address of a store in a file."""
    # SQLAlchemy decodes both. The driver is named because MLflow makes the folder of what follows a
    # plain "sqlite:///", which it does not decode.
    path = str(file).replace("%", "%25").replace("?", "%3F")
    return f"sqlite+pysqlite:///{path}"


def store_file(artifacts: Path) -> Path:
    """Return the file of the store under ``artifacts``."""
    return artifacts.absolute() / "mlflow.db"


class Sender:
    """Sends the events of one journal.

    Parameters
    ----------
    artifacts : folder of all artifacts.

    Attributes
    ----------
    problem : the kind of the last error; empty where the last event was sent.
    """

    _noticed: ClassVar[set[str]] = set()  # stores of whose faults this process has told

    def __init__(self, journal: Journal, artifacts: Path) -> None:
        self.journal, self.artifacts = journal, artifacts
        self.uri = tracking_uri(artifacts)
        self.problem = ""
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    @property
    def is_local(self) -> bool:
        """Whether the store is a file under the artifacts."""
        return not os.environ.get("MLFLOW_TRACKING_URI")

    def start(self) -> None:
        """Send what is written down from now on, in a thread of its own."""
        self._thread.start()

    def wait(self, patience: float) -> bool:
        """Wait so many seconds at most, or for an error; return whether all was sent."""
        deadline = time.monotonic() + patience
        while not self.journal.is_sent and not self.problem and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.journal.is_sent

    def close(self, patience: float) -> bool:
        """Try once more, so many seconds at most; return whether all was sent."""
        self._closing.set()
        self._thread.join(patience)
        self.journal.close()
        return self.journal.is_sent

    def send_all(self) -> None:
        """Send what is left, in this thread.

        Raises
        ------
        Exception
            Whatever MLflow raises.
        """
        while not self.journal.is_sent:
            self._send_next()

    def answers(self) -> bool:
        """Say whether MLflow can be reached, whatever it made of what it was sent."""
        try:
            self._connect()
        except Exception:  # MLflow raises types of every library that it uses
            return False
        return True

    def notice(self) -> None:
        """Say once that tracking is behind; never with an address, which may hold a password."""
        if self.uri not in self._noticed:
            self._noticed.add(self.uri)
            tqdm.write(
                "medvq: MLflow does not take what it is sent "
                f"({self.problem or 'no answer'}); the work goes on, and what could not be sent is "
                "kept for `medvq mlflow-sync` (make mlflow-sync)",
                file=sys.stderr,
            )

    def _work(self) -> None:
        pause, collisions = _FIRST_PAUSE, 0
        while not (self._closing.is_set() and self.journal.is_sent):
            if self.journal.next(timeout=0.2) is None:
                continue
            last_try = self._closing.is_set()
            try:
                self._send_next()
                self.problem, pause, collisions = "", _FIRST_PAUSE, 0
            except Exception as error:  # tracking never stops the work, whatever MLflow raises
                problem = str(getattr(error, "error_code", type(error).__name__))
                self._client = None
                if problem == _COLLISION and collisions < _COLLISIONS:
                    collisions += 1
                    time.sleep(_SHORT_PAUSE * collisions)
                    continue
                self.problem = problem
                if os.environ.get("TRACKING") != "required":
                    self.notice()
                if last_try:
                    return
                self._closing.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            if self.journal.closed:
                return

    def _send_next(self) -> None:
        self._connected()
        if (event := self.journal.next(timeout=0)) is None:
            return
        send = {
            "run": self._send_run,
            "params": self._send_params,
            "metrics": self._send_metrics,
            "view": self._send_view,
            "files": self._send_files,
            "model": self._send_model,
            "again": self._send_again,
            "end": self._send_end,
        }[event["kind"]]
        send(event)
        self.journal.mark_sent()

    def _send_run(self, event: Event) -> None:
        client, experiment = self._connected(), self._experiment(event["experiment"])
        found = client.search_runs([experiment], f"tags.`{_KEY}` = '{event['key']}'")
        if found:
            identity = str(found[0].info.run_id)
        else:
            tags = event["tags"] | {_KEY: event["key"]}
            run = client.create_run(experiment, event["time"], tags, run_name=event["name"])
            identity = str(run.info.run_id)
        self.journal.runs[event["key"]] = identity
        self._send_params(event)
        self._send_data(event)

    def _send_data(self, event: Event) -> None:
        """Say which images a run is of, if the event does."""
        from mlflow.entities import Dataset, DatasetInput

        if event.get("digest"):
            name = event["source"].partition(" ")[0]
            data = Dataset(name, event["digest"][:16], "medvq", event["source"])
            self._connected().log_inputs(self._run(event), datasets=[DatasetInput(data)])

    def _send_params(self, event: Event) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in event["params"].items()]
        for start in range(0, len(params), _BATCH):
            batch = params[start : start + _BATCH]
            self._connected().log_batch(self._run(event), params=batch)

    def _send_metrics(self, event: Event) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name[:_LONGEST_NAME], value, event["time"], event["step"])
            for name, value in event["metrics"].items()
        ]
        for start in range(0, len(metrics), _BATCH):
            batch = metrics[start : start + _BATCH]
            self._connected().log_batch(self._run(event), metrics=batch)

    def _send_view(self, event: Event) -> None:
        client, experiment = self._connected(), self._experiment(event["experiment"])
        present = client.get_experiment(experiment).tags
        for name, value in experiment_tags(event["metric"], present, event["time"]).items():
            client.set_experiment_tag(experiment, name, value)

    def _send_files(self, event: Event) -> None:
        folder, run = self._folder(event), self._run(event)
        self._send_data(event)
        if note := event.get("note"):
            address = f"(get-artifact?run_uuid={run}&path="
            note = note.replace("(artifact:", address)
            self._connected().set_tag(run, "mlflow.note.content", note)
        for name in event["files"]:
            if (file := folder / name).exists():
                parent = Path(name).parent.as_posix()
                inside = None if parent == "." else parent
                self._connected().log_artifact(run, str(file), inside)

    def _send_model(self, event: Event) -> None:
        from medvq.storage.mlflow_model import register

        client, run, folder = self._connected(), self._run(event), self._folder(event)
        experiment = client.get_run(run).info.experiment_id
        register(
            client, experiment, run, event["artifact"].partition("/")[0], folder, event["classes"]
        )

    def _folder(self, event: Event) -> Path:
        """Return the folder of an artifact, which may not be published yet."""
        home = self.artifacts / str(event["artifact"])
        return home if home.exists() else home.with_name(f"{home.name}.partial")

    def _send_again(self, event: Event) -> None:
        self._connected().update_run(self._run(event), status="RUNNING")

    def _send_end(self, event: Event) -> None:
        self._connected().set_terminated(self._run(event), event["status"], event["time"])

    def _run(self, event: Event) -> str:
        return self.journal.runs[event["key"]]

    def _connected(self) -> MlflowClient:
        if self._client is None:
            client = self._connect()
            self._check_runs(client)
            self._client = client
        return self._client

    def _connect(self) -> MlflowClient:
        from mlflow.tracking import MlflowClient

        # It logs the creation of its tables, and whole tracebacks of what is handled here.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self.artifacts.mkdir(parents=True, exist_ok=True)
        # MLflow creates its tables on first use, and fails where another run is doing so.
        sqlite = self.uri.startswith("sqlite")
        if sqlite:
            # What is written to a file that was deleted or replaced, and is held open, is lost.
            os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        lock = FileLock(self.artifacts / ".mlflow.lock", _LOCK_TIMEOUT) if sqlite else nullcontext()
        with lock:
            if self.is_local:
                # MLflow tries a minute and a half to open a file that is locked or damaged.
                relocate(self.artifacts)
                _create(store_file(self.artifacts))
            client = MlflowClient(self.uri)
            client.search_experiments(max_results=1)
        return client

    def _check_runs(self, client: MlflowClient) -> None:
        """Begin anew where the store has lost a run, or somebody has deleted it."""
        from mlflow.exceptions import MlflowException

        for identity in self.journal.runs.values():
            try:
                if client.get_run(identity).info.lifecycle_stage == "active":
                    continue
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            self.journal.rewind()
            return

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            self._experiments[name] = self._find_or_create(name)
        return self._experiments[name]

    def _find_or_create(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        client = self._connected()
        if (found := client.get_experiment_by_name(name)) is not None:
            if found.lifecycle_stage == "deleted":  # no other of its name can be made
                client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        location = None
        if self.is_local:
            location = _location(self.artifacts, name)
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another run was quicker.
            if (found := client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)


def _create(file: Path) -> None:
    """Make the tables of a new store aside: where MLflow is killed meanwhile it cannot go on."""
    from mlflow.tracking import MlflowClient

    if file.exists() and file.stat().st_size:
        return
    for unfinished in file.parent.glob(f".{file.name}.*"):
        unfinished.unlink()
    # A new name every time, since MLflow remembers which stores of a process have their tables.
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    MlflowClient(_address(aside)).search_experiments(max_results=1)
    aside.replace(file)


def relocate(artifacts: Path) -> None:
    """Let the store under ``artifacts`` point to the files beside it, wherever it was moved.

    MLflow stores the places of figures as absolute paths.

    Raises
    ------
    sqlite3.Error
        The store cannot be read, or cannot be written where it was moved.
    """
    file = store_file(artifacts)
    if not file.exists():
        return
    with closing(sqlite3.connect(file, timeout=_STORE_TIMEOUT)) as store, store:
        if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchall():
            return  # empty: MLflow makes its tables
        query = "SELECT experiment_id, name, artifact_location FROM experiments"
        for identity, name, before in store.execute(query).fetchall():
            now = _location(artifacts, name)
            if before == now or not before.endswith(f"/{_FIGURES}/{now.rpartition('/')[2]}"):
                continue
            store.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (now, identity),
            )
            for statement in _MOVE:
                start = f"{before}/"
                store.execute(statement, (f"{now}/", len(start) + 1, len(start), start))


def _location(artifacts: Path, experiment: str) -> str:
    return (artifacts / _FIGURES / experiment).absolute().as_uri()


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
