"""Finished artifacts without running a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medvq.storage.artifacts import Artifact, Record, publish
from medvq.storage.publication import writing


def record(stage: str = "ingest", fingerprint: str = "0123456789abcdef", **changes: Any) -> Record:
    """Return a record of a stage, with ``changes`` to its fields."""
    fields: dict[str, Any] = {
        "stage": stage, "dataset": "tiny", "fingerprint": fingerprint, "inputs": {},
        "settings": {}, "code": {}, "configuration": {}, "versions": {}, "machine": "a test",
        "commit": None, "device": "cpu", "seconds": 1.0, "mlflow_run_id": f"run of {stage}",
        "summary": {}, "finished": "2026-01-01",
    }  # fmt: skip
    return Record(**fields | changes)


def artifact(folder: Path, stage: str = "ingest", **changes: Any) -> Artifact:
    """Return an artifact whose files lie in ``folder``; nothing is written."""
    return Artifact(folder, record(stage, folder.name, **changes))


def published(folder: Path, content: str = "", **changes: Any) -> Artifact:
    """Publish an artifact with one file, ``table.csv``."""
    with writing(folder) as aside:
        (aside / "table.csv").write_text(content)
        return publish(aside, folder, record(fingerprint=folder.name, **changes))
