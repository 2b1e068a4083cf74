"""The whole flow on the smallest phantom set: its settings and its command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from medvq.cli import main

from benchmarks.faults.tiny import SMALLEST, command

__all__ = ["SMALLEST", "STAGES", "command", "finished_flow", "json_line", "run_in_process"]

STAGES = ("ingest", "pretrain", "extract", "probe")


def run_in_process(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m medvq`` as users do."""
    ours = ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS")
    inherited = {k: v for k, v in os.environ.items() if k not in ours}
    return subprocess.run(
        [sys.executable, "-m", "medvq", *arguments],
        capture_output=True,
        text=True,
        env=inherited | {"MEDVQ_SUBJECT_KEY": "tests only"} | environment,
        check=False,
    )


def json_line(output: str) -> dict[str, Any]:
    """Return the object on the last line of a stage's output."""
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def finished_flow(base: Path) -> Path:
    """Return the folder with data and artifacts of the smallest phantom set, up to the probe.

    Parameters
    ----------
    base : of temporary folders of one process; that of all of them, under pytest-xdist, lies above.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    path = base / "finished-flow"
    with FileLock(f"{path}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVQ_SUBJECT_KEY", "tests only")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(command(path)) == 0  # at once where another test has done it
    return path
