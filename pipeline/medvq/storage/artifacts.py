"""Artifact folders: fingerprint, atomic publication, up-to-date check, provenance.

A stage writes into ``artifacts/<dataset>/<stage>/<fingerprint>.partial``; when it is done its
``stage.json`` is written, everything is synced, and the folder is renamed. A folder without a
finished ``stage.json`` is no artifact. A partial folder that is found again is handed back to the
stage, which may resume from it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from medvq.config import Config
from medvq.errors import UserError
from medvq.summaries import JsonObject, Summary

RECORD = "stage.json"
SCHEMA = 2
"""Of records and of what artifacts hold: raise it when older ones can no longer be read."""
_FINGERPRINT_LENGTH = 16
S = TypeVar("S", bound=Summary)


@dataclass(frozen=True)
class Record:
    """What ``stage.json`` says of an artifact.

    Attributes
    ----------
    fingerprint : over the settings, the inputs and the code.
    inputs : fingerprints of what the stage read, by name.
    settings : the part of the configuration that the fingerprint hashes.
    code : a hash of every module that the stage runs, by module.
    configuration : all of it.
    versions : of Python and the main libraries.
    commit : of the code, ``-dirty`` where it was changed; None outside git.
    summary : see :mod:`medvq.summaries`.
    schema : see :data:`SCHEMA`.
    finished : when, in UTC.
    files : the SHA-256 checksum of every other file of the artifact, by its path in the folder.
    """

    stage: str
    dataset: str
    fingerprint: str
    inputs: dict[str, str]
    settings: JsonObject
    code: dict[str, str]
    configuration: JsonObject
    versions: dict[str, str | None]
    machine: str
    commit: str | None
    device: str
    seconds: float
    mlflow_run_id: str
    summary: JsonObject
    schema: int = SCHEMA
    finished: str = ""
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its record."""

    folder: Path
    record: Record

    @property
    def fingerprint(self) -> str:
        return self.record.fingerprint

    def config(self) -> Config:
        """Return the whole configuration that the artifact was made with."""
        return Config.model_validate_json(json.dumps(self.record.configuration))

    def summary(self, kind: type[S]) -> S:
        """Return what the stage found."""
        return kind.from_json(self.record.summary)


@dataclass(frozen=True)
class StageContext:
    """What a stage is given: where to write, what to read, and whom to report to.

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

    @property
    def figures(self) -> Path:
        """The folder of the stage's figures."""
        return self.folder / "figures"


def fingerprint(
    stage: str, settings: JsonObject, inputs: Mapping[str, str], code: Mapping[str, str]
) -> str:
    """Return a hash of a stage's settings, of the fingerprints that it reads, and of its code.

    >>> one = fingerprint("a", {"x": 1}, {}, {"medvq.a": "0"})
    >>> one == fingerprint("a", {"x": 1}, {}, {"medvq.a": "0"})
    True
    >>> one == fingerprint("a", {"x": 1}, {}, {"medvq.a": "1"})
    False
    """
    content = {"stage": stage, "schema": SCHEMA, "settings": settings}
    text = json.dumps(content | {"inputs": dict(inputs), "code": dict(code)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_LENGTH]


def find(folder: Path) -> Artifact | None:
    """Return the artifact in ``folder``, None where none was finished."""
    try:
        record = TypeAdapter(Record).validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None
    return Artifact(folder, record) if record.finished else None


def differing_in_code(
    stage_folder: Path, settings: JsonObject, inputs: Mapping[str, str]
) -> Artifact | None:
    """Return the newest artifact in ``stage_folder`` of the same settings and inputs, if any."""
    found = [
        artifact
        for file in stage_folder.glob(f"*/{RECORD}")
        if not file.parent.is_symlink() and (artifact := find(file.parent)) is not None
    ]
    same = [a for a in found if (a.record.settings, a.record.inputs) == (settings, dict(inputs))]
    return max(same, key=lambda artifact: artifact.record.finished, default=None)


def source(artifact: Artifact, stage: str) -> Artifact:
    """Return the artifact of ``stage`` that ``artifact`` was made from, which lies beside it.

    Raises
    ------
    UserError
        It is not there.
    """
    folder = artifact.folder.resolve().parents[1] / stage / artifact.record.inputs[stage]
    if (found := find(folder)) is None:
        raise UserError(
            f"{artifact.folder} needs the artifact {folder} that it was made from: copy it there"
        )
    return found


def partial_folder(folder: Path) -> Path:
    """Return the folder that is written before it is renamed to ``folder``."""
    return folder.with_name(f"{folder.name}.partial")


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Make the partial folder of ``folder``, locked against a second run.

    Raises
    ------
    UserError
        Another run is writing the same artifact.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another run is writing {folder}; wait for it, or stop it and start again"
        ) from error
    try:
        aside = partial_folder(folder)
        aside.mkdir(exist_ok=True)
        yield aside
    finally:
        lock.release()


def publish(aside: Path, folder: Path, record: Record) -> Artifact:
    """Write the record, sync, rename ``aside`` to ``folder``, and point ``latest`` at it."""
    finished = dt.datetime.now(dt.UTC).isoformat()
    content = asdict(record) | {"finished": finished, "files": _checksums(aside)}
    write_text(aside / RECORD, json.dumps(content, indent=2) + "\n")
    for path in aside.rglob("*"):
        if path.is_file():
            _sync(path)
    replaced = folder.with_name(f"{folder.name}.replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    if folder.exists():
        folder.rename(replaced)
    aside.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    point_latest(folder)
    artifact = find(folder)
    assert artifact is not None
    return artifact


def verify(artifact: Artifact, *names: str) -> None:
    """Compare an artifact's files with the checksums that they had when they were written.

    Parameters
    ----------
    names : paths in the folder; none: all files.

    Raises
    ------
    UserError
        A file is missing or was changed; the message says how to make the artifact anew.
    """
    expected = {name: artifact.record.files[name] for name in names or artifact.record.files}
    found = _checksums(artifact.folder, tuple(expected))
    for name, checksum in expected.items():
        if found.get(name) != checksum:
            what = "was changed or damaged since it was written" if name in found else "is missing"
            raise UserError(
                f"{artifact.folder / name} {what}; make it anew: medvq {artifact.record.stage} "
                f"--force (make: FORCE=1), or copy the artifact again"
            )


def _checksums(folder: Path, names: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the SHA-256 checksums of files in ``folder`` that are there, by their paths in it."""
    paths = [folder / name for name in names] or sorted(folder.rglob("*"))
    files = [path for path in paths if path.is_file() and path.name != RECORD]

    def checksum(path: Path) -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        sums = list(threads.map(checksum, files))
    keys = (path.relative_to(folder).as_posix() for path in files)
    return dict(zip(keys, sums, strict=True))


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
