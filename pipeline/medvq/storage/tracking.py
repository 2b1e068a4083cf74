"""MLflow: one run per execution of a stage, and one per feature set of a probe; never nested.

The store is SQLite under ``artifacts/`` unless MLFLOW_TRACKING_URI says otherwise.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from medvq.config import Config
from medvq.storage.artifacts import Artifact

_LONGEST_PARAMETER = 500


def tracking_uri(artifacts: Path) -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, else ``artifacts/mlflow.db``."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{(artifacts / 'mlflow.db').absolute()}"


class Tracking:
    """The run of one stage; as a context it ends as FINISHED, FAILED or KILLED.

    Attributes
    ----------
    run_id : of the stage's own run.
    """

    def __init__(
        self,
        artifacts: Path,
        config: Config,
        stage: str,
        fingerprint: str,
        inputs: dict[str, Artifact],
    ) -> None:
        artifacts.mkdir(parents=True, exist_ok=True)
        self.config, self.stage, self.fingerprint, self.inputs = config, stage, fingerprint, inputs
        # MLflow creates its tables on first use, and fails where another run is at it.
        with FileLock(artifacts / ".mlflow.lock"):
            self.client = MlflowClient(tracking_uri(artifacts))
            self.experiment = self._experiment(artifacts)
        # Seconds in the name: MLflow handlers and people alike find runs by it.
        self.moment = dt.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        self.run_id = self._start(self._name(), self._parameters(), {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            status = "FINISHED"
        else:
            status = "KILLED" if kind is KeyboardInterrupt else "FAILED"
        self.client.set_terminated(self.run_id, status)

    def report(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics at a step: an epoch of training, a label draw of a probe."""
        self._log(self.run_id, metrics, step)

    def finish(self, summary: dict[str, Any], folder: Path) -> None:
        """Log what the stage found, its figures, and for a probe a run per feature set."""
        if self.stage == "probe":
            self._finish_probe(summary)
        else:
            self._log(self.run_id, _numbers(summary), 0)
            for row in summary.get("rows", []):
                self._log(self.run_id, _row_metrics(row), 0)
        figures = folder / "figures"
        if any(figures.glob("*.png")):
            self.client.log_artifacts(self.run_id, str(figures), "figures")
        for table in ("metrics.json", "audit.json", "audit.html", "history.csv"):
            if (folder / table).exists():
                self.client.log_artifact(self.run_id, str(folder / table))

    def _finish_probe(self, summary: dict[str, Any]) -> None:
        shared = {"label_fraction": summary["label_fraction"], "labels": summary["labels"]}
        # MLflow shows the value of the last step, which must be the mean and no single draw.
        step = max(summary["labels"], summary["repeats"])
        audit = _numbers({"audit": summary.get("audit", {})})
        for row in summary["rows"]:
            name = row["features"]
            metrics = _row_metrics(row) | audit
            if name == summary["rows"][0]["features"]:
                self._log(self.run_id, metrics, step)
                continue
            parameters = {**shared, "feature_set": name, "seed": self.config.seed}
            run = self._start(self._name(name), parameters, {})
            self._log(run, metrics, step)
            self.client.set_terminated(run, "FINISHED")

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

    def _start(self, name: str, parameters: dict[str, Any], tags: dict[str, str]) -> str:
        tags = {
            "medvq.stage": self.stage,
            "medvq.dataset": self.config.name,
            "medvq.artifact": f"{self.config.name}/{self.stage}/{self.fingerprint}",
            **{f"medvq.built_on.{s}": a.record["mlflow_run_id"] for s, a in self.inputs.items()},
            **tags,
        }
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        identity: str = run.info.run_id
        params = [Param(k, str(v)[:_LONGEST_PARAMETER]) for k, v in parameters.items()]
        run_tags = [RunTag("medvq.seed", str(self.config.seed))]
        self.client.log_batch(identity, params=params, tags=run_tags)
        source = self.inputs["ingest"].fingerprint if "ingest" in self.inputs else self.fingerprint
        data = Dataset(self.config.name, source[:16], "medvq", f"{self.config.name} manifest")
        self.client.log_inputs(identity, datasets=[DatasetInput(data)])
        return identity

    def _name(self, feature_set: str = "medvq") -> str:
        if self.stage != "probe":
            return f"{self.stage} {self.moment} {self.fingerprint[:6]}"
        percent = f"{100 * self.config.probe.label_fraction:g}%"
        return f"probe {feature_set} {percent} {self.moment} {self.fingerprint[:6]}"

    def _parameters(self) -> dict[str, Any]:
        # A probe that is judged elsewhere has no settings of its own.
        chosen = getattr(self.config, "probe" if self.stage == "evaluate" else self.stage)
        parameters = _flat(chosen.model_dump(mode="json")) | {"seed": self.config.seed}
        if self.stage == "probe":
            parameters["feature_set"] = "medvq"
        return parameters

    def _log(self, run: str, metrics: dict[str, float], step: int) -> None:
        now = int(dt.datetime.now().timestamp() * 1000)
        self.client.log_batch(
            run, metrics=[Metric(k, float(v), now, step) for k, v in metrics.items()]
        )


def _row_metrics(row: dict[str, Any]) -> dict[str, float]:
    metrics = {}
    for name, value in row.items():
        if isinstance(value, dict) and "ci95" in value:
            metrics[name] = value["mean"]
            metrics[f"{name}_std"] = value["std"]
            metrics[f"{name}_ci95_low"], metrics[f"{name}_ci95_high"] = value["ci95"]
    known = {name: value for name, value in row.get("validation", {}).items() if value is not None}
    validation = {f"validation_{name}": value for name, value in known.items()}
    return metrics | validation


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _numbers(summary: dict[str, Any]) -> dict[str, float]:
    flat = _flat({k: v for k, v in summary.items() if not isinstance(v, list)})
    # Names of labels stand in names of metrics, where MLflow refuses most punctuation.
    numbers = {
        re.sub(r"[^\w.\- ]", "_", k): float(v)
        for k, v in flat.items()
        if isinstance(v, int | float)
    }
    for level, book in enumerate(summary.get("codebook", [])):
        numbers |= {f"codebook_{level}_{k}": float(v) for k, v in book.items()}
    return numbers
