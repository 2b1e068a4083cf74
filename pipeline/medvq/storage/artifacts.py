"""Artifact folders: fingerprint, atomic publication, up-to-date check, provenance.

A stage writes into ``artifacts/<dataset>/<stage>/<fingerprint>.partial``; when it is done its
``stage.json`` is written, everything is synced, and the folder is renamed. A folder without a
finished ``stage.json`` is no artifact. A partial folder that is found again is handed back to the
stage, which may resume from it. ``stage.json`` lists every file with its checksum and ends with a
checksum of itself: what was damaged since is found when it is read. Files whose names begin with a
dot are temporary and never published.
"""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from medvq.config import Config
from medvq.errors import Notice, UserError
from medvq.modes import set_mode
from medvq.storage.checksums import checksums
from medvq.storage.journal import FILES as JOURNAL_FILES
from medvq.storage.publication import (
    exchange,
    obstruction,
    point_latest,
    recover,
    sync,
    write_bytes,
)
from medvq.summaries import JsonObject, Summary

RECORD = "stage.json"
SCHEMA = 3
"""Of records and of what artifacts hold: raise it when older ones can no longer be read."""
_FINGERPRINT_LENGTH = 16
_OTHER_VERSION = "was written by another version of MedVQ"
_CHANGED = "was changed or damaged since it was written"
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
    overrides : what the user changed the configuration by on the command line, as ``key=value``.
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
    overrides: list[str] = field(default_factory=list)
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
        with _of_this_version(self.folder):
            return Config.model_validate_json(json.dumps(self.record.configuration))

    def summary(self, kind: type[S]) -> S:
        """Return what the stage found."""
        with _of_this_version(self.folder):
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


def finished(folder: Path, stage: str) -> Artifact:
    """Return the finished artifact of a stage in a folder.

    Raises
    ------
    UserError
        There is none.
    """
    artifact = find_linked(folder)
    if artifact is None or artifact.record.stage != stage:
        raise UserError(
            f"{folder} is no finished artifact of the stage '{stage}'; name another, or make one: "
            f"medvq {stage} --config NAME"
        )
    return artifact


def find(folder: Path) -> Artifact | None:
    """Return the artifact in ``folder``, None where none was finished.

    Raises
    ------
    UserError
        Its record is damaged, another version wrote it, or links lead in a circle.
    """
    file = folder / RECORD
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise obstruction(file) from error
        raise _damaged(folder, RECORD, f"cannot be read ({error.strerror})") from error
    content = _content(text)
    schema = content.get("schema", 1) if "stage" in content else SCHEMA
    if schema != SCHEMA:
        raise _damaged(folder, RECORD, f"{_OTHER_VERSION} (schema {schema}, not {SCHEMA})")
    content.pop("checksum", None)
    if text != _sealed(content):
        raise _damaged(folder, RECORD, _CHANGED)
    with _of_this_version(folder):
        return Artifact(folder, TypeAdapter(Record).validate_python(content))


def find_linked(link: Path) -> Artifact | None:
    """Return the artifact that a folder is or a link such as ``latest`` leads to, as :func:`find`.

    Unlike :meth:`Path.resolve`, ``realpath`` takes a link that leads in a circle, which is refused.
    """
    return find(Path(os.path.realpath(link)))


def _content(text: bytes) -> JsonObject:
    """Return the object that a record holds, an empty one where it holds none."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _sealed(content: JsonObject) -> bytes:
    """Return the text of a record, whose last entry is a checksum of the others."""
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return f"{json.dumps(content | {'checksum': checksum}, indent=2)}\n".encode()


@contextmanager
def _of_this_version(folder: Path) -> Iterator[None]:
    """Turn the error of a record with other entries than this version has into the user's."""
    try:
        yield
    except (ValidationError, KeyError) as error:
        raise _damaged(folder, RECORD, _OTHER_VERSION) from error


def _damaged(folder: Path, name: str, what: str) -> UserError:
    """Return the error of a file that cannot be used, of the artifact in ``folder``."""
    home = Path(os.path.realpath(folder))
    # An artifact that was copied elsewhere does not lie in the folder of its stage.
    stage = home.parent.name if re.fullmatch("[0-9a-f]+", home.name) else "STAGE"
    return UserError(
        f"{folder / name} {what}; make it anew: medvq {stage} --force (make: FORCE=1), or copy the "
        "artifact again"
    )


