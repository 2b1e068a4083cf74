"""The rows of a run that is not finished, so that one that was interrupted goes on from there.

``<OUT>.partial`` beside the table: one JSON object on each line. The first says which run it is;
each of the others holds the rows of one batch and their checksum, and is synced before the next
batch begins; batches are predicted anew from the first one on that was damaged since. When all are
there the table is written aside and renamed, so that a table is whole wherever there is one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medvq.errors import UserError
from medvq.prediction.table import Row

SUFFIX = ".partial"
FORCE = "remove it or name another file (OUT=)"


@dataclass(frozen=True)
class RunIdentity:
    """Of what a table is made: two runs of one identity write the same table.

    Attributes
    ----------
    probe, prior : fingerprints of artifacts; ``prior`` is empty where there is none.
    inputs : a digest of the files.
    options : that change the table.
    code : a digest of the code.
    """

    probe: str
    prior: str
    inputs: str
    options: str
    code: str


class Journal:
    """The rows of batches that are finished.

    Attributes
    ----------
    started : when the run was begun first, in ISO 8601.
    batches : how many are finished.
    """

    def __init__(self, file: Path, identity: RunIdentity, now: str) -> None:
        self.file = file
        self.started, self.batches = now, 0
        if file.exists():
            self._resume(identity)
        else:
            self._append({"run": vars(identity), "started": now})

    def append(self, rows: list[Row]) -> None:
        """Add the rows of a batch."""
        self._append({"batch": self.batches, "rows": rows})
        self.batches += 1

    def rows(self) -> Iterator[list[Row]]:
        """Yield the rows of each finished batch."""
        with self.file.open(encoding="utf-8") as stream:
            next(stream)
            for line in stream:
                yield json.loads(line)["rows"]

    def _append(self, content: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(content | {"checksum": _checksum(content)}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _resume(self, identity: RunIdentity) -> None:
        """Read how far the run came; drop a line that it was killed in, and what was damaged."""
        whole, number, has_rows = 0, 0, False
        with self.file.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                if number == 0:
                    first = self._parsed(line)
                else:
                    has_rows = True
                    if _content(line).get("batch") != number - 1:
                        break
                whole, number = whole + len(line), number + 1
        if number == 0 or (not has_rows and first["run"] != vars(identity)):
            self.file.unlink()  # nothing is lost
            self._append({"run": vars(identity), "started": self.started})
            return
        if first["run"] != vars(identity):
            raise UserError(
                f"{self.file} is what an interrupted run left that had other files, another probe, "
                f"other options or other code: {FORCE}"
            )
        self.started, self.batches = first["started"], number - 1
        os.truncate(self.file, whole)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            first = json.loads(line)
            return {"run": dict(first["run"]), "started": str(first["started"])}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.file} is no journal of predictions: {FORCE}") from None


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _content(line: bytes) -> dict[str, Any]:
    """Return what a line holds, nothing where it is not as it was written."""
    try:
        content = dict(json.loads(line))
        checksum = content.pop("checksum")
    except (ValueError, KeyError, TypeError):
        return {}
    return content if checksum == _checksum(content) else {}


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Let one run at a time write ``out``.

    Raises
    ------
    UserError
        Another run does.
    """
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another run is writing {out}; wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()
