"""MLflow: one run per execution of a stage, and one per feature set of a probe; never nested.

The store is SQLite under ``artifacts/`` unless MLFLOW_TRACKING_URI says otherwise.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock

from medvq.config import Config
from medvq.storage.artifacts import Artifact
from medvq.summaries import TrackedRun

# Before MLflow is imported: nothing is sent to anybody.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

_TABLES = ("metrics.json", "audit.json", "audit.html", "history.csv")


def tracking_uri(artifacts: Path) -> str:
    """Return where runs are tracked: MLFLOW_TRACKING_URI, else ``artifacts/mlflow.db``."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{(artifacts / 'mlflow.db').absolute()}"


class Tracking:
    """The runs of one stage; as a context it ends as FINISHED, FAILED or KILLED.

    Attributes
    ----------
    run_id : of the stage's own run, once :meth:`start` was called.
    """

    def __init__(
        self,
        artifacts: Path,
        config: Config,
        stage: str,
        fingerprint: str,
        inputs: Mapping[str, Artifact],
    ) -> None:
        artifacts.mkdir(parents=True, exist_ok=True)
        self.config, self.stage, self.fingerprint, self.inputs = config, stage, fingerprint, inputs
        # MLflow creates its tables on first use, and fails where another run is doing so.
        with FileLock(artifacts / ".mlflow.lock"):
            self.client = MlflowClient(tracking_uri(artifacts))
            self.experiment = self._experiment(artifacts)
        self.label = self.run_id = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.run_id:
            return
        if kind is None:
            status = "FINISHED"
        else:
            status = "KILLED" if kind is KeyboardInterrupt else "FAILED"
        self.client.set_terminated(self.run_id, status)

    def start(self, label: str, settings: Mapping[str, Any]) -> None:
        """Start the stage's own run; ``label`` are words that tell its runs apart."""
        self.label = label
        self.run_id = self._start(label, _flat(settings))

    def report(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics at a step: an epoch of training, a label subset of a probe."""
        self._log(self.run_id, metrics, step)

    def finish(self, runs: list[TrackedRun], folder: Path) -> None:
        """Log what the stage found, its figures and tables, and its further runs."""
        own, *others = runs
        if own.feature_set:
            self.client.log_param(self.run_id, "feature_set", own.feature_set)
        self._log(self.run_id, own.metrics, own.step)
        for run in others:
            label = self.label.replace("medvq", run.feature_set, 1)
            parameters = {**run.parameters, "feature_set": run.feature_set}
            identity = self._start(label, parameters | {"seed": self.config.seed})
            self._log(identity, run.metrics, run.step)
            self.client.set_terminated(identity, "FINISHED")
        figures = folder / "figures"
        if any(figures.glob("*.png")):
            self.client.log_artifacts(self.run_id, str(figures), "figures")
        for table in _TABLES:
            if (folder / table).exists():
                self.client.log_artifact(self.run_id, str(folder / table))

    def _experiment(self, artifacts: Path) -> str:
        name = self.config.name
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            location = (artifacts / "mlflow-artifacts" / name).absolute().as_uri()
        try:
            return str(self.client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another run was quicker.
            created = self.client.get_experiment_by_name(name)
            if created is None:
                raise
            return str(created.experiment_id)

    def _start(self, label: str, parameters: Mapping[str, Any]) -> str:
        # Seconds in the name: MLflow handlers and people alike find runs by it.
        moment = dt.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        name = " ".join(filter(None, (self.stage, label, moment, self.fingerprint[:6])))
        tags = {
            "medvq.stage": self.stage,
            "medvq.dataset": self.config.name,
            "medvq.artifact": f"{self.config.name}/{self.stage}/{self.fingerprint}",
            **{f"medvq.built_on.{s}": a.record.mlflow_run_id for s, a in self.inputs.items()},
        }
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        identity: str = run.info.run_id
        params = [Param(k, str(v)[:MAX_PARAM_VAL_LENGTH]) for k, v in parameters.items()]
        run_tags = [RunTag("medvq.seed", str(self.config.seed))]
        self.client.log_batch(identity, params=params, tags=run_tags)
        source = self.inputs["ingest"].fingerprint if "ingest" in self.inputs else self.fingerprint
        data = Dataset(self.config.name, source[:16], "medvq", f"{self.config.name} manifest")
        self.client.log_inputs(identity, datasets=[DatasetInput(data)])
        return identity

    def _log(self, run: str, metrics: Mapping[str, float], step: int) -> None:
        now = int(dt.datetime.now().timestamp() * 1000)
        # Names of labels stand in names of metrics, where MLflow refuses most punctuation.
        values = {re.sub(r"[^\w.\- ]", "_", name): float(v) for name, v in metrics.items()}
        self.client.log_batch(run, metrics=[Metric(k, v, now, step) for k, v in values.items()])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