def existing(folder: Path) -> Artifact | None:
    """Return the artifact that a stage would write into ``folder``, None where there is none.

    Raises
    ------
    UserError
        It is damaged, or another version wrote it.
    """
    recover(folder)
    artifact = find(folder)
    if artifact is None and folder.exists():
        raise _damaged(folder, RECORD, "is missing")
    return artifact


def differing_in_code(
    stage_folder: Path, settings: JsonObject, inputs: Mapping[str, str]
) -> Artifact | None:
    """Return the newest artifact in ``stage_folder`` of the same settings and inputs, if any."""
    same = (settings, dict(inputs))
    found = all_of(stage_folder)
    return newest(one for one in found if (one.record.settings, one.record.inputs) == same)


def all_of(stage_folder: Path) -> list[Artifact]:
    """Return the artifacts of a stage; one that cannot be used is told and left out."""
    found: list[Artifact] = []
    for file in sorted(stage_folder.glob(f"*/{RECORD}")):
        folder = file.parent
        if folder.is_symlink():
            continue
        try:
            artifact = find(folder)
        except UserError as error:
            text = f"not used: {error}; where nothing needs it, remove {folder}"
            warnings.warn(Notice(text), stacklevel=2)
            continue
        # What a run has not published yet is named otherwise.
        if artifact is not None and folder.name == artifact.fingerprint:
            found.append(artifact)
    return found


def newest(found: Iterable[Artifact]) -> Artifact | None:
    """Return the artifact that was finished last, None of none."""
    return max(found, key=lambda artifact: artifact.record.finished, default=None)


def source(artifact: Artifact, stage: str) -> Artifact:
    """Return the artifact of ``stage`` that ``artifact`` was made from, which lies beside it.

    Raises
    ------
    UserError
        It is not there, or there is none: an encoder that MedVQ did not make has no pretraining.
    """
    if stage not in artifact.record.inputs:
        raise UserError(
            f"{artifact.folder} was made without the stage '{stage}', of another encoder than "
            "MedVQ's, and this reads MedVQ's own networks: use load_encoder and load_probe in "
            "Python, or train a VQ-VAE beside it (encoder.with_vqvae=true)"
        )
    folder = artifact.folder.resolve().parents[1] / stage / artifact.record.inputs[stage]
    if (found := find(folder)) is None:
        raise UserError(
            f"{artifact.folder} needs the artifact {folder} that it was made from: copy it there"
        )
    return found


def publish(aside: Path, folder: Path, record: Record) -> Artifact:
    """Write the record, sync, rename ``aside`` to ``folder``, and point ``latest`` at it.

    The journal of tracking moves with the folder; a stage that is killed before has it still.
    """
    journal = [aside / name for name in JOURNAL_FILES]
    for path in list(aside.rglob(".*")):  # what a killed run has not renamed
        if path not in journal:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (aside / RECORD).unlink(missing_ok=True)
    published = sorted(path for path in aside.rglob("*") if path.is_file() and path not in journal)
    sums = checksums(published)
    files = {path.relative_to(aside).as_posix(): found.result() for path, found in sums.items()}
    finished = dt.datetime.now(dt.UTC).isoformat()
    write_bytes(aside / RECORD, _sealed(asdict(record) | {"finished": finished, "files": files}))
    for path in (*aside.rglob("*"), aside):
        set_mode(path)
        sync(path)
    exchange(aside, folder)
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
    sums = checksums([artifact.folder / name for name in names or artifact.record.files])
    for file, found in sums.items():
        compare(artifact, file, found)


def compare(artifact: Artifact, file: Path, found: Future[str]) -> None:
    """Raise a :class:`UserError` where a file's checksum is not that of when it was written."""
    name = file.relative_to(artifact.folder).as_posix()
    try:
        checksum = found.result()
    except FileNotFoundError:
        what = "is missing"
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    else:
        if artifact.record.files.get(name) == checksum:
            return
        what = _CHANGED
    raise _damaged(artifact.folder, name, what)
