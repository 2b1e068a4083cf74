"""The whole flow on the smallest phantom set: its settings and its command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.faults.tiny import SMALLEST, command

__all__ = ["SMALLEST", "STAGES", "command", "copied_flow", "json_line", "run_probe"]

STAGES = ("ingest", "pretrain", "extract", "probe")
LINE = "line"


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


def run_probe(folder: Path) -> str:
    """Run the flow up to the probe as users do, in threads whose number is stated; return its line.

    Else the number would depend on what the machine does besides, and the last bits with it.
    """
    done = run_in_process(command(folder), OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def finished_flow(base: Path) -> Path:
    """Return the folder with data and artifacts of the smallest phantom set, up to the probe.

    It is made once for all tests, and its file ``line`` is what the probe printed.

    Parameters
    ----------
    base : of temporary folders of one process; that of all of them, under pytest-xdist, lies above.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    path = base / "finished-flow"
    with FileLock(f"{path}.lock"):
        if not (path / LINE).exists():
            line = run_probe(path)
            (path / LINE).write_text(line)
    return path


def copied_flow(base: Path, copy: Path) -> dict[str, Any]:
    """Copy the finished flow; return what its probe printed, as if it had been made there."""
    made = finished_flow(base)
    shutil.copytree(made, copy, symlinks=True, dirs_exist_ok=True)
    return json_line((copy / LINE).read_text().replace(str(made), str(copy)))
