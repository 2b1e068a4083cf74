"""Artifact folders: fingerprint, atomic publication, up-to-date check, provenance.

A stage writes into ``artifacts/<dataset>/<stage>/<fingerprint>.partial``; when it is done its
``stage.json`` is written, everything is synced, and the folder is renamed. A folder without a
finished ``stage.json`` is no artifact. A partial folder that is found again is handed back to the
stage, which may resume from it.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvq import __version__
from medvq.config import Config
from medvq.errors import UserError

RECORD = "stage.json"
_FINGERPRINT_LENGTH = 16


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its record."""

    folder: Path
    record: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.record["fingerprint"])

    @property
    def summary(self) -> dict[str, Any]:
        """What the stage found, as its JSON line shows it."""
        return dict(self.record["summary"])


@dataclass(frozen=True)
class StageContext:
    """What a stage is given: where to write, what to read, and whom to tell.

    Attributes
    ----------
    config : the whole configuration.
    folder : the partial folder to write into; files of an interrupted run may lie there.
    inputs : finished artifacts by stage name.
    data_root, data_mirror : where data sets are looked for.
    device : ``cpu`` or ``cuda``.
    report : called with metrics and a step (an epoch, a number of labels), for tracking.
    cache : a folder for what may be lost at any time; None for none.
    """

    config: Config
    folder: Path
    inputs: dict[str, Artifact]
    data_root: Path
    data_mirror: str | None
    device: str = "cpu"
    report: Callable[[dict[str, float], int], None] = field(default=lambda _metrics, _step: None)
    cache: Path | None = None


def fingerprint(stage: str, configuration: Any, inputs: dict[str, str]) -> str:
    """A hash of the stage's own configuration and of the fingerprints that it reads.

    >>> fingerprint("a", {"x": 1}, {}) == fingerprint("a", {"x": 1}, {}) != fingerprint("b", {}, {})
    True
    """
    content = {"stage": stage, "version": __version__, "configuration": configuration}
    text = json.dumps(content | {"inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_LENGTH]


def find(folder: Path) -> Artifact | None:
    """The artifact in ``folder``, None where none was finished."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Artifact(folder, record) if record.get("finished") else None


@contextmanager
def partial(folder: Path) -> Iterator[Path]:
    """The partial folder beside ``folder``, locked against a second run.

    Raises
    ------
    UserError
        Another run is writing the same artifact.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another run is writing {folder}; wait for it, or stop it and start again"
            ) from error
        try:
            work = folder.with_name(f"{folder.name}.partial")
            work.mkdir(exist_ok=True)
            yield work
        finally:
            lock.unlink(missing_ok=True)


def publish(work: Path, folder: Path, record: dict[str, Any]) -> Artifact:
    """Write the record, sync, and rename ``work`` to ``folder``; then point ``latest`` at it."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    record = {**record, "finished": now}
    write_text(work / RECORD, json.dumps(record, indent=2, sort_keys=True) + "\n")
    for path in work.rglob("*"):
        if path.is_file():
            _sync(path)
    replaced = folder.with_name(f"{folder.name}.replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    if folder.exists():
        folder.rename(replaced)
    work.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    point_latest(folder)
    return Artifact(folder, record)


def point_latest(folder: Path) -> None:
    """Let the symbolic link ``latest`` beside ``folder`` name it."""
    link = folder.parent / "latest"
    if link.is_symlink() and link.readlink() == Path(folder.name):
        return
    fresh = folder.parent / f".latest-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.name, target_is_directory=True)
    fresh.replace(link)


def write_text(file: Path, text: str) -> None:
    """Write aside and rename, so that nobody ever reads half a file."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.replace(file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
