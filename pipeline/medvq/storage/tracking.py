"""Tracking: one MLflow run per execution of a stage, and one per feature set of a probe; flat.

Best effort: what is reported is written to a journal and sent in the background; no fault of the
store or its server stops or slows a stage (``TRACKING=required`` makes it an error). A stage that
is interrupted and runs again goes on with its MLflow run, which then holds the whole curve.
"""

from __future__ import annotations

import datetime as dt
import getpass
import os
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medvq.config import Config
from medvq.errors import UserError
from medvq.storage.artifacts import Artifact
from medvq.storage.journal import FILE, Journal
from medvq.storage.lineage import images_digest, lineage, pretraining_parameters, usage
from medvq.storage.mlflow_sender import KEPT, Sender, flat, now
from medvq.tracked_runs import TrackedRun

# Settings that are others where a baseline is fitted: tags of MedVQ's run, since as parameters they
# would take the places of label_fraction and features on the page that compares runs.
_OF_MEDVQ = ("regularisation", "whitening")
_KEY_PICTURES = ("roc_and_calibration", "reconstructions")
_TABLES = ("metrics.json", "audit.json", "audit.html", "history.csv")
# MLflow's limit for the value of a parameter (mlflow.utils.validation.MAX_PARAM_VAL_LENGTH).
_LONGEST_PARAMETER = 6000
# Seconds that a finished stage waits for what is still to be sent: three times as many for a store
# on this machine, whose first use creates its tables; few where the store has failed already, and
# where the stage was interrupted, since whoever did that may kill it soon.
_PATIENCE, _SHORT_PATIENCE = 10.0, 3.0


