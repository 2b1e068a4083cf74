"""A cache of what is known of files: their checksums, their pixels, and why some were refused.

One SQLite file under the artifacts. A file's checksum is found by a keyed hash of its path, its
size and its times, a picture by the checksum of its content and by how it was read; so data that
was moved or copied is hashed again and not read again, and no name of a file stands in the cache.
It can be deleted at any time: all that is lost is time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from medvq.modes import artifact_modes

Bytes = NDArray[np.uint8]
T = TypeVar("T")

FILE = "reading.sqlite"
PART = "reading-{}.sqlite"
"""What one of several processes has read; the first, and one that is alone, write :data:`FILE`."""
# Bytes of pictures: 428,000 of 224 x 224 pixels, more than any public set of radiographs has.
LIMIT = 20 * 2**30
_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    name BLOB PRIMARY KEY, size INTEGER, modified INTEGER, changed INTEGER, sha256 TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pictures (
    number INTEGER PRIMARY KEY, key TEXT UNIQUE, shape TEXT, size TEXT, crc INTEGER, pixels BLOB
);
CREATE TABLE IF NOT EXISTS refusals (key TEXT PRIMARY KEY, reason TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notices (key TEXT PRIMARY KEY, notices TEXT) WITHOUT ROWID;
"""
# Rows that an interrupted run may lose.
_COMMIT_EVERY = 256
_GET = """
SELECT shape, size, crc, pixels, notices FROM pictures LEFT JOIN notices USING (key) WHERE key=?
"""
_PUT = "INSERT OR REPLACE INTO pictures (key, shape, size, crc, pixels) VALUES (?, ?, ?, ?, ?)"
_FORGET = """
DELETE FROM pictures WHERE number IN (
    SELECT number FROM (
        SELECT number, sum(length(pixels)) OVER (ORDER BY number DESC) AS kept FROM pictures
    ) WHERE kept > ?
)
"""


