"""Where faults are tried: a copy of the flow up to a stage, and what an undisturbed run gives."""

from __future__ import annotations

import ctypes
import json
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from medvq.cli import main
from medvq.storage.artifacts import find, verify
from medvq.storage.mlflow_sender import KEPT

from benchmarks.faults.children import Broken, Child, Ended, fresh_process
from benchmarks.faults.tiny import NAME, STAGES, stage_command

_TIMED = {"images_per_second", "seconds"}
_MEASURED = ("seconds.", "system/")  # beginnings of names of metrics
_CHECKPOINT, _HISTORY = "checkpoint.pt", "history.csv"
_SIZE = "1g"
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of sched.h

Inject = Callable[[], None]
"""What is done to a process before its command runs."""


@dataclass(frozen=True)
class Lab:
    """Undisturbed states of the flow, and a scratch folder for disturbed ones.

    Attributes
    ----------
    states : the folder with the flow before each stage, and ``done``; see :meth:`prepare`.
    scratch : a folder for copies; a small file system of its own where mounting is permitted.
    stages : of the flow.
    """

    states: Path
    scratch: Path
    stages: tuple[str, ...] = STAGES

    def after(self, stage: str) -> Path:
        """Return the folder with the undisturbed flow after a stage."""
        return self.states / [*self.stages, "done"][self.stages.index(stage) + 1]

    def prepare(self) -> dict[str, float]:
        """Run the flow undisturbed where that is not done; return each stage's seconds of work."""
        times = self.states / "work.json"
        if not times.exists():
            shutil.rmtree(self.states, ignore_errors=True)
            work, folder = dict[str, float](), self.states / self.stages[0]
            (folder / "artifacts").mkdir(parents=True)
            Child(lambda: _create_store(folder / "artifacts"), folder / "log").wait()
            for stage in self.stages:
                after = self.after(stage)
                shutil.copytree(self.states / stage, after, symlinks=True)
                ended = self.run(after, stage)
                ended.need_success()
                work[stage] = ended.work
            times.write_text(json.dumps(work))
        known: dict[str, float] = json.loads(times.read_text())
        return known

    @contextmanager
    def place(self, stage: str) -> Iterator[Path]:
        """Give a copy of the flow as it is before a stage."""
        folder = self.scratch / "place"
        folder.mkdir(parents=True, exist_ok=True)
        mounted = mount(folder)
        try:
            shutil.copytree(self.states / stage, folder, symlinks=True, dirs_exist_ok=True)
            yield folder
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", str(folder)], check=True)
            shutil.rmtree(folder, ignore_errors=True)

    def start(
        self,
        folder: Path,
        stage: str,
        *settings: str,
        inject: Inject | None = None,
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,
        log: str = "log",
    ) -> Child:
        """Start a stage; ``fresh``: in an interpreter of its own, which nothing is done to."""
        arguments = stage_command(folder, stage, *settings)

        def call() -> int:
            if inject is not None:
                inject()
            return main(arguments)

        # Outside the folder, which may be full or read-only.
        (self.scratch / "logs").mkdir(parents=True, exist_ok=True)
        file = self.scratch / "logs" / log
        return Child(fresh_process(arguments) if fresh else call, file, environment)

    def run(self, folder: Path, stage: str, *settings: str, **how: Any) -> Ended:
        """Run a stage to its end; arguments as of :meth:`start`."""
        return self.start(folder, stage, *settings, **how).wait()

    def check(self, folder: Path, stage: str) -> None:
        """Compare a disturbed flow with the undisturbed one, up to a stage.

        Raises
        ------
        Broken
            A result, an earlier artifact or a curve differs, or something is left lying about.
        """
        if any((folder / "artifacts" / KEPT).glob("*.jsonl")):
            arguments = ["mlflow-sync", "--artifacts", str(folder / "artifacts")]
            Child(lambda: main(arguments), self.scratch / "logs" / "sync").wait().need_success()
        undisturbed = self.after(stage)
        for made in self.stages[: self.stages.index(stage) + 1]:
            expected, found = result(undisturbed, made), result(folder, made)
            names = expected.keys() | found.keys()
            if differing := sorted(n for n in names if expected.get(n) != found.get(n)):
                raise Broken(f"the result of {made} differs: {', '.join(differing)}")
        if litter(folder, stage):
            raise Broken(f"left lying about: {', '.join(litter(folder, stage))}")
        expected_runs, found_runs = curves(undisturbed, stage), curves(folder, stage)
        if expected_runs != found_runs:
            differing_runs = _differences(expected_runs, found_runs)
            raise Broken(f"the runs of {stage} in MLflow differ: {differing_runs}")


