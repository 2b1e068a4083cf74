"""SHA-256 checksums of the files of a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

_CHUNK = 1 << 22


def checksum(path: Path, stop: Event | None = None) -> str:
    """Return the checksum of a file; of its beginning where ``stop`` is set meanwhile."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while (chunk := stream.read(_CHUNK)) and not (stop and stop.is_set()):
            digest.update(chunk)
    return digest.hexdigest()


def checksums(paths: Sequence[Path]) -> dict[Path, Future[str]]:
    """Return the checksums of files, or the errors of reading them; of several at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return {path: threads.submit(checksum, path) for path in paths}
