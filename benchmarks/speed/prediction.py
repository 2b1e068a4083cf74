"""The command ``predict`` as a user runs it, its start included, by two kinds of encoder."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.speed.measure import Bench, Row, within
from benchmarks.speed.reading import radiograph

_IMAGES, _SIDE = 1000, 224
_CORES, _SECONDS = 2, 30.0
# What is trained is no part of the figure: as short as it may be, on few phantoms.
_SETTINGS = """\
name: {name}
extends: {extends}
source: {{kind: phantom, train_subjects: 40, test_subjects: 20}}
pretrain: {{epochs: {epochs}}}
extract: {{versions: 1}}
probe: {{label_fraction: 0.5, repeats: 2}}
prior: {{epochs: 1}}
"""
_ENCODERS = {"phantom": 1, "encoders/imagenet": 0}
"""Epochs of training, by the configuration that the set extends."""


def measure_prediction(bench: Bench) -> list[Row]:
    """Measure the seconds, and the processor's, that new images take with the start of the program.

    The encoders are the phantom's VQ-VAE and EfficientNet-Lite0, which encodes each image twice at
    224 px; both with the model of the codes that says how typical an image is.
    """
    number, rows = 64 if bench.quick else _IMAGES, []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "new").mkdir()
        for index in range(number):
            picture = radiograph(index, 256, _SIDE).astype(np.uint8)
            cv2.imwrite(str(home / "new" / f"{index}.jpg"), picture)
        for extends, epochs in _ENCODERS.items():
            probe = _fit(home, extends, epochs)
            seconds, of_cores = _timed(home, probe, bench.device.type)
            figure = f"predict {number} JPEG files of {_SIDE} px by {extends}, start included"
            limit = _SECONDS if number == _IMAGES else None
            rows += [
                within(figure, f"{_SECONDS:.0f} s", seconds, _SECONDS, limit and 1.0),
                within(
                    "the same, time of all cores together",
                    f"{_CORES} x {_SECONDS:.0f} s",
                    of_cores,
                    _CORES * _SECONDS,
                    None,
                ),
            ]
    return rows


def _fit(home: Path, extends: str, epochs: int) -> Path:
    """Run the flow up to a probe and the model of the codes; return the folder of the probe."""
    name = Path(extends).name
    file = home / f"{name}.yaml"
    text = _SETTINGS.format(name=f"new-{name}", extends=extends, epochs=epochs)
    file.write_text(text, encoding="utf-8")
    for stage in ("probe", "prior"):
        _medvq(home, stage, "--config", str(file), "--data-root", str(home / "data"))
    return home / "artifacts" / f"new-{name}" / "probe" / "latest"


def _timed(home: Path, probe: Path, device: str) -> tuple[float, float]:
    """Return the seconds of a prediction, and those of all cores that worked for it."""
    before, start = _of_children(), time.perf_counter()
    table = home / f"{probe.parents[1].name}.csv"
    places = ("--in", str(home / "new"), "--out", str(table), "--probe", str(probe))
    _medvq(home, "predict", *places, "--device", device)
    return time.perf_counter() - start, _of_children() - before


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _medvq(home: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "medvq", *arguments, "--artifacts", str(home / "artifacts")]
    environment = os.environ | {"MLFLOW_TRACKING_URI": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