def own_mounts() -> None:
    """Mount what is mounted from now on for this process alone: it ends with it."""
    if ctypes.CDLL(None).unshare(_NEW_MOUNTS) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=False)


def mount(folder: Path, size: str = _SIZE) -> bool:
    """Mount a small file system over a folder; say whether that is permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def artifact_folder(folder: Path, stage: str) -> Path:
    """Return the folder of the stage's latest artifact."""
    return folder / "artifacts" / NAME / stage / "latest"


def result(folder: Path, stage: str) -> dict[str, object]:
    """Return what must be the same in every run: checksums of files, history, the summary.

    A checkpoint holds times; what it trained is compared as weights and as history.
    """
    if (artifact := find(artifact_folder(folder, stage))) is None:
        raise Broken(f"{stage} has no finished artifact")
    verify(artifact)
    found: dict[str, object] = {
        name: checksum
        for name, checksum in artifact.record.files.items()
        if Path(name).name not in {_CHECKPOINT, _HISTORY}
    }
    for name in artifact.record.files:
        if Path(name).name == _HISTORY:
            table = pd.read_csv(artifact.folder / name)
            found[name] = table.drop(columns=[*_TIMED], errors="ignore").to_csv()
    found["summary"] = {k: v for k, v in artifact.record.summary.items() if k not in _TIMED}
    return found


def litter(folder: Path, stage: str) -> list[str]:
    """Return what lies beside the finished artifact and is nobody's."""
    home = artifact_folder(folder, stage).parent
    known = {"latest", (home / "latest").readlink().name}
    return [path.name for path in home.iterdir() if path.name not in known | _locks(known)]


def _locks(names: set[str]) -> set[str]:
    return {f".{name}.lock" for name in names}


Curves = Counter[tuple[str, tuple[tuple[str, int, float], ...]]]
"""How many runs have a status and metrics (name, step, value)."""


def curves(folder: Path, stage: str) -> Curves:
    """Return, of every run of the stage in MLflow, its status and its metrics at their steps."""
    found: Curves = Counter()
    with closing(sqlite3.connect(folder / "artifacts" / "mlflow.db")) as store:
        query = (
            "SELECT run_uuid, status FROM runs JOIN tags USING (run_uuid) "
            "WHERE key = 'medvq.stage' AND value = ?"
        )
        for run, status in store.execute(query, (stage,)).fetchall():
            rows = store.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (run,))
            found[status, tuple(sorted(row for row in rows if not _is_timed(row[0])))] += 1
    return found


def _is_timed(metric: str) -> bool:
    return metric in _TIMED or metric.startswith(_MEASURED)


def _differences(first: Curves, second: Curves) -> str:
    """Name what two stages' runs do not share."""
    if first.total() != second.total():
        return f"{second.total()} runs instead of {first.total()}"
    values = [{row for _, rows in runs for row in rows} for runs in (first, second)]
    names = sorted({name for name, *_ in values[0] ^ values[1]})
    return ", ".join(names) or ", ".join(status for status, _ in second - first)


def _create_store(artifacts: Path) -> int:
    from medvq.storage.mlflow_sender import tracking_uri
    from mlflow.tracking import MlflowClient

    MlflowClient(tracking_uri(artifacts)).search_experiments(max_results=1)
    return 0