class Tracking:
    """The runs of one stage; as a context it ends as FINISHED, FAILED or KILLED.

    Parameters
    ----------
    artifacts : folder of all artifacts.
    folder : the folder that the stage writes to, where the journal lies.
    commit : of the code that runs, if it is known.
    """

    def __init__(
        self,
        artifacts: Path,
        folder: Path,
        config: Config,
        stage: str,
        fingerprint: str,
        inputs: Mapping[str, Artifact],
        commit: str | None = None,
    ) -> None:
        self.config, self.stage, self.fingerprint = config, stage, fingerprint
        self.inputs, self.commit = lineage(inputs), commit
        self.artifacts, self.label, self.key = artifacts, "", ""
        self._started = time.perf_counter()
        self.journal = Journal(folder / FILE)
        self._reported = {
            _identity(event["key"], event["metrics"], event["step"])
            for event in self.journal.events
            if event["kind"] == "metrics"
        }
        self._keys: dict[str, str] = {
            e["feature_set"]: e["key"] for e in self.journal.events if e["kind"] == "run"
        }
        self.sender = Sender(self.journal, artifacts)
        self.required = _is_required()

    @property
    def run_id(self) -> str:
        """MLflow's id of the stage's own run; empty where MLflow has not been reached."""
        return self.journal.runs.get(self.key, "")

    def __enter__(self) -> Self:
        self.sender.start()
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
            status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        if self.key:
            self._append("end", status=status)
        sent = self.sender.close(self._patience(interrupted=status == "KILLED"))
        # The journal stays with the folder, for the run that goes on where this one is killed.
        if kind is None and not sent and self.required:
            raise self._refused()

    def settle(self, folder: Path) -> None:
        """Delete the journal once the stage's folder is published, or keep what was not sent.

        Parameters
        ----------
        folder : the published folder, where the journal lies now.
        """
        self.journal.follow(folder)
        if self.journal.is_sent:
            self.journal.remove()
            return
        self.sender.notice()
        name = f"{self.config.name}-{self.stage}-{self.fingerprint}-{self.key}.jsonl"
        self.journal.move(self.artifacts / KEPT / name)

    def _patience(self, interrupted: bool) -> float:
        if interrupted or (self.sender.problem and not self.required):
            return _SHORT_PATIENCE
        return _PATIENCE * (3 if self.sender.uri.startswith("sqlite") else 1)

    def _refused(self) -> UserError:
        return UserError(
            f"TRACKING=required, and MLflow does not take what it is sent "
            f"({self.sender.problem or 'no answer'}); run again when it does"
        )

    def start(self, label: str, settings: Mapping[str, Any]) -> None:
        """Start the stage's own run, or go on with that of an interrupted one.

        Parameters
        ----------
        label : words that tell the stage's runs apart.
        """
        self.label = label
        # "features" is what a row of a probe is called by.
        self._settings = {
            "medvq_features" if name == "features" else name: value
            for name, value in flat(settings).items()
        }
        of_medvq = {n: self._settings.pop(n) for n in _OF_MEDVQ if n in self._settings}
        self._tags = {f"medvq.{name}": str(value) for name, value in of_medvq.items()}
        if "pretrain" in self.inputs:
            self._settings |= pretraining_parameters(self.inputs["pretrain"])
        again = bool(self._keys)
        self.key = self._start(label, self._settings)
        if again:
            self._append("again")
        if self.required and not self.sender.wait(self._patience(interrupted=False)):
            raise self._refused()

    def report(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics at a step (an epoch of training, a label subset of a probe), once."""
        self._log(self.key, metrics | usage(), step)

    def finish(self, runs: list[TrackedRun], folder: Path) -> None:
        """Log what the stage found, its figures and tables, and its further runs."""
        first, *others = runs
        seconds = {f"seconds.{s}": a.record.seconds for s, a in self.inputs.items()}
        seconds[f"seconds.{self.stage}"] = round(time.perf_counter() - self._started, 1)
        if first.feature_set:
            self._append(
                "params", params=_texts({**first.parameters, "features": first.feature_set})
            )
        if first.headline:
            self._append("view", experiment=self.config.name, metric=first.headline)
        self._log(self.key, first.metrics | seconds | usage(), first.step)
        for run in others:
            # A feature set that is all of MedVQ's has its row again, unless it is a baseline.
            alone = (run.feature_set,) == self.config.probe.features
            if alone and "medvq_minus" not in run.metrics:
                continue
            label = self.label.replace("medvq", run.feature_set, 1)
            parameters = {**self._settings, **run.parameters, "features": run.feature_set}
            key = self._start(label, parameters, run.feature_set, run.key_figure)
            self._log(key, run.metrics | seconds, run.step)
            self._append("end", key, status="FINISHED")
        figures = sorted(
            (folder / "figures").glob("*.png"), key=lambda f: (f.stem not in _KEY_PICTURES, f.name)
        )
        tables = [table for table in _TABLES if (folder / table).exists()]
        names = [f"figures/{figure.name}" for figure in figures] + tables
        digest = images_digest(folder) if self.stage == "ingest" else ""
        self._append(
            "files", artifact=self._artifact, files=names, digest=digest, source=self._source,
            note=self._note(first.key_figure, [name for name in names if name.endswith(".png")]),
        )  # fmt: skip
        if (folder / "probe.safetensors").exists():
            self._append("model", artifact=self._artifact, classes=list(first.classes))

    def _note(self, key_figure: str, figures: list[str]) -> str:
        """Return the description of a run: its key figure, its pictures, what it was made from."""
        made = [f"{stage} `{a.record.mlflow_run_id[:8]}`" for stage, a in self.inputs.items()]
        pictures = [f"![{Path(name).stem}](artifact:{name})" for name in figures]
        origin = f"`medvq {self.stage}` of `{self.config.name}`, artifact `{self._artifact}`"
        built = f"made from the runs {', '.join(made)}" if made else ""
        code = f"commit `{self.commit}`" if self.commit else ""
        return "\n\n".join(filter(None, [key_figure, *pictures, origin, built, code]))

    @property
    def _artifact(self) -> str:
        return f"{self.config.name}/{self.stage}/{self.fingerprint}"

    @property
    def _source(self) -> str:
        return f"{self.config.name} manifest"

    @property
    def _digest(self) -> str:
        """The hash of the images that the stage works on; empty where they are not known yet."""
        if (ingest := self.inputs.get("ingest")) is None:
            return ""
        return images_digest(ingest.folder) or ingest.fingerprint

    def _start(
        self,
        label: str,
        parameters: Mapping[str, Any],
        feature_set: str = "",
        key_figure: str = "",
    ) -> str:
        """Return the key of a run, which an interrupted stage may have started before.

        Parameters
        ----------
        feature_set : what the run is of; empty for the stage's own run.
        """
        if feature_set in self._keys:
            return self._keys[feature_set]
        # Seconds in the name: MLflow handlers and people alike find runs by it.
        moment = dt.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        key = self._keys[feature_set] = uuid.uuid4().hex
        self._append(
            "run",
            key,
            feature_set=feature_set,
            experiment=self.config.name,
            name=" ".join(filter(None, (self.stage, label, moment, self.fingerprint[:6]))),
            tags={
                "medvq.stage": self.stage,
                "medvq.dataset": self.config.name,
                "medvq.artifact": self._artifact,
                "medvq.seed": str(self.config.seed),
                **{f"medvq.built_on.{s}": a.record.mlflow_run_id for s, a in self.inputs.items()},
                "mlflow.user": _user(),
                "mlflow.source.name": f"medvq {self.stage}",
                "mlflow.source.type": "LOCAL",
                **({"mlflow.source.git.commit": self.commit} if self.commit else {}),
                **(
                    {"mlflow.note.content": self._note(key_figure, [])}
                    if feature_set
                    else self._tags
                ),
            },
            params=_texts(parameters),
            digest=self._digest[:16],
            source=self._source,
        )
        return key

    def _log(self, key: str, metrics: Mapping[str, float], step: int) -> None:
        # Names of labels stand in names of metrics, where MLflow refuses most punctuation.
        values = {
            name if name.startswith("system/") else re.sub(r"[^\w.\- ]", "_", name): float(value)
            for name, value in metrics.items()
        }
        identity = _identity(key, values, step)
        if identity not in self._reported:
            self._reported.add(identity)
            self._append("metrics", key, metrics=values, step=step)

    def _append(self, kind: str, key: str = "", **values: Any) -> None:
        self.journal.append({"kind": kind, "key": key or self.key, "time": now(), **values})


def _is_required() -> bool:
    """Say whether a run without tracking is an error.

    Raises
    ------
    UserError
        ``TRACKING`` has another value than those that there are.
    """
    value = os.environ.get("TRACKING") or ""
    if value not in ("", "required"):
        raise UserError(f"TRACKING={value!r} is not 'required'; correct it, or leave it out")
    return bool(value)


def _texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:_LONGEST_PARAMETER] for name, value in parameters.items()}


def _user() -> str:
    """Return the name of the account that runs this, as MLflow's own client does."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container has accounts without a name
        return "unknown"


def _identity(key: str, metrics: Mapping[str, float], step: int) -> tuple[object, ...]:
    """Return what two reports of the same have in common."""
    return (key, step, *sorted(metrics))
