"""Artifacts of every schema that there was, kept so that an upgrade never reads one wrongly.

Where ``SCHEMA`` of :mod:`medvq.storage.artifacts` is raised, those of the new one are made by
``PYTHONPATH=tests .venv/bin/python -m factories.kept``, and of the old one the records are left.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from factories.flow import SMALLEST
from medvq.config_file import load_config
from medvq.flow import run
from medvq.stages import STAGES
from medvq.stages.stage import RunOptions
from medvq.storage.artifacts import SCHEMA

KEPT = Path(__file__).parents[1] / "storage" / "kept_artifacts"
_FEWEST = (
    "source.train_subjects=20", "source.test_subjects=10", "ingest.read_size=16",
    "ingest.image_size=16", "ingest.swap.enabled=false", "pretrain.contrast.weight=0",
    "pretrain.widths=[8, 8]", "pretrain.epochs=1", "extract.grid=2", "extract.versions=0",
)  # fmt: skip


def keep() -> None:
    """Make artifacts of ingest, pretrain and extract without figures, and keep an image."""
    config = load_config("phantom", [*SMALLEST, *_FEWEST])
    folder = KEPT / f"schema_{SCHEMA}"
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        options = RunOptions(data_root=Path(scratch), artifacts=Path(scratch), device="cpu")
        for name in ("ingest", "pretrain", "extract"):
            made = run(replace(STAGES[name], draw=None), config, options).artifact.folder
            shutil.copytree(made, folder / name / made.name)
        shutil.copy(min(Path(scratch).rglob("*.dcm")), folder / "image.dcm")


if __name__ == "__main__":
    keep()