class ReadCache:
    """A cache in a folder; without one, or with one that cannot be used, it remembers nothing.

    Parameters
    ----------
    folder : where it lies, None for a cache that remembers nothing.
    secret : that names of files are hashed with, since without one they could be guessed.
    limit : how many bytes of pictures are kept; the oldest go first.
    part : the number of a process among others, which reads and writes its own file alone; else
        what other processes have read is known, too, which must have ended.
    """

    def __init__(
        self,
        folder: Path | None,
        secret: bytes = b"",
        limit: int = LIMIT,
        part: int | None = None,
    ) -> None:
        self.limit = limit
        self._unsaved = 0
        self._file = folder / (PART.format(part) if part else FILE) if folder and secret else None
        numbers = _parts(folder) if folder and part is None else []
        self._others = [ReadCache(folder, secret, limit, number) for number in numbers]
        self._key = hashlib.sha256(b"read cache" + secret).digest()
        self._open: sqlite3.Connection | None = None
        self._row("SELECT 1")  # so that a file that is no cache is found out now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for other in self._others:
            other._close()
        self._try(self._bound)
        self._close()

    @property
    def is_kept(self) -> bool:
        """Whether what is put into it is remembered."""
        return self._file is not None

    def forget_parts(self) -> None:
        """Delete what other processes have left where that is more than the limit."""
        files = [other._file for other in self._others if other._file is not None]
        if sum(file.stat().st_size for file in files if file.exists()) <= self.limit:
            return
        for other in self._others:
            other._delete()
        self._others = []

    def sha256(self, path: Path, status: os.stat_result) -> str | None:
        """Return the checksum of a file that is as it was when it was hashed."""
        query = "SELECT sha256 FROM files WHERE name=? AND size=? AND modified=? AND changed=?"
        row = self._row(query, *self._entry(path, status))
        return _unsealed(row[0]) if row else None

    def put_sha256(self, path: Path, status: os.stat_result, sha256: str) -> None:
        statement = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)"
        self._write(statement, *self._entry(path, status), _sealed(sha256))

    def has(self, key: str) -> bool:
        """Say whether the picture, or why it is refused, is known."""
        query = "SELECT 1 FROM pictures WHERE key=?1 UNION SELECT 1 FROM refusals WHERE key=?1"
        return self._row(query, key) is not None

    def picture(self, key: str) -> tuple[Bytes, tuple[int, ...], tuple[str, ...]] | None:
        """Return pixels as read, the size of the image and notices; None where not whole."""
        row = self._row(_GET, key)
        if row is None:
            return None
        shape, size, crc, pixels, notices = row
        if _crc(pixels, shape, size, notices) != crc:
            self._write("DELETE FROM pictures WHERE key=?", key)
            return None
        image = np.frombuffer(pixels, np.uint8).reshape(json.loads(shape))
        return image, tuple(json.loads(size)), tuple(json.loads(notices or "[]"))

    def put_picture(
        self, key: str, pixels: Bytes, size: tuple[int, ...], notices: Sequence[str] = ()
    ) -> None:
        data = np.ascontiguousarray(pixels).tobytes()
        shapes = json.dumps(pixels.shape), json.dumps(size)
        text = json.dumps(notices) if notices else None
        self._write(_PUT, key, *shapes, _crc(data, *shapes, text), data)
        if text:
            self._write("INSERT OR REPLACE INTO notices VALUES (?, ?)", key, text)

    def refusal(self, key: str) -> str:
        """Return why the image is refused; empty where that is not known, or it is not."""
        row = self._row("SELECT reason FROM refusals WHERE key=?", key)
        return (_unsealed(row[0]) or "") if row else ""

    def put_refusal(self, key: str, reason: str) -> None:
        self._write("INSERT OR REPLACE INTO refusals VALUES (?, ?)", key, _sealed(reason))

    def _entry(self, path: Path, status: os.stat_result) -> tuple[bytes, int, int, int]:
        name = hashlib.blake2b(os.fsencode(path.resolve()), key=self._key, digest_size=16).digest()
        return name, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _row(self, query: str, *values: object) -> Any:
        row = self._try(lambda db: db.execute(query, values).fetchone())
        others = iter(self._others)
        while row is None and (other := next(others, None)) is not None:
            row = other._row(query, *values)
        return row

    def _write(self, statement: str, *values: object) -> None:
        self._try(lambda db: db.execute(statement, values))
        self._unsaved += 1
        if self._unsaved >= _COMMIT_EVERY:
            self._unsaved = 0
            self._try(lambda db: db.commit())

    def _bound(self, db: sqlite3.Connection) -> None:
        """Drop the oldest pictures beyond the limit."""
        db.execute(_FORGET, (self.limit,))
        db.commit()

    def _try(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """Begin a broken cache anew; do without one that cannot be written."""
        for _ in range(2):
            if self._file is None:
                return None
            try:
                return action(self._connected(self._file))
            except sqlite3.OperationalError:
                break  # full, read-only, or locked for too long
            except (sqlite3.DatabaseError, ValueError, TypeError):
                self._delete()
            except OSError:
                break
        self._close()
        self._file = None
        return None

    def _delete(self) -> None:
        self._close()
        if self._file is None:
            return
        for suffix in ("", "-wal", "-shm"):
            self._file.with_name(f"{self._file.name}{suffix}").unlink(missing_ok=True)

    def _connected(self, file: Path) -> sqlite3.Connection:
        if self._open is None:
            with artifact_modes():
                file.parent.mkdir(parents=True, exist_ok=True)
                self._open = sqlite3.connect(file, timeout=30)
                self._open.execute("PRAGMA journal_mode=WAL")
            self._open.execute("PRAGMA synchronous=NORMAL")
            self._open.executescript(_TABLES)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _parts(folder: Path) -> list[int]:
    """Return the numbers of the processes that have left a file."""
    numbers = [path.stem.rpartition("-")[2] for path in folder.glob(PART.format("*"))]
    return sorted(int(number) for number in numbers if number.isdecimal())


def _crc(pixels: object, *others: object) -> int:
    """Return a checksum of a row, whatever types a flipped bit has left."""
    before = zlib.crc32(pixels) if isinstance(pixels, bytes) else 0
    return zlib.crc32(repr(others).encode(), before)


def _sealed(text: str) -> str:
    """Return a text after a checksum of it, since SQLite does not see a flipped bit."""
    return f"{zlib.crc32(text.encode()):08x} {text}"


def _unsealed(sealed: object) -> str | None:
    """Return the text that was sealed, None where it is not whole."""
    text = sealed[9:] if isinstance(sealed, str) else ""
    return text if sealed == _sealed(text) else None
