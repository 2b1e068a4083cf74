"""What a result was made from: the artifacts behind it, the images, the pretraining, the cost."""

from __future__ import annotations

import csv
import hashlib
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvq.errors import UserError
from medvq.storage.artifacts import Artifact, source
from medvq.storage.mlflow_sender import flat

# What pretrainings differ in most; all settings are parameters of the pretraining's own run.
_PRETRAINING = (
    "epochs", "learning_rate", "batch_size", "start_from", "encoder", "widths", "codebook_size",
    "codebook_dim", "reconstruction", "contrast.weight", "contrast.temperature", "image_fraction",
)  # fmt: skip


def lineage(inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Return the artifacts that a stage reads, and those that these were made from, by name.

    One that does not lie beside the others any more is left out.
    """
    found = dict(inputs)
    waiting = list(inputs.values())
    while waiting:
        artifact = waiting.pop()
        for name in artifact.record.inputs.keys() - found.keys():
            try:
                found[name] = source(artifact, name)
            except UserError:  # deleted, damaged, or no artifact at all
                continue
            waiting.append(found[name])
    return found


def images_digest(ingest: Path) -> str:
    """Return a hash of the images that an ingested set holds; empty where it has no manifest.

    It depends on the content of their files alone: not on settings, code, order, labels or names.
    """
    try:
        with (ingest / "manifest.csv").open(encoding="utf-8", newline="") as stream:
            images = sorted(row["sha256"] for row in csv.DictReader(stream))
    except (OSError, KeyError):
        return ""
    return hashlib.sha256("\n".join(images).encode()).hexdigest()


def pretraining_parameters(pretrain: Artifact) -> dict[str, Any]:
    """Return what tells the pretraining of a result from others, and its run in MLflow."""
    settings = flat(pretrain.record.settings)
    known = {name: settings[name] for name in _PRETRAINING if name in settings}
    return {f"pretrain.{k}": v for k, v in known.items()} | {
        "pretrain.seed": pretrain.record.configuration.get("seed", ""),
        "pretrain.run_id": pretrain.record.mlflow_run_id,
    }


def usage() -> dict[str, float]:
    """Return what this process has used so far, under the names of MLflow's system metrics."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    values = {
        "system/peak_memory_megabytes": peak_memory() / 2**20,
        "system/cpu_seconds": used.ru_utime + used.ru_stime,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        values["system/gpu_peak_memory_megabytes"] = torch.cuda.max_memory_allocated() / 2**20
    return values


def peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes.

    On Linux getrusage gives a process that of a larger one that started it, such as a notebook; the
    kernel's status of the process does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) * 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 2**10
