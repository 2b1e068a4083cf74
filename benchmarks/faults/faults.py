"""Faults that any stage may meet: of the disk, the store, the tracking server, the machine.

A fault is a context around a stage that runs on a copy of the flow. It yields what is done to the
stage's process and which end is right; when it is left the fault is mended, and the same stage,
run again, must come to the undisturbed result.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NoReturn

from benchmarks.faults.children import Broken, Ended, Skipped
from benchmarks.faults.lab import Inject, Lab, artifact_folder
from benchmarks.faults.servers import misbehaving
from benchmarks.faults.tiny import STAGES

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h
_READS = {
    "ingest": (), "pretrain": ("ingest",), "extract": ("ingest", "pretrain"), "probe": ("extract",),
    "prior": ("extract",), "sample": ("pretrain", "prior"), "evaluate": ("probe",),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A stage that is about to run, and the folder of the flow that it runs on."""

    lab: Lab
    stage: str
    folder: Path

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def written(self) -> list[int]:
        """Sizes of the files that the stage writes undisturbed."""
        home = artifact_folder(self.lab.after(self.stage), self.stage)
        return [path.stat().st_size for path in home.rglob("*") if path.is_file()]


@dataclass(frozen=True)
class Meant:
    """What is done to a stage's process, and how it is to end.

    Attributes
    ----------
    notice : words that must stand in one line for each stage that is run; empty for none.
    """

    inject: Inject | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    succeeds: bool = False
    refuses: bool = False
    notice: str = ""

    def judge(self, ended: Ended) -> None:
        """Raise where the stage ended in another way."""
        ended.need_no_traceback()
        if self.succeeds or (ended.status == 0 and not self.refuses):
            ended.need_success()
        else:
            ended.need_refusal()
        lines = [line for line in ended.err.splitlines() if self.notice in line]
        stages = len(re.findall(rf"^({'|'.join(STAGES)}): \w", ended.err, re.MULTILINE)) or 1
        if self.notice and not 1 <= len(lines) <= stages:
            raise Broken(f"{len(lines)} notices of {stages} stages: {lines[:2]}")


Fault = Callable[[Scene], AbstractContextManager[Meant]]


def try_fault(lab: Lab, stage: str, fault: Fault) -> str:
    """Run a stage with a fault, then without; return how the first run ended.

    Raises
    ------
    Broken, Skipped
        See there.
    """
    with lab.place(stage) as folder:
        with fault(Scene(lab, stage, folder)) as meant:
            ended = lab.run(folder, stage, inject=meant.inject, environment=meant.environment)
            meant.judge(ended)
        lab.run(folder, stage, log="again").need_success()
        lab.check(folder, stage)
    return "refused" if ended.status else "done"


def _remount(folder: Path, option: str) -> None:
    if not os.path.ismount(folder):
        raise Skipped("mounting is not permitted here")
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


@contextmanager
def full_disk(scene: Scene) -> Iterator[Meant]:
    """Leave half of the space that the stage needs."""
    if not os.path.ismount(scene.folder):
        raise Skipped("mounting is not permitted here")
    left = 4096 + sum(scene.written) // 2
    _remount(scene.folder, f"size={shutil.disk_usage(scene.folder).used + left}")
    yield Meant(refuses=True)
    _remount(scene.folder, "size=1g")


@contextmanager
def read_only_disk(scene: Scene) -> Iterator[Meant]:
    """Let nothing be written."""
    _remount(scene.folder, "ro")
    yield Meant(refuses=True)
    _remount(scene.folder, "rw")


@contextmanager
def file_size_limit(scene: Scene) -> Iterator[Meant]:
    """Let no file grow beyond half of the largest that the stage writes, as a quota does."""
    limit = max(scene.written) // 2
    yield Meant(partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))


@contextmanager
def failing_rename(scene: Scene) -> Iterator[Meant]:
    """Let the file system fail whenever something is renamed."""

    def inject() -> None:
        def fail(*names: object, **_: object) -> NoReturn:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(names[0]))

        os.rename = os.replace = fail

    yield Meant(inject, refuses=True)


