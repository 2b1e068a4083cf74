"""The flow many times in one process, and the time that guards take of a stage."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from medvq.cli import main
from medvq.storage import artifacts, mlflow_sender
from medvq.storage.journal import Journal
from medvq.training.loop import TrainingLoop

from benchmarks.faults.children import Child
from benchmarks.faults.lab import Lab
from benchmarks.faults.servers import misbehaving
from benchmarks.faults.tiny import NAME, STAGES, stage_command

GUARDED = {"pretrain": 2.0, "extract": 5.0, "ingest": 3.0}
"""Most that guards may take of a stage, in per cent."""
_WARM = 0.4
"""Share of the flows after which caches and allocators have what they need."""


def soak(lab: Lab, number: int) -> tuple[float, float]:
    """Run the flow ``number`` times in one process.

    Returns
    -------
    Growth of its memory in MiB, and of its open descriptors, per flow, after the first flows. What
    was freed counts as free: the C library keeps up to 100 MiB of it, more or less by chance.
    """
    folder, file = lab.scratch / "soak", lab.scratch / "soak.json"
    lab.scratch.mkdir(parents=True, exist_ok=True)

    def call() -> int:
        rows = []
        for _ in range(number):
            # But for the store: MLflow keeps 10 MiB for each new one that a process makes.
            shutil.rmtree(folder / "artifacts" / NAME, ignore_errors=True)
            for stage in STAGES:
                if status := main(stage_command(folder, stage)):
                    return status
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * resource.getpagesize() / 2**20
            rows.append((memory, len([*Path("/proc/self/fd").iterdir()])))
        file.write_text(json.dumps(rows))
        return 0

    Child(call, lab.scratch / "soak-log").wait(longest=600.0 * number).need_success()
    shutil.rmtree(folder)
    rows = np.array(json.loads(file.read_text()))[int(_WARM * number) :]
    memory, descriptors = np.polyfit(np.arange(len(rows)), rows, 1)[0]
    return float(memory), float(descriptors)


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up what guards take in the thread that calls them, and the CPU time of the sender."""
    places: list[tuple[Any, str, Callable[[], float]]] = [
        (artifacts, "verify", time.perf_counter),
        (artifacts, "publish", time.perf_counter),
        (TrainingLoop, "_save_checkpoint", time.perf_counter),
        (Journal, "append", time.perf_counter),
        (mlflow_sender.Sender, "close", time.perf_counter),
        (mlflow_sender.Sender, "_work", time.thread_time),
    ]

    def timed(name: str, clock: Callable[[], float], function: Callable[..., Any]) -> Any:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            started = clock()
            try:
                return function(*arguments, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + clock() - started

        return call

    with ExitStack() as stack:
        for owner, name, clock in places:
            function = timed(name, clock, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, function))
        yield


def guard_costs(lab: Lab, quick: bool, server: str = "") -> dict[str, float]:
    """Return, per stage of the phantom set, the per cent of its time that guards take.

    Parameters
    ----------
    quick : run the smallest set, of whose stages guards take far more.
    server : how a tracking server misbehaves meanwhile; empty for the store on this machine.
    """
    folder, file = lab.scratch / "guards", lab.scratch / "guards.json"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def call() -> int:
        costs = {}
        for stage in ("ingest", "pretrain", "extract"):
            smallest = stage_command(folder, stage)
            arguments = smallest if quick else smallest[: smallest.index("--set")]
            spent: dict[str, float] = {}
            started = time.perf_counter()
            with _timed(spent):
                if status := main(arguments):
                    return status
            # Waiting for what is still to be sent takes as long with any set: it is no share.
            spent.pop("close", None)
            costs[stage] = 100 * sum(spent.values()) / (time.perf_counter() - started)
        file.write_text(json.dumps(costs))
        return 0

    with ExitStack() as stack:
        environment = {}
        if server:
            environment["MLFLOW_TRACKING_URI"] = stack.enter_context(misbehaving(server))
        log = lab.scratch / "guards-log"
        Child(call, log, environment).wait(longest=3600.0).need_success()
    shutil.rmtree(folder)
    costs: dict[str, float] = json.loads(file.read_text())
    return costs
