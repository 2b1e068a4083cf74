"""The whole flow on the smallest phantom set: its settings and its command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SMALLEST = (
    "name=tiny",
    "source.train_subjects=60",
    "source.test_subjects=20",
    "source.size=64",
    "ingest.read_size=64",
    "ingest.image_size=32",
    "ingest.swap.training_copies=1",
    "pretrain.widths=[8, 8, 8]",
    "pretrain.decoder_widths=null",
    "pretrain.residual_levels=1",
    # Batch statistics take more steps than there are to settle, and all codes would be the same.
    "pretrain.batch_norm=false",
    "pretrain.codebook_size=16",
    "pretrain.codebook_dim=8",
    "pretrain.batch_size=32",
    # After one epoch what the typicality check flags is chance.
    "pretrain.epochs=4",
    "extract.versions=1",
    "probe.label_fraction=0.5",
    "probe.repeats=2",
    "probe.folds=2",
    "probe.components=16",
    "probe.regularisation=[0.01]",
    "probe.bootstrap=100",
)
STAGES = ("ingest", "pretrain", "extract", "probe")


def command(folder: Path, stage: str = "probe", *more: str) -> list[str]:
    """Return the arguments of a stage on the smallest phantom set, with data and artifacts in
    ``folder``; ``more`` are further overrides.
    """
    overrides = [part for override in (*SMALLEST, *more) for part in ("--set", override)]
    return [
        stage, "--config", "phantom", "--device", "cpu", "--json",
        "--data-root", str(folder / "data"), "--artifacts", str(folder / "artifacts"), *overrides,
    ]  # fmt: skip


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