@contextmanager
def _damaged_input(scene: Scene, damage: Callable[[Path], None]) -> Iterator[Meant]:
    if not _READS[scene.stage]:
        raise Skipped("it reads no artifact")
    homes = [artifact_folder(scene.folder, read) for read in _READS[scene.stage]]
    files = [file for home in homes for file in sorted(home.rglob("*")) if file.is_file()]
    inputs = [file for file in files if file.name != "stage.json"]
    file = inputs[len(inputs) // 2]
    content = file.read_bytes()
    damage(file)
    yield Meant(refuses=True)
    file.write_bytes(content)


def flipped_bit(scene: Scene) -> AbstractContextManager[Meant]:
    """Flip a bit of a file that the stage reads."""

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    return _damaged_input(scene, flip)


def missing_file(scene: Scene) -> AbstractContextManager[Meant]:
    """Delete a file that the stage reads."""
    return _damaged_input(scene, Path.unlink)


@contextmanager
def deleted_store(scene: Scene) -> Iterator[Meant]:
    """Delete the store, earlier runs included."""
    (scene.artifacts / "mlflow.db").unlink()
    yield Meant(succeeds=True)


@contextmanager
def _other_store(
    scene: Scene, change: Callable[[Path], object], content: Callable[[Path], object]
) -> Iterator[Meant]:
    """Change the store; what MLflow cannot read still has its ``content`` afterwards."""
    file = scene.artifacts / "mlflow.db"
    before = file.read_bytes()
    change(file)
    changed = content(file)
    yield Meant(succeeds=True, notice="MLflow does not take")
    if content(file) != changed:
        raise Broken("the store that MLflow could not read was written to")
    file.write_bytes(before)


def garbage_store(scene: Scene) -> AbstractContextManager[Meant]:
    """Write something else over the store."""
    garbage = b"no database" * 1000
    return _other_store(scene, lambda file: file.write_bytes(garbage), Path.read_bytes)


def newer_store(scene: Scene) -> AbstractContextManager[Meant]:
    """Let the store be of a later MLflow."""

    def change(file: Path) -> None:
        with closing(sqlite3.connect(file)) as store, store:
            store.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")

    def runs(file: Path) -> object:
        with closing(sqlite3.connect(file)) as store:
            queries = (
                "SELECT * FROM alembic_version",
                "SELECT * FROM metrics",
                "SELECT * FROM params",
                "SELECT * FROM tags",
            )
            return [store.execute(query).fetchall() for query in queries]

    return _other_store(scene, change, runs)


@contextmanager
def locked_store(scene: Scene) -> Iterator[Meant]:
    """Hold the store's lock as long as the stage runs."""
    with closing(sqlite3.connect(scene.artifacts / "mlflow.db")) as store:
        store.execute("BEGIN EXCLUSIVE")
        yield Meant(succeeds=True)
        store.rollback()


@contextmanager
def tracking_server(scene: Scene, how: str) -> Iterator[Meant]:
    """Let a server misbehave; what it did not take reaches the store afterwards."""
    with misbehaving(how) as address:
        environment = {"MLFLOW_TRACKING_URI": address}
        yield Meant(environment=environment, succeeds=True, notice="MLflow does not take")


@contextmanager
def two_runs(scene: Scene) -> Iterator[Meant]:
    """Start the stage a second time: one run makes the artifact, the other may refuse."""
    other = scene.lab.start(scene.folder, scene.stage, log="other")
    yield Meant()
    ended = other.wait()
    Meant().judge(ended)


@contextmanager
def jumping_clock(scene: Scene) -> Iterator[Meant]:
    """Let every look at the clock be a day early or late."""

    def inject() -> None:
        seconds, nanoseconds = time.time, time.time_ns
        jumps = cycle((0, 86_400, -86_400, -86_400, 0, 86_400, 0))
        time.time = lambda: seconds() + next(jumps)
        time.time_ns = lambda: nanoseconds() + next(jumps) * 10**9

    yield Meant(inject, succeeds=True)


@contextmanager
def few_descriptors(scene: Scene) -> Iterator[Meant]:
    """Allow a tenth of the open files that are usual at most."""
    yield Meant(partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64)), succeeds=True)


@contextmanager
def little_memory(scene: Scene) -> Iterator[Meant]:
    """Let the process allocate 16 MiB beside what its libraries have."""

    def inject() -> None:
        status = Path("/proc/self/status").read_text()
        used = next(line for line in status.splitlines() if line.startswith("VmData"))
        limit = int(used.split()[1]) * 1024 + (16 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))

    yield Meant(inject)


@contextmanager
def one_processor(scene: Scene) -> Iterator[Meant]:
    """Leave the process one processor."""

    def inject() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    yield Meant(inject, succeeds=True)


def _forbid_network(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):
        raise PermissionError("no network")


@contextmanager
def no_network(scene: Scene) -> Iterator[Meant]:
    """Put the process into a network without even a loopback; an attempt to connect is an error."""

    def inject() -> None:
        ctypes.CDLL(None).unshare(_NEW_NETWORK)  # where it is permitted: for worker processes, too
        sys.addaudithook(_forbid_network)

    yield Meant(inject, succeeds=True)


FAULTS: dict[str, Fault] = {
    "disk is full": full_disk,
    "disk is read-only": read_only_disk,
    "limit on the size of a file": file_size_limit,
    "renaming fails": failing_rename,
    "a bit of an input is flipped": flipped_bit,
    "a file of an input is missing": missing_file,
    "mlflow.db is deleted": deleted_store,
    "mlflow.db is locked": locked_store,
    "mlflow.db is garbage": garbage_store,
    "mlflow.db is newer": newer_store,
    **{
        f"tracking server: {how}": partial(tracking_server, how=how)
        for how in ("down", "hangs", "401", "500", "garbage", "drops")
    },
    "two runs at once": two_runs,
    "the clock jumps": jumping_clock,
    "64 file descriptors": few_descriptors,
    "16 MiB of memory to spare": little_memory,
    "one processor": one_processor,
    "no network": no_network,
}
